"""How the cost of a training step and of a prediction grows with cells, genes, sets a step, set length and width.

One axis changes at a time. Beside each measured time stands its floor: the operations of its matrix products over the
rate of a large product that is measured on the same device first, and the bytes that must move over the measured rate
of a copy. See :func:`counted` for what is counted.

    python benchmarks/scaling.py --device cuda --out scaling.json
    python benchmarks/scaling.py --device cpu

A step gathers the rows of control and observed cells from the store, and computes forward, loss, backward, clipping and
AdamW; a prediction gathers control cells and computes the forward. On a GPU in bfloat16, on the CPU in float32 on one
core (processor time). The loop around it is measured by ``speed_gpu.py`` and ``speed_papalexi.py``.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from speed_gpu import csr_on_card, relative, timed
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scvi_tahoe import TahoeSTModule
from scvi_tahoe._constants import TENSORS
from scvi_tahoe.data import make_store
from scvi_tahoe.nn import NetworkConfig, energy_distance
from scvi_tahoe.training import PlanConfig
from scvi_tahoe.training._acceleration import Acceleration

if TYPE_CHECKING:
    from collections.abc import Callable

DENSITY = 0.3


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One point of the table; `width` is that of a perturbation's vector."""

    cells: int
    genes: int
    sets: int
    set_size: int
    hidden: int
    layers: int
    head_dim: int
    width: int
    mlp_layers: int

    def network(self) -> NetworkConfig:
        """The default network at this size."""
        return NetworkConfig(
            n_input=self.genes, n_output=self.genes, n_perturbation=self.width, hidden=self.hidden,
            n_layers=self.layers, intermediate=4 * self.hidden, n_heads=self.hidden // self.head_dim,
            head_dim=self.head_dim, n_encoder_layers=self.mlp_layers, n_decoder_layers=self.mlp_layers,
            keep_zeros=True,
        )  # fmt: skip


#: the published size on a GPU, the size that trains on a laptop on the CPU
BASE = {
    "cuda": Shape(
        cells=24_000, genes=18_080, sets=12, set_size=512, hidden=1_488, layers=6, head_dim=124, width=5_120,
        mlp_layers=4,
    ),
    "cpu": Shape(
        cells=8_000, genes=500, sets=8, set_size=64, hidden=128, layers=2, head_dim=32, width=32, mlp_layers=2
    ),
}  # fmt: skip
AXES = {
    "cuda": {
        "cells": (6_000, 24_000, 96_000),
        "genes": (2_000, 6_000, 18_080, 36_160),
        "sets": (3, 6, 12, 24),
        "set_size": (128, 256, 512, 1_024),
        "hidden": (372, 744, 1_488, 2_232),
    },
    "cpu": {
        "cells": (2_000, 8_000, 32_000),
        "genes": (250, 500, 1_000, 2_000),
        "sets": (2, 4, 8, 16),
        "set_size": (16, 32, 64, 128, 256),
        "hidden": (64, 128, 256, 512),
    },
}


class Work(NamedTuple):
    """What cannot be avoided."""

    operations: float
    bytes: float


class Weights(NamedTuple):
    """Entries of the weight matrices: those that every cell is multiplied with, and those once a set."""

    cell: int
    set: int


def weights(shape: Shape) -> Weights:
    """Entries of the weight matrices: H hidden, I = 4 H, A = heads x width of a head, E layers of encoders and head.

    Encoder of cells G H + (E - 1) H^2, head (E - 1) H^2 + H G, each layer 3 H A + A H (attention) + 3 H I (gate, up,
    down); encoder of the perturbation P H + (E - 1) H^2.
    """
    h, e = shape.hidden, shape.mlp_layers
    attention = shape.hidden // shape.head_dim * shape.head_dim
    layer = 4 * h * attention + 3 * h * 4 * h
    between = (e - 1) * h * h
    return Weights(2 * (shape.genes * h + between) + shape.layers * layer, shape.width * h + between)


def counted(shape: Shape, *, trains: bool, in_16_bits: bool) -> Work:
    """Operations and bytes of a training step or of a prediction, from shapes alone.

    **Operations** (2 for each multiplication with its addition), S sets of N cells, W_c weights for each cell and W_s
    for each set (:func:`weights`), A the width of all heads, L layers:

    * linear layers, forward: 2 (W_c S N + W_s S)
    * attention, forward: queries with keys, and weights with values, 2 L (2 S N^2 A)
    * backward of both: twice that, one product for each of the two factors; less what would be the gradients of the
      control cells and of the perturbation's vector, 2 S N G H + 2 S P H, which nobody asks for
    * energy distance: predicted with predicted and observed cells, observed with observed, and the gradient, 2 S N G
      times 2 N, N and 2 N

    Norms, activations, softmax and optimizer are not counted: their operations are few, their bytes are.

    **Bytes**, v of a value (2 in 16 bits, else 4):

    * gathering the rows of c kinds of cells (control; in training observed, too): c S N G (0.3 (v + index) + 4), sparse
      entries read, dense float32 written. Indices have 2 bytes on a GPU, where genes are fewer than 65,536, else 4
    * control cells are read by the encoder and by the head, 2 S N G x 4, and the prediction is written, S N G v
    * training reads the control cells once more for the gradient of the encoder, and observed cells once, 2 S N G x 4;
      prediction read, its gradient written and read, 3 S N G v
    * weights W: read, in 16 bits rounded and written (4 + 2 bytes), and read by the products, v; in training v again,
      the gradient written (4), read for its norm (4), read and written by clipping (8), and AdamW reads four numbers
      and writes three (28)

    Activations of hidden width are not counted, as if none left the chip, nor are second reads of anything by a product
    whose factors do not fit there: the floor is a floor. Operations and bytes are taken one after the other, because
    what moves the bytes (gathering, clipping, AdamW) runs before or after the products.
    """
    n, of = shape.sets * shape.set_size, weights(shape)
    dense = n * shape.genes
    heads = shape.hidden // shape.head_dim * shape.head_dim
    linear = 2 * (of.cell * n + of.set * shape.sets)
    attention = 2 * shape.layers * 2 * n * shape.set_size * heads
    value, index = (2, 2 if shape.genes < 65_536 else 4) if in_16_bits else (4, 4)
    kinds = 2 if trains else 1
    operations = linear + attention
    moved = kinds * dense * (DENSITY * (value + index) + 4) + dense * (2 * 4 + value)
    each_weight = (4 + 2 if in_16_bits else 0) + value
    if trains:
        operations = 3 * operations - 2 * (dense + shape.sets * shape.width) * shape.hidden
        operations += 2 * dense * 5 * shape.set_size
        moved += dense * (2 * 4 + 3 * value)
        each_weight += value + 4 + 4 + 8 + 28
    return Work(operations, moved + sum(of) * each_weight)


class Timer:
    """Seconds of each repeat: events on a GPU, processor time on the CPU."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def __call__(self, function: Callable[[], object], *, repeats: int | None = None) -> list[float]:
        repeats = repeats or self.repeats
        if self.device.type == "cuda":
            return timed(function, repeats=repeats, warmup=3)
        for _ in range(2):
            function()
        marks = [time.process_time()]
        for _ in range(repeats):
            function()
            marks.append(time.process_time())
        return [b - a for a, b in zip(marks[:-1], marks[1:], strict=True)]


def rates(device: torch.device, timer: Timer) -> tuple[float, float]:
    """Operations a second of a large matrix product, and bytes a second that a large copy reads and writes."""
    on_gpu = device.type == "cuda"
    side, entries = (8_192, 2**28) if on_gpu else (1_536, 2**25)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32) for _ in range(2))
    product = torch.empty_like(a)
    matrix = 2 * side**3 / statistics.median(timer(lambda: torch.mm(a, b, out=product), repeats=10))
    source = torch.zeros(entries, device=device)
    target = torch.zeros_like(source)
    copy = 2 * source.nbytes / statistics.median(timer(lambda: target.copy_(source), repeats=10))
    return matrix, copy


class Point:
    """A network with its data at one shape, ready to step and to predict."""

    def __init__(self, shape: Shape, matrix: sp.csr_matrix, device: torch.device) -> None:
        self.shape, self.device = shape, device
        with device:
            torch.manual_seed(0)
            self.module = TahoeSTModule(shape.network())
        config = PlanConfig(max_steps=10)
        fused = device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=config.lr, fused=fused)
        self.acceleration = Acceleration(self.module, compiles=False)
        self.acceleration.begin("bf16-mixed" if device.type == "cuda" else "32-true", device)
        self.store = make_store(matrix, device, kind="device" if device.type == "cuda" else "auto")
        self.perturbation_SP = torch.randn(shape.sets, shape.width, device=device) / 10
        self.condition_S = torch.zeros(shape.sets, dtype=torch.long, device=device)
        self.rng = np.random.default_rng(0)

    def draw(self) -> torch.Tensor:
        """Dense cells of every set."""
        rows = self.rng.integers(0, self.shape.cells, (self.shape.sets, self.shape.set_size))
        return self.store.dense(self.store.fetch(rows), self.device)

    def autocast(self):
        return torch.autocast("cuda", dtype=torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    def step(self) -> None:
        """One training step."""
        self.module.train()
        batch = {
            TENSORS.CONTROL: self.draw(), TENSORS.OBSERVED: self.draw(), TENSORS.PERTURBATION: self.perturbation_SP,
            TENSORS.CONDITION: self.condition_S,
        }  # fmt: skip
        with self.autocast():
            *_, losses = self.module(batch)
        losses.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def predict(self) -> None:
        """One forward."""
        self.module.eval()
        with torch.inference_mode(), self.autocast():
            self.module(self.draw(), self.perturbation_SP)


def check(device: torch.device) -> None:
    """The energy distance against float64, gathered rows against scipy, and counts against those of torch."""
    shape = replace(BASE["cpu"], cells=600, genes=304)
    matrix = csr_on_card(shape.cells, shape.genes, DENSITY, device=device)
    point = Point(shape, matrix, device)
    rows = np.random.default_rng(1).integers(0, shape.cells, (3, 64))
    found = point.store.dense(point.store.fetch(rows), device).cpu()
    expected = torch.from_numpy(matrix[rows.ravel()].toarray()).view(3, 64, -1)
    if not torch.allclose(found, expected, rtol=1e-3, atol=0):
        raise SystemExit("gathered rows are wrong")
    observed = expected.to(device)
    predicted = (observed + 0.3 * torch.rand_like(observed)).requires_grad_()
    products, limit = (torch.float16, 1e-3) if device.type == "cuda" else (torch.float32, 1e-5)
    results = []
    for dtype in (predicted.dtype, torch.float64):
        x = predicted.detach().to(dtype).requires_grad_()
        if dtype == torch.float64:
            y = observed.double()
            n = x.shape[1]
            distance = lambda a, b: (a[:, :, None] - b[:, None]).square().sum(-1).clamp_min(1e-30).sqrt()
            within = sum(distance(c, c).sum((1, 2)) - 1e-15 * n for c in (x, y)) / (n * (n - 1))
            value = distance(x, y).mean((1, 2)) - within / 2
        else:
            value = energy_distance(x, observed, diagonal="excluded", products=products)
        value.sum().backward()
        results.append((value.detach(), x.grad))
    errors = [relative(a, b) for a, b in zip(*results, strict=True)]
    print(f"energy distance against float64: value {errors[0]:.1e}, gradient {errors[1]:.1e}, allowed {limit:g}")
    if max(errors) > limit:
        raise SystemExit("the energy distance is wrong")
    check_counts(shape, matrix)


def check_counts(shape: Shape, matrix: sp.csr_matrix) -> None:
    """What is counted from shapes against what torch counts while it computes, in float32 on the CPU."""
    point = Point(shape, matrix, torch.device("cpu"))
    matrices = sum(p.numel() for p in point.module.parameters() if p.ndim == 2)
    if matrices != sum(weights(shape)):
        raise SystemExit(f"{sum(weights(shape)):,} weights are counted, the network has {matrices:,}")
    for name, function, trains in (("step", point.step, True), ("prediction", point.predict, False)):
        # torch does not count the fused kernels of attention on the CPU
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            function()
        ours, theirs = counted(shape, trains=trains, in_16_bits=False).operations, counter.get_total_flops()
        print(f"operations of a {name}: counted {ours / 1e9:.3f} G, torch counts {theirs / 1e9:.3f} G")
        if abs(ours / theirs - 1) > 1e-3:
            raise SystemExit("operations are counted wrongly")


def tiled(matrix: sp.csr_matrix, n_cells: int) -> sp.csr_matrix:
    """The matrix repeated downwards; which cells are alike does not change what it costs."""
    copies, rest = divmod(n_cells, matrix.shape[0])
    parts = [matrix] * copies + ([matrix[:rest]] if rest else [])
    starts = np.concatenate([[0], np.cumsum([np.int64(part.nnz) for part in parts])])
    ends = [part.indptr[1:].astype(np.int64) + first for part, first in zip(parts, starts, strict=False)]
    data, indices = (np.concatenate([getattr(part, name) for part in parts]) for name in ("data", "indices"))
    return sp.csr_matrix((data, indices, np.concatenate([[0], *ends])), shape=(n_cells, matrix.shape[1]))


def measure(shape: Shape, matrix: sp.csr_matrix, device: torch.device, timer: Timer) -> dict[str, list[float]]:
    """Seconds of the repeats of a step and of a prediction."""
    point = Point(shape, tiled(matrix, shape.cells), device)
    found = {"step": timer(point.step), "prediction": timer(point.predict)}
    point.acceleration.end()
    return found


def row(
    axis: str, shape: Shape, what: str, seconds: list[float], *, speeds: tuple[float, float], in_16_bits: bool
) -> dict:
    """Print one line of the table, and return it."""
    work = counted(shape, trains=what == "step", in_16_bits=in_16_bits)
    median, low, high = (1000 * f(seconds) for f in (statistics.median, min, max))
    by_operations, by_bytes = (1000 * amount / speed for amount, speed in zip(work, speeds, strict=True))
    floor = by_operations + by_bytes
    print(
        f"{axis:<10}{getattr(shape, axis):>8,} {what:<11}{median:>9.2f} ({low:.2f} to {high:.2f})".ljust(60)
        + f"{by_operations:>9.2f}{by_bytes:>9.2f}{floor:>9.2f}{floor / median:>8.0%}",
        flush=True,
    )
    return {
        "axis": axis, "shape": asdict(shape), "what": what, "median": median, "min": low, "max": high,
        "n": len(seconds), "floor_operations": by_operations, "floor_bytes": by_bytes, "unit": "ms",
    }  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(BASE), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--axes", default="cells,genes,sets,set_size,hidden")
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1 if args.device == "cpu" else torch.get_num_threads())
    device = torch.device("cuda", 0) if args.device == "cuda" else torch.device("cpu")
    base = BASE[args.device]
    in_16_bits = args.device == "cuda"
    timer = Timer(device, args.repeats)
    name = torch.cuda.get_device_name(0) if in_16_bits else "CPU, one thread"
    print(f"{name}, torch {torch.__version__}", flush=True)
    check(device)
    begin = time.perf_counter()
    speeds = rates(device, timer)
    print(f"measured: products {speeds[0] / 1e12:,.2f} TFLOP/s, copies {speeds[1] / 1e9:,.0f} GB/s (read and written)")
    print("base:", ", ".join(f"{k} {v:,}" for k, v in asdict(base).items()))
    columns = f"{'axis':<10}{'value':>8} {'what':<11}{'ms (smallest to largest)':<30}"
    print(columns + f"{'products':>9}{'bytes':>9}{'floor':>9}{'reached':>8}", flush=True)
    results: list[dict] = []
    matrix = csr_on_card(min(base.cells, 6_000), base.genes, DENSITY, device=device)
    at_base: dict[str, list[float]] | None = None
    for axis in args.axes.split(","):
        for value in AXES[args.device][axis]:
            shape = replace(base, **{axis: value})
            source = matrix
            if axis == "genes" and value != base.genes:
                source = csr_on_card(matrix.shape[0], value, DENSITY, device=device)
            if shape != base:
                found = measure(shape, source, device, timer)
            else:
                found = at_base = at_base or measure(shape, source, device, timer)
            results += [
                row(axis, shape, what, seconds, speeds=speeds, in_16_bits=in_16_bits) for what, seconds in found.items()
            ]
            gc.collect()
            if in_16_bits:
                torch.cuda.empty_cache()
    print(f"{time.perf_counter() - begin:.0f} s")
    if args.out:
        content = {"device": name, "products_per_second": speeds[0], "bytes_per_second": speeds[1], "rows": results}
        args.out.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
