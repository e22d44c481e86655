"""Tables of perturbation embeddings: from files, of which nothing is run, and as model folders hold them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_tahoe._arguments import checked
from scvi_tahoe._matrices import verify_magnitude
from scvi_tahoe.data import Component, Composition, EmbeddingTable, TableFusion
from scvi_tahoe.files import MALFORMED, UnsafeFileError, one_line, read_torch
from scvi_tahoe.pretrained._arc_files import vectors_of
from scvi_tahoe.pretrained._table_files import read_arrays, read_parquet, read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scvi_tahoe.pretrained._pretrained_model import PretrainedModel

_LIMIT = 20_000_000_000


@checked()
def read_embedding_table(
    path: str | Path, labels: Iterable[str] | None = None, *, header: bool | None = None
) -> dict[str, np.ndarray]:
    """Read a table of perturbation embeddings from a file of any origin; code in it is never run.

    Parameters
    ----------
    path
        By its ending, one of:

        * ``.pt``, ``.pth``, ``.torch`` - a mapping of label to vector, as ``torch.save`` writes it; pickled code is
          refused, not run
        * ``.npz`` - arrays ``names`` and ``matrix``, or one array per label
        * ``.csv``, ``.tsv``, ``.parquet`` - labels in the first column (parquet: the index), numbers in the others
    labels
        Keep the rows of these labels; labels that the file lacks are left out. If None, all are kept.
    header
        Whether the first line of a CSV or TSV file names its columns. If None, it does if it has text where numbers
        belong, an empty first field, or counts the columns (``0,1,2``).

    Returns
    -------
    ``{"names": labels, "matrix": float32 [labels, P]}``, to be put into ``adata.uns`` for
    ``setup_anndata(..., perturbation_embedding_key=...)``. It survives ``write_h5ad``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    UnsafeFileError
        If it is damaged, or holds anything but names and numbers.
    ValueError
        If the ending is unknown, rows differ in width, are not finite or above 1e12, or no label is left.

    Examples
    --------
    >>> adata.uns["esm2"] = read_embedding_table("protein_embeddings.pt", labels=adata.obs["target_gene"].unique())
    """
    path = Path(path)
    vectors = read_vectors(path, header=header)
    if labels is not None:
        wanted = dict.fromkeys(map(str, labels))
        vectors = {name: vectors[name] for name in wanted if name in vectors}
    widths = sorted({len(vector) for vector in vectors.values()})
    if len(widths) != 1:
        found = f"rows of {len(widths)} widths: {widths[:5]}" if widths else "none of the labels"
        raise ValueError(f"{path.name} has {found}; a table has a row of the same width for every label.")
    matrix = np.stack(list(vectors.values()))
    verify_magnitude(matrix, path.name)
    return {"names": np.array(list(vectors), dtype=object), "matrix": matrix}


def read_vectors(path: Path, *, header: bool | None = None) -> dict[str, np.ndarray]:
    """Return the rows of a table by label, as :func:`read_embedding_table` reads them, whatever their widths."""
    if path.suffix not in _READERS:
        raise ValueError(f"{path.name} is not a table that can be read; allowed endings are {', '.join(_READERS)}.")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    return _READERS[path.suffix](path, header)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    arrays = read_arrays(path)
    if set(arrays) == {"names", "matrix"}:
        arrays = _named(path, arrays["names"], arrays["matrix"])
    return vectors_of(path.name, _numbers(arrays, path))


def _read_rows(path: Path, names: list[str], matrix: np.ndarray) -> dict[str, np.ndarray]:
    return vectors_of(path.name, _numbers(_named(path, names, matrix), path))


def _named(path: Path, names: Any, matrix: np.ndarray) -> dict[str, np.ndarray]:
    labels = [str(name) for name in np.atleast_1d(names)]
    if matrix.ndim != 2 or len(matrix) != len(labels) or len(set(labels)) < len(labels):
        raise ValueError(
            f"{path.name} has {len(labels)} names, {len(set(labels))} of them different, and a matrix of shape "
            f"{matrix.shape}; one row a name is needed."
        )
    return dict(zip(labels, matrix, strict=True))


def _numbers(vectors: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    if any(np.iscomplexobj(vector) for vector in vectors.values()):
        raise ValueError(f"{path.name} holds numbers with imaginary parts; real numbers are needed.")
    try:
        with np.errstate(over="ignore"):  # such numbers are refused by their size
            return {name: np.asarray(vector, dtype=np.float32) for name, vector in vectors.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path.name} holds something else than numbers: {one_line(error)}") from None


_READERS: dict[str, Callable[[Path, bool | None], dict[str, np.ndarray]]] = {
    **dict.fromkeys((".pt", ".pth", ".torch"), lambda path, _: vectors_of(path.name, read_torch(path, limit=_LIMIT))),
    ".npz": lambda path, _: _read_npz(path),
    **dict.fromkeys((".csv", ".tsv"), lambda path, header: _read_rows(path, *read_text(path, header=header))),
    ".parquet": lambda path, _: _read_rows(path, *read_parquet(path)),
}


def flat_table(table: EmbeddingTable) -> EmbeddingTable:
    """Return the table as a folder holds it; one whose rows are composed begins with the components themselves."""
    composition = table.composition
    if composition is None:
        return table
    components = composition.components.names
    labels = [i for i, name in enumerate(table.names) if name not in composition.components.row_of]
    names = (*components, *(table.names[i] for i in labels))
    matrix = np.concatenate([composition.rows((Component(name),) for name in components), table.matrix[labels]])
    return EmbeddingTable(names, matrix, columns=composition.columns)


def table_settings(table: EmbeddingTable) -> dict[str, Any]:
    """Return how a table's rows were made, as plain values that are stored in a folder with the rows."""
    components, composition = table.components, None
    if table.composition is not None:
        size = {"n_rows": len(components.names), "width": components.width, "labels": list(table.names)}
        composition = {**table.composition.to_dict(), **size}
    fusion = components.fusion
    moments = None if fusion is None else {k: [a.tolist() for a in v] for k, v in fusion.to_dict().items()}
    return {"composition": composition, "fusion": moments}


def composed_table(weights: PretrainedModel) -> EmbeddingTable:
    """Return the table that was written as :func:`flat_table` and :func:`table_settings` of it."""
    table, how, moments = weights.perturbations, weights.extra.get("composition"), weights.extra.get("fusion")
    try:
        fusion = None if moments is None else TableFusion.from_dict(moments)
        if how is None:
            return replace(table, fusion=fusion)
        names = table.names[: how["n_rows"]]
        one_hot = table.columns is not None
        matrix = table.matrix[: how["n_rows"], : len(names) if one_hot else how["width"]]
        components = EmbeddingTable(names, np.ascontiguousarray(matrix), one_hot, fusion=fusion)
        composition = Composition.from_dict({k: how[k] for k in ("reading", "combination", "n_parts")}, components)
        return EmbeddingTable.composed(composition, how["labels"])
    except MALFORMED as error:
        raise UnsafeFileError(f"{weights.provenance.source} does not say how its table was made: {error!r}") from None
