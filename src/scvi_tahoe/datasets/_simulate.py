"""Simulated screens whose true effects are known.

Shapes: **C** contexts, **K** perturbations, **F** pathways, **G** genes, **P** width of a perturbation embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse, stats

from scvi_tahoe._arguments import checked
from scvi_tahoe._memory import verify_memory

if TYPE_CHECKING:
    from anndata import AnnData

#: counts that a cell is normalised to before log1p
_TARGET_SUM = 1000.0
#: standard deviation of the logarithm of a cell's depth
_DEPTH_SPREAD = 0.25
#: shape of the gamma noise of a gene's rate: its inverse is the overdispersion of the counts
_SHAPE = 4.0
#: nodes of the quadrature over depth in the true deltas
_N_DEPTHS = 7
_N_PATHWAYS = 4
#: of a cell and gene at once: rate, its noise, their product and the count
_BYTES_OF_VALUE = 32.0
#: genes that a gene answers to, on average, and how steeply
_N_REGULATORS, _STEEPNESS = 5, 3.0


@checked(
    n_contexts=(1, None), n_perturbations=(1, None), n_genes=(1, None), n_cells=(1, None), n_control_cells=(1, None),
    n_batches=(1, None), n_embedding=(1, None), n_cell_embedding=(1, None), effect_size=(0, None), seed=(0, None),
)  # fmt: skip
def simulate_screen(
    n_contexts: int = 3,
    n_perturbations: int = 24,
    *,
    n_genes: int = 200,
    n_cells: int = 40,
    n_control_cells: int = 200,
    n_batches: int = 2,
    n_embedding: int = 16,
    n_cell_embedding: int = 16,
    effect_size: float = 1.0,
    interaction: float = 0.0,
    nonlinearity: float = 0.0,
    seed: int = 0,
) -> AnnData:
    r"""Return a screen of `log1p` counts with known effects.

    A perturbation moves a few hidden pathways; each pathway moves some of the genes, a little differently in every
    context. Counts are negative binomial around these rates, :math:`y_{ig} \sim \mathrm{NB}(\text{mean} = d_i s_{ig},
    \text{shape} = 4)`, with :math:`d_i` the depth of cell :math:`i` and :math:`s_{ig}` the share of gene :math:`g`.
    The perturbation embedding is a rotation of the pathway activities plus noise, so a model that reads it can predict
    perturbations it has not seen.

    Parameters
    ----------
    n_contexts
        Number of contexts (cell lines).
    n_perturbations
        Number of perturbations, each present in every context, in addition to the control `"control"`.
    n_genes, n_batches
        Number of genes, and of batches, which are assigned in turn within each condition and have no effect.
    n_cells, n_control_cells
        Number of cells per perturbation and context, and of control cells per context.
    n_embedding, n_cell_embedding
        Widths of the perturbation embedding, 4 or more, and of the cell embedding.
    effect_size
        Factor of every log fold change; 0 gives a screen without effects.
    interaction
        Share of the variance of the log fold changes that is an interaction of perturbation and context: each context
        has pathways of its own, which the same hidden activities move. It comes in addition to the 30 % by which the
        loadings of shared pathways differ between contexts.
    nonlinearity
        Share of that variance which other genes pass on: a gene answers to some others through a saturating function of
        their level, so that what a change does depends on the level in the controls of a context.
    seed
        Random seed.

    Returns
    -------
    AnnData with `[cells, genes]` CSR float32 `X` (`log1p` of counts normalised to 1,000) and

    * `layers["counts"]`: the counts;
    * `obs`: `"perturbation"`, `"context"`, `"batch"`;
    * `obsm["X_embedding"]`: a random projection of `X` onto `n_cell_embedding` dimensions;
    * `uns["perturbation_embedding"]`: DataFrame, one row per perturbation, without the control;
    * `uns["true_delta"]`: for each context a DataFrame `[perturbations, genes]`, the expected change of `X`;
    * `uns["true_log_fold_change"]`: the same for the logarithm of the genes' shares.

    Examples
    --------
    >>> from scvi_tahoe.datasets import simulate_screen
    >>> adata = simulate_screen(n_contexts=2, n_perturbations=10, seed=1)
    """
    if n_embedding < _N_PATHWAYS:
        raise ValueError(f"n_embedding is {n_embedding}; it must be {_N_PATHWAYS} or more, one for each pathway.")
    if min(interaction, nonlinearity) < 0 or interaction + nonlinearity >= 1:
        raise ValueError(
            f"interaction={interaction} and nonlinearity={nonlinearity} must be shares of the variance of effects, "
            "from 0, that sum to less than 1."
        )
    n_all = n_contexts * (n_control_cells + n_perturbations * n_cells)
    verify_memory("simulated cells", n_all, _BYTES_OF_VALUE * n_genes, "Simulate fewer, or fewer genes.")
    verify_memory("embedding dimensions", n_embedding, 16.0 * n_embedding, "Choose fewer.")
    rng = np.random.default_rng(seed)
    control_CG, effect_CKG, activity_KF, embedding_KP = _draw_rates(
        rng, n_contexts, n_perturbations, n_genes, n_embedding
    )
    # numbers of their own, so that the rest of a screen does not depend on these options
    more = np.random.default_rng((seed, 1))
    parts = [(1 - interaction - nonlinearity, effect_CKG)]
    if interaction:
        parts.append((interaction, np.einsum("kf,cfg->ckg", activity_KF, _loadings(more, n_genes, n_contexts))))
    if nonlinearity:
        parts.append((nonlinearity, _passed_on(more, control_CG, effect_CKG)))
    fold_CKG = sum(np.sqrt(share * effect_CKG.var() / part.var()) * part for share, part in parts)
    fold_CKG = np.clip(effect_size * fold_CKG, -2.5, 2.5)
    perturbed_CKG = control_CG[:, None] * np.exp(fold_CKG)
    perturbed_CKG /= perturbed_CKG.sum(-1, keepdims=True)
    share_CKG = np.concatenate([control_CG[:, None], perturbed_CKG], axis=1)  # controls first
    obs, condition = _cells(n_contexts, n_perturbations, n_cells, n_control_cells, n_batches)
    depth = _TARGET_SUM * rng.lognormal(-(_DEPTH_SPREAD**2) / 2, _DEPTH_SPREAD, size=len(obs))
    mean = share_CKG[condition[:, 0], condition[:, 1]] * depth[:, None]
    counts = rng.poisson(mean * rng.gamma(_SHAPE, 1 / _SHAPE, size=mean.shape)).astype(np.float32)
    return _assemble(counts, obs, embedding_KP, share_CKG, n_cell_embedding, rng)


def _draw_rates(
    rng: np.random.Generator, n_contexts: int, n_perturbations: int, n_genes: int, n_embedding: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw control shares `[C, G]`, log fold changes `[C, K, G]`, activities `[K, F]` and the embedding `[K, P]`."""
    log_rate_CG = rng.normal(0, 1.0, n_genes) + rng.normal(0, 0.5, (n_contexts, n_genes))
    control_CG = np.exp(log_rate_CG)
    control_CG /= control_CG.sum(1, keepdims=True)
    activity_KF = rng.normal(0, 1, (n_perturbations, _N_PATHWAYS))
    # contexts differ by 30 % of a loading
    loading_FG = _loadings(rng, n_genes)
    gain_CFG = 1 + 0.3 * rng.normal(0, 1, (n_contexts, _N_PATHWAYS, n_genes))
    effect_CKG = np.einsum("kf,cfg->ckg", activity_KF, gain_CFG * loading_FG)
    rotation_PP = np.linalg.qr(rng.normal(size=(n_embedding, n_embedding)))[0]
    embedding_KP = activity_KF @ rotation_PP[:_N_PATHWAYS] + rng.normal(0, 0.05, (n_perturbations, n_embedding))
    return control_CG, effect_CKG, activity_KF, embedding_KP.astype(np.float32)


def _loadings(rng: np.random.Generator, n_genes: int, *shape: int) -> np.ndarray:
    """Draw loadings of pathways, `[*shape, F, G]`; a third of the genes answers to each."""
    size = (*shape, _N_PATHWAYS, n_genes)
    return rng.normal(0, 0.5, size) * (rng.random(size) < 1 / 3)


def _passed_on(rng: np.random.Generator, control_CG: np.ndarray, effect_CKG: np.ndarray) -> np.ndarray:
    """Return what the changes of some genes do to others through a logistic function of their level, `[C, K, G]`."""
    n_genes = control_CG.shape[1]
    weight_GG = rng.normal(size=(n_genes, n_genes)) * (rng.random((n_genes, n_genes)) < _N_REGULATORS / n_genes)
    level_CG = np.log(control_CG * n_genes)

    def response(level: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-_STEEPNESS * level))

    return (response(level_CG[:, None] + effect_CKG) - response(level_CG)[:, None]) @ weight_GG


def _cells(
    n_contexts: int, n_perturbations: int, n_cells: int, n_control_cells: int, n_batches: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the labels of all cells and their (context, row of the share table) `[cells, 2]`."""
    per_label = [n_control_cells] + [n_cells] * n_perturbations
    label = np.tile(np.repeat(np.arange(n_perturbations + 1), per_label), n_contexts)
    context = np.repeat(np.arange(n_contexts), sum(per_label))
    batch = np.tile(np.concatenate([np.arange(n) % n_batches for n in per_label]), n_contexts)
    names = np.array(["control", *_labels("perturbation", n_perturbations)])
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical(names[label]),
            "context": pd.Categorical(np.array(_labels("context", n_contexts))[context]),
            "batch": pd.Categorical(np.array(_labels("batch", n_batches))[batch]),
        },
        index=[f"cell_{i}" for i in range(len(label))],
    )
    return obs, np.stack([context, label], axis=1)


def _labels(noun: str, number: int) -> list[str]:
    width = len(str(number))
    return [f"{noun}_{i + 1:0{width}d}" for i in range(number)]


def _assemble(
    counts: np.ndarray, obs: pd.DataFrame, embedding_KP: np.ndarray, share_CKG: np.ndarray, n_cell_embedding: int,
    rng: np.random.Generator,
) -> AnnData:  # fmt: skip
    from anndata import AnnData

    n_genes = counts.shape[1]
    genes = _labels("gene", n_genes)
    contexts, labels = list(obs["context"].cat.categories), _labels("perturbation", embedding_KP.shape[0])
    expression = np.log1p(counts * (_TARGET_SUM / np.maximum(counts.sum(1, keepdims=True), 1))).astype(np.float32)
    adata = AnnData(sparse.csr_matrix(expression), obs=obs, var=pd.DataFrame(index=genes))
    adata.layers["counts"] = sparse.csr_matrix(counts)
    projection = rng.normal(0, 1 / np.sqrt(n_genes), (n_genes, n_cell_embedding))
    adata.obsm["X_embedding"] = ((expression - expression.mean(0)) @ projection).astype(np.float32)
    columns = [f"dimension_{i}" for i in range(embedding_KP.shape[1])]
    expected_CKG = _expected_expression(share_CKG)
    delta_CKG = (expected_CKG[:, 1:] - expected_CKG[:, :1]).astype(np.float32)
    change_CKG = np.log(share_CKG[:, 1:] / share_CKG[:, :1]).astype(np.float32)
    adata.uns = {
        "log1p": {},
        "control": "control",
        "perturbation_embedding": pd.DataFrame(embedding_KP, index=labels, columns=columns),
        "true_delta": {c: pd.DataFrame(delta_CKG[i], labels, genes) for i, c in enumerate(contexts)},
        "true_log_fold_change": {c: pd.DataFrame(change_CKG[i], labels, genes) for i, c in enumerate(contexts)},
    }
    return adata


def _expected_expression(share: np.ndarray) -> np.ndarray:
    """Return the expected `log1p` of the normalised count for each share.

    Counts are summed out exactly, depth by Gauss-Hermite quadrature, on a grid of shares that is then interpolated:
    the expectation is a smooth function of the share alone. The total of a cell is taken to be its depth.
    """
    grid = np.geomspace(max(share.min(), 1e-7), share.max(), 160)
    nodes, weights = np.polynomial.hermite_e.hermegauss(_N_DEPTHS)
    depths = _TARGET_SUM * np.exp(_DEPTH_SPREAD * nodes - _DEPTH_SPREAD**2 / 2)
    expected = np.zeros_like(grid)
    for depth, weight in zip(depths, weights / weights.sum(), strict=True):
        mean = grid * depth
        largest = int(mean.max() + 12 * np.sqrt(mean.max() + mean.max() ** 2 / _SHAPE)) + 10
        count = np.arange(largest + 1)
        probability = stats.nbinom.pmf(count[None], _SHAPE, (_SHAPE / (_SHAPE + mean))[:, None])
        expected += weight * (probability @ np.log1p(count * _TARGET_SUM / depth))
    return np.interp(np.log(share), np.log(grid), expected)
