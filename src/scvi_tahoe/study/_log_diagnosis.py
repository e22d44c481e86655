"""Training logs diagnosed: each by itself, and each beside the run it started from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scvi_tahoe.study._finding import Finding, findings_text
from scvi_tahoe.study._log_rules import LOG_RULES, epoch_length

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scvi_tahoe.study._training_log import TrainingLog


@dataclass(frozen=True, eq=False)
class LogDiagnosis:
    """What was found in the log of a run.

    Attributes
    ----------
    log
        The log.
    findings
        What was found, in the order of the rules.
    """

    log: TrainingLog
    findings: tuple[Finding, ...]

    def by_rule(self, rule: str) -> Finding | None:
        """The finding of a rule, or None."""
        return next((f for f in self.findings if f.rule == rule), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        step, value = self.log.best or (None, None)
        return {
            "name": self.log.name,
            "path": str(self.log.path),
            "n_steps": self.log.n_steps,
            "best_step": step,
            "best_value": value,
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def __str__(self) -> str:
        return f"{self.log.name} ({self.log.n_steps:,} steps, {self.log.path})\n{findings_text(self.findings)}"


def diagnose(logs: Sequence[TrainingLog]) -> list[LogDiagnosis]:
    """Diagnose logs; where one run started from another of them, the two are compared.

    Parameters
    ----------
    logs
        Logs, with their configurations where they have one.
    """
    by_name = {log.path.resolve().parent.name: log for log in logs} | {log.name: log for log in logs}
    found = []
    for log in logs:
        findings = [finding for rule in LOG_RULES for finding in rule(log)]
        source, checkpoint = _source(log)
        if source in by_name:
            findings += _start(by_name[source], checkpoint)
        findings += _accumulation(log, logs)
        found.append(LogDiagnosis(log, tuple(findings)))
    return found


def _source(log: TrainingLog) -> tuple[str, str]:
    """Name of the run that a run started from, and its checkpoint."""
    ours = log.setting("start.source")
    if isinstance(ours, str):
        return ours.replace("\\", "/").rstrip("/").split("/")[-1], str(log.setting("start.checkpoint") or "best")
    arc = log.setting("model.kwargs.init_from")
    match = re.search(r"([^/\\]+)[/\\]checkpoints[/\\]([^/\\]+)$", arc) if isinstance(arc, str) else None
    return (match[1], match[2]) if match else ("", "")


def _start(source: TrainingLog, checkpoint: str) -> Iterator[Finding]:
    validation = source.get("validation")
    if source.best is None:
        return
    best_step, best = source.best
    if checkpoint.startswith("last"):
        step, value = int(validation.index[-1]), float(validation.iloc[-1])
    elif match := re.search(r"step=(\d+)", checkpoint):
        step = int(match[1]) - 1
        nearest = validation.iloc[abs(validation.index.to_numpy() - step).argmin()]
        value = float(nearest)
    else:
        return
    if value <= best * 1.001:
        return
    yield Finding(
        rule="start_not_best", level="warning", where="start",
        message=f"the run started from {checkpoint} of {source.name} (step {step:,}, validation {value:.4g}), "
        "though the "
        f"best there was step {best_step:,} with {best:.4g}.",
        instead=f"start from {_named(source, best_step)}; ours starts from the best unless 'last' is asked for.",
    )  # fmt: skip


def _named(source: TrainingLog, step: int) -> str:
    return "best.ckpt" if source.origin == "scvi-tahoe" else f"step {step + 1:,}"


def _cells(log: TrainingLog, *, accumulated: bool) -> float | None:
    """Cells of an epoch, from its length in steps and the cells of a step."""
    length = epoch_length(log.get("epoch"))
    sets, cells = log.setting("training.batch_size"), log.setting("model.kwargs.cell_set_len")
    times = log.setting("training.accumulate_grad_batches", 1) if accumulated else 1
    numbers = (length, sets, cells, times)
    if not all(isinstance(n, int) and n > 0 for n in numbers):
        return None
    return float(length * sets * cells * times)  # type: ignore[operator]


def _accumulation(log: TrainingLog, logs: Sequence[TrainingLog]) -> Iterator[Finding]:
    """Epochs of runs on the same data hold the same cells: by this, accumulation shows whether it happened."""
    times = log.setting("training.accumulate_grad_batches", 1)
    without = _cells(log, accumulated=False)
    if without is None or not isinstance(times, int) or times < 2:
        return
    for other in logs:
        theirs = other.setting("training.accumulate_grad_batches", 1)
        same = _cells(other, accumulated=False)
        if other is log or theirs == times or same is None or abs(same / without - 1) > 0.03:
            continue
        yield Finding(
            rule="accumulation_without_effect", level="warning", where="training.accumulate_grad_batches",
            message=f"accumulation over {times} minibatches did not happen: counted without it, an epoch has "
            f"{without:,.0f} cells here and {same:,.0f} in {other.name}, which asked for {theirs}; counted with it, "
            f"{without * times:,.0f} and {same * theirs:,.0f}.",
            instead="an optimizer step had one minibatch of sets; train.accumulate is what ours obeys.",
        )  # fmt: skip
        return
