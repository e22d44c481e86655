"""A prediction that was asked for, carried out: into memory, or into a file that may be larger than memory."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scvi_tahoe.evaluate import PREDICTION_RECORD
from scvi_tahoe.prediction._chunks import CHUNK_BYTES, predicted_chunks, prediction_width, prior_chunks
from scvi_tahoe.prediction._counts import counts_of_prediction
from scvi_tahoe.prediction._file import open_prediction, written_prediction
from scvi_tahoe.response import CollapseAlarm

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from pathlib import Path

    import torch

    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.data import CellSetDataset, CellStore, LabelParser
    from scvi_tahoe.prediction._chunks import Chunk, Forward
    from scvi_tahoe.prediction._counts import ControlCounts
    from scvi_tahoe.prediction._request import PredictionPlan
    from scvi_tahoe.response import ResidualCells

__all__ = ["PredictionJob"]

_ROWS = 4096  # control cells that are dense on the device at once


@dataclass(frozen=True, kw_only=True)
class PredictionJob:
    """Everything that a prediction takes.

    Attributes
    ----------
    module
        In eval mode.
    dataset
        Of its minibatches.
    plan
        What is predicted.
    base
        Of a prior of cells; None without one.
    forward
        How the network is run.
    devices
        Where; the first also does what is done once.
    genes
        Names of the model's genes.
    obs
        Of the predicted cells.
    record
        What ``uns`` says of the prediction.
    observed_cosine
        Of the alarm on predictions that are all alike.
    parser
        Of the labels of conditions.
    counts
        Of the control cells, where counts are wanted.
    control_layer
        Whether control cells are kept.
    """

    module: TahoeSTModule
    dataset: CellSetDataset
    plan: PredictionPlan
    base: ResidualCells | None
    forward: Forward
    devices: tuple[torch.device, ...]
    genes: np.ndarray
    obs: pd.DataFrame
    record: Mapping[str, Any]
    observed_cosine: Mapping[str, float]
    parser: LabelParser
    counts: ControlCounts | None
    control_layer: bool
    _sampling: Counter[str] = field(default_factory=Counter)

    def in_memory(self) -> ad.AnnData:
        """The prediction as AnnData."""
        n_cells = self.plan.n_cells
        start = np.empty((n_cells, self._start.n_features), dtype=np.float32) if self.control_layer else None
        blocks: list[sp.csr_matrix] = []
        out = np.empty((n_cells, self._width), dtype=np.float32) if self.counts is None else None

        def take(first_row: int, cells: Any, start_cells: np.ndarray | None) -> None:
            if out is None:
                blocks.append(cells)
            if start is not None and start_cells is not None:
                start[first_row : first_row + len(start_cells)] = start_cells

        self._run(take, out)
        predicted = sp.vstack(blocks, format="csr") if out is None else out
        result = ad.AnnData(predicted, obs=self.obs, var=self._var, uns=self._uns())
        if start is not None:
            result.layers["control"] = start
        return result

    def to_file(self, path: Path) -> ad.AnnData:
        """The prediction as AnnData whose matrices are in a file.

        Parameters
        ----------
        path
            Of :func:`~scvi_tahoe.prediction._file.prediction_path`.
        """
        with written_prediction(path, obs=self.obs, var=self._var) as file:

            def take(first_row: int, cells: Any, start_cells: np.ndarray | None) -> None:
                file.append("X", cells)
                if start_cells is not None:
                    file.append("layers/control", start_cells)

            self._run(take, None)
            file.finish(self._uns())
        return open_prediction(path, obs=self.obs, var=self._var, uns=self._uns())

    def _run(self, take: Callable[[int, Any, np.ndarray | None], None], out: np.ndarray | None) -> None:
        """Predict; and hand each chunk on in a thread of its own, while the next one is computed."""
        output, device = self.forward.output, self.devices[0]
        control_means = self._control_means
        alarm = CollapseAlarm(
            self._expression, device, self.observed_cosine,
            parser=self.parser, output=output, control_means=control_means,
        )  # fmt: skip
        with ThreadPoolExecutor(1) as after, closing(self._chunks(out)) as chunks:
            before: Future[None] | None = None
            for chunk in chunks:
                alarm.see(chunk.cells, chunk.plan.conditions, [task.controls for task in chunk.plan.tasks])
                start = self._start_cells(chunk.plan) if self.control_layer else None
                if before is not None:
                    before.result()
                before = after.submit(self._hand_on, chunk, start, take)
            if before is not None:
                before.result()
        alarm.ring()

    def _hand_on(
        self, chunk: Chunk, start: np.ndarray | None, take: Callable[[int, Any, np.ndarray | None], None]
    ) -> None:
        cells: Any = chunk.cells
        if self.counts is not None:
            cells, sampling = counts_of_prediction(chunk.cells, chunk.plan, self.counts)
            self._sampling.update(sampling)
        take(chunk.first_row, cells, start)

    def _chunks(self, out: np.ndarray | None) -> Generator[Chunk, None, None]:
        if self.forward.output == "prior":
            return prior_chunks(
                self.dataset, self.plan, device=self.devices[0], base=self.base, out=out, chunk_bytes=CHUNK_BYTES
            )
        return predicted_chunks(
            self.module, self.dataset, self.plan, self.forward, devices=self.devices, base=self.base, out=out,
            chunk_bytes=CHUNK_BYTES,
        )  # fmt: skip

    def _start_cells(self, plan: PredictionPlan) -> np.ndarray:
        """Control cells of some conditions, dense."""
        rows = plan.start_rows
        cells = np.empty((len(rows), self._start.n_features), dtype=np.float32)
        for i in range(0, len(rows), _ROWS):
            block = self._start.dense(self._start.fetch(rows[i : i + _ROWS]), self.devices[0])
            cells[i : i + _ROWS] = block.cpu().numpy()
        return cells

    def _uns(self) -> dict[str, Any]:
        sampling = {} if self.counts is None else {"count_sampling": dict(self._sampling)}
        return {PREDICTION_RECORD: {**self.record, **sampling}}

    @property
    def _control_means(self) -> dict[str, np.ndarray] | None:
        """Mean of the control cells of each context, where predictions start from a prior's cells."""
        return None if self.base is None else {name: target.mean for name, target in self.base.targets.items()}

    @property
    def _expression(self) -> CellStore:
        return self.dataset.expression

    @property
    def _start(self) -> CellStore:
        """What predicted cells are compared with: control cells in their own space."""
        return self.dataset.cells if self.forward.output == "embedding" else self._expression

    @property
    def _width(self) -> int:
        return prediction_width(self.module, self.forward.output)

    @property
    def _var(self) -> pd.DataFrame:
        if self.forward.output == "embedding":
            return pd.DataFrame(index=[f"embedding_{i}" for i in range(self._width)])
        return pd.DataFrame(index=self.genes)
