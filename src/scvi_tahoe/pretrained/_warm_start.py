"""Weights of one network as the start of another: every row and column goes to the label it belongs to.

What follows from labels alone is done and reported; what changes the meaning of the weights needs a decision by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from scvi_tahoe.pretrained._pretrained_model import is_embedding, target_shapes
from scvi_tahoe.pretrained._report import LabelMatch, LoadingReport, TensorRecord

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch import Tensor

    from scvi_tahoe.data import EmbeddingTable
    from scvi_tahoe.nn import NetworkConfig
    from scvi_tahoe.pretrained._pretrained_model import AxisLabels, PretrainedModel

#: What a user can decide when starting from pretrained weights: name and consequence. Nothing of it happens unasked.
DECISIONS: dict[str, str] = {
    "new_genes": "genes the weights do not know get new rows and columns",
    "drop_genes": "genes of the weights that the data lack are left out",
    "extra_input": "input columns beside the genes start at zero",
    "new_input": "the first layer of the control encoder is trained from scratch",
    "new_output": "the last layer of the head is trained from scratch",
    "other_embedding": "the data's cell embedding is the one of the weights under another name",
    "new_perturbation_encoder": "the first layer of the perturbation encoder is trained from scratch",
    "same_features": "the data's perturbation features are those of the weights, though no label is shared to tell",
    "new_batch_encoder": "a batch encoder is added",
    "drop_batch_encoder": "the batch encoder is left out, its mean vector kept",
    "other_control_encoder": "the control encoder, of another kind, is trained from scratch",
    "new_gene_decoder": "the gene decoder is trained from scratch",
    "drop_gene_decoder": "the gene decoder is left out",
    "new_tokens": "a batch or confidence token is added",
    "drop_tokens": "a batch or confidence token is left out",
    "other_head": "the output is formed in another way",
    "other_attention": "cells attend in another way than in training",
    "other_set_size": "sets have another size than in training",
}


class DecisionsNeededError(ValueError):
    """Weights do not fit without decisions of the user: ``needed`` has the reason for each that is missing."""

    def __init__(self, message: str, needed: Mapping[str, str]) -> None:
        super().__init__(message)
        self.needed = dict(needed)


#: Up to this share of genes may be new or left out without a decision; they are named in the report.
TOLERATED_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class AxisMap:
    """Indices of a new axis and, pairwise, the indices of the old axis whose numbers they take over."""

    target: np.ndarray
    source: np.ndarray
    n_target: int
    n_source: int
    #: what the other places start with: as untrained, zeros (the network computes what it did), or the old ones' mean
    fill: Literal["initial", "zero", "mean"] = "initial"

    @classmethod
    def identity(cls, n: int) -> AxisMap:
        """Return the map of an axis onto itself."""
        return cls(np.arange(n), np.arange(n), n, n)

    @classmethod
    def nothing(cls, n_target: int, n_source: int) -> AxisMap:
        """Return the map that takes over nothing."""
        empty = np.empty(0, dtype=np.int64)
        return cls(empty, empty, n_target, n_source)

    @property
    def is_complete(self) -> bool:
        """Whether every place of the new axis takes over an old one."""
        return len(self.target) == self.n_target

    @property
    def is_identity(self) -> bool:
        """Whether nothing moves."""
        return self.n_target == self.n_source and self.is_complete and np.array_equal(self.target, self.source)

    def prepare(self, new: Tensor, old: Tensor, dim: int) -> None:
        """Fill the places of ``new`` along ``dim`` that take over nothing."""
        if self.fill == "initial" or self.is_complete:
            return
        places = np.setdiff1d(np.arange(self.n_target), self.target)
        if self.fill == "zero":
            new.index_fill_(dim, torch.from_numpy(places), 0.0)
        elif new.ndim == old.ndim and all(new.shape[d] == old.shape[d] for d in range(new.ndim) if d != dim):
            mean = old.mean(dim, keepdim=True)
            new.index_copy_(dim, torch.from_numpy(places), mean.repeat_interleave(len(places), dim))


def match_labels(
    axis: str, old: Sequence[str], new: Sequence[str], alias: Mapping[str, str] | None = None
) -> tuple[LabelMatch, AxisMap]:
    """Return how the labels of an axis match and where their numbers go; ``alias`` names old labels for new ones."""
    for side in (old, new):
        if len(set(side)) != len(side):
            raise ValueError(f"A label of the {axis} occurs twice; labels must be unique to be matched.")
    alias = alias or {}
    position = {label: i for i, label in enumerate(old)}
    pairs = {i: position[name] for i, label in enumerate(new) if (name := alias.get(label, label)) in position}
    used = set(pairs.values())
    match = LabelMatch(
        axis,
        matched=tuple(new[i] for i in pairs),
        missing=tuple(label for i, label in enumerate(new) if i not in pairs),
        surplus=tuple(label for j, label in enumerate(old) if j not in used),
    )
    target, source = (np.array(list(places), dtype=np.int64) for places in (pairs, pairs.values()))
    return match, AxisMap(target, source, len(new), len(old))


@dataclass
class Matching:
    """Which axis of the new network maps to what of the old, and which decisions that takes."""

    source: PretrainedModel
    config: NetworkConfig
    labels: AxisLabels
    accept: frozenset[str]
    axes: dict[str, AxisMap] = field(default_factory=dict)
    needed: dict[str, str] = field(default_factory=dict)  # decision to reason
    matches: list[LabelMatch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    anew: set[str] = field(default_factory=set)  # tensors that are initialised whatever the source holds

    def match_cells(self) -> None:
        """Match the columns of a cell, at the input and at the output."""
        old, new = self.source, self.labels
        if old.embeds != is_embedding(new.embedding):
            keys = old.embed_key, new.embedding
            was, now = (f"embeddings ({key})" if is_embedding(key) else "expression" for key in keys)
            self._cells_anew(f"cells are {was} in the weights and {now} here")
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
        was, now = self.source.embed_key, self.labels.embedding
        if was != now:
            self.needed["other_embedding"] = f"the weights work on embedding {was!r}, the data have {now!r}"
        self.axes["input"], self.axes["output"] = AxisMap.identity(new.n_input), AxisMap.identity(new.n_output)
        self.axes["output_columns"] = self.axes["output"]

    def _match_genes(self) -> None:
        old, new = self.source.genes, self.labels.genes
        if old is None:
            self._cells_anew(
                f"{self.source.provenance.source} does not name the {self.source.config.n_output} genes of its "
                f"network (ST-HVG-Tahoe and ST-HVG-Parse do not), to match them with your {len(new or ())}. Give their "
                "names in its order with genes=[...] (only the scale check notices a wrong one), or keep the backbone "
                "and train both ends from scratch with accept=('new_input', 'new_output')"
            )
            return
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
        self.axes["output_columns"] = replace(axis, fill="zero")
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
        self.axes["output"] = self.axes["output_columns"] = AxisMap.nothing(new.n_output, old.n_output)
        self.axes["bottleneck"] = AxisMap.nothing(new.down_width, old.down_width)
        self.axes["bottleneck_columns"] = self.axes["bottleneck"]
        self.anew |= {"control_encoder.layers.0.bias", "base_encoder.layers.0.bias", "head.down.bias"}

    def match_perturbations(self) -> None:
        """Match the columns of the perturbation encoder's first layer."""
        old, new = self.source.perturbations, self.labels.perturbations
        known, alias = old.columns or old.names, {}
        if self.labels.control and self.source.control in known:
            alias = {self.labels.control: self.source.control}
        match, axis = match_labels("perturbations", known, new.columns or new.names, alias)
        self.matches.append(match)
        if alias and self.labels.control != self.source.control:
            self.notes.append(f"control {self.labels.control!r} takes the place of {self.source.control!r}")
        if "new_perturbation_encoder" in self.accept:
            self._perturbations_anew("decided by the user")
        elif old.columns and new.columns:
            self.axes["perturbation"] = replace(axis, fill="mean")
        elif bool(old.columns) != bool(new.columns) or old.width != new.width:
            was, now = (f"{'one-hot' if t.columns else 'features'} of width {t.width}" for t in (old, new))
            self._perturbations_anew(f"perturbations are {was} in the weights and {now} here")
        else:
            self._compare_features(match)

    def _compare_features(self, match: LabelMatch) -> None:
        old, new = self.source.perturbations, self.labels.perturbations
        comparable = set(old.names) - zero_names(old) - zero_names(new)
        shared = [name for name in match.matched if name in comparable]
        self.axes["perturbation"] = AxisMap.identity(self.config.n_perturbation)
        if not shared:
            self.needed["same_features"] = "no perturbation label is shared, so the features cannot be compared"
            return
        theirs, ours = (table.matrix[[table.row_of[name] for name in shared]] for table in (old, new))
        if not np.allclose(theirs, ours, rtol=1e-3, atol=1e-5):
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
            self.anew |= {name for name in target_shapes(self.config) if name.startswith("gene_decoder.")}
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
        elif old.keep_zeros != new.keep_zeros or (old.base_encoder and not new.base_encoder):
            was, now = ([name for name in ("keep_zeros", "base_encoder") if getattr(c, name)] for c in (old, new))
            self.needed["other_head"] = f"the weights are used with {was} and here with {now}"
        elif old.base_encoder and old.sees_perturbation != new.sees_perturbation:
            saw, sees = (f"sees_perturbation={c.sees_perturbation}" for c in (old, new))
            self.needed["other_head"] = f"the weights are used with {saw} and here with {sees}"
        if old.control_encoder != new.control_encoder:
            self.needed["other_control_encoder"] = (
                f"the control encoder is {old.control_encoder!r} in the weights and {new.control_encoder!r} here"
            )
            self.anew |= {name for name in target_shapes(new) if name.startswith("control_encoder.")}
        if old.attention != new.attention:
            self.needed["other_attention"] = f"attention is {old.attention!r} in the weights, {new.attention!r} here"
        was_size, size = self.source.set_size, self.labels.set_size
        if was_size != size:
            self.needed["other_set_size"] = f"sets had {was_size} cells and have {size} here"

    def verify_decisions(self) -> None:
        """Raise ``ValueError`` naming every decision that is needed and not given."""
        missing = {name: reason for name, reason in self.needed.items() if name not in self.accept}
        if self.source.genes is None and not self.source.embeds and "new_input" in missing:
            others = ", ".join(repr(name) for name in missing if name not in ("new_input", "new_output"))
            also = f", and accept {others}" if others else ""
            raise DecisionsNeededError(f"{self.needed['new_input']}{also}.", missing)
        if lines := [f"\n  {name!r}: {reason}; then {DECISIONS[name]}." for name, reason in missing.items()]:
            start = f"These weights need decisions of yours, accept={[*sorted(self.accept), *missing]}, or other data:"
            raise DecisionsNeededError(start + "".join(lines), missing)


def zero_names(table: EmbeddingTable) -> set[str]:
    """Return the names whose vector is all zeros: usually the control, and labels that had no features."""
    return {name for name, row in zip(table.names, table.matrix, strict=True) if not row.any()}


_FIXED = (
    "hidden", "n_layers", "intermediate", "n_heads", "n_kv_heads", "head_dim", "n_encoder_layers", "n_decoder_layers",
    "backbone", "activation",
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
    if unknown := sorted(set(accept) - set(DECISIONS)):
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
    idle = sorted(set(accept) - set(matching.needed))
    unneeded = [f"accepted and not needed: {', '.join(idle)}"] if idle else []
    notes = (*source.notes, *matching.notes, *unneeded)
    return WarmStart(state, LoadingReport(records, tuple(matching.matches), notes, decisions))


def _verify_dimensions(old: NetworkConfig, new: NetworkConfig) -> None:
    pairs = {name: (getattr(old, name), getattr(new, name)) for name in _FIXED}
    if found := [f"{name} is {was} in the weights and {now} here" for name, (was, now) in pairs.items() if was != now]:
        text = f"The weights belong to a network of other dimensions: {', '.join(found)}."
        raise ValueError(f"{text} Take those of the weights.")


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
