"""An arc-state configuration checked: one of our runs, and what arc-state would have made of the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scvi_tahoe.study._arc_config import read_arc_config
from scvi_tahoe.study._arc_convert import run_from_arc
from scvi_tahoe.study._arc_rules import ARC_RULES
from scvi_tahoe.study._finding import Finding, findings_text, worst

if TYPE_CHECKING:
    from pathlib import Path

    from scvi_tahoe.study._run_config import TahoeRun

__all__ = ["ConfigCheck", "check_config"]


@dataclass(frozen=True, eq=False)
class ConfigCheck:
    """An arc-state configuration, seen by us.

    Attributes
    ----------
    path
        The file.
    run
        The same as one of our runs.
    findings
        What arc-state ignores or does otherwise, by line.
    """

    path: Path
    run: TahoeRun
    findings: tuple[Finding, ...]

    def exit_code(self, *, strict: bool = False) -> int:
        """1 if something would make the run meaningless, or, if strict, otherwise than its author thinks; else 0."""
        level = worst(self.findings)
        return int(level == "error" or (strict and level == "warning"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "path": str(self.path),
            "run": self.run.to_dict(),
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def __str__(self) -> str:
        import yaml

        run = self.run.to_dict()
        shown = {key: {k: v for k, v in part.items() if v not in (None, [], {})} if isinstance(part, dict) else part
                 for key, part in run.items() if part is not None}  # fmt: skip
        text = yaml.safe_dump(shown, sort_keys=False, width=100)
        counts = ", ".join(
            f"{n} {level}{'s' * (n != 1)}"
            for level in ("error", "warning", "note")
            if (n := sum(f.level == level for f in self.findings))
        )
        return f"{self.path} as a run of ours:\n\n{text}\n{counts or 'nothing to say'}\n{findings_text(self.findings)}"


def check_config(path: str | Path) -> ConfigCheck:
    """Read a configuration of arc-state, convert it, and say what arc-state ignores or gets wrong in it.

    Parameters
    ----------
    path
        The ``config.yaml`` of a run.

    Returns
    -------
    :class:`ConfigCheck`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a configuration of arc-state.

    Examples
    --------
    >>> from scvi_tahoe.study import check_config
    >>> print(check_config("config.yaml"))  # doctest: +SKIP
    """
    config = read_arc_config(path)
    findings = sorted((f for rule in ARC_RULES for f in rule(config)), key=lambda f: f.line or 0)
    return ConfigCheck(config.path, run_from_arc(config), tuple(findings))
