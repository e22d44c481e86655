"""Which perturbations of a screen worked: cells, doublets, the target's expression, and whether anything changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.spatial.distance import cdist
from scipy.stats import false_discovery_control, mannwhitneyu
from sklearn.decomposition import TruncatedSVD

from scvi_tahoe._arguments import checked
from scvi_tahoe._messages import progress_bar
from scvi_tahoe._names import beside_labels
from scvi_tahoe.data._matrix import dense_rows
from scvi_tahoe.data._screen import ScreenKeys
from scvi_tahoe.data._verification import verify_screen

if TYPE_CHECKING:
    from anndata import AnnData

_FEWEST_GENES = 2  # to find components of
_MOST_CELLS, _MOST_FITTED = 400, 5000  # cells of a group that are compared, and that components are fitted to
_LEVEL = 0.05
_FEWEST_COUNTS, _LEAST_SHARE = 3, 0.1  # counts of a guide that a cell has, and their share of its largest
_MANY = 0.2  # share of doublets from which a condition is marked
_DETECTED = 0.05  # share of controls that express a target below which a change of it cannot be seen


@checked(min_cells=(0, None), n_permutations=(0, None), seed=(0, None))
def screen_quality(
    adata: AnnData,
    *,
    perturbation_key: str,
    control: str,
    context_key: str | None = None,
    layer: str | None = None,
    combination_separator: str | None = None,
    guide_counts_key: str | None = None,
    min_cells: int = 30,
    n_permutations: int = 499,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    r"""Report which perturbations of a screen have enough cells, changed their target, and had any effect.

    Nothing is removed. Cells of a condition are compared with control cells of the same context, at most 400 of each,
    drawn at random. Whether anything changed is decided by an energy test [1]_: the energy distance of both groups on
    30 principal components of log1p expression, against that of groups of the same size with labels permuted.

    Parameters
    ----------
    adata
        Cells, log1p-normalised.
    perturbation_key, control, context_key
        Column of ``obs`` with perturbations, label of controls, and column with contexts.
    layer
        Layer with the expression. If None, ``X``.
    combination_separator
        Text between the perturbations of a combination. Each part that is a measured gene is examined.
    guide_counts_key
        Key of ``obsm`` with the counts of guides, cells x guides. A guide counts as present from 3 counts and a tenth
        of the cell's largest on; cells with more guides than most cells of their condition are doublets, or were
        infected twice. If None, they are not looked for.
    min_cells
        Number of cells below which a condition is marked.
    n_permutations
        Permutations of each energy test; with 0, there is no test.
    seed
        Random seed for the cells that are compared and for permutations.
    progress
        Whether to show a progress bar.

    Returns
    -------
    One row for each condition: labels, ``n_cells``, ``n_controls``; for targets that are genes of the data, ``target``,
    ``target_detected`` (share of controls that express it), ``target_change`` (of mean log1p expression) and
    ``target_p`` (two-sided Mann-Whitney test; the smallest change of a combination's parts); ``energy`` (distance),
    ``energy_p`` and ``energy_fdr`` (Benjamini and Hochberg over conditions); with guide counts ``doublets``, their
    share; ``marks``, what to look at, empty where all is well: ``"few cells"``, ``"many doublets"`` (over a fifth),
    ``"target unchanged"`` (where at least 5 % of controls express it), ``"no effect found"``.
    ``attrs["doublets"]`` has the names of the cells.

    Raises
    ------
    KeyError
        If there is no such column, layer or key of ``obsm``.
    ValueError
        If a context with perturbed cells has no control cells, or a number is negative.

    References
    ----------
    .. [1] Székely and Rizzo 2013, Journal of Statistical Planning and Inference 143:1249; Peidli et al. 2024, Nature
       Methods 21:531, use it for perturbation screens.

    Examples
    --------
    >>> from scvi_tahoe import screen_quality
    >>> from scvi_tahoe.datasets import simulate_screen
    >>> report = screen_quality(
    ...     simulate_screen(), perturbation_key="perturbation", control="control", context_key="context", progress=False
    ... )
    >>> report.loc[report["marks"] != "", ["perturbation", "context", "marks"]]
    """
    keys = ScreenKeys(
        perturbation_key=perturbation_key, control=control, context_key=context_key, layer=layer,
        combination_separator=combination_separator,
    )  # fmt: skip
    screen = verify_screen(adata, keys, table_required=False)
    matrix = screen.expression
    if len(screen.genes) < _FEWEST_GENES:
        raise ValueError(f"the screen has {len(screen.genes)} gene; {_FEWEST_GENES} or more are needed.")
    labels, contexts = (np.asarray(found.names)[found.codes] for found in (screen.perturbation, screen.context))
    if guide_counts_key is not None and guide_counts_key not in adata.obsm:
        raise KeyError(f"adata.obsm has no {guide_counts_key!r} (guide_counts_key); it has {list(adata.obsm)}.")
    doublet = None if guide_counts_key is None else _doublets(adata.obsm[guide_counts_key], labels, contexts)
    rng = np.random.default_rng(seed)
    fitted = np.sort(rng.permutation(len(labels))[:_MOST_FITTED])
    n_components = max(1, min(30, adata.n_vars - 1, len(fitted) - 1))
    components = TruncatedSVD(n_components, random_state=seed).fit(dense_rows(matrix, fitted))
    conditions = sorted({(c, p) for c, p in zip(contexts, labels, strict=True) if p != control})
    controls: dict[str, tuple[int, np.ndarray]] = {}
    found = []
    for context, label in progress_bar(
        conditions, desc="screen quality", unit="condition", disable=not progress, delay=3
    ):
        if context not in controls:
            rows = np.flatnonzero((contexts == context) & (labels == control))
            controls[context] = len(rows), dense_rows(matrix, np.sort(rng.permutation(rows)[:_MOST_CELLS]))
        n_controls, of_controls = controls[context]
        rows = np.flatnonzero((contexts == context) & (labels == label))
        cells = dense_rows(matrix, np.sort(rng.permutation(rows)[:_MOST_CELLS]))
        row: dict[str, object] = {"n_cells": len(rows), "n_controls": n_controls}
        row |= {} if doublet is None else {"doublets": float(doublet[rows].mean())}
        parts = [label] if combination_separator is None else label.split(combination_separator)
        row |= _of_target([part.strip() for part in parts], adata.var_names, cells, of_controls)
        row |= _energy(components.transform(cells), components.transform(of_controls), n_permutations, rng)
        found.append(row)
    report = pd.DataFrame(found)
    if n_permutations:
        report["energy_fdr"] = false_discovery_control(report["energy_p"])
    visible = report["target_detected"] >= _DETECTED
    marks = {
        "few cells": report["n_cells"] < min_cells,
        "many doublets": report.get("doublets", pd.Series(0.0, index=report.index)) > _MANY,
        "target unchanged": visible & (report["target_p"] > _LEVEL),
        "no effect found": report["energy_fdr"] > _LEVEL if n_permutations else pd.Series(False, index=report.index),
    }
    report["marks"] = ["; ".join(name for name, marked in marks.items() if marked[i]) for i in report.index]
    columns = {perturbation_key: [label for _, label in conditions]}
    if context_key is not None:
        columns[context_key] = [context for context, _ in conditions]
    report = pd.DataFrame(beside_labels(columns, report))
    if doublet is not None:
        report.attrs["doublets"] = adata.obs_names[doublet].tolist()
    return report


def _doublets(guide_counts: Any, labels: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """Whether cells have more guides than most cells of their condition, bool ``[cells]``."""
    counts = sp.csr_matrix(guide_counts)
    largest = counts.max(axis=1).toarray().ravel()
    least = np.maximum(_FEWEST_COUNTS, _LEAST_SHARE * largest)
    row = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    n_guides = np.bincount(row[counts.data >= least[row]], minlength=counts.shape[0])
    usual = pd.Series(n_guides).groupby([contexts, labels]).transform(lambda n: n.mode().iloc[0])
    return n_guides > usual.to_numpy()


def _of_target(parts: list[str], genes: pd.Index, cells: np.ndarray, controls: np.ndarray) -> dict[str, object]:
    """Change of the perturbed gene itself, the part that changed least of several."""
    position = {gene: g for g, gene in enumerate(genes)}
    found = [(part, position[part]) for part in parts if part in position]
    rows: list[dict[str, object]] = [
        {"target": None, "target_detected": np.nan, "target_change": np.nan, "target_p": np.nan}
    ]
    for part, g in found:
        here, there = cells[:, g], controls[:, g]
        rows.append({
            "target": part, "target_detected": float((there > 0).mean()),
            "target_change": float(here.mean() - there.mean()), "target_p": float(mannwhitneyu(here, there).pvalue),
        })  # fmt: skip
    return max(rows[1:], key=lambda row: float(str(row["target_p"]))) if found else rows[0]


def _energy(cells: np.ndarray, controls: np.ndarray, n_permutations: int, rng: np.random.Generator) -> dict[str, float]:
    """Energy distance of two groups, and its p-value by permutation."""
    both, n = np.concatenate([cells, controls]), len(cells)
    m = len(both) - n
    distance = cdist(both, both)
    member = np.zeros((len(both), n_permutations + 1))
    member[:n, 0] = 1
    for k in range(1, n_permutations + 1):
        member[rng.permutation(len(both))[:n], k] = 1
    product = distance @ member
    within = (member * product).sum(axis=0)
    total, rows = distance.sum(), product.sum(axis=0)
    between = rows - within
    energy = 2 * between / (n * m) - within / n**2 - (total - 2 * rows + within) / m**2
    found = {"energy": float(energy[0])}
    if n_permutations:
        found["energy_p"] = float((energy[1:] >= energy[0]).sum() + 1) / (n_permutations + 1)
    return found
