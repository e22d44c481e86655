"""Checks of a screen: everything that can be wrong with it is refused with one sentence.

The scale of its values is measured, not guessed from their size. Counts of one cell, divided by their size factor, are
integer multiples of the smallest one. So undo each candidate transformation, divide every cell by its smallest non-zero
value, and see under which candidate the ratios are whole numbers. This works on any subset of genes and with any
normalisation target, and tells ``log1p`` from a double log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp
from mudata import MuData

from scvi_tahoe._arguments import checked
from scvi_tahoe._constants import LOG1P_LIMIT
from scvi_tahoe._labels import verify_labels, verify_unique
from scvi_tahoe._matrices import blocks_of, trusted_matrix, verify_magnitude
from scvi_tahoe._messages import warn
from scvi_tahoe._names import nearest_names
from scvi_tahoe.data._matrix import dense_rows, is_sharded
from scvi_tahoe.data._perturbations import COMBINATIONS, DOSE_MARK, EmbeddingTable
from scvi_tahoe.data._screen import (
    Screen,
    ScreenKeys,
    embedding_adata,
    expression_adata,
    obs_column,
    read_screen,
    read_table,
)
from scvi_tahoe.data._store_folder import unverified_values

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scvi_tahoe._compat import AnnOrMuData

Scale = Literal["counts", "normalized", "log1p", "log1p_twice", "log2p1", "unknown"]
_UNDO: dict[Scale, Callable[[np.ndarray], np.ndarray]] = {
    "normalized": lambda x: x,
    "log1p": np.expm1,
    "log1p_twice": lambda x: np.expm1(np.expm1(x)),
    "log2p1": lambda x: np.exp2(x) - 1,
}
_TOLERANCE = 2e-3  # relative; float16 storage of log1p values stays within it
_CELLS = 256
_MIN_RATIOS = 30
#: Counts that the smallest value of a cell may stand for; with few genes it often is not 1.
_LARGEST_SMALLEST = 8
_MIN_IN_CELL = 4


@dataclass(frozen=True)
class ScaleReport:
    """What the values of a screen look like, and under which transformation a cell's are multiples of one unit.

    ``scale`` is ``"unknown"`` where they are so under none (imputed, scaled or corrected values), or where too few
    distinct values exist to tell. ``integer_fraction`` has the fraction of whole ratios for each candidate.
    """

    scale: Scale
    integer_fraction: dict[Scale, float]
    smallest: float
    largest: float
    keeps_depth: bool = False  # log1p of whole counts: cells were not normalised to one total


def _packed(values_CG: np.ndarray) -> np.ndarray:
    """Move the values of each cell that are not zero to its first columns; of a whole transcriptome few remain."""
    present = values_CG != 0
    n_C = present.sum(axis=1)
    packed = np.zeros((len(values_CG), max(1, n_C.max(initial=0))))
    packed[np.arange(packed.shape[1]) < n_C[:, None]] = values_CG[present]
    return packed


def _whole_ratio_fraction(values_CG: np.ndarray, undo: Callable[[np.ndarray], np.ndarray]) -> float:
    """Fraction of ratios above 1 to a cell's smallest value that are whole numbers (nan: too few to tell)."""
    with np.errstate(over="ignore", invalid="ignore"):
        unit = undo(values_CG)
    unit[~np.isfinite(unit) | (values_CG == 0)] = np.nan
    smallest = np.nanmin(unit, axis=1, initial=np.inf, keepdims=True)
    ratio_CG = unit / smallest
    n_best, n_whole = np.zeros(len(ratio_CG)), np.zeros(len(ratio_CG))
    for count in range(1, _LARGEST_SMALLEST + 1):
        multiple = ratio_CG * count
        tells = np.isfinite(multiple) & (ratio_CG > 1 + 5 * _TOLERANCE) & (multiple < 0.05 / _TOLERANCE)
        n, whole = tells.sum(axis=1), (tells & (np.abs(multiple - np.round(multiple)) <= _TOLERANCE * multiple)).sum(1)
        # of a cell with few values more than one count of its smallest may fit by chance
        better = (n >= _MIN_IN_CELL) & (whole * n_best > n_whole * n) if count > 1 else np.ones(len(n), dtype=bool)
        n_best, n_whole = np.where(better, n, n_best), np.where(better, whole, n_whole)
    if n_best.sum() < _MIN_RATIOS:
        return float("nan")
    return float(n_whole.sum() / n_best.sum())


@checked()
def infer_scale(matrix: object, *, seed: int = 0) -> ScaleReport:
    """Measure the scale of expression values, dense or sparse, in memory or backed, from up to 256 cells."""
    n_cells = matrix.shape[0]  # type: ignore[attr-defined]
    rows = np.sort(np.random.default_rng(seed).choice(n_cells, min(_CELLS, n_cells), replace=False))
    values = dense_rows(matrix, rows, np.float64)
    smallest, largest = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
    nonzero = values[values != 0]
    if nonzero.size and smallest >= 0 and np.all(nonzero == np.round(nonzero)):
        return ScaleReport("counts", {}, smallest, largest)
    if smallest < 0:
        return ScaleReport("unknown", {}, smallest, largest)
    packed = _packed(values)
    fractions = {scale: _whole_ratio_fraction(packed, undo) for scale, undo in _UNDO.items()}
    best = max(_UNDO, key=lambda scale: np.nan_to_num(fractions[scale]))
    if not fractions[best] >= 0.95:
        best = "unknown"
    if best != "log1p":
        return ScaleReport(best, fractions, smallest, largest)
    counts = np.expm1(nonzero)
    whole = bool(np.all(np.abs(counts - np.round(counts)) <= _TOLERANCE * np.maximum(counts, 0.5)))
    return ScaleReport(best, fractions, smallest, largest, keeps_depth=whole)


_REMEDY = {
    "counts": "raw counts; run sc.pp.normalize_total(adata, target_sum=1e4) and sc.pp.log1p(adata) first, with the "
    "same total for all cells that are compared (for a panel of some hundred genes, the median count of its cells)",
    "normalized": "normalised counts without a logarithm; run sc.pp.log1p(adata) first",
    "log1p_twice": "values on which log1p ran twice; undo one of them, X = expm1(X)",
    "log2p1": "log2(1 + x) of normalised counts; multiply them by log(2) to get log1p",
}


def verify_log1p(matrix: object, where: str) -> ScaleReport:
    """Refuse expression that is not log1p of normalised counts, and warn of counts that were not normalised.

    ``where`` names the matrix in messages, e.g. ``"adata.X"``. The scale of the report is ``"log1p"`` or ``"unknown"``.
    """
    report = infer_scale(matrix)
    allowed = "the model is trained and scored on log1p of normalised counts"
    if report.scale in _REMEDY:
        raise ValueError(f"{where} holds {_REMEDY[report.scale]}: {allowed}.")
    if report.smallest == report.largest == 0:
        raise ValueError(f"{where} holds nothing but zeros: {allowed}.")
    if report.smallest < 0:
        raise ValueError(
            f"{where} holds negative values (smallest {report.smallest:.3g}), as scaled data or an embedding do: "
            f"{allowed}; pass the matrix from before sc.pp.scale, or the embedding as cell_embedding_key."
        )
    if report.largest >= LOG1P_LIMIT:
        raise ValueError(
            f"{where} holds values up to {report.largest:.3g}, above {LOG1P_LIMIT:g}, which no log1p of counts "
            f"reaches: {allowed}; run sc.pp.log1p(adata) first."
        )
    if report.keeps_depth:
        warn(
            f"{where} holds log1p of counts that were not normalised: cells differ by their depth, which is not an "
            "effect of a perturbation. Run sc.pp.normalize_total(adata, target_sum=1e4) before sc.pp.log1p(adata)."
        )
    return report


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
    names = [data.mod[name].obs_names for name in keys.modalities.values()]
    if not names[0].equals(names[-1]):
        raise ValueError(
            f"modalities {list(keys.modalities.values())} hold other cells or another order of them; subset both to "
            "the same obs_names."
        )


def _verify_obs_key(data: AnnOrMuData, keys: ScreenKeys, argument: str, key: str) -> None:
    try:
        values = obs_column(data, keys, key)
    except KeyError:
        raise _no_column(data, keys, argument) from None
    verify_labels(values, f"obs[{key!r}] ({argument})")
    if any(str(value).strip() == "" for value in values.unique()):
        raise ValueError(f"obs[{key!r}] ({argument}) has cells with an empty label; name them or remove those cells.")


def _no_column(data: AnnOrMuData, keys: ScreenKeys, argument: str) -> KeyError:
    columns, key = [str(c) for c in expression_adata(data, keys).obs.columns], getattr(keys, argument)
    return KeyError(f"{argument}={key!r} is not a column of obs{nearest_names(key, columns)}; it has {columns}.")


def _verify_encoding(keys: ScreenKeys) -> None:
    separator = keys.combination_separator
    if keys.combination not in COMBINATIONS:
        raise ValueError(f"combination={keys.combination!r} is unknown; allowed are {str(COMBINATIONS)[1:-1]}.")
    if separator is None and keys.combination != "sum":
        raise ValueError(f"combination={keys.combination!r} needs combination_separator, e.g. '+'.")
    if separator is not None and (not separator.strip() or separator in keys.control or DOSE_MARK in separator):
        raise ValueError(
            f"combination_separator={separator!r} must be text that is not part of control={keys.control!r} and is not "
            f"{DOSE_MARK!r}, e.g. '+'."
        )
    tables, given = keys.table_keys, keys.perturbation_embedding_key
    if len(set(tables)) < len(tables) or (given is not None and not tables):
        raise ValueError(f"perturbation_embedding_key={given!r} must name each table once.")


def _verify_sources(screen: Screen, keys: ScreenKeys, data: AnnOrMuData) -> None:
    """Refuse columns of data sets and of weights that say nothing, or what no weight can be."""
    for argument in ("source_key", "weight_key"):
        if (key := getattr(keys, argument)) is not None:
            _verify_obs_key(data, keys, argument, key)
    if wrong := {c: w for c, w in screen.context_weights.items() if not (np.isfinite(w) and w >= 0)}:
        raise ValueError(f"obs[{keys.weight_key!r}] (weight_key) has {wrong}; weights are finite and 0 or more.")
    if screen.context_weights and not any(screen.context_weights.values()):
        raise ValueError(f"obs[{keys.weight_key!r}] (weight_key) is 0 everywhere; nothing would be left to learn from.")


def _verify_spelling(labels: Sequence[str], keys: ScreenKeys) -> None:
    seen: dict[str, str] = {}
    for label in labels:
        if (other := seen.setdefault(spelling := keys.parser.spelling(label), label)) != label:
            where = f"obs[{keys.perturbation_key!r}]"
            raise ValueError(f"{where} has {other!r} and {label!r}, which mean the same; write both as {spelling!r}.")


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
    obsm, key = embedding_adata(data, keys).obsm, keys.cell_embedding_key
    if key is not None and key not in obsm:
        raise KeyError(f"cell_embedding_key={key!r} is not in obsm; there are {list(obsm)}.")


def _verify_names(data: AnnOrMuData, keys: ScreenKeys) -> None:
    adata = expression_adata(data, keys)
    for names, what, remedy in ((adata.var_names, "gene", "var"), (adata.obs_names, "cell", "obs")):
        verify_unique(names, what, f"; call adata.{remedy}_names_make_unique()")
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"the screen is empty: {adata.n_obs} cells x {adata.n_vars} genes.")


def _verify_values(matrix: Any, where: str) -> None:
    blocks = unverified_values(matrix) if is_sharded(matrix) else blocks_of(matrix, where)
    for block in blocks:
        verify_magnitude(np.asarray(block.data if sp.issparse(block) else block), where)


#: what control cells are usually called
_CONTROL = re.compile(
    r"(?<![a-z0-9])(non.?target(ing|ed)?|safe.?target(ing)?|negative.?control|control|ctrl|dmso|vehicle|untreated"
    r"|scrambled?|mock|nt)(?![a-z0-9])",
    re.IGNORECASE,
)


def unknown_control(control: str, key: str, names: Sequence[str], more: str = "") -> ValueError:
    """Make the error of a control that no cell is labelled with."""
    near = nearest_names(control, names)
    return ValueError(
        f"control={control!r} is not a label of obs[{key!r}]{near}; it has {len(names)} labels, among them "
        f"{list(names[:5])}{more}."
    )


def _verify_controls(screen: Screen, keys: ScreenKeys) -> None:
    """Refuse a screen without control cells in a context that has perturbed ones."""
    names, perturbation_key = screen.perturbation.names, keys.perturbation_key
    if screen.control not in names:
        # controls are mostly the largest group
        largest = names[int(np.bincount(screen.perturbation.codes, minlength=len(names)).argmax())]
        raise unknown_control(screen.control, perturbation_key, names, f"; most cells have {largest!r}")
    is_control = screen.perturbation.codes == screen.perturbation.code(screen.control)
    if is_control.all():
        raise ValueError(f"every cell is a control ({screen.control!r}); there is nothing to learn from.")
    others = [name for name in names if name != screen.control and _CONTROL.search(name)]
    if others and not _CONTROL.search(screen.control):
        where = f"obs[{perturbation_key!r}] has {others[:3]}, which sounds more like it"
        warn(f"control={screen.control!r} is taken for the control cells, and {where}.")
    with_control = set(np.unique(screen.context.codes[is_control]))
    missing = [screen.context.names[c] for c in np.unique(screen.context.codes[~is_control]) if c not in with_control]
    if missing:
        where = "the screen" if keys.context_key is None else f"these contexts of obs[{keys.context_key!r}]: {missing}"
        raise ValueError(
            f"no cell is labelled control={screen.control!r} in {where}; every context with perturbed cells needs "
            "control cells, from which its predictions start."
        )


def _verify_rows(labels: Sequence[str], table: EmbeddingTable, keys: ScreenKeys) -> None:
    # the control may be absent from a table of genes or drugs: its row is zeros then
    components = {component.name for label in labels for component in keys.parser.components(label)}
    if missing := sorted(components - set(table.names) - {keys.control}):
        where = " and ".join(f"uns[{key!r}]" for key in keys.table_keys)
        raise ValueError(
            f"{where} has no row for {len(missing)} of {len(components)} perturbations: {missing[:5]}"
            f"{nearest_names(missing[0], table.names)}; add the rows or remove those cells."
        )


def _warn_of_missing_rows(data: AnnOrMuData, labels: Sequence[str], keys: ScreenKeys) -> None:
    """Warn of a fused table without rows for most perturbations: fusing fills what one table lacks with zeros."""
    components = {component.name for label in labels for component in keys.parser.components(label)} - {keys.control}
    found = {**expression_adata(data, keys).uns, **data.uns}
    for key in keys.table_keys:
        names = EmbeddingTable.from_user(found[key], f"uns[{key!r}]").names
        missing = sorted(components - set(names))
        if len(missing) > len(components) / 2:
            warn(
                f"uns[{key!r}], one of the fused tables, has no row for {len(missing)} of {len(components)} "
                f"perturbations, e.g. {missing[:3]}{nearest_names(missing[0], names)}; it has e.g. {list(names[:3])}. "
                "They get zeros there, so the table says nothing about them: are its labels other identifiers?"
            )


def verify_screen(
    data: AnnOrMuData, keys: ScreenKeys, *, for_training: bool = True, table_required: bool = True
) -> Screen:
    """Check everything that later steps rely on, and read the screen.

    Only data ``for_training`` need perturbed cells, and an embedding row for each of their labels. With
    ``table_required``, the data must bring the perturbation-embedding table; a trained model has one.
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
    embedding = screen.cell_embedding
    screen = replace(
        screen,
        expression=trusted_matrix(screen.expression, keys.expression_place, (screen.n_cells, len(screen.genes))),
        cell_embedding=None if embedding is None else trusted_matrix(embedding, "the cell embedding"),
    )
    if for_training:
        _verify_controls(screen, keys)
        _verify_sources(screen, keys, data)
        _verify_spelling(screen.perturbation.names, keys)
        if table is not None and table_required:
            _verify_rows(screen.perturbation.names, table, keys)
            if len(keys.table_keys) > 1:
                _warn_of_missing_rows(data, screen.perturbation.names, keys)
    _verify_values(screen.expression, keys.expression_place)
    verify_log1p(screen.expression, keys.expression_place)
    if (embedding := screen.cell_embedding) is not None:
        if embedding.shape[0] != screen.n_cells:
            raise ValueError(f"the cell embedding has shape {embedding.shape}; {screen.n_cells} cells x E is needed.")
        _verify_values(embedding, "the cell embedding")
    return screen
