"""Technical batches that a network has not seen: its mean vector, or the batch with the most similar control cells."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from scvi_tahoe.data import align_genes, read_screen
from scvi_tahoe.prediction._request import mean_expression, some_cells

if TYPE_CHECKING:
    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.data import GeneAlignment, Screen
    from scvi_tahoe.prediction._request import PredictionData

NewBatches = Literal["error", "mean", "nearest"]
NEW_BATCHES: tuple[NewBatches, ...] = ("error", "mean", "nearest")


def with_new_batches(data: PredictionData, how: NewBatches) -> tuple[PredictionData, dict[str, str]]:
    """Return data whose unknown batches the network can count, and what stands for each of them.

    With ``'mean'`` they are counted behind those that the network knows, see :func:`with_mean_batch`.
    """
    known, found = data.spec.batches, data.screen.batch
    new = [] if known is None or found is None else [name for name in found.names if name not in known]
    if how == "error" or not new or known is None:
        return data, {}
    if how == "mean":
        stands, said = dict.fromkeys(new, len(known)), dict.fromkeys(new, f"mean of {len(known)} batches")
    else:
        nearest = _nearest(data, new)
        stands, said = {name: known.index(batch) for name, batch in nearest.items()}, nearest
    return replace(data, spec=replace(data.spec, new_batches=stands)), said


def with_mean_batch(module: TahoeSTModule) -> TahoeSTModule:
    """Return a module on the same weights whose batch encoder has one more batch, the mean of all."""
    network = module.network
    if network.batch_encoder is None:  # a batch token: batches are predicted, not read
        return module
    weight_BD = network.batch_encoder.weight.detach()
    wider = torch.nn.Embedding.from_pretrained(torch.cat([weight_BD, weight_BD.mean(0, keepdim=True)]))
    return _with_part(module, "network", _with_part(network, "batch_encoder", wider))


def _with_part(module: Any, name: str, part: torch.nn.Module) -> Any:
    other = copy.copy(module)
    other._modules = {**module._modules, name: part}
    return other


def _nearest(data: PredictionData, new: list[str]) -> dict[str, str]:
    """Return the batch of the training data with the most similar mean of control cells, for each new batch."""
    if data.own is None:
        raise ValueError(
            "new_batches='nearest' compares with control cells of the training data, which this model does not have; "
            "load it with its data, or take 'mean'."
        )
    own = read_screen(data.own, data.spec.keys)
    present = data.alignment.columns >= 0
    theirs = _control_means(own, align_genes(data.spec.genes, own.genes, max_missing=0.0))
    ours = _control_means(data.screen, data.alignment)
    if not (theirs := {name: mean for name, mean in theirs.items() if name in (data.spec.batches or ())}):
        raise ValueError("new_batches='nearest' found no control cells of known batches; take 'mean'.")

    def nearest(name: str) -> str:
        if name not in ours:  # no prediction starts from a batch without control cells
            return next(iter(theirs))
        return min(theirs, key=lambda batch: float(np.linalg.norm((ours[name] - theirs[batch])[present])))

    return {name: nearest(name) for name in new}


def _control_means(screen: Screen, alignment: GeneAlignment) -> dict[str, np.ndarray]:
    """Return the mean expression of some control cells of each batch, genes as in the model."""
    if screen.batch is None:
        return {}
    is_control = screen.perturbation.codes == screen.perturbation.code(screen.control)
    rows = {name: np.flatnonzero(is_control & (screen.batch.codes == i)) for i, name in enumerate(screen.batch.names)}
    return {name: mean_expression(alignment.apply(some_cells(screen, r))) for name, r in rows.items() if len(r)}
