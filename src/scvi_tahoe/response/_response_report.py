"""What a response model learned: weights of kernels, tables and members, and scores of left-out conditions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_tahoe.response._judged import question_name
from scvi_tahoe.response._leave_out import left_out_blocks, some_labels
from scvi_tahoe.response._members import MEMBERS
from scvi_tahoe.response._regression import solve
from scvi_tahoe.response._silent import noise_of_regression

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scvi_tahoe.response._fitted import Fitted
    from scvi_tahoe.response._kernels import ConditionKernels

_SCORES = ("pearson", "pds", "mae", "rmse")
_COLUMNS = ("part", "question", "name", "weight", *_SCORES, "n_conditions")
_NONE = -40.0  # logarithm of the weight of a kernel that is left out
_NUGGET = "own to each condition"
_MODEL = "response model"
_SHOWN = 6  # kernels in the text
_JUDGED = 250  # conditions by which losses are judged


def response_report(fitted: Fitted, notes: Sequence[str] = (), *, losses: bool = True) -> pd.DataFrame:
    """Return weights, losses and scores as one tidy table, with a short text in ``attrs["text"]``."""
    kernels, tables = _kernel_shares(fitted)
    lost = _losses(fitted) if losses else {}
    rows: list[dict[str, object]] = [{"part": "kernel", "name": k, "weight": w} for k, w in kernels.items()]
    rows += [{"part": "table", "name": k, "weight": w, "loss": lost.get(k)} for k, w in tables.items()]
    rows += [{"part": "family", "name": k, "loss": loss} for k, loss in lost.items() if k not in tables]
    weights = {question_name(key): stack.weights for key, stack in fitted.stacks.items()}
    for question, scores in fitted.scores.items():
        of_member = dict(zip(MEMBERS, weights[question], strict=True))
        for name, found in scores.items():
            row = {"part": "member", "question": question, "name": name, "weight": of_member.get(name)}
            rows.append(row | {key: found[key] for key in _SCORES} | {"n_conditions": found["n"]})
    report = pd.DataFrame(rows, columns=[*_COLUMNS, "loss"] if losses else list(_COLUMNS))
    lines = _lines(fitted, kernels, tables, notes, lost)
    report.attrs["text"] = "\n".join(lines)
    return report


def short_report(fitted: Fitted) -> str:
    """Return one line for the kernels, and one for each kind of question: errors of the model and of simple rules."""
    kernels, _ = _kernel_shares(fitted)
    lines = _lines(fitted, kernels, {}, ())[:2] + _of_scale(fitted) + _lost(_losses(fitted)) + _of_network(fitted)
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


def _families(kernels: ConditionKernels) -> dict[str, np.ndarray]:
    """Kernels that say the same thing: which of them belong to each table, to contexts, to perturbations seen again."""
    names = kernels.names
    found = {
        "what is specific to a context": [" x context" in name or " x likeness" in name for name in names],
        "the perturbation elsewhere": [name.startswith(("perturbation", "dose")) for name in names],
    }
    found |= {table: kernels.of_table(table).tolist() for table in kernels.tables}
    return {family: np.array(members) for family, members in found.items() if any(members) and not all(members)}


def _losses(fitted: Fitted) -> dict[str, float]:
    """Growth of the kernels' squared error on left-out conditions, without each family of kernels.

    Weights stay as they were learned, and up to 250 conditions decide, so that it takes a fraction of a second. What
    perturbations do elsewhere is judged by conditions that are left out, the rest by perturbations in any context.
    """
    regression, kernels, parser = fitted.regression, fitted.kernels, fitted.parser
    rows = some_labels(fitted.conditions, _JUDGED, np.random.default_rng(0))
    some, seen = fitted.conditions.take(rows, parser), fitted.members.seen.changes[rows]
    ways = left_out_blocks(some, fitted.members)
    if "condition" not in ways:
        return {}
    truth = seen @ regression.basis_QG.T
    noise = noise_of_regression(fitted.members.seen.changes, fitted.members.noise, fitted.conditions)[rows]

    def error(off: np.ndarray, way: str) -> float:
        learned = regression.learned
        without = np.append(off, False)
        weights = replace(learned, logs=tuple(np.where(without, _NONE, log) for log in learned.logs))
        _, found = solve(
            weights, kernels, some, seen, noise, blocks={way: ways[way]}, device=fitted.device, tick=lambda: None
        )
        predicted = found[way].rows
        return float(np.square(found[way].mean_nQ[predicted] - truth[predicted]).sum())

    result: dict[str, float] = {}
    before: dict[str, float] = {}
    for family, off in _families(kernels).items():
        way = "perturbation" if family in kernels.tables and "perturbation" in ways else "condition"
        before[way] = before.get(way) or max(error(np.zeros(len(off), bool), way), 1e-300)
        result[family] = error(off, way) / before[way] - 1
    return result


def _lost(losses: Mapping[str, float]) -> list[str]:
    """Return the line of the losses, if there are any."""
    listed = ", ".join(f"{name} {loss:+.1%}" for name, loss in losses.items())
    return [f"Squared error of left-out conditions without these kernels: {listed}."] if listed else []


def _lines(
    fitted: Fitted,
    kernels: dict[str, float],
    tables: dict[str, float],
    notes: Sequence[str],
    losses: Mapping[str, float] | None = None,
) -> list[str]:
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
    lines += _of_scale(fitted) + _lost(losses or {})
    lines += _of_network(fitted)
    for question, scores in fitted.scores.items():
        n = next(iter(scores.values()))["n"]
        lines.append(f"{n} conditions predicted without themselves, from {question}:")
        table = pd.DataFrame(scores).T[list(_SCORES)]
        lines += [f"  {line}" for line in table.to_string(float_format=lambda v: f"{v:.4f}").splitlines()]
        changed = [name for name in scores if name.startswith(f"{_MODEL} x ")]
        if changed:
            lines.append(f"  {_trade(scores[_MODEL], scores[changed[0]], changed[0].rpartition(' ')[2])}")
    if not fitted.scores:
        lines.append("No condition can be predicted by others: there are no scores.")
    return lines


def _of_scale(fitted: Fitted) -> list[str]:
    """Say on which scale contexts are compared, where it matters."""
    if fitted.scale is None or len(fitted.conditions.context_names) < 2:
        return []
    return [
        "Genes change more in contexts whose controls express them more: changes are compared relative to that, "
        f"to the power of {fitted.scale.power:g}."
    ]


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
    if factor == "1":
        return "no factor of what is specific to a perturbation tells these conditions apart better"
    return (
        f"what is specific to a perturbation times {factor}: PDS {before['pds']:.3f} to {after['pds']:.3f}, at MAE "
        f"{before['mae']:.4f} to {after['mae']:.4f} and Pearson {before['pearson']:.3f} to {after['pearson']:.3f}"
    )
