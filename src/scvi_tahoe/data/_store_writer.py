"""Writes a store on disk block by block, in memory that does not grow with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_tahoe.data._disk_rows import fast_codecs
from scvi_tahoe.data._store_folder import MANIFEST, VERSION, files_of, quiet_zarr

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pandas as pd
    import scipy.sparse as sp
    import zarr

#: entries of a chunk, which is decoded as a whole: a hundred cells of two thousand genes, a few of a transcriptome
_CHUNK = 2**14
#: entries of a shard, which is a file: 64 MiB of values before compression
_SHARD = 2**24


class StoreWriter:
    """Appends cells to a new store, sorted as they come.

    Parameters
    ----------
    folder
        An empty folder.
    n_genes
        Columns.

    Examples
    --------
    >>> writer = StoreWriter(folder, n_genes=2000)
    >>> for block in blocks:
    ...     writer.append(block)
    >>> writer.finish(obs, var)
    """

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
        """Add cells.

        Parameters
        ----------
        block
            CSR ``[cells, n_genes]``; entries of one place are added up.

        Raises
        ------
        ValueError
            If it has other genes, or a value is not finite.
        """
        if block.shape[1] != self.n_genes:
            raise ValueError(f"the store has {self.n_genes} genes, and the block {block.shape[1]}.")
        if not block.has_canonical_format:
            block = block.copy()
            block.sum_duplicates()
        values = np.asarray(block.data, dtype=np.float32)
        if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):
            raise ValueError("expression holds NaN or infinite values; remove or impute them first.")
        self._counts.append(np.diff(block.indptr).astype(np.int64))
        self._waiting.append((values, block.indices.astype(np.int32)))
        self._n_waiting += len(values)
        if self._n_waiting >= _SHARD:
            self._flush(self._n_waiting // _SHARD * _SHARD)

    def _flush(self, n: int) -> None:
        """Write that many of the entries that wait: whole shards, but for the last one."""
        if not self._arrays:
            self._arrays = self._new_arrays(min(_SHARD, max(1, -(-n // _CHUNK)) * _CHUNK))
        columns = [np.concatenate(parts) for parts in zip(*self._waiting, strict=True)]
        end = self._n_written + n
        for array, entries in zip(self._arrays, columns, strict=True):
            array.resize((end,))
            array[self._n_written : end] = entries[:n]
        self._waiting = [(columns[0][n:].copy(), columns[1][n:].copy())]
        self._n_waiting -= n
        self._n_written = end

    def _new_arrays(self, shard: int) -> list[zarr.Array]:
        from zarr.codecs import BloscCodec

        compressors = (BloscCodec(cname="lz4", clevel=3, shuffle="shuffle"),)
        with fast_codecs():
            return [
                # 16 bits would do for most columns, but scipy knows 32 and 64; compressed it makes no difference
                self._group.create_array(
                    name, dtype=dtype, shape=(0,), chunks=(_CHUNK,), shards=(shard,), compressors=compressors
                )
                for name, dtype in (("data", "float32"), ("indices", "int32"))
            ]

    def finish(self, obs: pd.DataFrame, var: pd.DataFrame, uns: Mapping[str, Any] | None = None) -> None:
        """Write what is left, and what belongs to the cells and genes.

        Parameters
        ----------
        obs
            One row a cell, in the order of the blocks.
        var
            One row a gene.
        uns
            Anything that anndata writes.

        Raises
        ------
        ValueError
            If ``obs`` or ``var`` has another length.
        """
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
