"""Scores of a validation: what predictions are judged by, computed from the cells that validate.

Shapes: **S** sets in a minibatch, **N** cells in a set, **G** genes, **P** perturbations of one context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback

from scvi_tahoe._constants import TENSORS
from scvi_tahoe.evaluate import discrimination_score_l1, pearson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.pytorch import LightningModule, Trainer
    from numpy.typing import NDArray
    from torch import Tensor

    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.data import Condition, Representation

#: names that ``monitor`` takes beside losses; of all of them more is better
VALIDATION_SCORES = ("validation_pds", "validation_pearson_delta", "validation_overlap")
_N_TOP = 50


def computed_scores(module: TahoeSTModule, representation: Representation) -> list[str]:
    """Return what ``monitor`` can name in a training of this module: the loss, each of its terms, and scores."""
    terms = module.objective.config.logged(module.config, has_embedding=module.embedding_head is not None)
    scores = () if representation == "embedding" else VALIDATION_SCORES
    return [*(f"validation_{name}" for name in ("loss", *terms)), *scores]


def top_gene_overlap(predicted: NDArray[np.floating], observed: NDArray[np.floating]) -> NDArray[np.float64]:
    """Compute the fraction of the most changed genes that the prediction finds, ``[P]``, best 1; stands in for DES.

    DES compares sets of differentially expressed genes, found by rank tests that take minutes. Here the sets are the
    50 genes (a tenth of the genes, where there are fewer than 500) with the largest absolute delta on each side.

    Parameters
    ----------
    predicted, observed
        Deltas, ``[P, G]``, rows in the same order.
    """
    n_top = max(1, min(_N_TOP, predicted.shape[1] // 10))
    top = [np.argpartition(-np.abs(deltas), n_top - 1, axis=1)[:, :n_top] for deltas in (predicted, observed)]
    return np.array([len(np.intersect1d(a, b)) / n_top for a, b in zip(*top, strict=True)])


class ValidationScores(Callback):
    """Logs ``validation_pds``, ``validation_pearson_delta`` and ``validation_overlap`` at every validation.

    Every condition is represented by the mean of its validation sets, and its delta is taken against the mean of the
    control cells of its context; scores are those of preset ``'quick'`` of :func:`scvi_tahoe.evaluate`, averaged over
    conditions. They come from at most four sets a condition, so they compare moments of one run and not models.

    Parameters
    ----------
    conditions
        What the numbers of conditions in minibatches stand for.
    genes
        Names of the genes; a perturbation's own gene does not help to tell it apart.
    """

    def __init__(self, conditions: Sequence[Condition], genes: NDArray[np.str_]) -> None:
        self._conditions = conditions
        column_of = {gene: i for i, gene in enumerate(genes)}
        self._target = np.array([column_of.get(c.perturbation, -1) for c in conditions])
        self._seen: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []

    def on_validation_epoch_start(self, *args: Any) -> None:
        """Forget the last validation."""
        self._seen = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Tensor], *args: Any
    ) -> None:
        """Keep the mean cell of each set: predicted, observed and control."""
        cells = (outputs["prediction_SNG"], batch[TENSORS.OBSERVED], batch[TENSORS.CONTROL])
        means = torch.stack([x.mean(dim=1, dtype=torch.float32) for x in cells], dim=1)
        self._seen.append((batch[TENSORS.CONDITION].cpu().numpy(), means.double().cpu().numpy()))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score and log."""
        seen = self._seen
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, seen)
            seen = [item for part in parts for item in part]
        for name, value in self._scores(np.concatenate([c for c, _ in seen]), np.concatenate([m for _, m in seen])):
            pl_module.log(name, value, on_step=False, on_epoch=True)

    def _scores(self, condition_S: NDArray[np.int64], means_S3G: NDArray[np.float64]) -> Any:
        present, position = np.unique(condition_S, return_inverse=True)
        context = np.array([self._conditions[c].context for c in present])
        # sets of a condition are equally large, so the mean of their means is the mean of their cells
        sums = np.zeros((len(present), *means_S3G.shape[1:]))
        np.add.at(sums, position, means_S3G)
        means_P3G = sums / np.bincount(position)[:, None, None]
        scores: dict[str, list[NDArray[np.float64]]] = {name: [] for name in VALIDATION_SCORES}
        for name in np.unique(context):
            here = context == name
            control_G = means_S3G[context[position] == name, 2].mean(axis=0)
            predicted, observed = (means_P3G[here, side] - control_G for side in (0, 1))
            scores["validation_pds"].append(discrimination_score_l1(predicted, observed, self._target[present[here]]))
            scores["validation_pearson_delta"].append(np.nan_to_num(pearson(predicted, observed)))
            scores["validation_overlap"].append(top_gene_overlap(predicted, observed))
        return [(name, float(np.concatenate(values).mean())) for name, values in scores.items()]
