"""Weights of one network as the start of another: every row and column goes to the label it belongs to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from scvi_tahoe.pretrained._matching import DECISIONS, Matching
from scvi_tahoe.pretrained._pretrained_model import target_shapes
from scvi_tahoe.pretrained._report import LoadingReport, TensorRecord

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import Tensor

    from scvi_tahoe.nn import NetworkConfig
    from scvi_tahoe.pretrained._matching import AxisMap
    from scvi_tahoe.pretrained._pretrained_model import AxisLabels, PretrainedModel

_FIXED = (
    "hidden", "n_layers", "intermediate", "n_heads", "n_kv_heads", "head_dim", "n_encoder_layers", "n_decoder_layers",
    "control_encoder", "backbone", "activation",
)  # fmt: skip


class WarmStart(NamedTuple):
    """A complete state dict for the new network and the report of how it came about."""

    state_dict: dict[str, Tensor]
    report: LoadingReport


def plan_warm_start(
    source: PretrainedModel, config: NetworkConfig, labels: AxisLabels, *, accept: Collection[str] = (), seed: int = 0
) -> WarmStart:
    """Return the state dict with which a new network starts from pretrained weights, and the report.

    Genes, perturbations and batches are matched by label. Columns that read new genes start at zero, so that what is
    predicted for the known genes does not change; columns of new perturbations and rows of new batches start at the
    mean of the known ones; everything else as in an untrained network.

    Parameters
    ----------
    source
        The pretrained model.
    config
        The new network. Its backbone has the dimensions of the source's.
    labels
        What the new network's axes stand for.
    accept
        Names from ``DECISIONS``.
    seed
        Random seed for what is initialised.

    Returns
    -------
    State dict (tensors that are simply loaded share memory with the source) and report.

    Raises
    ------
    ValueError
        If the backbones have different dimensions, a needed decision is missing (the message lists all that are
        needed), an unknown decision is given, or the genes of the source have no names.
    """
    unknown = sorted(set(accept) - set(DECISIONS))
    if unknown:
        raise ValueError(f"Unknown decisions {unknown}; known are {sorted(DECISIONS)}.")
    _verify_dimensions(source.config, config)
    matching = Matching(source, config, labels, frozenset(accept))
    matching.match_cells()
    matching.match_perturbations()
    matching.match_batches()
    matching.match_decoder()
    matching.compare_settings()
    matching.verify_decisions()
    generator = torch.Generator().manual_seed(seed)
    state, tensors = {}, []
    for name, shape in target_shapes(config).items():
        state[name], record = _tensor(matching, name, shape, generator)
        tensors.append(record)
    _keep_mean_batch(matching, state, tensors)
    records = (*tensors, *_left_out(source, state))
    decisions = tuple(sorted(set(matching.needed) & matching.accept))
    notes = (*source.notes, *matching.notes)
    return WarmStart(state, LoadingReport(records, tuple(matching.matches), notes, decisions))


def _verify_dimensions(old: NetworkConfig, new: NetworkConfig) -> None:
    different = {name: (getattr(old, name), getattr(new, name)) for name in _FIXED}
    different = {name: pair for name, pair in different.items() if pair[0] != pair[1]}
    if different:
        text = ", ".join(f"{name} is {old} in the weights and {new} here" for name, (old, new) in different.items())
        raise ValueError(f"The weights belong to a network of other dimensions: {text}. Take those of the weights.")


def _tensor(
    matching: Matching, name: str, shape: tuple[int, ...], generator: torch.Generator
) -> tuple[Tensor, TensorRecord]:
    old = matching.source.state_dict.get(name)
    rows, columns = _axes_of(matching, name)
    maps = [axis for axis in (rows, columns) if axis is not None]
    if old is None or name in matching.anew or any(len(axis.target) == 0 for axis in maps):
        source_shape = None if old is None else tuple(old.shape)
        fresh = initial_tensor(name, shape, matching.config, generator)
        return fresh, TensorRecord(name, "new", source_shape, shape, "initialised")
    if all(axis.is_identity for axis in maps):
        return old, TensorRecord(name, "loaded", tuple(old.shape), shape)
    moved = _moved(initial_tensor(name, shape, matching.config, generator), old, rows, columns)
    moves = [(kind, axis) for kind, axis in (("rows", rows), ("columns", columns)) if axis and not axis.is_identity]
    detail = "; ".join(f"{len(axis.target)} of {axis.n_target} {kind} by label" for kind, axis in moves)
    status: Literal["loaded", "resized"] = "loaded" if all(axis.is_complete for axis in maps) else "resized"
    return moved, TensorRecord(name, status, tuple(old.shape), shape, detail)


def _moved(new: Tensor, old: Tensor, rows: AxisMap | None, columns: AxisMap | None) -> Tensor:
    """Return ``new`` with the numbers of ``old`` in the places their labels have there."""
    axes = (rows, columns)[: new.ndim]
    for dim, axis in enumerate(axes):
        if axis is not None:
            axis.prepare(new, old, dim)
    target = [np.arange(new.shape[dim]) if axis is None else axis.target for dim, axis in enumerate(axes)]
    origin = [np.arange(old.shape[dim]) if axis is None else axis.source for dim, axis in enumerate(axes)]
    new.numpy()[np.ix_(*target)] = old.numpy()[np.ix_(*origin)]
    return new


def _axes_of(matching: Matching, name: str) -> tuple[AxisMap | None, AxisMap | None]:
    """Return the maps of a tensor's rows and columns, where its dimensions have labels."""
    last = f"head.project.layers.{matching.config.n_decoder_layers - 1}"
    rows = {
        "batch_encoder": "batch",
        "batch_classifier": "batch",
        last: "output",
        "head.down": "bottleneck",
        "head.up": "output",
        "gene_decoder.out": "decoder",
    }
    columns = {
        "control_encoder.layers.0.weight": "input",
        "perturbation_encoder.layers.0.weight": "perturbation",
        "base_encoder.layers.0.weight": "output_columns",
        "gene_decoder.layers.0.weight": "output_columns",
        "head.down.weight": "output_columns",
        "head.up.weight": "bottleneck_columns",
    }
    axes = matching.axes
    return axes.get(rows.get(name.rpartition(".")[0], "")), axes.get(columns.get(name, ""))


def _keep_mean_batch(matching: Matching, state: dict[str, Tensor], records: list[TensorRecord]) -> None:
    """Without its batch encoder the network still expects the mean batch vector: add it to the perturbation's."""
    if not matching.source.config.n_batches or matching.config.n_batches:
        return
    name = f"perturbation_encoder.layers.{matching.config.n_encoder_layers - 1}.bias"
    state[name] = state[name] + matching.source.state_dict["batch_encoder.weight"].mean(0)
    index = next(i for i, record in enumerate(records) if record.tensor == name)
    records[index] = replace(records[index], detail="mean batch vector added")


def _left_out(source: PretrainedModel, state: dict[str, Tensor]) -> list[TensorRecord]:
    left = {name: tuple(tensor.shape) for name, tensor in source.state_dict.items() if name not in state}
    refused = [TensorRecord(name, "refused", shape, None, "left out by decision") for name, shape in left.items()]
    return [*refused, *(r for r in (source.report.records if source.report else ()) if r.status == "dropped")]


def initial_tensor(name: str, shape: tuple[int, ...], config: NetworkConfig, generator: torch.Generator) -> Tensor:
    """Return a tensor as an untrained network has it, drawn from ``generator``."""
    last = f"head.project.layers.{config.n_decoder_layers - 1}."
    if config.head == "delta" and name.startswith(last):
        return torch.zeros(shape)
    if name.startswith(f"base_encoder.layers.{config.n_encoder_layers - 1}."):
        return torch.zeros(shape)  # beside loaded weights: a new encoder changes nothing until it is trained
    if "norm" in name:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    if name in ("batch_token", "confidence.token"):
        return torch.randn(shape, generator=generator)
    if name == "batch_encoder.weight":
        return 0.02 * torch.randn(shape, generator=generator)
    bound = shape[-1] ** -0.5
    return (2 * torch.rand(shape, generator=generator) - 1) * bound
