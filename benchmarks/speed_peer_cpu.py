"""Steps a second of `TahoeST.train()` and of arc-state's `tx train`, in turns, on one machine without a GPU.

Both train on the Papalexi few-shot task at the same shape: 299 genes, 8 sets of 64 cells a step, hidden 128, 2 layers
of 4 heads. Needs the program of arc-state 0.11.1 in an environment of its own, and psutil here; Linux or macOS.

    OMP_NUM_THREADS=1 python benchmarks/speed_peer_cpu.py --program /path/to/environment/bin/state --pairs 4

Measured is the time from step `--warmup` to the last step, loaders, clipping and logging included, start-up and
validation excluded on both sides. The program is watched through its own progress bar. Processor seconds of the program
and its workers are taken beside wall seconds: where others use the machine too, they are the fairer figure.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import statistics
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from lightning.pytorch import Callback
from speed_papalexi import SET_SIZE, SETS, check

from scvi_tahoe import SIZES, TahoeST
from scvi_tahoe.datasets import FewShotTask, papalexi_few_shot, papalexi_thp1

SIZE = "mini"
#: a network with the peer's input, head and loss, and what a user of ours gets
VARIANTS = {
    "same network and loss": {
        "prior": "none", "network": {"head": "hidden_residual"}, "objective": {"terms": {"energy": 1.0}},
    },
    "default (prior, two terms)": {},
}  # fmt: skip


class Rate(NamedTuple):
    """Of one run, after its warm-up."""

    wall: float
    processor: float


class Clock(Callback):
    """Wall and processor seconds a step, from one step to the last."""

    def __init__(self, first: int, last: int) -> None:
        self._first, self._last = first, last

    def on_train_batch_end(self, trainer, *args) -> None:
        now = time.perf_counter(), time.process_time()
        if trainer.global_step == self._first:
            self._start = now
        elif trainer.global_step == self._last:
            self.rate = Rate(*((b - a) / (self._last - self._first) for a, b in zip(self._start, now, strict=True)))


def ours(train, options: dict, *, precision: str, warmup: int, steps: int) -> Rate:
    """A run of `train()`; it validates before its first step and after its last one."""
    model, clock = TahoeST(train, size=SIZE, set_size=SET_SIZE, **options), Clock(warmup, steps)
    model.train(
        max_steps=steps, batch_size=SETS, validate_every=steps, precision=precision, progress=False, callbacks=[clock],
        accelerator="cpu",
    )  # fmt: skip
    return clock.rate


def write_task(task: FewShotTask, folder: Path) -> Path:
    """The same cells and the same split in files that the program reads: expression dense in `obsm`, its faster way."""
    screen = papalexi_thp1()
    screen.obsm["X_hvg"] = screen.X.toarray()
    del screen.layers["counts"]
    columns = {"perturbation": "target_gene", "bio_rep": "cell_type"}
    screen.obs = screen.obs[list(columns)].rename(columns=columns).astype(str).astype("category")
    screen.obs["batch_var"] = screen.obs["cell_type"]
    (folder / "screen").mkdir()
    screen.write_h5ad(folder / "screen" / "screen.h5ad")
    path = folder / "task.toml"
    validation, test = json.dumps(task.validation_targets), json.dumps(task.targets)
    path.write_text(
        f'[datasets]\np = "{folder / "screen"}"\n[training]\np = "train"\n[zeroshot]\n[fewshot]\n'
        f'[fewshot."p.{task.context}"]\nval = {validation}\ntest = {test}\n'
    )
    return path


def command(program: str, toml: Path, out: Path, *, workers: int, steps: int) -> list[str]:
    """A command line of the program at our shape. It never validates and writes a checkpoint at the end only."""
    size = SIZES[SIZE]
    options = {
        "data.kwargs.toml_config_path": toml,
        "data.kwargs.embed_key": "X_hvg",
        "data.kwargs.output_space": "gene",
        "data.kwargs.num_workers": workers,
        "data.kwargs.batch_col": "batch_var",
        "data.kwargs.pert_col": "target_gene",
        "data.kwargs.cell_type_key": "cell_type",
        "data.kwargs.control_pert": "non-targeting",
        "training.max_steps": steps,
        "training.batch_size": SETS,
        "training.val_freq": 1_000_000,
        "training.ckpt_every_n_steps": 1_000_000,
        "model": "state",
        "model.kwargs.cell_set_len": SET_SIZE,
        "model.kwargs.hidden_dim": size["hidden"],
        "model.kwargs.n_encoder_layers": size["n_encoder_layers"],
        "model.kwargs.n_decoder_layers": size["n_decoder_layers"],
        "++model.kwargs.gene_decoder_bool": "false",  # it would be built and never used here
        "output_dir": out,
        "name": "run",
        "use_wandb": "false",
    }
    backbone = {
        "max_position_embeddings": SET_SIZE,
        "hidden_size": size["hidden"],
        "intermediate_size": size["intermediate"],
        "num_hidden_layers": size["n_layers"],
        "num_attention_heads": size["n_heads"],
        "num_key_value_heads": size["n_heads"],
        "head_dim": size["head_dim"],
    }
    options |= {f"model.kwargs.transformer_backbone_kwargs.{name}": value for name, value in backbone.items()}
    return [program, "tx", "train", *(f"{name}={value}" for name, value in options.items())]


def tree_seconds(pid: int) -> dict[int, float]:
    """Processor seconds of each living process from `pid` down."""
    seconds = {}
    for process in (root := psutil.Process(pid), *root.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:  # a worker that ended meanwhile
            continue
        seconds[process.pid] = times.user + times.system
    return seconds


def peer(line: list[str], *, warmup: int, steps: int) -> Rate:
    """A run of the program, watched through its progress bar: on a terminal it is redrawn at every step.

    Raises
    ------
    RuntimeError
        If the program fails, or its progress cannot be read.
    """
    ours_end, theirs = pty.openpty()
    settings = {"CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "disabled", "TERM": "xterm", "COLUMNS": "120"}
    environment = {**os.environ, **settings}
    environment.pop("PYTHONPATH", None)
    process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    text, epoch, before, done, start, rate = "", 0, 0, 0, None, None
    spent: dict[int, float] = {}
    everything: list[str] = []
    while True:
        try:
            piece = os.read(ours_end, 65_536).decode(errors="replace")
        except OSError:  # the end, on Linux
            break
        if not piece:
            break
        everything = [*everything[-200:], piece]
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text[-400:] + piece)
        for found in re.finditer(r"Epoch (\d+)\D[^\r\n]*?\s(\d+)/(\d+)\s", text):
            now, step, of = (int(x) for x in found.groups())
            if now > epoch:
                epoch, before = now, before + (now - epoch) * of
            done = max(done, before + step)
        if done >= warmup and rate is None:
            # workers are new in every epoch, so that the last seen of each is kept
            spent |= tree_seconds(process.pid)
            if start is None:
                start = done, time.perf_counter(), sum(spent.values())
            elif done >= steps - 1:
                n = done - start[0]
                rate = Rate((time.perf_counter() - start[1]) / n, (sum(spent.values()) - start[2]) / n)
    os.close(ours_end)
    if process.wait() or rate is None:
        last = "".join(everything)
        raise RuntimeError(f"{' '.join(line)}\nended with {process.returncode} after {done} steps:\n{last}")
    return rate


def report(name: str, rates: list[Rate]) -> None:
    """Two lines of the table."""
    for kind in Rate._fields:
        seconds = [getattr(rate, kind) for rate in rates]
        median, low, high = (1000 * f(seconds) for f in (statistics.median, min, max))
        spread = f"{median:8.1f} ms a step ({low:.1f} to {high:.1f}, n={len(seconds)})"
        print(f"{name:<50}{kind:<10}{1000 / median:8.2f} steps/s {spread}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=os.environ.get("SCVI_TAHOE_ARC_STATE"), help="or SCVI_TAHOE_ARC_STATE")
    parser.add_argument("--pairs", type=int, default=4, help="runs of each, in turns")
    parser.add_argument("--workers", default="0,1,2", help="loader processes of the program; its best one counts")
    parser.add_argument("--precisions", default="32-true", help="of ours")
    parser.add_argument("--warmup", type=int, default=40)
    parser.add_argument("--steps", type=int, default=160)
    args = parser.parse_args()
    if args.program is None:
        parser.error("give the program of arc-state with --program, or in SCVI_TAHOE_ARC_STATE")
    warnings.filterwarnings("ignore")
    check()
    task = papalexi_few_shot()
    train = task.train.copy()
    TahoeST.setup_anndata(
        train, perturbation_key=task.perturbation_key, control=task.control, context_key=task.context_key
    )
    print(f"{SETS} sets of {SET_SIZE} cells, {train.n_vars} genes, {torch.get_num_threads()} threads", flush=True)
    interval = {"warmup": args.warmup, "steps": args.steps}
    names = [(variant, precision) for variant in VARIANTS for precision in args.precisions.split(",")]
    rates: dict[tuple, list[Rate]] = {}
    ratios: dict[tuple, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        toml = write_task(task, folder)
        for turn in range(args.pairs):
            theirs = {}
            for workers in (int(w) for w in args.workers.split(",")):
                line = command(args.program, toml, folder / f"{turn}_{workers}", workers=workers, steps=args.steps)
                theirs[workers] = peer(line, **interval)
                report(f"turn {turn}: arc-state tx train, {workers} workers", [theirs[workers]])
                rates.setdefault(("arc-state tx train", f"{workers} workers"), []).append(theirs[workers])
            for variant, precision in names:
                own = ours(train, VARIANTS[variant], precision=precision, **interval)
                report(f"turn {turn}: {variant}, {precision}", [own])
                rates.setdefault((variant, precision), []).append(own)
                best = Rate(*(min(getattr(r, kind) for r in theirs.values()) for kind in Rate._fields))
                for kind in Rate._fields:
                    ratio = getattr(best, kind) / getattr(own, kind)
                    ratios.setdefault((variant, precision, kind), []).append(ratio)
    print("\nmedians over the turns", flush=True)
    for name, values in rates.items():
        report(", ".join(name), values)
    print("times the steps of the program with the number of workers that was best in the same turn:")
    for (variant, precision, kind), values in ratios.items():
        spread = f"({min(values):.1f} to {max(values):.1f}, n={len(values)})"
        print(f"{variant + ', ' + precision:<50}{kind:<10}{statistics.median(values):8.1f} {spread}")


if __name__ == "__main__":
    main()
