"""A prediction carried out: into memory, or into a file that may be larger than memory."""

from __future__ import annotations

import logging
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scvi_tahoe._devices import autocast_dtype
from scvi_tahoe.data import cell_set_dataset
from scvi_tahoe.evaluate import PREDICTION_RECORD
from scvi_tahoe.prediction._counts import ControlCounts, counts_of_prediction
from scvi_tahoe.prediction._file import open_prediction, written_prediction
from scvi_tahoe.prediction._predictor import (
    Forward,
    default_batch_size,
    predicted_chunks,
    prediction_width,
    prior_chunks,
)
from scvi_tahoe.prediction._request import plan_prediction, warn_about_scale
from scvi_tahoe.response import CollapseAlarm, Origin, ResidualCells, prior_and_targets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.data import CellSetDataset, CellStore
    from scvi_tahoe.prediction._predictor import Chunk
    from scvi_tahoe.prediction._request import PredictionData, PredictionPlan, PredictionRequest

    Take = Callable[[int, Any, np.ndarray | None], None]

logger = logging.getLogger(__name__)

_ROWS = 4096  # control cells that are dense on the device at once


def predict_cells(
    request: PredictionRequest,
    data: PredictionData,
    module: TahoeSTModule,
    prior: Mapping[str, Any] | None,
    *,
    devices: Sequence[torch.device],
    is_trained: bool,
    observed_cosine: Mapping[str, float],
) -> ad.AnnData:
    """Predict what a request asks for, starting from some data."""
    device, output, spec = devices[0], request.output, data.spec
    plan = plan_prediction(request, data.screen.index, spec.table)
    if spec.representation != "embedding":
        warn_about_scale(data, plan.start_rows, prior)
    # before the costly part: the library sizes may be missing
    counts = ControlCounts.read(data, plan.start_rows, layer=request.counts_layer) if output == "counts" else None
    module.eval()
    dtype = autocast_dtype(request.precision, device)
    forward = Forward(
        set_size=spec.set_size,
        batch_size=request.batch_size or default_batch_size(device, set_size=spec.set_size, width=len(spec.genes)),
        output=output,
        matmul_dtype=dtype,
        progress=request.progress,
    )
    dataset = cell_set_dataset(
        spec, data.screen, device,
        store=request.store, alignment=data.alignment, full_precision=dtype is None, rows=plan.rows_read,
    )  # fmt: skip
    dataset, plan, residual_cells, origins = _with_prior(dataset, plan, prior, data, seed=request.seed, device=device)
    width = prediction_width(module, output)
    names = [f"embedding_{i}" for i in range(width)] if output == "embedding" else spec.genes
    job = _Job(
        module=module,
        dataset=dataset,
        plan=plan,
        residual_cells=residual_cells,
        forward=forward,
        devices=tuple(devices),
        width=width,
        var=pd.DataFrame(index=names),
        obs=plan.obs(data.screen, spec.keys),
        record=_record(module, request, plan, origins, is_trained=is_trained),
        alarm=CollapseAlarm(
            dataset.expression, device, observed_cosine, parser=spec.keys.parser, output=output,
            control_means=None if residual_cells is None else residual_cells.control_means,
        ),
        counts=counts,
        control_layer=request.control_layer,
    )  # fmt: skip
    return job.in_memory() if request.path is None else job.to_file(Path(request.path))


def _with_prior(
    dataset: CellSetDataset,
    plan: PredictionPlan,
    learned: Mapping[str, Any] | None,
    data: PredictionData,
    *,
    seed: int,
    device: torch.device,
) -> tuple[CellSetDataset, PredictionPlan, ResidualCells | None, list[Origin]]:
    """Add a learned prior: its shift to the dataset or its cells to the plan, and what each condition starts from."""
    if learned is None:
        return dataset, plan, None, [Origin.CONTROL_CELLS] * len(plan.requests)
    table = data.spec.table
    prior, targets = prior_and_targets(learned, data.spec, data.screen, plan.conditions)
    origins = prior.starts_from(plan.conditions, table)
    corrected = prior.is_corrected(plan.conditions, table)
    has_cells = prior.kind == "cells"
    requests = tuple(
        replace(
            request,
            keeps_residual_input=not yes,
            residual_input=np.arange(stop - len(request.controls), stop) if has_cells else None,
        )
        for request, yes, stop in zip(plan.requests, corrected.tolist(), plan.stops, strict=True)
    )
    plan = replace(plan, requests=requests)
    if has_cells:
        cells = ResidualCells(prior, targets, plan.conditions, plan.sizes, table, seed, device)
        return dataset, plan, cells, origins
    base = prior.base_from(targets, plan.conditions, table, n_cells=plan.sizes, seed=seed, device=device)
    return replace(dataset, residual_shift=base.shift), plan, None, origins


def _record(
    module: TahoeSTModule,
    request: PredictionRequest,
    plan: PredictionPlan,
    origins: Sequence[Origin],
    *,
    is_trained: bool,
) -> dict[str, Any]:
    """Say where the numbers come from; the evaluation rejects genes of a decoder that was not trained."""
    decodes = module.config.gene_decoder is not None
    weight = module.objective.decoder_weight if decodes else 0.0
    record: dict[str, Any] = {
        "space": "expression" if request.output == "prior" else request.output,
        "genes_from": "decoder" if decodes else "network",
        "decoder_trained": bool(decodes and weight > 0 and is_trained),
        "decoder_weight": weight,
        "seed": request.seed,
        "starts_from": dict(Counter(origin.value for origin in origins)),
    }
    if request.output != "prior" and (labels := plan.predicted_as_prior):
        record["predicted_as_prior"] = labels
        logger.info(
            f"{len(labels)} combinations ({', '.join(labels[:3])}{', ...' if labels[3:] else ''}) are predicted as the "
            "prior has them, from their parts: training saw too few combinations whose parts were measured alone "
            "to learn what to change about that."
        )
    return record


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Everything that carrying out a prediction takes."""

    module: TahoeSTModule
    dataset: CellSetDataset
    plan: PredictionPlan
    residual_cells: ResidualCells | None
    forward: Forward
    devices: tuple[torch.device, ...]
    width: int
    var: pd.DataFrame
    obs: pd.DataFrame
    record: Mapping[str, Any]
    alarm: CollapseAlarm
    counts: ControlCounts | None
    control_layer: bool
    _sampling: Counter[str] = field(default_factory=Counter)

    def in_memory(self) -> ad.AnnData:
        """Return the prediction as AnnData."""
        n_cells = self.plan.n_cells
        start = np.empty((n_cells, self._start.n_features), dtype=np.float32) if self.control_layer else None
        blocks: list[sp.csr_matrix] = []
        out = np.empty((n_cells, self.width), dtype=np.float32) if self.counts is None else None

        def take(first_row: int, cells: Any, start_cells: np.ndarray | None) -> None:
            if out is None:
                blocks.append(cells)
            if start is not None and start_cells is not None:
                start[first_row : first_row + len(start_cells)] = start_cells

        self._run(take, out)
        predicted = sp.vstack(blocks, format="csr") if out is None else out
        result = ad.AnnData(predicted, obs=self.obs, var=self.var, uns=self._uns())
        if start is not None:
            result.layers["control"] = start
        return result

    def to_file(self, path: Path) -> ad.AnnData:
        """Return the prediction as AnnData whose matrices are in a file."""
        with written_prediction(path, obs=self.obs, var=self.var) as file:

            def take(first_row: int, cells: Any, start_cells: np.ndarray | None) -> None:
                file.append("X", cells)
                if start_cells is not None:
                    file.append("layers/control", start_cells)

            self._run(take, None)
            file.finish(self._uns())
        return open_prediction(path, obs=self.obs, var=self.var, uns=self._uns())

    def _run(self, take: Take, out: np.ndarray | None) -> None:
        """Predict, and hand each chunk on in a thread of its own while the next one is computed."""
        cells, device = self.residual_cells, self.devices[0]
        chunks = (
            prior_chunks(self.dataset, self.plan, cells, device=device, out=out)
            if self.forward.output == "prior"
            else predicted_chunks(
                self.module, self.dataset, self.plan, self.forward, cells, devices=self.devices, out=out
            )
        )
        with ThreadPoolExecutor(1) as after, closing(chunks):
            before: Future[None] | None = None
            for chunk in chunks:
                self.alarm.see(chunk.cells, chunk.plan.conditions, [r.controls for r in chunk.plan.requests])
                start = self._start_cells(chunk.plan.start_rows) if self.control_layer else None
                if before is not None:
                    before.result()
                before = after.submit(self._hand_on, chunk, start, take)
            if before is not None:
                before.result()
        self.alarm.ring()

    def _hand_on(self, chunk: Chunk, start: np.ndarray | None, take: Take) -> None:
        cells: Any = chunk.cells
        if self.counts is not None:
            cells, sampling = counts_of_prediction(chunk.cells, chunk.plan, self.counts)
            self._sampling.update(sampling)
        take(chunk.first_row, cells, start)

    @property
    def _start(self) -> CellStore:
        """Control cells in the space of the prediction."""
        return self.dataset.cells if self.forward.output == "embedding" else self.dataset.expression

    def _start_cells(self, rows: np.ndarray) -> np.ndarray:
        """Return control cells, dense."""
        cells = np.empty((len(rows), self._start.n_features), dtype=np.float32)
        for i in range(0, len(rows), _ROWS):
            block = self._start.dense(self._start.fetch(rows[i : i + _ROWS]), self.devices[0])
            cells[i : i + _ROWS] = block.cpu().numpy()
        return cells

    def _uns(self) -> dict[str, Any]:
        sampling = {} if self.counts is None else {"count_sampling": dict(self._sampling)}
        return {PREDICTION_RECORD: {**self.record, **sampling}}
