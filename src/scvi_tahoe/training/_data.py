"""Everything that a fit reads, made from a screen before the first step."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.spatial.distance import pdist

from scvi_tahoe._constants import STREAMS, TENSORS
from scvi_tahoe.data import cell_set_dataset, dense_rows
from scvi_tahoe.nn import EMBEDDING_TERMS, TERMS
from scvi_tahoe.response import learn_prior, with_prior

if TYPE_CHECKING:
    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.data import AssignedSplit, CellSetDataModule, CellSetDataset, CellStore, DataSpec, Screen
    from scvi_tahoe.response import Criterion, Prior
    from scvi_tahoe.training._run import TrainingRun

logger = logging.getLogger(__name__)

#: cells of a condition that its t scores are computed from, at most, and control cells of a context
_MOST_CELLS, _MOST_CONTROLS = 512, 2048


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Everything that a fit reads."""

    #: Training, validation and test rows.
    split: AssignedSplit
    #: What the prior keeps of the training rows, as plain values, if there is one.
    prior: dict[str, Any] | None
    #: Loaders, which own stores, table and the prior's cells.
    minibatches: CellSetDataModule
    #: Weight of the gene decoder, if ``decoder_weight='auto'`` let it be measured.
    decoder_weight: float | None

    @property
    def expression(self) -> CellStore:
        """Expression of the cells, also where the network works on embeddings."""
        return self.minibatches.dataset.expression


def training_data(
    spec: DataSpec,
    screen: Screen,
    run: TrainingRun,
    module: TahoeSTModule,
    prior: Prior,
    criterion: Criterion = "error",
) -> TrainingData:
    """Split, store and describe a screen for a training run; a ValueError if it has not what the run needs."""
    spec, seed = spec.with_composed(screen), run.plan.seed
    assigned = run.split.assign(screen.index, seed=seed)
    assigned = replace(
        assigned, train=screen.index.weighted(assigned.train), validation=screen.index.weighted(assigned.validation)
    )
    controls = np.flatnonzero(screen.index.is_control)
    dataset = cell_set_dataset(
        spec, screen, run.device, store=run.options.store, full_precision=run.full_precision, pinned_rows=controls
    )
    learned = None
    if prior != "none":
        progress, held_out = run.options.progress, np.concatenate([assigned.validation, assigned.test])
        learned = learn_prior(
            prior, spec, screen, assigned.train, seed=seed, device=run.device, asked=held_out, progress=progress,
            criterion=criterion,
        )  # fmt: skip
        dataset = with_prior(dataset, learned, spec, screen, device=run.device, seed=seed, progress=progress)
    dataset = with_objective(dataset, module, assigned, run.batch_size, device=run.device, seed=seed)
    measured = None
    if module.objective.config.decoder_weight == "auto" and module.config.gene_decoder is not None:
        measured = decoder_weight_of(screen, assigned.train, seed=seed)
    minibatches = run.datamodule(dataset, assigned, spec.rows_of_labels(screen))
    return TrainingData(
        split=assigned,
        prior=None if learned is None else learned.to_dict(),
        minibatches=minibatches,
        decoder_weight=measured,
    )


def with_objective(
    dataset: CellSetDataset,
    module: TahoeSTModule,
    split: AssignedSplit,
    n_sets: int,
    *,
    device: torch.device,
    seed: int,
) -> CellSetDataset:
    """Add what the terms of the objective need in addition to the cells of a set."""
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


@dataclass(frozen=True)
class Moments:
    """Number, mean and variance of some cells, ``[X]`` each."""

    n: int
    mean: np.ndarray
    variance: np.ndarray

    @classmethod
    def of(cls, cells: CellStore, rows: np.ndarray, device: torch.device) -> Moments:
        """Of rows of a store."""
        block = cells.dense(cells.fetch(rows), device)
        variance, mean = torch.var_mean(block, dim=0, correction=1 if len(rows) > 1 else 0)
        return cls(len(rows), mean.cpu().numpy(), variance.cpu().numpy())


def de_weights(perturbed: Moments, control: Moments) -> np.ndarray:
    r"""Weight of each gene by how differentially expressed it is, ``[X]`` float32, summing to 1.

    .. math:: t = \frac{|\bar y - \bar c|}{\sqrt{s_y^2 / n_y + s_c^2 / n_c}}, \qquad
              w \propto \left(\frac{t - \min t}{\max t - \min t}\right)^2

    The weighting of Mejia et al. 2025 (arXiv 2506.22641): t scores, scaled to 0-1 over genes, squared, divided by
    their sum. There a perturbation is compared with all others; here with the control cells of its context, as in the
    differential expression that predictions are scored by. Where no gene stands out, all weigh the same.
    """
    # a single cell has no variance of its own
    variance = perturbed.variance if perturbed.n > 1 else control.variance
    error = np.sqrt(variance / perturbed.n + control.variance / control.n)
    difference = np.abs(perturbed.mean - control.mean)
    t = np.divide(difference, error, out=np.zeros(len(error)), where=error > 0)
    spread = t.max() - t.min()
    scaled = ((t - t.min()) / spread) ** 2 if spread > 0 else np.ones(len(t))
    return (scaled / scaled.sum()).astype(np.float32)


def condition_moments(
    cells: CellStore, split: AssignedSplit, *, device: torch.device, seed: int
) -> tuple[list[Moments | None], dict[str, Moments]]:
    """Moments of each condition, and of the control cells of each context.

    A condition is described by its training cells. One without any takes no part in training, and is described by its
    validation cells, so that the loss of validation is the same function; test cells are never looked at. More than
    512 cells of a condition or 2,048 controls of a context are drawn from.

    Returns
    -------
    In the order of ``split.index.conditions``, None for conditions of test cells only; and by context.
    """
    index, rng = split.index, np.random.default_rng((seed, STREAMS.GENE_WEIGHTS))

    def moments(rows: np.ndarray, most: int) -> Moments:
        chosen = rows if len(rows) <= most else np.sort(rng.choice(rows, most, replace=False))
        return Moments.of(cells, chosen, device)

    controls = {context: moments(index.controls(context), _MOST_CONTROLS) for context in index.contexts}
    rows_of: dict[int, np.ndarray] = {}
    for rows in (split.validation, split.train):
        rows_of |= index.by_condition(rows)
    conditions = [moments(rows_of[c], _MOST_CELLS) if c in rows_of else None for c in range(len(index.conditions))]
    return conditions, controls


def decoder_weight_of(screen: Screen, rows: np.ndarray, *, n_cells: int = 500, seed: int) -> float:
    """Weight of the gene decoder by these rows of a screen; see :func:`~scvi_tahoe.suggest_decoder_weight`."""
    if screen.cell_embedding is None:
        raise ValueError("the decoder's weight compares genes with a cell embedding; register one: cell_embedding_key.")
    chosen = np.sort(np.random.default_rng(seed).choice(rows, min(n_cells, len(rows)), replace=False))
    spaces = [dense_rows(matrix, chosen, np.float64) for matrix in (screen.cell_embedding, screen.expression)]
    embedding, genes = (float(np.median(pdist(cells))) for cells in spaces)
    for name, distance in (("cell embedding", embedding), ("expression", genes)):
        if not distance > 0:
            raise ValueError(f"most of {len(chosen)} cells have the same {name}; a scale cannot be read from them.")
    lengths = [float(np.median(np.linalg.norm(cells, axis=1))) for cells in spaces]
    logger.info(
        f"distances between cells: {embedding:.4g} in the cell embedding, {genes:.4g} in expression, ratio "
        f"{embedding / genes:.4g}; ratio of their lengths {lengths[0] / lengths[1]:.4g}."
    )
    return embedding / genes
