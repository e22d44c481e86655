"""Weights of one network as the start of another: every row and column goes to the label it belongs to.

A pure function. What follows from labels alone (other order, some new perturbations, a few missing genes) is done and
reported. What changes the meaning of the weights is done only where the user has said so, by name; see
:data:`DECISIONS`. Nothing is skipped in silence.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from scvi_tahoe.nn import NetworkConfig, SetTransformer
from scvi_tahoe.pretrained._axes import AxisMap, match_labels
from scvi_tahoe.pretrained._pretrained_model import Labels, PretrainedModel, is_embedding
from scvi_tahoe.pretrained._report import LabelMatch, LoadingReport, TensorRecord

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import Tensor

__all__ = ["DECISIONS", "WarmStart", "plan_warm_start"]

#: What a user can decide when starting from pretrained weights: name and consequence.
DECISIONS: dict[str, str] = {
    "new_genes": "genes the weights do not know get new rows and columns",
    "drop_genes": "genes of the weights that the data lack are left out",
    "extra_input": "input columns beside the genes start at zero",
    "new_input": "the first layer of the control encoder is trained anew",
    "new_output": "the last layer of the head is trained anew",
    "other_embedding": "the data's cell embedding is the one of the weights under another name",
    "new_perturbation_encoder": "the first layer of the perturbation encoder is trained anew",
    "same_features": "the data's perturbation features are those of the weights, though no label is shared to tell",
    "new_batch_encoder": "a batch encoder is added",
    "drop_batch_encoder": "the batch encoder is left out, its mean vector kept",
    "new_gene_decoder": "the gene decoder is trained anew",
    "drop_gene_decoder": "the gene decoder is left out",
    "new_tokens": "a batch or confidence token is added",
    "drop_tokens": "a batch or confidence token is left out",
    "other_head": "the output is formed in another way",
    "other_attention": "cells attend in another way than in training",
    "other_set_size": "sets have another size than in training",
}

#: Up to this share of genes may be new or left out without a decision; they are named in the report.
TOLERATED_SHARE = 0.1

_FIXED = (
    "hidden",
    "n_layers",
    "intermediate",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "n_encoder_layers",
    "n_decoder_layers",
    "control_encoder",
    "backbone",
    "activation",
)


class WarmStart(NamedTuple):
    """A complete state dict for the new network and the report of how it came about."""

    state_dict: dict[str, Tensor]
    report: LoadingReport


def plan_warm_start(
    source: PretrainedModel,
    config: NetworkConfig,
    labels: Labels,
    *,
    accept: Collection[str] = (),
    seed: int = 0,
) -> WarmStart:
    """Return the state dict with which a new network starts from pretrained weights, and the report.

    Genes, perturbations and batches are matched by label. New input columns start at zero, new perturbation columns
    and batch rows at the mean of the known ones, everything else as in an untrained network.

    Parameters
    ----------
    source
        The pretrained model.
    config
        The new network. Its backbone has the dimensions of the source's.
    labels
        What the new network's axes stand for.
    accept
        Names from :data:`DECISIONS`.
    seed
        For what is initialised.

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
    plan = _Plan(source, config, labels, frozenset(accept))
    plan.match_cells()
    plan.match_perturbations()
    plan.match_batches()
    plan.match_decoder()
    plan.compare_settings()
    plan.verify_decisions()
    return plan.carry_out(seed)


def _verify_dimensions(old: NetworkConfig, new: NetworkConfig) -> None:
    different = {name: (getattr(old, name), getattr(new, name)) for name in _FIXED}
    different = {name: pair for name, pair in different.items() if pair[0] != pair[1]}
    if different:
        text = ", ".join(f"{name} is {old} in the weights and {new} here" for name, (old, new) in different.items())
        raise ValueError(f"The weights belong to a network of other dimensions: {text}. Take those of the weights.")


@dataclass
class _Plan:
    """Collects which axis maps to what, and which decisions that takes; then moves the numbers."""

    source: PretrainedModel
    config: NetworkConfig
    labels: Labels
    accept: frozenset[str]
    axes: dict[str, AxisMap] = field(default_factory=dict)
    needed: dict[str, str] = field(default_factory=dict)
    matches: list[LabelMatch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    anew: set[str] = field(default_factory=set)

    # Matching: one method a labelled axis.

    def match_cells(self) -> None:
        """Match the columns of a cell, at the input and at the output."""
        old, new = self.source, self.labels
        if is_embedding(old.embed_key) != is_embedding(new.embedding):
            kinds = [
                f"embeddings ({key})" if is_embedding(key) else "expression" for key in (old.embed_key, new.embedding)
            ]
            self._cells_anew(f"cells are {kinds[0]} in the weights and {kinds[1]} here")
        elif is_embedding(new.embedding):
            self._match_embeddings()
        elif {"new_input", "new_output"} <= self.accept:
            self._cells_anew("decided by the user")
        else:
            self._match_genes()

    def _match_embeddings(self) -> None:
        old, new = self.source.config, self.config
        if (old.n_input, old.n_output) != (new.n_input, new.n_output):
            self._cells_anew(f"cell embeddings are {old.n_input} wide in the weights and {new.n_input} here")
            return
        if self.source.embed_key != self.labels.embedding:
            self.needed["other_embedding"] = (
                f"the weights work on embedding {self.source.embed_key!r}, the data have {self.labels.embedding!r}"
            )
        self.axes["input"], self.axes["output"] = AxisMap.identity(new.n_input), AxisMap.identity(new.n_output)

    def _match_genes(self) -> None:
        old, new = self.source.genes, self.labels.genes
        if old is None:
            raise ValueError(
                f"The weights have {self.source.config.n_output} genes without names, so they cannot be matched. Give "
                "the names in their order with genes=, or accept 'new_input' and 'new_output' to train both ends anew."
            )
        if new is None:
            raise ValueError("The new network works on expression and its genes have no names; give them in labels.")
        match, axis = match_labels("genes", old, new)
        self.matches.append(match)
        if not match.matched:
            raise ValueError(
                f"None of the {len(new)} genes of the data is known to the weights: data {list(new[:3])}, weights "
                f"{list(old[:3])}. Bring the names to one convention (symbols or Ensembl identifiers)."
            )
        if len(match.missing) > TOLERATED_SHARE * len(new):
            self.needed["new_genes"] = f"{len(match.missing)} of {len(new)} genes are unknown to the weights"
        if len(match.surplus) > TOLERATED_SHARE * len(old):
            self.needed["drop_genes"] = f"{len(match.surplus)} of {len(old)} genes of the weights are not in the data"
        n_extra = self.config.n_input - len(new)
        if n_extra:
            self.needed["extra_input"] = f"the input has {n_extra} columns beside the {len(new)} genes"
        self.axes["output"] = axis
        self.axes["input"] = replace(axis, n_target=self.config.n_input, fill="zero")
        if self.config.head == self.source.config.head == "down_up":
            self._match_bottleneck(axis)

    def _match_bottleneck(self, genes: AxisMap) -> None:
        """Keep the units of the bottleneck; where there is less room, those with the largest weights."""
        n_old, n_new = self.source.config.down_width, self.config.down_width
        if n_new >= n_old:
            kept = np.arange(n_old)
        else:
            state = self.source.state_dict
            strength = state["head.down.weight"].norm(dim=1) * state["head.up.weight"].norm(dim=0)
            kept = np.sort(strength.argsort(descending=True)[:n_new].numpy())
            self.notes.append(f"the head's bottleneck keeps the {n_new} strongest of {n_old} units")
        self.axes["bottleneck"] = AxisMap(np.arange(len(kept)), kept, n_new, n_old, fill="initial")
        self.axes["bottleneck_columns"] = replace(self.axes["bottleneck"], fill="zero")

    def _cells_anew(self, reason: str) -> None:
        old, new = self.source.config, self.config
        self.needed["new_input"] = self.needed["new_output"] = reason
        self.axes["input"] = AxisMap.nothing(new.n_input, old.n_input)
        self.axes["output"] = AxisMap.nothing(new.n_output, old.n_output)
        self.axes["bottleneck"] = AxisMap.nothing(new.down_width, old.down_width)
        self.axes["bottleneck_columns"] = self.axes["bottleneck"]
        self.anew |= {"control_encoder.layers.0.bias", "head.down.bias"}

    def match_perturbations(self) -> None:
        """Match the columns of the perturbation encoder's first layer."""
        old, new = self.source.perturbations, self.labels.perturbations
        alias = {self.labels.control: self.source.control} if self.labels.control and self.source.control else {}
        match, axis = match_labels("perturbations", old.names, new.names, alias)
        self.matches.append(match)
        if self.labels.control and alias and self.labels.control != self.source.control:
            self.notes.append(f"control {self.labels.control!r} takes the place of {self.source.control!r}")
        if "new_perturbation_encoder" in self.accept:
            self._perturbations_anew("decided by the user")
        elif old.is_one_hot and new.is_one_hot:
            self.axes["perturbation"] = replace(axis, fill="mean")
        elif old.is_one_hot != new.is_one_hot or old.width != new.width:
            kinds = ["one-hot" if table.is_one_hot else "features" for table in (old, new)]
            self._perturbations_anew(
                f"perturbations are {kinds[0]} of width {old.width} in the weights and {kinds[1]} of width "
                f"{new.width} here"
            )
        else:
            self._compare_features(match)

    def _compare_features(self, match: LabelMatch) -> None:
        old, new = self.source.perturbations, self.labels.perturbations
        silent = set(old.zero_names) | set(new.zero_names)
        shared = [name for name in match.matched if name in set(old.names) and name not in silent]
        self.axes["perturbation"] = AxisMap.identity(new.width)
        if not shared:
            self.needed["same_features"] = "no perturbation label is shared, so the features cannot be compared"
        elif not np.allclose(old.vectors(shared), new.vectors(shared), rtol=1e-3, atol=1e-5):
            self._perturbations_anew(f"the features of {shared[0]!r} and others differ from those of the weights")

    def _perturbations_anew(self, reason: str) -> None:
        self.needed["new_perturbation_encoder"] = reason
        self.axes["perturbation"] = AxisMap.nothing(self.config.n_perturbation, self.source.config.n_perturbation)
        self.anew.add("perturbation_encoder.layers.0.bias")

    def match_batches(self) -> None:
        """Match the rows of the batch encoder and of the batch classifier."""
        old, new = self.source.config, self.config
        if bool(old.n_batches) != bool(new.n_batches):
            name = "new_batch_encoder" if new.n_batches else "drop_batch_encoder"
            self.needed[name] = "the weights have " + ("no batch encoder" if new.n_batches else "a batch encoder")
        n_old, n_new = old.n_batches or old.n_batch_classes, new.n_batches or new.n_batch_classes
        if not (n_old and n_new):
            self.axes["batch"] = AxisMap.nothing(n_new, n_old)
            return
        match, axis = match_labels("batches", self.source.batches or (), self.labels.batches or ())
        self.matches.append(match)
        self.axes["batch"] = replace(axis, n_source=n_old, n_target=n_new, fill="mean")

    def match_decoder(self) -> None:
        """Match the rows of the gene decoder's last layer."""
        old, new = self.source.config.gene_decoder, self.config.gene_decoder
        if old is None or new is None:
            if old is not new:
                name = "new_gene_decoder" if old is None else "drop_gene_decoder"
                self.needed[name] = "the weights have " + ("no gene decoder" if old is None else "a gene decoder")
            return
        names = self.source.labels.decoder_genes, self.labels.decoder_genes
        if "new_gene_decoder" in self.accept or (old.hidden, old.residual) != (new.hidden, new.residual):
            self.needed["new_gene_decoder"] = "the gene decoder has other blocks than that of the weights"
            self.anew |= {name for name in self._target_shapes() if name.startswith("gene_decoder.")}
        elif names[0] is None or names[1] is None:
            self.needed["new_gene_decoder"] = "the decoder's genes have no names"
            self.anew |= {"gene_decoder.out.weight", "gene_decoder.out.bias"}
        else:
            match, self.axes["decoder"] = match_labels("decoder genes", names[0], names[1])
            self.matches.append(match)
            if len(match.missing) > TOLERATED_SHARE * len(names[1]):
                self.needed["new_genes"] = f"{len(match.missing)} genes of the decoder are unknown to the weights"

    def compare_settings(self) -> None:
        """Note what else differs: tokens, head, attention, set size."""
        old, new = self.source.config, self.config
        for name in ("batch_token", "confidence_token"):
            if getattr(old, name) != getattr(new, name):
                decision = "new_tokens" if getattr(new, name) else "drop_tokens"
                self.needed[decision] = f"{name} is {getattr(old, name)} in the weights"
        if old.head != new.head:
            self.needed["other_head"] = f"head is {old.head!r} in the weights, {new.head!r} here"
            last = f"head.project.layers.{new.n_decoder_layers - 1}"
            # What the last layer produced for the other head would be wrong here, not merely untrained.
            self.anew |= {f"{last}.weight", f"{last}.bias"}
        elif old.rectify != new.rectify:
            self.needed["other_head"] = f"rectify is {old.rectify} in the weights, {new.rectify} here"
        if old.attention != new.attention:
            self.needed["other_attention"] = f"attention is {old.attention!r} in the weights, {new.attention!r} here"
        if self.source.set_size != self.labels.set_size:
            self.needed["other_set_size"] = (
                f"sets had {self.source.set_size} cells and have {self.labels.set_size} here"
            )

    def verify_decisions(self) -> None:
        """Raise ``ValueError`` naming every decision that is needed and not given."""
        missing = {name: reason for name, reason in self.needed.items() if name not in self.accept}
        if missing:
            lines = [f"  {name!r}: {reason}; then {DECISIONS[name]}." for name, reason in missing.items()]
            raise ValueError(
                "These weights do not fit the data without decisions of yours. Accept by name, or change the data:\n"
                + "\n".join(lines)
            )

    # Carrying out.

    def carry_out(self, seed: int) -> WarmStart:
        """Return the new state dict and the report."""
        generator = torch.Generator().manual_seed(seed)
        state, records = {}, []
        for name, shape in self._target_shapes().items():
            tensor, record = self._tensor(name, shape, generator)
            state[name] = tensor
            records.append(record)
        self._keep_mean_batch(state, records)
        records += self._left_out(state)
        decisions = tuple(sorted(set(self.needed) & self.accept))
        notes = (*self.source.notes, *self.notes)
        return WarmStart(state, LoadingReport(tuple(records), tuple(self.matches), notes, decisions))

    def _tensor(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, TensorRecord]:
        old = self.source.state_dict.get(name)
        rows, columns = self._axes_of(name)
        maps = [axis for axis in (rows, columns) if axis is not None]
        if old is None or name in self.anew or any(len(axis.target) == 0 for axis in maps):
            source_shape = None if old is None else tuple(old.shape)
            fresh = initial_tensor(name, shape, self.config, generator)
            return fresh, TensorRecord(name, "new", source_shape, shape, "initialised")
        if all(axis.is_identity for axis in maps):
            return old, TensorRecord(name, "loaded", tuple(old.shape), shape)
        moved = initial_tensor(name, shape, self.config, generator)
        for dim, axis in ((0, rows), (1, columns)):
            if axis is not None:
                axis.prepare(moved, old, dim)
        target = tuple(_index(axis, "target", shape[dim]) for dim, axis in enumerate((rows, columns)[: moved.ndim]))
        origin = tuple(_index(axis, "source", old.shape[dim]) for dim, axis in enumerate((rows, columns)[: old.ndim]))
        moved[np.ix_(*target)] = old[np.ix_(*origin)]
        complete = all(axis.is_complete for axis in maps)
        kinds = (("rows", rows), ("columns", columns))
        moves = [(kind, axis) for kind, axis in kinds if axis is not None and not axis.is_identity]
        detail = "; ".join(f"{len(axis.target)} of {axis.n_target} {kind} by label" for kind, axis in moves)
        return moved, TensorRecord(name, "loaded" if complete else "resized", tuple(old.shape), shape, detail)

    def _axes_of(self, name: str) -> tuple[AxisMap | None, AxisMap | None]:
        """Return the maps of a tensor's rows and columns, where its dimensions have labels."""
        last = f"head.project.layers.{self.config.n_decoder_layers - 1}"
        table = {
            "control_encoder.layers.0.weight": (None, "input"),
            "perturbation_encoder.layers.0.weight": (None, "perturbation"),
            "batch_encoder.weight": ("batch", None),
            "batch_classifier.weight": ("batch", None),
            "batch_classifier.bias": ("batch", None),
            f"{last}.weight": ("output", None),
            f"{last}.bias": ("output", None),
            "head.down.weight": ("bottleneck", "output"),
            "head.down.bias": ("bottleneck", None),
            "head.up.weight": ("output", "bottleneck_columns"),
            "head.up.bias": ("output", None),
            "gene_decoder.layers.0.weight": (None, "output"),
            "gene_decoder.out.weight": ("decoder", None),
            "gene_decoder.out.bias": ("decoder", None),
        }
        rows, columns = table.get(name, (None, None))
        return self.axes.get(rows or ""), self.axes.get(columns or "")

    def _keep_mean_batch(self, state: dict[str, Tensor], records: list[TensorRecord]) -> None:
        """Without its batch encoder the network still expects the mean batch vector: add it to the perturbation's."""
        if not self.source.config.n_batches or self.config.n_batches:
            return
        name = f"perturbation_encoder.layers.{self.config.n_encoder_layers - 1}.bias"
        state[name] = state[name] + self.source.state_dict["batch_encoder.weight"].mean(0)
        index = next(i for i, record in enumerate(records) if record.tensor == name)
        records[index] = replace(records[index], detail="mean batch vector added")

    def _left_out(self, state: dict[str, Tensor]) -> list[TensorRecord]:
        dropped = (
            [record for record in self.source.report.records if record.status == "dropped"]
            if self.source.report
            else []
        )
        refused = [
            TensorRecord(name, "refused", tuple(tensor.shape), None, "left out by decision")
            for name, tensor in self.source.state_dict.items()
            if name not in state
        ]
        return [*refused, *dropped]

    def _target_shapes(self) -> dict[str, tuple[int, ...]]:
        with torch.device("meta"):
            network = SetTransformer(self.config)
        return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def initial_tensor(name: str, shape: tuple[int, ...], config: NetworkConfig, generator: torch.Generator) -> Tensor:
    """Return a tensor as an untrained network has it, drawn from ``generator``."""
    last = f"head.project.layers.{config.n_decoder_layers - 1}."
    if config.head == "delta" and name.startswith(last):
        return torch.zeros(shape)
    if "norm" in name:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    if name in ("batch_token", "confidence.token"):
        return torch.randn(shape, generator=generator)
    if name == "batch_encoder.weight":
        return 0.02 * torch.randn(shape, generator=generator)
    bound = shape[-1] ** -0.5
    return (2 * torch.rand(shape, generator=generator) - 1) * bound


def _index(axis: AxisMap | None, side: str, size: int) -> np.ndarray:
    return np.arange(size) if axis is None else getattr(axis, side)
