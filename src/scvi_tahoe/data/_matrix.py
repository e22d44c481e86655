"""Matrices of cells x genes, in memory or on disk: columns matched by gene name, rows read when asked for.

Two things make reading from disk quick where cells are sorted by condition: rows that lie close to each other are read
in one go, as a chunk is decoded as a whole anyway, and annbatch reads all such runs of a request at once.
"""

from __future__ import annotations

import logging
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from anndata.abc import CSRDataset

from scvi_tahoe._arguments import checked
from scvi_tahoe._matrices import verified_sparse
from scvi_tahoe._names import nearest_names
from scvi_tahoe.files import damaged

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True)
class GeneAlignment:
    """Which column of new data each gene of the model is in."""

    columns: np.ndarray  #: for each gene of the model its column in the data; -1 where the data lack it
    missing: tuple[str, ...]  #: genes of the model that the data lack. They enter as zeros.
    surplus: int  #: number of genes in the data that the model does not know. They are left out.

    @property
    def is_identity(self) -> bool:
        """Whether the data have exactly the model's genes in its order."""
        return self.surplus == 0 and np.array_equal(self.columns, np.arange(len(self.columns)))

    def apply(self, block: Any) -> Any:
        """Order the columns of a block of cells as the model does; dense stays dense, and CSR stays CSR."""
        if self.is_identity:
            return block
        if not self.missing:
            return block[:, self.columns]
        present = self.columns >= 0
        if sp.issparse(block):
            place = sp.csr_matrix(
                (np.ones(present.sum(), block.dtype), (self.columns[present], np.flatnonzero(present))),
                shape=(block.shape[1], len(self.columns)),
            )
            return (block @ place).tocsr()
        out = np.zeros((block.shape[0], len(self.columns)), dtype=block.dtype)
        out[:, present] = np.asarray(block)[:, self.columns[present]]
        return out

    def __str__(self) -> str:
        shown = ", ".join(self.missing[:5]) + (" ..." if len(self.missing) > 5 else "")
        missing = f", {len(self.missing)} missing and taken as zero ({shown})" if self.missing else ""
        return f"{len(self.columns) - len(self.missing)} genes matched by name{missing}, {self.surplus} left out"


@checked()
def align_genes(
    model_genes: Sequence[str] | np.ndarray, data_genes: Sequence[str] | np.ndarray, *, max_missing: float = 0.1
) -> GeneAlignment:
    """Match the genes of data to those of a model; ValueError if a fraction above ``max_missing`` is missing."""
    position = {str(g): i for i, g in enumerate(data_genes)}
    columns = np.array([position.get(str(g), -1) for g in model_genes], dtype=np.int64)
    missing = tuple(str(g) for g, c in zip(model_genes, columns, strict=True) if c < 0)
    if len(missing) > max_missing * len(columns):
        raise ValueError(
            f"the data lack {len(missing)} of the model's {len(columns)} genes, e.g. {list(missing[:3])}"
            f"{nearest_names(missing[0], list(position)[:20000])}; the data have e.g. {list(position)[:3]}. "
            "Bring the gene names to the model's identifiers, or accept zeros with max_missing_genes (now "
            f"{max_missing:g})."
        )
    return GeneAlignment(columns, missing, len(data_genes) - int((columns >= 0).sum()))


logger = logging.getLogger(__name__)
#: entries between two rows that are read along, where the chunks of a matrix are not known
_GAP = 2**14


def is_sharded(matrix: Any) -> bool:
    """Whether a matrix is the expression of a folder that :func:`read_store` opened, or any CSR in zarr."""
    return isinstance(matrix, CSRDataset) and matrix.backend == "zarr"


def in_memory(matrix: Any) -> Any:
    """Read a matrix whole: numpy, or CSR."""
    if not (isinstance(matrix, np.ndarray) or sp.issparse(matrix)):
        matrix = matrix.to_memory() if hasattr(matrix, "to_memory") else np.asarray(matrix[:])
    return matrix.tocsr() if sp.issparse(matrix) else matrix


def without_duplicates(matrix: Any) -> Any:
    """Add up the entries of one place in a CSR matrix: scattering its rows would keep the last one only."""
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    return matrix


@contextmanager
def fast_codecs() -> Iterator[None]:
    """Let zarr arrays that are opened here be decoded by zarrs where it is installed: several times as fast."""
    if find_spec("zarrs") is None:
        yield
        return
    import zarr
    import zarrs  # noqa: F401  registers itself

    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        yield


def dense_rows(matrix: Any, rows: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    """Read rows of any matrix, ascending, as a dense array."""
    matrix = matrix.to_numpy() if hasattr(matrix, "to_numpy") else DiskRows(matrix) if is_sharded(matrix) else matrix
    block = matrix[rows]
    if sp.issparse(block):  # of one in memory the border knows the indices already
        block = (block if sp.issparse(matrix) else verified_sparse(block, "the expression")).toarray()
    return np.asarray(block, dtype=dtype)


def runs_of(rows: np.ndarray, indptr: np.ndarray, gap: int) -> np.ndarray:
    """Cover sorted rows with runs, int64 ``[runs, 2]``: first row, and the one after the last.

    Two rows with at most ``gap`` entries between them come into one run.
    """
    apart = np.flatnonzero(indptr[rows[1:]] - indptr[rows[:-1] + 1] > gap) + 1
    return np.stack([rows[np.append(0, apart)], rows[np.append(apart, len(rows)) - 1] + 1], axis=1)


class DiskRows:
    """Rows of a matrix on disk (a backed h5ad matrix, or CSR in zarr), read when asked for."""

    def __init__(self, matrix: Any, alignment: GeneAlignment | None = None) -> None:
        self._alignment = alignment
        self._read = _row_reader(matrix)
        self.shape = (matrix.shape[0], matrix.shape[1] if alignment is None else len(alignment.columns))

    def __getitem__(self, rows: np.ndarray) -> Any:
        """Rows in any order, repeated or not: numpy, or CSR in which every place has one entry."""
        distinct, back = np.unique(rows, return_inverse=True)
        block = self.distinct(distinct)
        return block if len(distinct) == len(rows) and (distinct == rows).all() else block[back]

    def distinct(self, rows: np.ndarray) -> Any:
        """Read rows that are sorted, each once."""
        if not len(rows):
            return sp.csr_matrix((0, self.shape[1]), dtype=np.float32)
        block = self._read(rows)
        block = verified_sparse(block.tocsr(), "the file") if sp.issparse(block) else block
        block = block if self._alignment is None else self._alignment.apply(block)
        return without_duplicates(block) if sp.issparse(block) else block

    def n_entries(self, rows: np.ndarray) -> int | None:
        """Entries of these rows; None where that is not known without reading them."""
        indptr = getattr(self._read, "indptr", None)
        return None if indptr is None else int((indptr[rows + 1] - indptr[rows]).sum())


def _row_reader(matrix: Any) -> Any:
    """Choose how to read sorted rows of a matrix, each once."""
    if not is_sharded(matrix):
        return matrix.__getitem__
    if find_spec("annbatch") is not None:
        return _AnnbatchRows(matrix)
    too_old = ", which needs Python 3.12 or newer" if sys.version_info < (3, 12) else ""
    logger.warning(
        "rows are read from disk without annbatch, many times slower; install it with: "
        f"pip install 'scvi-tahoe[annbatch]'{too_old}."
    )
    return _ZarrRows(matrix)


class _ZarrRows:
    """Rows of CSR in zarr as anndata reads them, run by run."""

    def __init__(self, matrix: CSRDataset) -> None:
        import anndata.io
        import zarr

        with fast_codecs():  # opened anew, so that its arrays are decoded as is configured now
            group = zarr.open_group(matrix.group.store, path=matrix.group.path, mode="r")
            self._matrix = anndata.io.sparse_dataset(group)
            self.indptr = np.asarray(matrix.group["indptr"][:], dtype=np.int64)
        self._folder = Path(str(getattr(matrix.group.store, "root", "the store")))
        self._gap = int(getattr(matrix.group["data"], "chunks", (_GAP,))[0])

    def __call__(self, rows: np.ndarray) -> sp.csr_matrix:
        if rows[-1] >= len(self.indptr) - 1:
            raise IndexError(f"row {rows[-1]} of {len(self.indptr) - 1}.")
        runs = runs_of(rows, self.indptr, self._gap)
        with damaged(self._folder):  # a chunk that does not match its checksum
            block = self._runs(runs)
        lengths = runs[:, 1] - runs[:, 0]
        if lengths.sum() == len(rows):
            return block
        # where each run begins in the block, and the rows within it
        run = np.searchsorted(runs[:, 0], rows, side="right") - 1
        return block[np.append(0, np.cumsum(lengths))[run] + rows - runs[run, 0]]

    def _runs(self, runs: np.ndarray) -> sp.csr_matrix:
        return sp.vstack([self._matrix[int(first) : int(after)] for first, after in runs], format="csr")


class _AnnbatchRows(_ZarrRows):
    """The same through annbatch, which reads all runs at once."""

    def __init__(self, matrix: CSRDataset) -> None:
        super().__init__(matrix)
        from annbatch import Loader

        self._lock = threading.Lock()
        self._request = _requests()
        self._loader = Loader(batch_sampler=self._request, preload_to_gpu=False).add_dataset(self._matrix)
        self._answers = iter(self._loader)
        with fast_codecs():  # the loader opens its arrays when it reads for the first time
            self._runs(np.array([[0, 1]]))

    def _runs(self, runs: np.ndarray) -> sp.csr_matrix:
        with self._lock:
            self._request.rows = np.concatenate([np.arange(first, after) for first, after in runs])
            try:
                return next(self._answers)["X"]
            except BaseException:
                self._answers = iter(self._loader)  # an iteration that failed is over
                raise


def _requests() -> Any:
    """Make a sampler of annbatch's kind that yields the rows it was last given."""
    from annbatch.abc import Sampler

    class Requests(Sampler):
        rows = np.empty(0, dtype=np.int64)
        batch_size = None
        shuffle = False

        def n_batches(self, n_obs: int) -> int:
            return n_obs

        def validate(self, n_obs: int) -> None:
            pass

        def _sample(self, n_obs: int) -> Iterator[Any]:
            while True:
                yield {"requests": self.rows, "splits": [np.arange(len(self.rows))]}

    return Requests()
