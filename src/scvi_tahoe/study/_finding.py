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
    """One thing found by a ``rule``: ``message`` says what, ``instead`` what we do, or what to do.

    Attributes
    ----------
    level
        ``"error"`` (the run would mean nothing), ``"warning"`` (not what its author thinks) or ``"note"``.
    where, line
        Key of a configuration with its line in the file, or column of a log.
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
    lines = []
    for f in sorted(findings, key=lambda f: (LEVELS.index(f.level), f.line or 0)):
        lines.append(f"{f.level:<8} {f'line {f.line}, ' if f.line else ''}{f.where}: {f.message}")
        lines += [f"{'':<8} -> {f.instead}"] if f.instead else []
    return "\n".join(lines)
