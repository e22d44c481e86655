"""Every workaround for scvi-tools, Lightning, anndata and pandas. No features."""

from __future__ import annotations

from typing import Any, TypeAlias

import pandas as pd
import rich.pretty  # noqa: F401  scvi-tools < 1.4.3 uses it in view_anndata_setup without importing it
from anndata import AnnData
from mudata import MuData

__all__ = ["AnnOrMuData", "history_as_frames", "history_as_lists", "require"]

AnnOrMuData: TypeAlias = AnnData | MuData


def history_as_lists(history: dict[str, pd.DataFrame] | None) -> dict[str, dict[str, list]] | None:
    """A training history in plain types.

    scvi-tools pickles ``history_`` with the model, and DataFrames pickled by pandas 3 (scvi-tools 1.5) cannot be read
    by pandas 2 (scvi-tools 1.4). May go when scvi-tools 1.4 is no longer supported.
    """
    if history is None:
        return None
    return {
        name: {"index_name": frame.index.name, "index": frame.index.tolist(), "values": frame.iloc[:, 0].tolist()}
        if isinstance(frame, pd.DataFrame)
        else frame
        for name, frame in history.items()
    }


def history_as_frames(history: dict[str, Any] | None) -> dict[str, pd.DataFrame] | None:
    """Undo :func:`history_as_lists`."""
    if history is None:
        return None
    return {
        name: pd.DataFrame({name: entry["values"]}, index=pd.Index(entry["index"], name=entry["index_name"]))
        if isinstance(entry, dict)
        else entry
        for name, entry in history.items()
    }


def require(module: str, extra: str) -> Any:  # noqa: ANN401
    """Import an optional package, or say which extra brings it.

    Raises
    ------
    ImportError
        Naming the extra.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is needed for this; install it with: pip install 'scvi-tahoe[{extra}]'") from error
