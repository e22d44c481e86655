"""Labels of cells and names of genes from outside: one column of text, and nothing in it that no file can hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterable


def verify_labels(column: Any, where: str, *, may_lack: bool = False) -> None:
    """Refuse a column that occurs twice, whose values are no labels, or that lacks some unless it ``may_lack`` them."""
    if isinstance(column, pd.DataFrame):
        raise ValueError(f"{where} occurs {column.shape[1]} times; keep one column of this name.")
    try:
        values = column.unique()
    except TypeError:
        raise ValueError(f"{where} holds {type(column.iloc[0]).__name__} values; labels are text.") from None
    if (other := next((value for value in values if not pd.api.types.is_scalar(value)), None)) is not None:
        raise ValueError(f"{where} holds {type(other).__name__} values; labels are text.")
    if (n_missing := int(column.isna().sum())) and not may_lack:
        remedy = "adata = adata[adata.obs[KEY].notna()].copy()"
        raise ValueError(f"{where} has {n_missing} cells without a value; name them or remove those cells: {remedy}.")
    _verify_text(values, where)


def verify_unique(names: pd.Index, what: str, more: str) -> None:
    """Refuse names of genes or cells that are missing, of several levels, or not unique."""
    if isinstance(names, pd.MultiIndex):
        raise ValueError(f"{what} names have {names.nlevels} levels; one name each is needed, as text.")
    if names.hasnans:
        raise ValueError(f"{what} names are missing for {np.count_nonzero(names.isna())} of {len(names):,}; name them.")
    if not names.is_unique:
        twice = [str(name) for name in names[names.duplicated()].unique()[:5]]
        raise ValueError(f"{what} names must be unique, and these occur more than once: {twice}{more}.")
    if what == "gene":
        _verify_text(names, "gene names")


def _verify_text(values: Iterable[Any], where: str) -> None:
    if bad := next((text for text in map(str, values) if not _is_writable(text)), None):
        raise ValueError(f"{where} has {bad[:40]!r}, with NUL or half a character, which no file can hold; rename it.")


def _is_writable(text: str) -> bool:
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
