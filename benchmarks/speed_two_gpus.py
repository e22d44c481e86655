"""Two GPUs of one machine against one: rate, cells seen, losses, prediction, and a run whose process is killed.

The shape is that of ``speed_gpu.py``: 18,080 genes, sets of 512 cells, 12 sets a step of each GPU.

    python benchmarks/speed_two_gpus.py --out two_gpus.json
    python benchmarks/speed_two_gpus.py --strategy ddp --parts train
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback
from speed_gpu import GENES, PERTURBATIONS, SETS, csr_on_card, new_model, screen

from scvi_tahoe import TahoeST
from scvi_tahoe._constants import TENSORS
from scvi_tahoe.datasets import simulate_screen

STEPS, EVERY = 320, 80


class Watch(Callback):
    """Rate of each epoch after the first, on all GPUs together, and the sums of the cells that this process saw."""

    def __init__(self, sets_per_step: int) -> None:
        self.sets_per_step = sets_per_step
        self.rates: list[float] = []
        self.seen: list[torch.Tensor] = []

    def on_train_epoch_start(self, trainer, *args) -> None:
        torch.cuda.synchronize()
        self._start = time.perf_counter(), trainer.global_step

    def on_train_batch_end(self, trainer, module, outputs, batch, *args) -> None:
        if trainer.global_step <= 5:
            self.seen.append(batch[TENSORS.OBSERVED].double().sum((1, 2)))
        if trainer.is_last_batch:
            torch.cuda.synchronize()
            seconds = time.perf_counter() - self._start[0]
            self.rates.append((trainer.global_step - self._start[1]) * self.sets_per_step / seconds)


def worker(folder: Path, head: str, strategy: str) -> None:
    """One process of a run on as many GPUs as there are processes: a fast run, then one whose losses are compared."""
    rank, n = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    torch.cuda.set_device(rank)
    adata = screen(csr_on_card(24_000, GENES))
    options = {"accelerator": "gpu", "progress": False, "devices": n, "strategy": strategy if n > 1 else "auto"}
    model, watch = new_model(adata, head), Watch(SETS * n)
    model.train(STEPS, batch_size=SETS, validate_every=EVERY, compile=True, callbacks=[watch], **options)
    result = {"rates": watch.rates[1:], "seen": torch.cat(watch.seen).tolist()}
    if rank == 0:
        show_run(n, result)
    # the same number of sets a step for every number of GPUs
    torch.manual_seed(0)
    model = new_model(adata, head)
    model.train(100, batch_size=2 * SETS // n, validate_every=20, compile=False, lr=3e-4, **options)
    result["losses"] = {k: model.history[k].to_numpy().ravel().tolist() for k in ("train_loss", "validation_loss")}
    (folder / f"{n}_{rank}.json").write_text(json.dumps(result))


def predict(folder: Path) -> None:
    """One process that predicts on one GPU and then on both."""
    model = new_model(screen(csr_on_card(24_000, GENES)), "delta")
    model.to_device("cuda:0")
    ask, seconds, results = {"perturbations": PERTURBATIONS[:100], "n_cells": 1000, "progress": False}, {}, {}
    for devices in (1, 2):
        seconds[devices] = []
        for _ in range(4):
            torch.cuda.synchronize()
            start = time.perf_counter()
            results[devices] = model.predict(devices=devices, **ask)
            seconds[devices].append(time.perf_counter() - start)
    same = bool(np.array_equal(results[1].X, results[2].X))
    (folder / "predict.json").write_text(json.dumps({"seconds": seconds, "same": same}))


def resumed(folder: Path, strategy: str, *, goes_on: bool) -> None:
    """One process of a small run, which goes on from its last checkpoint if it is told to."""
    n = int(os.environ["WORLD_SIZE"])
    adata = simulate_screen(2, 8, n_genes=500, n_cells=80, n_control_cells=200)
    TahoeST.setup_anndata(adata, "perturbation", "control", context_key="context")
    model = TahoeST(adata, set_size=32, prior="none")
    model.train(
        4000, batch_size=4, validate_every=100, compile=False, progress=False, save_dir=folder,
        resume_from=folder / "last.ckpt" if goes_on else None, accelerator="gpu", devices=n, strategy=strategy,
    )  # fmt: skip
    if model.trainer.is_global_zero:
        loss = float(model.history["validation_loss"].iloc[-1, 0])
        (folder / "done.json").write_text(json.dumps({"step": model.trainer.global_step, "loss": loss}))


def launch(n: int, *arguments: str) -> subprocess.Popen:
    """This script in ``n`` processes."""
    port = str(29_500 + os.getpid() % 1000)
    single = [sys.executable, __file__, *arguments]
    several = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={n}", f"--master-port={port}"]
    return subprocess.Popen(single if n == 0 else [*several, __file__, *arguments], start_new_session=True)


def finished(process: subprocess.Popen) -> None:
    """Wait; stop where it failed."""
    if process.wait():
        raise SystemExit(f"{process.args} failed")


def kill_and_resume(folder: Path, strategy: str) -> dict:
    """Kill one of two processes at its first checkpoint, see the other end, and go on."""
    folder.mkdir()
    run = launch(2, "--part", "start", "--folder", str(folder), "--strategy", strategy)
    while not (folder / "last.ckpt").exists():
        if run.poll() is not None:
            raise SystemExit("the run ended before its first checkpoint")
        time.sleep(0.2)
    children = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    code = run.wait(timeout=120)
    at = torch.load(folder / "last.ckpt", map_location="cpu", weights_only=True)["global_step"]
    finished(launch(2, "--part", "resume", "--folder", str(folder), "--strategy", strategy))
    return {"exit code after the kill": code, "resumed from step": at, **json.loads((folder / "done.json").read_text())}


def show_run(n: int, run: dict) -> None:
    """Rate of a run on one GPU or on two."""
    rates = run["rates"]
    spread = f"({min(rates):,.1f} to {max(rates):,.1f})"
    print(f"{n} GPUs: {statistics.median(rates):,.1f} sets/s {spread}, training of {STEPS} steps", flush=True)


def show_both(found: dict) -> None:
    """Ratio, cells and losses of one GPU and of two."""
    one, two = found["1_0"], found["2_0"]
    print(f"ratio {statistics.median(two['rates']) / statistics.median(one['rates']):.3f}")
    common = set(two["seen"]) & set(found["2_1"]["seen"])
    print(f"sets of the first steps: {len(two['seen'])} of each process, {len(common)} seen by both")
    for name in ("train_loss", "validation_loss"):
        for run, label in ((one, "one"), (two, "two")):
            print(f"{name}, {label}: {np.round(run['losses'][name], 5).tolist()}", flush=True)


def show_prediction(found: dict) -> None:
    """Time and equality of predictions."""
    for n, seconds in found["predict"]["seconds"].items():
        print(f"predict() 100,000 x {GENES:,}, {n} GPUs: {statistics.median(seconds[1:]):.2f} s {np.round(seconds, 2)}")
    print(f"predictions equal: {found['predict']['same']}", flush=True)


def main() -> None:
    """Run every part in processes of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["worker", "predict", "start", "resume"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--head", default="delta")
    parser.add_argument("--strategy", default="ddp_sharded", choices=["ddp", "ddp_sharded"])
    parser.add_argument("--parts", default="train,predict,kill")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.part == "worker":
        return worker(args.folder, args.head, args.strategy)
    if args.part == "predict":
        return predict(args.folder)
    if args.part:
        return resumed(args.folder, args.strategy, goes_on=args.part == "resume")
    if torch.cuda.device_count() < 2:
        raise SystemExit(f"this machine has {torch.cuda.device_count()} GPUs; two are needed.")
    print(
        f"{torch.cuda.get_device_name(0)} x 2, torch {torch.__version__}, head {args.head}, {args.strategy}", flush=True
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        read = lambda: {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
        if "train" in args.parts:
            for n in (1, 2):
                options = ("--folder", str(folder), "--head", args.head, "--strategy", args.strategy)
                finished(launch(n, "--part", "worker", *options))
            show_both(read())
        if "predict" in args.parts:
            finished(launch(0, "--part", "predict", "--folder", str(folder)))
            show_prediction(read())
        found = read()
        if "kill" in args.parts:
            found["killed"] = kill_and_resume(folder / "run", args.strategy)
            print(f"a process killed: {found['killed']}")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))
    return None


if __name__ == "__main__":
    main()
