"""The perturbed gene's own change: a knock-down lowers its target, whatever else a perturbation does.

The change of a measured gene that a perturbation names is kept out of the regression, where it would be noise, and is a
line in the gene's mean control expression, plus what the same perturbation showed elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scvi_tahoe.data import LabelParser

_FEWEST = 4  # training conditions with a measured target


@dataclass(frozen=True)
class OwnGene:
    """Change of perturbed genes.

    Attributes
    ----------
    intercept, slope
        Line of the change on mean control expression.
    deviation
        What each perturbed gene differs from the line, by context: shrunken towards 0 when it is carried over.
    kept
        How much of it holds in another context, from 0 to 1.
    error
        Variance around the line.
    """

    intercept: float
    slope: float
    deviation: Mapping[str, Mapping[str, float]]
    kept: float
    error: float

    @classmethod
    def fit(cls, names: Sequence[str], contexts: Sequence[str], expression: np.ndarray, change: np.ndarray) -> OwnGene:
        """Fit to conditions with one perturbed gene that is measured: its mean control expression and its change.

        Expression that is not known (NaN) gives a line without a slope.
        """
        expression = np.nan_to_num(expression)
        centre = expression.mean()
        spread = np.square(expression - centre).sum()
        slope = float(((expression - centre) * change).sum() / spread) if spread > 1e-12 else 0.0
        intercept = float(change.mean() - slope * centre)
        rest = change - intercept - slope * expression
        deviation: dict[str, dict[str, float]] = {}
        for name, context, value in zip(names, contexts, rest.tolist(), strict=True):
            deviation.setdefault(name, {})[context] = value
        pairs = [(a, b) for d in deviation.values() for i, a in d.items() for j, b in d.items() if i != j]
        together = sum(a * b for a, b in pairs) / max(sum(a * a for a, _ in pairs), 1e-12) if len(pairs) > 3 else 0.0
        return cls(intercept, slope, deviation, float(np.clip(together, 0, 1)), float(np.square(rest).mean()))

    def predict(self, name: str, context: str, expression: float, *, knows_elsewhere: bool) -> float:
        """Predict the change of a gene that is perturbed, from its mean control expression in the context."""
        change = self.intercept + self.slope * float(np.nan_to_num(expression))
        if knows_elsewhere:
            others = [v for c, v in self.deviation.get(name, {}).items() if c != context]
            if others:
                change += self.kept * float(np.mean(others))
        return change if np.isnan(expression) else max(change, -expression)


def target_genes(labels: Sequence[str], genes: Sequence[str], parser: LabelParser) -> list[list[int]]:
    """Positions of the measured genes that each label names."""
    position = {gene: i for i, gene in enumerate(genes)}
    return [[position[part.name] for part in parser.components(label) if part.name in position] for label in labels]


def without_targets(changes: np.ndarray, contexts: np.ndarray, targets: Sequence[Sequence[int]]) -> np.ndarray:
    """Replace the change of a perturbation's own gene by the mean of the others of its context, ``[n, G]``."""
    result = changes.copy()
    by_gene: dict[int, list[int]] = {}
    for i, of_condition in enumerate(targets):
        for gene in of_condition:
            by_gene.setdefault(gene, []).append(i)
    for gene, rows in by_gene.items():
        for context in np.unique(contexts[rows]).tolist():
            here = contexts == context
            others = here.copy()
            others[rows] = False
            mine = [i for i in rows if here[i]]
            result[mine, gene] = changes[others, gene].mean() if others.any() else 0.0
    return result
