"""The basis that responses are regressed in: singular vectors, in which noisy conditions count less."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

_DECIDING = 2000  # conditions that decide on the basis


def response_basis(responses_nG: np.ndarray, noise_nG: np.ndarray, n_components: int, seed: int) -> np.ndarray:
    """Orthonormal rows ``[Q, G]`` that hold the most of the responses, of which noisy ones count less.

    Directions that hold nothing are left out. Of more than 2,000 conditions a random 2,000 decide.
    """
    rows = np.arange(len(responses_nG))
    if len(rows) > _DECIDING:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:_DECIDING])
    noise = noise_nG[rows].mean(axis=1)
    weight = 1 / (noise + 0.1 * noise.mean()) if noise.any() else np.ones(len(rows))
    weighted = responses_nG[rows] * np.sqrt(weight / weight.max())[:, None]
    _, size, basis = np.linalg.svd(_of_few_rows(weighted, n_components), full_matrices=False)
    return basis[: min(n_components, int((size > 1e-6 * max(size[0], 1e-300)).sum()))]


def _of_few_rows(x_nG: np.ndarray, n_components: int) -> np.ndarray:
    """Return rows that have the first right singular vectors of a matrix, as its own are many times slower to factor.

    They are its products with the first eigenvectors of its Gram matrix. Those are exact to the square root of the
    rounding error alone, but a subspace of twice the components holds what is asked for.
    """
    n, wanted = len(x_nG), 2 * n_components
    if n <= 2 * wanted:
        return x_nG
    _, vectors = eigh(x_nG @ x_nG.T, subset_by_index=(n - wanted, n - 1))
    return vectors.T @ x_nG


@dataclass(frozen=True)
class BasesOfFolds:
    """Bases of which each is made without one fold, whose conditions are predicted in it.

    A basis that knows a condition holds what this has in common with others by chance, and its error would look smaller
    than it is.

    Attributes
    ----------
    fold_n
        Fold of each condition.
    bases
        Orthonormal rows, ``[Q, G]`` each.
    """

    fold_n: np.ndarray
    bases: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, responses_nG: np.ndarray, noise_nG: np.ndarray, n_components: int, fold_n: np.ndarray) -> BasesOfFolds:
        """Make the bases."""
        rng, bases = np.random.default_rng(0), []
        for k in range(fold_n.max() + 1):
            some = np.sort(rng.permutation(np.flatnonzero(fold_n != k))[:_DECIDING])
            bases.append(response_basis(responses_nG[some].astype(np.float64), noise_nG[some], n_components, 0))
        return cls(fold_n, tuple(bases))
