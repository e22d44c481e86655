"""What training logs give away, rule by rule: each on its own, and compared with the run it started from."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scvi_tahoe.study._finding import Finding, findings_text, found

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
    diagnoses = []
    for log in logs:
        findings = [finding for rule in _RULES for finding in rule(log)]
        source, checkpoint = _source(log)
        if source in by_name:
            findings += _start(by_name[source], checkpoint)
        diagnoses.append(LogDiagnosis(log, (*findings, *_accumulation(log, logs))))
    return diagnoses


def _rule(function: Rule) -> Rule:
    _RULES.append(function)
    return function


@_rule
def best_validation(log: TrainingLog) -> Iterator[Finding]:
    """Best step and value, and which checkpoint they ask for."""
    validation = log.get("validation")
    if log.best is None:
        yield found("no_validation")
        return
    step, value = log.best
    last_step, last = int(validation.index[-1]), float(validation.iloc[-1])
    behind = "" if step == last_step else f"; the last, at step {last_step:,}, is {last:.4g}, {last / value - 1:+.1%}"
    best = "only validation" if len(validation) == 1 else f"best of {len(validation)} validations"
    yield found("best_step", best=best, value=value, step=step, behind=behind, checkpoint=_checkpoint(log, step))


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
        low, high, first, last = validation.min(), validation.max(), train.iloc[0], train.iloc[-1]
        yield found("flat_validation", low=low, high=high, first=first, last=last)


@_rule
def rising_validation(log: TrainingLog) -> Iterator[Finding]:
    """Find a validation loss that rises after its best."""
    validation = log.get("validation")
    if log.best is None or len(validation) < 8:
        return
    (step, best), n_last = log.best, max(3, len(validation) // 10)
    tail = float(validation.iloc[-n_last:].mean())
    rise, after = tail / best - 1, 1 - (step + 1) / log.n_steps
    if (validation.index > step).sum() >= 3 and rise > _RISEN:
        yield found("rising_validation", best=best, step=step, tail=tail, n_last=n_last, rise=rise, after=after)


@_rule
def few_validations(log: TrainingLog) -> Iterator[Finding]:
    """Find too few validations to choose a checkpoint by."""
    n = len(log.get("validation"))
    if 0 < n < 5:
        yield found("few_validations", n_steps=log.n_steps, times="once" if n == 1 else f"{n} times")


@_rule
def validation_noise(log: TrainingLog) -> Iterator[Finding]:
    """Tell how much of a difference between two validations is noise."""
    validation = log.get("validation")
    if len(validation) >= 10:
        # of neighbouring validations, so that slow changes do not count
        noise = float(np.median(np.abs(np.diff(validation))) / 0.6745 / np.sqrt(2))
        within = int((validation < validation.min() + 2 * noise).sum())
        yield found("validation_noise", noise=noise, within=within, n=len(validation))


@_rule
def divergence(log: TrainingLog) -> Iterator[Finding]:
    """Find losses that are not numbers, or far above where they started."""
    for name in ("train", "validation"):
        series = log.get(name)
        if len(series) and not np.isfinite(series.to_numpy(dtype=float)).all():
            yield found("not_finite", where=name)
        elif len(series) >= 5 and (end := series.iloc[-3:].mean()) > 2 * (begin := series.iloc[:3].mean()):
            yield found("divergence", where=name, end=end, begin=begin)


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
    yield found("loss_not_logged", sizes=sizes)


@_rule
def named_loss(log: TrainingLog) -> Iterator[Finding]:
    """Find a loss in the configuration that is not the one trained."""
    named, trained = log.setting("training.loss_fn"), log.setting("model.kwargs.loss")
    if named is not None and trained is not None and named != trained:
        yield found("loss_named_not_trained", named=named, trained=trained)


@_rule
def learning_rate(log: TrainingLog) -> Iterator[Finding]:
    """Tell whether the rate was logged, and what it did."""
    if not log.rates:
        yield found("rate_not_logged")
        return
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
            yield found("periodic_rate", where=name, peak=peak, rises=rises)
        else:
            yield found("rate_shape", where=name, first=values[0], peak=peak, last=values[-1])
    if constant:
        yield found("constant_rate", rates=", ".join(constant))


@_rule
def repeated_epochs(log: TrainingLog) -> Iterator[Finding]:
    """Find a training loss that repeats itself from epoch to epoch.

    A loader that composes its cell sets once and keeps their order shows the network the same sets at the same place of
    every epoch. A log with one value every few dozen steps then fluctuates with a period, which is easily taken for a
    learning rate that does.
    """
    repeated = repetition(log.get("train"), epoch_length(log.get("epoch")))
    if repeated is not None and repeated.correlation >= _REPEATS and log.origin != "scvi-tahoe":
        yield found("repeated_epochs", **repeated._asdict())


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
    outside = None
    if len(sets) and len(step):
        # without the configuration, which has the number of sets per step, a step is taken to have one: a lower bound
        per_step = log.setting("training.batch_size", 1)
        per_step = per_step if isinstance(per_step, int) and per_step >= 1 else 1
        outside = max(0.0, 1 - float(step.median()) * float(sets.median()) / per_step)
    facts = [
        f"{sets.median():.1f} cell sets a second in the median" if len(sets) else "",
        f"{step.median():.2f} s inside a training step" if len(step) else "",
        f"{use:.1f} % of the device's arithmetic" if use == use else "",
    ]
    text = ", ".join(filter(None, facts))
    if (outside or 0) <= _BUSY and not use < _IDLE:
        yield found("throughput", facts=text)
        return
    blame = ": the device waited for the loader"
    if outside:
        blame = f"; {outside:.0%} of the time was spent outside the training step: the loader was the limit"
    yield found("limited_throughput", facts=text, blame=blame)


@_rule
def resumed(log: TrainingLog) -> Iterator[Finding]:
    """Find a log that begins in the middle: an optimizer state was taken over."""
    train = log.get("train")
    if len(train) < 3 or log.origin == "scvi-tahoe":
        return
    if train.index[0] > 3 * float(np.median(np.diff(train.index))):
        yield found("resumed", step=train.index[0])


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
        yield found("start_not_best", checkpoint=checkpoint, source=source.name, step=step, value=value,
                    best_step=best_step, best=best, named=named)  # fmt: skip


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
        yield found("accumulation_without_effect", times=times, theirs=theirs, other=other.name, cells=cells,
                    same=same, cells_with=cells * times, same_with=same * theirs)  # fmt: skip
        return
