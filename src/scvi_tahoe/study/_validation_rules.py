"""What the validation loss of a log gives away, rule by rule. Every rule takes a log and yields findings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.study._finding import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd

    from scvi_tahoe.study._training_log import TrainingLog

__all__ = ["VALIDATION_RULES"]

_FLAT, _RISEN = 0.01, 0.02
_FALLEN = 2.0


def best_validation(log: TrainingLog) -> Iterator[Finding]:
    """Best step and value, and which checkpoint they ask for."""
    validation = log.get("validation")
    if validation.empty:
        yield Finding(
            rule="no_validation", level="warning", where="validation", message="the log holds no validation loss.",
            instead="without one no checkpoint can be called the best; hold cells out with a split.",
        )  # fmt: skip
        return
    step, value = int(validation.index[int(validation.argmin())]), float(validation.min())
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
    if len(validation) < 8:
        return
    step, best = int(validation.index[int(validation.argmin())]), float(validation.min())
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


VALIDATION_RULES: tuple[Callable[[TrainingLog], Iterator[Finding]], ...] = (
    best_validation, flat_validation, rising_validation, few_validations, validation_noise,
)  # fmt: skip
