"""Everything that a fit reads, made from a screen before the first step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_tahoe.data import ConditionIndex, cell_set_dataset
from scvi_tahoe.response import learn_prior, with_prior
from scvi_tahoe.training._decoder_weight import decoder_weight_of
from scvi_tahoe.training._objective_inputs import with_objective

if TYPE_CHECKING:
    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.data import AssignedSplit, CellSetDataModule, CellStore, DataSpec, Screen, Split, StoreKind
    from scvi_tahoe.response import Prior
    from scvi_tahoe.training._run import TrainingRun

__all__ = ["TrainingData", "training_data"]


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
    split: Split,
    run: TrainingRun,
    module: TahoeSTModule,
    prior: Prior,
    *,
    store: StoreKind,
    progress: bool = False,
) -> TrainingData:
    """Split, store and describe a screen for a training run.

    Parameters
    ----------
    spec
        What the model fixes about its data.
    screen
        The data, verified.
    split
        Which rows train and validate.
    run
        Batch size, device, precision and seed.
    module
        Whose objective says what is compared with.
    prior
        Kind of the prior.
    store
        Where expression lives.
    progress
        Whether to show a bar while the cells of a prior are made.

    Raises
    ------
    ValueError
        If nothing validates and the run needs it, or a term has nothing to tell apart.
    """
    spec, seed = spec.with_composed(screen), run.plan.seed
    index = ConditionIndex.from_screen(screen)
    assigned = split.assign(index, seed=seed)
    controls = np.flatnonzero(index.is_control)
    dataset = cell_set_dataset(
        spec, screen, run.device, store=store, full_precision=run.full_precision, pinned_rows=controls
    )
    learned = None if prior == "none" else learn_prior(prior, spec, screen, index, assigned.train, seed=seed)
    dataset = with_prior(dataset, learned, spec, screen, index, device=run.device, seed=seed, progress=progress)
    dataset = with_objective(dataset, module, assigned, run.batch_size, device=run.device, seed=seed)
    measured = None
    if module.objective.config.decoder_weight == "auto" and module.config.gene_decoder is not None:
        measured = decoder_weight_of(screen, assigned.train, seed=seed)
    minibatches = run.datamodule(dataset, assigned, spec.rows_of_labels(screen), spec.set_size)
    return TrainingData(split=assigned, prior=learned, minibatches=minibatches, decoder_weight=measured)
