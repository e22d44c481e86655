"""TahoeST, the public model class. Each mixin holds one concern of its public methods."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scvi_tahoe._arguments import checked
from scvi_tahoe._compat import forget_managers_with
from scvi_tahoe._module import TahoeSTModule
from scvi_tahoe.data import REPRESENTATIONS, read_screen
from scvi_tahoe.model._evaluate import EvaluateMixin
from scvi_tahoe.model._fitted import keys_of_registry, new_state
from scvi_tahoe.model._pretrained import PretrainedMixin
from scvi_tahoe.model._response import ResponseMixin
from scvi_tahoe.model._setup import SetupMixin
from scvi_tahoe.model._train import TrainMixin
from scvi_tahoe.nn import (
    SIZES,
    TERMS,
    GeneDecoderConfig,
    NetworkConfig,
    ObjectiveConfig,
    default_of,
    ineffective_in_objective,
    reject_ineffective_options,
)
from scvi_tahoe.response import PRIORS, choose_prior, makes_cells
from scvi_tahoe.training import TahoeTrainingPlan, decoder_weight_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvi_tahoe._compat import AnnOrMuData
    from scvi_tahoe.data import ConditionIndex, Representation
    from scvi_tahoe.nn import NetworkOptions, ObjectiveOptions, SizeName
    from scvi_tahoe.response import Criterion, Prior

_DEFAULT_SET_SIZE = 64


class TahoeST(SetupMixin, PretrainedMixin, TrainMixin, EvaluateMixin, ResponseMixin):
    """State Transition model: predicts perturbed cells from a set of control cells.

    Parameters
    ----------
    adata
        AnnData or MuData registered with :meth:`setup_anndata` or :meth:`setup_mudata`.
    registry
        Registry of a saved model, to build it again, also without data; options without effect are then ignored rather
        than rejected.
    size
        A name in ``scvi_tahoe.SIZES``, or dimensions of the network as keyword arguments of
        :class:`~scvi_tahoe.nn.NetworkConfig`. ``'mini'`` trains on a laptop, ``'tahoe'`` has the dimensions of
        ST-Tahoe.
    representation
        One of:

        * ``'expression'`` - expression in and out (default): trained in the space that is scored
        * ``'embedding'`` - cell embedding in and out, with an additional gene decoder
        * ``'expression+embedding'`` - expression in and out; the cell embedding is an auxiliary training signal
    set_size
        Cells per set. If None, 64.
    network
        Further options of :class:`~scvi_tahoe.nn.NetworkConfig` by name, e.g. ``{"attention": "full"}``.
    objective
        Options of :class:`~scvi_tahoe.nn.ObjectiveConfig` by name, e.g. ``{"terms": {"energy": 1.0}}``.
    prior
        What a prediction starts from; the network adds a correction. One of:

        * ``'response'`` - control cells moved to the mean that the response model predicts: a regression over all
          conditions (contexts, perturbations and their components, doses, embedding tables), stacked with simple
          rules by predictions of conditions without themselves, see :meth:`response_report`. The network also sees
          these cells; it does not see one-hot labels of perturbations seen in several contexts, unless
          ``network={"sees_perturbation": True}``
        * ``'none'`` - control cells
        * ``'auto'`` (default) - ``'response'`` if there are three conditions or more and perturbations were seen in
          several contexts or have embeddings, doses or, with a ``combination_separator``, components measured alone;
          otherwise ``'none'``
        * ``'mean'``, ``'transfer'``, ``'cells'`` - kinds of earlier versions: control cells shifted by the mean change
          of the other perturbations of the context; the same by the change of the perturbation in other contexts; and
          observed cells of the perturbation in other contexts, mapped to this one through the quantiles of the
          perturbations seen in both
    criterion
        What the response model is good at, see :meth:`response_report` for what the second one costs:

        * ``'error'`` (default) - small squared errors
        * ``'discrimination'`` - discrimination between perturbations: the specific part of each effect is multiplied by
          the factor that discriminates (almost) best between left-out conditions
    batch_encoder
        Whether the network sees the technical batch of each cell (needs ``batch_key``).
    seed
        Random seed for the initial weights.

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

    _module_cls = TahoeSTModule
    _training_plan_cls = TahoeTrainingPlan

    @checked(set_size=(1, None), seed=(0, None))
    def __init__(
        self,
        adata: AnnOrMuData | None = None,
        registry: dict | None = None,
        *,
        size: SizeName | Mapping[str, Any] = "mini",
        representation: Representation = "expression",
        set_size: int | None = None,
        network: NetworkOptions | None = None,
        objective: ObjectiveOptions | None = None,
        prior: Prior = "auto",
        criterion: Criterion = "error",
        batch_encoder: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(adata, registry)
        forget_managers_with(self)
        self._adopt(**new_state())
        if prior not in PRIORS:
            raise ValueError(f"prior={prior!r} is unknown; allowed are {', '.join(map(repr, PRIORS))}.")
        if prior not in ("none", "auto") and representation == "embedding":
            raise ValueError("a prior is made of expression; representation='embedding' takes prior='none'.")
        head = _head(size, network)
        if prior not in ("none", "auto") and head != "delta":
            raise ValueError(f"a prior is what head='delta' adds its change to; head={head!r} takes prior='none'.")
        index = None if self.adata is None else self._own_screen().index
        if prior == "auto":  # resolved here, so that a saved model is built again with what it was trained with
            can_have = representation != "embedding" and head == "delta"
            prior = choose_prior(index, self.keys, self.perturbation_table) if can_have and index else "none"
        self.representation = representation
        if criterion != "error" and prior != "response":
            raise ValueError(f"criterion={criterion!r} is of prior='response'; this model has prior={prior!r}.")
        self.prior, self.criterion = prior, criterion
        self.set_size = set_size or _DEFAULT_SET_SIZE
        said = {**(size if not isinstance(size, str) else {}), **(network or {})}
        if makes_cells(prior) and "sees_perturbation" not in said and self._labels_only_tell_apart(index):
            network = {**(network or {}), "sees_perturbation": False}  # in what is saved, as the prior above
        config = self._network_config(size, dict(network or {}), batch_encoder=batch_encoder)
        if not makes_cells(prior) and not config.sees_perturbation:
            raise ValueError(
                "a network with sees_perturbation=False knows a perturbation by the cells of its prior, and prior is "
                f"{prior!r}; train one with network={{'sees_perturbation': True}}."
            )
        # made from a registry, e.g. by load, a model has options that nobody gave: they come along with weights
        loss = self._objective_config(objective, said, config, are_given=registry is None)
        auxiliary = self.summary_stats.n_cell_embedding if representation == "expression+embedding" else 0
        with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
            torch.default_generator.manual_seed(seed)
            self.module = TahoeSTModule(config, loss, n_cell_embedding=auxiliary)
        self._model_summary_string = (
            f"TahoeST with {representation} of {self.summary_stats.n_vars:,} genes, sets of {self.set_size} cells, "
            f"{config.n_layers} layers of {config.hidden}, "
            f"{sum(p.numel() for p in self.module.parameters()):,} parameters"
        )
        self.init_params_ = self._get_init_params(locals())

    def __repr__(self) -> str:
        return f"{self._model_summary_string}; {'trained' if self.is_trained_ else 'not trained'}"

    def _labels_only_tell_apart(self, index: ConditionIndex | None) -> bool:
        """Whether a label says nothing that the prior does not: one-hot, of perturbations seen in several contexts.

        Given cells of the same perturbation, a one-hot label only identifies conditions, so that the network can
        learn the noise of each. An embedding says what perturbations have in common, and stays.
        """
        table = self.perturbation_table
        return table.one_hot and table.composition is None and index is not None and index.perturbations_recur

    def _network_config(self, size: Any, options: dict[str, Any], *, batch_encoder: bool) -> NetworkConfig:
        stats = self.summary_stats
        if self.representation not in REPRESENTATIONS:
            raise ValueError(f"representation={self.representation!r} is unknown; allowed are {list(REPRESENTATIONS)}.")
        if self.representation != "expression" and "n_cell_embedding" not in stats:
            raise ValueError(
                f"representation={self.representation!r} needs a cell embedding; register one with cell_embedding_key."
            )
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
            defaults |= {"keep_zeros": True, "base_encoder": makes_cells(self.prior)}
        if self.representation == "embedding":
            decoder = GeneDecoderConfig(n_genes=stats.n_vars, hidden=(512, 512))
            defaults |= {"rectify": False, "gene_decoder": decoder.__dict__}
        dimensions = SIZES[size] if isinstance(size, str) else dict(size)
        return NetworkConfig.from_kwargs({**defaults, **dimensions, **options})

    def _objective_config(
        self,
        options: Mapping[str, Any] | None,
        network_options: Mapping[str, Any],
        network: NetworkConfig,
        *,
        are_given: bool,
    ) -> ObjectiveConfig:
        """Build the objective; reject options of it and of the network that are given and have no effect."""
        config = ObjectiveConfig.from_kwargs(options or {})
        by_gene = [name for name in config.terms if "gene_weight_SG" in TERMS[name].needs]
        if self.representation == "embedding" and by_gene:
            raise ValueError(
                f"the term {by_gene[0]!r} weighs genes; representation='embedding' is trained on embeddings."
            )
        if are_given:
            reject_ineffective_options(
                options, network_options, config=config, network_config=network, representation=self.representation
            )
        # what came along and says nothing about this model is not kept as if it did
        ineffective = ineffective_in_objective(config, network, self.representation)
        return replace(config, **{name: default_of(ObjectiveConfig, name) for name in ineffective})


def _head(size: str | Mapping[str, Any], network: Mapping[str, Any] | None) -> str:
    """Head of the network that these options describe."""
    return {**({} if isinstance(size, str) else size), **(network or {})}.get("head", "delta")


@checked(n_cells=(2, None), seed=(0, None))
def suggest_decoder_weight(adata: AnnOrMuData, *, n_cells: int = 500, seed: int = 0) -> float:
    r"""Return the weight of the gene decoder's loss that balances both spaces.

    .. math:: \frac{\mathrm{median}_{ij} \lVert e_i - e_j \rVert}{\mathrm{median}_{ij} \lVert x_i - x_j \rVert}

    over pairs of cells with embeddings *e* and expression *x*. The energy distance has the unit of a distance between
    cells, so without a weight the wider space is all that is trained. This is how the study that the package grew out
    of came to 0.0055 for a State embedding of 2,058 dimensions and 18,080 genes; Adduri et al. 2025 (bioRxiv
    2025.06.26.661135) use 0.1. The same ratio of the cells' lengths, its second opinion, is logged.

    Parameters
    ----------
    adata
        Data registered with ``TahoeST.setup_anndata(..., cell_embedding_key=...)`` or ``setup_mudata``.
    n_cells
        Number of cells to draw, whose pairs are compared.
    seed
        Random seed for drawing the cells.

    Returns
    -------
    The weight, for ``objective={"decoder_weight": ...}``; ``"auto"`` there takes it from the training cells.

    Raises
    ------
    ValueError
        If no cell embedding is registered, or all cells are the same.

    Examples
    --------
    >>> TahoeST.setup_anndata(adata, "target_gene", "non-targeting", cell_embedding_key="X_state")
    >>> suggest_decoder_weight(adata)
    """
    screen = read_screen(adata, keys_of_registry(TahoeST._registered(adata)))
    return decoder_weight_of(screen, np.arange(screen.n_cells), n_cells=n_cells, seed=seed)
