"""Checks of the input: mixed contexts, leaked conditions and cells, the space of the prediction."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_tahoe.evaluate._cells import dense
from scvi_tahoe.evaluate._checks import Check, check_if

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable

#: columns that name contexts in public screens
_NAMES = re.compile(r"cell[_ .]?(line|type)s?|celltype|donor|tissue|context|cell[_ .]?name", re.IGNORECASE)
#: largest distance of control means that sampling gives, in units of what it gives on average
_DISTANCE = 2.0
_MAX_CELLS = 1000
#: share of held-out cells that may equal a training cell by chance: shallow cells over few genes do
_CHANCE = 0.01
#: cells made dense at a time
_CHUNK = 1024
#: key of ``uns`` under which a prediction says where its expression comes from
PREDICTION_RECORD = "scvi_tahoe_prediction"
#: weight of the decoder's loss below which it hardly learned; the paper uses 0.1
_SMALL_WEIGHT = 0.001


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
    chosen = [rows[labels == label][:_MAX_CELLS] for label in np.unique(labels)]
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
    ``decoder_trained`` and ``decoder_weight``. Predictions of other models carry no record and pass with a note.
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
    message = f"the gene decoder was trained with a loss weight of {weight:g}, so it may have learned next to nothing."
    return check("warning", weight, message=message) if weight < _SMALL_WEIGHT else check("ok", weight)
