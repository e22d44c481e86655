"""A prediction carried out chunk by chunk, on one device or several: into memory, or into a file larger than memory.

Minibatches are cut once, over everything that is requested, and dealt out to the devices in turn. Neither the size of
the chunks nor the number of devices changes a minibatch, so neither changes a predicted cell.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from scvi_tahoe._constants import TENSORS
from scvi_tahoe._devices import HostCopy, autocast_dtype, explained_out_of_memory
from scvi_tahoe._messages import progress_bar
from scvi_tahoe._module import residual_input
from scvi_tahoe.data import CellSetDataset, ExhaustiveSampler, cell_set_dataset, make_store
from scvi_tahoe.evaluate import PREDICTION_RECORD
from scvi_tahoe.prediction._cost import announce_cost
from scvi_tahoe.prediction._counts import ControlCounts, counts_of_prediction
from scvi_tahoe.prediction._file import open_prediction, written_prediction
from scvi_tahoe.prediction._minibatches import Minibatch, grouped, valid_cells
from scvi_tahoe.prediction._new_batches import with_mean_batch, with_new_batches
from scvi_tahoe.prediction._request import plan_prediction, verify_control_scale, warn_about_doses
from scvi_tahoe.response import (
    NOTHING,
    CellPrior,
    CollapseAlarm,
    Origin,
    ResponseStart,
    makes_cells,
    prior_and_targets,
    residual_cells,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from torch import Tensor

    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.data import CellStore
    from scvi_tahoe.prediction._request import PredictionData, PredictionPlan, PredictionRequest

    Take = Callable[[int, Any, np.ndarray | None], None]

logger = logging.getLogger(__name__)

#: bytes of a chunk, which however holds at least one minibatch for each device and one condition
CHUNK_BYTES = 2**29
_SETS = 16
_CPU_BYTES = 2**24
_ROWS = 4096  # control cells that are dense on the device at once, beside minibatches


def predict_cells(
    request: PredictionRequest,
    data: PredictionData,
    module: TahoeSTModule,
    prior: Mapping[str, Any] | None,
    *,
    devices: Sequence[torch.device],
    is_trained: bool,
    observed_likeness: Mapping[str, Mapping[str, float]],
    decoder_error: float | None = None,
    made_by: Mapping[str, str] | None = None,
) -> ad.AnnData:
    """Predict what a request asks for; ``decoder_error`` is the gene decoder's own error in validation, if known.

    ``made_by`` (release, weights, licence) is kept with the prediction.
    """
    data, stands_for = with_new_batches(data, request.new_batches)
    if stands_for and request.new_batches == "mean":
        module = with_mean_batch(module)
    device, output, spec = devices[0], request.output, data.spec
    plan = plan_prediction(request, data)
    warn_about_doses(plan.labels, data.perturbations, spec.keys.parser)
    if spec.representation != "embedding" and request.check_scale:
        verify_control_scale(data, plan.start_rows, prior)
    # before the costly part: the library sizes may be missing
    counts = ControlCounts.read(data, plan.start_rows, layer=request.counts_layer) if output == "counts" else None
    module.eval()
    dtype = autocast_dtype(request.precision, device)
    dataset = cell_set_dataset(
        spec, data.screen, device,
        store=request.store, alignment=data.alignment, full_precision=dtype is None, rows=plan.rows_read,
    )  # fmt: skip
    origins, cells, control_means = [Origin.CONTROL_CELLS] * len(plan.requests), None, None
    kinds: Sequence[str] = ()
    if prior is not None:
        learned, targets = prior_and_targets(prior, spec, data.screen, plan.conditions)
        origins = learned.starts_from(plan.conditions, spec.table)
        kinds = [origin.value for origin in origins]
        has_cells, is_paired = makes_cells(learned.kind), learned.kind == "response"
        plan = plan.with_prior(
            learned.is_corrected(plan.conditions, spec.table), has_cells=has_cells, is_paired=is_paired
        )
        if has_cells:
            cells = residual_cells(
                learned, targets, plan.conditions, plan.requests, spec.table, dataset.expression,
                seed=request.seed, device=device,
            )  # fmt: skip
            # start cells have the mean of all controls and a change, not that of the controls that were drawn
            control_means = {
                context: target.mean_G if isinstance(learned, ResponseStart) else target.mean
                for context, target in targets.items()
            }
        elif isinstance(learned, CellPrior):
            base = learned.base_from(
                targets, plan.conditions, spec.table, n_cells=plan.sizes, seed=request.seed, device=device
            )
            dataset = replace(dataset, residual_shift=base.shift)
    obs = plan.obs(data.screen, spec.keys)
    if prior is not None and isinstance(learned, ResponseStart):
        # one that was judged to help nowhere has no kinds to tell apart
        kinds = () if learned.judged == frozenset() else learned.kinds(plan.conditions, spec.table)
        confidence = learned.confidence(plan.conditions, targets, spec.table)
        n_cells = [len(r.controls) for r in plan.requests]
        for name in confidence.columns.difference(obs.columns, sort=False):
            obs[name] = np.repeat(confidence[name].to_numpy(), n_cells)
    decoder = None if output == "embedding" else module.config.gene_decoder
    width = module.config.n_output if decoder is None else decoder.n_genes
    job = _Prediction(
        module=module,
        dataset=dataset,
        plan=plan,
        residual_cells=cells,
        request=request,
        devices=tuple(devices),
        set_size=spec.set_size,
        batch_size=request.batch_size or _default_batch_size(device, spec.set_size * len(spec.genes)),
        matmul_dtype=dtype,
        width=width,
        labels={
            "obs": obs,
            "var": pd.DataFrame(
                index=[f"embedding_{i}" for i in range(width)] if output == "embedding" else spec.genes
            ),
        },
        record=_record(module, request, plan, origins, kinds, is_trained=is_trained, decoder_error=decoder_error)
        | ({"new_batches": stands_for} if stands_for else {})
        | ({"cells_from": "measured"} if prior is not None and prior["kind"] == "cells" else {})
        | dict(made_by or {}),
        alarm=CollapseAlarm(dataset.expression, device, observed_likeness, spec.keys.parser, output, control_means),
        counts=counts,
    )
    return job.in_memory() if request.path is None else job.to_file(Path(request.path))


def _default_batch_size(device: torch.device, n_values: int) -> int:
    """Return the number of sets of a minibatch, fewer of many values on a CPU."""
    # The allocator of a CPU gives memory of more than 32 MiB back to the system after each operation, and to get it
    # anew takes longer than most operations.
    return _SETS if device.type != "cpu" else min(_SETS, max(1, _CPU_BYTES // (4 * n_values)))


def _record(
    module: TahoeSTModule,
    request: PredictionRequest,
    plan: PredictionPlan,
    origins: Sequence[Origin],
    kinds: Sequence[str],
    *,
    is_trained: bool,
    decoder_error: float | None,
) -> dict[str, Any]:
    """Say where the numbers come from; the evaluation rejects genes of a decoder that was not trained."""
    decodes = module.config.gene_decoder is not None
    weight = module.objective.decoder_weight if decodes else 0.0
    record: dict[str, Any] = {
        "space": "expression" if request.output == "prior" else request.output,
        "genes_from": "decoder" if decodes else "network",
        "decoder_trained": bool(decodes and weight > 0 and is_trained),
        "decoder_weight": weight,
        **({"decoder_error": decoder_error} if decodes and decoder_error is not None else {}),
        "seed": request.seed,
        "starts_from": dict(Counter(origin.value for origin in origins)),
    }
    if request.output == "prior":
        return record
    asked = zip(plan.labels, plan.requests, kinds or [""] * len(plan.labels), strict=True)
    uncorrected = [(label, kind) for label, r, kind in asked if r.keeps_residual_input]
    if labels := sorted({label for label, _ in uncorrected}):
        record["predicted_as_prior"] = labels
        sources = " or ".join(sorted({kind for _, kind in uncorrected}))
        logger.info(
            f"{len(labels)} perturbations ({', '.join(labels[:3])}{', ...' if labels[3:] else ''}) are predicted as "
            f"the prior has them, from {sources}: training had too few conditions like these to judge what the network "
            "changes about them."
            if sources
            else NOTHING
        )
    return record


@dataclass(frozen=True)
class _Chunk:
    """Whole conditions of a plan, and their cells from row ``first_row`` of the prediction on.

    ``cells``, float32 ``[cells of the conditions, G]``, are overwritten when the chunk after the next one is made.
    """

    plan: PredictionPlan
    first_row: int
    cells: np.ndarray


@dataclass(frozen=True)
class _Replica:
    """The network on one device, and what reads its minibatches."""

    module: TahoeSTModule
    dataset: CellSetDataset
    device: torch.device
    host_copy: HostCopy


@dataclass(frozen=True, kw_only=True)
class _Prediction:
    """Everything that carrying out a prediction takes; ``matmul_dtype`` is None for the precision of the weights."""

    module: TahoeSTModule
    dataset: CellSetDataset
    plan: PredictionPlan
    residual_cells: Any
    request: PredictionRequest
    devices: tuple[torch.device, ...]
    set_size: int
    batch_size: int
    matmul_dtype: torch.dtype | None
    width: int
    labels: Mapping[str, pd.DataFrame]
    record: Mapping[str, Any]
    alarm: CollapseAlarm
    counts: ControlCounts | None
    _sampling: Counter[str] = field(default_factory=Counter)

    def in_memory(self) -> ad.AnnData:
        """Return the prediction as AnnData."""
        n_cells, blocks = self.plan.n_cells, []
        start = None
        if self.request.control_layer:
            start = np.empty((n_cells, self._start.n_features), dtype=np.float32)
        out = np.empty((n_cells, self.width), dtype=np.float32) if self.counts is None else None

        def take(first_row: int, cells: Any, start_cells: np.ndarray | None) -> None:
            if out is None:
                blocks.append(cells)
            if start is not None and start_cells is not None:
                start[first_row : first_row + len(start_cells)] = start_cells

        self._run(take, out)
        predicted = sp.vstack(blocks, format="csr") if out is None else out
        return ad.AnnData(predicted, **self.labels, uns=self._uns(), layers={} if start is None else {"control": start})

    def to_file(self, path: Path) -> ad.AnnData:
        """Return the prediction as AnnData whose matrices are in a file."""
        with written_prediction(path, **self.labels) as file:

            def take(first_row: int, cells: Any, start_cells: np.ndarray | None) -> None:
                file.append("X", cells)
                if start_cells is not None:
                    file.append("layers/control", start_cells)

            self._run(take, None)
            file.finish(self._uns())
        return open_prediction(path, **self.labels, uns=self._uns())

    def _uns(self) -> dict[str, Any]:
        sampling = {} if self.counts is None else {"count_sampling": dict(self._sampling)}
        return {PREDICTION_RECORD: {**self.record, **sampling}}

    def _run(self, take: Take, out: np.ndarray | None) -> None:
        """Predict, and hand each chunk on in a thread of its own while the next one is computed.

        ``out``, float32 ``[cells, G]``, is for the cells, all in one chunk; if None, chunks have memory of their own.
        """

        def hand_on(chunk: _Chunk, start: np.ndarray | None) -> None:
            cells: Any = chunk.cells
            if self.counts is not None:
                cells, sampling = counts_of_prediction(chunk.cells, chunk.plan, self.counts)
                self._sampling.update(sampling)
            take(chunk.first_row, cells, start)

        silent = self.request.output in ("expression", "counts") and all(
            request.keeps_residual_input and request.is_paired for request in self.plan.requests
        )
        is_prior = silent or self.request.output == "prior"
        chunks = self._prior_chunks(out) if is_prior else self._network_chunks(out)
        with ThreadPoolExecutor(1) as after, closing(chunks):
            before: Future[None] | None = None
            for chunk in chunks:
                self.alarm.see(chunk.cells, chunk.plan.conditions, [r.controls for r in chunk.plan.requests])
                start = self._start_cells(chunk.plan.start_rows) if self.request.control_layer else None
                if before is not None:
                    before.result()
                before = after.submit(hand_on, chunk, start)
            if before is not None:
                before.result()
        self.alarm.ring()

    @property
    def _start(self) -> CellStore:
        """Control cells in the space of the prediction."""
        return self.dataset.cells if self.request.output == "embedding" else self.dataset.expression

    def _start_cells(self, rows: np.ndarray) -> np.ndarray:
        cells = np.empty((len(rows), self._start.n_features), dtype=np.float32)
        for i in range(0, len(rows), _ROWS):
            block = self._start.dense(self._start.fetch(rows[i : i + _ROWS]), self.devices[0])
            cells[i : i + _ROWS] = block.cpu().numpy()
        return cells

    def _prior_chunks(self, out: np.ndarray | None) -> Generator[_Chunk, None, None]:
        """Predict all conditions of the plan by the prior alone, in their order."""
        plan, width, stops = self.plan, self.dataset.cells.n_features, self.plan.stops
        first = start = 0
        while first < len(plan.requests):
            room = plan.n_cells if out is not None else CHUNK_BYTES // (4 * width)
            after = max(first + 1, int(np.searchsorted(stops, start + room, side="right")))
            cells = np.empty((stops[after - 1] - start, width), dtype=np.float32) if out is None else out
            made, offset = (None, 0) if self.residual_cells is None else self.residual_cells.of_conditions(first, after)
            for position in range(first, after):
                request, end = plan.requests[position], int(stops[position]) - start
                target = cells[end - len(request.controls) : end]
                if made is not None and request.residual_input is not None:
                    made[request.residual_input - offset].toarray(out=target)
                else:
                    self._add_shift(position, request.controls, target)
            yield _Chunk(plan.part(first, after), start, cells)
            first, start = after, int(stops[after - 1])

    @torch.inference_mode()
    def _add_shift(self, position: int, controls: np.ndarray, target: np.ndarray) -> None:
        """Add the shift of a prior of means to control cells."""
        store, device = self.dataset.cells, self.devices[0]
        shift = torch.from_numpy(self.dataset.residual_shift[position]).to(device)  # type: ignore[index]
        for i in range(0, len(controls), _ROWS):
            cells = store.dense(store.fetch(controls[i : i + _ROWS]), device)
            target[i : i + _ROWS] = (cells + shift).clamp_min(0).cpu().numpy()

    def _network_chunks(self, out: np.ndarray | None) -> Generator[_Chunk, None, None]:
        """Predict all conditions of the plan with the network, in their order."""
        plan, width, minibatches = self.plan, self.width, self._minibatches()
        replicas = self._replicas(len(minibatches))
        full = max(one.stop_row - one.first_row for one in minibatches)
        n_at_once = len(minibatches) if out is not None else max(len(replicas), CHUNK_BYTES // (4 * width * full))
        groups = grouped(minibatches, plan.stops, n_at_once)
        # memory of chunks is used in turn, so that the system hands out and clears each page once
        buffers = [np.empty(0, dtype=np.float32) for _ in groups[:2]]
        if self.request.progress:
            announce_cost(len(minibatches) / len(replicas), lambda: self._trial(replicas[:1], minibatches[0]))
        start, first = 0, 0  # row and condition that come next
        rest = np.empty((0, width), dtype=np.float32)
        with ExitStack() as stack:
            bar = stack.enter_context(
                progress_bar(
                    total=plan.n_cells, unit="cell", desc="predicting", disable=not self.request.progress,
                    dynamic_ncols=True,
                )
            )  # fmt: skip
            pool = stack.enter_context(ThreadPoolExecutor(len(replicas))) if len(replicas) > 1 else None
            for group in groups:
                if out is None:
                    size = (group[-1].stop_row - start) * width
                    memory = buffers.pop(0)
                    buffers.append(memory if memory.size >= size else np.empty(size, dtype=np.float32))
                    cells = buffers[-1][:size].reshape(-1, width)
                    cells[: len(rest)] = rest
                else:
                    cells = out
                if self.residual_cells is not None:
                    group = self._with_residual_cells(self.residual_cells, group, replicas)
                with explained_out_of_memory(batch_size=self.batch_size, set_size=self.set_size, doing="prediction"):
                    self._predict(replicas, group, torch.from_numpy(cells), start, pool, bar)
                after = int(np.searchsorted(plan.stops, group[-1].stop_row, side="right"))
                stop = int(plan.stops[after - 1])
                yield _Chunk(plan.part(first, after), start, cells[: stop - start])
                rest, start, first = cells[stop - start :], stop, after

    def _trial(self, replicas: Sequence[_Replica], one: Minibatch) -> None:
        """Predict a minibatch and forget it."""
        cells = self.residual_cells
        group = [one] if cells is None else self._with_residual_cells(cells, [one], replicas)
        rows = torch.empty(one.stop_row - one.first_row, self.width)
        self._predict(replicas, group, rows, one.first_row, None, progress_bar(disable=True))

    def _minibatches(self) -> list[Minibatch]:
        sampler = ExhaustiveSampler(self.plan.requests, set_size=self.set_size, sets_per_step=self.batch_size)
        keeps = np.array([request.keeps_residual_input for request in self.plan.requests])
        made, row = [], 0
        for request in sampler:
            stop = row + int(request.valid_S.sum())
            made.append(Minibatch(request, row, stop, keeps[request.condition_S]))
            row = stop
        return made

    def _replicas(self, most: int) -> list[_Replica]:
        made = []
        for i, device in enumerate(self.devices[:most]):
            is_own = i == 0 and device == self.module.device
            module = self.module if is_own else copy.deepcopy(self.module).to(device).eval()
            cells = self.dataset.cells if i == 0 else self.dataset.cells.replica()
            made.append(_Replica(module, replace(self.dataset, cells=cells), device, HostCopy()))
        return made

    def _with_residual_cells(
        self, made: Any, group: Sequence[Minibatch], replicas: Sequence[_Replica]
    ) -> list[Minibatch]:
        """Give the datasets the prior's cells of some minibatches, which are returned with row numbers among them."""
        cells, first_row = made.of_conditions(
            int(group[0].request.condition_S.min()), int(group[-1].request.condition_S.max()) + 1
        )
        store = make_store(cells, replicas[0].device, full_precision=self.matmul_dtype is None)
        for i, replica in enumerate(replicas):
            replica.dataset.residual_input = store if i == 0 else store.replica()
        requests = (
            replace(one.request, residual_input_SN=one.request.residual_input_SN - first_row)  # type: ignore[operator, arg-type]
            for one in group
        )
        return [replace(one, request=request) for one, request in zip(group, requests, strict=True)]

    def _predict(
        self,
        replicas: Sequence[_Replica],
        group: Sequence[Minibatch],
        target: Tensor,
        start: int,
        pool: ThreadPoolExecutor | None,
        bar: Any,
    ) -> None:
        """Predict minibatches, dealt out to the devices, into ``target``, whose first row is row ``start``."""
        stopped, mutex, dtype = Event(), Lock(), self.matmul_dtype

        def work(position: int) -> None:
            replica, mine = replicas[position], group[position :: len(replicas)]
            device = replica.device
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
                        self._predict_minibatch(replica, one, following, rows)
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

    def _predict_minibatch(self, replica: _Replica, one: Minibatch, following: Minibatch | None, rows: Tensor) -> None:
        """Predict one minibatch; the cells are in ``rows`` once their copy is finished."""
        dataset, request, output = replica.dataset, one.request, self.request.output
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
        replica.host_copy.start(valid_cells(cells_SNG, request.valid_S), rows)
