"""The outcome of a check, and what is done about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal

import pandas as pd

from scvi_tahoe._messages import warn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

#: from harmless to severe
_STATUSES = ("ok", "note", "warning", "error")


class RepresentationError(ValueError):
    """The prediction is not in the space or on the scale of the reference, so its scores would mean nothing."""


class EvaluationWarning(UserWarning):
    """A score was computed but should not be taken at face value."""


@dataclass(frozen=True)
class Check:
    """Outcome of one check."""

    #: name of the check
    name: str
    #: ``"ok"``, ``"note"`` (worth knowing), ``"warning"`` or ``"error"``
    status: Literal["ok", "note", "warning", "error"]
    #: the statistic
    value: float = float("nan")
    #: values that pass, as text
    allowed: str = ""
    #: one sentence that says what was found and what to do
    message: str = ""


def check_if(
    wrong: bool | np.bool_,
    name: str,
    value: float,
    allowed: str,
    message: str,
    status: Literal["note", "warning", "error"] = "warning",
) -> Check:
    """Return a finding of the given status if something is wrong."""
    return Check(name, status if wrong else "ok", value, allowed, message if wrong else "")


def check_interval(
    name: str,
    value: float,
    *,
    message: str,
    warn: tuple[float, float],
    error: tuple[float, float] = (float("-inf"), float("inf")),
) -> Check:
    """Check a statistic against the intervals, ends included, without a warning and without an error; NaN passes."""
    status: Literal["warning", "error"] = "error" if value < error[0] or value > error[1] else "warning"
    wrong = status == "error" or value < warn[0] or value > warn[1]
    return check_if(wrong, name, float(value), f"{warn[0]:g} to {warn[1]:g}", message, status)


def most_severe(found: Mapping[str, Sequence[Check]]) -> list[Check]:
    """Keep the most severe outcome over contexts of each check; with several contexts its message names the first."""
    by_name: dict[str, list[tuple[str, Check]]] = {}
    for context, checks in found.items():
        for check in checks:
            by_name.setdefault(check.name, []).append((context, check))
    kept = []
    for outcomes in by_name.values():
        context, worst = max(outcomes, key=lambda outcome: _STATUSES.index(outcome[1].status))
        if worst.message and len(found) > 1:
            others = sum(check.status == worst.status for _, check in outcomes) - 1
            where = f"in context {context!r}" + (f" and {others} more" if others else "")
            worst = replace(worst, message=f"{where}: {worst.message}")
        kept.append(worst)
    return kept


def raise_or_warn(checks: Sequence[Check], policy: Literal["error", "warn", "off"]) -> None:
    """Warn about warnings, and raise a :class:`RepresentationError` on errors, warn about them, or do nothing."""
    if policy == "off":
        return
    for check in checks:
        if check.status == "warning" or (check.status == "error" and policy == "warn"):
            warn(f"{check.name}: {check.message}", EvaluationWarning)
    errors = [f"{check.name}: {check.message}" for check in checks if check.status == "error"]
    if errors and policy == "error":
        hint = 'To score it anyway, pass representation_check="warn".'
        raise RepresentationError(" ".join([*errors, hint]))


def checks_table(checks: Sequence[Check], *, beside: pd.DataFrame | None = None) -> pd.DataFrame:
    """Make a table of checks and of another such table, one row per check, the most severe first."""
    columns = ["name", "status", "value", "allowed", "message"]
    table = pd.DataFrame([asdict(check) for check in checks], columns=columns).set_index("name")
    table = table if beside is None else pd.concat([table, beside])
    return table.sort_values("status", key=lambda status: -status.map(_STATUSES.index), kind="stable")
