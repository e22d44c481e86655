"""What a run reports: metrics, progress, scores of validations, and memory."""

from __future__ import annotations

import csv
import statistics
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from scvi_tahoe._constants import TENSORS
from scvi_tahoe._messages import progress_bar
from scvi_tahoe.evaluate import discrimination_score_l1, pearson
from scvi_tahoe.files import atomic_write
from scvi_tahoe.nn import step_operations

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from lightning.pytorch import LightningModule, Trainer
    from numpy.typing import NDArray
    from torch import Tensor
    from tqdm import tqdm

    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.data import Condition, Representation
    from scvi_tahoe.nn import NetworkConfig


class MetricsHistory(Logger):
    """Records every logged metric by optimizer step.

    Stands first among the loggers of a run, because scvi-tools fills ``model.history`` from the first one only.

    Parameters
    ----------
    path
        CSV file, one row per step with logged values, one column per metric. If None, everything stays in memory.
    resume_step
        Keep the rows of an earlier part of the same run up to this step. If None, start anew.
    """

    def __init__(self, path: str | Path | None = None, *, resume_step: int | None = None) -> None:
        super().__init__()
        self.path = None if path is None else Path(path)
        self._rows: dict[int, dict[str, float]] = {}
        if resume_step is not None and self.path is not None and self.path.exists():
            with self.path.open(newline="") as file:
                for row in csv.DictReader(file):
                    if (step := int(row.pop("step"))) < resume_step:
                        self._rows[step] = {k: float(v) for k, v in row.items() if v}

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "metrics"

    @property
    def version(self) -> int:
        """Of no meaning here."""
        return 0

    @property
    def history(self) -> dict[str, pd.DataFrame]:
        """One DataFrame a metric, indexed by optimizer step, as scvi-tools keeps them."""
        values: dict[str, dict[int, float]] = {}
        for step, row in self._rows.items():
            for name, value in row.items():
                values.setdefault(name, {})[step] = value
        return {k: pd.DataFrame({k: list(v.values())}, index=pd.Index(v, name="step")) for k, v in values.items()}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Record metrics of a step."""
        self._rows.setdefault(int(step or 0), {}).update({k: float(v) for k, v in metrics.items()})

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration is saved with the model."""

    @rank_zero_only
    def save(self) -> None:
        """Write the file anew; it is complete at every moment. With several processes the first one writes."""
        if self.path is None or not self._rows:
            return
        names = list(dict.fromkeys(n for row in self._rows.values() for n in row))
        with atomic_write(self.path, durable=False) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["step", *names])
            writer.writeheader()
            writer.writerows({"step": step, **row} for step, row in sorted(self._rows.items()))

    def finalize(self, status: str) -> None:
        """Write once more at the end."""
        self.save()


#: as wide as a terminal of 80 columns, losses included
_BAR = "{desc} {percentage:3.0f}% |{bar:16}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"


class StepProgress(Callback):
    """Shows steps per second, sets per second, time left and the last losses; logs the throughput even if not shown.

    In addition to ``sets_per_second``, ``mfu`` is logged, the model FLOPs utilisation (Chowdhery et al. 2022, *PaLM*,
    arXiv:2204.02311): the share of the time in which a device could do the matrix products of the network alone, at
    ``product_rate`` operations a second.
    """

    def __init__(
        self, *, max_steps: int, batch_size: int, accumulate: int, set_size: int, product_rate: float, show: bool = True
    ) -> None:
        self._max_steps = max_steps
        self._batch_size, self._set_size, self._sets_per_step = batch_size, set_size, batch_size * accumulate
        self._product_rate = product_rate
        self._show = show
        self._mfu = 0.0
        #: sets a second of each interval between two validations
        self.rates: list[float] = []
        self._bar: tqdm | None = None
        self._since = (0, 0.0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the bar."""
        self._since = (trainer.global_step, time.perf_counter())
        self._bar = progress_bar(
            total=self._max_steps, initial=trainer.global_step, unit="step", desc="training", bar_format=_BAR,
            disable=not (self._show and trainer.is_global_zero),
        )  # fmt: skip

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Move on."""
        if self._bar is not None and trainer.global_step > self._bar.n:
            self._bar.update(trainer.global_step - self._bar.n)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the losses and log the rate since the last time."""
        step, now = trainer.global_step, time.perf_counter()
        n_sets = (step - self._since[0]) * self._sets_per_step * trainer.world_size
        rate = n_sets / max(now - self._since[1], 1e-9)
        self._since = (step, now)
        self.rates.append(rate)
        pl_module.log("sets_per_second", rate, on_step=False, on_epoch=True)
        network: Any = pl_module.module.network  # type: ignore[union-attr]
        operations = step_operations(network, n_sets=self._batch_size, set_size=self._set_size)
        self._mfu = rate * operations / self._batch_size / self._product_rate / trainer.world_size
        pl_module.log("mfu", self._mfu, on_step=False, on_epoch=True)
        if self._bar is not None:
            values = {k: trainer.callback_metrics.get(f"{k}_loss") for k in ("train", "validation")}
            shown = {k: f"{float(v):.4g}" for k, v in values.items() if v is not None}
            self._bar.set_postfix(shown | {"sets/s": f"{rate:.0f}"}, refresh=False)

    def summary(self) -> str | None:
        """Return a sentence about the throughput of the run; None if no interval ended."""
        if not self.rates:
            return None
        share = f"{self._mfu:.0%}" if self._mfu >= 0.01 else "<1%"
        return (
            f"{statistics.median(self.rates):,.1f} sets per second, at the end {share} of the speed of large "
            "matrix products on this device (mfu)"
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message starts on a line of its own."""
        self.on_train_end(trainer, pl_module)


#: names that ``monitor`` takes beside losses; of all of them more is better
VALIDATION_SCORES = ("validation_pds", "validation_pearson_delta", "validation_overlap")
_N_TOP = 50


def computed_scores(module: TahoeSTModule, representation: Representation) -> list[str]:
    """Return what ``monitor`` can name in a training of this module: the loss, each of its terms, and scores."""
    terms = module.objective.config.logged(module.config, has_embedding=module.embedding_head is not None)
    scores = () if representation == "embedding" else VALIDATION_SCORES
    return [*(f"validation_{name}" for name in ("loss", *terms)), *scores]


def top_gene_overlap(predicted: NDArray[np.floating], observed: NDArray[np.floating]) -> NDArray[np.float64]:
    """Compute the fraction of the most changed genes that the prediction finds, ``[P]``, from deltas ``[P, G]``.

    It stands in for DES, which compares sets of differentially expressed genes, found by rank tests that take minutes.
    Here the sets are the 50 genes (at most a tenth of all) with the largest absolute delta on each side.
    """
    n_top = max(1, min(_N_TOP, predicted.shape[1] // 10))
    top = [np.argpartition(-np.abs(deltas), n_top - 1, axis=1)[:, :n_top] for deltas in (predicted, observed)]
    return np.array([len(np.intersect1d(a, b)) / n_top for a, b in zip(*top, strict=True)])


class ValidationScores(Callback):
    """Logs ``validation_pds``, ``validation_pearson_delta`` and ``validation_overlap`` at every validation.

    Every condition is represented by the mean of its validation sets, and its delta is taken against the mean of the
    control cells of its context; scores are those of preset ``'quick'`` of :func:`scvi_tahoe.evaluate`, averaged over
    conditions. They come from at most four sets a condition, so they compare moments of one run and not models.
    A perturbation's own gene does not help to tell it apart.
    """

    def __init__(self, conditions: Sequence[Condition], genes: NDArray[np.str_]) -> None:
        self._conditions = conditions
        column_of = {gene: i for i, gene in enumerate(genes)}
        self._target = np.array([column_of.get(c.perturbation, -1) for c in conditions])
        self._seen: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []

    def on_validation_epoch_start(self, *args: Any) -> None:
        """Forget the last validation."""
        self._seen = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Tensor], *args: Any
    ) -> None:
        """Keep the mean cell of each set: predicted, observed and control."""
        cells = (outputs["prediction_SNG"], batch[TENSORS.OBSERVED], batch[TENSORS.CONTROL])
        means = torch.stack([x.mean(dim=1, dtype=torch.float32) for x in cells], dim=1)
        self._seen.append((batch[TENSORS.CONDITION].cpu().numpy(), means.double().cpu().numpy()))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score and log."""
        seen = self._seen
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, seen)
            seen = [item for part in parts for item in part]
        for name, value in self._scores(np.concatenate([c for c, _ in seen]), np.concatenate([m for _, m in seen])):
            pl_module.log(name, value, on_step=False, on_epoch=True)

    def _scores(self, condition_S: NDArray[np.int64], means_S3G: NDArray[np.float64]) -> Any:
        present, position = np.unique(condition_S, return_inverse=True)
        context = np.array([self._conditions[c].context for c in present])
        # sets of a condition are equally large, so the mean of their means is the mean of their cells
        sums = np.zeros((len(present), *means_S3G.shape[1:]))
        np.add.at(sums, position, means_S3G)
        means_P3G = sums / np.bincount(position)[:, None, None]
        scores: dict[str, list[NDArray[np.float64]]] = {name: [] for name in VALIDATION_SCORES}
        for name in np.unique(context):
            here = context == name
            control_G = means_S3G[context[position] == name, 2].mean(axis=0)
            predicted, observed = (means_P3G[here, side] - control_G for side in (0, 1))
            scores["validation_pds"].append(discrimination_score_l1(predicted, observed, self._target[present[here]]))
            scores["validation_pearson_delta"].append(np.nan_to_num(pearson(predicted, observed)))
            scores["validation_overlap"].append(top_gene_overlap(predicted, observed))
        return [(name, float(np.concatenate(values).mean())) for name, values in scores.items()]


_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes that a training run takes on its device."""

    #: Float32 weights, and their copies in the precision of the products.
    weights: int
    #: One and two float32 numbers for each trainable weight.
    gradients: int
    optimizer: int
    #: What a step keeps for its backward pass, a rough estimate: on an H100, runs took 0.8 of the total.
    activations: int
    #: Expression on the device.
    expression: int
    #: Bytes free on the device now; 0 where that is not known.
    available: int = 0

    @property
    def total(self) -> int:
        """Sum of what is taken."""
        return sum(getattr(self, f.name) for f in fields(self) if f.name != "available")

    @property
    def fits(self) -> bool:
        """Whether that much is free; True where it is not known."""
        return not self.available or self.total <= self.available

    def __str__(self) -> str:
        parts = ", ".join(f"{f.name} {_words(getattr(self, f.name))}" for f in fields(self) if f.name != "available")
        free = f" of {_words(self.available)} free" if self.available else ""
        return f"about {_words(self.total)}{free} ({parts})"


def plan_memory(
    config: NetworkConfig,
    *,
    n_parameters: int,
    n_trainable: int,
    averaged: bool = False,
    shared: bool = False,
    shards: int = 1,
    optimizer_shards: int = 1,
    cells_per_step: int,
    in_16_bits: bool,
    expression: int,
    device: torch.device,
) -> MemoryPlan:
    """Estimate what training takes.

    Several processes hold gradients to exchange if they share the optimizer (``shared``), of whose state each keeps one
    of ``optimizer_shards``; and one of ``shards`` of everything that there is for each weight.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    hidden, width = config.hidden, 2 if in_16_bits else 4
    # a block keeps its normed inputs in float32 and queries, keys, values, gate, up and their product; the genes of a
    # cell are control, observed and predicted, each in float32 and in the width of the products, with gradients
    heads = (config.n_heads + 2 * config.kv_heads) * config.width_of_head
    block = width * (2 * heads + 4 * hidden + 4 * config.intermediate) + 4 * 6 * hidden
    layers = 3 * width * hidden * (config.n_encoder_layers + config.n_decoder_layers)
    n_decoded = 0 if config.gene_decoder is None else config.gene_decoder.n_genes
    genes = config.n_input * (4 + width) + (config.n_output + n_decoded) * (4 * 4 + 4 * width)
    return MemoryPlan(
        weights=((6 if in_16_bits else 4) + 4 * averaged) * n_parameters // shards,
        gradients=(8 if shared and not in_16_bits else 4) * n_trainable // shards,
        optimizer=8 * n_trainable // max(shards, optimizer_shards),
        activations=cells_per_step * (config.n_layers * block + layers + genes),
        expression=expression,
        available=free,
    )


def _words(n_bytes: int) -> str:
    return f"{n_bytes / _GIB:.1f} GiB" if n_bytes >= _GIB / 10 else f"{n_bytes / 2**20:.1f} MiB"
