"""Readers of tables from strangers: text, npz and parquet whose content is in proportion to the size of the file."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_tahoe.files import MEGABYTE, UnsafeFileError, one_line, reading, verify_text

if TYPE_CHECKING:
    from pathlib import Path

_LIMIT = 20_000_000_000
#: How much larger than its file a table may be: compression of real tables stays below, that of zip bombs does not.
_MOST_COLUMNS = 100_000  # pandas takes a tenth of a millisecond for each
_EXPANSION, _FREE = 40, 256 * MEGABYTE


def verify_expansion(path: Path, n_bytes: int) -> None:
    """Refuse a file that claims a content out of proportion to its size."""
    allowed = _FREE + _EXPANSION * path.stat().st_size
    if n_bytes > allowed:
        raise UnsafeFileError(
            f"{path.name} of {path.stat().st_size:,} bytes claims a content of {n_bytes:,}; a file of its size can "
            f"have {allowed:,}. Save a table of your own without compression."
        )


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file."""
    with reading(path, _LIMIT), np.load(path, allow_pickle=False) as archive:
        records = archive.zip.infolist()
        verify_expansion(path, sum(record.file_size for record in records))
        for record in records:
            with archive.zip.open(record) as stream:
                _verify_array(stream, record)
        return dict(archive)


def _verify_array(stream: Any, record: Any) -> None:
    """Refuse an array whose header claims more than its record holds, for which numpy would take memory first."""
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in header:
        raise UnsafeFileError(f"{record.filename} is an array of a version that tables have no need of.")
    shape, _, dtype = header[version](stream)
    if dtype.hasobject:
        raise UnsafeFileError(f"{record.filename} needs allow_pickle: it holds objects, not numbers or text.")
    if math.prod(shape) * dtype.itemsize > record.file_size:
        raise UnsafeFileError(f"{record.filename} claims the shape {shape} and has {record.file_size:,} bytes.")


def read_text(path: Path, *, header: bool | None) -> tuple[list[str], np.ndarray]:
    """Return labels and numbers of a CSV or TSV file; every label as it is written, ``NA`` too."""
    separator = "\t" if path.suffix == ".tsv" else ","
    types: defaultdict[Any, type] = defaultdict(lambda: np.float64, {0: str})
    verify_text(path)
    with reading(path, _LIMIT):
        first, second = _first_lines(path, separator)
        has_header = _is_header(first) if header is None else header
        words = [text for text in (second if has_header else first)[1:] if text.strip() and not _is_number(text)]
        if words:  # pandas would make numbers of True and False
            raise UnsafeFileError(f"it holds something else than numbers: {words[0][:40]!r}.")
        columns = list(range(len(first)))
        empty: Any = {column: [""] for column in columns[1:]}
        try:
            frame = pd.read_csv(
                path.absolute(), sep=separator, header=None, names=columns, skiprows=int(has_header), index_col=False,
                dtype=types, keep_default_na=False, na_values=empty, encoding="utf-8",
            )  # fmt: skip
        except ValueError as error:
            raise UnsafeFileError(f"it holds something else than numbers: {one_line(error)}.") from None
    return frame[0].tolist(), frame[columns[1:]].to_numpy()


def _first_lines(path: Path, separator: str) -> tuple[list[str], list[str]]:
    """Return the fields of the first line, and of the next one that is not empty."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = csv.reader(stream, delimiter=separator)
            first, second = next(lines, []), next((line for line in lines if line), [])
    except csv.Error as error:
        raise UnsafeFileError(f"it is not a table of text: {one_line(error)}.") from None
    if not first:
        raise UnsafeFileError("its first line is empty.")
    if len(first) > _MOST_COLUMNS:
        raise UnsafeFileError(f"it has {len(first):,} columns, and at most {_MOST_COLUMNS:,} are read from text; save "
                              "it as parquet or npz.")  # fmt: skip
    return first, second


def _is_header(fields: list[str]) -> bool:
    """Return whether the first line names columns: it has text where numbers belong, or counts the columns."""
    numbers = fields[1:]
    return fields[:1] == [""] or not all(map(_is_number, numbers)) or numbers == [str(i) for i in range(len(numbers))]


def _is_number(text: str) -> bool:
    try:
        complex(text.strip())  # imaginary parts are refused as numbers, not lost as names
    except ValueError:
        return False
    return True


def read_parquet(path: Path) -> tuple[list[str], np.ndarray]:
    """Return labels and numbers of a parquet file, after comparing what it claims with its size."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading(path, _LIMIT):
        schema, n_rows = pq.read_schema(path), pq.read_metadata(path).num_rows
        numbers = [f.name for f in schema if pa.types.is_floating(f.type) or pa.types.is_integer(f.type)]
        others = [field.name for field in schema if field.name not in numbers]
        index = (schema.pandas_metadata or {}).get("index_columns", [])
        if wrong := [name for name in others if name not in index]:
            raise UnsafeFileError(f"its columns {wrong[:3]} hold something else than numbers.")
        verify_expansion(path, 8 * n_rows * max(1, len(schema)))
        if others:  # labels are read without repeating any, as a dictionary may stand for any amount of text
            labels = pq.read_table(path, columns=others, read_dictionary=others)
            for name in others:
                n_distinct = len(labels[name].unify_dictionaries().combine_chunks().dictionary)
                if n_rows and n_distinct < n_rows:
                    raise UnsafeFileError(f"it has {n_rows:,} rows and {n_distinct:,} different labels.")
        frame = pd.read_parquet(path.absolute())
    return [str(name) for name in frame.index], frame.to_numpy()
