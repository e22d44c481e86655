"""What a training log gives away, rule by rule. Every rule takes a log and yields findings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.study._epoch_period import epoch_length, repetition
from scvi_tahoe.study._finding import Finding
from scvi_tahoe.study._validation_rules import VALIDATION_RULES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scvi_tahoe.study._training_log import TrainingLog

__all__ = ["LOG_RULES"]

_REPEATS = 0.5
_BUSY, _IDLE = 0.5, 20.0


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
    *VALIDATION_RULES, divergence, untrained_loss, named_loss, learning_rate, repeated_epochs, throughput, resumed,
)  # fmt: skip
