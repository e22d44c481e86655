"""What is known of one gene in one condition, as numbers that mean the same for every gene.

Evidence is gathered without the condition that is asked for: what the response model and its kernels say, what the
same perturbation did in other contexts, what other perturbations do to the gene here, and what those did here that are
most alike: by embedding tables, by their responses elsewhere, and by how near their measured responses are to the
predicted one.

m questions, n conditions, R conditions of a context, G genes, F numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scvi_tahoe.response._kernels import unit_rows
from scvi_tahoe.response._own_gene import target_genes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scvi_tahoe.response._kernels import Conditions
    from scvi_tahoe.response._members import Members, Question

_LEAST = 0.05  # smallest scale of a gene, in units of the median one
_LARGE = 2.5  # scales from which a change counts as large
#: conditions averaged, and how much more alike ones count: by table, by response elsewhere, by prediction, by all
_BY_TABLE, _BY_ELSEWHERE, _BY_PREDICTION, _BY_ALL = (10, 10.0), (10, 10.0), (15, 10.0), (10, 8.0)


@dataclass(frozen=True)
class Evidence:
    """Gathers evidence from training conditions.

    Attributes
    ----------
    members
        Simple predictors, with the training changes.
    conditions
        Training conditions.
    genes
        Names, ``[G]``.
    control_means
        Mean control expression of contexts, ``[G]`` each; may be empty.
    """

    members: Members
    conditions: Conditions
    genes: np.ndarray
    control_means: Mapping[str, np.ndarray]

    @cached_property
    def changes(self) -> np.ndarray:
        """Training changes, float32 ``[n, G]``."""
        return self.members.seen.changes.astype(np.float32, copy=False)

    @cached_property
    def scale_G(self) -> np.ndarray:
        """Standard deviation of each gene's change over the training conditions, float32 and never tiny."""
        found = self.changes.std(axis=0, dtype=np.float64)
        usual = float(np.median(found[found > 0])) if (found > 0).any() else 1.0
        return np.maximum(found, _LEAST * usual).astype(np.float32)

    def of(
        self, questions: Sequence[Question], kernels_mG: np.ndarray, base_mG: np.ndarray, genes: np.ndarray
    ) -> np.ndarray:
        """Gather the evidence of questions of one context, float32 ``[m, genes, F]``.

        Parameters
        ----------
        questions
            Conditions of one context that has training conditions.
        kernels_mG, base_mG
            Their changes as kernels and as the response model have them.
        genes
            Positions of the genes that evidence is wanted of.
        """
        context = questions[0].context
        rows = np.flatnonzero(self.conditions.contexts == context)
        excluded = self._excluded(questions)
        allowed = 1 - excluded[:, rows].toarray()
        here, scale = self.changes[rows], self.scale_G
        count = np.maximum(allowed.sum(axis=1, keepdims=True), 1)
        share = allowed / count
        mean = share @ here
        scaled = here[:, genes] / scale[genes]
        # both without the condition: in a single context, what its own change does to one would be all they differ by
        spread, overall = (self._spread(some, excluded, genes) for some in (rows, None))
        of_others = [share @ scaled, spread / np.maximum(overall, 1e-3 * scale[genes])]
        of_others += [share @ (test).astype(np.float32) for test in (scaled > 1, scaled < -1, np.abs(scaled) > _LARGE)]
        base, kernels = base_mG[:, genes] / scale[genes], kernels_mG[:, genes] / scale[genes]
        elsewhere, alike = self._elsewhere(questions, rows, genes)
        known = elsewhere[-1][:, :1] > 0
        by_table = self._by_table(questions, rows)
        by_prediction = unit_rows(base_mG - mean) @ unit_rows(here - here.mean(axis=0)).T
        likeness = [
            (by_prediction, _BY_PREDICTION),
            (by_table, _BY_TABLE),
            (np.where(known, alike, by_table), _BY_ELSEWHERE),
            (by_prediction + 2 * by_table + 2 * alike, _BY_ALL),
        ]
        found = [base, kernels, *of_others, *elsewhere]
        for similarity, (n_nearest, sharpness) in likeness:
            nearest, top = _nearest(similarity, allowed, n_nearest, sharpness)
            near = nearest @ scaled
            found += [near, np.sqrt(np.maximum(nearest @ np.square(scaled) - np.square(near), 0)), top]
        sizes = [_size(x, mean, scale) for x in (base_mG, kernels_mG)]
        sizes += [np.sqrt(np.square(x).mean(axis=1, keepdims=True)) for x in (found[-2] - of_others[0], elsewhere[1])]
        found += [*sizes, self._own(questions)[:, genes], np.log(scale[genes] / np.median(scale))[None]]
        if self.control_means:
            found.append(np.asarray(self.control_means[context], dtype=np.float32)[genes][None])
        result = np.empty((len(questions), len(genes), len(found)), dtype=np.float32)
        for k, values in enumerate(found):
            result[:, :, k] = values
        return result

    def _excluded(self, questions: Sequence[Question]) -> sp.csr_matrix:
        """Mark the conditions that each question may not use, float32 ``[m, n]``."""
        label, position = self.conditions.label, self._position
        of_label = sp.csr_matrix(
            (np.ones(len(label), np.float32), (label, np.arange(len(label)))), shape=(len(position), len(label))
        )
        out = [{position[name] for name in {*q.without, q.perturbation} if name in position} for q in questions]
        labels = [k for of_question in out for k in sorted(of_question)]
        ends = np.cumsum([0, *map(len, out)])
        return (
            sp.csr_matrix((np.ones(len(labels), np.float32), labels, ends), shape=(len(out), len(position))) @ of_label
        )

    def _spread(self, rows: np.ndarray | None, excluded: sp.csr_matrix, genes: np.ndarray) -> np.ndarray:
        """Return the spread of genes over some conditions, or all, that each question may use, ``[m, genes]``."""
        if rows is None:
            of_all, n = self._moments[:, genes], len(self.changes)
        else:
            of_all, n, excluded = _moments(self.changes[np.ix_(rows, genes)]), len(rows), excluded[:, rows]
        used = np.unique(excluded.indices)
        x = self.changes[np.ix_(used if rows is None else rows[used], genes)].astype(np.float64)
        left = np.maximum(n - excluded.sum(axis=1).A1[:, None], 1)
        mean, square = ((total - excluded[:, used] @ y) / left for total, y in zip(of_all, (x, x**2), strict=True))
        return np.sqrt(np.maximum(square - mean**2, 0))

    @cached_property
    def _moments(self) -> np.ndarray:
        return _moments(self.changes)

    @cached_property
    def _position(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.conditions.labels)}

    @cached_property
    def _responses(self) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of contexts: condition of each label (-1: none), mean, and deviations from it of unit length."""
        found, c = {}, self.conditions
        for k, name in enumerate(c.context_names):
            rows = np.flatnonzero(c.context == k)
            row_of_label = np.full(len(c.labels), -1)
            row_of_label[c.label[rows]] = np.arange(len(rows))
            mean = self.changes[rows].mean(axis=0)
            found[name] = row_of_label, mean, unit_rows(self.changes[rows] - mean)
        return found

    def _elsewhere(
        self, questions: Sequence[Question], rows: np.ndarray, genes: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Gather what perturbations did in other contexts, and how alike others of this context are to them there.

        Returns
        -------
        Mean, mean difference from the mean of the context, standard deviation, agreement in sign and log of one more
        than the number of contexts, ``[m, genes]`` each; and correlations, ``[m, R]``.
        """
        scale, label = self.scale_G[genes], self.conditions.label[rows]
        found = np.zeros((5, len(questions), len(genes)), dtype=np.float32)
        alike = np.zeros((len(questions), len(rows)), dtype=np.float32)
        for k, question in enumerate(questions):
            if question.perturbation in question.without:
                continue
            others = self.members.seen.elsewhere(question.perturbation, question.context)
            if not len(others):
                continue
            there = self.changes[others][:, genes] / scale
            found[0, k], found[2, k] = there.mean(axis=0), there.std(axis=0)
            for i in others:
                row_of_label, mean, unit = self._responses[str(self.conditions.contexts[i])]
                found[1, k] += (self.changes[i, genes] - mean[genes]) / scale / len(others)
                found[3, k] += np.sign(self.changes[i, genes] - mean[genes]) / len(others)
                shared = row_of_label[label]
                products = unit @ unit[row_of_label[self.conditions.label[i]]]
                alike[k] += np.where(shared >= 0, products[shared], 0) / len(others)
            found[4, k] = np.log1p(len(others))
        return list(found), alike

    def _by_table(self, questions: Sequence[Question], rows: np.ndarray) -> np.ndarray:
        """Cosine of all tables side by side, float32 ``[m, R]``; zeros where there is none."""
        if not self.members.tables:
            return np.zeros((len(questions), len(rows)), dtype=np.float32)
        asked, _ = self.members.rows_of_table([question.perturbation for question in questions])
        return (unit_rows(asked) @ self._table_rows[self.conditions.label[rows]].T).astype(np.float32)

    @cached_property
    def _table_rows(self) -> np.ndarray:
        return unit_rows(self.members.rows_of_table(list(self.conditions.labels))[0])

    def _own(self, questions: Sequence[Question]) -> np.ndarray:
        """Whether a gene is perturbed, ``[m, G]``."""
        labels = [question.perturbation for question in questions]
        own = np.zeros((len(questions), len(self.genes)), dtype=np.float32)
        for k, targets in enumerate(target_genes(labels, self.genes.tolist(), self.members.parser)):
            own[k, targets] = 1
        return own


def _moments(changes: np.ndarray) -> np.ndarray:
    """Return sum and sum of squares of each column, float64 ``[2, G]``."""
    return np.stack([changes.sum(axis=0, dtype=np.float64), np.einsum("ng,ng->g", changes, changes, dtype=np.float64)])


def _size(changes: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Logarithm of the root mean square of a condition's difference from the mean, in scales of genes, ``[m, 1]``."""
    return np.log(np.sqrt(np.square((changes - mean) / scale).mean(axis=1, keepdims=True)) + 1e-3)


def _nearest(
    similarity: np.ndarray, allowed: np.ndarray, n_nearest: int, sharpness: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the most similar conditions, float32 ``[m, R]``, and the largest similarity, ``[m, 1]``."""
    similarity = np.where(allowed > 0, similarity, -np.inf)
    n_nearest = min(n_nearest, similarity.shape[1])
    order = np.argpartition(-similarity, n_nearest - 1, axis=1)[:, :n_nearest]
    found = np.take_along_axis(similarity, order, axis=1)
    top = found.max(axis=1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    weight = np.exp(sharpness * (found - top))
    weights = np.zeros(similarity.shape, dtype=np.float32)
    np.put_along_axis(
        weights, order, (weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-12)).astype(np.float32), 1
    )
    return weights, top.astype(np.float32)
