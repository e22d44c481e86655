"""TahoeST: the class a user types. Its methods hand the work on."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from scvi.data import AnnDataManager
from scvi.model.base import BaseModelClass, UnsupervisedTrainingMixin
from scvi.utils import setup_anndata_dsp

from scvi_tahoe._adapters import begin_adapters, end_adapters, read_adapters, write_adapters
from scvi_tahoe._base_supply import begin_prior, left_as_prior
from scvi_tahoe._calibration import calibration_from_validation
from scvi_tahoe._compat import AnnOrMuData, history_as_frames, history_as_lists
from scvi_tahoe._condition_means import observed_cosines
from scvi_tahoe._constants import REGISTRY, TENSORS
from scvi_tahoe._control_scale import warn_about_scale
from scvi_tahoe._correction_share import shrink_correction as shrink_by_validation
from scvi_tahoe._counts import ControlCounts
from scvi_tahoe._exchange import (
    labels_of,
    objective_of,
    pretrained_of,
    reason_to_leave_prior,
    register_in_order,
    registry_of,
    report_from_dict,
    start_options,
    united_table,
    verify_scale,
    with_numbered_genes,
)
from scvi_tahoe._learning_rate import UNUSED_OPTIONS, LearningRateTest, run_learning_rate_test
from scvi_tahoe._module import TahoeSTModule, base_cells
from scvi_tahoe._predicted_chunks import Forward, default_batch_size
from scvi_tahoe._prediction import (
    OUTPUTS,
    Output,
    cells_of_plan,
    conditions_asked,
    covered_by_asking,
    plan_prediction,
    resolve_conditions,
)
from scvi_tahoe._prediction_devices import Devices, prediction_devices
from scvi_tahoe._prediction_file import prediction_path
from scvi_tahoe._prediction_job import PredictionJob
from scvi_tahoe._prior_report import prior_table
from scvi_tahoe._sources import (
    learn_prior,
    minibatch_sources,
    random_minibatches,
    rows_of_labels,
    with_objective,
    with_prior,
)
from scvi_tahoe._training import TrainingRun, default_lr
from scvi_tahoe._unused_options import (
    default_of,
    options_given,
    options_of_user,
    refuse_unused,
    unused_in_network,
    unused_in_objective,
)
from scvi_tahoe._validation_scores import computed_scores
from scvi_tahoe.data import (
    PRIORS,
    ConditionIndex,
    EmbeddingTable,
    EmbeddingTableField,
    Prior,
    Screen,
    ScreenKeys,
    Split,
    align_genes,
    default_split,
    read_screen,
    read_table,
    screen_fields,
    spelled_labels,
    verify_screen,
    with_condition_labels,
)
from scvi_tahoe.evaluate import EffectCalibration, EvaluationReference, evaluate
from scvi_tahoe.evaluate._check import act_on, checks_table
from scvi_tahoe.evaluate._leakage import check_conditions
from scvi_tahoe.nn import SIZES, GeneDecoderConfig, NetworkConfig, Objective, ObjectiveConfig
from scvi_tahoe.pretrained import (
    ArcColumns,
    LoadingReport,
    diagnose_attention,
    export_model,
    is_export,
    plan_warm_start,
    push_model,
    read_pretrained,
    write_arc_folder,
)
from scvi_tahoe.train import (
    MemoryPlan,
    Recipe,
    TahoeTrainingPlan,
    autocast_dtype,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from anndata import AnnData
    from lightning.pytorch.loggers import Logger
    from mudata import MuData

    from scvi_tahoe.data import CellSetDataModule, Combination, Condition, GeneAlignment
    from scvi_tahoe.data._store import StoreKind
    from scvi_tahoe.evaluate import EvaluationResult
    from scvi_tahoe.evaluate._check import Check
    from scvi_tahoe.nn._config import Attention
    from scvi_tahoe.pretrained import AttentionDiagnosis, PretrainedModel

__all__ = ["REPRESENTATIONS", "Representation", "TahoeST"]

logger = logging.getLogger(__name__)

Representation = Literal["expression", "embedding", "expression+embedding"]
REPRESENTATIONS: tuple[Representation, ...] = ("expression", "embedding", "expression+embedding")

_DEFAULT_SET_SIZE = 64
_PRIOR_CELLS_UP_TO = 5_000_000  # conditions x genes whose prior is made in minutes


class TahoeST(UnsupervisedTrainingMixin, BaseModelClass):
    """State Transition: predicts the cells of a perturbation from a set of control cells.

    Parameters
    ----------
    adata
        AnnData or MuData registered with :meth:`setup_anndata` or :meth:`setup_mudata`.
    registry
        Registry of a saved model, to build it without data.
    size
        A name in ``scvi_tahoe.SIZES``, or dimensions of the network as keyword arguments of
        :class:`~scvi_tahoe.nn.NetworkConfig`. ``'mini'`` trains on a laptop, ``'tahoe'`` has the dimensions of
        ST-Tahoe.
    representation
        One of:

        * ``'expression'`` - expression in, expression out (default): trained in the space that is scored
        * ``'embedding'`` - cell embedding in and out, with a gene decoder beside it
        * ``'expression+embedding'`` - expression in and out; the cell embedding is an auxiliary signal of training
    set_size
        Cells of a set; None takes 64.
    network
        Further options of :class:`~scvi_tahoe.nn.NetworkConfig` by name, e.g. ``{"attention": "full"}``.
    objective
        Options of :class:`~scvi_tahoe.nn.ObjectiveConfig` by name, e.g. ``{"terms": {"energy": 1.0}}``.
    prior
        What the network's change is added to, see :class:`~scvi_tahoe.data.CellPrior`; one of:

        * ``'none'`` - control cells
        * ``'mean'`` - control cells moved by the mean change of the other perturbations of the context
        * ``'transfer'`` - control cells moved by the mean change of the perturbation in other contexts, weighted by how
          alike their controls are; where no other context has it, by the changes of the parts of a combination, else
          by that of the nearest perturbations
        * ``'cells'`` - observed cells of the perturbation in other contexts, moved to this one through the quantiles of
          what was seen in both; of a combination that was seen nowhere else, the cells of each part, changed as the
          other parts change cells. The network sees them beside the control cells and corrects them; one-hot labels of
          perturbations seen in several contexts it does not see, unless ``network={"sees_perturbation": True}``
        * ``'auto'`` - cells, where perturbations were seen in several contexts or, with a ``combination_separator``,
          at least two of them alone, and the screen is small enough to keep such cells for every condition; otherwise
          none (default)
    batch_encoder
        Tell the network the technical batch of each cell (needs ``batch_key``).
    seed
        Of the initial weights.

    Raises
    ------
    ValueError
        If an option is unknown, two contradict each other, or one that is given would have no effect.

    Examples
    --------
    >>> TahoeST.setup_anndata(adata, perturbation_key="target_gene", control="non-targeting", context_key="cell_line")
    >>> model = TahoeST(adata)
    >>> model.train()
    >>> predicted = model.predict(perturbations=["STAT1"], contexts=["A549"])
    >>> result = model.evaluate(held_out)

    Notes
    -----
    The architecture is that of Adduri et al. 2025, *Predicting cellular responses to perturbation across diverse
    contexts with State* (bioRxiv 2025.06.26.661135), implemented independently.
    """

    history_: Any  # set by scvi-tools
    _module_cls = TahoeSTModule
    _training_plan_cls = TahoeTrainingPlan

    def __init__(
        self,
        adata: AnnOrMuData | None = None,
        registry: dict | None = None,
        *,
        size: str | Mapping[str, Any] = "mini",
        representation: Representation = "expression",
        set_size: int | None = None,
        network: Mapping[str, Any] | None = None,
        objective: Mapping[str, Any] | None = None,
        prior: Prior = "auto",
        batch_encoder: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(adata, registry)
        if set_size is not None and set_size < 1:
            raise ValueError(f"set_size={set_size!r} must be 1 or more.")
        if prior not in PRIORS:
            raise ValueError(f"prior={prior!r} is unknown; allowed are {', '.join(map(repr, PRIORS))}.")
        if prior not in ("none", "auto") and representation == "embedding":
            raise ValueError("a prior is made of expression; representation='embedding' takes prior='none'.")
        head = _head(size, network)
        if prior not in ("none", "auto") and head != "delta":
            raise ValueError(f"a prior is what head='delta' adds its change to; head={head!r} takes prior='none'.")
        if prior == "auto":  # resolved here, so that a saved model is built again with what it was trained with
            prior = self._choose_prior() if representation != "embedding" and head == "delta" else "none"
        self.representation = representation
        self.prior = prior
        self.set_size = set_size or _DEFAULT_SET_SIZE
        said = {**(size if not isinstance(size, str) else {}), **(network or {})}
        if prior == "cells" and "sees_perturbation" not in said and self._labels_only_tell_apart():
            network = {**(network or {}), "sees_perturbation": False}  # in what is saved, as the prior above
        config = self._network_config(size, dict(network or {}), batch_encoder=batch_encoder)
        if prior != "cells" and not config.sees_perturbation:
            raise ValueError(
                "a network with sees_perturbation=False knows of a perturbation what prior='cells' shows, and prior is "
                f"{prior!r}; train one with network={{'sees_perturbation': True}}."
            )
        loss = self._objective_config(objective, said, config)
        auxiliary = self.summary_stats.n_cell_embedding if representation == "expression+embedding" else 0
        with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
            torch.default_generator.manual_seed(seed)
            self.module = TahoeSTModule(config, loss, n_cell_embedding=auxiliary)
        #: names of the parameters that hold values from a pretraining or an earlier training; only these can be frozen
        self.pretrained_parameters_: list[str] = []
        #: layers, rank and alpha of the adapters that recipe='lora' attached; None without
        self.adapters_: dict[str, Any] | None = None
        self.prior_: dict[str, Any] | None = None
        #: weight of the gene decoder that training measured, where ``decoder_weight='auto'``
        self.decoder_weight_: float | None = None
        #: what :meth:`predict` multiplies effects with, set by :meth:`calibrate`; None leaves them as the network says
        self.calibration_: EffectCalibration | None = None
        #: how alike the observed deltas of the training data are, by context; the measure for collapsed predictions
        self.observed_cosine_: dict[str, float] = {}
        #: what became of every pretrained tensor, and how labels matched; None for a model from scratch
        self.loading_report_: LoadingReport | None = None
        self.provenance_: dict[str, Any] | None = None
        self.weights_objective_: dict[str, Any] | None = None
        #: labels of one-hot weights and of the data together, where both are one-hot; None: the registered table
        self.one_hot_labels_: list[str] | None = None
        self.split_: dict[str, Any] | None = None
        self.training_config_: dict[str, Any] | None = None
        self._model_summary_string = (
            f"TahoeST with {representation} of {self.summary_stats.n_vars:,} genes, sets of {self.set_size} cells, "
            f"{config.n_layers} layers of {config.hidden}, "
            f"{sum(p.numel() for p in self.module.parameters()):,} parameters"
        )
        self.init_params_ = self._get_init_params(locals())

    def _choose_prior(self) -> Prior:
        """Cells, if most conditions can be made from others and there are not too many conditions to keep."""
        if self.adata is None:
            return "none"
        index = ConditionIndex.from_screen(read_screen(self.adata, self.keys))
        is_small = len(index.conditions) * self.summary_stats.n_vars <= _PRIOR_CELLS_UP_TO
        return "cells" if is_small and (self.perturbations_recur or self._has_parts_to_combine(index)) else "none"

    @property
    def perturbations_recur(self) -> bool:
        """Whether the model's data have a perturbation in more than one context."""
        if self.adata is None:
            return False
        index = ConditionIndex.from_screen(read_screen(self.adata, self.keys))
        return len(index.conditions) > len(index.perturbations)

    def _labels_only_tell_apart(self) -> bool:
        """Whether a label says nothing that the prior does not: one-hot, of perturbations seen in several contexts.

        Beside the cells of the same perturbation a one-hot label only tells conditions apart, so that the network can
        learn the noise of each. An embedding says what perturbations have in common, and stays.
        """
        table = EmbeddingTableField.table(self.state_registry(REGISTRY.PERTURBATION_EMBEDDING))
        return table.one_hot and table.composition is None and self.perturbations_recur

    @property
    def combines_measured_parts(self) -> bool:
        """Whether at least half of the combinations in the model's data have parts that were all measured alone."""
        if self.adata is None:
            return False
        index = ConditionIndex.from_screen(read_screen(self.adata, self.keys))
        parts = [self.keys.reading.parts(label) for label in index.perturbations]
        alone = {of_label[0] for of_label in parts if len(of_label) == 1}
        measured = [alone.issuperset(of_label) for of_label in parts if len(of_label) > 1]
        return bool(measured) and 2 * sum(measured) >= len(measured)

    def _has_parts_to_combine(self, index: ConditionIndex) -> bool:
        """Whether combinations that nobody measured can be made of perturbations that were measured alone."""
        parts = [self.keys.reading.parts(label) for label in index.perturbations]
        return self.keys.combination_separator is not None and sum(len(of_label) == 1 for of_label in parts) > 1

    def _network_config(self, size: Any, options: dict[str, Any], *, batch_encoder: bool) -> NetworkConfig:
        stats = self.summary_stats
        if self.representation not in REPRESENTATIONS:
            raise ValueError(f"representation={self.representation!r} is unknown; allowed are {list(REPRESENTATIONS)}.")
        if self.representation != "expression" and "n_cell_embedding" not in stats:
            raise ValueError(
                f"representation={self.representation!r} needs a cell embedding; register one with cell_embedding_key."
            )
        if isinstance(size, str) and size not in SIZES:
            raise ValueError(f"size={size!r} is unknown; there are {list(SIZES)}, or give the dimensions.")
        if batch_encoder and "n_batch" not in stats:
            raise ValueError("batch_encoder=True needs batches; register them with batch_key.")
        width = stats.n_vars if self.representation != "embedding" else stats.n_cell_embedding
        defaults: dict[str, Any] = {
            "n_input": width,
            "n_output": width,
            "n_perturbation": stats.n_perturbation_embedding,
            "n_perturbation_parts": stats.get("n_perturbation_parts", 1),  # absent from models of the first release
            "n_batches": stats.n_batch if batch_encoder else 0,
        }
        if _head(size, options) == "delta" and self.representation != "embedding":
            defaults |= {"keep_zeros": True, "base_encoder": self.prior == "cells"}
        if self.representation == "embedding":
            decoder = GeneDecoderConfig(n_genes=stats.n_vars, hidden=(512, 512))
            defaults |= {"rectify": False, "gene_decoder": decoder.__dict__}
        dimensions = SIZES[size] if isinstance(size, str) else dict(size)
        return NetworkConfig.from_kwargs({**defaults, **dimensions, **options})

    def _objective_config(
        self, options: Mapping[str, Any] | None, network_options: Mapping[str, Any], network: NetworkConfig
    ) -> ObjectiveConfig:
        """The objective, once it is sure that nothing the user gave for it or for the network has no effect."""
        config = ObjectiveConfig.from_kwargs(options or {})
        if self.representation == "embedding" and "de_weighted" in config.terms:
            raise ValueError(
                "the term 'de_weighted' weighs genes; representation='embedding' is trained on embeddings."
            )
        of_objective, of_network = options_given(options, network_options)
        # a network's options are written out with their defaults in many places, and a default asks for nothing
        of_network = {k: v for k, v in of_network.items() if v != default_of(NetworkConfig, k)}
        refuse_unused("network option", of_network, unused_in_network(network, self.representation))
        unused = unused_in_objective(config, network, self.representation)
        refuse_unused("objective option", of_objective, unused)
        # what came along and says nothing about this model is not kept as if it did
        return replace(config, **{name: default_of(ObjectiveConfig, name) for name in unused})

    # ---------------------------------------------------------------- registration

    @classmethod
    @setup_anndata_dsp.dedent
    def setup_anndata(
        cls,
        adata: AnnData,
        perturbation_key: str,
        control: str,
        layer: str | None = None,
        cell_embedding_key: str | None = None,
        perturbation_embedding_key: str | Sequence[str] | None = None,
        context_key: str | None = None,
        batch_key: str | None = None,
        dose_key: str | None = None,
        combination_separator: str | None = None,
        combination: Combination = "sum",
        **kwargs: Any,
    ) -> None:
        """Register a screen. Nothing in it is changed; everything wrong with it is refused here.

        Parameters
        ----------
        %(param_adata)s
        perturbation_key
            Column of ``obs`` with one perturbation label a cell.
        control
            The label of control cells. Every context with perturbed cells needs some.
        layer
            Where the expression is, as log1p of normalised counts: None for ``X``, or a layer.
        cell_embedding_key
            Key of ``obsm`` with a cell embedding, needed by the representations that use one.
        perturbation_embedding_key
            Key of ``uns`` with one embedding row a label: a mapping of label to vector, a DataFrame with labels as
            index, or ``(names, matrix)``. A list of keys fuses tables: each is standardised and followed by a mark of
            the labels that it lacks. None: one-hot.
        context_key
            Column of ``obs`` with the biological setting: cell line, cell type, donor.
        batch_key
            Column of ``obs`` with the technical batch; controls are matched within it.
        dose_key
            Column of ``obs`` with the dose of each perturbed cell, a number above 0. A condition is then a perturbation
            at a dose, its label ``"Trametinib@10"``, and the network is told log10 of the dose; other doses can be
            predicted. Combinations have one dose a part, ``"1+10"``.
        combination_separator
            What stands between the perturbations of a label, e.g. ``"+"`` in ``"KLF1+MAP2K6"``. Rows of combinations
            are then made from those of their parts, in any order, and combinations that were not measured can be
            predicted.
        combination
            How: ``'sum'`` adds the rows of the parts, and the number of further parts (default); with ``'learned'``
            the network encodes every part and sums what it makes of them.

        Raises
        ------
        KeyError
            If a key does not exist.
        ValueError
            If control cells, embedding rows, names, labels or values are not as the model needs them.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        keys = _keys(setup_method_args)
        cls._register(adata, keys, setup_method_args, **kwargs)

    @classmethod
    @setup_anndata_dsp.dedent
    def setup_mudata(
        cls,
        mdata: MuData,
        perturbation_key: str,
        control: str,
        modalities: dict[str, str] | None = None,
        layer: str | None = None,
        cell_embedding_key: str | None = None,
        perturbation_embedding_key: str | Sequence[str] | None = None,
        context_key: str | None = None,
        batch_key: str | None = None,
        dose_key: str | None = None,
        combination_separator: str | None = None,
        combination: Combination = "sum",
        **kwargs: Any,
    ) -> None:
        """Register a screen whose expression and cell embedding are modalities of a MuData.

        Parameters
        ----------
        %(param_mdata)s
        perturbation_key, control, layer, cell_embedding_key, perturbation_embedding_key, context_key, batch_key
            As in :meth:`setup_anndata`. Columns are looked up in ``mdata.obs``, then in the expression modality.
            Without ``cell_embedding_key`` the embedding is ``X`` of its modality.
        dose_key, combination_separator, combination
            As in :meth:`setup_anndata`.
        modalities
            Which modality holds which part, e.g. ``{"expression": "rna", "cell_embedding": "state"}``.

        Raises
        ------
        KeyError, ValueError
            As :meth:`setup_anndata`, and if modalities are missing or hold different cells.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        keys = _keys(setup_method_args)
        cls._register(mdata, keys, setup_method_args, **kwargs)

    @classmethod
    def _register(cls, data: AnnOrMuData, keys: ScreenKeys, setup_method_args: dict, **kwargs: Any) -> None:
        if data.is_view:
            raise ValueError("the data are a view of other data; run adata = adata.copy() first.")
        verify_screen(data, keys, for_training="source_registry" not in kwargs)
        manager = AnnDataManager(fields=screen_fields(keys), setup_method_args=setup_method_args)
        manager.register_fields(data, **kwargs)
        cls.register_manager(manager)

    @classmethod
    def setup_annbatch(cls, *args: Any, **kwargs: Any) -> None:
        """Not offered: annbatch hands over single cells, and this model needs sets of them.

        Raises
        ------
        NotImplementedError
            Always; backed AnnData is the way to data larger than memory.
        """
        raise NotImplementedError(
            "TahoeST trains on sets of cells, which setup_annbatch cannot hand over; for data larger than memory "
            "register backed data: adata = sc.read_h5ad(path, backed='r')."
        )

    # ---------------------------------------------------------------- pretrained weights

    @classmethod
    def from_pretrained(  # noqa: PLR0913
        cls,
        source: str | Path,
        adata: AnnOrMuData | None = None,
        *,
        checkpoint: str | None = None,
        revision: str | None = None,
        accept: Sequence[str] = (),
        accept_license: bool | None = None,
        attention: Attention | None = None,
        genes: Sequence[str] | None = None,
        backbone_from: str | Path | None = None,
        set_size: int | None = None,
        network: Mapping[str, Any] | None = None,
        objective: Mapping[str, Any] | None = None,
        prior: Prior = "auto",
        check_scale: bool = True,
        cache_dir: str | Path | None = None,
        offline: bool = False,
        seed: int = 0,
    ) -> TahoeST:
        """Start from pretrained weights: weights only, never an optimizer, a schedule or a step.

        Genes, perturbations and batches are matched by label. Whatever would change the meaning of the weights is a
        decision to be named in ``accept``; the error that asks for it says which. No code of a downloaded file runs.

        Parameters
        ----------
        source
            Folder in Arc's format or of :meth:`export`, or name of a model on the Hugging Face hub.
        adata
            Registered data to fine-tune on; None gives a model with the labels of the folder, for prediction.
        checkpoint
            Which checkpoint of the folder: ``'best'``, ``'last'``, ``'final'``, a step, or a file name.
        revision
            Commit, tag or branch on the hub.
        accept
            Names from ``scvi_tahoe.pretrained.DECISIONS``.
        accept_license
            Accept the licence of downloaded weights (Arc's are non-commercial, also for outputs and fine-tunes).
        attention
            Overrides the attention that the folder states or that is assumed for it; see :meth:`diagnose_attention`.
        genes
            Names of the weights' genes, where the folder lacks them.
        backbone_from
            Weights whose backbone an export refers to, see :meth:`export`.
        set_size
            Cells of a set; None takes that of the weights.
        network
            Options of the network to change, such as ``{"dropout": 0.2}``; what changes its function needs a decision.
        objective
            As for :class:`TahoeST`; None takes the default, or what an export of ours was trained with.
        prior
            As for :class:`TahoeST`, but ``'auto'`` is that of an export of ours, and none for other weights. An
            export's prior is ready for prediction, unless the data have other genes; training learns it from the data.
        check_scale
            Refuse data on another scale than the weights', by predicting controls from controls.
        cache_dir, offline
            Of the hub.
        seed
            Of what the weights do not cover.

        Returns
        -------
        The model; ``model.loading_report_`` says what became of every tensor.

        Raises
        ------
        ValueError
            If a decision is missing, or the data are on another scale.
        FileNotFoundError
            If there is no such folder or checkpoint.
        """
        hub: dict[str, Any] = {"accept_license": accept_license, "cache_dir": cache_dir, "offline": offline}
        base = None if backbone_from is None else read_pretrained(backbone_from, **hub)
        weights = read_pretrained(
            source, checkpoint, revision=revision, attention=attention, genes=genes, base=base, **hub
        )
        if adata is None:
            weights = with_numbered_genes(weights)
            registry = registry_of(weights, cls.__name__)
            stats = {k: v for f in registry["field_registries"].values() for k, v in f["summary_stats"].items()}
        else:
            registry, stats = None, dict(cls._get_most_recent_anndata_manager(adata, required=True).summary_stats)
        table = None if adata is None else united_table(weights, registered_table(cls, adata))
        if table is not None:
            stats["n_perturbation_embedding"] = table.encoder_width
        options = start_options(weights, stats, batches="n_batch" in stats, head=(network or {}).get("head"))
        if set_size is not None:
            options["set_size"] = set_size
        chosen = {**options, "network": network, "objective": objective or options["objective"]}
        if prior != "auto":
            chosen["prior"] = prior
        without_prior = reason_to_leave_prior(
            weights, chosen["prior"], None if adata is None else registered_genes(adata)
        )
        if adata is not None and weights.prior is not None and not without_prior:
            register_in_order(cls, adata, weights.labels.genes or ())
        with options_of_user(objective=objective, network=network):
            model = cls(adata, registry, seed=seed, **chosen)
        model.one_hot_labels_ = None if table is None else list(table.parts.names)
        start = plan_warm_start(weights, model.module.config, labels_of(model), accept=accept, seed=seed)
        model.module.network.load_state_dict(start.state_dict, strict=True, assign=True)
        model.pretrained_parameters_ = sorted(f"network.{name}" for name in start.report.loaded)
        model.prior_ = None if without_prior else weights.prior
        model.loading_report_ = replace(start.report, notes=(*start.report.notes, *without_prior))
        model.provenance_ = asdict(weights.provenance)
        model.weights_objective_ = options["objective"] or objective_of(weights.loss)
        model.is_trained_ = True
        origin = weights.provenance
        attention_kind = f"attention {weights.config.attention} ({origin.attention_reason or 'as trained'})"
        logger.info(f"{origin.source}, {attention_kind}\n{model.loading_report_.text()}")
        if not origin.attention_certain:
            warnings.warn(f"Attention of {origin.source}: {origin.attention_reason}.", stacklevel=2)
        if adata is not None and check_scale:
            verify_scale(model)
        return model

    def export(
        self,
        folder: str | Path,
        *,
        format: Literal["scvi-tahoe", "arc"] = "scvi-tahoe",
        backbone_from: str | Path | None = None,
        accept_license: bool | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write the model into a folder that anyone can read without running code.

        Parameters
        ----------
        folder
            To be created.
        format
            One of:

            * ``'scvi-tahoe'`` - safetensors and JSON, which :meth:`from_pretrained` reads (default). What a prior keeps
              of the training data is written too: with ``prior='cells'``, cells of it
            * ``'arc'`` - a folder that arc-state's own command line runs
        backbone_from
            The weights that the model started from, if its backbone is still theirs: the backbone is then written as a
            reference with a hash, and :meth:`from_pretrained` wants the same argument. Format ``'scvi-tahoe'`` only.
        accept_license
            Accept the licence of ``backbone_from``, where that is a name on the hub.
        overwrite
            Replace an earlier export there.

        Raises
        ------
        ValueError
            If the format is unknown, or arc-state has no counterpart for something in the model.
        FileExistsError
            If the folder exists and may not be replaced.
        """
        if format not in ("scvi-tahoe", "arc"):
            raise ValueError(f"format={format!r} is unknown; allowed are 'scvi-tahoe' and 'arc'.")
        if format == "arc" and self.prior != "none":
            raise ValueError(
                f"arc-state has no counterpart for prior={self.prior!r}. Train a model with prior='none' for it, and "
                "with a head that it knows: TahoeST(adata, prior='none', network={'head': 'hidden_residual'}); or "
                "export with format='scvi-tahoe', which keeps the prior."
            )
        self._verify_exportable()
        pretrained = pretrained_of(self)
        if format == "scvi-tahoe":
            base = self._backbone_of(backbone_from, accept_license)
            export_model(pretrained, folder, base=base, overwrite=overwrite)
            return
        if backbone_from is not None:
            raise ValueError("backbone_from needs format='scvi-tahoe': arc-state's folders hold all weights.")
        keys = self.keys
        columns = ArcColumns(
            perturbation=keys.perturbation_key, context=keys.context_key or "cell_type", batch=keys.batch_key or "batch"
        )
        write_arc_folder(pretrained, folder, columns=columns, overwrite=overwrite)

    def push_to_hub(
        self,
        repository: str,
        *,
        accept_license: bool | None = None,
        license_file: str | Path | None = None,
        share_cells: bool = False,
        private: bool = True,
        revision: str | None = None,
        message: str | None = None,
        token: str | None = None,
        backbone_from: str | Path | None = None,
    ) -> str:
        """Upload the model to the Hugging Face hub as :meth:`export` writes it: safetensors and JSON, never a pickle.

        The model card and, for weights that derive from Arc's, the notice of their licence go along.

        Parameters
        ----------
        repository
            ``'owner/name'``; created if it does not exist.
        accept_license
            Accept the licence of the weights that the model started from, if they are Arc's; None: what the
            environment variable ``SCVI_TAHOE_ACCEPT_LICENSE`` says.
        license_file
            Text of that licence, uploaded as ``LICENSE``; needed to publish weights that derive from Arc's.
        share_cells
            Upload a prior that holds cells of the training data, as ``prior='cells'`` does.
        private
            Visibility of a new repository. A public one is refused unless this is False.
        revision
            Branch to upload to.
        message
            Title of the commit.
        token
            Of the hub; None takes that of ``hf auth login``.
        backbone_from
            As for :meth:`export`.

        Returns
        -------
        The commit, which :meth:`from_pretrained` takes as ``revision``.

        Raises
        ------
        LicenceNotAcceptedError
            If a licence has to be accepted, or its text to be given.
        PermissionError
            If cells of the training data would be passed on, or the repository is public, unasked.
        ValueError
            If the model is calibrated.
        """
        self._verify_exportable()
        base = self._backbone_of(backbone_from, accept_license)
        return push_model(
            pretrained_of(self),
            repository,
            accept_license=accept_license,
            license_file=license_file,
            share_cells=share_cells,
            private=private,
            revision=revision,
            message=message,
            token=token,
            base=base,
        )

    def _backbone_of(self, source: str | Path | None, accept_license: bool | None) -> PretrainedModel | None:
        """Weights whose backbone is referred to: of the hub, at the commit this model started from, if it is that."""
        if source is None:
            return None
        started = self.provenance_ or {}
        revision = started.get("revision") if str(source) == started.get("source") else None
        return read_pretrained(source, revision=revision, accept_license=accept_license)

    def _verify_exportable(self) -> None:
        if self.calibration_ is not None:
            raise ValueError(
                "export writes networks, and this model is calibrated; keep it with save(), or export it without: "
                "model.calibration_ = None."
            )

    def diagnose_attention(
        self, adata: AnnOrMuData | None = None, *, n_sets: int = 32, seed: int = 0
    ) -> AttentionDiagnosis:
        """Compute the loss under each kind of attention, and say which the weights were trained with, and how sure.

        Parameters
        ----------
        adata
            Data with perturbed and control cells and the columns of the model's; None takes the model's own.
        n_sets
            Cell sets to compute it on.
        seed
            Which.

        Returns
        -------
        Loss of each set under each attention, the best, how certain that is, and a verdict in words.
        """
        minibatches = random_minibatches(self, adata, n_sets=n_sets, seed=seed)
        pairs: Iterable[Any] = (
            (
                {
                    "control_SNG": m[TENSORS.CONTROL],
                    "perturbation_SP": m[TENSORS.PERTURBATION],
                    "batch_SN": m.get(TENSORS.BATCH),
                    "base_SNG": base_cells(m),
                },
                m[TENSORS.OBSERVED],
            )
            for m in minibatches
        )
        # the question is what the weights were trained with, so the loss is theirs, not the one for fine-tuning
        theirs = self.weights_objective_
        objective = self.module.objective if theirs is None else Objective(ObjectiveConfig(**theirs))
        return diagnose_attention(self.module.network, pairs, lambda p, o: objective.main_loss(p, o)[0])

    # ---------------------------------------------------------------- what the model knows

    @property
    def keys(self) -> ScreenKeys:
        """Where a screen keeps its parts: the arguments of the setup method."""
        return _keys(self.registry_)

    @property
    def genes(self) -> np.ndarray:
        """Names of the model's genes."""
        return np.asarray(self.state_registry(REGISTRY.EXPRESSION)["column_names"]).astype(str)

    @property
    def perturbation_table(self) -> EmbeddingTable:
        """Embedding rows of all perturbations that the model can predict."""
        table = EmbeddingTableField.table(self.state_registry(REGISTRY.PERTURBATION_EMBEDDING))
        return table if self.one_hot_labels_ is None else table.over(EmbeddingTable.one_hot_of(self.one_hot_labels_))

    def state_registry(self, key: str) -> dict[str, Any]:
        """What the registry stored for a field, also without data."""
        return self.registry_["field_registries"][key]["state_registry"]

    # ---------------------------------------------------------------- training

    def train(  # type: ignore[override]  # noqa: PLR0913
        self,
        max_steps: int | None = None,
        *,
        recipe: Recipe = "freeze_then_unfreeze",
        freeze_backbone: bool | int | None = None,
        lr: float | None = None,
        batch_size: int | None = None,
        split: Split | None = None,
        validate_every: int | None = None,
        monitor: str = "validation_loss",
        patience: int | None = None,
        save_steps: int | None = None,
        save_dir: str | Path | None = None,
        resume_from: str | Path | None = None,
        logger: str | Logger | Sequence[Logger] | None = "csv",
        store: StoreKind = "auto",
        precision: str | int = "auto",
        compile: bool | Literal["auto"] = "auto",
        shrink_correction: bool = True,
        seed: int = 0,
        progress: bool = True,
        plan_kwargs: Mapping[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Fine-tune the model; its best validation is what it has in the end.

        Parameters
        ----------
        max_steps
            Optimizer steps; None takes 1,000.
        recipe
            Which parts train when, see :func:`~scvi_tahoe.train.resolve_recipe`. Only tensors with pretrained values
            are ever frozen; a model from scratch trains whole whatever the recipe.
        freeze_backbone
            True keeps the pretrained backbone frozen, False trains it from the start, a step unfreezes it there; None
            lets the recipe decide.
        lr
            Peak learning rate; None takes 1e-4 with a prior where perturbations were seen in several contexts
            or most combinations have measured parts, else 2e-4 for pretrained weights and 1e-3 from scratch.
        batch_size
            Cell *sets* a minibatch; None takes 8.
        split
            Which cells validate, e.g. ``FewShotContext(context="A549", validation=("STAT1",))``; None holds out a
            tenth of the cells of every condition, or with a prior a tenth of the conditions, where enough perturbations
            are in several contexts: the prior predicts those from the other contexts. In one context it is cells.
        validate_every
            Optimizer steps between validations; None validates 20 times.
        monitor
            What decides which weights are kept: ``'validation_loss'``, one of its terms such as
            ``'validation_delta_mse'``, or a score computed at every validation: ``'validation_pds'``,
            ``'validation_pearson_delta'``, ``'validation_overlap'`` (of the genes that change most; stands in for DES).
        patience
            Stop after this many validations without improvement; None never stops early.
        save_steps
            Also keep a checkpoint every this many steps in ``save_dir``, named ``step=000400.ckpt``; a multiple of
            ``validate_every``.
        save_dir
            Folder for ``best.ckpt``, ``last.ckpt`` and ``metrics.csv``; None writes nothing.
        resume_from
            Checkpoint of an interrupted run: optimizer, schedule and step go on as if nothing had happened. Nothing
            else ever restores them.
        logger
            Loggers beside ``model.history``: ``'csv'`` (a file in ``save_dir``), ``'tensorboard'``, ``'wandb'``, None,
            or Lightning loggers.
        store
            Where expression lives: ``'auto'``, ``'device'``, ``'host'`` or ``'disk'``.
        precision
            As in Lightning, e.g. ``'bf16-mixed'`` or ``'32-true'``; ``'auto'`` takes the first on CUDA cards that
            compute in bfloat16 and the second elsewhere. Weights, norms and losses are float32 in both.
        compile
            Whether training steps run compiled; ``'auto'`` compiles for runs that save more time than it takes.
        shrink_correction
            With a prior: keep that share of the network's correction, from 0 to 1, that holds for the conditions that
            validate (``model.training_config_["correction_share"]``), where three or more validate whose cells do not
            train; not with ``recipe='lora'``, which leaves the head as it was, nor where no step improved what training
            started from. False keeps what was trained.
        seed
            Of the split, the sets and dropout.
        progress
            Whether to show a table of frozen and trainable parameters and a progress bar.
        plan_kwargs
            Further options of :class:`~scvi_tahoe.train.PlanConfig` by name.
        **trainer_kwargs
            Options of :class:`scvi.train.Trainer` and Lightning's trainer, e.g. ``devices`` or
            ``accumulate_grad_batches``.

        Raises
        ------
        ValueError
            If an option is unknown or out of range, or ``save_dir`` holds a checkpoint of another run.
        """
        screen = self._training_screen()
        split = self._chosen_split(split, screen)
        run = TrainingRun.prepare(
            default_lr=default_lr(self),
            max_steps=max_steps,
            batch_size=batch_size,
            validate_every=validate_every,
            plan_options={
                "recipe": recipe, "freeze_backbone": freeze_backbone, "lr": lr, "seed": seed,
                **(plan_kwargs or {}),
            },
            monitor=monitor,
            monitored=computed_scores(self),
            patience=patience,
            save_steps=save_steps,
            save_dir=save_dir,
            resume_from=resume_from,
            trainer_options={**trainer_kwargs, "precision": precision},
            setting={
                "set_size": self.set_size, "representation": self.representation, "prior": self.prior,
                "objective": self.module.objective.config.to_dict(), "split": split.to_dict(),
                "n_cells": screen.n_cells, "n_pretrained": len(self.pretrained_parameters_),
            },
        )  # fmt: skip
        run.plan.refuse_unused(self.module, self.pretrained_parameters_)
        begin_adapters(self, run.plan)
        datamodule = self._minibatches(run, screen, split, store=store, progress=progress)
        self.calibration_ = None  # of other weights
        expression = datamodule.dataset.sources.genes or datamodule.dataset.sources.cells
        assigned = datamodule.split
        self.observed_cosine_ = observed_cosines(
            expression, assigned.index, assigned.train, run.device, reading=self.keys.reading, seed=seed
        )
        compiles = run.compiles(self.module, compile)
        run.announce(self, datamodule, compiles=compiles, progress=progress)
        previous = self.history_ or {}
        self.history_ = dict(previous)  # a copy, as scvi-tools writes into it
        self.split_ = assigned.split.to_dict()
        with run.interruptible():
            super().train(
                max_epochs=run.n_epochs,
                datamodule=datamodule,
                plan_kwargs={
                    "config": run.plan,
                    "pretrained": self.pretrained_parameters_,
                    "setting": run.setting,
                    "compiles": compiles,
                },
                **run.trainer_kwargs(
                    logger=logger, progress=progress, conditions=datamodule.split.index.conditions, genes=self.genes
                ),
            )
        run.finish(self, previous)
        share = None
        if shrink_correction:
            recipe = run.plan.recipe
            share = shrink_by_validation(self, assigned, expression, run.device, recipe=recipe, seed=seed)
        self.training_config_ = {**(self.training_config_ or {}), "correction_share": share}
        if self.prior != "none":
            # which step is best is decided: the conditions that decided it may now tell what their perturbations do
            rows = np.union1d(assigned.train, assigned.validation)
            self.prior_ = learn_prior(self, screen, assigned.index, rows, seed=seed)

    def _chosen_split(self, split: Split | None, screen: Screen) -> Split:
        if split is None:
            return default_split(ConditionIndex.from_screen(screen), with_prior=self.prior != "none")
        if not isinstance(split, Split):
            raise TypeError(
                f"split={split!r} must be one of the splits of scvi_tahoe, e.g. FractionSplit(validation=0.1) or "
                "HeldOutPerturbations(validation=[...])."
            )
        return split

    def _minibatches(
        self, run: TrainingRun, screen: Screen, split: Split, *, store: StoreKind, progress: bool = False
    ) -> CellSetDataModule:
        seed = run.plan.seed
        index = ConditionIndex.from_screen(screen)
        assigned = split.assign(index, seed=seed)
        controls = np.flatnonzero(index.is_control)
        sources = minibatch_sources(self, screen, run.device, store=store, exact=run.exact, often=controls)
        if self.prior != "none":
            self.prior_ = learn_prior(self, screen, index, assigned.train, seed=seed)
        sources, base_rows = with_prior(
            self, sources, screen, index, index.conditions, device=run.device, seed=seed, progress=progress
        )
        sources = with_objective(self, sources, screen, assigned, run.batch_size, device=run.device, seed=seed)
        return run.datamodule(sources, assigned, rows_of_labels(self, screen), self.set_size, base_rows)

    def find_learning_rate(
        self,
        *,
        lowest: float = 1e-6,
        highest: float = 1.0,
        n_steps: int = 100,
        recipe: Recipe = "freeze_then_unfreeze",
        batch_size: int | None = None,
        split: Split | None = None,
        store: StoreKind = "auto",
        precision: str | int = "auto",
        seed: int = 0,
        plan_kwargs: Mapping[str, Any] | None = None,
    ) -> LearningRateTest:
        """Find out how large a learning rate may be, by training a copy while the rate grows; the model stays as it is.

        Parameters
        ----------
        lowest, highest
            Bounds of the rate.
        n_steps
            Steps between them.
        recipe, batch_size, split, store, precision, seed, plan_kwargs
            As in :meth:`train`. What the recipe freezes at first stays frozen, so the test is one of what trains first.
            Options of a schedule, of averages and of logging are refused in ``plan_kwargs``: here the rate grows.

        Returns
        -------
        Losses and rates, with ``suggestion`` (a peak for ``lr``) and ``plot()``.

        Raises
        ------
        ValueError
            If an option is unknown or out of range.
        """
        if not 0 < lowest < highest:
            raise ValueError(f"lowest={lowest!r} and highest={highest!r} must be positive rates, the lower one first.")
        if without_effect := sorted({*UNUSED_OPTIONS} & {*(plan_kwargs or {})}):
            raise ValueError(f"plan_kwargs {without_effect} have no effect while the rate grows; leave them out.")
        screen = self._training_screen()
        split = self._chosen_split(split, screen)
        run = TrainingRun.prepare(
            default_lr=default_lr(self), max_steps=n_steps, batch_size=batch_size,
            validate_every=n_steps, plan_options={"recipe": recipe, "seed": seed, **(plan_kwargs or {})},
            monitor="validation_loss", patience=None, save_dir=None, resume_from=None,
            trainer_options={"precision": precision}, setting={"set_size": self.set_size},
        )  # fmt: skip
        before, prior = self.adapters_, self.prior_
        try:
            begin_adapters(self, run.plan)
            datamodule = self._minibatches(run, screen, split, store=store)
            return run_learning_rate_test(self, run, datamodule, lowest=lowest, highest=highest)
        finally:
            self.prior_ = prior
            if before is None and self.adapters_ is not None:
                end_adapters(self)  # they are zero

    def save_adapters(self, folder: str | Path) -> None:
        """Write the adapters of ``recipe='lora'`` alone: a hundredth of a model, put back with :meth:`load_adapters`.

        Parameters
        ----------
        folder
            Gets ``adapters.safetensors`` and ``adapters.json``. Tensors that were not loaded from pretrained weights,
            which train beside adapters, are among them.

        Raises
        ------
        ValueError
            If the model carries no adapters.
        """
        write_adapters(self, Path(folder))

    def load_adapters(self, folder: str | Path) -> None:
        """Put saved adapters on a model with the weights that they were trained on.

        Parameters
        ----------
        folder
            Of :meth:`save_adapters`.

        Raises
        ------
        FileNotFoundError
            If the folder holds no adapters.
        ValueError
            If the model has other weights, or carries adapters already.
        """
        read_adapters(self, Path(folder))

    def merge_adapters(self) -> None:
        """Add the adapters to the weights, so that the model can be trained on whole; :meth:`export` does it by itself.

        Raises
        ------
        ValueError
            If the model carries no adapters.
        """
        end_adapters(self)

    def memory_plan(
        self, *, batch_size: int | None = None, store: StoreKind = "auto", precision: str | int = "auto",
        **trainer_kwargs: Any,
    ) -> MemoryPlan:  # fmt: skip
        """Estimate what :meth:`train` would take of the device's memory; it is also logged when training starts.

        Parameters
        ----------
        batch_size, store, precision, **trainer_kwargs
            Of :meth:`train`.

        Returns
        -------
        Bytes of weights, gradients, optimizer, activations and expression, and what is free.
        """
        run = TrainingRun.prepare(
            default_lr=default_lr(self), max_steps=None, batch_size=batch_size,
            validate_every=None, plan_options={}, monitor="validation_loss", patience=None, save_dir=None,
            resume_from=None, trainer_options={**trainer_kwargs, "precision": precision},
            setting={"set_size": self.set_size},
        )  # fmt: skip
        sources = minibatch_sources(self, self._training_screen(), run.device, store=store, exact=run.exact)
        return run.memory(self, sources)

    def _training_screen(self) -> Screen:
        if self.adata is None:
            raise ValueError("this model was loaded without data; load it with TahoeST.load(path, adata) to train it.")
        self._validate_anndata()
        screen = verify_screen(self.adata, self.keys, table_required=False)
        table = self.perturbation_table.covering(screen.perturbation.names)
        unknown = sorted(n for n in screen.perturbation.names if table.known_name(n) not in table.names)
        if unknown:
            raise ValueError(f"the model has no embedding row for these perturbations of the data: {unknown[:5]}.")
        return screen

    # ---------------------------------------------------------------- prediction

    def predict(  # noqa: PLR0913
        self,
        adata: AnnOrMuData | None = None,
        *,
        perturbations: Sequence[str] | None = None,
        contexts: Sequence[str] | None = None,
        n_cells: int | Mapping[Condition, int] | None = None,
        output: Output = "expression",
        counts_layer: str | None = None,
        control_layer: bool = False,
        seed: int = 0,
        batch_size: int | None = None,
        store: StoreKind = "auto",
        precision: str | int = "auto",
        max_missing_genes: float = 0.1,
        devices: Devices = None,
        path: str | Path | None = None,
        overwrite: bool = False,
        progress: bool = True,
    ) -> AnnData:
        """Predict the cells of perturbations in contexts.

        Parameters
        ----------
        adata
            Data whose control cells predictions start from, with the columns of the training data; genes are matched
            by name. None takes the model's own.
        perturbations
            Labels, not the control's; None takes all that the model knows. A dose or combination that was not measured
            is predicted where the model knows its parts: ``"Trametinib@3"``, ``"KLF1+MAP2K6"``.
        contexts
            Labels of contexts with control cells; None takes all.
        n_cells
            Cells for each condition; None takes one for each control cell of the context.
        output
            One of:

            * ``'expression'`` - log1p expression (default)
            * ``'delta'`` - its difference to the control cell that each prediction started from
            * ``'counts'`` - whole counts (CSR, int32) with the library sizes of the control cells, the predicted means
              and the spread of real cells
            * ``'embedding'`` - the predicted cell embedding, of models with ``representation='embedding'``
            * ``'prior'`` - log1p expression as the model's prior has it, without the network: a baseline, also before
              training
        counts_layer
            With ``output='counts'``: layer of the data with raw counts, for the library sizes of its control cells.
            None works them out from log1p expression, a cell's smallest non-zero value standing for one count.
        control_layer
            Keep the control cells themselves in ``layers["control"]``.
        seed
            Which control cells meet. A prediction depends on the seed and its own condition, not on what else is asked.
        batch_size
            Cell sets a forward pass; None takes 16, or fewer of many genes on a CPU.
        store
            Where expression lives, as in :meth:`train`.
        precision
            ``'bf16'``, ``'16'`` or ``'32'``; ``'auto'`` as in :meth:`train`.
        max_missing_genes
            Largest fraction of the model's genes that ``adata`` may lack; they enter as zeros.
        devices
            Devices of this machine that minibatches are dealt out to; the cells do not depend on it. One of:

            * None or 1 - the model's own (default)
            * a number, or a list of numbers - so many, or these CUDA devices
            * ``'auto'`` - all CUDA devices if the model is on one

            A process of a run on several devices predicts on its own.
        path
            Write the prediction here in chunks, and keep no more than a few of them in memory: a file that ends in
            ``.h5ad``, or a folder that ends in ``.zarr``. It appears when it is complete. None predicts into memory.
        overwrite
            Replace a prediction that is at ``path``.
        progress
            Whether to show a progress bar.

        Returns
        -------
        AnnData of predicted cells: ``X`` float32; ``obs`` perturbation, context and batch under the names of the
        training data, and ``origin``. With a path, ``X`` and layers stay in the file (``.to_memory()`` reads them):
        as CSR where that is smaller.

        Raises
        ------
        FileExistsError
            If something is at ``path`` and may not be replaced.
        ValueError
            If a label is unknown or the control's, the data lack control cells or too many genes, the path has another
            ending, or there are not so many devices.
        """
        self._verify_output(output, counts_layer, control_layer=control_layer)
        target = None if path is None else prediction_path(path, overwrite=overwrite)
        chosen = prediction_devices(devices, self.device)
        data, screen, table, alignment = self._prediction_data(adata, perturbations, max_missing_genes)
        index = ConditionIndex.from_screen(screen)
        plan = plan_prediction(index, table, perturbations=perturbations, contexts=contexts, n_cells=n_cells, seed=seed)
        if self.representation != "embedding":
            warn_about_scale(self, screen, alignment, plan.start_rows, own_data=data is self.adata)
        counts = None
        if output == "counts":  # before the costly part: it reads the library sizes and may refuse them
            counts = ControlCounts.read(
                data, self.keys, screen, plan.start_rows, layer=counts_layer, alignment=alignment
            )
        self.module.eval()
        products = autocast_dtype(precision, chosen[0])
        if batch_size is None:
            batch_size = default_batch_size(chosen[0], set_size=self.set_size, width=len(self.genes))
        forward = Forward(
            set_size=self.set_size, batch_size=batch_size, output=output, products=products, progress=progress
        )
        sources = minibatch_sources(
            self, screen, chosen[0], store=store, table=table, alignment=alignment, exact=products is None,
            rows=plan.rows_read,
        )  # fmt: skip
        sources, plan, base, starts_from = begin_prior(
            self, sources, plan, screen, index, table=table, seed=seed, device=chosen[0]
        )
        record = self._prediction_record(output, seed) | {"starts_from": dict(Counter(starts_from))}
        if output != "prior" and (left := left_as_prior(plan)):
            record["predicted_as_prior"] = left
            logger.info(
                f"{len(left)} combinations ({', '.join(left[:3])}{', ...' if left[3:] else ''}) are predicted as the "
                "prior has them, from their parts: training saw too few combinations whose parts were measured alone "
                "to learn what to change about that."
            )
        job = PredictionJob(
            module=self.module, sources=sources, plan=plan, base=base, forward=forward, devices=chosen,
            genes=self.genes, obs=cells_of_plan(plan, screen, self.keys), record=record,
            calibration=self.calibration_, observed_cosine=self.observed_cosine_, reading=self.keys.reading,
            counts=counts, control_layer=control_layer,
        )  # fmt: skip
        return job.in_memory() if target is None else job.to_file(target)

    def _verify_output(self, output: Output, counts_layer: str | None, *, control_layer: bool) -> None:
        """Refuse what this model cannot give, and options of another output."""
        if output not in OUTPUTS:
            raise ValueError(f"output={output!r} is unknown; allowed are {', '.join(map(repr, OUTPUTS))}.")
        if output == "embedding" and self.representation != "embedding":
            raise ValueError(
                f"output='embedding' needs representation='embedding'; this model has {self.representation!r}."
            )
        if output == "delta" and self.representation == "embedding":
            raise ValueError("output='delta' needs expression at the input; this model takes cell embeddings.")
        if output != "counts" and counts_layer is not None:
            raise ValueError(f"counts_layer={counts_layer!r} is for output='counts'; the output is {output!r}.")
        if output == "counts" and control_layer:
            raise ValueError("control_layer keeps log1p expression; with output='counts' take the cells from the data.")
        if output == "prior":
            if self.prior == "none":
                raise ValueError("output='prior' needs a model with a prior, e.g. TahoeST(adata, prior='cells').")
            self._learn_prior_alone()
        else:
            self._check_if_trained(
                message="the model is not trained; its predictions mean nothing yet. Call model.train()."
            )

    def _learn_prior_alone(self) -> None:
        """Learn the prior from all of the model's cells, if no training did."""
        if self.prior_ is None:
            screen = self._training_screen()
            index = ConditionIndex.from_screen(screen)
            self.prior_ = learn_prior(self, screen, index, np.flatnonzero(~index.is_control), seed=0)

    def _prediction_record(self, output: Output, seed: int) -> dict[str, Any]:
        """Where the numbers come from; the evaluation refuses genes of a decoder that was not trained."""
        decodes = self.module.config.gene_decoder is not None
        weight = self.module.objective.decoder_weight if decodes else 0.0
        return {
            "space": "expression" if output == "prior" else output,
            "genes_from": "decoder" if decodes else "network",
            "decoder_trained": bool(decodes and weight > 0 and self.is_trained_),
            "decoder_weight": weight,
            "seed": seed,
            **({} if self.calibration_ is None else {"effect_factors": list(self.calibration_.factors)}),
        }

    def calibrate(
        self,
        *,
        mode: Literal["global", "strength"] = "global",
        criterion: Literal["mae", "effect_size", "discrimination"] = "mae",
        factors: Sequence[float] | None = None,
        allow_worse_mae: bool = False,
        n_cells: int = 256,
        seed: int = 0,
        progress: bool = True,
    ) -> EffectCalibration:
        """Fit how strong predicted effects should be, on the validation part of the training's split.

        From then on :meth:`predict` scales the difference between predicted cells and the control cells they started
        from (with ``prior="cells"``: all control cells of the context). Each value of a gene is multiplied by the same
        factor, so that the mean of the condition moves as wanted while zeros stay zeros and nothing becomes negative; a
        gene's mean is at most doubled. ``model.calibration_ = None`` takes it away again, and so does further training.

        Parameters
        ----------
        mode
            One of:

            * ``'global'`` - one factor for all conditions (default)
            * ``'strength'`` - two or three factors, for weak to strong predicted effects, that never fall or never rise
              with strength; needs six validation conditions
        criterion
            What the factor is to be best for: ``'mae'`` (default), ``'effect_size'`` (predicted deltas as long as
            observed ones) or ``'discrimination'`` (PDS). Inflated effects can score better on the last two while the
            error grows; the table of the result shows it.
        factors
            To be tried, between 0 and 2, beside 1; None tries 0.2 to 2 in steps of 0.05.
        allow_worse_mae
            Accept factors that make the validation MAE worse than without calibration. By default they are not.
        n_cells
            Most cells to predict of a validation condition.
        seed
            Of the prediction.
        progress
            Whether to show a progress bar.

        Returns
        -------
        The calibration, which is also ``model.calibration_``: chosen factors, scores before and after, and a table of
        all that was tried; ``.plot()`` draws it.

        Raises
        ------
        ValueError
            If the model was not trained, was loaded without data, or too few conditions validate.

        Notes
        -----
        Of the factors that the validation conditions do not tell from the best, by one standard error, the nearest to 1
        is taken. Warns where fewer than ten conditions validate: what a few ask for, mostly weak ones, may not suit
        others. Validation that shares conditions with training (:class:`~scvi_tahoe.FractionSplit`) calibrates the
        effects of *seen* conditions; hold out conditions to calibrate those of unseen ones.
        """
        self.calibration_ = calibration_from_validation(
            self, mode=mode, criterion=criterion, factors=factors, allow_worse_mae=allow_worse_mae,
            n_cells=n_cells, seed=seed, progress=progress,
        )  # fmt: skip
        logger.info(repr(self.calibration_))
        return self.calibration_

    def prior_report(
        self,
        adata: AnnOrMuData | None = None,
        *,
        perturbations: Sequence[str] | None = None,
        contexts: Sequence[str] | None = None,
        max_missing_genes: float = 0.1,
    ) -> pd.DataFrame:
        """Say what predictions start from: where the prior of each condition comes from. No cells are made for it.

        As ``predict(output="prior")``, it can be asked before training, and learns the prior of all cells then. After
        training the prior knows the training and the validation conditions. What a condition's prior is made from are
        always other conditions, also where it was measured itself.

        Parameters
        ----------
        adata, perturbations, contexts, max_missing_genes
            As in :meth:`predict`.

        Returns
        -------
        One row a condition: perturbation (and dose) and context under the names of the training data, and

        * ``starts_from`` - in words, one of: the same perturbation in other contexts; the nearest doses of the same
          perturbation; its parts, or some of its parts, where the others of a combination were not measured alone; the
          nearest perturbations by embedding; perturbations that share parts with it; the mean of other perturbations;
          with ``prior="none"``, control cells
        * ``made_from`` - training conditions and their weights, the five heaviest first, the parts of a combination
          after each other; weights add up to 1, of each part
        * ``n_cells`` - training cells of all of these conditions, of which ``prior="cells"`` keeps up to 512 each;
          without a prior, control cells of the context
        * ``kept`` - share of the difference to the anchors that is kept as exceeding its noise: its length over that of
          the whole difference, over genes (and parts); 1 with ``prior="mean"``, NaN without a prior
        * ``corrected`` - whether :meth:`predict` lets the network change it

        Raises
        ------
        ValueError
            If a label is unknown, the data lack control cells or too many genes, or the prior is not learned yet and
            the model has no data.

        Examples
        --------
        >>> model.prior_report(perturbations=["STAT1"])
        """
        _, screen, table, _ = self._prediction_data(adata, perturbations, max_missing_genes)
        index = ConditionIndex.from_screen(screen)
        conditions = resolve_conditions(index, table, perturbations=perturbations, contexts=contexts)
        if self.prior != "none":
            self._learn_prior_alone()
        return prior_table(self, screen, index, conditions, table)

    def _prediction_data(
        self, adata: AnnOrMuData | None, perturbations: Sequence[str] | None, max_missing_genes: float
    ) -> tuple[AnnOrMuData, Screen, EmbeddingTable, GeneAlignment]:
        """The data to start from; the table with rows that only they or what is asked for bring; and their genes."""
        table = self.perturbation_table
        data = self.adata if adata is None else adata
        if data is None:
            raise ValueError("this model has no data of its own; pass the control cells, e.g. predict(adata, ...).")
        new = read_table(data, self.keys, required=False, like=table)
        table = table if new is None else table.extended(new)
        screen = (
            read_screen(data, self.keys) if data is self.adata else verify_screen(data, self.keys, for_training=False)
        )
        if perturbations is not None and not isinstance(perturbations, str):
            table = covered_by_asking(screen, table, [str(p) for p in perturbations])
        alignment = align_genes(self.genes, screen.genes, max_missing=max_missing_genes)
        if not alignment.is_identity:
            logger.info(str(alignment))
        return data, screen, table, alignment

    def evaluate(
        self,
        reference: AnnOrMuData | EvaluationReference,
        prediction: AnnData | None = None,
        *,
        preset: str = "vcc2025",
        counts_layer: str | None = None,
        seed: int = 0,
        progress: bool = True,
        **kwargs: Any,
    ) -> EvaluationResult:
        """Score a prediction against observed cells, in the space that it is judged in.

        Parameters
        ----------
        reference
            Observed cells of the held-out conditions, with the control cells of their contexts, and the columns of
            the training data; or an :class:`~scvi_tahoe.evaluate.EvaluationReference` of them, which keeps what
            several models share.
        prediction
            What to score; None predicts every condition of the reference, as many cells as were observed, from its
            control cells.
        preset
            Which scores, see :func:`scvi_tahoe.evaluate.evaluate`.
        counts_layer
            With ``preset="vcc2026"``: layer with raw counts of the reference and of the training data.
        seed
            Of the prediction and of the evaluation.
        progress
            Whether to show progress bars.
        **kwargs
            Of :func:`scvi_tahoe.evaluate.evaluate`.

        Returns
        -------
        Scores beside baselines and ceiling.

        Raises
        ------
        ValueError
            If scores need counts and no layer with them is named, the reference no longer knows its cells, or it is a
            ready one that knows no doses and the model has doses.
        """
        keys = self.keys
        observed = reference.adata if isinstance(reference, EvaluationReference) else reference
        seen: list[Check] = []
        if isinstance(reference, EvaluationReference):
            _verify_labels(reference, keys)
            counts_layer = reference.layer if preset == "vcc2026" else None
            # a reference without training data does not know what this model has seen
            if reference.train is None and "train" not in kwargs and not kwargs.get("allow_train", False):
                seen = [check_conditions(self._conditions(self.adata), self._conditions(observed))]
                act_on(seen, kwargs.get("representation_check", "error"))
        else:
            if preset == "vcc2026" and counts_layer is None:
                raise ValueError("preset='vcc2026' scores raw counts: name the layer that holds them, counts_layer=...")
            train = kwargs.pop("train", self.adata)
            reference = EvaluationReference.from_adata(
                with_condition_labels(reference, keys),
                perturbation_key=keys.perturbation_key,
                control=keys.control,
                context_key=keys.context_key,
                baseline_from=None if train is None else with_condition_labels(train, keys),
                layer=counts_layer if preset == "vcc2026" else keys.layer,
                progress=progress,
            )
        if prediction is None:
            if observed is None:
                raise ValueError(
                    "this reference does not know the AnnData it was made of; pass prediction=model.predict(...)."
                )
            layer = counts_layer if preset == "vcc2026" else None
            prediction = self._predict_as_observed(observed, counts_layer=layer, seed=seed, progress=progress)
        result = evaluate(with_condition_labels(prediction, keys), reference, preset=preset, seed=seed, **kwargs)
        return replace(result, checks=checks_table(seen, beside=result.checks)) if seen else result

    def _conditions(self, data: AnnOrMuData | None) -> list[tuple[str, str]]:
        """Contexts and perturbations of some data; those of other columns than the training data's are not known."""
        if data is None or self.keys.perturbation_key not in data.obs:
            return []
        key = self.keys.context_key
        contexts = "" if key is None else data.obs[key].astype(str).to_numpy()
        cells = pd.DataFrame({"context": contexts, "perturbation": spelled_labels(data, self.keys)})
        pairs = cells.drop_duplicates().itertuples(index=False, name=None)
        return [(context, perturbation) for context, perturbation in pairs if perturbation != self.keys.control]

    def _predict_as_observed(
        self, observed: AnnOrMuData, *, counts_layer: str | None, seed: int, progress: bool
    ) -> AnnData:
        """Predict every condition of observed data, as many cells as were observed."""
        return self.predict(
            observed,
            **conditions_asked(ConditionIndex.from_screen(read_screen(observed, self.keys)), self.keys.reading),
            output="expression" if counts_layer is None else "counts",
            counts_layer=counts_layer,
            seed=seed,
            progress=progress,
        )

    # ---------------------------------------------------------------- save and load

    def save(self, dir_path: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save the model, as in scvi-tools; the file is readable by every supported scvi-tools and pandas.

        Parameters
        ----------
        dir_path
            Folder.
        *args, **kwargs
            Of :meth:`scvi.model.base.BaseModelClass.save`.
        """
        frames, report, calibration = self.history_, self.loading_report_, self.calibration_
        self.history_ = history_as_lists(frames)
        self.calibration_ = None if calibration is None else calibration.to_dict()  # type: ignore[assignment]
        self.loading_report_ = None if report is None else asdict(report)  # type: ignore[assignment]
        try:
            super().save(str(dir_path), *args, **kwargs)
        finally:
            self.history_, self.loading_report_, self.calibration_ = frames, report, calibration

    @classmethod
    def load(cls, dir_path: str | Path, adata: AnnOrMuData | bool | None = None, **kwargs: Any) -> TahoeST:
        """Load a model saved with :meth:`save`.

        Parameters
        ----------
        dir_path
            Folder.
        adata
            Data with the columns of the training data, genes in any order; False loads without data.
        **kwargs
            Of :meth:`scvi.model.base.BaseModelClass.load`.

        Returns
        -------
        The model, in eval mode.

        Raises
        ------
        ValueError
            If the folder is one of :meth:`export`, which :meth:`from_pretrained` reads, or holds no model.
        """
        if is_export(dir_path):
            raise ValueError(
                f"{dir_path} was written by export(), not by save(); read it with TahoeST.from_pretrained."
            )
        with warnings.catch_warnings(), options_of_user():
            # genes are matched by name, so another order of them is nothing to warn about
            warnings.filterwarnings("ignore", message="`var_names` for the loaded `model` does not match")
            model = super().load(str(dir_path), adata, **kwargs)
        model.history_ = history_as_frames(model.history_)
        if model.calibration_ is not None:
            model.calibration_ = EffectCalibration.from_dict(model.calibration_)
        if model.loading_report_ is not None:
            model.loading_report_ = report_from_dict(model.loading_report_)
        if getattr(model, "decoder_weight_", None) is not None:
            model.module.objective.decoder_weight = model.decoder_weight_
        return model


def _verify_labels(reference: EvaluationReference, keys: ScreenKeys) -> None:
    """Refuse a ready reference that took all doses of a perturbation for one condition."""
    labels = sorted({label for _, label in reference.cells.rows} - {keys.control})
    for label in labels if keys.dose_key is not None else ():
        try:
            keys.reading.parts(label)
        except ValueError:
            raise ValueError(
                f"this reference was made of labels without doses ({label!r}), and the model predicts each dose: pass "
                f"the observed cells themselves, with their column {keys.dose_key!r}."
            ) from None


def registered_table(cls: type[TahoeST], adata: AnnOrMuData) -> EmbeddingTable:
    """The perturbation table of registered data."""
    manager = cls._get_most_recent_anndata_manager(adata, required=True)
    return EmbeddingTableField.table(manager.get_state_registry(REGISTRY.PERTURBATION_EMBEDDING))


def registered_genes(adata: AnnOrMuData) -> np.ndarray:
    """Gene names of registered data."""
    manager = TahoeST._get_most_recent_anndata_manager(adata, required=True)
    return np.asarray(manager.get_state_registry(REGISTRY.EXPRESSION)["column_names"]).astype(str)


def registered_keys(adata: AnnOrMuData) -> ScreenKeys:
    """Where registered data keep their parts."""
    manager = TahoeST._get_most_recent_anndata_manager(adata, required=True)
    return _keys(manager.registry)


def _head(size: str | Mapping[str, Any], network: Mapping[str, Any] | None) -> str:
    """Head of the network that these options describe."""
    return {**({} if isinstance(size, str) else size), **(network or {})}.get("head", "delta")


def _keys(setup_method_args: Mapping[str, Any]) -> ScreenKeys:
    arguments = {k: v for k, v in setup_method_args["setup_args"].items() if v is not None}
    return ScreenKeys(**arguments)
