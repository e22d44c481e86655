"""What is computed once for the observed cells of a context, in memory and, for large tables, on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import scipy.sparse as sp

from scvi_tahoe.evaluate._cells import RowSelection
from scvi_tahoe.evaluate._differential_expression import differential_expression
from scvi_tahoe.evaluate._group_statistics import GroupStatistics, gene_weights, group_statistics
from scvi_tahoe.files import atomic_write, atomic_write_text

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    import polars as pl
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: bytes of one checksum
_BLOCK = 1 << 16
#: selected rows copied at once
_ROWS = 512
#: packages whose release changes scores
_PACKAGES = (
    *("scvi-tahoe", "cell-eval", "cell-eval2", "pdex", "gpudge"),
    *("numpy", "scipy", "anndata", "scanpy", "scikit-learn"),
)


def installed_versions() -> dict[str, str]:
    """Releases of the packages that scores depend on; those that are not installed are left out."""
    found = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def content_hash(cells: CellTable) -> str:
    """Hash over expression, labels and genes; equal content in another dtype or layout has another hash."""
    # CRC-32 finds every change of a value, and costs a fraction of a cryptographic hash of the matrix
    digest = hashlib.blake2b(digest_size=32)
    for labels in (cells.perturbation, cells.context, cells.genes):
        digest.update("\x1f".join(labels).encode())
    matrix = cells.expression
    parts = (matrix.data, matrix.indices, matrix.indptr) if sp.issparse(matrix) else (matrix,)
    for part in parts:
        digest.update(f"{part.dtype}{part.shape}".encode())
        for block in _stored(part):
            digest.update(zlib.crc32(block).to_bytes(4, "little"))
    return digest.hexdigest()


def _stored(part: NDArray[Any] | RowSelection) -> Iterator[memoryview]:
    """Bytes of a matrix, row by row, in blocks; selected rows are copied a few at a time."""
    step = _ROWS if isinstance(part, RowSelection) else max(len(part), 1)
    rest = b""
    for first in range(0, len(part), step):
        stored = memoryview(np.ascontiguousarray(part[first : first + step])).cast("B")
        if rest:
            stored = memoryview(rest + stored)
        whole = len(stored) - len(stored) % _BLOCK
        for start in range(0, whole, _BLOCK):
            yield stored[start : start + _BLOCK]
        rest = bytes(stored[whole:])
    if rest:
        yield memoryview(rest)


class TruthCache:
    """Tables computed once for one truth and reused for every model scored against it."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._memory: dict[str, pl.DataFrame] = {}

    def table(self, key: dict[str, object], compute: Callable[[], pl.DataFrame]) -> pl.DataFrame:
        """Return the table of a key, which names all it depends on; compute it if it is not kept intact."""
        name = _digest(key)
        if name not in self._memory:
            self._memory[name] = compute() if self.folder is None else self._kept(self.folder / name, key, compute)
        return self._memory[name]

    def _kept(self, path: Path, key: dict[str, object], compute: Callable[[], pl.DataFrame]) -> pl.DataFrame:
        import polars as pl

        kept, record = path.with_suffix(".parquet"), path.with_suffix(".json")
        if kept.exists() and record.exists():
            try:
                recorded = json.loads(record.read_text())
                if _digest(recorded["key"]) != path.name:
                    raise ValueError("it was made for something else")
                if hashlib.sha256(kept.read_bytes()).hexdigest() != recorded["sha256"]:
                    raise ValueError("it does not match its checksum")
                return pl.read_parquet(kept)
            except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
                logger.warning("Cached table %s is computed again: %s.", kept, error)
        table = compute()
        with atomic_write(kept) as partial:
            table.write_parquet(partial)
            checksum = hashlib.sha256(partial.read_bytes()).hexdigest()
        atomic_write_text(record, json.dumps({"sha256": checksum, "key": key}, sort_keys=True, indent=1))
        return table


def _digest(key: object) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


@dataclass(eq=False)
class ContextTruth:
    """Observed cells of one context and what follows from them, each part computed when first asked for."""

    #: observed cells of one context, controls included
    cells: CellTable
    #: label of the control cells
    control: str
    #: keeps differential expression
    cache: TruthCache
    #: how differential expression is tested
    de_backend: Literal["cpu", "gpu"]
    num_threads: int | None
    progress: bool

    def __post_init__(self) -> None:
        (self.context,) = self.cells.contexts
        self.perturbations = self.cells.perturbations(self.context, control=self.control)
        self._computed: dict[Callable[..., Any], Any] = {}

    @cached_property
    def statistics(self) -> GroupStatistics:
        """Means, variances and zeros of every perturbation."""
        return group_statistics(self.cells, self.context, self.perturbations, control=self.control)

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """Gene weights of the weighted scores, ``[P, G]``."""
        return gene_weights(self.statistics)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the cells and the control label."""
        return content_hash(self.cells) + f"-{self.control}"

    @cached_property
    def differential_expression(self) -> pl.DataFrame:
        """Differential expression of the observed cells."""
        key = {"table": "observed de", "truth": self.fingerprint, "backend": self.de_backend}
        return self.cache.table({**key, "versions": installed_versions()}, lambda: self.test(self.cells))

    @property
    def controls(self) -> CellTable:
        """Observed control cells."""
        return self.cells.take(self.cells.rows[self.context, self.control])

    def test(self, cells: CellTable, *, controls: CellTable | None = None) -> pl.DataFrame:
        """Test differential expression of other cells of this context under the same settings."""
        return differential_expression(
            cells,
            control=self.control,
            controls=controls,
            backend=self.de_backend,
            num_threads=self.num_threads,
            progress=self.progress,
        )

    def once(self, compute: Callable[[CellTable], T]) -> T:
        """Return what a function makes of the observed cells; it is called for the first prediction only."""
        if compute not in self._computed:
            self._computed[compute] = compute(self.cells)
        return self._computed[compute]

    def halves(self, *, split_controls: bool, seed: int) -> tuple[ContextTruth, CellTable]:
        """Split the cells of every perturbation into two disjoint halves of ``n // 2`` cells: a truth and a prediction.

        Unless they are split, too, all controls are in both; with controls split these are the halves of cell-eval
        0.8.2 (``compute_ceiling``) for the same seed.
        """
        rng = np.random.default_rng(seed)
        first, second = [], []
        for (_, perturbation), rows in self.cells.rows.items():
            shuffled = rng.permutation(rows)
            if perturbation == self.control and not split_controls:
                first.append(rows)
                second.append(rows)
            elif (n := len(rows) // 2) > 0:
                first.append(shuffled[:n])
                second.append(shuffled[n : 2 * n])
        observed, predicted = (self.cells.take(np.concatenate(rows), copy=False) for rows in (first, second))
        if not observed.perturbations(self.context, control=self.control) or self.control not in observed.perturbation:
            raise ValueError(
                f"Context {self.context!r} has too few cells to split into halves, so it has no ceiling; "
                "pass ceiling=False to score without one."
            )
        return replace(self, cells=observed, cache=TruthCache()), predicted
