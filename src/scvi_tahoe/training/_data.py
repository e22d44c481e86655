"""Everything that a fit reads, made from a screen before the first step."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from scipy.spatial.distance import pdist

from scvi_tahoe._constants import TENSORS
from scvi_tahoe.data import cell_set_dataset
from scvi_tahoe.nn import EMBEDDING_TERMS, TERMS
from scvi_tahoe.response import learn_prior, with_prior
from scvi_tahoe.training._gene_weights import condition_moments, de_weights

if TYPE_CHECKING:
    import torch

    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.data import (
        AssignedSplit,
        CellSetDataModule,
        CellSetDataset,
        CellStore,
        ConditionIndex,
        DataSpec,
        Screen,
    )
    from scvi_tahoe.response import Prior
    from scvi_tahoe.training._run import TrainingRun

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Everything that a fit reads.

    Attributes
    ----------
    split
        Training, validation and test rows.
    prior
        What the prior keeps of the training rows, as plain values; None without a prior.
    minibatches
        Loaders, which own stores, table and the prior's cells.
    decoder_weight
        Weight of the gene decoder that was measured for ``decoder_weight='auto'``; None otherwise.
    """

    split: AssignedSplit
    prior: dict[str, Any] | None
    minibatches: CellSetDataModule
    decoder_weight: float | None

    @property
    def expression(self) -> CellStore:
        """Expression of the cells, also where the network works on embeddings."""
        return self.minibatches.dataset.expression


def training_data(
    spec: DataSpec,
    screen: Screen,
    index: ConditionIndex,
    run: TrainingRun,
    module: TahoeSTModule,
    prior: Prior,
) -> TrainingData:
    """Split, store and describe a screen for a training run.

    Parameters
    ----------
    spec
        What the model fixes about its data.
    screen, index
        The data, verified, and their conditions.
    run
        Split, store, batch size, device, precision and seed.
    module
        Its objective says what predictions are compared with.
    prior
        Kind of the prior.

    Raises
    ------
    ValueError
        If nothing validates and the run needs it, or a term has nothing to tell apart.
    """
    spec, seed = spec.with_composed(screen), run.plan.seed
    assigned = run.split.assign(index, seed=seed)
    controls = np.flatnonzero(index.is_control)
    dataset = cell_set_dataset(
        spec, screen, run.device, store=run.options.store, full_precision=run.full_precision, pinned_rows=controls
    )
    learned = None if prior == "none" else learn_prior(prior, spec, screen, assigned.train, seed=seed)
    dataset = with_prior(dataset, learned, spec, screen, device=run.device, seed=seed, progress=run.options.progress)
    dataset = with_objective(dataset, module, assigned, run.batch_size, device=run.device, seed=seed)
    measured = None
    if module.objective.config.decoder_weight == "auto" and module.config.gene_decoder is not None:
        measured = decoder_weight_of(screen, assigned.train, seed=seed)
    minibatches = run.datamodule(dataset, assigned, spec.rows_of_labels(screen))
    return TrainingData(split=assigned, prior=learned, minibatches=minibatches, decoder_weight=measured)


def with_objective(
    dataset: CellSetDataset,
    module: TahoeSTModule,
    split: AssignedSplit,
    n_sets: int,
    *,
    device: torch.device,
    seed: int,
) -> CellSetDataset:
    """Add what the terms of the objective need beside the cells of a set."""
    config, index = module.objective.config, split.index
    terms = [TERMS[name] for name in config.terms]
    if module.embedding_head is not None:
        terms += [EMBEDDING_TERMS[name] for name in config.embedding_terms]
    if found := sorted(term.name for term in terms if "perturbation_SP" in term.needs):
        if n_sets < 2:
            raise ValueError(f"{found} tell the sets of a minibatch apart, and batch_size={n_sets}; give 2 or more.")
        if len(np.unique(index.perturbation.codes[split.train])) < 2:
            raise ValueError(f"{found} tell perturbations apart, and there is but one to train on.")
    needs = {need for term in terms for need in term.needs}
    if not needs & {"control_mean_SG", "gene_weight_SG"}:
        return dataset
    moments, controls = condition_moments(dataset.cells, split, device=device, seed=seed)
    contexts = [condition.context for condition in index.conditions]
    of_condition = {}
    if "control_mean_SG" in needs:
        of_condition[TENSORS.CONTROL_MEAN] = np.stack([controls[context].mean for context in contexts])
    if "gene_weight_SG" in needs:
        # a condition of test cells only is in no minibatch
        weights = [
            np.zeros_like(controls[context].mean) if found is None else de_weights(found, controls[context])
            for found, context in zip(moments, contexts, strict=True)
        ]
        of_condition[TENSORS.GENE_WEIGHT] = np.stack(weights)
    return replace(dataset, of_condition=of_condition)


def decoder_weight_of(screen: Screen, rows: np.ndarray, *, n_cells: int = 500, seed: int) -> float:
    """Weight of the gene decoder by these rows of a screen; see :func:`~scvi_tahoe.suggest_decoder_weight`."""
    if screen.cell_embedding is None:
        raise ValueError("the decoder's weight compares genes with a cell embedding; register one: cell_embedding_key.")
    chosen = np.sort(np.random.default_rng(seed).choice(rows, min(n_cells, len(rows)), replace=False))
    spaces = {"cell embedding": _dense(screen.cell_embedding, chosen), "expression": _dense(screen.expression, chosen)}
    distances = {name: float(np.median(pdist(cells))) for name, cells in spaces.items()}
    if same := [name for name, distance in distances.items() if not distance > 0]:
        raise ValueError(f"most of {len(chosen)} cells have the same {same[0]}; a scale cannot be read from them.")
    embedding, genes = distances.values()
    lengths = [float(np.median(np.linalg.norm(cells, axis=1))) for cells in spaces.values()]
    logger.info(
        f"distances between cells: {embedding:.4g} in the cell embedding, {genes:.4g} in expression, ratio "
        f"{embedding / genes:.4g}; ratio of their lengths {lengths[0] / lengths[1]:.4g}."
    )
    return embedding / genes


def _dense(matrix: Any, rows: np.ndarray) -> np.ndarray:
    block = (matrix.to_numpy() if hasattr(matrix, "to_numpy") else matrix)[rows]
    return np.asarray(block.toarray() if sp.issparse(block) else block, dtype=np.float64)
