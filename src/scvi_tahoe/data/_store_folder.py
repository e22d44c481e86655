"""A store on disk: a folder of sharded zarr that holds a screen too large for memory, how it is written and opened.

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

import numpy as np
from anndata import AnnData

from scvi_tahoe._arguments import checked
from scvi_tahoe._matrices import verified_sparse, verify_magnitude
from scvi_tahoe.data._matrix import fast_codecs, is_sharded
from scvi_tahoe.files import CHECKSUMS, damaged, restore, verify_checksums, verify_zarr, write_checksums

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pandas as pd
    import scipy.sparse as sp
    import zarr

#: attribute of the folder that says what is in it
MANIFEST = "scvi_tahoe_store"
#: version of that attribute and of the layout
VERSION = 1
#: file by which a folder is known to be zarr
SIGNATURE = "zarr.json"
_ENTRIES = 2**22
#: entries of a chunk, which is decoded as a whole: a hundred cells of two thousand genes, a few of a transcriptome
_CHUNK = 2**14
#: entries of a shard, which is a file: 64 MiB of values before compression
_SHARD = 2**24


@contextmanager
def quiet_zarr() -> Iterator[None]:
    """Keep anndata's and zarr's announcements of what later releases will do from our users."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*autosharding.*")
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification.*")
        yield


def files_of(folder: Path) -> dict[str, list[int]]:
    """Count and measure the files of each element of a store, by its name (``"X"``, ``"obs"``, ...)."""
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
    if not is_store(folder):
        what = "not a store on disk of scvi-tahoe" if folder.is_dir() else "a file, and a store on disk is a folder"
        raise ValueError(f"{folder} is {what}; {how}")
    verify_zarr(folder, verify=False)
    group = _opened(folder)
    manifest: Any = group.attrs[MANIFEST]
    if not isinstance(manifest, dict) or not {"version", "files"} <= set(manifest):
        raise ValueError(f"{folder} is damaged: its description lacks version and files; copy the folder again.")
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
    verify_checksums(folder)
    return group


@checked()
def read_store(folder: str | Path) -> AnnData:
    """Open a store on disk, a screen too large for memory.

    ``obs``, ``var``, ``uns`` and ``obsm`` are read; expression stays on disk, and training reads from there what each
    minibatch needs (see :meth:`TahoeST.train`, ``store="disk"``). With the extra ``annbatch`` (Python 3.12 or newer)
    reading is many times faster.

    Parameters
    ----------
    folder
        What ``scvi-tahoe convert`` or :func:`write_store` wrote.

    Returns
    -------
    AnnData whose ``X`` is on disk: ``adata.X[rows]`` and ``adata[rows].X`` read rows, ``adata.to_memory()`` reads all.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such folder; if it is something else, or files are missing or cut off.

    Examples
    --------
    >>> adata = scvi_tahoe.read_store("atlas.zarr")
    >>> TahoeST.setup_anndata(adata, "drug", "DMSO", context_key="cell_line")
    >>> TahoeST(adata).train()
    """
    import anndata.io

    restore(folder)
    group = _verified(Path(folder))
    with quiet_zarr(), damaged(Path(folder)):
        obs, var, uns, obsm = (anndata.io.read_elem(group[element]) for element in ("obs", "var", "uns", "obsm"))
        return AnnData(X=anndata.io.sparse_dataset(group["X"]), obs=obs, var=var, uns=uns, obsm=obsm)


def record_files(folder: Path) -> None:
    """Record the files of a store anew, after something was added to it."""
    import zarr

    root = zarr.open_group(folder, mode="r+", zarr_format=3, use_consolidated=False)
    manifest: Any = root.attrs[MANIFEST]
    root.attrs[MANIFEST] = manifest | {"files": files_of(folder)}
    _write_checksums(folder)


def _write_checksums(folder: Path) -> None:
    """Write checksums of all files but those of the entries, each of whose chunks has its own."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    write_checksums(folder, sorted(n for n in names if not n.startswith(("X/data/", "X/indices/")) and n != CHECKSUMS))


def unverified_values(matrix: Any) -> Iterator[np.ndarray]:
    """Values of CSR in zarr, some millions at a time; none where :class:`StoreWriter` has looked at them already."""
    values = matrix.group["data"]
    if is_sharded(matrix) and not matrix.group.attrs.get("scvi_tahoe_finite", False):
        for start in range(0, values.shape[0], _ENTRIES):
            yield values[start : start + _ENTRIES]


class StoreWriter:
    """Appends cells to a new store in an empty folder, in the order in which they come."""

    def __init__(self, folder: Path, n_genes: int) -> None:
        import zarr

        self._folder = folder
        self.n_genes = n_genes
        with fast_codecs():
            self._root = zarr.open_group(folder, mode="w", zarr_format=3)
            self._group = self._root.create_group("X")
        self._arrays: list[zarr.Array] = []
        self._waiting = [(np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int32))]
        self._n_waiting = 0
        self._n_written = 0
        self._counts: list[np.ndarray] = []

    def append(self, block: sp.csr_matrix) -> None:
        """Add cells, CSR ``[cells, n_genes]``; entries of one place are added up."""
        if block.shape[1] != self.n_genes:
            raise ValueError(f"the store has {self.n_genes} genes, and the block {block.shape[1]}.")
        block = verified_sparse(block, "expression")
        values = np.asarray(block.data, dtype=np.float32)
        verify_magnitude(values, "expression")
        self._counts.append(np.diff(block.indptr).astype(np.int64))
        self._waiting.append((values, block.indices.astype(np.int32)))
        self._n_waiting += len(values)
        if self._n_waiting >= _SHARD:
            self._flush(self._n_waiting // _SHARD * _SHARD)

    def _flush(self, n: int) -> None:
        """Write that many of the entries that wait: whole shards, except for the last one."""
        if not self._arrays:
            self._create_arrays(min(_SHARD, max(1, -(-n // _CHUNK)) * _CHUNK))
        columns = [np.concatenate(parts) for parts in zip(*self._waiting, strict=True)]
        end = self._n_written + n
        for array, entries in zip(self._arrays, columns, strict=True):
            array.resize((end,))
            array[self._n_written : end] = entries[:n]
        self._waiting = [(columns[0][n:].copy(), columns[1][n:].copy())]
        self._n_waiting -= n
        self._n_written = end

    def _create_arrays(self, shard: int) -> None:
        from zarr.codecs import BloscCodec, Crc32cCodec

        layout: dict[str, Any] = {"shape": (0,), "chunks": (_CHUNK,), "shards": (shard,)}
        layout["compressors"] = (BloscCodec(cname="lz4", clevel=3, shuffle="shuffle"), Crc32cCodec())
        with fast_codecs():
            # 16 bits would do for most columns, but scipy knows 32 and 64; compressed it makes no difference
            for name, dtype in (("data", "float32"), ("indices", "int32")):
                self._arrays.append(self._group.create_array(name, dtype=dtype, **layout))

    def finish(self, obs: pd.DataFrame, var: pd.DataFrame, uns: Mapping[str, Any] | None = None) -> None:
        """Write what is left, and what belongs to the cells (in the order of the blocks) and genes."""
        import anndata.io

        counts = np.concatenate(self._counts) if self._counts else np.empty(0, dtype=np.int64)
        if (len(obs), len(var)) != (len(counts), self.n_genes):
            raise ValueError(
                f"{len(counts)} cells x {self.n_genes} genes were appended; obs has {len(obs)} rows, var {len(var)}."
            )
        if self._n_waiting or not self._arrays:
            self._flush(self._n_waiting)
        self._group.create_array("indptr", data=np.append(0, np.cumsum(counts)))
        shape = [len(counts), self.n_genes]
        self._group.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape, "scvi_tahoe_finite": True}
        )
        with quiet_zarr():
            for name, element in (("obs", obs), ("var", var), ("uns", dict(uns or {}))):
                anndata.io.write_elem(self._root, name, element)
            for name in ("obsm", "varm", "layers", "obsp", "varp"):
                anndata.io.write_elem(self._root, name, {})
            self._root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            manifest = {"version": VERSION, "n_cells": shape[0], "n_genes": shape[1], "n_entries": self._n_written}
            self._root.attrs[MANIFEST] = manifest | {"files": files_of(self._folder)}
        _write_checksums(self._folder)
