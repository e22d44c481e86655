"""A screen as the package sees it: expression, labels, control. Read from AnnData or MuData in one place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from mudata import MuData

from scvi_tahoe._constants import ALL_CONTEXT

if TYPE_CHECKING:
    import pandas as pd

    from scvi_tahoe._compat import AnnOrMuData

__all__ = ["Labels", "Screen", "ScreenKeys", "expression_adata", "labelled_expression", "read_screen"]


@dataclass(frozen=True, kw_only=True)
class ScreenKeys:
    """Where a screen keeps its parts: the arguments of ``setup_anndata`` and ``setup_mudata``."""

    perturbation_key: str
    control: str
    layer: str | None = None
    cell_embedding_key: str | None = None
    perturbation_embedding_key: str | None = None
    context_key: str | None = None
    batch_key: str | None = None
    modalities: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # labels are compared as text, so the control of a column of numbers may be given as a number
        object.__setattr__(self, "control", str(self.control))

    @property
    def expression_modality(self) -> str | None:
        """Modality that holds the expression of a MuData, or None for AnnData."""
        return self.modalities.get("expression")

    @property
    def embedding_modality(self) -> str | None:
        """Modality that holds the cell embedding of a MuData, or None."""
        return self.modalities.get("cell_embedding")

    @property
    def expression_place(self) -> str:
        """How messages call the expression matrix."""
        owner = "adata" if self.expression_modality is None else f"mdata[{self.expression_modality!r}]"
        return f"{owner}.X" if self.layer is None else f"{owner}.layers[{self.layer!r}]"

    @property
    def has_cell_embedding(self) -> bool:
        """Whether a cell embedding was registered."""
        return self.cell_embedding_key is not None or self.embedding_modality is not None


@dataclass(frozen=True)
class Labels:
    """One categorical column: ``codes[i]`` is the position in ``names`` of cell i's label.

    ``names`` are sorted, as strings, and each occurs in at least one cell.
    """

    codes: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def from_values(cls, values: Any) -> Labels:
        """Encode any column; unused categories are left out."""
        names, codes = np.unique(np.asarray(values).astype(str), return_inverse=True)
        return cls(codes=codes.astype(np.int64), names=tuple(str(n) for n in names))

    def code(self, name: str) -> int:
        """Position of a label; KeyError if no cell has it."""
        try:
            return self.names.index(name)
        except ValueError:
            raise KeyError(name) from None


@dataclass(frozen=True)
class Screen:
    """What every later step works on. Matrices are the user's own, never copied or edited.

    Attributes
    ----------
    genes
        Names of the columns of ``expression``.
    cells
        Names of the rows.
    expression
        Cells x genes: numpy, scipy CSR/CSC, or a backed matrix; log1p of normalised counts.
    cell_embedding
        Cells x E, or None.
    perturbation, context
        Labels of each cell.
    batch
        Technical batch of each cell, or None.
    control
        The perturbation label of control cells.
    """

    genes: np.ndarray
    cells: np.ndarray
    expression: Any
    cell_embedding: Any
    perturbation: Labels
    context: Labels
    batch: Labels | None
    control: str

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.cells)


def expression_adata(data: AnnOrMuData, keys: ScreenKeys) -> AnnData:
    """AnnData that holds the expression: the object itself, or a modality of a MuData."""
    return data.mod[keys.expression_modality] if isinstance(data, MuData) else data


def obs_column(data: AnnOrMuData, keys: ScreenKeys, key: str) -> pd.Series:
    """A column of ``obs``; of a MuData, its own or that of the expression modality, one value a cell of the latter."""
    expression = expression_adata(data, keys)
    if isinstance(data, MuData) and key in data.obs:
        # a MuData lists the cells of all its modalities, in an order of its own
        return data.obs[key].reindex(expression.obs_names)
    if key not in expression.obs:
        raise KeyError(key)
    return expression.obs[key]


def labelled_expression(data: AnnOrMuData, keys: ScreenKeys) -> AnnData:
    """AnnData with the expression and the labels of its cells: the object itself, or made of a MuData's parts."""
    if not isinstance(data, MuData):
        return data
    expression = expression_adata(data, keys)
    obs = {
        key: obs_column(data, keys, key)
        for key in (keys.perturbation_key, keys.context_key, keys.batch_key)
        if key is not None
    }
    obs_frame = expression.obs.assign(**obs)
    return AnnData(expression.X, obs=obs_frame, var=expression.var, layers=expression.layers, obsm=expression.obsm)


def _embedding(data: AnnOrMuData, keys: ScreenKeys) -> Any:
    if not keys.has_cell_embedding:
        return None
    if not isinstance(data, MuData) or keys.embedding_modality is None:
        return expression_adata(data, keys).obsm[keys.cell_embedding_key]
    modality = data.mod[keys.embedding_modality]
    return modality.X if keys.cell_embedding_key is None else modality.obsm[keys.cell_embedding_key]


def read_screen(data: AnnOrMuData, keys: ScreenKeys) -> Screen:
    """Read a screen whose keys were verified.

    Parameters
    ----------
    data
        AnnData, or MuData with ``keys.modalities``.
    keys
        Where its parts are.

    Returns
    -------
    The screen; labels as sorted strings.
    """
    expression = expression_adata(data, keys)
    context = (
        Labels(np.zeros(expression.n_obs, dtype=np.int64), (ALL_CONTEXT,))
        if keys.context_key is None
        else Labels.from_values(obs_column(data, keys, keys.context_key))
    )
    return Screen(
        genes=np.asarray(expression.var_names, dtype=object).astype(str),
        cells=np.asarray(expression.obs_names, dtype=object).astype(str),
        expression=expression.X if keys.layer is None else expression.layers[keys.layer],
        cell_embedding=_embedding(data, keys),
        perturbation=Labels.from_values(obs_column(data, keys, keys.perturbation_key)),
        context=context,
        batch=None if keys.batch_key is None else Labels.from_values(obs_column(data, keys, keys.batch_key)),
        control=keys.control,
    )
