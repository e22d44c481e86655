"""Simple predictors as exact arithmetic on changes of conditions: mean, carried over, nearest neighbours, ridge.

They are the baselines that predictions are compared with, and members of the response model. Each predicts a change of
mean expression against the context's controls from the changes of other conditions.

n seen conditions, G genes, P columns of an embedding table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

#: neighbours averaged, and how much more a nearer one counts
_N_NEIGHBOURS, _SHARPNESS = 5, 10.0
#: penalties tried, in units of the mean squared singular value of the embeddings
_PENALTIES = np.logspace(-3, 4, 15)
#: perturbations of both contexts that are compared, if there are as many; else all of each context
_FEWEST_SHARED = 3


@dataclass(frozen=True)
class SeenChanges:
    """Changes of seen conditions, and what simple arithmetic makes of them.

    Attributes
    ----------
    perturbations, contexts
        Labels, ``[n]``.
    changes
        Mean of the cells of a condition minus the mean of its context's controls, ``[n, G]``.
    silent
        Contexts that nothing is carried over from.
    """

    perturbations: NDArray[np.str_]
    contexts: NDArray[np.str_]
    changes: NDArray[np.floating]
    silent: frozenset[str] = frozenset()

    @cached_property
    def _row_of(self) -> dict[tuple[str, str], int]:
        pairs = zip(self.perturbations.tolist(), self.contexts.tolist(), strict=True)
        return {pair: i for i, pair in enumerate(pairs)}

    @cached_property
    def _by_context(self) -> dict[str, NDArray[np.intp]]:
        return {context: np.flatnonzero(self.contexts == context) for context in np.unique(self.contexts).tolist()}

    @cached_property
    def _by_perturbation(self) -> dict[str, NDArray[np.intp]]:
        order = np.argsort(self.perturbations, kind="stable")
        names, starts = np.unique(self.perturbations[order], return_index=True)
        return dict(zip(names.tolist(), np.split(order, starts[1:]), strict=True))

    @cached_property
    def _sums(self) -> dict[str, Vector]:
        return {c: self.changes[rows].sum(axis=0, dtype=np.float64) for c, rows in self._by_context.items()}

    def row(self, perturbation: str, context: str) -> int | None:
        """Row of a condition, if it was seen."""
        return self._row_of.get((perturbation, context))

    def elsewhere(self, perturbation: str, context: str) -> NDArray[np.intp]:
        """Rows of a perturbation in other contexts."""
        rows = self._by_perturbation.get(perturbation, np.empty(0, dtype=np.intp))
        rows = rows[self.contexts[rows] != context]
        return rows[~np.isin(self.contexts[rows], sorted(self.silent))] if self.silent else rows

    def mean(self, context: str, without: Sequence[str] = (), *, hidden: bool = False) -> Vector | None:
        """Mean change of the perturbations of a context; of the other contexts' means if it has none.

        Parameters
        ----------
        context
            Context.
        without
            Perturbations that are left out.
        hidden
            Whether nothing of the context may be used.
        """
        found = None if hidden else self._mean_of(context, without)
        if found is not None:
            return found
        others = [self._mean_of(other, without) for other in self._by_context if other not in {context, *self.silent}]
        known = [mean for mean in others if mean is not None]
        return np.mean(known, axis=0) if known else None

    def _mean_of(self, context: str, without: Sequence[str]) -> Vector | None:
        rows = self._by_context.get(context)
        if rows is None:
            return None
        left_out = [i for p in without if (i := self.row(p, context)) is not None]
        n = len(rows) - len(left_out)
        if not n:
            return None
        return (self._sums[context] - self.changes[left_out].sum(axis=0, dtype=np.float64)) / n

    def transfer(self, perturbation: str, context: str) -> Vector | None:
        """Mean change of the same perturbation in the other contexts, if it was seen there."""
        rows = self.elsewhere(perturbation, context)
        return self.changes[rows].mean(axis=0, dtype=np.float64) if len(rows) else None

    def alone(self, perturbation: str, context: str) -> NDArray[np.floating] | None:
        """Change of a perturbation here, or else its mean in the other contexts, if it was seen."""
        i = self.row(perturbation, context)
        return self.transfer(perturbation, context) if i is None else self.changes[i]

    def deviation(
        self, perturbation: str, context: str, without: Sequence[str] = (), *, hidden: bool = False
    ) -> Vector | None:
        """Mean here, plus what the perturbation differs from the mean elsewhere; averaged over the other contexts.

        Means are over the perturbations that both contexts have, if there are three or more.
        """
        rows = self.elsewhere(perturbation, context)
        left_out = tuple({perturbation, *without})
        if not len(rows):
            return None
        found = []
        for i in rows:
            here, there = self._means_of_pair(context, str(self.contexts[i]), left_out, hidden=hidden)
            found.append(self.changes[i] if there is None or here is None else here + self.changes[i] - there)
        return np.mean(found, axis=0, dtype=np.float64)

    def _means_of_pair(
        self, context: str, other: str, without: tuple[str, ...], *, hidden: bool
    ) -> tuple[Vector | None, Vector | None]:
        shared = [] if hidden else self._shared(context, other)
        if len(shared) - len(without) >= _FEWEST_SHARED:
            total = self._shared_sums[context, other]
            left = [p for p in without if self.row(p, context) is not None and self.row(p, other) is not None]
            n = len(shared) - len(left)
            here, there = (
                (sums - sum((self.changes[self._row_of[p, c]] for p in left), np.zeros(sums.shape))) / n
                for sums, c in zip(total, (context, other), strict=True)
            )
            return here, there
        return self.mean(context, without, hidden=hidden), self._mean_of(other, without)

    @cached_property
    def _shared_sums(self) -> dict[tuple[str, str], tuple[Vector, Vector]]:
        return {}

    def _shared(self, context: str, other: str) -> list[str]:
        """Perturbations of both contexts, whose sums are kept."""
        names = self._shared_names
        if (context, other) not in names:
            mine, theirs = (
                set(self.perturbations[self._by_context.get(c, np.empty(0, dtype=np.intp))].tolist())
                for c in (context, other)
            )
            names[context, other] = sorted(mine & theirs)
            if found := names[context, other]:
                here, there = (
                    self.changes[[self._row_of[p, c] for p in found]].sum(axis=0, dtype=np.float64)
                    for c in (context, other)
                )
                self._shared_sums[context, other] = here, there
        return names[context, other]

    @cached_property
    def _shared_names(self) -> dict[tuple[str, str], list[str]]:
        return {}

    def of_perturbations(self, context: str, names: Sequence[str], *, hidden: bool = False) -> NDArray[np.floating]:
        """Change of each perturbation: here, else its mean over the other contexts, ``[names, G]``."""
        result = np.empty((len(names), self.changes.shape[1]))
        for k, name in enumerate(names):
            i = None if hidden else self.row(name, context)
            result[k] = self.changes[self._by_perturbation[name]].mean(axis=0) if i is None else self.changes[i]
        return result

    def names_seen(self, context: str, *, hidden: bool = False) -> list[str]:
        """Perturbations of a context, or all of them if it has none."""
        rows = self._by_context.get(context)
        return list(self._by_perturbation) if rows is None or hidden else self.perturbations[rows].tolist()


def ridge_fit(
    x_TP: NDArray[np.floating], y_TG: NDArray[np.floating], new_NP: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Fit a ridge regression with intercept and return its predictions for new rows, ``[N, G]``.

    The leave-one-out residual of row i is ``e_i / (1 - h_ii)`` with the hat matrix of the fit, so one decomposition
    serves all penalties. Ahlmann-Eltze, Huber and Anders (Nature Methods 2025) found regressions of this kind hard to
    beat.
    """
    fit = RidgeFit.of(x_TP, y_TG)
    return fit.predict(new_NP)


@dataclass(frozen=True)
class RidgeFit:
    """A ridge regression with intercept, its penalty chosen by leave-one-out."""

    x_mean: Vector
    y_mean: Vector
    axes_RP: Vector  #: right singular vectors of the rows
    scores_RG: Vector  #: change of the prediction along each; far fewer numbers than a slope for each column
    left_out_TG: Vector  #: prediction of each row by a fit without it

    @classmethod
    def of(cls, x_TP: NDArray[np.floating], y_TG: NDArray[np.floating]) -> RidgeFit:
        """Fit to rows, of which there are one or more."""
        x_mean, y_mean = x_TP.mean(axis=0, dtype=np.float64), y_TG.mean(axis=0, dtype=np.float64)
        u, s, vt = np.linalg.svd(x_TP - x_mean, full_matrices=False)
        target = u.T @ (y_TG - y_mean)
        nothing = np.broadcast_to(y_mean, y_TG.shape)
        if not (s > 0).any():
            return cls(x_mean, y_mean, vt, np.zeros_like(target), nothing)
        scale = np.mean(s[s > 0] ** 2)
        best = (np.inf, scale, np.ones(len(x_TP)))
        # errors of all penalties from products of scores, which are as many as conditions and not as many as genes
        gram = (y_TG - y_mean) @ (y_TG - y_mean).T
        of_rows = u.T @ gram
        of_scores, own = of_rows @ u, gram.diagonal()
        for penalty in _PENALTIES * scale:
            shrink = s**2 / (s**2 + penalty)
            free = np.maximum(1 - 1 / len(x_TP) - u**2 @ shrink, 1e-6)
            fitted = u * shrink
            squared = own - 2 * (fitted * of_rows.T).sum(axis=1) + ((fitted @ of_scores) * fitted).sum(axis=1)
            error = float(np.mean(squared / free**2)) / y_TG.shape[1]
            if error < best[0]:
                best = error, penalty, free
        _, penalty, free = best
        scores = (s / (s**2 + penalty))[:, None] * target
        residual = y_TG - y_mean - u @ ((s**2 / (s**2 + penalty))[:, None] * target)
        return cls(x_mean, y_mean, vt, scores, y_TG - residual / free[:, None])

    def predict(self, new_NP: NDArray[np.floating]) -> NDArray[np.float64]:
        """Predict rows."""
        return self.y_mean + (new_NP - self.x_mean) @ self.axes_RP.T @ self.scores_RG


def nearest_mean(
    similarity_NT: NDArray[np.floating], y_TG: NDArray[np.floating], n_neighbours: int = _N_NEIGHBOURS
) -> NDArray[np.float64]:
    """Mean of the most similar rows, nearer ones more: weights ``exp(10 cosine)``, ``[N, G]``."""
    order = np.argsort(-similarity_NT, axis=1, kind="stable")[:, :n_neighbours]
    found = np.take_along_axis(similarity_NT, order, axis=1)
    weight = np.exp(_SHARPNESS * (found - found[:, :1]))
    weight /= weight.sum(axis=1, keepdims=True)
    return np.einsum("nk,nkg->ng", weight, y_TG[order], optimize=True)
