"""What the terms of an objective compare predictions with, beside the observed cells of a set."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe._constants import TENSORS
from scvi_tahoe.data import condition_moments, de_weights

if TYPE_CHECKING:
    import torch

    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.data import AssignedSplit, CellSetDataset

__all__ = ["with_objective"]


def with_objective(
    dataset: CellSetDataset,
    module: TahoeSTModule,
    split: AssignedSplit,
    n_sets: int,
    *,
    device: torch.device,
    seed: int,
) -> CellSetDataset:
    """Sources with what the terms of the objective compare with.

    Parameters
    ----------
    dataset
        Where the cells come from.
    module
        Whose objective counts.
    split
        Which cells train.
    n_sets
        Sets of a minibatch.
    device
        Where the network runs.
    seed
        Random seed for choosing cells, where there are many.

    Raises
    ------
    ValueError
        If a contrastive term has nothing to tell apart.
    """
    objective, index = module.objective, split.index
    terms = set(objective.config.terms)
    if module.embedding_head is not None:
        terms |= set(objective.config.embedding_terms)
    _verify_contrast(terms, n_sets=n_sets, n_perturbations=len(np.unique(index.perturbation.codes[split.train])))
    if not terms & {"de_weighted", "contrastive"}:
        return dataset
    moments, controls = condition_moments(dataset.cells, split, device=device, seed=seed)
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
    return replace(dataset, of_condition=of_condition)


def _verify_contrast(terms: set[str], *, n_sets: int, n_perturbations: int) -> None:
    if not (found := sorted(terms & {"alignment", "contrastive"})):
        return
    if n_sets < 2:
        raise ValueError(f"{found} tell the sets of a minibatch apart, and batch_size={n_sets}; give 2 or more.")
    if n_perturbations < 2:
        raise ValueError(f"{found} tell perturbations apart, and there is but one to train on.")
