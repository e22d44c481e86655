"""From h5ad files to a store on disk: cells sorted by condition, in memory that does not grow with them.

Sorting on disk in two passes: the first goes through the files from beginning to end and puts each cell into the
bucket of its place in the store, the second takes one bucket after the other and puts its cells in order.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scvi_tahoe._arguments import checked
from scvi_tahoe._labels import verify_labels, verify_unique
from scvi_tahoe._matrices import trusted_matrix, verified_sparse
from scvi_tahoe._messages import progress_bar
from scvi_tahoe._names import nearest_names
from scvi_tahoe.data._cell_files import expression_on_disk
from scvi_tahoe.data._matrix import GeneAlignment
from scvi_tahoe.data._store_folder import SIGNATURE, StoreWriter, is_store
from scvi_tahoe.data._verification import unknown_control, verify_log1p
from scvi_tahoe.files import atomic_folder, damaged, verify_hdf5, verify_space

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: entries read at once, and entries of a bucket
_READ, _BUCKET = 2**22, 2**25
#: what the files of a bucket hold of its cells: places in the store, numbers of entries, and the entries
_KEPT_OF_CELLS = {"place": np.int64, "count": np.int64, "column": np.int32, "value": np.float32}


@dataclass(frozen=True)
class _Source:
    """One h5ad file, opened."""

    path: Path
    matrix: Any  # dense, or CSR, on disk
    counts: np.ndarray  # entries of each cell; as many as genes where they are dense
    obs: pd.DataFrame
    var: pd.DataFrame
    uns: dict[str, Any]

    def blocks(self) -> Iterator[tuple[slice, sp.csr_matrix]]:
        """All cells in their order, as many at once as hold about ``_READ`` entries."""
        at_once = max(1, int(_READ / max(1.0, self.counts.sum() / max(1, len(self.counts)))))
        for start in range(0, len(self.counts), at_once):
            rows = slice(start, min(start + at_once, len(self.counts)))
            block = self.matrix[rows]
            block = block if sp.issparse(block) else np.asarray(block, np.float32)  # no sparse matrix holds 16 bits
            block = verified_sparse(sp.csr_matrix(block), f"the expression of {self.path}")
            yield rows, block.astype(np.float32, copy=False)


@checked()
def write_store(
    files: Sequence[str | Path] | str | Path,
    folder: str | Path,
    *,
    perturbation_key: str,
    control: str,
    context_key: str | None = None,
    layer: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Write h5ad files as a store on disk, which :func:`read_store` opens.

    Cells are sorted by context and perturbation, the controls of a context first, so that a set of cells is read in few
    pieces. What is kept is expression, ``obs``, ``var`` and ``uns`` (of the first file that has a key); other layers
    and ``obsm`` are left out. The folder is written whole or not at all.

    Parameters
    ----------
    files
        One or more h5ad files. Genes are matched by name, and all files must have the same ones.
    folder
        Where to write; it needs twice the room of the result for a while.
    perturbation_key, control, context_key
        As for ``setup_anndata``.
    layer
        Layer with the expression, in all files. If None, ``X``.
    overwrite
        Whether to replace a store of that name.
    progress
        Whether to show progress bars.

    Returns
    -------
    The folder.

    Raises
    ------
    FileNotFoundError, FileExistsError, KeyError
        If a file does not exist, the folder does, or a column or layer does not.
    ValueError
        If a file is not an h5ad file, files do not fit together, or expression is not log1p of normalised counts.
    """
    files = [files] if isinstance(files, str | Path) else list(files)
    keys = [perturbation_key] if context_key is None else [context_key, perturbation_key]
    folder = Path(folder)
    if overwrite and folder.is_dir() and any(folder.iterdir()) and not is_store(folder):
        raise FileExistsError(f"{folder} exists and is not a store on disk; it is not replaced. Give another name.")
    with ExitStack() as stack:
        sources = [_opened(Path(file), layer, keys, stack) for file in files]
        if not sources:
            raise ValueError("no file was given.")
        if not len(sources[0].var) or not any(len(source.obs) for source in sources):
            raise ValueError(f"{sources[0].path} holds no cells or no genes; there is nothing to write.")
        alignments = [_same_genes(source, sources[0]) for source in sources]
        obs = _joined_obs(sources)
        place = _places(obs, keys, control)
        for source in sources:
            verify_log1p(source.matrix, f"{'X' if layer is None else f'layer {layer!r}'} of {source.path}")
        # entries are sorted in files beside the store; of a dense matrix it is not known how many there are
        size = sum(s.counts.sum() * (1 if isinstance(s.matrix, h5py.Dataset) else 10) for s in sources)
        verify_space(folder, float(size), "the store")
        with atomic_folder(folder, overwrite=overwrite, kind="store on disk", signatures=(SIGNATURE,)) as partial:
            writer = StoreWriter(partial, len(sources[0].var))  # first, as it empties the folder
            buckets = _Buckets(partial / "sorting", np.concatenate([s.counts for s in sources]), place)
            offset = 0
            for source, alignment in zip(sources, alignments, strict=True):
                bar = progress_bar(
                    total=len(source.obs), desc=f"reading {source.path.name}", unit="cell", disable=not progress
                )
                for rows, block in source.blocks():
                    buckets.add(alignment.apply(block), place[offset + rows.start : offset + rows.stop])
                    bar.update(rows.stop - rows.start)
                bar.close()
                offset += len(source.obs)
            what = f"writing {folder.name}"
            for block in progress_bar(buckets.in_order(), total=len(buckets), desc=what, disable=not progress):
                writer.append(block)
            shutil.rmtree(partial / "sorting")
            uns = {key: value for source in reversed(sources) for key, value in source.uns.items()}
            writer.finish(obs.iloc[np.argsort(place)], sources[0].var, uns)
    return folder


def _opened(path: Path, layer: str | None, keys: Sequence[str], stack: ExitStack) -> _Source:
    import anndata.io

    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; h5ad files are needed.")
    verify_hdf5(path)
    with damaged(path):
        file = stack.enter_context(h5py.File(path))
        obs, var = (anndata.io.read_elem(file[name]) for name in ("obs", "var"))
        uns = anndata.io.read_elem(file["uns"]) if "uns" in file else {}
    for key in keys:
        if key not in obs:
            columns = [str(c) for c in obs.columns]
            raise KeyError(f"{key!r} is not a column of obs in {path}{nearest_names(key, columns)}; it has {columns}.")
        verify_labels(obs[key], f"obs[{key!r}] of {path}")
    verify_unique(obs.index, "cell", f" in {path}")
    verify_unique(var.index, "gene", f" in {path}")
    return _Source(path, *_expression(file, path, layer), obs, var, dict(uns))


def _expression(file: h5py.File, path: Path, layer: str | None) -> tuple[Any, np.ndarray]:
    matrix = trusted_matrix(expression_on_disk(file, path, layer), f"the expression of {path}")
    if isinstance(matrix, h5py.Dataset):
        return matrix, np.full(matrix.shape[0], matrix.shape[1], dtype=np.int64)
    return matrix, np.diff(np.asarray(matrix.group["indptr"][:], dtype=np.int64))


def _same_genes(source: _Source, first: _Source) -> GeneAlignment:
    columns = source.var.index.get_indexer(first.var.index)
    if len(source.var) != len(first.var) or (columns < 0).any():
        lacking = [str(name) for name in first.var.index[columns < 0][:3]]
        more = [str(name) for name in source.var.index.difference(first.var.index)[:3]]
        n_missing, n_more = int((columns < 0).sum()), len(source.var) - int((columns >= 0).sum())
        raise ValueError(
            f"{source.path} has other genes than {first.path}: {n_missing} are missing ({lacking}), and {n_more} are "
            f"more ({more}); bring the files to the same genes first."
        )
    return GeneAlignment(columns.astype(np.int64), (), 0)


def _joined_obs(sources: Sequence[_Source]) -> pd.DataFrame:
    """Columns that all files have; names of cells that several files have get the number of their file."""
    columns = [c for c in sources[0].obs.columns if all(c in s.obs for s in sources)]
    obs = pd.concat([source.obs[columns] for source in sources])
    if not obs.index.is_unique:
        number = np.repeat(np.arange(len(sources)), [len(s.obs) for s in sources])
        obs.index = obs.index.astype(str) + "-" + pd.Index(number.astype(str))
    for column in columns:
        if isinstance(sources[0].obs[column].dtype, pd.CategoricalDtype):  # other categories make them text again
            obs[column] = obs[column].astype("category")
    return obs


def _places(obs: pd.DataFrame, keys: Sequence[str], control: str) -> np.ndarray:
    """Place of each cell in the store: by context, controls first, then perturbation, then order in the files."""
    labels = [pd.factorize(obs[key].astype(str), sort=True) for key in keys]
    codes, names = labels[-1]
    if control not in names:
        raise unknown_control(control, keys[-1], list(map(str, names)))
    codes = np.where(codes == names.get_loc(control), -1, codes)
    order = np.lexsort([codes, *(code for code, _ in labels[:-1])])
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return place


class _Buckets:
    """Cells by their place in the store, in files; ``counts`` are entries of each cell."""

    def __init__(self, folder: Path, counts: np.ndarray, place: np.ndarray) -> None:
        folder.mkdir()
        self._folder = folder
        in_order = np.empty_like(counts)
        in_order[place] = counts
        bucket = np.cumsum(in_order) // _BUCKET
        self._starts = np.append(np.flatnonzero(np.diff(bucket, prepend=-1)), len(place))
        self._n_genes = 0

    def __len__(self) -> int:
        return len(self._starts) - 1

    def add(self, block: sp.csr_matrix, place: np.ndarray) -> None:
        """Put cells into their buckets."""
        self._n_genes = block.shape[1]
        order = np.argsort(place)
        block, place = block[order], place[order]
        cuts = np.searchsorted(place, self._starts)
        for bucket in np.flatnonzero(np.diff(cuts)).tolist():
            rows = slice(cuts[bucket], cuts[bucket + 1])
            some = block[rows]
            content = (place[rows], np.diff(some.indptr), some.indices, some.data)
            for (what, dtype), values in zip(_KEPT_OF_CELLS.items(), content, strict=True):
                with (self._folder / f"{bucket}.{what}").open("ab") as file:
                    values.astype(dtype).tofile(file)

    def in_order(self) -> Iterator[sp.csr_matrix]:
        """One bucket after the other, its cells in order; its files are gone then."""
        for bucket in range(len(self)):
            paths = {self._folder / f"{bucket}.{what}": dtype for what, dtype in _KEPT_OF_CELLS.items()}
            place, counts, columns, values = (np.fromfile(path, dtype=dtype) for path, dtype in paths.items())
            indptr = np.append(0, np.cumsum(counts))
            yield sp.csr_matrix((values, columns, indptr), shape=(len(place), self._n_genes))[np.argsort(place)]
            for path in paths:
                path.unlink()
