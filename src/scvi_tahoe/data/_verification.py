"""Checks of a screen: everything that can be wrong with it is refused with one sentence."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from mudata import MuData

from scvi_tahoe._names import nearest_names
from scvi_tahoe.data._disk_store import is_sharded
from scvi_tahoe.data._embedding_table import COMBINATIONS, EmbeddingTable, TableFusion
from scvi_tahoe.data._label_parser import DOSE_MARK
from scvi_tahoe.data._scale import verify_log1p
from scvi_tahoe.data._screen import (
    Screen,
    ScreenKeys,
    expression_adata,
    obs_column,
    read_matrices,
    read_screen,
)
from scvi_tahoe.data._store_folder import unverified_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData

    from scvi_tahoe._compat import AnnOrMuData

_BLOCK = 4096  # rows read at once from a backed matrix


def _verify_modalities(data: AnnOrMuData, keys: ScreenKeys) -> None:
    if not isinstance(data, MuData):
        return
    allowed = {"expression", "cell_embedding"}
    if unknown := set(keys.modalities) - allowed:
        raise ValueError(f"modalities has unknown parts {sorted(unknown)}; allowed are {sorted(allowed)}.")
    if "expression" not in keys.modalities:
        raise ValueError("modalities must name the expression, e.g. modalities={'expression': 'rna'}.")
    for part, name in keys.modalities.items():
        if name not in data.mod:
            raise KeyError(f"modality {name!r}, given for {part}, is not in the MuData; it has {list(data.mod)}.")
    names = data.mod[keys.modalities["expression"]].obs_names
    if keys.embedding_modality and not names.equals(data.mod[keys.embedding_modality].obs_names):
        raise ValueError(
            f"modalities {keys.expression_modality!r} and {keys.embedding_modality!r} hold other cells or another "
            "order of them; subset both to the same obs_names."
        )


def _verify_obs_key(data: AnnOrMuData, keys: ScreenKeys, argument: str, key: str) -> None:
    try:
        values = obs_column(data, keys, key)
    except KeyError:
        raise _no_column(data, keys, argument) from None
    if values.isna().any():
        raise ValueError(
            f"obs[{key!r}] ({argument}) has {int(values.isna().sum())} cells without a value; "
            "name them or remove those cells."
        )
    if any(str(value).strip() == "" for value in values.unique()):
        raise ValueError(f"obs[{key!r}] ({argument}) has cells with an empty label; name them or remove those cells.")


def _no_column(data: AnnOrMuData, keys: ScreenKeys, argument: str) -> KeyError:
    columns, key = [str(c) for c in expression_adata(data, keys).obs.columns], getattr(keys, argument)
    return KeyError(f"{argument}={key!r} is not a column of obs{nearest_names(key, columns)}; it has {columns}.")


def _verify_encoding(keys: ScreenKeys) -> None:
    separator = keys.combination_separator
    if keys.combination not in COMBINATIONS:
        raise ValueError(
            f"combination={keys.combination!r} is unknown; allowed are {', '.join(map(repr, COMBINATIONS))}."
        )
    if separator is None and keys.combination != "sum":
        raise ValueError(f"combination={keys.combination!r} needs combination_separator, e.g. '+'.")
    if separator is not None and (not separator.strip() or separator in keys.control or DOSE_MARK in separator):
        raise ValueError(
            f"combination_separator={separator!r} must be text that is no part of control={keys.control!r} and is not "
            f"{DOSE_MARK!r}, e.g. '+'."
        )
    if len(set(keys.table_keys)) < len(keys.table_keys) or (
        keys.perturbation_embedding_key is not None and not keys.table_keys
    ):
        raise ValueError(f"perturbation_embedding_key={keys.perturbation_embedding_key!r} must name each table once.")


def _verify_spelling(labels: Sequence[str], keys: ScreenKeys) -> None:
    seen: dict[str, str] = {}
    for label in labels:
        if (other := seen.setdefault(keys.parser.spelling(label), label)) != label:
            raise ValueError(
                f"obs[{keys.perturbation_key!r}] has {other!r} and {label!r}, which mean the same; write them one way, "
                f"{keys.parser.spelling(label)!r}."
            )


def _verify_places(data: AnnOrMuData, keys: ScreenKeys) -> None:
    for argument in ("perturbation_key", "context_key", "batch_key"):
        if (key := getattr(keys, argument)) is not None:
            _verify_obs_key(data, keys, argument, key)
    adata = expression_adata(data, keys)
    if keys.layer is not None and keys.layer not in adata.layers:
        layers = [k for k in adata.layers if k is not None]
        raise KeyError(f"layer={keys.layer!r} is not in layers; there are {layers}, and layer=None takes X.")
    if keys.layer is None and adata.X is None:
        raise ValueError("adata.X is None; put log1p expression there or name a layer with layer=...")
    if keys.cell_embedding_key is not None:
        owner: AnnData = (
            data.mod[keys.embedding_modality] if isinstance(data, MuData) and keys.embedding_modality else adata
        )
        if keys.cell_embedding_key not in owner.obsm:
            raise KeyError(
                f"cell_embedding_key={keys.cell_embedding_key!r} is not in obsm; there are {list(owner.obsm)}."
            )


def _verify_names(data: AnnOrMuData, keys: ScreenKeys) -> None:
    adata = expression_adata(data, keys)
    for names, what, remedy in (
        (adata.var_names, "gene", "adata.var_names_make_unique()"),
        (adata.obs_names, "cell", "adata.obs_names_make_unique()"),
    ):
        if not names.is_unique:
            twice = [str(n) for n in names[names.duplicated()].unique()[:5]]
            raise ValueError(f"{what} names must be unique, and these occur more than once: {twice}; call {remedy}.")
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"the screen is empty: {adata.n_obs} cells x {adata.n_vars} genes.")


def _verify_finite(matrix: object, where: str) -> None:
    # min and max carry NaN and infinity through, so two passes without a temporary array are enough
    if isinstance(matrix, np.ndarray):
        blocks: Iterable[Any] = [matrix]
    elif sp.issparse(matrix):
        blocks = [matrix.data]  # type: ignore[attr-defined]
    elif is_sharded(matrix):
        blocks = unverified_values(matrix)
    else:
        n = matrix.shape[0]  # type: ignore[attr-defined]
        blocks = (matrix[i : i + _BLOCK] for i in range(0, n, _BLOCK))  # type: ignore[index]
    for block in blocks:
        values = np.asarray(block.data if sp.issparse(block) else block)
        if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):
            raise ValueError(f"{where} holds NaN or infinite values; remove or impute them first.")


#: what control cells are usually called
_CONTROL = re.compile(
    r"(?<![a-z0-9])(non.?target(ing|ed)?|safe.?target(ing)?|negative.?control|control|ctrl|dmso|vehicle|untreated"
    r"|scrambled?|mock|nt)(?![a-z0-9])",
    re.IGNORECASE,
)


def verify_controls(screen: Screen, *, perturbation_key: str, context_key: str | None) -> None:
    """Refuse a screen without control cells in a context that has perturbed ones."""
    names = screen.perturbation.names
    if screen.control not in names:
        # controls are mostly the largest group
        largest = names[int(np.bincount(screen.perturbation.codes, minlength=len(names)).argmax())]
        raise ValueError(
            f"control={screen.control!r} is no label of obs[{perturbation_key!r}]"
            f"{nearest_names(screen.control, names)}; "
            f"it has {len(names)} labels, among them {list(names[:5])}; most cells have {largest!r}."
        )
    is_control = screen.perturbation.codes == screen.perturbation.code(screen.control)
    if is_control.all():
        raise ValueError(f"every cell is a control ({screen.control!r}); there is nothing to learn from.")
    others = [name for name in names if name != screen.control and _CONTROL.search(name)]
    if others and not _CONTROL.search(screen.control):
        warnings.warn(
            f"control={screen.control!r} is taken for the control cells, and obs[{perturbation_key!r}] has "
            f"{others[:3]}, which sounds more like it.",
            stacklevel=2,
        )
    with_control = set(np.unique(screen.context.codes[is_control]))
    missing = [screen.context.names[c] for c in np.unique(screen.context.codes[~is_control]) if c not in with_control]
    if missing:
        where = "the screen" if context_key is None else f"these contexts of obs[{context_key!r}]: {missing}"
        raise ValueError(
            f"no cell is labelled control={screen.control!r} in {where}; every context with perturbed cells needs "
            "control cells, from which its predictions start."
        )


def read_table(
    data: AnnOrMuData, keys: ScreenKeys, *, required: bool = True, like: EmbeddingTable | None = None
) -> EmbeddingTable | None:
    """Read the user's perturbation-embedding table, several fused into one; None where one-hot rows are used.

    Unless ``required``, data may lack the table of a trained model. Several tables are fused as those of ``like``.
    """
    found = {**expression_adata(data, keys).uns, **data.uns}
    missing = [key for key in keys.table_keys if key not in found]
    if not keys.table_keys or (len(missing) == len(keys.table_keys) and not required):
        return None
    if missing:
        raise KeyError(f"perturbation_embedding_key={missing[0]!r} is not in uns; there are {list(map(str, found))}.")
    tables = [EmbeddingTable.from_user(found[key], f"uns[{key!r}]") for key in keys.table_keys]
    if isinstance(keys.perturbation_embedding_key, str):
        return tables[0]
    known = None if like is None else like.components.fusion
    return (known or TableFusion.of(tables)).apply(tables)


def _verify_rows(labels: Sequence[str], table: EmbeddingTable, keys: ScreenKeys) -> None:
    # the control may be absent from a table of genes or drugs: its row is zeros then
    components = {component.name for label in labels for component in keys.parser.components(label)}
    missing = sorted(components - set(table.names) - {keys.control})
    if missing:
        where = " and ".join(f"uns[{key!r}]" for key in keys.table_keys)
        raise ValueError(
            f"{where} has no row for {len(missing)} of {len(components)} perturbations: {missing[:5]}"
            f"{nearest_names(missing[0], table.names)}; add the rows or remove those cells."
        )


def _verify_embedding(screen: Screen, keys: ScreenKeys) -> None:
    if screen.cell_embedding is None:
        return
    shape = screen.cell_embedding.shape
    if len(shape) != 2 or shape[0] != screen.n_cells:
        raise ValueError(f"the cell embedding has shape {shape}; {screen.n_cells} cells x E is needed.")
    values = screen.cell_embedding
    _verify_finite(values.to_numpy() if isinstance(values, pd.DataFrame) else values, "the cell embedding")


def verify_screen(
    data: AnnOrMuData, keys: ScreenKeys, *, for_training: bool = True, table_required: bool = True
) -> Screen:
    """Check everything that later steps rely on, and read the screen.

    Parameters
    ----------
    data
        AnnData or MuData.
    keys
        Where its parts are.
    for_training
        Whether perturbed cells, and an embedding row for each of their labels, are needed. Data to predict from
        needs control cells only.
    table_required
        Whether the data must bring the perturbation-embedding table; False where a model has one.
    """
    _verify_encoding(keys)
    _verify_modalities(data, keys)
    _verify_names(data, keys)
    _verify_places(data, keys)
    table = read_table(data, keys, required=for_training and table_required)
    try:
        screen = read_screen(data, keys)  # refuses doses that are none
    except KeyError:
        raise _no_column(data, keys, "dose_key") from None
    if for_training:
        verify_controls(screen, perturbation_key=keys.perturbation_key, context_key=keys.context_key)
        _verify_spelling(screen.perturbation.names, keys)
        if table is not None and table_required:
            _verify_rows(screen.perturbation.names, table, keys)
    _verify_finite(screen.expression, keys.expression_place)
    verify_log1p(screen.expression, keys.expression_place)
    _verify_embedding(screen, keys)
    return screen


@dataclass(frozen=True)
class VerifiedScreen:
    """A screen that was verified, and what tells whether its data changed since.

    Attributes
    ----------
    screen
        The screen.
    keys
        Where its parts are.
    for_training
        Whether it was verified for training.
    columns
        Copies of the columns of ``obs`` that its labels were read from.
    checksums
        Sums of the values of its matrices.
    """

    screen: Screen
    keys: ScreenKeys
    for_training: bool
    columns: tuple[pd.Series, ...]
    checksums: tuple[float | None, ...]

    @classmethod
    def of(
        cls, data: AnnOrMuData, keys: ScreenKeys, *, for_training: bool = True, table_required: bool = True
    ) -> VerifiedScreen:
        """Verify a screen as :func:`verify_screen` does."""
        screen = verify_screen(data, keys, for_training=for_training, table_required=table_required)
        columns = tuple(column.copy() for column in _label_columns(data, keys))
        return cls(screen, keys, for_training, columns, _checksums(screen))

    def is_current(self, data: AnnOrMuData, *, values: bool = True) -> bool:
        """Whether the data are those that were verified: the same matrices, names, labels and, if asked, values."""
        known, adata = self.screen, expression_adata(data, self.keys)
        try:
            columns = _label_columns(data, self.keys)
            expression, embedding = read_matrices(data, self.keys)
        except KeyError:
            return False
        return (
            known.cells.equals(adata.obs_names)
            and np.array_equal(known.genes, np.asarray(adata.var_names, dtype=object).astype(str))
            and all(before.equals(now) for before, now in zip(self.columns, columns, strict=True))
            and _is_same(known.expression, expression)
            and _is_same(known.cell_embedding, embedding)
            and (not values or self.checksums == _checksums(known))
        )


def _label_columns(data: AnnOrMuData, keys: ScreenKeys) -> list[pd.Series]:
    """Columns of ``obs`` that labels are read from."""
    columns = (keys.perturbation_key, keys.dose_key, keys.context_key, keys.batch_key)
    return [obs_column(data, keys, key) for key in columns if key is not None]


def _is_same(before: Any, now: Any) -> bool:
    """Whether two matrices are one: the same object in memory, or the same place in a file that only is read."""
    if before is now:
        return True
    before, now = (getattr(matrix, "group", matrix) for matrix in (before, now))  # of a sparse one on disk
    read_only = getattr(now, "read_only", None) or getattr(getattr(now, "file", None), "mode", "") == "r"
    return type(before) is type(now) and read_only and bool(before == now)


def _checksums(screen: Screen) -> tuple[float | None, ...]:
    """Sum of the values of each matrix in memory, which is not finite if one of them is not."""
    values = [getattr(matrix, "data", None) if sp.issparse(matrix) else matrix for matrix in screen.matrices]
    return tuple(float(np.sum(v)) if isinstance(v, np.ndarray) else None for v in values)
