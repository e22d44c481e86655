"""The two real screens inside the package, and the few-shot task that the demo and our quality figures are based on.

`LICENSES.md` next to this file says where the screens come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData

#: counts that a THP-1 cell is normalised to: with 299 genes, cells have 207 counts on average
_PAPALEXI_TARGET_SUM = 200.0
_TARGETS = (
    *("ATF2", "BRD4", "CMTM6", "CUL3", "IFNGR1", "IRF1"),
    *("JAK2", "MYC", "NFKBIA", "SMAD4", "STAT2", "UBE2L6"),
)
_VALIDATION_TARGETS = ("CAV1", "STAT3")


def papalexi_thp1(normalize: bool = True) -> AnnData:
    """Return the THP-1 knock-out screen of Papalexi et al. 2021.

    20,729 cells of more than 20 counts each, 299 genes, 25 targets and the control `"non-targeting"`, in three
    replicates. The interferon pathway (IFNGR1, IFNGR2, JAK2, STAT1, IRF1) is its strong signal; most other targets are
    weak.

    Parameters
    ----------
    normalize
        If `True` (default), `X` is `log1p` of the counts normalised to 200 per cell, and the counts are kept in
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
    expression = sparse.diags(_PAPALEXI_TARGET_SUM / total).dot(counts).tocsr().astype(np.float32)
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
        If `True`, keep the three glioblastoma lines of McFaline-Figueroa et al. 2023 that the file also holds: 5,961
        cells, with the line in `obs["cell_type"]`. At their depth, the effects in these lines are noise, and
        interference there has the opposite sign of activation in K562. They are meant for tests with several contexts,
        not for claims.

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
    # an empty category would later be a perturbation without cells
    for name in adata.obs.select_dtypes("category").columns:
        adata.obs[name] = adata.obs[name].cat.remove_unused_categories()
    return adata


@dataclass(frozen=True, kw_only=True)
class FewShotTask:
    """A context in which some perturbations are seen and the others are to be predicted."""

    train: AnnData  #: training data: all other contexts, and the controls and seen perturbations of `context`
    #: cells to be predicted: the perturbations `targets` in `context`, with the control cells of `context`
    held_out: AnnData
    targets: tuple[str, ...]  #: perturbations held out in `context`
    #: perturbations of `context` in `train` that are meant for model selection rather than gradients
    validation_targets: tuple[str, ...]
    context: str  #: context with held-out perturbations
    control: str  #: label of the control cells
    perturbation_key: str  #: column of `obs` with the perturbation labels
    context_key: str  #: column of `obs` with the contexts

    def __repr__(self) -> str:
        return (
            f"FewShotTask: {len(self.targets)} targets of {self.context!r} to predict; train: {self.train.n_obs:,} "
            f"cells, held_out: {self.held_out.n_obs:,} cells, {self.train.n_vars:,} genes; "
            f"perturbation_key={self.perturbation_key!r}, control={self.control!r}, context_key={self.context_key!r}"
        )


def papalexi_few_shot() -> FewShotTask:
    """Return the few-shot task on :func:`~scvi_tahoe.datasets.papalexi_thp1`.

    Replicates 1 and 2 are seen in full. Replicate 3 is seen for half of its targets, of which CAV1 and STAT3 are meant
    for validation; twelve targets are held out there. Replicate 3's control cells are in both parts, because a
    prediction starts from them.

    Returns
    -------
    :class:`FewShotTask` whose AnnData hold `log1p` expression in `X`, counts in `layers["counts"]` and, in `obs`,
    `"target_gene"`, `"replicate"` and `"guide"`.
    """
    screen = papalexi_thp1()
    screen.obs = screen.obs[["perturbation", "bio_rep", "guide"]].rename(
        columns={"perturbation": "target_gene", "bio_rep": "replicate"}
    )
    control, context = str(screen.uns["control_label"]), "rep_3"
    label = screen.obs["target_gene"].astype(str).to_numpy()
    in_context = (screen.obs["replicate"] == context).to_numpy()
    is_target = np.isin(label, _TARGETS)
    return FewShotTask(
        train=screen[~(in_context & is_target)].copy(),
        held_out=screen[in_context & (is_target | (label == control))].copy(),
        targets=_TARGETS,
        validation_targets=_VALIDATION_TARGETS,
        context=context,
        control=control,
        perturbation_key="target_gene",
        context_key="replicate",
    )


def _read(name: str) -> AnnData:
    from anndata import read_h5ad

    with as_file(files("scvi_tahoe.datasets") / name) as path:
        return read_h5ad(path)
