"""Tables of the truth, kept in memory and, on request, on disk; a damaged file is computed again."""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from scvi_tahoe.evaluate._cells import SelectedRows
from scvi_tahoe.files import atomic_write, atomic_write_text

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    import polars as pl
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable

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
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def content_hash(cells: CellTable) -> str:
    """Hash over expression, labels and genes; equal content in another dtype or layout has another hash.

    BLAKE2 over the labels and over the CRC-32 of every 64 KiB of the matrix. A checksum finds every change of a single
    value, and is several times faster than a cryptographic hash, which would cost more than all scores of the preset
    ``"quick"``.
    """
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


def _stored(part: NDArray[Any] | SelectedRows) -> Iterator[memoryview]:
    """Bytes of a matrix, row by row, in blocks; selected rows are copied a few at a time."""
    step = _ROWS if isinstance(part, SelectedRows) else max(len(part), 1)
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
        name = hashlib.sha256(_text(key).encode()).hexdigest()
        if name not in self._memory:
            table = self._read(name)
            if table is None:
                table = compute()
                self._write(name, key, table)
            self._memory[name] = table
        return self._memory[name]

    def _read(self, name: str) -> pl.DataFrame | None:
        if self.folder is None:
            return None
        import polars as pl

        path, record = self.folder / f"{name}.parquet", self.folder / f"{name}.json"
        if not (path.exists() and record.exists()):
            return None
        try:
            recorded = json.loads(record.read_text())
            if hashlib.sha256(_text(recorded["key"]).encode()).hexdigest() != name:
                logger.warning("Cached table %s was made for something else and is computed again.", path)
                return None
            if hashlib.sha256(path.read_bytes()).hexdigest() != recorded["sha256"]:
                logger.warning("Cached table %s does not match its checksum and is computed again.", path)
                return None
            return pl.read_parquet(path)
        except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
            logger.warning("Cached table %s cannot be read (%s) and is computed again.", path, error)
            return None

    def _write(self, name: str, key: dict[str, object], table: pl.DataFrame) -> None:
        if self.folder is None:
            return
        path, record = self.folder / f"{name}.parquet", self.folder / f"{name}.json"
        with atomic_write(path) as partial:
            table.write_parquet(partial)
            checksum = hashlib.sha256(partial.read_bytes()).hexdigest()
        atomic_write_text(record, json.dumps({"sha256": checksum, "key": key}, sort_keys=True, indent=1))


def _text(key: object) -> str:
    return json.dumps(key, sort_keys=True)
