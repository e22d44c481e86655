"""What training logs give away, rule by rule: each on its own, and compared with the run it started from."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_tahoe._arguments import checked
from scvi_tahoe.study._finding import Finding, findings_text, found

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd

    from scvi_tahoe.study._training_log import TrainingLog

    Found = Iterator[tuple[str, dict[str, Any]]]  # entries of findings.yaml, and what they are filled with

_FLAT, _RISEN, _FALLEN = 0.01, 0.02, 2.0
_REPEATS = 0.5
_BUSY, _IDLE = 0.5, 20.0
_MIN_PAIRS, _MAX_PAIRS = 20, 20_000


@dataclass(frozen=True, eq=False)
class LogDiagnosis:
    """What was found in the log of a run, in the order of the rules."""

    log: TrainingLog
    findings: tuple[Finding, ...]

    def by_rule(self, rule: str) -> Finding | None:
        """Return the finding of a rule, or None."""
        return next((f for f in self.findings if f.rule == rule), None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
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


@checked()
def diagnose(logs: Sequence[TrainingLog]) -> list[LogDiagnosis]:
    """Diagnose logs; where one run started from another of them, the two are compared.

    Parameters
    ----------
    logs
        Logs, with their configurations where they have one.
    """
    by_name = {log.path.resolve().parent.name: log for log in logs} | {log.name: log for log in logs}
    diagnoses = []
    for log in logs:
        entries = [entry for find in _RULES for entry in find(log)]
        source, checkpoint = _source(log)
        if source in by_name:
            entries += _start(by_name[source], checkpoint)
        entries += _accumulation(log, logs)
        diagnoses.append(LogDiagnosis(log, tuple(found(rule, **values) for rule, values in entries)))
    return diagnoses


def _best_validation(log: TrainingLog) -> Found:
    validation = log.get("validation")
    if log.best is None:
        yield "no_validation", {}
        return
    step, value = log.best
    last_step, last = int(validation.index[-1]), float(validation.iloc[-1])
    behind = "" if step == last_step else f"; the last, at step {last_step:,}, is {last:.4g}"
    behind += f", {last / value - 1:+.1%}" if behind and value else ""
    best = "only validation" if len(validation) == 1 else f"best of {len(validation)} validations"
    yield "best_step", {"best": best, "value": value, "step": step, "behind": behind,
                        "checkpoint": _checkpoint(log, step)}  # fmt: skip


def _checkpoint(log: TrainingLog, step: int) -> str:
    if log.origin == "scvi-tahoe":
        best = "both have the best weights, which are the initial ones if no step was better"
        return f"use best.ckpt or the saved model: {best}."
    every = log.setting("training.ckpt_every_n_steps")
    if not isinstance(every, int) or every < 1:
        return f"predict, and start later rounds, with the checkpoint of step {step + 1:,}."
    nearest = max(every, round((step + 1) / every) * every)
    if nearest > log.n_steps:
        kept = f"checkpoints were kept every {every:,} steps"
        return f"{kept}, so none is near step {step + 1:,}; last.ckpt is what there is."
    exactly = "" if nearest == step + 1 else f" (the nearest to step {step + 1:,} of those kept every {every:,})"
    return f"predict, and start later rounds, with step={nearest}.ckpt{exactly}."


def _course_of_validation(log: TrainingLog) -> Found:
    validation, train = log.get("validation"), log.get("train")
    n = len(validation)
    if n >= 3 and len(train) >= 10:
        low, high = validation.min(), validation.max()
        fallen = float(train.iloc[:2].mean() / train.iloc[-5:].mean())
        if high < low * (1 + _FLAT) and fallen > _FALLEN:
            yield "flat_validation", {"low": low, "high": high, "first": train.iloc[0], "last": train.iloc[-1]}
    if log.best is not None and n >= 8:
        (step, best), n_last = log.best, max(3, n // 10)
        tail = float(validation.iloc[-n_last:].mean())
        rise, after = tail / best - 1 if best else 0.0, 1 - (step + 1) / log.n_steps
        if (validation.index > step).sum() >= 3 and rise > _RISEN:
            yield "rising_validation", {"best": best, "step": step, "tail": tail, "n_last": n_last, "rise": rise,
                                        "after": after}  # fmt: skip
    if 0 < n < 5:
        yield "few_validations", {"n_steps": log.n_steps, "times": "once" if n == 1 else f"{n} times"}
    if n >= 10:  # noise of neighbouring validations, so that slow changes do not count
        noise = float(np.median(np.abs(np.diff(validation))) / 0.6745 / np.sqrt(2))
        within = int((validation < validation.min() + 2 * noise).sum())
        yield "validation_noise", {"noise": noise, "within": within, "n": n}


def _divergence(log: TrainingLog) -> Found:
    for name in ("train", "validation"):
        series = log.get(name)
        if len(series) and not np.isfinite(series.to_numpy(dtype=float)).all():
            yield "not_finite", {"where": name}
        elif len(series) >= 5 and (end := series.iloc[-3:].mean()) > 2 * (begin := series.iloc[:3].mean()):
            yield "divergence", {"where": name, "end": end, "begin": begin}


def _untrained_losses(log: TrainingLog) -> Found:
    validation, genes, sizes = log.get("validation"), log.get("decoder_validation"), ""
    if log.origin != "scvi-tahoe" and len(log.get("decoder_train")) and len(log.get("train")):
        if len(validation) and len(genes):
            sizes = (
                f" On held-out cells the genes' loss is {genes.min():.3g} at its best and the embedding's "
                f"{validation.min():.3g}, {float(genes.min() / validation.min()):.0f} times less."
            )
        yield "loss_not_logged", {"sizes": sizes}
    named, trained = log.setting("training.loss_fn"), log.setting("model.kwargs.loss")
    if named is not None and trained is not None and named != trained:
        yield "loss_named_not_trained", {"named": named, "trained": trained}


def _learning_rate(log: TrainingLog) -> Found:
    if not log.rates:
        yield "rate_not_logged", {}
    constant = []
    for name, rate in log.rates.items():
        values = rate.to_numpy(dtype=float)
        # a rate of 0 throughout is that of a frozen part; what does not decay has the rate of its part
        if len(values) < 3 or not values.any() or name.endswith("_no_decay"):
            continue
        peak, place = values.max(), int(values.argmax())
        if np.ptp(values) <= 1e-6 * peak:
            constant.append(f"{name} {values[0]:.3g}")
        elif rises := int((np.diff(values[place:]) > 1e-3 * peak).sum()):
            yield "periodic_rate", {"where": name, "peak": peak, "rises": rises}
        else:
            yield "rate_shape", {"where": name, "first": values[0], "peak": peak, "last": values[-1]}
    if constant:
        yield "constant_rate", {"rates": ", ".join(constant)}


def _repeated_epochs(log: TrainingLog) -> Found:
    """Find a training loss that repeats itself from epoch to epoch.

    A loader that composes its cell sets once and keeps their order shows the network the same sets at the same place of
    every epoch. A log with one value every few dozen steps then fluctuates with a period, which is easily taken for a
    learning rate that does.
    """
    period = epoch_length(log.get("epoch"))
    correlation, n_pairs = repetition(log.get("train"), period)
    if correlation >= _REPEATS and log.origin != "scvi-tahoe":
        yield "repeated_epochs", {"period": period, "correlation": correlation, "n_pairs": n_pairs}


def epoch_length(epoch: pd.Series) -> int | None:
    """Return the steps of an epoch, or None where the log does not fix it.

    ``epoch`` is the number of the epoch by step, both counted from 0: with steps ``s`` and epochs ``e`` the length
    ``L`` is bounded by ``(s + 1) / (e + 1) <= L <= (s + 1) / e``.
    """
    values, steps = epoch.to_numpy(dtype=float), epoch.index.to_numpy(dtype=float)
    if not len(values) or values.max() < 1:
        return None
    lower = ((steps + 1) / (values + 1)).max()
    later = values > 0
    upper = ((steps[later] + 1) / values[later]).min()
    length = math.ceil(lower - 1e-9)
    return length if length <= upper + 1e-9 and length > 1 else None


def repetition(train: pd.Series, period: int | None) -> tuple[float, int]:
    """Return the correlation of training losses at the same place of different epochs, and the number of pairs.

    The correlation is 0 if too few can be compared.
    """
    if period is None or len(train) < _MIN_PAIRS:
        return 0.0, 0
    # the first tenth falls steeply, and a running median takes the slow rest away
    kept = train[train > 0].iloc[len(train) // 10 :]
    logarithm = np.log(kept)
    residual = (logarithm - logarithm.rolling(21, center=True, min_periods=5).median()).to_numpy()
    place = kept.index.to_numpy() % period
    first, second = np.triu_indices(len(place), k=1)
    same = np.flatnonzero(place[first] == place[second])[:_MAX_PAIRS]
    a, b = residual[first[same]], residual[second[same]]
    if len(same) < _MIN_PAIRS or a.std() == 0 or b.std() == 0:
        return 0.0, len(same)
    return float(np.corrcoef(a, b)[0, 1]), len(same)


def _throughput(log: TrainingLog) -> Found:
    sets, step = log.get("sets_per_second"), log.get("seconds_per_step")
    if sets.empty and step.empty:
        return
    use = float(log.get("utilisation").median())
    outside = 0.0
    if len(sets) and len(step):
        # without the configuration, which has the number of sets per step, a step is taken to have one: a lower bound
        per_step = log.setting("training.batch_size", 1)
        per_step = per_step if isinstance(per_step, int) and per_step >= 1 else 1
        outside = max(0.0, 1 - float(step.median()) * float(sets.median()) / per_step)
    facts = ", ".join([
        *([f"{sets.median():.1f} sets per second (median)"] if len(sets) else []),
        *([f"{step.median():.2f} s inside a training step"] if len(step) else []),
        *([f"{use:.1f} % of the device's arithmetic"] if use == use else []),
    ])  # fmt: skip
    blame = ": the device waited for the loader"
    if outside:
        blame = f"; {outside:.0%} of the time was spent outside the training step: the loader was the limit"
    limited = outside > _BUSY or use < _IDLE
    yield "limited_throughput" if limited else "throughput", {"facts": facts, "blame": blame}


def _resumed(log: TrainingLog) -> Found:
    """Find a log that begins in the middle: an optimizer state was taken over."""
    train = log.get("train")
    begins_late = len(train) >= 3 and train.index[0] > 3 * float(np.median(np.diff(train.index)))
    if begins_late and log.origin != "scvi-tahoe":
        yield "resumed", {"step": train.index[0]}


#: in the order of the findings
_RULES = (
    _best_validation, _course_of_validation, _divergence, _untrained_losses, _learning_rate, _repeated_epochs,
    _throughput, _resumed,
)  # fmt: skip


def _source(log: TrainingLog) -> tuple[str, str]:
    """Return the name of the run that a run started from, and its checkpoint."""
    ours = log.setting("start.source")
    if isinstance(ours, str):
        return ours.replace("\\", "/").rstrip("/").split("/")[-1], str(log.setting("start.checkpoint") or "best")
    arc = log.setting("model.kwargs.init_from")
    match = re.search(r"([^/\\]+)[/\\]checkpoints[/\\]([^/\\]+)$", arc) if isinstance(arc, str) else None
    return (match[1], match[2]) if match else ("", "")


def _start(source: TrainingLog, checkpoint: str) -> Found:
    """Compare the checkpoint that a run started from with the best of its source."""
    validation = source.get("validation")
    if source.best is None:
        return
    best_step, best = source.best
    if checkpoint.startswith("last"):
        step, value = int(validation.index[-1]), float(validation.iloc[-1])
    elif match := re.search(r"step=(\d+)", checkpoint):
        step = int(match[1]) - 1
        value = float(validation.iloc[abs(validation.index.to_numpy() - step).argmin()])
    else:
        return
    if value > best * 1.001:
        named = "best.ckpt" if source.origin == "scvi-tahoe" else f"step {best_step + 1:,}"
        yield "start_not_best", {"checkpoint": checkpoint, "source": source.name, "step": step, "value": value,
                                 "best_step": best_step, "best": best, "named": named}  # fmt: skip


def _cells_of_epoch(log: TrainingLog) -> float | None:
    """Return the cells of an epoch, from its length in steps and the cells of a step without accumulation."""
    length = epoch_length(log.get("epoch"))
    numbers = (length, log.setting("training.batch_size"), log.setting("model.kwargs.cell_set_len"))
    return float(math.prod(numbers)) if all(isinstance(n, int) and n > 0 for n in numbers) else None  # type: ignore[arg-type]


def _accumulation(log: TrainingLog, logs: Sequence[TrainingLog]) -> Found:
    """Compare epochs of runs on the same data, which hold the same cells: accumulation shows whether it happened."""
    key = "training.accumulate_grad_batches"
    times, cells = log.setting(key, 1), _cells_of_epoch(log)
    if cells is None or not isinstance(times, int) or times < 2:
        return
    for other in logs:
        theirs, same = other.setting(key, 1), _cells_of_epoch(other)
        if other is log or theirs == times or same is None or abs(same / cells - 1) > 0.03:
            continue
        yield "accumulation_without_effect", {"times": times, "theirs": theirs, "other": other.name, "cells": cells,
              "same": same, "cells_with": cells * times, "same_with": same * theirs}  # fmt: skip
        return
