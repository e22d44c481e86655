"""Files of cells: h5ad, several of them as one, parts of an h5mu, and stores on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
from anndata.abc import CSRDataset

from scvi_tahoe._arguments import checked
from scvi_tahoe._messages import warn
from scvi_tahoe.data import is_store, read_store
from scvi_tahoe.files import read_h5ad, verify_hdf5

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi_tahoe.study._run_config import DataConfig

#: Share of the genes of any of several files that all of them must have.
_SHARED = 0.9
_FEW = 3  # cells of a condition in a batch


@checked()
def read_cells(path: str | Path) -> ad.AnnData:
    """Return the cells in an h5ad file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not an h5ad file, is damaged, or refers to other files.
    """
    return read_h5ad(path)


def read_files(paths: str | Sequence[str], config: DataConfig) -> ad.AnnData:
    """Return the cells of one file, or of several as one."""
    names = [paths] if isinstance(paths, str) else list(paths)
    found = [_read_one(name, config) for name in names]
    return found[0] if len(found) == 1 else _joined(dict(zip(names, found, strict=True)))


def few_cells(config: DataConfig) -> ad.AnnData:
    """Return a few cells of every condition and batch, of which a model can be built that fits all of them."""
    labels = [config.perturbation_key, config.context_key, config.batch_key]
    keys = [key for key in labels if key is not None]
    found = {}
    for name in config.files:
        if Path(name).is_dir() or name.endswith(".h5mu"):
            return read_files(config.path, config)  # type: ignore[arg-type]
        verify_hdf5(Path(name))
        cells = ad.read_h5ad(name, backed="r")
        rows = np.sort(cells.obs.reset_index().groupby(keys, observed=True).head(_FEW).index.to_numpy())
        found[name] = cells[rows].to_memory()
        cells.file.close()
    return _joined(found) if len(found) > 1 else next(iter(found.values()))


def some_cells(cells: ad.AnnData, rows: np.ndarray) -> ad.AnnData:
    """Return a copy of some cells, read from disk where they are there."""
    return cells[rows].to_memory() if isinstance(cells.X, CSRDataset) else cells[rows].copy()


def _read_one(name: str, config: DataConfig) -> ad.AnnData:
    path = Path(name)
    if path.is_dir() and is_store(path):
        return read_store(path)
    return _part_of_mudata(path, config) if path.suffix == ".h5mu" else read_cells(path)


def _part_of_mudata(path: Path, config: DataConfig) -> ad.AnnData:
    """Return the expression of an h5mu file with the labels of its cells and their embedding."""
    import mudata

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; an h5mu file with cells is expected.")
    verify_hdf5(path)
    mdata = mudata.read_h5mu(path)
    wanted = config.modalities or {}
    if "expression" not in wanted or not set(wanted.values()) <= mdata.mod.keys():
        raise ValueError(f"data.modalities is {wanted}; {path} has {sorted(mdata.mod)}, and expression is needed.")
    adata = mdata.mod[wanted["expression"]].copy()
    for column in mdata.obs.columns.difference(adata.obs.columns):
        adata.obs[column] = mdata.obs.loc[adata.obs_names, column].to_numpy()
    for key in mdata.uns.keys() - adata.uns.keys():
        adata.uns[key] = mdata.uns[key]
    if (embedding := wanted.get("cell_embedding")) is not None:
        cells = mdata.mod[embedding]
        if not adata.obs_names.isin(cells.obs_names).all():
            raise ValueError(f"the modality {embedding!r} of {path} lacks cells of {wanted['expression']!r}.")
        cells = cells[adata.obs_names]
        key = config.cell_embedding_key
        adata.obsm[str(config.embedding_key)] = np.asarray(_dense(cells.X if key is None else cells.obsm[key]))
    return adata


def _dense(matrix: Any) -> Any:
    return matrix.toarray() if hasattr(matrix, "toarray") else matrix


def _joined(files: dict[str, ad.AnnData]) -> ad.AnnData:
    """Return the cells of several files, with the genes that all of them have."""
    shared = set.intersection(*(set(adata.var_names) for adata in files.values()))
    for name, adata in files.items():
        if len(shared) < _SHARED * adata.n_vars:
            raise ValueError(
                f"the files share {len(shared):,} of the {adata.n_vars:,} genes of {name}; bring all to the same ones."
            )
    left = {name: adata.n_vars - len(shared) for name, adata in files.items()}
    if said := [f"{n:,} of {name}" for name, n in left.items() if n]:
        warn(f"the files share {len(shared):,} genes; {' and '.join(said)} are left out.")
    together = {name: adata.to_memory() for name, adata in files.items()}
    return ad.concat(together, join="inner", merge="same", uns_merge="first", index_unique="-")
