"""What training logs give away, rule by rule: each on its own, and compared with the run it started from."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scvi_tahoe.study._finding import Finding, findings_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd

    from scvi_tahoe.study._training_log import TrainingLog

    Rule = Callable[[TrainingLog], Iterator[Finding]]

#: rules in the order of their definition, which is that of the findings
_RULES: list[Rule] = []

_FLAT, _RISEN, _FALLEN = 0.01, 0.02, 2.0
_REPEATS = 0.5
_BUSY, _IDLE = 0.5, 20.0
_MIN_PAIRS, _MAX_PAIRS = 20, 20_000


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


def diagnose(logs: Sequence[TrainingLog]) -> list[LogDiagnosis]:
    """Diagnose logs; where one run started from another of them, the two are compared.

    Parameters
    ----------
    logs
        Logs, with their configurations where they have one.

    Returns
    -------
    A diagnosis of each log, in order.
    """
    by_name = {log.path.resolve().parent.name: log for log in logs} | {log.name: log for log in logs}
    found = []
    for log in logs:
        findings = [finding for rule in _RULES for finding in rule(log)]
        source, checkpoint = _source(log)
        if source in by_name:
            findings += _start(by_name[source], checkpoint)
        findings += _accumulation(log, logs)
        found.append(LogDiagnosis(log, tuple(findings)))
    return found


def _rule(function: Rule) -> Rule:
    _RULES.append(function)
    return function


@_rule
def best_validation(log: TrainingLog) -> Iterator[Finding]:
    """Best step and value, and which checkpoint they ask for."""
    validation = log.get("validation")
    if log.best is None:
        yield Finding(
            "no_validation", "warning", "validation", "the log holds no validation loss.",
            "without one no checkpoint can be called the best; hold cells out with a split.",
        )  # fmt: skip
        return
    step, value = log.best
    last_step, last = int(validation.index[-1]), float(validation.iloc[-1])
    behind = "" if step == last_step else f"; the last, at step {last_step:,}, is {last:.4g}, {last / value - 1:+.1%}"
    best = "only validation" if len(validation) == 1 else f"best of {len(validation)} validations"
    message = f"the {best} is {value:.4g} at step {step:,}{behind}."
    yield Finding("best_step", "note", "validation", message, _checkpoint(log, step))


def _checkpoint(log: TrainingLog, step: int) -> str:
    if log.origin == "scvi-tahoe":
        return "use best.ckpt or the saved model: both have the best weights, of the start where no step was better."
    every = log.setting("training.ckpt_every_n_steps")
    if not isinstance(every, int) or every < 1:
        return f"predict, and start later rounds, with the checkpoint of step {step + 1:,}."
    nearest = max(every, round((step + 1) / every) * every)
    if nearest > log.n_steps:
        kept = f"checkpoints were kept every {every:,} steps"
        return f"{kept}, so none is near step {step + 1:,}; last.ckpt is what there is."
    exactly = "" if nearest == step + 1 else f" (the nearest to step {step + 1:,} of those kept every {every:,})"
    return f"predict, and start later rounds, with step={nearest}.ckpt{exactly}."


@_rule
def flat_validation(log: TrainingLog) -> Iterator[Finding]:
    """Find a training loss that falls and a validation loss that does not follow."""
    validation, train = log.get("validation"), log.get("train")
    if len(validation) < 3 or len(train) < 10:
        return
    spread = float(validation.max() / validation.min() - 1)
    fallen = float(train.iloc[:2].mean() / train.iloc[-5:].mean())
    if spread < _FLAT and fallen > _FALLEN:
        yield Finding(
            "flat_validation", "warning", "validation",
            f"the validation loss stays between {validation.min():.4g} and {validation.max():.4g} while the training "
            f"loss falls from {train.iloc[0]:.3g} to {train.iloc[-1]:.3g}: what is learned does not carry over to the "
            "cells that validate.",
            "more steps will not help; look at the representation, and at which cells validate.",
        )  # fmt: skip


@_rule
def rising_validation(log: TrainingLog) -> Iterator[Finding]:
    """Find a validation loss that rises after its best."""
    validation = log.get("validation")
    if log.best is None or len(validation) < 8:
        return
    (step, best), n_last = log.best, max(3, len(validation) // 10)
    tail = float(validation.iloc[-n_last:].mean())
    if (validation.index > step).sum() >= 3 and tail / best - 1 > _RISEN:
        yield Finding(
            "rising_validation", "warning", "validation",
            f"after its best of {best:.4g} at step {step:,} the validation loss rises to {tail:.4g} in the mean of the "
            f"last {n_last} validations ({tail / best - 1:+.1%}); {1 - (step + 1) / log.n_steps:.0%} of the run came "
            "after the best step.",
            "stop early (train.patience), let the rate fall to its floor, or regularise more.",
        )  # fmt: skip


@_rule
def few_validations(log: TrainingLog) -> Iterator[Finding]:
    """Find too few validations to choose a checkpoint by."""
    n = len(log.get("validation"))
    if 0 < n < 5:
        times = "once" if n == 1 else f"{n} times"
        yield Finding(
            "few_validations", "warning", "validation",
            f"the run of {log.n_steps:,} steps was validated {times}; the best of so few is hardly chosen.",
            "validate at least 20 times a run (train.validate_every).",
        )  # fmt: skip


@_rule
def validation_noise(log: TrainingLog) -> Iterator[Finding]:
    """Tell how much of a difference between two validations is noise."""
    validation = log.get("validation")
    if len(validation) < 10:
        return
    # of neighbouring validations, so that slow changes do not count
    noise = float(np.median(np.abs(np.diff(validation))) / 0.6745 / np.sqrt(2))
    within = int((validation < validation.min() + 2 * noise).sum())
    yield Finding(
        "validation_noise", "note", "validation",
        f"neighbouring validations scatter by {noise:.3g}; {within} of {len(validation)} lie within two of these of "
        "the best.",
        "treat those as equal; validate on more sets to tell them apart.",
    )  # fmt: skip


@_rule
def divergence(log: TrainingLog) -> Iterator[Finding]:
    """Find losses that are not numbers, or far above where they started."""
    for name in ("train", "validation"):
        series = log.get(name)
        if len(series) and not np.isfinite(series.to_numpy(dtype=float)).all():
            yield Finding(
                "not_finite", "error", name, f"the {name} loss is not finite.",
                "lower the rate, clip gradients at 1, check the data for NaN.",
            )  # fmt: skip
        elif len(series) >= 5 and (end := series.iloc[-3:].mean()) > 2 * (begin := series.iloc[:3].mean()):
            yield Finding(
                "divergence", "error", name,
                f"the {name} loss ends at {end:.3g}, more than twice where it began ({begin:.3g}).",
                "lower the rate, and clip gradients at 1.",
            )  # fmt: skip


@_rule
def untrained_loss(log: TrainingLog) -> Iterator[Finding]:
    """Find a second loss in addition to the one by which checkpoints are chosen."""
    if log.get("decoder_train").empty or log.get("train").empty or log.origin == "scvi-tahoe":
        return
    validation, genes, sizes = log.get("validation"), log.get("decoder_validation"), ""
    if len(validation) and len(genes):
        sizes = (
            f" On held-out cells the genes' loss is {genes.min():.3g} at its best and the embedding's "
            f"{validation.min():.3g}, {float(genes.min() / validation.min()):.0f} times less."
        )
    yield Finding(
        "loss_not_logged", "warning", "decoder",
        "train_loss and val_loss are the embedding's loss alone; the sum with the gene decoder's loss, which is what "
        f"is minimised, is in no column, and the best checkpoint is chosen without the genes.{sizes}",
        "train in the space that is scored; our validation_loss is the sum that is trained.",
    )  # fmt: skip


@_rule
def named_loss(log: TrainingLog) -> Iterator[Finding]:
    """Find a loss in the configuration that is not the one trained."""
    named, trained = log.setting("training.loss_fn"), log.setting("model.kwargs.loss")
    if named is not None and trained is not None and named != trained:
        yield Finding(
            "loss_named_not_trained", "warning", "training.loss_fn",
            f"the configuration names the loss {named!r}, and {trained!r} was trained.",
            "the losses of this log are those of model.kwargs.loss.",
        )  # fmt: skip


@_rule
def learning_rate(log: TrainingLog) -> Iterator[Finding]:
    """Tell whether the rate was logged, and what it did."""
    if not log.rates:
        yield Finding(
            "rate_not_logged", "warning", "learning rate",
            "the log holds no learning rate, so whether a schedule ran cannot be told.",
            "ours writes the rate of every part of the network.",
        )  # fmt: skip
        return
    constant = []
    for name, rate in log.rates.items():
        values = rate.to_numpy(dtype=float)
        # a rate of 0 throughout is that of a frozen part; what does not decay has the rate of its part
        if len(values) < 3 or not values.any() or name.endswith("_no_decay"):
            continue
        if np.ptp(values) <= 1e-6 * values.max():
            constant.append(f"{name} {values[0]:.3g}")
        else:
            yield _course(name, values)
    if constant:
        yield Finding(
            "constant_rate", "warning", "learning rate",
            f"the rate is constant throughout ({', '.join(constant)}): no schedule was attached to the optimizer.",
            "warm-up and cosine, which train() attaches unless told otherwise.",
        )  # fmt: skip


def _course(name: str, values: np.ndarray) -> Finding:
    """Describe a rate that changes."""
    peak = int(values.argmax())
    rises = int((np.diff(values[peak:]) > 1e-3 * values.max()).sum())
    if not rises:
        message = f"the rate goes from {values[0]:.3g} over {values.max():.3g} to {values[-1]:.3g}."
        return Finding("rate_shape", "note", name, message)
    return Finding(
        "periodic_rate", "warning", name,
        f"after its peak of {values.max():.3g} the rate rises again {rises} times: the schedule restarts, or that of "
        "an earlier run is still attached.",
        "start from weights only; nothing but resume_from restores a schedule.",
    )  # fmt: skip


@_rule
def repeated_epochs(log: TrainingLog) -> Iterator[Finding]:
    """Find a training loss that repeats itself from epoch to epoch.

    A loader that composes its cell sets once and keeps their order shows the network the same sets at the same place of
    every epoch. A log with one value every few dozen steps then fluctuates with a period, which is easily taken for a
    learning rate that does.
    """
    found = repetition(log.get("train"), epoch_length(log.get("epoch")))
    if found is None or found.correlation < _REPEATS or log.origin == "scvi-tahoe":
        return
    yield Finding(
        "repeated_epochs", "warning", "train",
        f"the training loss fluctuates with the period of the epoch, {found.period} steps: losses at the same place of "
        f"different epochs correlate by {found.correlation:.2f} ({found.n_pairs:,} pairs). Every epoch shows the same "
        "cell sets in the same order; a learning rate that fluctuates is not needed to explain it.",
        "sets are drawn anew for every minibatch in ours.",
    )  # fmt: skip


class Repetition(NamedTuple):
    """Correlation of the log losses of all ``n_pairs`` pairs at the same place of two epochs of ``period`` steps."""

    period: int
    correlation: float
    n_pairs: int


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


def repetition(train: pd.Series, period: int | None) -> Repetition | None:
    """Correlate training losses at the same place of different epochs; None if too few can be compared."""
    if period is None or len(train) < _MIN_PAIRS:
        return None
    # the first tenth falls steeply, and a running median takes the slow rest away
    kept = train[train > 0].iloc[len(train) // 10 :]
    logarithm = np.log(kept)
    residual = (logarithm - logarithm.rolling(21, center=True, min_periods=5).median()).to_numpy()
    place = kept.index.to_numpy() % period
    first, second = np.triu_indices(len(place), k=1)
    same = np.flatnonzero(place[first] == place[second])[:_MAX_PAIRS]
    if len(same) < _MIN_PAIRS:
        return None
    a, b = residual[first[same]], residual[second[same]]
    if a.std() == 0 or b.std() == 0:
        return None
    return Repetition(period, float(np.corrcoef(a, b)[0, 1]), len(same))


@_rule
def throughput(log: TrainingLog) -> Iterator[Finding]:
    """Tell how many sets were trained on a second, and what limited them."""
    sets, step = log.get("sets_per_second"), log.get("seconds_per_step")
    if sets.empty and step.empty:
        return
    use = float(log.get("utilisation").median())
    outside = _share_outside(log)
    limited = (outside or 0) > _BUSY or use < _IDLE
    facts = [
        f"{sets.median():.1f} cell sets a second in the median" if len(sets) else "",
        f"{step.median():.2f} s inside a training step" if len(step) else "",
        f"{use:.1f} % of the device's arithmetic" if use == use else "",
    ]
    if not limited:
        blame = ""
    elif outside:
        blame = f"; {outside:.0%} of the time was spent outside the training step: the loader was the limit"
    else:
        blame = ": the device waited for the loader"
    yield Finding(
        "throughput", "warning" if limited else "note", "throughput", f"{', '.join(filter(None, facts))}{blame}.",
        "ours keeps expression on the device and draws sets by row number." if limited else "",
    )  # fmt: skip


def _share_outside(log: TrainingLog) -> float | None:
    """Return the share of the time outside training steps, 1 - (seconds in a step) x (steps per second), or None.

    Without the configuration, which has the number of sets per step, a step is taken to have one: a lower bound.
    """
    sets, step = log.get("sets_per_second"), log.get("seconds_per_step")
    if sets.empty or step.empty:
        return None
    per_step = log.setting("training.batch_size", 1)
    if not isinstance(per_step, int) or per_step < 1:
        per_step = 1
    return max(0.0, 1 - float(step.median()) * float(sets.median()) / per_step)


@_rule
def resumed(log: TrainingLog) -> Iterator[Finding]:
    """Find a log that begins in the middle: an optimizer state was taken over."""
    train = log.get("train")
    if len(train) < 3 or log.origin == "scvi-tahoe":
        return
    if train.index[0] > 3 * float(np.median(np.diff(train.index))):
        yield Finding(
            "resumed", "warning", "step",
            f"the log begins at step {train.index[0]:,}: the run was resumed, with the optimizer, the rate and the "
            "schedule of the run before.",
            "start from weights only; here nothing but resume_from restores an optimizer.",
        )  # fmt: skip


def _source(log: TrainingLog) -> tuple[str, str]:
    """Return the name of the run that a run started from, and its checkpoint."""
    ours = log.setting("start.source")
    if isinstance(ours, str):
        return ours.replace("\\", "/").rstrip("/").split("/")[-1], str(log.setting("start.checkpoint") or "best")
    arc = log.setting("model.kwargs.init_from")
    match = re.search(r"([^/\\]+)[/\\]checkpoints[/\\]([^/\\]+)$", arc) if isinstance(arc, str) else None
    return (match[1], match[2]) if match else ("", "")


def _start(source: TrainingLog, checkpoint: str) -> Iterator[Finding]:
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
        yield Finding(
            "start_not_best", "warning", "start",
            f"the run started from {checkpoint} of {source.name} (step {step:,}, validation {value:.4g}), though the "
            f"best there was step {best_step:,} with {best:.4g}.",
            f"start from {named}; ours starts from the best unless 'last' is asked for.",
        )  # fmt: skip


def _cells_of_epoch(log: TrainingLog) -> float | None:
    """Return the cells of an epoch, from its length in steps and the cells of a step without accumulation."""
    length = epoch_length(log.get("epoch"))
    numbers = (length, log.setting("training.batch_size"), log.setting("model.kwargs.cell_set_len"))
    return float(math.prod(numbers)) if all(isinstance(n, int) and n > 0 for n in numbers) else None  # type: ignore[arg-type]


def _accumulation(log: TrainingLog, logs: Sequence[TrainingLog]) -> Iterator[Finding]:
    """Compare epochs of runs on the same data, which hold the same cells: accumulation shows whether it happened."""
    key = "training.accumulate_grad_batches"
    times, cells = log.setting(key, 1), _cells_of_epoch(log)
    if cells is None or not isinstance(times, int) or times < 2:
        return
    for other in logs:
        theirs, same = other.setting(key, 1), _cells_of_epoch(other)
        if other is log or theirs == times or same is None or abs(same / cells - 1) > 0.03:
            continue
        yield Finding(
            "accumulation_without_effect", "warning", key,
            f"accumulation over {times} minibatches did not happen: counted without it, an epoch has {cells:,.0f} "
            f"cells here and {same:,.0f} in {other.name}, which asked for {theirs}; counted with it, "
            f"{cells * times:,.0f} and {same * theirs:,.0f}.",
            "an optimizer step had one minibatch of sets; train.accumulate is what ours obeys.",
        )  # fmt: skip
        return
