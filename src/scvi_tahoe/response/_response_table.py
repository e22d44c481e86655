"""Tables of responses, one row for each condition: read and verified once, before anything costly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scvi_tahoe._labels import verify_labels, verify_unique
from scvi_tahoe._matrices import trusted_matrix, verify_magnitude
from scvi_tahoe._names import nearest_names
from scvi_tahoe.data import EmbeddingTable, ScreenKeys, spelled_labels
from scvi_tahoe.response._responses import Responses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

#: the context of all conditions where there is no column of contexts
ONE_CONTEXT = "all"


@dataclass(frozen=True)
class ResponseTable:
    """What was read.

    Attributes
    ----------
    responses
        One row for each condition; replicates are averaged.
    has_noise
        Whether the sampling variance of a condition is known, ``[n]``.
    keys
        Columns of labels.
    notes
        What was ignored, averaged or filled in, one line each.
    """

    responses: Responses
    has_noise: np.ndarray
    keys: ScreenKeys
    notes: tuple[str, ...]


def read_responses(
    adata: AnnData,
    *,
    perturbation_key: str,
    context_key: str | None,
    control: str | None,
    dose_key: str | None,
    combination_separator: str | None,
    variance_layer: str | None,
    control_expression: pd.DataFrame | None = None,
    source_key: str | None = None,
) -> ResponseTable:
    """Read and verify a table of responses; what is wrong is a TypeError, KeyError or ValueError of one line."""
    keys = _verified_keys(adata, perturbation_key, context_key, control, dose_key, combination_separator)
    labels = spelled_labels(adata, keys).astype(str)
    contexts = np.full(len(labels), ONE_CONTEXT)
    if context_key is not None:
        contexts = adata.obs[context_key].astype(str).to_numpy().astype(str)
    is_control = np.array([keys.parser.is_control(label) for label in labels.tolist()], dtype=bool)
    if is_control.all():
        what = "no rows" if not len(labels) else "only control rows"
        raise ValueError(f"adata has {what}; one row for each condition, with its change against control, is needed.")
    notes = [f"{is_control.sum()} control rows are left out"] if is_control.any() else []
    if control is not None and not is_control.any():
        notes.append(f"no row is labelled {str(control)!r} (control)")
    rows = np.flatnonzero(~is_control)
    changes = _numbers(adata.X, rows, "adata.X", adata.shape)
    noise = None if variance_layer is None else _variances(adata, variance_layer, rows)
    if noise is not None:
        changes[np.isinf(noise)] = np.nan  # an infinite variance knows nothing
        noise[np.isinf(noise)] = np.nan
    table = _Rows(labels[rows], contexts[rows], changes, noise, adata.var_names.to_numpy().astype(str))
    table, further = table.without_empty()
    averaged = table.averaged()
    if len(averaged.labels) < len(table.labels):
        further.append(f"{len(table.labels)} rows are averaged to {len(averaged.labels)} conditions")
    if not np.nan_to_num(averaged.changes).any():
        raise ValueError("adata.X is 0 in every condition; changes against control are expected, not all of them 0.")
    responses, has_noise = averaged.responses(_profiles(control_expression, averaged, context_key))
    responses = replace(responses, sources=_data_sets(adata, source_key, contexts))
    return ResponseTable(responses, has_noise, keys, (*notes, *further))


def _verified_keys(
    adata: AnnData,
    perturbation_key: str,
    context_key: str | None,
    control: str | None,
    dose_key: str | None,
    combination_separator: str | None,
) -> ScreenKeys:
    if combination_separator == "":
        raise ValueError("combination_separator is empty; give the text between perturbations, e.g. '+', or None.")
    for name, key in (("perturbation_key", perturbation_key), ("context_key", context_key), ("dose_key", dose_key)):
        verify_column(adata, name, key, may_lack=name == "dose_key")
    verify_unique(adata.var_names, "gene", "; call adata.var_names_make_unique()")
    # a table may have no controls: no label is empty
    return ScreenKeys(
        perturbation_key=perturbation_key, context_key=context_key, control="" if control is None else str(control),
        dose_key=dose_key, combination_separator=combination_separator,
    )  # fmt: skip


def _variances(adata: AnnData, layer: str, rows: np.ndarray) -> np.ndarray:
    if layer not in adata.layers:
        near = nearest_names(layer, [name for name in adata.layers if name is not None])
        raise KeyError(f"adata.layers has no {layer!r} (variance_layer){near}; it has {[*filter(None, adata.layers)]}.")
    found = _numbers(adata.layers[layer], rows, f"adata.layers[{layer!r}]", adata.shape, may_be_infinite=True)
    if (found < 0).any():
        raise ValueError(f"adata.layers[{layer!r}] has {(found < 0).sum()} negative values; variances are 0 or more.")
    return found


@dataclass(frozen=True)
class _Rows:
    """Rows of a table of which NaN are not measured."""

    labels: np.ndarray
    contexts: np.ndarray
    changes: np.ndarray
    noise: np.ndarray | None
    genes: np.ndarray

    def without_empty(self) -> tuple[_Rows, list[str]]:
        """Leave out conditions and genes without any value, and say what was left out or is missing."""
        measured = ~np.isnan(self.changes)
        if not measured.any():
            raise ValueError("adata.X has no finite value; every one is NaN, or has an infinite variance.")
        rows, genes = measured.any(axis=1), measured.any(axis=0)
        notes = [
            f"{(~kept).sum()} {what} without any value are left out"
            for kept, what in ((rows, "rows"), (genes, "genes"))
            if not kept.all()
        ]
        missing = int((~measured[np.ix_(rows, genes)]).sum())
        if missing:
            notes.append(f"{missing} values that are missing (NaN) are ignored")
        noise = None if self.noise is None else self.noise[np.ix_(rows, genes)]
        kept_changes = self.changes[np.ix_(rows, genes)]
        return _Rows(self.labels[rows], self.contexts[rows], kept_changes, noise, self.genes[genes]), notes

    def averaged(self) -> _Rows:
        """Average the rows of a condition, each gene over the rows that have it."""
        pairs = pd.DataFrame({"label": self.labels, "context": self.contexts})
        codes = pairs.groupby(["label", "context"], sort=False).ngroup().to_numpy()
        first = np.unique(codes, return_index=True)[1]
        if len(first) == len(codes):
            return self
        sums = sparse.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))))
        measured = (~np.isnan(self.changes)).astype(np.float64)
        n = sums @ measured

        def mean(values: np.ndarray, count: np.ndarray) -> np.ndarray:
            return np.divide(sums @ np.nan_to_num(values), count, out=np.full(n.shape, np.nan), where=count > 0)

        noise = None
        if self.noise is not None:  # of a mean of independent rows
            known = measured * ~np.isnan(self.noise)
            noise = mean(np.where(known > 0, self.noise, np.nan), sums @ known) / np.maximum(n, 1)
        return _Rows(self.labels[first], self.contexts[first], mean(self.changes, n), noise, self.genes)

    def responses(self, control_means: Mapping[str, np.ndarray]) -> tuple[Responses, np.ndarray]:
        """Fill in variances: a gene's usual one where it is not known, its spread where nothing was measured."""
        missing, noise = np.isnan(self.changes), np.zeros(self.changes.shape)
        has_noise = np.zeros(len(noise), dtype=bool)
        if self.noise is not None and (self.noise > 0).any():
            known = np.where(self.noise > 0, self.noise, np.nan)
            overall = float(np.nanmedian(known))
            usual = np.array([np.median(c[~np.isnan(c)]) if (~np.isnan(c)).any() else overall for c in known.T])
            has_noise = ~np.isnan(self.noise).all(axis=1) & (np.nan_to_num(self.noise) > 0).any(axis=1)
            noise = np.where(np.isnan(self.noise), usual, self.noise)
        if missing.any():
            filled = np.where(missing, 0.0, self.changes)
            count = np.maximum((~missing).sum(axis=0), 1)
            mean = filled.sum(axis=0) / count
            spread = np.where(missing, 0.0, np.square(filled - mean)).sum(axis=0) / count
            noise = np.where(missing, np.maximum(spread, noise), noise)
        found = Responses(self.labels, self.contexts, self.changes, noise, self.genes, control_means)
        return found, has_noise


def read_tables(tables: Any, components: Sequence[str]) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Verify embedding tables; one that covers none of the perturbations is an error."""
    if tables is None:
        return {}, []
    if isinstance(tables, pd.DataFrame):
        tables = {"table": tables}
    if not isinstance(tables, Mapping) or not all(isinstance(table, pd.DataFrame) for table in tables.values()):
        raise TypeError("tables is neither a DataFrame with perturbations as index nor a mapping of name to DataFrame.")
    found, notes = {}, []
    for name, table in tables.items():
        found[str(name)], of_table = _verified_table(str(name), table)
        notes += of_table
        covered = [part for part in dict.fromkeys(components) if part in found[str(name)].index]
        n = len(set(components))
        if not covered:
            near = nearest_names(components[0], found[str(name)].index.tolist())
            raise ValueError(
                f"table {name!r} has no row for any of the {n} perturbations, e.g. {components[0]!r}{near}; its rows "
                f"are named {found[str(name)].index[:3].tolist()}. Names must be those of the perturbations."
            )
        if len(covered) < n:
            notes.append(f"table {name!r} has rows for {len(covered)} of {n} perturbations")
        if (np.ptp(found[str(name)].to_numpy(), axis=0) == 0).all():
            notes.append(f"table {name!r} has the same values in every row and says nothing")
    return found, notes


def _verified_table(name: str, table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Leave out rows with missing values and repeated rows; text, infinite values and disagreeing rows are errors."""
    try:
        values = table.to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"table {name!r} has values that are no numbers; the labels belong into its index.") from None
    table = pd.DataFrame(values, index=table.index.astype(str))
    if np.isinf(values).any():
        bad = table.index[np.isinf(values).any(axis=1)][:3].tolist()
        raise ValueError(f"table {name!r} has infinite values, e.g. in the rows of {bad}.")
    incomplete, notes = np.isnan(values).any(axis=1), []
    if incomplete.any():
        notes.append(f"{incomplete.sum()} rows of table {name!r} have missing values (NaN) and are left out")
    table = table[~incomplete]
    same = table[~table.reset_index().duplicated().to_numpy()]
    if same.index.duplicated().any():
        twice = same.index[same.index.duplicated()].unique()[:3].tolist()
        raise ValueError(f"table {name!r} has different rows of the same name, e.g. {twice}; keep one each.")
    if not len(same) or not same.shape[1]:
        raise ValueError(f"table {name!r} is empty: it has {len(same)} complete rows and {same.shape[1]} columns.")
    EmbeddingTable.from_user(same, f"table {name!r}")
    return same, notes


def _data_sets(adata: AnnData, source_key: str | None, contexts: np.ndarray) -> dict[str, str]:
    """Return the data set of each context; a ValueError if a context is in several."""
    if source_key is None:
        return {}
    verify_column(adata, "source_key", source_key)
    pairs = sorted(set(zip(contexts.tolist(), adata.obs[source_key].astype(str), strict=True)))
    if len(found := dict(pairs)) < len(pairs):
        twice = next(context for i, (context, _) in enumerate(pairs) if i and pairs[i - 1][0] == context)
        raise ValueError(
            f"context {twice!r} is in several data sets of obs[{source_key!r}] (source_key); name contexts of "
            "different data sets differently."
        )
    return found


def verify_column(adata: AnnData, argument: str, key: str | None, *, may_lack: bool = False) -> None:
    """Refuse a column that is not there, or has rows without a label unless it ``may_lack`` them."""
    if key is None:
        return
    if key not in adata.obs:
        near = nearest_names(key, adata.obs.columns.tolist())
        raise KeyError(f"adata.obs has no column {key!r} ({argument}){near}; it has {adata.obs.columns.tolist()}.")
    verify_labels(adata.obs[key], f"obs[{key!r}] ({argument})", may_lack=True)
    missing = int(adata.obs[key].isna().sum())
    if missing and not may_lack:
        raise ValueError(f"obs[{key!r}] ({argument}) is empty in {missing} rows; give each row a label or remove it.")


def _numbers(
    matrix: Any, rows: np.ndarray, where: str, shape: tuple[int, int], *, may_be_infinite: bool = False
) -> np.ndarray:
    """Read rows of a matrix as float64; text, complex and infinite values are errors."""
    if matrix is None:
        raise ValueError(f"{where} is empty; it must hold changes against control, one row for each condition.")
    if hasattr(matrix, "to_memory"):  # on disk
        matrix = matrix.to_memory()
    values = trusted_matrix(matrix, where, shape)[rows]
    values = (values.toarray() if sparse.issparse(values) else np.array(values)).astype(np.float64)
    if not may_be_infinite and np.isinf(values).any():
        i, j = np.argwhere(np.isinf(values))[0]
        n = int(np.isinf(values).sum())
        raise ValueError(
            f"{where} has {n} infinite values, the first in row {rows[i]}, column {j}; use NaN for values not measured."
        )
    verify_magnitude(values[np.isfinite(values)], where)
    return values


def _profiles(control_expression: pd.DataFrame | None, table: _Rows, context_key: str | None) -> dict[str, np.ndarray]:
    """Mean control expression of contexts, in the order of the genes."""
    if control_expression is None:
        return {}
    if not isinstance(control_expression, pd.DataFrame):
        raise TypeError("control_expression is not a DataFrame with contexts as index and genes as columns.")
    profiles = control_expression.set_axis(control_expression.index.astype(str), axis=0)
    if lacking := sorted(set(table.contexts.tolist()) - set(profiles.index)):
        where = "" if context_key is not None else f"; without context_key its one row is named {ONE_CONTEXT!r}"
        raise ValueError(f"control_expression has no row for the contexts {lacking[:5]}{where}.")
    if lacking := sorted(set(table.genes.tolist()) - set(profiles.columns)):
        raise ValueError(f"control_expression has no column for {len(lacking)} genes, e.g. {lacking[:3]}.")
    values = profiles[table.genes.tolist()].to_numpy(dtype=np.float64)
    if profiles.index.duplicated().any() or not np.isfinite(values).all():
        raise ValueError("control_expression has rows of the same name, or values that are not finite.")
    return dict(zip(profiles.index.tolist(), values, strict=True))
