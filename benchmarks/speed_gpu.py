"""Speed on one GPU at the shape of the published fine-tuning run: 18,080 genes, sets of 512 cells, 12 sets a step.

Builds its data on the card, checks every fast path against a slow reference first, then prints one line a figure:
median, smallest and largest of the repeats.

    python benchmarks/speed_gpu.py --parts step,train,predict --out results.json
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
import time
import traceback
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from lightning.pytorch import Callback

from scvi_tahoe import TahoeST
from scvi_tahoe.data import make_store
from scvi_tahoe.nn import energy_distance

if TYPE_CHECKING:
    from collections.abc import Iterator

GENES, SET_SIZE, SETS, WIDTH, BATCHES = 18_080, 512, 12, 5_120, 530
DEVICE = torch.device("cuda", 0)
RESULTS: dict[str, dict] = {}
PERTURBATIONS = [f"gene{i}" for i in range(150)]


def report(name: str, values: list[float], unit: str, digits: int = 1) -> None:
    """One line of the table."""
    median, low, high = statistics.median(values), min(values), max(values)
    RESULTS[name] = {"median": median, "min": low, "max": high, "n": len(values), "unit": unit}
    spread = f"({low:,.{digits}f} to {high:,.{digits}f}, n={len(values)})"
    print(f"{name:<64}{median:>12,.{digits}f}  {spread} {unit}", flush=True)


def note(name: str, value: float, unit: str, digits: int = 2) -> None:
    """One number without spread."""
    RESULTS[name] = {"median": value, "unit": unit}
    print(f"{name:<64}{value:>12,.{digits}f}  {unit}", flush=True)


def csr_on_card(n_cells: int, n_genes: int, density: float = 0.3, seed: int = 0, device=DEVICE) -> sp.csr_matrix:
    """log1p of normalised counts, genes expressed in different fractions of cells."""
    generator = torch.Generator(device).manual_seed(seed)
    share = torch.rand(n_genes, device=device, generator=generator).mul_(2 * density)
    counts, columns, values = [], [], []
    for first in range(0, n_cells, 2000):
        n = min(2000, n_cells - first)
        expressed = torch.rand(n, n_genes, device=device, generator=generator) < share
        row, column = expressed.nonzero(as_tuple=True)
        count = 1 + torch.rand(len(row), device=device, generator=generator).clamp_min_(1e-6).log_().mul_(-1.5).floor_()
        depth = 0.3 + torch.rand(n, device=device, generator=generator)
        counts.append(expressed.sum(1).cpu())
        columns.append(column.int().cpu())
        values.append(torch.log1p(count * depth[row]).cpu())
    indptr = np.concatenate([[0], torch.cat(counts).numpy().cumsum()])
    return sp.csr_matrix((torch.cat(values).numpy(), torch.cat(columns).numpy(), indptr), shape=(n_cells, n_genes))


def screen(matrix: sp.csr_matrix, seed: int = 0) -> ad.AnnData:
    """20 perturbations, a sixth of the cells controls, 530 batches, 5,120-wide embeddings of 150 perturbations."""
    rng = np.random.default_rng(seed)
    n = matrix.shape[0]
    label = np.where(rng.random(n) < 1 / 6, "control", np.array(PERTURBATIONS[:20])[rng.integers(0, 20, n)])
    obs = pd.DataFrame(
        {"perturbation": label, "context": "one", "batch": rng.integers(0, BATCHES, n).astype(str)},
        index=np.arange(n).astype(str),
    )
    var = pd.DataFrame(index=[f"g{i}" for i in range(matrix.shape[1])])
    adata = ad.AnnData(matrix, obs=obs.astype("category"), var=var)
    names = ["control", *PERTURBATIONS]
    table = pd.DataFrame(rng.normal(size=(len(names), WIDTH)).astype(np.float32) / 10, index=names)
    adata.uns["table"] = table
    TahoeST.setup_anndata(
        adata, perturbation_key="perturbation", control="control", context_key="context", batch_key="batch",
        perturbation_embedding_key="table",
    )  # fmt: skip
    return adata


def new_model(adata: ad.AnnData, head: str, **kwargs) -> TahoeST:
    """The published size."""
    return TahoeST(adata, size="tahoe", set_size=SET_SIZE, network={"head": head}, batch_encoder=True, **kwargs)


def timed(function, repeats: int = 20, warmup: int = 5) -> list[float]:
    """Seconds of each repeat by device events."""
    for _ in range(warmup):
        function()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        function()
        mark.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1000 for a, b in zip(marks[:-1], marks[1:])]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative error."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def check(adata: ad.AnnData) -> None:
    """Every fast path against a slow one."""
    rng = np.random.default_rng(1)
    rows = rng.integers(0, adata.n_obs, (3, 200))
    slow = torch.from_numpy(adata.X[rows.ravel()].toarray()).view(3, 200, -1)
    for kind in ("device", "host"):
        for full_precision in (True, False):
            store = make_store(adata.X, DEVICE, kind=kind, full_precision=full_precision)
            reference = slow if full_precision else slow.half().float()
            for step in range(3):
                if step:
                    store.prefetch(rows)
                fast = store.dense(store.fetch(rows), DEVICE).cpu()
                if not torch.equal(fast, reference):
                    raise SystemExit(f"{kind} store, full_precision={full_precision}: wrong rows at call {step}")
            print(f"rows of the {kind} store, full_precision={full_precision}: equal", flush=True)
            del store
    cells = torch.from_numpy(adata.X[:2048].toarray()).to(DEVICE).view(4, 512, -1)
    predicted = (cells[:2] + 0.3 * torch.rand_like(cells[:2])).clamp_min(0)
    for diagonal in ("zero", "excluded"):
        found = {}
        for dtype, products in ((torch.float64,) * 2, (torch.float32,) * 2, (torch.float32, torch.float16)):
            x = predicted.to(dtype).clone().requires_grad_()
            value = energy_distance(x, cells[2:].to(dtype), diagonal=diagonal, products=products)
            value.sum().backward()
            found[products] = (value.detach(), x.grad.detach())
        for products, limit in ((torch.float32, 1e-5), (torch.float16, 1e-3)):
            errors = [relative(a, b) for a, b in zip(found[products], found[torch.float64])]
            verdict = "within" if max(errors) <= limit else "ABOVE"
            found_errors = f"value {errors[0]:.1e}, gradient {errors[1]:.1e}"
            print(f"energy distance {diagonal}, {products}: {found_errors}, {verdict} {limit:g}", flush=True)


def gather(adata: ad.AnnData) -> None:
    """Rows of one step, dense, from each store."""
    rng = np.random.default_rng(2)
    for kind in ("device", "host"):
        store = make_store(adata.X, DEVICE, kind=kind)
        draws = [rng.integers(0, adata.n_obs, (SETS, SET_SIZE)) for _ in range(8)]
        turn = iter(range(10**9))
        seconds = timed(lambda s=store, d=draws, t=turn: s.dense(s.fetch(d[next(t) % 8]), DEVICE))
        report(f"gather 6,144 rows of 18,080 genes, {kind} store", [1000 * s for s in seconds], "ms", 3)


def loss(adata: ad.AnnData) -> None:
    """Energy distance, forwards and backwards."""
    store = make_store(adata.X, DEVICE, kind="device")
    rng = np.random.default_rng(3)
    draw = lambda: store.dense(store.fetch(rng.integers(0, adata.n_obs, (SETS, SET_SIZE))), DEVICE)
    observed, predicted = draw(), draw()
    for dtype in (torch.float32, torch.bfloat16):
        x = predicted.to(dtype).requires_grad_()
        for products in (torch.float16, torch.float32):

            def both_ways(x: torch.Tensor = x, products: torch.dtype = products) -> None:
                energy_distance(x, observed, diagonal="excluded", products=products).sum().backward()

            seconds = timed(both_ways)
            report(f"energy distance, {dtype} cells, {products} products", [SETS / s for s in seconds], "sets/s")


#: how a bare step is computed: by one torch operation after another, with fused kernels and rounded weights, the same
#: compiled, and the same recorded as a CUDA graph, as `train()` does by default
MODES = ("plain", "fused", "compiled", "recorded")


def step_function(model: TahoeST, adata: ad.AnnData, *, mode: str, frozen: bool = False):
    """A bare training step on one minibatch that is already on the card."""
    from scvi_tahoe._constants import TENSORS
    from scvi_tahoe.nn import _layers
    from scvi_tahoe.training import PlanConfig
    from scvi_tahoe.training._acceleration import Acceleration
    from scvi_tahoe.training._graphed_step import GraphedStep
    from scvi_tahoe.training._rounded_optimizer import RoundedAdamW

    torch.manual_seed(0)
    module = model.module.to(DEVICE).train()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not (frozen and name.startswith("network.backbone.")))
    rng = np.random.default_rng(4)
    store = make_store(adata.X, DEVICE, kind="device")
    draw = lambda: store.compact(store.fetch(rng.integers(0, adata.n_obs, (SETS, SET_SIZE))), DEVICE)
    batch = {
        TENSORS.CONTROL: draw(), TENSORS.OBSERVED: draw(),
        **({} if module.network.base_encoder is None else {TENSORS.RESIDUAL_INPUT: draw()}),
        TENSORS.PERTURBATION: torch.randn(SETS, WIDTH, device=DEVICE) / 10,
        TENSORS.BATCH: torch.randint(0, BATCHES, (SETS, SET_SIZE), device=DEVICE),
        TENSORS.CONDITION: torch.zeros(SETS, dtype=torch.long, device=DEVICE),
    }  # fmt: skip
    config, weights = PlanConfig(max_steps=10), list(module.parameters())
    if mode == "plain":
        _layers._by_kernels = lambda x: False
        optimizer = torch.optim.AdamW(weights, lr=config.lr, fused=True)
    else:
        rounded = [layer.weight for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
        options = {"lr": config.lr, "fused": True, "precision": torch.bfloat16, "rounded": rounded}
        optimizer = RoundedAdamW([{"params": weights}], **options)
        optimizer.compact()
    acceleration = Acceleration(module, compiles=mode == "compiled")
    acceleration.begin("bf16-mixed", DEVICE)
    graphed = GraphedStep(module) if mode == "recorded" else None

    def step() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            recorded = None if graphed is None else graphed(batch)
            if recorded is None:
                *_, losses = module(batch)
        if recorded is None:
            losses.loss.backward()
        if mode == "plain":
            torch.nn.utils.clip_grad_norm_([p for p in weights if p.grad is not None], 1.0)
        else:
            optimizer.reduce_gradients(1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, acceleration


def step(adata: ad.AnnData, heads: list[str], profile: bool) -> None:
    """Bare steps in every mode."""
    from scvi_tahoe.nn import _layers

    by_kernels = _layers._by_kernels
    for head, mode, frozen in [*((h, m, False) for h in heads for m in MODES), (heads[0], "recorded", True)]:
        model = new_model(adata, head)
        start = time.perf_counter()
        function, acceleration = step_function(model, adata, mode=mode, frozen=frozen)
        function()
        torch.cuda.synchronize()
        name = f"bare step, {head}, {mode}{', frozen backbone' if frozen else ''}"
        note(f"{name}: first step", time.perf_counter() - start, "s")
        seconds = timed(function, repeats=30)
        report(name, [SETS / s for s in seconds], "sets/s")
        note(f"{name}: peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")
        if profile:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
                for _ in range(3):
                    function()
                torch.cuda.synchronize()
            rows = sorted(trace.key_averages(), key=lambda e: -e.self_device_time_total)
            for row in rows[:14]:
                print(f"    {row.self_device_time_total / 3000:7.2f} ms {row.count // 3:5d}x  {row.key[:90]}")
            print(f"    {sum(row.self_device_time_total for row in rows) / 3000:7.2f} ms in kernels")
        acceleration.end()
        _layers._by_kernels = by_kernels
        del model, function
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


class Clock(Callback):
    """Time of the training steps of each epoch, without the validation between."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.first_step: float | None = None

    def on_train_epoch_start(self, trainer, *args) -> None:
        torch.cuda.synchronize()
        self._start = time.perf_counter(), trainer.global_step

    def on_train_batch_end(self, trainer, *args) -> None:
        if self.first_step is None:
            torch.cuda.synchronize()
            self.first_step = time.perf_counter()
        if trainer.is_last_batch:
            torch.cuda.synchronize()
            seconds = time.perf_counter() - self._start[0]
            self.rates.append((trainer.global_step - self._start[1]) * SETS / seconds)


def train(adata: ad.AnnData, head: str, *, compile: bool | str, store: str = "auto", steps: int = 400) -> TahoeST:
    """model.train() from end to end; ended by nothing but its number of steps."""
    model, clock = new_model(adata, head), Clock()
    torch.cuda.reset_peak_memory_stats()
    plan = model.memory_plan(batch_size=SETS, store=store)
    start = time.perf_counter()
    model.train(
        max_steps=steps, batch_size=SETS, validate_every=100, compile=compile, store=store, progress=False,
        patience=steps, callbacks=[clock],
    )  # fmt: skip
    seconds = time.perf_counter() - start
    name = f"train(), {head}, compile={compile!r}, store={store}"
    note(f"{name}: {steps:,} steps, start and validation included", steps * SETS / seconds, "sets/s", 1)
    note(f"{name}: call to first step", clock.first_step - start, "s")
    report(f"{name}: steps, loader, logging, clipping", clock.rates[1:], "sets/s")
    report(f"{name}: validation included", model.history["sets_per_second"].to_numpy().ravel().tolist()[1:], "sets/s")
    note(f"{name}: peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")
    note(f"{name}: planned memory", plan.total / 2**30, "GiB")
    print(f"    {plan}\n    losses {model.history['train_loss'].to_numpy().ravel().round(4).tolist()}", flush=True)
    return model


def frozen(adata: ad.AnnData) -> None:
    """What a frozen backbone saves: rate and memory of runs with no option that train all of it, and none of it."""
    for freeze in (False, True):
        model, clock = new_model(adata, "down_up"), Clock()
        model.pretrained_parameters_ = [n for n, _ in model.module.named_parameters()]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        model.train(
            max_steps=200, batch_size=SETS, validate_every=50, progress=False, freeze_backbone=freeze,
            callbacks=[clock],
        )  # fmt: skip
        state = model.trainer.optimizers[0].state.values()
        moments = sum(t.nbytes for s in state for t in s.values() if torch.is_tensor(t))
        report(f"train(freeze_backbone={freeze}), down_up", clock.rates[1:], "sets/s")
        note(f"train(freeze_backbone={freeze}): peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")
        note(f"train(freeze_backbone={freeze}): state of the optimizer", moments / 2**30, "GiB")
        del model, state


def equal(steps: int = 400) -> None:
    """Losses of runs with no option, and of the same runs by one torch operation after another, three seeds."""
    from scvi_tahoe.datasets import papalexi_few_shot

    task = papalexi_few_shot()
    train = task.train.copy()
    TahoeST.setup_anndata(
        train, perturbation_key=task.perturbation_key, control=task.control, context_key=task.context_key
    )
    for slow in (False, True):
        with slow_operations() if slow else nullcontext():
            for seed in range(3):
                model = TahoeST(train, seed=seed)
                model.train(max_steps=steps, validate_every=50, patience=steps, seed=seed, progress=False)
                found = {name: model.history[f"{name}_loss"].to_numpy().ravel() for name in ("train", "validation")}
                each = "; ".join(f"{name} {values[[0, 3, 7]].round(4).tolist()}" for name, values in found.items())
                rate = float(model.history["sets_per_second"].iloc[-1, 0])
                print(f"{'one by one' if slow else 'no option'}, seed {seed}: {each}; {rate:.0f} sets/s", flush=True)


@contextmanager
def slow_operations() -> Iterator[None]:
    """Switch everything off that makes steps fast: recording, kernels, rounded weights."""
    from scvi_tahoe.data import _start_cells
    from scvi_tahoe.nn import _layers, _losses
    from scvi_tahoe.training._plan import TahoeTrainingPlan

    places = (_layers, "_by_kernels"), (_losses, "_kernels_hold"), (_start_cells, "kernel_runs_on")
    places = (*places, (TahoeTrainingPlan, "_rounds_on_one_gpu"))
    kept = [getattr(*place) for place in places]
    for place in places:
        setattr(*place, lambda *_: False)
    try:
        yield
    finally:
        for place, function in zip(places, kept, strict=True):
            setattr(*place, function)


def limits(adata: ad.AnnData) -> None:
    """What the user reads when the memory of the card does not suffice."""
    model = new_model(adata, "down_up")
    try:
        model.train(max_steps=2, batch_size=4_000, validate_every=2, compile=False, progress=False)
    except MemoryError as error:
        print(f"out of memory: {error}", flush=True)


def predict(model: TahoeST, head: str) -> None:
    """100 perturbations x 1,000 cells, from the call to the AnnData; and the forward alone."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        predicted = model.predict(perturbations=PERTURBATIONS[:100], n_cells=1000, progress=False)
        seconds.append(time.perf_counter() - start)
        shape = predicted.shape
        del predicted
    report(f"predict() {shape[0]:,} x {shape[1]:,} into AnnData, {head}", seconds, "s", 2)
    module = model.module.eval().to(DEVICE)
    control = torch.rand(16, SET_SIZE, GENES, device=DEVICE)
    perturbation = torch.randn(16, WIDTH, device=DEVICE)
    batch = torch.zeros(16, SET_SIZE, dtype=torch.long, device=DEVICE)

    def forward() -> None:
        with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16):
            module(control, perturbation, batch)

    report(f"forward, {head}, eager", [16 * SET_SIZE / s for s in timed(forward)], "cells/s", 0)
    few = {"perturbations": PERTURBATIONS[:2], "n_cells": 600, "progress": False}
    full_precision, fast = (model.predict(precision=p, **few).X for p in ("32", "auto"))
    error = float(np.linalg.norm(fast - full_precision) / np.linalg.norm(full_precision))
    note(f"predict(), {head}: bf16 against float32, relative", error, "", 5)


def start(matrix: sp.csr_matrix) -> None:
    """From the call of train() to the first step with 220,000 cells."""
    copies = 9
    tall = sp.csr_matrix(
        (np.tile(matrix.data, copies), np.tile(matrix.indices, copies),
         np.concatenate([[0], *(matrix.indptr[1:].astype(np.int64) + i * matrix.nnz for i in range(copies))])),
        shape=(copies * matrix.shape[0], matrix.shape[1]),
    )  # fmt: skip
    begin = time.perf_counter()
    adata = screen(tall)
    note(f"setup_anndata of {tall.shape[0]:,} cells", time.perf_counter() - begin, "s")
    model, clock = new_model(adata, "delta"), Clock()
    begin = time.perf_counter()
    model.train(max_steps=30, batch_size=SETS, validate_every=30, compile=False, progress=False, callbacks=[clock])
    size = f"{tall.shape[0]:,} cells, {tall.nnz / 1e9:.2f}e9 entries"
    note(f"train() of {size}: call to first step", clock.first_step - begin, "s")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="check,gather,loss,step,train,host,predict,frozen,equal,limits,start")
    parser.add_argument("--heads", default="down_up,delta")
    parser.add_argument("--compile", default="auto", choices=["auto", "yes", "no", "both"])
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--steps", type=int, default=400, help="Of train().")
    parser.add_argument("--cells", type=int, default=24_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("scvi_tahoe").setLevel(logging.INFO)
    logging.basicConfig(format="    %(message)s")
    logging.getLogger("scvi").setLevel(logging.WARNING)
    print(torch.cuda.get_device_name(0), "torch", torch.__version__, flush=True)
    heads, parts = args.heads.split(","), args.parts.split(",")
    begin = time.perf_counter()
    adata = screen(csr_on_card(args.cells, GENES))
    seconds = time.perf_counter() - begin
    share = adata.X.nnz / adata.n_obs / GENES
    print(f"data: {adata.n_obs:,} cells, {share:.0%} non-zeros, {seconds:.0f} s", flush=True)

    def run(name: str, function, *arguments, **options):
        if name not in parts:
            return None
        try:
            return function(*arguments, **options)
        except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError):
            # the other figures are still wanted
            traceback.print_exc()
            return None
        finally:
            gc.collect()
            torch.cuda.empty_cache()

    run("check", check, adata)
    run("gather", gather, adata)
    run("loss", loss, adata)
    run("step", step, adata, heads, args.profile)
    for head in heads:
        model = None
        for compiles in {"auto": ("auto",), "yes": (True,), "no": (False,), "both": (False, True)}[args.compile]:
            model = run("train", train, adata, head, compile=compiles, steps=args.steps) or model
        if model is not None:
            run("predict", predict, model, head)
        del model
    run("host", train, adata, heads[0], compile=False, store="host", steps=300)
    run("frozen", frozen, adata)
    run("equal", equal)
    run("limits", limits, adata)
    run("start", start, adata.X)
    if args.out:
        args.out.write_text(json.dumps(RESULTS, indent=1))


if __name__ == "__main__":
    main()
