"""The two real screens inside the package. `LICENSES.md` beside this file says where they come from."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["norman_k562", "papalexi_thp1"]

#: Counts a THP-1 cell is normalised to: the screen holds 299 genes and 207 counts a cell in the mean.
PAPALEXI_TARGET_SUM = 200.0


def papalexi_thp1(normalize: bool = True) -> AnnData:
    """Return the THP-1 knock-out screen of Papalexi et al. 2021.

    20,729 cells of more than 20 counts each, 299 genes, 25 targets and the control `"non-targeting"`, in three
    replicates. The interferon pathway (IFNGR1, IFNGR2, JAK2, STAT1, IRF1) is its strong signal; most other targets are
    weak.

    Parameters
    ----------
    normalize
        If `True` (default), `X` is `log1p` of the counts normalised to 200 a cell, and the counts are kept in
        `layers["counts"]`. If `False`, `X` holds the raw counts.

    Returns
    -------
    AnnData with CSR float32 `X` and, in `obs`: `"perturbation"` (target), `"guide"`, `"bio_rep"` (replicate) and the
    UMI counts of the guides.

    References
    ----------
    Papalexi et al. 2021, Nature Genetics 53, 322-331 (GEO GSE153056). File: sceptredata (MIT).
    """
    adata = _read("papalexi2021_thp1.h5ad")
    counts = sparse.csr_matrix(adata.X, dtype=np.float32)
    adata.X = counts
    if not normalize:
        return adata
    total = np.asarray(counts.sum(axis=1)).ravel()
    expression = sparse.diags(PAPALEXI_TARGET_SUM / total).dot(counts).tocsr().astype(np.float32)
    expression.data = np.log1p(expression.data)
    adata.X = expression
    adata.layers["counts"] = counts
    adata.uns["log1p"] = {}
    return adata


def norman_k562(all_lines: bool = False) -> AnnData:
    """Return the K562 gene-activation screen of Norman et al. 2019: single genes and pairs.

    3,375 cells, 500 highly variable genes, 18 single genes, 15 pairs (`"A+B"`) and the control `"control"`. `X` is
    `log1p` of normalised counts; raw counts are not part of the file.

    Parameters
    ----------
    all_lines
        If `True`, the three glioblastoma lines of McFaline-Figueroa et al. 2023 that the file also holds are kept:
        5,961 cells, `obs["cell_type"]` names the line. At their depth the effects in these lines are noise, and
        interference there has the opposite sign of activation in K562: for tests of several contexts, not for claims.

    Returns
    -------
    AnnData with CSR float32 `X` and, in `obs`, `"perturbation"`, `"cell_type"`, `"dose"` and others.

    References
    ----------
    Norman et al. 2019, Science 365, 786-793; McFaline-Figueroa et al. 2023, bioRxiv 2023.04.10.536285. File:
    perturbench (BSD-3-Clause).
    """
    adata = _read("norman2019_mcfaline2023.h5ad")
    if not all_lines:
        adata = adata[(adata.obs["cell_type"] == "k562").to_numpy()].copy()
    adata.X = sparse.csr_matrix(adata.X, dtype=np.float32)
    # An empty category would later be a perturbation without cells.
    for name in adata.obs.select_dtypes("category").columns:
        adata.obs[name] = adata.obs[name].cat.remove_unused_categories()
    return adata


def _read(name: str) -> AnnData:
    from anndata import read_h5ad

    with as_file(files("scvi_tahoe.datasets") / name) as path:
        return read_h5ad(path)
