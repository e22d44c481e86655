"""Checks of both sides before they are scored: values, scale of cells, mixed contexts, leaks, and the space.

Shapes: **C** cells.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp

from scvi_tahoe._constants import LOG1P_LIMIT
from scvi_tahoe.evaluate._cells import dense
from scvi_tahoe.evaluate._checks import Check, check_if, check_interval, most_severe

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable

#: negative values down to here are rounding and are set to zero
_TINY = -1e-3
#: share of integers among non-zero values beyond which data are counts, or rounded
_INTEGER_SHARE = 0.99
#: predicted over observed median total without a warning, and without an error
_SCALE_WARNING = (0.9, 1.1)
_SCALE_ERROR = (0.5, 2.0)
#: the same without a warning where totals of observed cells differ, as over a part of the genes, which effects change
_SCALE_UNEVEN = (0.67, 1.5)
#: ratios this near to 1 after undoing a second log, or without undoing any, name the mistake
_NAMED = (0.8, 1.25)
_ASTRONOMIC = 50.0
#: largest spread of totals, over their mean, of cells that were all normalised to one total
_ONE_TOTAL = 0.02
#: and one from which on effects on strong genes are in it
_MUCH = 0.3
#: by how much more predicted totals may spread than observed ones (benchmarks/evaluate_calibration.py)
_MORE_SPREAD = 0.12
#: largest total of a cell that the challenge of 2026 takes
MAX_TOTAL = 1_000_000
#: cells looked at on each side: enough for a median, few enough for a tenth of a second at 18,000 genes
_MAX_CELLS = 300
#: and in each of many contexts at least as many
_MIN_CELLS = 60
#: columns that name contexts in public screens
_NAMES = re.compile(r"cell[_ .]?(line|type)s?|celltype|donor|tissue|context|cell[_ .]?name", re.IGNORECASE)
#: largest distance of control means that sampling gives, in units of what it gives on average
_DISTANCE = 2.0
_MAX_CONTROLS = 1000
#: share of held-out cells that may equal a training cell by chance: shallow cells over few genes do
_CHANCE = 0.01
#: cells made dense at a time
_CHUNK = 1024
#: key of ``uns`` under which a prediction says where its expression comes from
PREDICTION_RECORD = "scvi_tahoe_prediction"
#: weight of the decoder's loss below which it hardly learned; the paper uses 0.1
_SMALL_WEIGHT = 0.001


@dataclass(frozen=True)
class CellProfile:
    """Statistics of a sample of cells."""

    #: sum of ``expm1`` over the genes of each cell, ``[cells]``: its library size, if the values are log1p
    totals: NDArray[np.float64]
    #: the same with ``expm1`` applied twice: the library size if the values were logged twice
    relogged_totals: NDArray[np.float64]
    #: sum of the values as they are: the library size if the values were never logged
    raw_totals: NDArray[np.float64]
    #: share of zeros in each cell
    zero_fraction: NDArray[np.float64]
    #: share of integers among the non-zero values of all cells; NaN if there are none
    integer_fraction: float


def profiles_of_contexts(cells: CellTable, *, without: str) -> dict[str, CellProfile]:
    """Profile cells of every context but those of one label, 300 in all but at least 60 of each context."""
    perturbed = cells.perturbation != without
    contexts = [str(context) for context in np.unique(cells.context[perturbed])]
    most = max(_MAX_CELLS // max(len(contexts), 1), _MIN_CELLS)
    return {c: _profile(cells, np.flatnonzero(perturbed & (cells.context == c)), most) for c in contexts}


def _profile(cells: CellTable, rows: NDArray[np.intp], most: int) -> CellProfile:
    """Profile at most as many of the given cells, always the same ones."""
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
    values = dense(cells.expression[rows])
    positive = values[values != 0]
    with np.errstate(over="ignore", invalid="ignore"):  # values that are no logarithms overflow, which is the finding
        linear, twice = np.zeros_like(values), np.zeros_like(values)
        np.expm1(values, out=linear, where=values != 0)  # most are zero, and stay it
        np.expm1(linear, out=twice, where=values != 0)
        totals, relogged = linear.sum(axis=1, dtype=np.float64), twice.sum(axis=1, dtype=np.float64)
    return CellProfile(
        totals=totals,
        relogged_totals=relogged,
        raw_totals=values.sum(axis=1, dtype=np.float64),
        zero_fraction=1 - np.count_nonzero(values, axis=1) / values.shape[1],
        integer_fraction=float((positive == np.round(positive)).mean()) if len(positive) else float("nan"),
    )


def check_range(cells: CellTable, *, role: str) -> Check:
    """Reject values that cannot be log1p expression: NaN, infinite, negative, huge, or nothing but zeros."""
    values = cells.values
    low, high = _extremes(values)
    check = partial(Check, f"values of the {role}", allowed=f"0 to below {LOG1P_LIMIT:g}")
    if not np.isfinite(low) or not np.isfinite(high):  # min and max carry NaN through
        bad = "NaN" if np.isnan(low) else "infinite values"
        where = _where(cells, ~np.isfinite(values))
        return check("error", message=f"the {role} has {bad} in {where}; every value must be a number.")
    if low < _TINY:
        message = (
            f"the smallest value of the {role} is {low:.3g} and log1p expression is never negative: is it a cell "
            "embedding, a delta or scaled data? Pass expression (output='expression', or the gene decoder's output)."
        )
        return check("error", low, message=message)
    if high >= LOG1P_LIMIT:
        message = (
            f"the largest value of the {role} is {high:.4g}, in {_where(cells, values >= LOG1P_LIMIT)}: log1p "
            f"expression stays below {LOG1P_LIMIT:g}. Normalise each cell and apply log1p, or drop the outliers."
        )
        return check("error", high, message=message)
    if high == 0:
        return check("error", high, message=f"the {role} is zero everywhere.")
    if low < 0:
        return check("note", low, message=f"values down to {low:.1e} in the {role} were set to zero.")
    return check("ok", high)


def check_integers(profile: CellProfile, *, role: str) -> Check:
    """Reject whole numbers, which cell-eval would take for counts and normalise a second time without a word."""
    share = profile.integer_fraction
    message = (
        f"{share:.0%} of the non-zero values of the {role} are whole numbers: counts, or rounded logarithms. Normalise "
        "prediction and reference to the same total, then apply log1p."
    )
    many = share >= _INTEGER_SHARE
    return check_if(many, f"scale of the {role}", share, f"below {_INTEGER_SHARE:g}", message, "error")


def check_logarithm(observed: CellProfile) -> Check:
    """Reject a reference that was never logged, or twice, if its cells were normalised to one total over its genes.

    With the same mistake on both sides nothing differs between them; but totals are equal on one scale only.
    """
    once, twice, never = (_spread(t) for t in (observed.totals, observed.relogged_totals, observed.raw_totals))
    found, where = ("twice", "after two expm1") if twice <= _ONE_TOTAL else ("never", "as they are")
    message = (
        f"log1p was applied to the reference {found}: its cells have one total {where}, and not after one expm1. "
        "Scores are for log1p of normalised counts."
    )
    wrong = once > _ONE_TOTAL and (twice <= _ONE_TOTAL or never <= _ONE_TOTAL)
    return check_if(wrong, "logarithm of the reference", once, "log1p, once", message, "error")


def _spread(totals: np.ndarray) -> float:
    """Return standard deviation over mean; NaN if totals are infinite."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        return float(np.std(totals) / np.mean(totals)) if len(totals) > 1 else float("nan")


def check_scale(predicted: CellProfile, observed: CellProfile, *, role: str = "prediction") -> Check:
    """Compare the median total of the cells on both sides, and name the mistake if it can be told."""
    truth = float(np.median(observed.totals))
    name = "scale" if role == "prediction" else f"totals of the {role}"
    if not truth > 0:
        message = "half of the cells of the reference have no expression at all; drop empty cells from both sides."
        return Check(name, "error", truth, message=message)
    totals = (predicted.totals, predicted.relogged_totals, predicted.raw_totals)
    ratio, twice, never = (float(np.median(total)) / truth for total in totals)
    logged_twice = ratio < _NAMED[0] and _NAMED[0] <= twice <= _NAMED[1]
    if logged_twice:
        message = f"log1p was applied twice to the {role}: undoing it once more gives the totals of the reference."
    # expm1 of values that are no logarithms is astronomic, not merely too large
    elif not ratio < _ASTRONOMIC and _NAMED[0] <= never <= _NAMED[1]:
        message = f"log1p was not applied to the {role}: its plain sums are the totals of the reference."
    else:
        untrained, longer = (", or a network trained too briefly", ", or train longer") if name == "scale" else ("", "")
        message = (
            f"the median cell of the {role} sums to {np.median(predicted.totals):.4g} (after expm1), that of the "
            f"reference to {truth:.4g}: another normalisation total or transformation{untrained}. "
            f"Bring both to the same one{longer}."
        )
    uneven = _spread(observed.totals) > _MUCH
    (low, high), (least, most) = _SCALE_UNEVEN if uneven else _SCALE_WARNING, _SCALE_ERROR
    status: Literal["warning", "error"] = "error" if logged_twice or not least <= ratio <= most else "warning"
    return check_if(not low <= ratio <= high, name, ratio, f"{low:g} to {high:g}", message, status)


def check_control_scale(
    cells: CellTable, observed: Mapping[str, CellProfile], *, control: str, role: str
) -> list[Check]:
    """Reject control cells on another scale than the perturbed cells of their context, which moves every change."""
    found = {}
    for context, profile in observed.items():
        rows = cells.rows.get((context, control))
        if rows is None:
            continue
        check = check_scale(_profile(cells, rows, _MAX_CELLS), profile, role=f"control cells of the {role}")
        # perturbations and mixed populations may change totals, unless all cells were normalised over these genes
        if check.status == "error" and not (_spread(profile.totals) <= _ONE_TOTAL or check.message.startswith("log1p")):
            check = replace(check, status="warning")
        elif check.status == "warning":
            check = replace(check, status="ok", message="")
        found[context] = [check]
    return most_severe(found)


def check_totals_spread(predicted: CellProfile, observed: CellProfile) -> Check:
    """Warn if totals of predicted cells vary much more than those of observed ones, which may have one total."""
    with np.errstate(invalid="ignore", over="ignore"):  # totals of values that are no logarithms may be infinite
        spread = [float(np.std(side.totals) / np.mean(side.totals)) for side in (predicted, observed)]
    message = (
        f"totals of predicted cells vary by {spread[0]:.0%} (observed: {spread[1]:.0%}): normalise its cells as the "
        "reference; a model of normalised cells overshoots: train for fewer steps, or compare its prior."
    )
    most = max(_MORE_SPREAD, 2 * spread[1]) if spread[1] > _MUCH else _MORE_SPREAD
    return check_interval("spread of totals", spread[0] - spread[1], message=message, warn=(-np.inf, most))


def check_training_data(train: CellTable, observed: Mapping[str, CellProfile], *, control: str) -> list[Check]:
    """Check values and scale of the training data, given profiles of the observed perturbed cells of each context.

    A baseline from data on another scale is far from every truth, so that each prediction seems to beat it.
    """
    role = "training data"
    found = check_range(train, role=role)
    if np.isnan(found.value):
        return [found]
    # over a part of the genes the totals of two contexts differ, unless cells were normalised over just these genes
    normalised = all(np.std(o.totals) <= _ONE_TOTAL * np.mean(o.totals) for o in observed.values())
    elsewhere = next(iter(observed.values())) if normalised else None
    by_context = {}
    for context, profile in profiles_of_contexts(train, without=control).items():
        by_context[context] = [check_integers(profile, role=role)]
        if (truth := observed.get(context, elsewhere)) is not None:
            by_context[context].append(check_scale(profile, truth, role=role))
    return [found, *most_severe(by_context)]


def clipped(cells: CellTable) -> CellTable:
    """Return the cells with tiny negative values set to zero; the cells themselves if there are none."""
    matrix = cells.expression
    if not cells.values.size or cells.values.min() >= 0:
        return cells
    if sp.issparse(matrix):
        matrix = matrix.copy()
        np.maximum(matrix.data, 0, out=matrix.data)
        matrix.eliminate_zeros()
    else:
        matrix = np.maximum(matrix, 0)
    return replace(cells, expression=matrix)


def _extremes(values: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value, NaN if there is one, in one pass: both of a block while the cache holds it."""
    if not values.size:
        return 0.0, 0.0
    n_blocks = max(1, min(len(values), values.nbytes >> 20))
    ends = np.array([(block.min(), block.max()) for block in np.array_split(values, n_blocks)])
    return float(ends[:, 0].min()), float(ends[:, 1].max())


def _where(cells: CellTable, bad: np.ndarray) -> str:
    """Describe the first offending cell and gene; ``bad`` has the shape of the stored values."""
    if sp.issparse(cells.expression):
        position = int(np.flatnonzero(bad)[0])
        row = int(np.searchsorted(cells.expression.indptr, position, side="right")) - 1
        column = int(cells.expression.indices[position])
    else:
        row, column = (int(i) for i in np.argwhere(bad)[0])
    return f"cell {str(cells.names[row])!r}, gene {str(cells.genes[column])!r} (one of {int(bad.sum())})"


def cell_totals(cells: CellTable) -> NDArray[np.float64]:
    """Sum of each cell, ``[C]``."""
    return np.asarray(cells.expression.sum(axis=1, dtype=np.float64)).ravel()


def check_counts(cells: CellTable, *, role: str) -> Check:
    """Reject values that are no counts, empty cells, and cells larger than the challenge of 2026 takes."""
    values = cells.values
    check = partial(Check, f"counts of the {role}", allowed=f"whole numbers, totals of 1 to {MAX_TOTAL:,}")
    if values.size and not np.isfinite(values).all():
        return check("error", message=f"the {role} has NaN or infinite values.")
    if values.size and (values.min() < 0 or (values != np.round(values)).any()):
        message = (
            f"the {role} holds values that are no counts; the scores of 2026 are of raw counts. Predict them with "
            "output='counts', and name the layer with the reference's counts with layer=..."
        )
        return check("error", float(values.min()), message=message)
    totals = cell_totals(cells)
    wrong = int(((totals < 1) | (totals > MAX_TOTAL)).sum())
    if wrong:
        message = f"{wrong} cells of the {role} have no count at all, or more than {MAX_TOTAL:,}."
        return check("error", wrong, message=message)
    return check("ok", 0)


def check_depth(predicted: NDArray[np.float64], observed: NDArray[np.float64]) -> Check:
    """Compare the medians of cell totals; a shallower prediction has noisier means and fewer expressed genes."""
    medians = [float(np.median(totals)) for totals in (predicted, observed)]
    message = (
        f"the median predicted cell has {medians[0]:,.0f} counts, the median observed one {medians[1]:,.0f}; predict "
        "counts at the library sizes of real cells."
    )
    return check_interval(
        "depth", medians[0] / max(medians[1], 1.0), message=message, warn=(0.8, 1.25), error=(0.2, 5.0)
    )


def log1p_expression(cells: CellTable, *, total: float) -> CellTable:
    """Normalise every cell to one total, the same for both sides unlike in cell-eval, and take log1p."""
    factor = total / np.maximum(cell_totals(cells), 1)
    if sp.issparse(cells.expression):
        matrix = sp.csr_matrix(sp.diags(factor) @ cells.expression, dtype=np.float32)
        matrix.data = np.log1p(matrix.data)
    else:
        matrix = np.log1p(cells.expression * factor[:, None]).astype(np.float32)
    return replace(cells, expression=matrix)


def value_checks(
    predicted: CellTable, profiles: Mapping[str, CellProfile], observed: Mapping[str, CellProfile], range_check: Check
) -> list[Check]:
    """Check single values and the scale of cells on both sides, each context by a sample of its predicted cells."""
    ranges = [check_range(predicted, role="prediction"), range_check]
    if any(np.isnan(check.value) for check in ranges):
        return ranges  # with NaN or infinite values every further statistic would be one too
    found = {
        context: [
            check_integers(profiles[context], role="prediction"),
            check_integers(truth, role="reference"),
            check_logarithm(truth),
            check_scale(profiles[context], truth),
            check_totals_spread(profiles[context], truth),
        ]
        for context, truth in observed.items()
    }
    return [*ranges, *most_severe(found)]


def count_checks(predicted: CellTable, observed: CellTable) -> list[Check]:
    """Check raw counts on both sides."""
    both = [check_counts(predicted, role="prediction"), check_counts(observed, role="reference")]
    sides = [(side.context, cell_totals(side)) for side in (predicted, observed)]
    depth = {c: [check_depth(*(totals[context == c] for context, totals in sides))] for c in observed.contexts}
    return [*both, *most_severe(depth)]


def check_contexts(obs: pd.DataFrame, cells: CellTable, *, control: str, context_key: str | None) -> Check:
    """Warn if a column that looks like contexts was not named and its control cells differ."""
    name, allowed = "contexts", f"control cells within {_DISTANCE:g} of one another"
    if context_key is not None:
        return Check(name, "ok", allowed=allowed)
    rows = np.flatnonzero(cells.perturbation == control)
    for column in (c for c in obs.columns if _NAMES.fullmatch(str(c))):
        labels = obs[column].to_numpy().astype(str)[rows]
        distance = _largest_distance(cells, rows, labels)
        if distance > _DISTANCE:
            message = (
                f"obs[{column!r}] divides the control cells into {len(np.unique(labels))} populations {distance:.1f} "
                f"times as far apart as by sampling; score them one by one with context_key={column!r}."
            )
            return Check(name, "warning", distance, allowed, message)
    return Check(name, "ok", allowed=allowed)


def _largest_distance(cells: CellTable, rows: NDArray[np.intp], labels: NDArray[np.str_]) -> float:
    """Largest mean absolute distance of a population from the first, over its expectation under sampling alone."""
    chosen = [rows[labels == label][:_MAX_CONTROLS] for label in np.unique(labels)]
    blocks = [dense(cells.expression[some]) for some in chosen if len(some) > 1]
    if len(blocks) < 2:
        return 0.0
    mean = np.stack([block.mean(axis=0, dtype=np.float64) for block in blocks])
    error = np.stack([block.var(axis=0, ddof=1, dtype=np.float64) / len(block) for block in blocks])
    distance = np.abs(mean[1:] - mean[0]).mean(axis=1)
    expected = np.sqrt(2 / np.pi) * np.sqrt(error[1:] + error[0]).mean(axis=1)
    return float(np.divide(distance, expected, out=np.zeros(len(distance)), where=expected > 0).max())


def check_leakage(train: CellTable, observed: CellTable, *, control: str) -> list[Check]:
    """Look for held-out conditions, and for held-out perturbed cells, among training data over the same genes.

    Controls may be in both: a model needs them to predict.
    """
    held_out = [key for key in observed.rows if key[1] != control]
    return [check_conditions(train.rows, held_out), _leaked_cells(train, observed, control)]


def check_conditions(trained: Collection[tuple[str, str]], held_out: Collection[tuple[str, str]]) -> Check:
    """Look for held-out conditions among those that were trained on; both as context and perturbation."""
    both = sorted(set(held_out) & set(trained))
    first = ", ".join(f"{perturbation!r} in {context!r}" for context, perturbation in both[:1])
    message = (
        f"{len(both)} of {len(held_out)} held-out conditions are in the training data too (first: {first}), so "
        "baselines and perhaps the model have seen the answer. Drop them, or pass allow_train=True to score the fit."
    )
    return check_if(both != [], "leakage of conditions", len(both), "0", message, "error")


def _leaked_cells(train: CellTable, observed: CellTable, control: str) -> Check:
    """Find held-out perturbed cells whose expression occurs in the training data, under whatever label."""
    held_out = np.flatnonzero(observed.perturbation != control)
    # equal cells have equal sums; only rows that share a sum with a held-out cell are compared in full
    sums, wanted = _sums(train), _sums(observed)[held_out]
    candidates = np.flatnonzero(np.isin(sums, wanted))
    known = {row.tobytes() for row in dense(train.expression[candidates]).astype(np.float32)}
    suspects = held_out[np.isin(wanted, sums)]
    n = sum(row.tobytes() in known for row in dense(observed.expression[suspects]).astype(np.float32))
    message = (
        f"{n} of {len(held_out)} held-out perturbed cells occur in the training data with the same expression; drop "
        "them from one side, or pass allow_train=True to score the fit."
    )
    too_many = n > _CHANCE * len(held_out)
    return check_if(too_many, "leakage of cells", n / len(held_out), f"0 to {_CHANCE:g}", message, "error")


def _sums(cells: CellTable) -> NDArray[np.float64]:
    """Sum of each row in one precision and one order, so that equal cells have equal sums in any storage."""
    chunks = (dense(cells.expression[start : start + _CHUNK]) for start in range(0, cells.n_cells, _CHUNK))
    return np.concatenate(
        [np.ascontiguousarray(chunk, dtype=np.float32).sum(axis=1, dtype=np.float64) for chunk in chunks]
    )


def check_space(prediction: AnnData, *, counts: bool = False) -> Check:
    """Compare the space the model was trained in with genes, the space that is scored.

    Reads ``prediction.uns["scvi_tahoe_prediction"]``, which ``TahoeST.predict`` writes: ``space`` (``"expression"``,
    ``"embedding"``, ``"delta"`` or ``"counts"``), ``genes_from`` (``"network"`` or ``"decoder"``), and of the decoder
    ``decoder_trained``, ``decoder_weight`` and, where known, ``decoder_error``: the decoder's part of the validation
    loss. Genes of a decoder are at best a warning, as the embedding is what was trained and validated. Predictions of
    other models carry no record and pass with a note.
    """
    wanted = "counts" if counts else "expression"
    record: Mapping[str, Any] | None = prediction.uns.get(PREDICTION_RECORD)
    check = partial(Check, "space", allowed=wanted)
    if record is None:
        return check("note", message="the prediction does not say which space it was trained in.")
    space = str(record.get("space", "expression"))
    if space != wanted:
        message = f"the prediction holds {space}, and {wanted} is scored: predict with output={wanted!r}."
        return check("error", message=message)
    if record.get("genes_from", "network") != "decoder":
        return check("ok")
    weight = float(record.get("decoder_weight", float("nan")))
    if not bool(record.get("decoder_trained", False)):
        message = (
            "the model's gene decoder was not trained, so the genes it gives mean nothing. Train it with a gene "
            "decoder loss, or use representation='expression'."
        )
        return check("error", weight, message=message)
    error = float(record.get("decoder_error", float("nan")))
    own = "whose own validation error is not known" if error != error else f"whose own validation error is {error:.4g}"
    little = ", so it may have learned next to nothing" if weight < _SMALL_WEIGHT else ""
    message = (
        f"genes come from a decoder, {own}: the loss trains cell embeddings, and the decoder beside them with weight "
        f"{weight:g}{little}. Models with representation='expression' or 'expression+embedding' are trained on what is "
        "scored."
    )
    return check("warning", error if error == error else weight, message=message)
