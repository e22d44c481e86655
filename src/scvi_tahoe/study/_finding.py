"""One thing found in a configuration or in a log: how severe, where, what, and what to do instead."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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


@cache
def table(name: str) -> dict[str, dict[str, Any]]:
    """Return one of the tables of rules in this folder."""
    return yaml.safe_load((files("scvi_tahoe.study") / name).read_text("utf-8"))


def found(rule: str, lines: Mapping[str, int] | None = None, **values: Any) -> Finding:
    """Return the finding of a rule in `findings.yaml`; `where` and `level` may be among the values of its template."""
    entry = table("findings.yaml")[rule] | values
    line = (lines or {}).get(entry.get("line_of", entry["where"]))
    message, instead = (entry.get(part, "").format(**entry) for part in ("message", "instead"))
    return Finding(entry.get("rule", rule), entry["level"], entry["where"], message, instead, line)


def findings_text(findings: Sequence[Finding]) -> str:
    """Return findings as text, the most severe first, those of a file in the order of its lines."""
    blocks = []
    for finding in sorted(findings, key=lambda f: (LEVELS.index(f.level), f.line or 0)):
        place = f"line {finding.line}, {finding.where}" if finding.line else finding.where
        blocks.append(f"{finding.level:<8} {place}: {finding.message}")
        if finding.instead:
            blocks.append(f"{'':<8} -> {finding.instead}")
    return "\n".join(blocks)
