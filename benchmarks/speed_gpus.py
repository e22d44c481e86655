"""Several GPUs against one: rates, sets seen, losses, prediction, killed runs, two nodes, memory per card.

The shape is that of ``speed_gpu.py``: 18,080 genes, sets of 512 cells, 12 sets a step of each card. Every part runs in
processes of its own and prints a line of JSON as soon as it is known, so that nothing is lost if a later one fails.

    python benchmarks/speed_gpus.py --devices 8 --out gpus.jsonl
    python benchmarks/speed_gpus.py --devices 2 --parts scale --strategy ddp
    python benchmarks/speed_gpus.py --devices 2 --device cpu --small

``--small`` is a network and a screen for two processor cores, to try the script; its rates mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from speed_gpu import PERTURBATIONS, csr_on_card, screen

from scvi_tahoe import TahoeST
from scvi_tahoe._constants import TENSORS
from scvi_tahoe.datasets import simulate_screen

#: in order of importance
PARTS = ("scale", "predict", "kill", "nodes", "memory", "plan")
#: seconds after which a part is given up
LIMIT = 240
STARTED = time.perf_counter()


@dataclass(frozen=True)
class Shape:
    """Sizes of everything that is run."""

    genes: int = 18_080
    cells: int = 12_000
    #: sets of a step of each card where there is more work with more cards, and of all cards where there is not
    sets: int = 12
    sets_of_all: int = 24
    set_size: int = 512
    size: Any = "tahoe"
    #: a network of about ten times the parameters of the published one
    large: Any = None
    #: steps of a run whose rate is measured and of one whose losses are compared, and how many between validations
    steps: int = 600
    every: int = 200
    compared: int = 100
    #: predicted cells
    predicted: int = 100_000
    #: steps of the run whose process is killed
    killed: int = 1_000


LARGE = {"hidden": 5120, "n_layers": 6, "intermediate": 20_480, "n_heads": 40, "n_encoder_layers": 4,
         "n_decoder_layers": 4}  # fmt: skip
SMALL = Shape(genes=200, cells=600, sets=2, sets_of_all=8, set_size=8, size="mini", large="small", steps=12, every=4,
              compared=8, predicted=200, killed=300)  # fmt: skip


class Watch(Callback):
    """Rates of each epoch after the first, of all processes together, and sums of the cells that this one saw."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.seen: list[torch.Tensor] = []
        self._sets = 0

    def on_train_epoch_start(self, trainer, *args) -> None:
        synchronize()
        self._start, self._sets = time.perf_counter(), 0

    def on_train_batch_end(self, trainer, module, outputs, batch, *args) -> None:
        cells = batch[TENSORS.OBSERVED]
        self._sets += len(cells)
        if trainer.global_step <= 5:
            self.seen.append(cells.double().sum((1, 2)))
        if trainer.is_last_batch:
            synchronize()
            self.rates.append(self._sets * trainer.world_size / (time.perf_counter() - self._start))

    def figures(self) -> dict[str, Any]:
        """Rates and what was seen."""
        return {"rates": np.round(self.rates[1:], 1).tolist(), "seen": torch.cat(self.seen).tolist()}


def numbers(n_all: int) -> list[int]:
    """One card, two, four, ... and all."""
    return sorted({*(2**i for i in range(n_all.bit_length()) if 2**i <= n_all), n_all})


def synchronize() -> None:
    """Wait for the card."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak() -> float:
    """Most GiB in use on this process's card since it was last asked."""
    if not torch.cuda.is_available():
        return 0.0
    used = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return round(used, 2)


class Worker:
    """One process of a part, on as many cards as there are processes."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.shape = args, SMALL if args.small else Shape(large=LARGE)
        self.rank, self.n = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.nodes = args.nodes
        cuda = args.device == "cuda"
        local = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = torch.device("cuda", local) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(self.device)
        #: of train()
        self.options = {
            "accelerator": "gpu" if cuda else "cpu", "progress": False, "devices": self.n // self.nodes,
            "num_nodes": self.nodes,
        }  # fmt: skip
        self.compile = {"auto": "auto", "yes": True, "no": False}[args.compile]

    def tell(self, part: str, **figures: Any) -> None:
        """Write a line of figures of this process."""
        said = {"part": part, "cards": self.n, "nodes": self.nodes, "rank": self.rank, **figures}
        with (self.args.folder / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(said) + "\n")

    def data(self) -> Any:
        """Return the screen."""
        return screen(csr_on_card(self.shape.cells, self.shape.genes, device=self.device))

    def model(self, adata: Any, head: str, size: Any = None, **options: Any) -> TahoeST:
        """Return a new model."""
        size = size or self.shape.size
        network = {"network": {"head": head}, "batch_encoder": True, "set_size": self.shape.set_size}
        return TahoeST(adata, size=size, **network, **options)

    def fit(self, model: TahoeST, steps: int, **options: Any) -> dict[str, Any]:
        """Train, and return rates, sets seen, losses and memory."""
        watch, strategy = Watch(), options.pop("strategy", self.args.strategy)
        gc.collect()
        peak()
        options = {
            "shrink_correction": False,
            **self.options,
            "strategy": strategy if self.n > 1 else "auto",
            **options,
        }
        model.train(steps, callbacks=[watch], **options)
        losses = {k: model.history[k].to_numpy().ravel().tolist() for k in ("train_loss", "validation_loss")}
        return {"strategy": options["strategy"], **watch.figures(), **losses, "peak_gib": peak()}

    def scale(self) -> None:
        """As many sets on each card as on one, and as many on all together."""
        shape, adata = self.shape, self.data()
        for head in self.args.heads.split(","):
            weak = {"batch_size": shape.sets, "validate_every": shape.every}
            found = self.fit(self.model(adata, head), shape.steps, compile=self.compile, patience=shape.steps, **weak)
            self.tell("weak", head=head, compile=self.compile, **found)
            strong = {"validate_every": shape.compared // 4, "lr": 3e-4, "compile": False}
            strategies = [self.args.strategy, *(["fsdp2"] if self.n > 1 and head == "delta" else [])]
            for strategy in strategies:
                each = shape.sets_of_all // self.n
                found = self.fit(self.model(adata, head), shape.compared, strategy=strategy, batch_size=each, **strong)
                self.tell("strong", head=head, compile=False, **found)
            for n in numbers(self.args.devices)[1:] if self.n == 1 else ():
                # the very minibatches of n cards, one after another
                turns = {"batch_size": shape.sets_of_all // n, "accumulate_grad_batches": n}
                found = self.fit(self.model(adata, head), shape.compared, **turns, **strong)
                self.tell("losses", head=head, of=n, **found)

    def node(self) -> None:
        """The run whose losses are compared, by processes of several nodes."""
        options = {"batch_size": self.shape.sets_of_all // self.n, "validate_every": self.shape.compared // 4}
        model = self.model(self.data(), "delta")
        self.tell("nodes", head="delta", **self.fit(model, self.shape.compared, compile=False, lr=3e-4, **options))

    def memory(self) -> None:
        """A network of about ten times the published size, with weights shared out and without."""
        adata = self.data()
        with self.device:  # drawing billions of weights on the processor takes a minute
            model = self.model(adata, "delta", self.shape.large, prior="none")
        parameters = sum(p.numel() for p in model.module.parameters())
        model.to_device("cpu")
        self.tell("memory, built", parameters=parameters)
        for strategy in ("fsdp2", self.args.strategy) if self.n > 1 else ("auto",):
            options = {"batch_size": self.shape.sets, "validate_every": 4, "compile": False, "strategy": strategy}
            found = self.fit(model, 8, **options)
            model.to_device("cpu")
            gc.collect()
            left = round(torch.cuda.memory_allocated() / 2**30, 2) if torch.cuda.is_available() else 0.0
            self.tell("memory", parameters=parameters, left_gib=left, **found)

    def plan(self) -> None:
        """What train() expects that network to take of each card; needs none."""
        adata = self.data()
        with torch.device("meta"):
            model = self.model(adata, "delta", self.shape.large, prior="none")
        for n in numbers(self.args.devices):
            for strategy in ("ddp", "ddp_sharded", "fsdp2") if n > 1 else ("auto",):
                options = {"accelerator": "cpu", "devices": n, "strategy": strategy, "precision": "bf16-mixed"}
                memory = model.memory_plan(batch_size=self.shape.sets, **options)
                of_weights = memory.weights + memory.gradients + memory.optimizer
                figures = {"all_gib": memory.total, "of_weights_gib": of_weights}
                gib = {name: round(value / 2**30, 1) for name, value in figures.items()}
                parameters = sum(p.numel() for p in model.module.parameters())
                self.tell("plan", of=n, strategy=strategy, parameters=parameters, **gib)

    def predict(self) -> None:
        """Predict on one card and then on all, from one process."""
        n_all, shape = self.args.devices, self.shape
        model = self.model(self.data(), "delta", prior="none")
        if self.args.device == "cuda":
            model.to_device("cuda:0")
        names = PERTURBATIONS[: min(100, shape.predicted // 10)]
        ask = {"perturbations": names, "n_cells": shape.predicted // len(names), "progress": False}
        seconds, results = {}, {}
        for n in (1, n_all) if self.args.device == "cuda" else (1,):
            seconds[n] = []
            for _ in range(4):
                synchronize()
                start = time.perf_counter()
                results[n] = model.predict(devices=n, **ask)
                seconds[n].append(round(time.perf_counter() - start, 2))
        same = bool(np.array_equal(results[1].X, results[n_all].X)) if len(results) > 1 else None
        self.tell("predict", shape=list(results[1].shape), seconds=seconds, same=same)

    def run(self, *, goes_on: bool) -> None:
        """Train a small model, from the last checkpoint if it is told to."""
        folder = self.args.folder / "run"
        adata = simulate_screen(2, 8, n_genes=500, n_cells=80, n_control_cells=200)
        TahoeST.setup_anndata(adata, "perturbation", "control", context_key="context")
        model = TahoeST(adata, set_size=32, prior="none")
        model.train(
            self.shape.killed, batch_size=4, validate_every=100, compile=False, save_dir=folder,
            resume_from=folder / "last.ckpt" if goes_on else None, strategy=self.args.strategy, **self.options,
        )  # fmt: skip
        loss = float(model.history["validation_loss"].iloc[-1, 0])
        self.tell("resumed" if goes_on else "uninterrupted", step=model.trainer.global_step, loss=loss)


class Launcher:
    """Starts parts in processes, and reads what they wrote."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self._ports = count(29_500 + os.getpid() % 1000)
        self._known: set[str] = set()

    def start(
        self, work: str, n: int, *, node: int | None = None, port: int = 0, card: int | None = None, heads: str = ""
    ) -> subprocess.Popen:
        """Start this script in ``n`` processes; or as one of two nodes; or on one card."""
        args, environment, port = self.args, dict(os.environ), port or next(self._ports)
        script = [__file__, "--work", work, "--folder", str(self.folder), "--devices", str(args.devices)]
        script += ["--heads", heads or args.heads]
        for name in ("strategy", "device", "compile"):
            script += [f"--{name}", getattr(args, name)]
        script += ["--small"] if args.small else []
        torchrun = [sys.executable, "-m", "torch.distributed.run"]
        if card is not None:  # one of the cards, alone
            environment["CUDA_VISIBLE_DEVICES"] = str(card)
        if n == 0:
            command = [sys.executable, *script]
        elif node is None:
            command = [*torchrun, f"--nproc-per-node={n}", f"--master-port={port}", *script]
        else:
            each = args.devices // 2
            meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
            command = [*torchrun, "--nnodes=2", f"--nproc-per-node={each}", *meeting, *script, "--nodes", "2"]
            cards = map(str, range(node * each, (node + 1) * each))
            environment |= {
                "CUDA_VISIBLE_DEVICES": ",".join(cards),
                "NCCL_SOCKET_IFNAME": "lo",
                "GLOO_SOCKET_IFNAME": "lo",
            }
        return subprocess.Popen(command, start_new_session=True, env=environment)

    def finish(self, processes: list[subprocess.Popen], limit: float = LIMIT) -> bool:
        """Wait for all, end those that take too long, and show what they wrote; whether all succeeded."""
        end = time.perf_counter() + limit
        for process in processes:
            while process.poll() is None:
                if time.perf_counter() > end:
                    os.killpg(process.pid, signal.SIGKILL)
                time.sleep(0.5)
                self.show()
        self.show()
        codes = [process.returncode for process in processes]
        if any(codes):
            self.say(part="failed", codes=codes)
        return not any(codes)

    def show(self) -> None:
        """Print what is new, without the sets seen."""
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n") and line not in self._known:
                    self._known.add(line)
                    figures = {k: v for k, v in json.loads(line).items() if k != "seen"}
                    if figures["rank"] == 0 or figures["part"] == "memory":
                        self.say(**figures)

    def say(self, **figures: Any) -> None:
        """Print a line, and append it to the file asked for."""
        line = json.dumps({**figures, "at": round(time.perf_counter() - STARTED)})
        print(line, flush=True)
        if self.args.out:
            with self.args.out.open("a") as file:
                file.write(line + "\n")

    def known(self, part: str) -> list[dict]:
        """What the processes of a part wrote."""
        return [figures for figures in map(json.loads, sorted(self._known)) if figures["part"] == part]

    # ---------------------------------------------------------------- parts

    def scale(self) -> None:
        """One card, two, four, ... and all."""
        heads = self.args.heads.split(",") if self.args.devices > 1 else [self.args.heads]
        self.finish([self.start("scale", 0, card=card, heads=head) for card, head in enumerate(heads)])
        for n in numbers(self.args.devices)[1:]:
            self.finish([self.start("scale", n)])
        for part in ("weak", "strong"):
            self.compare(part)

    def compare(self, part: str) -> None:
        """Say how many times as fast as one card, how far the losses are apart, which sets two processes saw."""
        found = self.known(part)
        first = {r["head"]: r for r in found if r["cards"] == 1}
        for run in (r for r in found if r["rank"] == 0 and r["cards"] > 1 and r["head"] in first):
            alike = ("head", "cards", "strategy", "compile")
            group = [set(r["seen"]) for r in found if all(r[k] == run[k] for k in alike)]
            one, sets = first[run["head"]], sum(map(len, group))
            apart = {}
            if part == "strong":
                alone = next(r for r in self.known("losses") if r["head"] == run["head"] and r["of"] == run["cards"])
                for name in ("train_loss", "validation_loss"):
                    apart[f"{name}_apart"] = round(abs(run[name][-1] / alone[name][-1] - 1), 5)
            self.say(
                part=f"{part}, compared", **{k: run[k] for k in alike},
                times_one_card=round(statistics.median(run["rates"]) / statistics.median(one["rates"]), 3),
                sets_seen=sets, by_two_processes=sets - len(set.union(*group)), processes=len(group),
                **apart,
            )  # fmt: skip

    def predict(self) -> None:
        """Prediction from one process."""
        self.finish([self.start("predict", 0)])

    def kill(self) -> None:
        """Kill one process at the first checkpoint, see the others end, and go on."""
        checkpoint = self.folder / "run" / "last.ckpt"
        run, end = self.start("start", self.args.devices), time.perf_counter() + LIMIT
        while not checkpoint.exists() and run.poll() is None and time.perf_counter() < end:
            time.sleep(0.2)
        listed = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True, check=False).stdout
        if not checkpoint.exists() or not listed:
            os.killpg(run.pid, signal.SIGKILL)
            self.say(part="failed", why="the run ended before its first checkpoint could be used")
            return
        os.kill(int(listed.split()[-1]), signal.SIGKILL)
        start = time.perf_counter()
        code = run.wait(timeout=LIMIT)
        seconds = round(time.perf_counter() - start, 1)
        at = torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"]
        self.say(part="killed", code=code, seconds_until_all_ended=seconds, at_step=at)
        self.finish([self.start("resume", self.args.devices)])

    def nodes(self) -> None:
        """Two torchrun agents, each as one node."""
        if self.args.devices < 2:
            return
        port = next(self._ports)
        self.finish([self.start("node", 1, node=node, port=port) for node in range(2)])

    def plan(self) -> None:
        """Memory of each card, estimated."""
        self.finish([self.start("plan", 0)])

    def memory(self) -> None:
        """Memory of each card."""
        self.finish([self.start("memory", self.args.devices)])


def main() -> None:
    """Run every part in processes of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=2, help="Cards, of this machine.")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="Sizes for two processor cores.")
    parser.add_argument("--parts", default=",".join(PARTS), help="In this order; those joined by + at the same time.")
    parser.add_argument("--heads", default="delta,down_up")
    parser.add_argument("--strategy", default="ddp_sharded", choices=["ddp", "ddp_sharded", "fsdp2"])
    parser.add_argument("--compile", default="auto", choices=["auto", "yes", "no"])
    parser.add_argument("--out", type=Path, help="File of JSON lines, appended to.")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--nodes", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.work:
        worker = Worker(args)
        if args.work in ("start", "resume"):
            worker.run(goes_on=args.work == "resume")
        else:
            getattr(worker, args.work)()
        return
    if args.device == "cuda" and torch.cuda.device_count() < args.devices:
        raise SystemExit(f"this machine has {torch.cuda.device_count()} GPUs; --devices {args.devices} asks for more.")
    with tempfile.TemporaryDirectory() as folder:
        launcher = Launcher(args, Path(folder))
        name = torch.cuda.get_device_name(0) if args.device == "cuda" else "processor"
        launcher.say(part="machine", device=name, devices=args.devices, torch=torch.__version__, small=args.small)
        for group in args.parts.split(","):
            with ThreadPoolExecutor() as together:
                parts = {part: together.submit(getattr(launcher, part)) for part in group.split("+")}
            for part, outcome in parts.items():
                if (error := outcome.exception()) is not None:  # the other figures are still wanted
                    launcher.say(part="failed", which=part, why=repr(error))


if __name__ == "__main__":
    main()
