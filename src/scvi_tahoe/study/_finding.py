"""One thing found in a configuration or in a log: how severe, where, what, and what to do instead."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes
    ----------
    rule
        Name of the rule, for scripts.
    level
        ``"error"`` (the run would mean nothing), ``"warning"`` (not what its author thinks) or ``"note"``.
    where
        Key of a configuration, or column of a log.
    message
        What was found.
    instead
        What we do, or what to do.
    line
        Line of the key in its file; None where there is none.
    """

    rule: str
    level: Level
    where: str
    message: str
    instead: str = ""
    line: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def worst(findings: Sequence[Finding]) -> Level | None:
    """Return the most severe level among findings, or None."""
    return next((level for level in LEVELS if any(f.level == level for f in findings)), None)


def findings_text(findings: Sequence[Finding]) -> str:
    """Return findings as text, the most severe first, those of a file in the order of its lines."""
    blocks = []
    for finding in sorted(findings, key=lambda f: (LEVELS.index(f.level), f.line or 0)):
        place = f"line {finding.line}, {finding.where}" if finding.line else finding.where
        blocks.append(f"{finding.level:<8} {place}: {finding.message}")
        if finding.instead:
            blocks.append(f"{'':<8} -> {finding.instead}")
    return "\n".join(blocks)
