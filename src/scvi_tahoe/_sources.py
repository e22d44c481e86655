"""Sources of a model's minibatches: a screen's matrices in the model's gene order, its table, batches and prior.

Used by training, prediction and diagnosis alike.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from scvi_tahoe._constants import REGISTRY, TENSORS
from scvi_tahoe._decoder_weight import decoder_weight_of
from scvi_tahoe.data import (
    CellPrior,
    CellSetDataset,
    ConditionIndex,
    DiskRows,
    MinibatchSources,
    RandomSampler,
    SetPlan,
    align_genes,
    condition_moments,
    de_weights,
    is_sharded,
    make_store,
    verify_screen,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from scvi_tahoe._compat import AnnOrMuData
    from scvi_tahoe._model import TahoeST
    from scvi_tahoe.data import AssignedSplit, Condition, EmbeddingTable, GeneAlignment, PriorTarget, Screen
    from scvi_tahoe.data._store import StoreKind

__all__ = [
    "learn_prior",
    "minibatch_sources",
    "prior_and_targets",
    "random_minibatches",
    "rows_of_labels",
    "with_objective",
    "with_prior",
]


def rows_of_labels(model: TahoeST, screen: Screen) -> np.ndarray:
    """Row of the model's embedding table for each perturbation code of a screen."""
    table = model.perturbation_table.covering(screen.perturbation.names)
    return np.array([table.position(name) for name in screen.perturbation.names])


def minibatch_sources(
    model: TahoeST,
    screen: Screen,
    device: torch.device,
    *,
    store: StoreKind = "auto",
    table: EmbeddingTable | None = None,
    alignment: GeneAlignment | None = None,
    exact: bool = False,
    often: np.ndarray | None = None,
    rows: np.ndarray | None = None,
) -> MinibatchSources:
    """Where each part of a minibatch of this model comes from.

    Parameters
    ----------
    model
        Whose genes, table and representation count.
    screen
        The data.
    device
        Where the network runs.
    store
        Where expression lives.
    table
        Perturbation embeddings; None takes the model's, as for :func:`rows_of_labels`.
    alignment
        Of the data's genes to the model's; None matches them.
    exact
        Keep expression in float32 on a GPU too.
    often
        Cells that many minibatches will hold; a store on disk keeps them in memory.
    rows
        The only cells that will be read; None: any.
    """
    alignment = alignment or align_genes(model.genes, screen.genes)
    expression = make_store(
        screen.expression, device, kind=store, alignment=None if alignment.is_identity else alignment, exact=exact,
        often=often, rows=rows,
    )  # fmt: skip
    embedding = None if model.representation == "expression" else make_store(screen.cell_embedding, device)
    embeds = model.representation == "embedding"
    return MinibatchSources(
        cells=embedding if embeds and embedding else expression,
        genes=expression if embeds else None,
        embedding=embedding if model.representation == "expression+embedding" else None,
        table=(table or model.perturbation_table.covering(screen.perturbation.names)).matrix,
        batch_of_cell=_batch_of_cell(model, screen),
    )


def _batch_of_cell(model: TahoeST, screen: Screen) -> np.ndarray | None:
    """Batch of each cell as the network counts them; None where the network does not look at batches."""
    if not (model.module.config.n_batches or model.module.config.batch_token):
        return None
    if REGISTRY.BATCH not in model.registry_["field_registries"]:
        raise ValueError(
            "the network looks at technical batches, and none are registered; register them with batch_key."
        )
    known = {str(n): i for i, n in enumerate(model.state_registry(REGISTRY.BATCH)["names"])}
    if screen.batch is None or (unknown := [n for n in screen.batch.names if n not in known]):
        missing = "no batches" if screen.batch is None else f"batches that the model does not know: {unknown[:5]}"
        raise ValueError(f"the network was trained with {len(known)} technical batches, and the data have {missing}.")
    return np.array([known[n] for n in screen.batch.names], dtype=np.int64)[screen.batch.codes]


def learn_prior(
    model: TahoeST, screen: Screen, index: ConditionIndex, rows: np.ndarray, *, seed: int
) -> dict[str, Any]:
    """What the model's prior keeps of its training cells, as plain values."""
    return CellPrior.from_cells(model.prior, _aligned(model, screen), index, rows, seed=seed).to_dict()


def with_prior(
    model: TahoeST,
    sources: MinibatchSources,
    screen: Screen,
    index: ConditionIndex,
    conditions: Sequence[Condition],
    *,
    device: torch.device,
    seed: int,
    progress: bool = False,
) -> tuple[MinibatchSources, dict[Condition, np.ndarray] | None]:
    """Sources with what the prior says of these conditions, and the rows that each draws from.

    Raises
    ------
    ValueError
        If the model has a prior that was not learned yet.
    """
    if model.prior == "none":
        return sources, None
    prior, targets = prior_and_targets(model, screen, index, conditions)
    table = model.perturbation_table.covering(screen.perturbation.names)
    base = prior.base_from(targets, conditions, table, seed=seed, device=device, progress=progress)
    if base.cells is None:
        return replace(sources, shift_of_condition=base.shift), None
    return replace(sources, base=make_store(base.cells, device)), base.rows


def prior_and_targets(
    model: TahoeST, screen: Screen, index: ConditionIndex, conditions: Sequence[Condition]
) -> tuple[CellPrior, dict[str, PriorTarget]]:
    """The model's prior, and what it needs to know of the contexts of these conditions.

    Raises
    ------
    ValueError
        If it was not learned yet.
    """
    if model.prior_ is None:
        raise ValueError(f"the model has prior={model.prior!r}, which is learned in train(); train it first.")
    expression = _aligned(model, screen)
    contexts = sorted({condition.context for condition in conditions})
    controls = ((c, _dense(expression[index.controls(c)])) for c in contexts)  # in memory one at a time
    prior = CellPrior.from_dict(model.prior_)
    return prior, prior.targets(controls)


def with_objective(
    model: TahoeST,
    sources: MinibatchSources,
    screen: Screen,
    split: AssignedSplit,
    n_sets: int,
    *,
    device: torch.device,
    seed: int,
) -> MinibatchSources:
    """Sources with what the terms of the objective compare with; sets the decoder's weight where it sets itself.

    Parameters
    ----------
    model
        Whose objective counts.
    sources
        Without it.
    screen
        The data.
    split
        Which cells train.
    n_sets
        Sets of a minibatch.
    device
        Where the network runs.
    seed
        Which cells are looked at, where there are many.

    Raises
    ------
    ValueError
        If a contrastive term has nothing to tell apart.
    """
    objective, index = model.module.objective, split.index
    terms = set(objective.config.terms)
    if model.module.embedding_head is not None:
        terms |= set(objective.config.embedding_terms)
    _verify_contrast(terms, n_sets=n_sets, n_perturbations=len(np.unique(index.perturbation.codes[split.train])))
    if objective.config.decoder_weight == "auto" and model.module.config.gene_decoder is not None:
        model.decoder_weight_ = objective.decoder_weight = decoder_weight_of(screen, split.train, seed=seed)
    if not terms & {"de_weighted", "contrastive"}:
        return sources
    moments, controls = condition_moments(sources.cells, split, device=device, seed=seed)
    contexts = [condition.context for condition in index.conditions]
    of_condition = {}
    if "contrastive" in terms:
        of_condition[TENSORS.CONTROL_MEAN] = np.stack([controls[context].mean for context in contexts])
    if "de_weighted" in terms:
        # a condition of test cells only is in no minibatch
        weights = [
            np.zeros_like(controls[context].mean) if found is None else de_weights(found, controls[context])
            for found, context in zip(moments, contexts, strict=True)
        ]
        of_condition[TENSORS.GENE_WEIGHT] = np.stack(weights)
    return replace(sources, of_condition=of_condition)


def _verify_contrast(terms: set[str], *, n_sets: int, n_perturbations: int) -> None:
    if not (found := sorted(terms & {"alignment", "contrastive"})):
        return
    if n_sets < 2:
        raise ValueError(f"{found} tell the sets of a minibatch apart, and batch_size={n_sets}; give 2 or more.")
    if n_perturbations < 2:
        raise ValueError(f"{found} tell perturbations apart, and there is but one to train on.")


def random_minibatches(
    model: TahoeST, data: AnnOrMuData | None, *, n_sets: int, seed: int, as_controls: bool = False
) -> Iterator[dict[str, torch.Tensor]]:
    """Minibatches of random sets of any perturbed cells.

    Parameters
    ----------
    model
        The model, which is put into eval mode.
    data
        Its cells; None takes the model's own.
    n_sets
        How many sets, in all.
    seed
        Which.
    as_controls
        Give each set the control's embedding instead of its perturbation's.
    """
    data = model.adata if data is None else data
    if data is None:
        raise ValueError("this model has no data of its own; pass data with perturbed and control cells.")
    screen = verify_screen(data, model.keys, table_required=False)
    index = ConditionIndex.from_screen(screen)
    plan = SetPlan(
        index=index,
        pools=index.control_pools(),
        row_of_label=rows_of_labels(model, screen),
        rows=np.flatnonzero(~index.is_control),
        set_size=model.set_size,
        sets_per_step=min(8, n_sets),
    )
    dataset = CellSetDataset(minibatch_sources(model, screen, model.device))
    model.module.eval()
    for request in RandomSampler(plan, n_steps=-(-n_sets // plan.sets_per_step), seed=seed):
        if as_controls:
            control = model.perturbation_table.position(screen.control)
            request = replace(request, perturbation_S=np.full_like(request.perturbation_S, control))
        yield dataset.to_tensors(dataset[request], model.device)


def _aligned(model: TahoeST, screen: Screen) -> Any:
    """Expression of the whole screen by rows, in the model's gene order: in memory, but for a store on disk."""
    alignment = align_genes(model.genes, screen.genes, max_missing=1.0)
    matrix = screen.expression
    if is_sharded(matrix):
        return DiskRows(matrix, alignment)
    if not (isinstance(matrix, np.ndarray) or sp.issparse(matrix)):
        matrix = matrix.to_memory() if hasattr(matrix, "to_memory") else np.asarray(matrix[:])
    return alignment.apply(matrix.tocsr() if sp.issparse(matrix) else matrix)


def _dense(block: Any) -> np.ndarray:
    return np.asarray(block.toarray() if sp.issparse(block) else block, dtype=np.float32)
