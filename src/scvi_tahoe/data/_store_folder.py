"""A store on disk: a folder of sharded zarr that holds a screen too large for memory, and how it is opened.

It is an AnnData in zarr as anndata specifies it, so that anndata and annbatch read it, too: ``X`` in CSR, ``obs``,
``var`` and ``uns``. Cells are sorted by context and perturbation, controls first. An attribute of the folder says what
was written, by which a damaged one is known: to zarr a chunk that is missing is a chunk of zeros.
"""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anndata import AnnData

from scvi_tahoe.data._disk_rows import is_sharded

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import zarr

#: attribute of the folder that says what is in it
MANIFEST = "scvi_tahoe_store"
#: version of that attribute and of the layout
VERSION = 1
#: file by which a folder is known to be zarr
SIGNATURE = "zarr.json"
_ENTRIES = 2**22


@contextmanager
def quiet_zarr() -> Iterator[None]:
    """Keep anndata's and zarr's announcements of what later releases will do from our users."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*autosharding.*")
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification.*")
        yield


def files_of(folder: Path) -> dict[str, list[int]]:
    """Number and size of the files of each element of a store, by its name (``"X"``, ``"obs"``, ...)."""
    found: dict[str, list[int]] = {}
    for place, _, names in os.walk(folder):
        parts = Path(place).relative_to(folder).parts
        if parts:  # the file beside the elements holds the attribute itself
            of_element = found.setdefault(parts[0], [0, 0])
            of_element[0] += len(names)
            of_element[1] += sum(os.path.getsize(os.path.join(place, name)) for name in names)
    return found


def is_store(folder: str | Path) -> bool:
    """Whether a folder is a store on disk, damaged or not."""
    return (Path(folder) / SIGNATURE).is_file() and MANIFEST in _opened(Path(folder)).attrs


def _opened(folder: Path) -> zarr.Group:
    import zarr

    try:
        return zarr.open_group(folder, mode="r", zarr_format=3, use_consolidated=False)
    except Exception as error:
        raise ValueError(f"{folder} cannot be opened as zarr: {error}") from error


def _verified(folder: Path) -> zarr.Group:
    how = "write one with: scvi-tahoe convert screen.h5ad FOLDER --perturbation-key ... --control ..."
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist; a folder that `scvi-tahoe convert` wrote is needed.")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file, and a store on disk is a folder; {how}")
    if not is_store(folder):
        raise ValueError(f"{folder} is no store on disk of scvi-tahoe; {how}")
    group = _opened(folder)
    manifest: Any = group.attrs[MANIFEST]
    if manifest["version"] > VERSION:
        raise ValueError(
            f"{folder} was written by a later release of scvi-tahoe (version {manifest['version']} of the layout; this "
            f"release reads {VERSION}); update scvi-tahoe, or convert the data again."
        )
    found = files_of(folder)
    for element, (n_files, n_bytes) in manifest["files"].items():
        n_there, bytes_there = found.get(element, (0, 0))
        if (n_there, bytes_there) != (n_files, n_bytes):
            raise ValueError(
                f"{folder} is damaged: {element} has {n_there} files of {bytes_there:,} bytes together, and {n_files} "
                f"of {n_bytes:,} were written; copy the folder again, or convert the data again."
            )
    return group


def read_store(folder: str | Path) -> AnnData:
    """Open a store on disk, a screen too large for memory.

    ``obs``, ``var`` and ``uns`` are read; expression stays on disk, and training reads from there what each minibatch
    needs (see :meth:`TahoeST.train`, ``store="disk"``). With the extra ``annbatch`` (Python 3.12 or newer) reading is
    many times faster.

    Parameters
    ----------
    folder
        What ``scvi-tahoe convert`` or :func:`write_store` wrote.

    Returns
    -------
    AnnData whose ``X`` is on disk: ``adata.X[rows]`` and ``adata[rows].X`` read rows, ``adata.to_memory()`` reads all.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it is something else, or files are missing or cut off.

    Examples
    --------
    >>> adata = scvi_tahoe.read_store("atlas.zarr")
    >>> TahoeST.setup_anndata(adata, "drug", "DMSO", context_key="cell_line")
    >>> TahoeST(adata).train()
    """
    import anndata.io

    group = _verified(Path(folder))
    with quiet_zarr():
        obs, var, uns = (anndata.io.read_elem(group[element]) for element in ("obs", "var", "uns"))
        return AnnData(X=anndata.io.sparse_dataset(group["X"]), obs=obs, var=var, uns=uns)


def unverified_values(matrix: Any) -> Iterator[np.ndarray]:
    """Values of CSR in zarr, some millions at a time; none where :class:`StoreWriter` has looked at them already."""
    values = matrix.group["data"]
    if is_sharded(matrix) and not matrix.group.attrs.get("scvi_tahoe_finite", False):
        for start in range(0, values.shape[0], _ENTRIES):
            yield values[start : start + _ENTRIES]
