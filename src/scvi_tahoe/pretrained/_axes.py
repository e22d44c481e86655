"""One labelled axis of a tensor: which place of the new axis takes over which place of the old."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from scvi_tahoe.pretrained._report import LabelMatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = ["AxisMap", "match_labels"]


@dataclass(frozen=True, eq=False)
class AxisMap:
    """Places of a new axis and the places of the old axis whose numbers they take over.

    Parameters
    ----------
    target, source
        Indices, pairwise.
    n_target, n_source
        Lengths of both axes.
    fill
        What the other places of the new axis start with, one of:

        * ``'initial'`` - as in an untrained network
        * ``'zero'`` - zeros, so that the network computes what it did before
        * ``'mean'`` - the mean over the old axis
    """

    target: np.ndarray
    source: np.ndarray
    n_target: int
    n_source: int
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
        same = self.n_target == self.n_source and self.is_complete
        return same and bool((self.target == self.source).all())

    def prepare(self, new: Tensor, old: Tensor, dim: int) -> None:
        """Fill the places of ``new`` along ``dim`` that take over nothing."""
        if self.fill == "initial" or self.is_complete:
            return
        places = np.setdiff1d(np.arange(self.n_target), self.target)
        if self.fill == "zero":
            new.index_fill_(dim, _long(new, places), 0.0)
        elif new.ndim == old.ndim and all(new.shape[d] == old.shape[d] for d in range(new.ndim) if d != dim):
            mean = old.mean(dim, keepdim=True)
            shape = list(new.shape)
            shape[dim] = len(places)
            new.index_copy_(dim, _long(new, places), mean.expand(shape))


def match_labels(
    axis: str, old: Sequence[str], new: Sequence[str], alias: Mapping[str, str] | None = None
) -> tuple[LabelMatch, AxisMap]:
    """Return how labels match and where their numbers go.

    Parameters
    ----------
    axis
        Name of the axis, for the report.
    old, new
        Labels of both sides, in order.
    alias
        New labels that stand for an old label of another name.

    Raises
    ------
    ValueError
        If a label occurs twice on a side.
    """
    for side in (old, new):
        if len(set(side)) != len(side):
            raise ValueError(f"A label of the {axis} occurs twice; labels must be unique to be matched.")
    alias = alias or {}
    position = {label: i for i, label in enumerate(old)}
    pairs = [
        (i, position[alias.get(label, label)]) for i, label in enumerate(new) if alias.get(label, label) in position
    ]
    target = np.array([i for i, _ in pairs], dtype=np.int64)
    source = np.array([j for _, j in pairs], dtype=np.int64)
    taken, used = set(target.tolist()), set(source.tolist())
    match = LabelMatch(
        axis,
        matched=tuple(new[i] for i in target),
        missing=tuple(label for i, label in enumerate(new) if i not in taken),
        surplus=tuple(label for j, label in enumerate(old) if j not in used),
    )
    return match, AxisMap(target, source, len(new), len(old))


def _long(like: Tensor, indices: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(indices).to(like.device)
