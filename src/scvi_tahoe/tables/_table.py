"""A table: names, numbers, and where they come from; read, written, shuffled, and made of the largest components."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scvi_tahoe._arguments import checked
from scvi_tahoe.files import atomic_write
from scvi_tahoe.pretrained import read_embedding_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: what ``attrs`` of a table says
_ORIGIN = ("kind", "source", "licence", "detail")
_NOT_STATED = "not stated; that of the source applies"


def described(
    matrix: np.ndarray, names: Sequence[str], *, kind: str, source: str, licence: str | None, detail: str = ""
) -> pd.DataFrame:
    """Return a table that says where it comes from."""
    columns = [f"{kind.replace(' ', '_')}_{i}" for i in range(matrix.shape[1])]
    table = pd.DataFrame(
        np.asarray(matrix, dtype=np.float32), index=pd.Index(list(names), name="name"), columns=columns
    )
    table.attrs = {"kind": kind, "source": source, "licence": licence or _NOT_STATED, "detail": detail}
    return table


def largest_components(matrix: Any, n_components: int, seed: int) -> np.ndarray:
    """Return left singular vectors times singular values of a matrix, largest first, fewer than its sides."""
    from sklearn.decomposition import TruncatedSVD

    if n_components < 1:
        raise ValueError(f"n_components={n_components!r} must be 1 or more.")
    most = min(matrix.shape) - 1
    if most < 1:
        raise ValueError(f"{matrix.shape[0]} names with {matrix.shape[1]} features are too few for a table.")
    return TruncatedSVD(min(n_components, most), n_iter=7, random_state=seed).fit_transform(matrix)


def components_of_sets(sets: Sequence[set[str]], names: Sequence[str], n_components: int, seed: int) -> np.ndarray:
    """Return the largest components of membership in sets, weighted by inverse document frequency, rows of length 1."""
    row_of = {name: row for row, name in enumerate(names)}
    columns = np.repeat(np.arange(len(sets)), [len(members) for members in sets])
    rows = np.array([row_of[name] for members in sets for name in sorted(members)])
    weights = np.log(len(names) / np.array([len(members) for members in sets]))[columns]
    matrix = sp.csr_matrix((weights, (rows, columns)), shape=(len(names), len(sets)))
    length = np.sqrt(matrix.multiply(matrix).sum(1)).A1
    return largest_components(sp.diags(1 / np.maximum(length, 1e-12)) @ matrix, n_components, seed)


def existing(path: str | Path, what: str) -> Path:
    """Return the path of a file, or raise a FileNotFoundError that says what is needed."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; {what} is needed.")
    return path


@checked()
def read_table(path: str | Path, *, licence: str | None = None) -> pd.DataFrame:
    """Read a table of any origin, as :func:`~scvi_tahoe.read_embedding_table` does, as a DataFrame.

    Parameters
    ----------
    path
        ``.pt``, ``.npz``, ``.csv``, ``.tsv`` or ``.parquet``. Nothing in it is executed.
    licence
        Licence of the numbers. If None, what :func:`write_table` kept in a parquet file.

    Returns
    -------
    DataFrame ``[names, P]``; ``attrs`` has ``kind``, ``source``, ``licence`` and ``detail``.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`~scvi_tahoe.read_embedding_table`.
    """
    path = Path(path)
    found = read_embedding_table(path)
    table = described(found["matrix"], list(found["names"]), kind="matrix", source=path.name, licence=licence)
    if path.suffix == ".parquet":
        import pyarrow.parquet

        kept = json.loads((pyarrow.parquet.read_schema(path).metadata or {}).get(b"PANDAS_ATTRS", b"{}"))
        table.attrs |= {name: str(kept[name]) for name in _ORIGIN if name in kept}
    if licence is not None:
        table.attrs["licence"] = licence
    return table


@checked()
def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table, complete or not at all.

    Parameters
    ----------
    table
        A table of this module, or any DataFrame of numbers with names as index.
    path
        ``.parquet`` (which keeps origin and licence), ``.csv``, ``.tsv`` or ``.npz``.

    Raises
    ------
    ValueError
        If the ending is another one.
    """
    path = Path(path)
    writers: dict[str, Callable[[Path], Any]] = {
        ".parquet": table.to_parquet,
        ".csv": table.to_csv,
        ".tsv": lambda place: table.to_csv(place, sep="\t"),
        ".npz": lambda place: np.savez_compressed(
            place, names=np.array(table.index, dtype="U"), matrix=table.to_numpy(np.float32)
        ),
    }
    if path.suffix not in writers:
        raise ValueError(f"{path.name} cannot be written; allowed endings are {', '.join(writers)}.")
    with atomic_write(path) as partial:
        writers[path.suffix](partial)


@checked()
def describe_table(table: pd.DataFrame) -> str:
    """Return size, origin and licence of a table as text.

    Parameters
    ----------
    table
        A table of this module.
    """
    lines = [f"{len(table):,} names x {table.shape[1]:,} numbers"]
    return "\n".join(lines + [f"{name:<8} {table.attrs[name]}" for name in _ORIGIN if table.attrs.get(name)])


@checked()
def shuffled_table(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return a table whose rows are permuted among its names, which therefore carries no information.

    Parameters
    ----------
    table
        Any table.
    seed
        Random seed.
    """
    order = np.random.default_rng(seed).permutation(len(table))
    shuffled = pd.DataFrame(table.to_numpy()[order], index=table.index, columns=table.columns)
    shuffled.attrs = table.attrs | {"kind": f"{table.attrs.get('kind', 'table')}, shuffled"}
    return shuffled
