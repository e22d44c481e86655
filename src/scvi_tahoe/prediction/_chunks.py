"""Predicted cells, chunk after chunk, computed by one device or by several.

Minibatches are cut once, over everything that is asked for, and dealt out to the devices in turn. Neither the size of
the chunks nor the number of devices changes a minibatch, so neither changes a predicted cell.
"""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from scvi_tahoe._constants import TENSORS
from scvi_tahoe._devices import explained_out_of_memory
from scvi_tahoe._module import residual_input
from scvi_tahoe.data import CellSetDataset, CellSetRequest, CellStore, ExhaustiveSampler, make_store
from scvi_tahoe.prediction._host_copy import Arrivals

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.data import Output
    from scvi_tahoe.prediction._request import PredictionPlan
    from scvi_tahoe.response import ResidualCells

__all__ = [
    "CHUNK_BYTES",
    "Chunk",
    "Forward",
    "default_batch_size",
    "predicted_chunks",
    "prediction_width",
    "prior_chunks",
]

#: dense float32 cells that are predicted before they are handed on, where not all are wanted at once
CHUNK_BYTES = 2**29
_SETS = 16
_CPU_BYTES = 2**24
_ROWS = 4096  # cells that are moved by a prior of means at once


@dataclass(frozen=True)
class Chunk:
    """Whole conditions of a plan, and their predicted cells.

    Attributes
    ----------
    plan
        The conditions.
    first_row
        Position of the first cell among all cells that are predicted.
    cells
        float32 ``[cells of the conditions, G]``; valid until the next chunk but one is asked for.
    """

    plan: PredictionPlan
    first_row: int
    cells: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Forward:
    """How the network is run.

    Attributes
    ----------
    set_size
        Cells of a set.
    batch_size
        Sets of a minibatch.
    output
        What is wanted of the network.
    products
        16-bit numbers that matrix products are computed in; None for the precision of the weights.
    progress
        Whether to show a progress bar.
    """

    set_size: int
    batch_size: int
    output: Output
    products: torch.dtype | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size!r} must be 1 or more.")


@dataclass(frozen=True)
class _Placed:
    """A minibatch, the rows of the whole prediction that its wanted cells are, and its sets that stay as the prior."""

    request: CellSetRequest
    first_row: int
    stop_row: int
    keeps_residual_input_S: np.ndarray


def default_batch_size(device: torch.device, *, set_size: int, width: int) -> int:
    """Sets of a minibatch where the user does not say.

    Parameters
    ----------
    device
        Where the network runs. The allocator of a CPU gives memory of more than 32 MiB back to the system after each
        operation, and to be given it anew takes longer than most operations: so there the cells of a minibatch stay
        smaller.
    set_size
        Cells of a set.
    width
        Genes of a cell.
    """
    return _SETS if device.type != "cpu" else min(_SETS, max(1, _CPU_BYTES // (4 * set_size * width)))


def prediction_width(module: TahoeSTModule, output: Output) -> int:
    """Genes, or dimensions of an embedding, of a predicted cell."""
    decoder = module.config.gene_decoder
    return module.config.n_output if decoder is None or output == "embedding" else decoder.n_genes


def predicted_chunks(
    module: TahoeSTModule,
    dataset: CellSetDataset,
    plan: PredictionPlan,
    forward: Forward,
    *,
    devices: Sequence[torch.device],
    base: ResidualCells | None = None,
    out: np.ndarray | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Generator[Chunk, None, None]:
    """Predict all conditions of a plan, in their order.

    Parameters
    ----------
    module
        In eval mode.
    dataset
        Of its minibatches.
    plan
        What is to be predicted.
    forward
        How.
    devices
        One or more; each gets a copy of the module, and every so many minibatches.
    base
        Of a prior of cells.
    out
        float32 ``[cells of the plan, G]``: where the cells are put, all in one chunk; None makes chunks of their own.
    chunk_bytes
        Most bytes of a chunk, but for the one minibatch for each device and the one condition that it holds at least.

    Yields
    ------
    Chunks of whole conditions.
    """
    placed = _minibatches(plan, forward)
    width = prediction_width(module, forward.output)
    devices = devices[: len(placed)]
    replicas = _replicas(module, dataset, devices)
    full = max(one.stop_row - one.first_row for one in placed)
    n_at_once = len(placed) if out is not None else max(len(devices), chunk_bytes // (4 * width * full))
    groups = _groups(placed, plan.stops, n_at_once)
    buffers = _Buffers(out, plan.n_cells, width, alone=len(groups) == 1)
    start, task = 0, 0  # of what was not handed on yet
    rest = np.empty((0, width), dtype=np.float32)
    with ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(total=plan.n_cells, unit="cell", desc="predicting", disable=not forward.progress, dynamic_ncols=True)
        )
        pool = stack.enter_context(ThreadPoolExecutor(len(replicas))) if len(replicas) > 1 else None
        for group in groups:
            cells = buffers.take(group[-1].stop_row - start)
            if out is None:
                cells[: len(rest)] = rest
            _supply_base(base, group, replicas, full_precision=forward.products is None)
            with explained_out_of_memory(batch_size=forward.batch_size, set_size=forward.set_size, doing="prediction"):
                _predict(replicas, group, torch.from_numpy(cells), start, forward, pool, bar)
            stop_task = int(np.searchsorted(plan.stops, group[-1].stop_row, side="right"))
            stop = int(plan.stops[stop_task - 1])
            yield Chunk(plan.part(task, stop_task), start, cells[: stop - start])
            rest, start, task = cells[stop - start :], stop, stop_task


def prior_chunks(
    dataset: CellSetDataset,
    plan: PredictionPlan,
    *,
    device: torch.device,
    base: ResidualCells | None,
    out: np.ndarray | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Generator[Chunk, None, None]:
    """What the prior alone says of all conditions of a plan; parameters as of :func:`predicted_chunks`."""
    width, stops = dataset.cells.n_features, plan.stops
    first = start = 0
    while first < len(plan.tasks):
        room = plan.n_cells if out is not None else chunk_bytes // (4 * width)
        stop = max(first + 1, int(np.searchsorted(stops, start + room, side="right")))
        cells = np.empty((stops[stop - 1] - start, width), dtype=np.float32) if out is None else out
        supplied, offset = (None, 0) if base is None else base.of_conditions(first, stop)
        for position in range(first, stop):
            task, end = plan.tasks[position], int(stops[position]) - start
            target = cells[end - len(task.controls) : end]
            if supplied is not None and task.residual_input is not None:
                supplied[task.residual_input - offset].toarray(out=target)
            else:
                _shifted(dataset, position, task.controls, device, target)
        yield Chunk(plan.part(first, stop), start, cells)
        first, start = stop, int(stops[stop - 1])


@torch.inference_mode()
def _shifted(
    dataset: CellSetDataset, position: int, controls: np.ndarray, device: torch.device, target: np.ndarray
) -> None:
    """Control cells moved by the shift of a prior of means."""
    shift = torch.from_numpy(dataset.residual_shift[position]).to(device)  # type: ignore[index]
    for i in range(0, len(controls), _ROWS):
        cells = dataset.cells.dense(dataset.cells.fetch(controls[i : i + _ROWS]), device)
        target[i : i + _ROWS] = (cells + shift).clamp_min(0).cpu().numpy()


class _Buffers:
    """Memory of chunks, used in turn, so that the system hands out and clears each page once."""

    def __init__(self, out: np.ndarray | None, n_cells: int, width: int, *, alone: bool) -> None:
        self._out, self._n_cells, self._width = out, n_cells, width
        self._turn = [np.empty(0, dtype=np.float32) for _ in range(1 if alone else 2)]

    def take(self, n_rows: int) -> np.ndarray:
        """The least recently used memory, as ``[n_rows, width]``."""
        if self._out is not None:
            return self._out
        memory = self._turn.pop(0)
        if memory.size < n_rows * self._width:
            memory = np.empty(n_rows * self._width, dtype=np.float32)
        self._turn.append(memory)
        return memory[: n_rows * self._width].reshape(n_rows, self._width)


@dataclass(frozen=True)
class _Replica:
    """The network on one device, and what reads its minibatches."""

    module: TahoeSTModule
    dataset: CellSetDataset
    device: torch.device
    arrivals: Arrivals


def _replicas(module: TahoeSTModule, dataset: CellSetDataset, devices: Sequence[torch.device]) -> tuple[_Replica, ...]:
    made = []
    for i, device in enumerate(devices):
        is_own = i == 0 and device == module.device
        own = module if is_own else copy.deepcopy(module).to(device).eval()
        shared = replace(dataset) if i == 0 else replace(dataset, cells=dataset.cells.replica())
        made.append(_Replica(own, shared, device, Arrivals()))
    return tuple(made)


def _minibatches(plan: PredictionPlan, forward: Forward) -> list[_Placed]:
    sampler = ExhaustiveSampler(plan.tasks, set_size=forward.set_size, sets_per_step=forward.batch_size)
    keeps_residual_input = np.array([task.keeps_residual_input for task in plan.tasks])
    placed, row = [], 0
    for request in sampler:
        stop = row + int(request.valid_S.sum())
        placed.append(_Placed(request, row, stop, keeps_residual_input[request.condition_S]))
        row = stop
    return placed


def _groups(placed: Sequence[_Placed], stops: np.ndarray, n_at_once: int) -> list[list[_Placed]]:
    """Minibatches in groups of so many, and further ones until at least one condition is complete with each group."""
    groups: list[list[_Placed]] = [[]]
    done = 0
    for one in placed:
        complete = 0 if not groups[-1] else int(np.searchsorted(stops, groups[-1][-1].stop_row, side="right"))
        if len(groups[-1]) >= n_at_once and complete > done:
            done = complete
            groups.append([])
        groups[-1].append(one)
    return groups


def _supply_base(
    base: ResidualCells | None, group: Sequence[_Placed], replicas: Sequence[_Replica], *, full_precision: bool
) -> None:
    """Give the datasets the prior's cells of the conditions of some minibatches."""
    if base is None:
        return
    cells, first_row = base.of_conditions(
        int(group[0].request.condition_S.min()), int(group[-1].request.condition_S.max()) + 1
    )
    store = make_store(cells, replicas[0].device, full_precision=full_precision)
    for i, replica in enumerate(replicas):
        own = _Renumbered(store if i == 0 else store.replica(), first_row)
        replica.dataset.residual_input = own


class _Renumbered(CellStore):
    """A store whose first row has another number than 0. It expects nothing: it is in memory."""

    def __init__(self, store: CellStore, first_row: int) -> None:
        self._store, self._first_row = store, first_row
        self.n_features, self.description = store.n_features, store.description

    def fetch(self, rows: np.ndarray) -> dict[str, Any]:
        return self._store.fetch(rows - self._first_row)

    def dense(self, payload: dict[str, Any], device: torch.device) -> torch.Tensor:
        return self._store.dense(payload, device)


def _predict(
    replicas: Sequence[_Replica],
    group: Sequence[_Placed],
    target: torch.Tensor,
    start: int,
    forward: Forward,
    pool: ThreadPoolExecutor | None,
    bar: Any,
) -> None:
    """Predict minibatches, each device every so many of them, into ``target``, whose first row is row ``start``."""
    stopped, mutex = Event(), Lock()

    def work(position: int) -> None:
        replica, mine = replicas[position], group[position :: len(replicas)]
        device = replica.device
        try:
            with (
                torch.inference_mode(),  # these are of one thread each
                torch.cuda.device(device) if device.type == "cuda" else nullcontext(),
                torch.autocast(device.type, dtype=forward.products, enabled=forward.products is not None),
            ):
                for one, following in zip(mine, [*mine[1:], None]):
                    if stopped.is_set():
                        return
                    rows = target[one.first_row - start : one.stop_row - start]
                    _run(replica, one, following, rows, forward.output)
                    with mutex:
                        bar.update(len(rows))
                replica.arrivals.finish()
        except BaseException:
            stopped.set()
            raise

    if pool is None:
        work(0)
        return
    jobs = [pool.submit(work, i) for i in range(len(replicas))]
    try:
        wait(jobs)
    finally:
        stopped.set()  # of an interrupted program: what is running may not go on alone
    for job in jobs:
        job.result()


def _run(replica: _Replica, one: _Placed, following: _Placed | None, rows: torch.Tensor, output: Output) -> None:
    """Predict one minibatch; the cells are in ``rows`` once they arrived."""
    dataset, request = replica.dataset, one.request
    decodes = replica.module.config.gene_decoder is not None and output != "embedding"
    payload = dataset[request]
    if following is not None:
        dataset.prefetch(following.request)
    tensors = dataset.to_tensors(payload, replica.device)
    base_SNG = residual_input(tensors)
    result = replica.module(
        tensors[TENSORS.CONTROL], tensors[TENSORS.PERTURBATION], tensors.get(TENSORS.BATCH), base_SNG
    )
    cells_SNG = result.genes_SNG if decodes else result.prediction_SNG
    if base_SNG is not None and one.keeps_residual_input_S.any():
        keeps_S = torch.from_numpy(one.keeps_residual_input_S).to(replica.device, non_blocking=True)
        cells_SNG = torch.where(keeps_S[:, None, None], base_SNG.to(cells_SNG.dtype), cells_SNG)
    if output == "delta":
        cells_SNG = cells_SNG - tensors[TENSORS.CONTROL]
    replica.arrivals.take(_wanted(cells_SNG, request.valid_S), rows)


def _wanted(cells_SNG: torch.Tensor, valid_S: np.ndarray) -> torch.Tensor:
    """The leading cells of each set, without asking the device how many they are."""
    n = cells_SNG.shape[1]
    cells = cells_SNG.flatten(0, 1)
    if (valid_S[:-1] == n).all():
        return cells[: int(valid_S.sum())]
    wanted = np.flatnonzero(np.arange(n) < valid_S[:, None])
    return cells[torch.from_numpy(wanted).to(cells.device, non_blocking=True)]
