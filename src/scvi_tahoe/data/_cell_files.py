"""Cells in a file: the expression, ``obs`` and ``var`` of an h5ad file or a zarr folder, of which rows are read."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h5py

from scvi_tahoe.data._store_folder import SIGNATURE, quiet_zarr
from scvi_tahoe.files import damaged, verify_hdf5, verify_zarr

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pandas as pd

#: files by which a folder is known to be zarr, in its two formats
_ZARR_FILES = (SIGNATURE, ".zgroup")


@dataclass(frozen=True)
class CellFile:
    """Cells in an open file."""

    path: Path
    matrix: Any  #: dense, or CSR, on disk; ``matrix[start:stop]`` reads rows
    obs: pd.DataFrame
    var: pd.DataFrame


@contextmanager
def open_cells(path: Path, layer: str | None = None) -> Iterator[CellFile]:
    """Open an h5ad file or a zarr folder (such as a store of ours) without reading its expression.

    Raises
    ------
    FileNotFoundError, KeyError
        If the file or the layer does not exist.
    ValueError
        If it is neither, is damaged, or its expression is not stored by rows.
    """
    import anndata.io

    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; an h5ad file or a zarr folder with cells is needed.")
    with ExitStack() as stack, quiet_zarr():
        verify_hdf5(path) if path.is_file() else verify_zarr(path)
        with damaged(path):
            group: Any = stack.enter_context(h5py.File(path)) if path.is_file() else _zarr_group(path)
            obs, var = (anndata.io.read_elem(group[name]) for name in ("obs", "var"))
        yield CellFile(path, expression_on_disk(group, path, layer), obs, var)


def expression_on_disk(group: Any, path: Path, layer: str | None) -> Any:
    """Return ``X`` or a layer of an open file, dense or CSR."""
    import anndata.io

    layers = group["layers"] if "layers" in group else {}
    if layer is not None and layer not in layers:
        raise KeyError(f"layer={layer!r} is not in layers of {path}; there are {list(layers)}.")
    if layer is None and "X" not in group:
        raise ValueError(f"{path} has no X; name a layer.")
    matrix = group["X"] if layer is None else layers[layer]
    if hasattr(matrix, "shape"):
        return matrix
    if (kind := matrix.attrs.get("encoding-type")) != "csr_matrix":
        raise ValueError(f"expression in {path} is a {kind}; write it by rows first: adata.X = adata.X.tocsr().")
    return anndata.io.sparse_dataset(matrix)


def _zarr_group(path: Path) -> Any:
    import zarr

    if not any((path / name).is_file() for name in _ZARR_FILES):
        raise KeyError("it has no description of its content")
    return zarr.open_group(path, mode="r", use_consolidated=False)
