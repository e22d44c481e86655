"""What a training log gives away, rule by rule. Every rule takes a log and yields findings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scvi_tahoe.study._finding import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd

    from scvi_tahoe.study._training_log import TrainingLog

_FLAT, _RISEN = 0.01, 0.02
_FALLEN = 2.0
_REPEATS = 0.5
_BUSY, _IDLE = 0.5, 20.0
_MIN_PAIRS = 20
_MAX_PAIRS = 20_000


def best_validation(log: TrainingLog) -> Iterator[Finding]:
    """Best step and value, and which checkpoint they ask for."""
    validation = log.get("validation")
    if log.best is None:
        yield Finding(
            rule="no_validation", level="warning", where="validation", message="the log holds no validation loss.",
            instead="without one no checkpoint can be called the best; hold cells out with a split.",
        )  # fmt: skip
        return
    step, value = log.best
    last_step, last = int(validation.index[-1]), float(validation.iloc[-1])
    behind = "" if step == last_step else f"; the last, at step {last_step:,}, is {last:.4g}, {last / value - 1:+.1%}"
    yield Finding(
        rule="best_step", level="note", where="validation",
        message=f"the {'best of ' * (len(validation) > 1)}{_count(validation)} is {value:.4g} at step "
        f"{step:,}{behind}.",
        instead=_checkpoint(log, step),
    )  # fmt: skip


def _count(validation: pd.Series) -> str:
    return "only validation" if len(validation) == 1 else f"{len(validation)} validations"


def _checkpoint(log: TrainingLog, step: int) -> str:
    if log.origin == "scvi-tahoe":
        return "use best.ckpt or the saved model: both have the best weights, of the start where no step was better."
    every = log.setting("training.ckpt_every_n_steps")
    if not isinstance(every, int) or every < 1:
        return f"predict, and start later rounds, with the checkpoint of step {step + 1:,}."
    nearest = max(every, round((step + 1) / every) * every)
    if nearest > log.n_steps:
        return (
            f"checkpoints were kept every {every:,} steps, so none is near step {step + 1:,}; last.ckpt is what there "
            "is."
        )
    exactly = "" if nearest == step + 1 else f" (the nearest to step {step + 1:,} of those kept every {every:,})"
    return f"predict, and start later rounds, with step={nearest}.ckpt{exactly}."


def flat_validation(log: TrainingLog) -> Iterator[Finding]:
    """The training loss falls and the validation loss does not follow."""
    validation, train = log.get("validation"), log.get("train")
    if len(validation) < 3 or len(train) < 10:
        return
    spread = float(validation.max() / validation.min() - 1)
    fallen = float(train.iloc[:2].mean() / train.iloc[-5:].mean())
    if spread < _FLAT and fallen > _FALLEN:
        yield Finding(
            rule="flat_validation", level="warning", where="validation",
            message=f"the validation loss stays between {validation.min():.4g} and {validation.max():.4g} while the "
            f"training loss falls from {train.iloc[0]:.3g} to {train.iloc[-1]:.3g}: what is learned does not carry "
            "over to the cells that validate.",
            instead="more steps will not help; look at the representation, and at which cells validate.",
        )  # fmt: skip


def rising_validation(log: TrainingLog) -> Iterator[Finding]:
    """The validation loss rises after its best."""
    validation = log.get("validation")
    if log.best is None or len(validation) < 8:
        return
    step, best = log.best
    after = validation[validation.index > step]
    tail = float(validation.iloc[-max(3, len(validation) // 10) :].mean())
    if len(after) >= 3 and tail / best - 1 > _RISEN:
        share = 1 - (step + 1) / log.n_steps
        yield Finding(
            rule="rising_validation", level="warning", where="validation",
            message=f"after its best of {best:.4g} at step {step:,} the validation loss rises to {tail:.4g} in "
            "the mean "
            f"of the last {max(3, len(validation) // 10)} validations ({tail / best - 1:+.1%}); {share:.0%} of the run "
            "came after the best step.",
            instead="stop early (train.patience), let the rate fall to its floor, or regularise more.",
        )  # fmt: skip


def few_validations(log: TrainingLog) -> Iterator[Finding]:
    """Too few validations to choose a checkpoint by."""
    n = len(log.get("validation"))
    if 0 < n < 5:
        times = "once" if n == 1 else f"{n} times"
        yield Finding(
            rule="few_validations", level="warning", where="validation",
            message=f"the run of {log.n_steps:,} steps was validated {times}; the best of so few is hardly chosen.",
            instead="validate at least 20 times a run (train.validate_every).",
        )  # fmt: skip


def validation_noise(log: TrainingLog) -> Iterator[Finding]:
    """How much of a difference between two validations is noise."""
    validation = log.get("validation")
    if len(validation) < 10:
        return
    # of neighbouring validations, so that slow changes do not count
    noise = float(np.median(np.abs(np.diff(validation))) / 0.6745 / np.sqrt(2))
    within = int((validation < validation.min() + 2 * noise).sum())
    yield Finding(
        rule="validation_noise", level="note", where="validation",
        message=f"neighbouring validations scatter by {noise:.3g}; {within} of {len(validation)} lie within two "
        "of these "
        "of the best.",
        instead="treat those as equal; validate on more sets to tell them apart.",
    )  # fmt: skip


class Repetition(NamedTuple):
    """How alike losses at the same place of different epochs are.

    Attributes
    ----------
    period
        Steps of an epoch.
    correlation
        Of the log losses of all pairs of values at the same place of two epochs, slow changes removed.
    n_pairs
        Number of those pairs.
    """

    period: int
    correlation: float
    n_pairs: int


def epoch_length(epoch: pd.Series) -> int | None:
    """Steps of an epoch, from the epoch number that was logged at each step; None where the log does not fix it.

    Parameters
    ----------
    epoch
        Number of the epoch, counted from 0, by step, counted from 0. With steps ``s`` and epochs ``e`` the length
        ``L`` is bounded by ``(s + 1) / (e + 1) <= L <= (s + 1) / e``.
    """
    values = epoch.to_numpy(dtype=float)
    steps = epoch.index.to_numpy(dtype=float)
    if not len(values) or values.max() < 1:
        return None
    lower = ((steps + 1) / (values + 1)).max()
    later = values > 0
    upper = ((steps[later] + 1) / values[later]).min()
    length = math.ceil(lower - 1e-9)
    return length if length <= upper + 1e-9 and length > 1 else None


def repetition(train: pd.Series, period: int | None) -> Repetition | None:
    """Correlation of training losses at the same place of different epochs; None if too few can be compared.

    Parameters
    ----------
    train
        Training loss by step.
    period
        Steps of an epoch.
    """
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


def divergence(log: TrainingLog) -> Iterator[Finding]:
    """Losses that are not numbers, or far above where they started."""
    for name in ("train", "validation"):
        series = log.get(name)
        if len(series) and not np.isfinite(series.to_numpy(dtype=float)).all():
            yield Finding(
                rule="not_finite", level="error", where=name, message=f"the {name} loss is not finite.",
                instead="lower the rate, clip gradients at 1, check the data for NaN.",
            )  # fmt: skip
        elif len(series) >= 5 and series.iloc[-3:].mean() > 2 * series.iloc[:3].mean():
            yield Finding(
                rule="divergence", level="error", where=name,
                message=f"the {name} loss ends at {series.iloc[-3:].mean():.3g}, more than twice where it began "
                f"({series.iloc[:3].mean():.3g}).",
                instead="lower the rate, and clip gradients at 1.",
            )  # fmt: skip


def untrained_loss(log: TrainingLog) -> Iterator[Finding]:
    """A second loss is logged beside the one by which checkpoints are chosen."""
    decoder, main = log.get("decoder_train"), log.get("train")
    if decoder.empty or main.empty or log.origin == "scvi-tahoe":
        return
    validation, genes = log.get("validation"), log.get("decoder_validation")
    sizes = ""
    if len(validation) and len(genes):
        ratio = float(genes.min() / validation.min())
        sizes = (
            f" On held-out cells the genes' loss is {genes.min():.3g} at its best and the embedding's "
            f"{validation.min():.3g}, "
            f"{ratio:.0f} times less."
        )
    yield Finding(
        rule="loss_not_logged", level="warning", where="decoder",
        message="train_loss and val_loss are the embedding's loss alone; the sum with the gene decoder's loss, "
        "which is "
        f"what is minimised, is in no column, and the best checkpoint is chosen without the genes.{sizes}",
        instead="train in the space that is scored; our validation_loss is the sum that is trained.",
    )  # fmt: skip


def named_loss(log: TrainingLog) -> Iterator[Finding]:
    """The configuration names a loss that is not the one trained."""
    named, trained = log.setting("training.loss_fn"), log.setting("model.kwargs.loss")
    if named is not None and trained is not None and named != trained:
        yield Finding(
            rule="loss_named_not_trained", level="warning", where="training.loss_fn",
            message=f"the configuration names the loss {named!r}, and {trained!r} was trained.",
            instead="the losses of this log are those of model.kwargs.loss.",
        )  # fmt: skip


def learning_rate(log: TrainingLog) -> Iterator[Finding]:
    """Whether the rate was logged, and what it did."""
    if not log.rates:
        yield Finding(
            rule="rate_not_logged", level="warning", where="learning rate",
            message="the log holds no learning rate, so whether a schedule ran cannot be told.",
            instead="ours writes the rate of every part of the network.",
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
            rule="constant_rate",
            level="warning",
            where="learning rate",
            message=f"the rate is constant throughout ({', '.join(constant)}): no schedule was attached to the "
            "optimizer.",
            instead="warm-up and cosine, which train() attaches unless told otherwise.",
        )


def _course(name: str, values: np.ndarray) -> Finding:
    """What a rate that changes does."""
    peak = int(values.argmax())
    rises = int((np.diff(values[peak:]) > 1e-3 * values.max()).sum())
    if not rises:
        message = f"the rate goes from {values[0]:.3g} over {values.max():.3g} to {values[-1]:.3g}."
        return Finding(rule="rate_shape", level="note", where=name, message=message)
    return Finding(
        rule="periodic_rate",
        level="warning",
        where=name,
        message=f"after its peak of {values.max():.3g} the rate rises again {rises} times: the schedule restarts, or "
        "that of an earlier run is still attached.",
        instead="start from weights only; nothing but resume_from restores a schedule.",
    )


def repeated_epochs(log: TrainingLog) -> Iterator[Finding]:
    """The training loss repeats itself from epoch to epoch."""
    found = repetition(log.get("train"), epoch_length(log.get("epoch")))
    if found is None or found.correlation < _REPEATS or log.origin == "scvi-tahoe":
        return
    yield Finding(
        rule="repeated_epochs", level="warning", where="train",
        message=f"the training loss fluctuates with the period of the epoch, {found.period} steps: losses at the same "
        f"place of different epochs correlate by {found.correlation:.2f} ({found.n_pairs:,} pairs). Every epoch shows "
        "the same cell sets in the same order; a learning rate that fluctuates is not needed to explain it.",
        instead="sets are drawn anew for every minibatch in ours.",
    )  # fmt: skip


def throughput(log: TrainingLog) -> Iterator[Finding]:
    """Sets a second, and what limited them."""
    sets, step = log.get("sets_per_second"), log.get("seconds_per_step")
    if sets.empty and step.empty:
        return
    use = float(log.get("utilisation").median())
    outside = share_outside(log)
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
        rule="throughput", level="warning" if limited else "note", where="throughput",
        message=f"{', '.join(filter(None, facts))}{blame}.",
        instead="ours keeps expression on the device and draws sets by row number." if limited else "",
    )  # fmt: skip


def share_outside(log: TrainingLog) -> float | None:
    """Share of the time outside training steps: 1 - (seconds in a step) x (steps a second), or None if unknown.

    Without the configuration, which says how many sets a step had, a step is taken to have one: a lower bound.
    """
    sets, step = log.get("sets_per_second"), log.get("seconds_per_step")
    if sets.empty or step.empty:
        return None
    per_step = log.setting("training.batch_size", 1)
    if not isinstance(per_step, int) or per_step < 1:
        per_step = 1
    return max(0.0, 1 - float(step.median()) * float(sets.median()) / per_step)


def resumed(log: TrainingLog) -> Iterator[Finding]:
    """The log begins in the middle: an optimizer state was taken over."""
    train = log.get("train")
    if len(train) < 3 or log.origin == "scvi-tahoe":
        return
    interval = float(np.median(np.diff(train.index)))
    if train.index[0] > 3 * interval:
        yield Finding(
            rule="resumed", level="warning", where="step",
            message=f"the log begins at step {train.index[0]:,}: the run was resumed, with the optimizer, the "
            "rate and the "
            "schedule of the run before.",
            instead="start from weights only; here nothing but resume_from restores an optimizer.",
        )  # fmt: skip


LOG_RULES: tuple[Callable[[TrainingLog], Iterator[Finding]], ...] = (
    best_validation, flat_validation, rising_validation, few_validations, validation_noise, divergence, untrained_loss,
    named_loss, learning_rate, repeated_epochs, throughput, resumed,
)  # fmt: skip
