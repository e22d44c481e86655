"""What a response model learned: weights of kernels, tables and members, and scores of left-out conditions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_tahoe.response._judged import question_name
from scvi_tahoe.response._leave_out import left_out_blocks
from scvi_tahoe.response._members import MEMBERS
from scvi_tahoe.response._regression import solve
from scvi_tahoe.response._silent import noise_of_regression

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scvi_tahoe.response._response_model import Fitted

_SCORES = ("pearson", "pds", "mae", "rmse")
_COLUMNS = ("part", "question", "name", "weight", *_SCORES, "n_conditions")
_NONE = -40.0  # logarithm of the weight of a kernel that is left out
_NUGGET = "own to each condition"
_MODEL = "response model"
_SHOWN = 6  # kernels in the text


def response_report(fitted: Fitted, notes: Sequence[str] = (), *, losses: bool = False) -> pd.DataFrame:
    """Return weights and scores as one tidy table, with a short text in ``attrs["text"]``."""
    kernels, tables = _kernel_shares(fitted)
    lost = _losses(fitted) if losses else {}
    rows: list[dict[str, object]] = [{"part": "kernel", "name": k, "weight": w} for k, w in kernels.items()]
    rows += [{"part": "table", "name": k, "weight": w, "loss": lost.get(k)} for k, w in tables.items()]
    weights = {question_name(key): stack.weights for key, stack in fitted.stacks.items()}
    for question, scores in fitted.scores.items():
        of_member = dict(zip(MEMBERS, weights[question], strict=True))
        for name, found in scores.items():
            row = {"part": "member", "question": question, "name": name, "weight": of_member.get(name)}
            rows.append(row | {key: found[key] for key in _SCORES} | {"n_conditions": found["n"]})
    report = pd.DataFrame(rows, columns=[*_COLUMNS, "loss"] if losses else list(_COLUMNS))
    lines = _lines(fitted, kernels, tables, notes)
    if lost:
        lines.append(f"Squared error without a table: {', '.join(f'{k} {loss:+.1%}' for k, loss in lost.items())}.")
    report.attrs["text"] = "\n".join(lines)
    return report


def short_report(fitted: Fitted) -> str:
    """Return one line for the kernels, and one for each kind of question: errors of the model and of simple rules."""
    kernels, _ = _kernel_shares(fitted)
    lines = _lines(fitted, kernels, {}, ())[:2] + _of_network(fitted)
    for question, scores in fitted.scores.items():
        errors = ", ".join(f"{name} {found['rmse']:.4f}" for name, found in scores.items() if name != "kernels")
        n = scores[_MODEL]["n"]
        asked = f"- {n} conditions predicted without themselves, from {question}"
        lines.append(f"{asked}: root mean squared error {errors}")
    return "\n".join(lines)


def _kernel_shares(fitted: Fitted) -> tuple[dict[str, float], dict[str, float]]:
    """Share of the variance of training conditions by kernel, largest first, and of all kernels of each table."""
    regression = fitted.regression
    own = fitted.kernels.diagonals(fitted.conditions).mean(axis=1)
    total = np.zeros(len(own) + 1)
    for group in regression.groups:
        size = np.square(regression.size_Q[group.start : group.stop]).sum()
        total += np.append(group.weights[:-1] * own, group.weights[-1]) * size
    share = total / max(total.sum(), 1e-300)
    names = (*fitted.kernels.names, _NUGGET)
    kernels = dict(sorted(zip(names, share.tolist(), strict=True), key=lambda item: -item[1]))
    sets = list(fitted.kernels.tables) + (["all tables"] if len(fitted.kernels.tables) > 1 else [])
    return kernels, {t: sum(w for k, w in kernels.items() if k.startswith(f"{t}, ")) for t in sets}


def _losses(fitted: Fitted) -> dict[str, float]:
    """Growth of the kernels' squared error on left-out perturbations, for each table that they do without."""
    regression, kernels, seen = fitted.regression, fitted.kernels, fitted.members.seen.changes
    ways = left_out_blocks(fitted.conditions, fitted.members)
    way = next((way for way in ("perturbation", "condition") if way in ways), None)
    if way is None or not kernels.tables:
        return {}
    truth, noise = seen @ regression.basis_QG.T, noise_of_regression(seen, fitted.members.noise, fitted.conditions)

    def error(table: str | None) -> float:
        without = [table is not None and name.startswith(f"{table}, ") for name in kernels.names]
        if table is not None and len(kernels.tables) > 1:
            without = [out or name.startswith("all tables, ") for out, name in zip(without, kernels.names, strict=True)]
        off = np.array([*without, False])
        learned = regression.learned
        weights = replace(learned, logs=tuple(np.where(off, _NONE, log) for log in learned.logs))
        _, found = solve(
            weights, kernels, fitted.conditions, seen, noise, blocks={way: ways[way]}, device=fitted.device,
            tick=lambda: None, inducing=regression.inducing,
        )  # fmt: skip
        rows = found[way].rows
        return float(np.square(found[way].mean_nQ[rows] - truth[rows]).sum())

    before = max(error(None), 1e-300)
    return {table: error(table) / before - 1 for table in kernels.tables}


def _lines(fitted: Fitted, kernels: dict[str, float], tables: dict[str, float], notes: Sequence[str]) -> list[str]:
    conditions = fitted.conditions
    lines = [
        f"Response model of {len(conditions)} conditions ({len(conditions.labels)} perturbations, "
        f"{len(conditions.context_names)} contexts) and {len(fitted.responses.genes)} genes."
    ]
    if fitted.silent:
        lines.append(f"Perturbations show nothing in {', '.join(sorted(fitted.silent))}: it has no say elsewhere.")
    lines += [f"- {note}" for note in notes]
    strongest = [f"{name} {weight:.0%}" for name, weight in kernels.items() if weight >= 0.005][:_SHOWN]
    lines.append(f"Variance by kernel: {', '.join(strongest)}.")
    if tables:
        lines.append(f"By table: {', '.join(f'{name} {weight:.0%}' for name, weight in tables.items())}.")
    lines += _of_network(fitted)
    for question, scores in fitted.scores.items():
        n = next(iter(scores.values()))["n"]
        lines.append(f"{n} conditions predicted without themselves, from {question}:")
        table = pd.DataFrame(scores).T[list(_SCORES)]
        lines += [f"  {line}" for line in table.to_string(float_format=lambda v: f"{v:.4f}").splitlines()]
        changed = [name for name in scores if name.startswith(f"{_MODEL} x ")]
        if changed and changed[0] != f"{_MODEL} x 1":
            lines.append(f"  {_trade(scores[_MODEL], scores[changed[0]], changed[0].rpartition(' ')[2])}")
    if not fitted.scores:
        lines.append("No condition can be predicted by others: there are no scores.")
    return lines


def _of_network(fitted: Fitted) -> list[str]:
    """Say what the network takes away from the error of predictions, one line for each kind of question."""
    if fitted.head is None:
        return []
    used = {key: gain for key, gain in fitted.head.gains.items() if gain.is_used}
    return [
        f"A network on the evidence of single genes takes away {gain.share:.1%} of the squared error "
        f"[{gain.share - gain.half_width:.1%}, {gain.share + gain.half_width:.1%}] of {gain.n_conditions} conditions "
        f"predicted without themselves, from {question_name(key)}."
        for key, gain in used.items()
    ]


def _trade(before: Mapping[str, float], after: Mapping[str, float], factor: str) -> str:
    return (
        f"what is specific to a perturbation times {factor}: PDS {before['pds']:.3f} to {after['pds']:.3f}, at MAE "
        f"{before['mae']:.4f} to {after['mae']:.4f} and Pearson {before['pearson']:.3f} to {after['pearson']:.3f}"
    )
