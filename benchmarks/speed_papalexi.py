"""Training steps a second on the Papalexi few-shot task without a GPU, and what the framework adds to a bare step.

Processor seconds are printed beside wall seconds: on a machine that others use too, only they can be compared.

    OMP_NUM_THREADS=2 python benchmarks/speed_papalexi.py --precisions 32-true,bf16-mixed --steps 300

Without ``OMP_NUM_THREADS``, training chooses its threads itself. ``--neighbours 2`` keeps two cores busy meanwhile, as
other programs of a shared machine do:

    taskset -c 0,1 python benchmarks/speed_papalexi.py --precisions 32-true --neighbours 2
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning.pytorch import Callback

from scvi_tahoe import TahoeST
from scvi_tahoe._constants import TENSORS
from scvi_tahoe.datasets import papalexi_few_shot
from scvi_tahoe.nn import energy_distance

if TYPE_CHECKING:
    from collections.abc import Iterator

SETS, SET_SIZE, EVERY = 8, 64, 50


class Clock(Callback):
    """Wall and processor seconds of each interval between two validations."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []

    def on_train_epoch_start(self, *args) -> None:
        self._start = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.is_last_batch:
            self.wall.append((time.perf_counter() - self._start[0]) / EVERY)
            self.processor.append((time.process_time() - self._start[1]) / EVERY)


def line(name: str, seconds: list[float], more: str = "") -> None:
    """One line of the table: steps a second and milliseconds a step."""
    median, low, high = (f(seconds) for f in (statistics.median, min, max))
    spread = f"{1000 * median:7.1f} ms ({1000 * low:.1f} to {1000 * high:.1f})"
    print(f"{name:<44}{1 / median:8.1f} steps/s  {spread} {more}", flush=True)


def check() -> None:
    """The distance that is trained on, against float64 without any shortcut."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(2, n, 299, generator=generator).double() for n in (48, 64))
    slow = torch.cdist(x, y).mean((1, 2)) - torch.cdist(x, x).mean((1, 2)) / 2 - torch.cdist(y, y).mean((1, 2)) / 2
    fast = energy_distance(x.float(), y.float())
    print(f"energy distance against float64: {float(((fast - slow) / slow).abs().max()):.1e} relative")


def bare_step(model: TahoeST, steps: int) -> list[float]:
    """Processor seconds of forward, loss and backward alone."""
    module, config = model.module.train(), model.module.config
    batch = {
        TENSORS.CONTROL: torch.rand(SETS, SET_SIZE, config.n_input),
        TENSORS.OBSERVED: torch.rand(SETS, SET_SIZE, config.n_output),
        TENSORS.PERTURBATION: torch.rand(SETS, config.n_perturbation),
        TENSORS.CONDITION: torch.zeros(SETS, dtype=torch.long),
    }
    seconds = []
    for _ in range(steps):
        start = time.process_time()
        *_, losses = module(batch)
        losses.loss.backward()
        module.zero_grad()
        seconds.append(time.process_time() - start)
    return seconds[steps // 5 :]


@contextmanager
def neighbours(n: int) -> Iterator[None]:
    """Keep processes busy that want a core each."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--precisions", default="32-true,bf16-mixed")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--neighbours", type=int, default=0)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    check()
    with neighbours(args.neighbours):
        measure(args)


def measure(args: argparse.Namespace) -> None:
    """Print the table."""
    task = papalexi_few_shot()
    train = task.train.copy()
    TahoeST.setup_anndata(
        train, perturbation_key=task.perturbation_key, control=task.control, context_key=task.context_key
    )
    print(f"{train.n_obs:,} cells x {train.n_vars} genes, {SETS} sets of {SET_SIZE}, {torch.get_num_threads()} threads")
    line("bare step, float32, processor", bare_step(TahoeST(train, set_size=SET_SIZE), 60))
    for precision in args.precisions.split(","):
        last = []
        for seed in range(args.seeds):
            model, clock = TahoeST(train, set_size=SET_SIZE, seed=seed), Clock()
            model.train(
                max_steps=args.steps, batch_size=SETS, validate_every=EVERY, precision=precision, seed=seed,
                progress=False, callbacks=[clock],
            )  # fmt: skip
            last.append(model.training_config_["best_value"])
        each = ", ".join(f"{value:.4f}" for value in last)
        ends = f"best validation loss {np.mean(last):.4f} ± {np.std(last):.4f} over {args.seeds} seeds ({each})"
        line(f"train(), {precision}, processor", clock.processor[1:], ends)
        line(f"train(), {precision}, wall", clock.wall[1:])


if __name__ == "__main__":
    main()
