"""Predicted cells, chunk after chunk, computed by one device or by several.

Minibatches are cut once, over everything that is requested, and dealt out to the devices in turn. Neither the size of
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
from scvi_tahoe.data import CellSetDataset, CellSetRequest, ExhaustiveSampler, make_store

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from torch import Tensor

    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.data import Output
    from scvi_tahoe.prediction._request import PredictionPlan
    from scvi_tahoe.response import ResidualCells

#: bytes of a chunk, which however holds at least one minibatch for each device and one condition
CHUNK_BYTES = 2**29
_SETS = 16
_CPU_BYTES = 2**24
_ROWS = 4096  # cells to which a prior of means is added at once
_N_BUFFERS = 2


@dataclass(frozen=True)
class Chunk:
    """Whole conditions of a plan, and their predicted cells.

    Attributes
    ----------
    plan
        The conditions.
    first_row
        Position of the first cell in the whole prediction.
    cells
        float32 ``[cells of the conditions, G]``; overwritten when the chunk after the next one is made.
    """

    plan: PredictionPlan
    first_row: int
    cells: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Forward:
    """How the network is run; ``matmul_dtype`` is None for the precision of the weights."""

    set_size: int
    batch_size: int
    output: Output
    matmul_dtype: torch.dtype | None = None
    progress: bool = False


@dataclass(frozen=True)
class _Minibatch:
    """A minibatch, the rows of the prediction that its valid cells are, and its sets that stay as the prior."""

    request: CellSetRequest
    first_row: int
    stop_row: int
    keeps_residual_input_S: np.ndarray


def default_batch_size(device: torch.device, *, set_size: int, width: int) -> int:
    """Return the number of sets of a minibatch, fewer of many genes on a CPU."""
    # The allocator of a CPU gives memory of more than 32 MiB back to the system after each operation, and to get it
    # anew takes longer than most operations.
    return _SETS if device.type != "cpu" else min(_SETS, max(1, _CPU_BYTES // (4 * set_size * width)))


def prediction_width(module: TahoeSTModule, output: Output) -> int:
    """Return the number of genes, or of dimensions of an embedding, of a predicted cell."""
    decoder = module.config.gene_decoder
    return module.config.n_output if decoder is None or output == "embedding" else decoder.n_genes


def predicted_chunks(
    module: TahoeSTModule,
    dataset: CellSetDataset,
    plan: PredictionPlan,
    forward: Forward,
    residual_cells: ResidualCells | None,
    *,
    devices: Sequence[torch.device],
    out: np.ndarray | None,
) -> Generator[Chunk, None, None]:
    """Predict all conditions of a plan, in their order.

    Parameters
    ----------
    out
        float32 ``[cells of the plan, G]`` for the cells, all in one chunk. If None, chunks have memory of their own.
    """
    minibatches = _minibatches(plan, forward)
    width = prediction_width(module, forward.output)
    devices = devices[: len(minibatches)]
    replicas = _replicas(module, dataset, devices)
    full = max(one.stop_row - one.first_row for one in minibatches)
    n_at_once = len(minibatches) if out is not None else max(len(devices), CHUNK_BYTES // (4 * width * full))
    groups = _groups(minibatches, plan.stops, n_at_once)
    buffers = _Buffers(out, width, alone=len(groups) == 1)
    start, first = 0, 0  # row and condition that come next
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
            if residual_cells is not None:
                group = _with_residual_cells(residual_cells, group, replicas, forward)
            with explained_out_of_memory(batch_size=forward.batch_size, set_size=forward.set_size, doing="prediction"):
                _predict(replicas, group, torch.from_numpy(cells), start, forward, pool, bar)
            after = int(np.searchsorted(plan.stops, group[-1].stop_row, side="right"))
            stop = int(plan.stops[after - 1])
            yield Chunk(plan.part(first, after), start, cells[: stop - start])
            rest, start, first = cells[stop - start :], stop, after


def prior_chunks(
    dataset: CellSetDataset,
    plan: PredictionPlan,
    residual_cells: ResidualCells | None,
    *,
    device: torch.device,
    out: np.ndarray | None,
) -> Generator[Chunk, None, None]:
    """Predict by the prior alone; parameters as of :func:`predicted_chunks`."""
    width, stops = dataset.cells.n_features, plan.stops
    first = start = 0
    while first < len(plan.requests):
        room = plan.n_cells if out is not None else CHUNK_BYTES // (4 * width)
        after = max(first + 1, int(np.searchsorted(stops, start + room, side="right")))
        cells = np.empty((stops[after - 1] - start, width), dtype=np.float32) if out is None else out
        made, offset = (None, 0) if residual_cells is None else residual_cells.of_conditions(first, after)
        for position in range(first, after):
            request, end = plan.requests[position], int(stops[position]) - start
            target = cells[end - len(request.controls) : end]
            if made is not None and request.residual_input is not None:
                made[request.residual_input - offset].toarray(out=target)
            else:
                _add_shift(dataset, position, request.controls, device, target)
        yield Chunk(plan.part(first, after), start, cells)
        first, start = after, int(stops[after - 1])


@torch.inference_mode()
def _add_shift(
    dataset: CellSetDataset, position: int, controls: np.ndarray, device: torch.device, target: np.ndarray
) -> None:
    """Add the shift of a prior of means to control cells."""
    shift = torch.from_numpy(dataset.residual_shift[position]).to(device)  # type: ignore[index]
    for i in range(0, len(controls), _ROWS):
        cells = dataset.cells.dense(dataset.cells.fetch(controls[i : i + _ROWS]), device)
        target[i : i + _ROWS] = (cells + shift).clamp_min(0).cpu().numpy()


class _Buffers:
    """Memory of chunks, used in turn, so that the system hands out and clears each page once."""

    def __init__(self, out: np.ndarray | None, width: int, *, alone: bool) -> None:
        self._out, self._width = out, width
        self._turn = [np.empty(0, dtype=np.float32) for _ in range(1 if alone else 2)]

    def take(self, n_rows: int) -> np.ndarray:
        """Return the least recently used memory, as ``[n_rows, width]``."""
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
    host_copy: HostCopy


def _replicas(module: TahoeSTModule, dataset: CellSetDataset, devices: Sequence[torch.device]) -> list[_Replica]:
    made = []
    for i, device in enumerate(devices):
        is_own = i == 0 and device == module.device
        own = module if is_own else copy.deepcopy(module).to(device).eval()
        shared = replace(dataset) if i == 0 else replace(dataset, cells=dataset.cells.replica())
        made.append(_Replica(own, shared, device, HostCopy()))
    return made


def _minibatches(plan: PredictionPlan, forward: Forward) -> list[_Minibatch]:
    sampler = ExhaustiveSampler(plan.requests, set_size=forward.set_size, sets_per_step=forward.batch_size)
    keeps = np.array([request.keeps_residual_input for request in plan.requests])
    made, row = [], 0
    for request in sampler:
        stop = row + int(request.valid_S.sum())
        made.append(_Minibatch(request, row, stop, keeps[request.condition_S]))
        row = stop
    return made


def _groups(minibatches: Sequence[_Minibatch], stops: np.ndarray, n_at_once: int) -> list[list[_Minibatch]]:
    """Group ``n_at_once`` minibatches, and further ones until each group completes at least one condition."""
    groups: list[list[_Minibatch]] = [[]]
    done = 0
    for one in minibatches:
        complete = 0 if not groups[-1] else int(np.searchsorted(stops, groups[-1][-1].stop_row, side="right"))
        if len(groups[-1]) >= n_at_once and complete > done:
            done = complete
            groups.append([])
        groups[-1].append(one)
    return groups


def _with_residual_cells(
    residual_cells: ResidualCells, group: Sequence[_Minibatch], replicas: Sequence[_Replica], forward: Forward
) -> list[_Minibatch]:
    """Give the datasets the prior's cells of some minibatches, and return these with row numbers among those cells."""
    cells, first_row = residual_cells.of_conditions(
        int(group[0].request.condition_S.min()), int(group[-1].request.condition_S.max()) + 1
    )
    store = make_store(cells, replicas[0].device, full_precision=forward.matmul_dtype is None)
    for i, replica in enumerate(replicas):
        replica.dataset.residual_input = store if i == 0 else store.replica()
    requests = [
        replace(one.request, residual_input_SN=one.request.residual_input_SN - first_row)  # type: ignore[operator, arg-type]
        for one in group
    ]
    return [replace(one, request=request) for one, request in zip(group, requests, strict=True)]


def _predict(
    replicas: Sequence[_Replica],
    group: Sequence[_Minibatch],
    target: Tensor,
    start: int,
    forward: Forward,
    pool: ThreadPoolExecutor | None,
    bar: Any,
) -> None:
    """Predict minibatches, dealt out to the devices, into ``target``, whose first row is row ``start``."""
    stopped, mutex = Event(), Lock()

    def work(position: int) -> None:
        replica, mine = replicas[position], group[position :: len(replicas)]
        device, dtype = replica.device, forward.matmul_dtype
        try:
            with (
                torch.inference_mode(),  # the modes of a thread are its own
                torch.cuda.device(device) if device.type == "cuda" else nullcontext(),
                torch.autocast(device.type, dtype=dtype, enabled=dtype is not None),
            ):
                for one, following in zip(mine, [*mine[1:], None]):
                    if stopped.is_set():
                        return
                    rows = target[one.first_row - start : one.stop_row - start]
                    _predict_minibatch(replica, one, following, rows, forward.output)
                    with mutex:
                        bar.update(len(rows))
                replica.host_copy.finish()
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
        stopped.set()  # if the program is interrupted, the threads must not go on alone
    for job in jobs:
        job.result()


def _predict_minibatch(
    replica: _Replica, one: _Minibatch, following: _Minibatch | None, rows: Tensor, output: Output
) -> None:
    """Predict one minibatch; the cells are in ``rows`` once their copy is finished."""
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
    replica.host_copy.start(_valid(cells_SNG, request.valid_S), rows)


def _valid(cells_SNG: Tensor, valid_S: np.ndarray) -> Tensor:
    """Return the leading cells of each set, without asking the device how many they are."""
    n = cells_SNG.shape[1]
    cells = cells_SNG.flatten(0, 1)
    if (valid_S[:-1] == n).all():
        return cells[: int(valid_S.sum())]
    wanted = np.flatnonzero(np.arange(n) < valid_S[:, None])
    return cells[torch.from_numpy(wanted).to(cells.device, non_blocking=True)]


@dataclass(frozen=True)
class _Copying:
    memory: Tensor
    buffer: Tensor
    arrived: torch.cuda.Event
    target: Tensor


class HostCopy:
    """Copies blocks of rows into main memory while the next ones are computed.

    From a GPU they are copied into pinned memory, in the precision they have there, on a stream of their own; only
    when the block after next is ready are they moved on, by all cores. Neither the device nor the bus waits.
    """

    def __init__(self) -> None:
        self._copying: list[_Copying] = []
        self._free: list[Tensor] = []
        self._stream: torch.cuda.Stream | None = None

    def start(self, block: Tensor, target: Tensor) -> None:
        """Copy ``[rows, G]`` of any device and precision into float32 main memory; it is there after :meth:`finish`."""
        if not block.is_cuda:
            target.copy_(block)
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(block.device)
        if len(self._copying) == _N_BUFFERS:
            self._finish_first()
        memory = self._memory(block)
        buffer = memory[: block.numel()].view(block.shape)
        self._stream.wait_stream(torch.cuda.current_stream(block.device))
        with torch.cuda.stream(self._stream):
            buffer.copy_(block, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        block.record_stream(self._stream)
        self._copying.append(_Copying(memory, buffer, arrived, target))

    def finish(self) -> None:
        """Wait for all copies."""
        while self._copying:
            self._finish_first()

    def _memory(self, block: Tensor) -> Tensor:
        for i, memory in enumerate(self._free):
            if memory.dtype == block.dtype and memory.numel() >= block.numel():
                return self._free.pop(i)
        return torch.empty(block.numel(), dtype=block.dtype, pin_memory=True)

    def _finish_first(self) -> None:
        block = self._copying.pop(0)
        block.arrived.synchronize()
        block.target.copy_(block.buffer)
        self._free = [*self._free[-_N_BUFFERS:], block.memory]
