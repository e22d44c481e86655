"""Pretrained weights in, and out again: warm start, export, upload, and which attention weights were trained with."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from scvi_tahoe._arguments import checked
from scvi_tahoe._constants import REGISTRY, TENSORS
from scvi_tahoe._messages import warn
from scvi_tahoe._module import residual_input
from scvi_tahoe.data import EmbeddingTableField, random_minibatches, verify_screen
from scvi_tahoe.model._export import labels_of, pretrained_of
from scvi_tahoe.model._fitted import FittedModel
from scvi_tahoe.nn import Objective, ObjectiveConfig, reject_ineffective_options
from scvi_tahoe.pretrained import (
    FORMATS,
    PretrainedModel,
    diagnose_attention,
    fitted_values,
    for_other_cells,
    objective_of,
    plan_warm_start,
    push_model,
    read_pretrained,
    reason_to_leave_prior,
    registry_in_order,
    registry_of,
    reject_hub_options,
    start_options,
    united_table,
    verify_scale,
    with_numbered_genes,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from scvi_tahoe._compat import AnnOrMuData
    from scvi_tahoe.data import Representation
    from scvi_tahoe.nn import AttentionName, NetworkOptions, ObjectiveOptions
    from scvi_tahoe.pretrained import AttentionDiagnosis
    from scvi_tahoe.response import Criterion, Prior

logger = logging.getLogger(__name__)

_NEW_PROJECTION = "the projection of hidden cells to the cell embedding, a signal of training, is new"


def _read(
    source: Any, backbone_from: str | Path | None, place: dict[str, Any], *, accept_license: bool | None, **reading: Any
) -> PretrainedModel:
    """Read weights, and those whose backbone they refer to; ``place`` says where on the hub to look."""
    reject_hub_options(source, backbone_from, **place)
    hub = {"accept_license": accept_license, "cache_dir": place["cache_dir"], "offline": place["offline"]}
    base = None if backbone_from is None else read_pretrained(backbone_from, **hub)
    return read_pretrained(source, base=base, revision=place["revision"], **reading, **hub)


class PretrainedMixin(FittedModel):
    """``from_pretrained``, ``export``, ``push_to_hub`` and ``diagnose_attention``."""

    @classmethod
    @checked(seed=(0, None), set_size=(1, None))
    def from_pretrained(  # noqa: PLR0913
        cls,
        source: str | Path | PretrainedModel,
        adata: AnnOrMuData | None = None,
        *,
        checkpoint: str | None = None,
        revision: str | None = None,
        accept: Sequence[str] = (),
        accept_license: bool | None = None,
        attention: AttentionName | None = None,
        genes: Sequence[str] | None = None,
        backbone_from: str | Path | None = None,
        representation: Representation | None = None,
        batch_encoder: bool | None = None,
        set_size: int | None = None,
        network: NetworkOptions | None = None,
        objective: ObjectiveOptions | None = None,
        prior: Prior = "auto",
        criterion: Criterion | None = None,
        check_scale: bool = True,
        cache_dir: str | Path | None = None,
        offline: bool = False,
        seed: int = 0,
    ) -> Self:
        """Start from pretrained weights: weights only, never an optimizer, a schedule or a step.

        Genes, perturbations and batches are matched by label. Anything that would change the meaning of the weights
        needs a decision in ``accept``; the error names it. No code from a downloaded file runs.

        Parameters
        ----------
        source
            Folder in Arc's format, of :meth:`export` or of a run, name of a model on the Hugging Face hub, or a model
            that was read before (:func:`~scvi_tahoe.pretrained.read_pretrained`).
        adata
            Registered data to fine-tune on. If None, the model has the labels of the folder and can predict.
        checkpoint
            Which checkpoint of the folder: ``'best'``, ``'last'``, ``'final'``, a step, or a file name. If None, the
            best, or else the final or the last one; of a run, the model that it left.
        revision
            Commit, tag or branch on the hub.
        accept
            Names from ``scvi_tahoe.pretrained.DECISIONS``.
        accept_license
            Accept the licence of downloaded weights (Arc's are non-commercial, also for outputs and fine-tunes).
        attention
            Overrides the attention that the folder states or that is assumed for it; see :meth:`diagnose_attention`.
        genes
            Names of the weights' genes, if the folder lacks them.
        backbone_from
            Weights whose backbone an export refers to, see :meth:`export`.
        representation
            As for :class:`TahoeST`. If None, that of the weights. If it changes between embedding and expression, only
            the backbone is loaded: input and output layers are trained from scratch (decisions ``'new_input'`` and
            ``'new_output'``), and objective and prior are those of a new model.
        batch_encoder
            Whether the network sees the technical batch of each cell. If None, as in the weights.
        set_size
            Cells per set. If None, as in the weights.
        network
            Options of the network to change, such as ``{"dropout": 0.2}``; what changes its function needs a decision.
        objective
            As for :class:`TahoeST`. If None, the objective stored in an export of this package, or the default.
        prior
            As for :class:`TahoeST`, but ``'auto'`` is the prior of an export of this package, and none for other
            weights. The prior of an export can predict unless the data have other genes; training relearns it.
        criterion
            As for :class:`TahoeST`. If None, that of an export of this package, or the default.
        check_scale
            Raise an error for data on a different scale from the weights, by predicting controls from controls.
        cache_dir
            Cache of the hub. If None, that of the Hugging Face client.
        offline
            Use the cache of the hub and no network.
        seed
            Random seed for what the weights do not cover.

        Returns
        -------
        The model; ``model.loading_report_`` says what happened to every tensor.

        Raises
        ------
        ValueError
            If a decision is missing, the data are on another scale, or an option has no effect.
        FileNotFoundError
            If there is no such folder or checkpoint.
        """
        place: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "offline": offline}
        reading: dict[str, Any] = {
            "checkpoint": checkpoint,
            "attention": attention,
            "genes": genes,
            "accept_license": accept_license,
        }
        weights = _read(source, backbone_from, place, **reading)
        other_cells = representation is not None and (representation == "embedding") != weights.embeds
        if other_cells:
            weights = for_other_cells(weights)
        registry, table, data_genes = None, None, None
        if adata is None:
            if representation is not None or batch_encoder is not None:
                raise ValueError("representation and batch_encoder are for a model on data of yours; pass adata.")
            weights = with_numbered_genes(weights)
            registry = registry_of(weights, cls.__name__)
            fields = registry["field_registries"]
        else:
            fields = cls._registered(adata)["field_registries"]
            data_genes = fields[REGISTRY.EXPRESSION]["state_registry"]["column_names"]
            embeddings = EmbeddingTableField.table(fields[REGISTRY.PERTURBATION_EMBEDDING]["state_registry"])
            table = None if other_cells else united_table(weights, embeddings)
        stats = {name: value for field in fields.values() for name, value in field["summary_stats"].items()}
        if table is not None:
            stats["n_perturbation_embedding"] = table.encoder_width
        head = (network or {}).get("head")
        options = start_options(weights, stats, representation=representation, batch_encoder=batch_encoder, head=head)
        changes: dict[str, Any] = {
            "set_size": set_size,
            "objective": objective or None,
            "prior": None if prior == "auto" else prior,
        }
        changes |= {"criterion": criterion or (None if prior in ("auto", "response") else "error")}
        chosen = {**options, "network": network, **{k: v for k, v in changes.items() if v is not None}}
        without_prior = reason_to_leave_prior(weights, chosen["prior"], data_genes)
        keeps_prior = weights.prior is not None and not without_prior
        if data_genes is not None and keeps_prior and list(data_genes) != list(weights.genes or ()):
            ordered = registry_in_order(cls._registered(adata), weights.genes or ())
            getattr(cls, ordered["setup_method_name"])(adata, source_registry=ordered, **ordered["setup_args"])
        # with a registry, as most options are those of the weights
        model = cls(adata, registry or cls._registered(adata), seed=seed, **chosen)
        reject_ineffective_options(
            objective, network, config=model.module.objective.config, network_config=model.module.config,
            representation=model.representation,
        )  # fmt: skip
        model._adopt(one_hot_labels_=None if table is None else list(table.components.names))
        start = plan_warm_start(weights, model.module.config, labels_of(model), accept=accept, seed=seed)
        own_memory = not isinstance(source, PretrainedModel)  # the caller's tensors are copied, not trained on
        model.module.network.load_state_dict(start.state_dict, strict=True, assign=own_memory)
        notes = (*start.report.notes, *without_prior, *([_NEW_PROJECTION] if model.module.embedding_head else []))
        report, origin = replace(start.report, notes=notes), weights.provenance
        model._adopt(
            pretrained_parameters_=sorted(f"network.{name}" for name in report.loaded),
            prior_=None if without_prior else weights.prior,
            loading_report_=report,
            provenance_=asdict(origin),
            weights_objective_=options["objective"] or objective_of(weights.loss),
            is_trained_=True,
            **fitted_values(weights),
        )
        if model.decoder_weight_ is not None and not objective:
            model.module.objective.decoder_weight = model.decoder_weight_
        attention_kind = f"attention {weights.config.attention} ({origin.attention_reason or 'as trained'})"
        logger.info(f"{origin.source}, {attention_kind}\n{report.text()}")
        if not origin.attention_certain:
            warn(f"Attention of {origin.source}: {origin.attention_reason}.")
        if adata is not None and check_scale and model.representation != "embedding":
            controls = next(model._random_minibatches(None, n_sets=8, seed=0, as_controls=True))
            verify_scale(model.module, report, controls, model.genes)
        return model

    @checked()
    def export(
        self,
        folder: str | Path,
        *,
        format: Literal["scvi-tahoe", "arc"] | str = "scvi-tahoe",
        backbone_from: str | Path | None = None,
        accept_license: bool | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write the model into a folder that anyone can read without running code.

        Parameters
        ----------
        folder
            Folder to create, complete or not at all.
        format
            One of:

            * ``'scvi-tahoe'`` - safetensors and JSON, which :meth:`from_pretrained` reads (default). What a prior keeps
              of the training data is written, too: with ``prior='cells'``, cells of it
            * ``'arc'`` - a folder that arc-state's own command line runs
        backbone_from
            The weights that the model started from, if its backbone is still theirs: the backbone is then written as a
            reference with a hash, and :meth:`from_pretrained` wants the same argument. Format ``'scvi-tahoe'`` only.
        accept_license
            Accept the licence of ``backbone_from``, if that is a name on the hub.
        overwrite
            Replace an earlier export there.

        Raises
        ------
        ValueError
            If the format is unknown, or arc-state has no counterpart for something in the model.
        FileExistsError
            If the folder exists and may not be replaced.
        """
        target = FORMATS.find(format)
        if backbone_from is not None and not target.takes_base:
            raise ValueError(f"backbone_from has no effect: folders of format={format!r} hold all weights.")
        base = {"base": self._backbone_of(backbone_from, accept_license)} if target.takes_base else {}
        target.write(pretrained_of(self), folder, overwrite=overwrite, **base)

    @checked()
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

        The model card and, for weights derived from Arc's, the notice of their licence are uploaded, too.

        Parameters
        ----------
        repository
            ``'owner/name'``; created if it does not exist.
        accept_license
            Accept the licence of the weights that the model started from, if they are Arc's. If None, the environment
            variable ``SCVI_TAHOE_ACCEPT_LICENSE`` decides.
        license_file
            Text of that licence, uploaded as ``LICENSE``; needed to publish weights that derive from Arc's.
        share_cells
            Upload a prior that holds cells of the training data, as ``prior='cells'`` does.
        private
            Visibility of a new repository. Uploading to a public one is an error unless this is False.
        revision, message
            Branch to upload to, and title of the commit.
        token
            Hugging Face token. If None, the stored login.
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
            If cells of the training data would be shared, or the repository is public, without permission.
        """
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
        """Read the weights whose backbone is referred to, on the hub at the commit that this model started from."""
        if source is None:
            return None
        started = self.provenance_ or {}
        revision = started.get("revision") if str(source) == started.get("source") else None
        return read_pretrained(source, revision=revision, accept_license=accept_license)

    @checked()
    def diagnose_attention(
        self, adata: AnnOrMuData | None = None, *, n_sets: int = 32, seed: int = 0
    ) -> AttentionDiagnosis:
        """Compute the loss under each kind of attention, and report which one the weights were trained with.

        Parameters
        ----------
        adata
            Data with perturbed and control cells and the columns of the model's. If None, the model's own.
        n_sets
            Cell sets to compute it on.
        seed
            Random seed for drawing the sets.

        Returns
        -------
        Loss of each set under each attention, the best attention, how certain that is, and a verdict as text.
        """
        inputs = {"control_SNG": TENSORS.CONTROL, "perturbation_SP": TENSORS.PERTURBATION, "batch_SN": TENSORS.BATCH}
        pairs: Iterable[Any] = (
            ({**{name: m.get(key) for name, key in inputs.items()}, "base_SNG": residual_input(m)}, m[TENSORS.OBSERVED])
            for m in self._random_minibatches(adata, n_sets=n_sets, seed=seed)
        )
        # the question is what the weights were trained with, so the loss is theirs, not the one for fine-tuning
        theirs = self.weights_objective_
        objective = self.module.objective if theirs is None else Objective(ObjectiveConfig(**theirs))
        return diagnose_attention(self.module.network, pairs, lambda p, o: objective.main_loss(p, o)[0])

    def _random_minibatches(
        self, adata: AnnOrMuData | None, *, n_sets: int, seed: int, as_controls: bool = False
    ) -> Iterator[dict[str, Tensor]]:
        """Yield minibatches of random sets of perturbed cells, of these data or the model's own, in eval mode."""
        data = self.adata if adata is None else adata
        if data is None:
            raise ValueError("this model has no data of its own; pass data with perturbed and control cells.")
        is_own = data is self.adata
        screen = self._own_screen(for_training=True) if is_own else verify_screen(data, self.keys, table_required=False)
        self.module.eval()
        yield from random_minibatches(
            self._spec(), screen, self.device, n_sets=n_sets, seed=seed, as_controls=as_controls
        )
