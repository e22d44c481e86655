"""Expression of cells with their labels: the common input of scores, baselines and checks.

Shapes: **C** cells, **G** genes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scvi_tahoe._constants import ALL_CONTEXT
from scvi_tahoe._labels import verify_labels, verify_unique
from scvi_tahoe._matrices import trusted_matrix, verify_fits

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import DTypeLike, NDArray

#: a dense array, rows selected from one, or a CSR matrix of floats; type checkers cannot tell what
#: ``scipy.sparse.issparse`` can
Matrix: TypeAlias = Any

#: cells copied at once
_CHUNK = 512


class RowSelection:
    """Rows of a dense matrix in any order and number, copied only when they are asked for.

    Indexing and :func:`numpy.asarray` give arrays, equal to those of a copy; everything else that an array can do is
    left out, so that nobody copies all rows without saying so.
    """

    def __init__(self, matrix: NDArray[np.floating] | RowSelection, rows: NDArray[np.intp]) -> None:
        self._rows: NDArray[np.intp] = matrix._rows[rows] if isinstance(matrix, RowSelection) else rows
        self._matrix: NDArray[np.floating] = matrix._matrix if isinstance(matrix, RowSelection) else matrix
        self.shape, self.dtype = (len(self._rows), self._matrix.shape[1]), self._matrix.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: slice | NDArray[np.intp]) -> NDArray[np.floating]:
        rows = self._rows[key]
        if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
            return self._matrix[rows[0] : rows[0] + len(rows)]  # a slice copies nothing
        return self._matrix[rows]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("Selected rows lie apart in memory: an array of them is a copy.")
        return self._matrix[self._rows].astype(self.dtype if dtype is None else dtype, copy=False)


@dataclass(frozen=True)
class CellTable:
    """Cells with one perturbation and one context each."""

    #: log1p expression, ``[C, G]``: dense, selected rows of a dense matrix, or CSR. Shared with the AnnData it
    #: came from, hence never written to
    expression: Matrix
    #: perturbation label of each cell, ``[C]``
    perturbation: NDArray[np.str_]
    #: context label of each cell, ``[C]``; one constant label if the data have none
    context: NDArray[np.str_]
    #: gene names, ``[G]``, unique
    genes: NDArray[np.str_]
    #: cell names, ``[C]``
    names: NDArray[np.str_]

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.perturbation)

    @property
    def values(self) -> NDArray[np.floating]:
        """Stored values: all of a dense matrix, those of a sparse one that are not zero."""
        return self.expression.data if sp.issparse(self.expression) else np.asarray(self.expression)

    @cached_property
    def rows(self) -> dict[tuple[str, str], NDArray[np.intp]]:
        """Rows of each (context, perturbation), sorted by both labels, each ascending."""
        grouped = pd.DataFrame({"context": self.context, "perturbation": self.perturbation}).groupby(
            ["context", "perturbation"], sort=True
        )
        indices: dict[Any, Any] = dict(grouped.indices)
        return {(str(c), str(p)): np.sort(np.asarray(rows, dtype=np.intp)) for (c, p), rows in indices.items()}

    @property
    def contexts(self) -> tuple[str, ...]:
        """Sorted context labels."""
        return tuple(dict.fromkeys(context for context, _ in self.rows))

    def perturbations(self, context: str, *, control: str) -> tuple[str, ...]:
        """Sorted perturbation labels of one context, control left out."""
        return tuple(p for c, p in self.rows if c == context and p != control)

    def block(self, context: str, perturbation: str) -> Matrix:
        """Expression of one condition, ``[cells of it, G]``; a KeyError if no cell has these labels."""
        rows = self.rows.get((context, perturbation))
        if rows is None:
            raise KeyError(f"No cell of perturbation {perturbation!r} in context {context!r}.")
        if rows[-1] - rows[0] + 1 == len(rows):  # contiguous: a slice copies nothing
            return self.expression[rows[0] : rows[-1] + 1]
        return self.expression[rows]

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_], *, copy: bool = True) -> CellTable:
        """Cells of the given rows, in their order; the table itself if these are all of its cells.

        Without ``copy``, rows of dense expression are copied only when they are asked for.
        """
        places = np.arange(self.n_cells)[rows]
        if np.array_equal(places, np.arange(self.n_cells)):
            return self
        lazy = not copy and not sp.issparse(self.expression)
        expression = RowSelection(self.expression, places) if lazy else self.expression[places]
        return CellTable(expression, self.perturbation[places], self.context[places], self.genes, self.names[places])

    def of_context(self, context: str) -> CellTable:
        """Cells of one context; dense expression is not copied."""
        return self.take(self.context == context, copy=False)

    def to_adata(self, *, perturbation_key: str, context_key: str | None = None) -> AnnData:
        """AnnData with plain labels: what scanpy, cell-eval and :func:`~scvi_tahoe.evaluate.evaluate` take."""
        from anndata import AnnData

        # plain categories made anew: an unused one makes the DE step of cell-eval fail
        columns = {perturbation_key: pd.Categorical(self.perturbation)}
        if context_key is not None:
            columns[context_key] = pd.Categorical(self.context)
        obs = pd.DataFrame(columns, index=pd.Index(self.names.astype(object)))
        expression = self.expression if sp.issparse(self.expression) else np.asarray(self.expression)
        return AnnData(expression, obs=obs, var=pd.DataFrame(index=pd.Index(self.genes.astype(object))))


def dense(matrix: Matrix) -> NDArray[np.floating]:
    """Return the matrix as a dense array."""
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def concatenate(
    first: CellTable, second: CellTable, rows: NDArray[np.bool_] | NDArray[np.intp] | None = None
) -> CellTable:
    """Stack a table and all or some cells of a second; names are renumbered. Sparse only if both are."""
    chosen = np.arange(second.n_cells)[slice(None) if rows is None else rows]
    n_cells = first.n_cells + len(chosen)
    if sp.issparse(first.expression) and sp.issparse(second.expression):
        expression = sp.vstack([first.expression, second.expression[chosen]], format="csr")
    else:
        # filled in parts: the selection of a large matrix must not exist beside the result
        dtype = np.result_type(first.expression.dtype, second.expression.dtype)
        expression = np.empty((n_cells, len(first.genes)), dtype=dtype)
        expression[: first.n_cells] = dense(first.expression)
        for start in range(0, len(chosen), _CHUNK):
            part = chosen[start : start + _CHUNK]
            expression[first.n_cells + start : first.n_cells + start + len(part)] = dense(second.expression[part])
    return CellTable(
        expression,
        np.concatenate([first.perturbation, second.perturbation[chosen]]),
        np.concatenate([first.context, second.context[chosen]]),
        first.genes,
        np.array([f"cell_{i}" for i in range(n_cells)]),
    )


def cells_from_adata(
    adata: AnnData, *, perturbation_key: str, context_key: str | None = None, layer: str | None = None, role: str
) -> CellTable:
    """Read cells and labels from AnnData, in memory or in a file; ``role`` names the object in messages."""
    from anndata import AnnData

    if not isinstance(adata, AnnData):
        raise TypeError(f"The {role} must be AnnData, got {type(adata).__name__}.")
    perturbation = _labels(adata, perturbation_key, role)
    context = np.full(adata.n_obs, ALL_CONTEXT) if context_key is None else _labels(adata, context_key, role)
    verify_unique(adata.var_names, "gene", f" in the {role}; call adata.var_names_make_unique() on both sides")
    if 0 in adata.shape:
        raise ValueError(f"The {role} has no {'cells' if adata.n_obs == 0 else 'genes'}.")
    genes, names = (labels.to_numpy().astype(str) for labels in (adata.var_names, adata.obs_names))
    return CellTable(_expression(adata, layer, role), perturbation, context, genes, names)


def _labels(adata: AnnData, key: str, role: str) -> NDArray[np.str_]:
    if key not in adata.obs:
        raise KeyError(f"The {role} has no obs column {key!r}; its columns are {list(adata.obs.columns)}.")
    column = adata.obs[key]
    verify_labels(column, f"obs[{key!r}] of the {role}", may_lack=True)
    if column.isna().any():
        raise ValueError(
            f"{int(column.isna().sum())} of {len(column)} cells of the {role} have no label in obs[{key!r}]; "
            f"drop them first: adata[adata.obs[{key!r}].notna()]."
        )
    return column.astype(str).to_numpy(dtype=object).astype(str)


def _expression(adata: AnnData, layer: str | None, role: str) -> Matrix:
    if layer is not None and layer not in adata.layers:
        raise KeyError(f"The {role} has no layer {layer!r}; its layers are {[*filter(None, adata.layers)]}.")
    matrix: Matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        raise ValueError(f"The {role} has no expression: X is None. Name the layer that holds it with layer=...")
    verify_fits(matrix, f"cells of the {role}")
    matrix = matrix.to_memory() if hasattr(matrix, "to_memory") else matrix  # CSR in a file
    matrix = trusted_matrix(matrix, f"The expression of the {role}", adata.shape)
    matrix = matrix.tocsr() if sp.issparse(matrix) else np.asarray(matrix[:])  # dense in a file is read by the slice
    if matrix.dtype not in (np.float32, np.float64):
        # numba, which the DE step uses, knows no float16; integers are checked for scale later, as floats
        matrix = matrix.astype(np.float32)
    if sp.issparse(matrix) and np.count_nonzero(matrix.data) < matrix.nnz:  # zeros that the DE step refuses
        matrix = matrix.copy()
        matrix.eliminate_zeros()
    return matrix


def align_genes(cells: CellTable, genes: NDArray[np.str_], *, role: str) -> CellTable:
    """Return the cells over ``genes`` in that order; the cells themselves if nothing changes."""
    if np.array_equal(cells.genes, genes):
        return cells
    columns = pd.Index(cells.genes).get_indexer(pd.Index(genes))
    missing = genes[columns < 0]
    if len(missing):
        guess = ""
        if len(missing) == len(genes) == len(cells.genes):
            guess = " Not one name is shared: are they of another kind (Ensembl, symbols)?"
        elif len(missing) == len(genes):
            guess = " It looks like a cell embedding: pass the gene output."
        raise ValueError(
            f"The {role} lacks {len(missing)} of the {len(genes)} genes of the reference (first "
            f"{missing[:3].tolist()}); it has {len(cells.genes)} columns.{guess} Predict the same genes, or subset the "
            "reference to those that you want scored."
        )
    return replace(cells, expression=cells.expression[:, columns], genes=genes)
