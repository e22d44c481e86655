"""From a question (which perturbations, in which contexts) to predicted cells in an AnnData."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import anndata as ad
import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from scvi_tahoe._arrivals import Arrivals
from scvi_tahoe._constants import OBS, TENSORS
from scvi_tahoe._module import base_cells
from scvi_tahoe.data import CellSetDataset, Condition, ExhaustiveSampler, PredictionTask, label_columns, nearest_names
from scvi_tahoe.train import explained_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    import scipy.sparse as sp

    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.data import ConditionIndex, EmbeddingTable, MinibatchSources, Screen, ScreenKeys

__all__ = [
    "OUTPUTS",
    "Output",
    "PredictionPlan",
    "assemble",
    "conditions_asked",
    "plan_prediction",
    "prior_cells",
    "run_prediction",
    "with_base",
]

Output = Literal["expression", "delta", "counts", "embedding", "prior"]
OUTPUTS: tuple[Output, ...] = get_args(Output)


@dataclass(frozen=True)
class PredictionPlan:
    """What is to be predicted: conditions, and the control cells that each starts from.

    ``labels`` are the perturbations as they were asked for, which may be another spelling than the model's.
    """

    conditions: tuple[Condition, ...]
    labels: tuple[str, ...]
    tasks: tuple[PredictionTask, ...]

    @property
    def n_cells(self) -> int:
        """Number of cells that will be predicted."""
        return sum(self.sizes.values())

    @property
    def sizes(self) -> dict[Condition, int]:
        """Number of cells of each condition."""
        return {c: len(t.controls) for c, t in zip(self.conditions, self.tasks, strict=True)}


def _chosen_contexts(index: ConditionIndex, contexts: Sequence[str] | None) -> list[str]:
    if contexts is None:
        with_controls = [c for c in index.contexts if len(index.controls(c))]
        if not with_controls:
            raise ValueError(f"the data have no control cell ({index.control!r}) to start a prediction from.")
        return with_controls
    for context in contexts:
        if context not in index.contexts:
            raise ValueError(
                f"context {context!r} is not in the data{nearest_names(context, index.contexts)}: a prediction starts "
                f"from the context's control cells; there are {list(index.contexts)[:10]}. "
                "Pass other data with predict(adata, ...)."
            )
        if not len(index.controls(context)):
            raise ValueError(f"context {context!r} has no control cell ({index.control!r}) to start a prediction from.")
    return list(contexts)


def _start_cells(controls: np.ndarray, n_cells: int | None, rng: np.random.Generator) -> np.ndarray:
    """Control rows, each once before any comes again."""
    n = len(controls) if n_cells is None else n_cells
    return np.concatenate([rng.permutation(controls) for _ in range(-(-n // len(controls)))])[:n]


def plan_prediction(
    index: ConditionIndex,
    table: EmbeddingTable,
    *,
    perturbations: Sequence[str] | None,
    contexts: Sequence[str] | None,
    n_cells: int | Mapping[Condition, int] | None,
    seed: int,
) -> PredictionPlan:
    """Resolve labels and draw start cells.

    Every condition draws from a generator of its own, seeded by the seed and its two labels: a prediction does not
    depend on what else is asked.

    Raises
    ------
    ValueError
        If a label is unknown, listed twice, or a number of cells is below 1.
    """
    if seed < 0:
        raise ValueError(f"seed={seed!r} must be 0 or more.")
    for given, what in ((perturbations, "perturbations"), (contexts, "contexts")):
        if isinstance(given, str):
            raise TypeError(f"{what} is a list of labels; got the text {given!r}, write [{given!r}].")
        if given is not None and (len(given) == 0 or len(set(given)) < len(given)):
            raise ValueError(f"{what} must name each label once, and at least one; got {list(given)[:10]}.")
    everything = [n for n in table.names if n != index.control]
    perturbations = everything if perturbations is None else [str(p) for p in perturbations]
    contexts = None if contexts is None else [str(c) for c in contexts]
    conditions = [Condition(c, p) for c in _chosen_contexts(index, contexts) for p in perturbations]
    if isinstance(n_cells, Mapping):
        conditions = [c for c in conditions if c in n_cells]
        if not conditions:
            raise ValueError(
                f"n_cells names none of the conditions that are asked for; its keys are (context, perturbation), "
                f"e.g. {list(n_cells)[:2]}."
            )
    known = _known_names(table, perturbations)
    tasks = []
    for asked in conditions:
        condition = Condition(asked.context, known[asked.perturbation])
        n = n_cells[asked] if isinstance(n_cells, Mapping) else n_cells
        if n is not None and (not isinstance(n, int | np.integer) or n < 1):
            raise ValueError(f"n_cells={n!r} must be a whole number of 1 or more.")
        task_seed = (seed, *(zlib.crc32(label.encode()) for label in condition))
        controls = index.controls(condition.context)
        start = _start_cells(controls, n, np.random.default_rng(task_seed))
        tasks.append(PredictionTask(start, table.position(condition.perturbation), controls, (*task_seed, 1)))
    return PredictionPlan(
        tuple(Condition(c.context, known[c.perturbation]) for c in conditions),
        tuple(c.perturbation for c in conditions),
        tuple(tasks),
    )


def _known_names(table: EmbeddingTable, labels: Sequence[str]) -> dict[str, str]:
    """The table's spelling of every label."""
    known = {label: table.known_name(label) for label in labels}
    unknown = [label for label, name in known.items() if name not in table.row_of]
    if unknown:
        raise ValueError(table_message(table, unknown))
    if len(set(known.values())) < len(known):
        raise ValueError(f"perturbations must name each label once; some of {list(known)[:10]} mean the same.")
    return known


def table_message(table: EmbeddingTable, unknown: Sequence[str]) -> str:
    """Why labels cannot be predicted, and what would help."""
    parts = table.parts
    composition = table.composition
    names = unknown if composition is None else [p for u in unknown for p in composition.unknown_parts(u)]
    near = "; ".join(f"{name!r}{nearest_names(name, parts.names)}" for name in dict.fromkeys(names[:5]))
    remedy = (
        "it was trained with one-hot labels and can only predict those; register a perturbation_embedding_key to "
        "predict new ones"
        if parts.one_hot
        else "add their rows to the perturbation-embedding table of the data"
    )
    return f"the model knows no perturbation {near}: {remedy}."


def conditions_asked(index: ConditionIndex) -> dict[str, Any]:
    """Arguments of ``predict`` that ask for the conditions of observed data, as many cells as were observed of each."""
    sizes = np.bincount(index.condition_of_cell[~index.is_control])
    return {
        "perturbations": sorted({c.perturbation for c in index.conditions}),
        "contexts": sorted({c.context for c in index.conditions}),
        "n_cells": {c: int(n) for c, n in zip(index.conditions, sizes, strict=True)},
    }


def with_base(plan: PredictionPlan, rows: Mapping[Condition, np.ndarray]) -> PredictionPlan:
    """The same plan, each task with the rows of its prior's cells."""
    pairs = zip(plan.conditions, plan.tasks, strict=True)
    return replace(plan, tasks=tuple(replace(task, base=rows[condition]) for condition, task in pairs))


@torch.inference_mode()
def prior_cells(sources: MinibatchSources, plan: PredictionPlan, device: torch.device) -> np.ndarray:
    """What the prior alone says: float32 ``[n_cells, G]``."""
    predicted = []
    for position, task in enumerate(plan.tasks):
        if sources.base is not None and task.base is not None:
            cells = sources.base.dense(sources.base.fetch(task.base), device)
        else:
            shift = torch.from_numpy(sources.shift_of_condition[position]).to(device)  # type: ignore[index]
            cells = (sources.cells.dense(sources.cells.fetch(task.controls), device) + shift).clamp_min(0)
        predicted.append(cells.cpu().numpy())
    return np.concatenate(predicted)


@torch.inference_mode()
def run_prediction(
    module: TahoeSTModule,
    sources: MinibatchSources,
    plan: PredictionPlan,
    *,
    set_size: int,
    batch_size: int,
    output: Output,
    device: torch.device,
    progress: bool,
    products: torch.dtype | None = None,
) -> np.ndarray:
    """Predicted cells of all tasks, one after the other: float32 ``[n_cells, G]``; products in 16 bits if given."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} must be 1 or more.")
    dataset = CellSetDataset(sources)
    sampler = ExhaustiveSampler(plan.tasks, set_size=set_size, sets_per_step=batch_size)
    decodes = module.config.gene_decoder is not None and output != "embedding"
    width = module.config.gene_decoder.n_genes if decodes else module.config.n_output  # type: ignore[union-attr]
    predicted = np.empty((plan.n_cells, width), dtype=np.float32)
    arrivals = Arrivals(predicted)
    with (
        tqdm(total=plan.n_cells, unit="cell", desc="predicting", disable=not progress, dynamic_ncols=True) as bar,
        explained_out_of_memory(batch_size=batch_size, set_size=set_size, doing="prediction"),
        torch.autocast(device.type, dtype=products, enabled=products is not None),
    ):
        for request in sampler:
            tensors = dataset.to_tensors(dataset[request], device)
            base_SNG = base_cells(tensors)
            result = module(
                tensors[TENSORS.CONTROL], tensors[TENSORS.PERTURBATION], tensors.get(TENSORS.BATCH), base_SNG
            )
            cells_SNG = result.genes_SNG if decodes else result.prediction_SNG
            if output == "delta":
                cells_SNG = cells_SNG - tensors[TENSORS.CONTROL]
            arrivals.take(_wanted(cells_SNG, request.valid_S))
            bar.update(int(request.valid_S.sum()))
        arrivals.finish()
    return predicted


def _wanted(cells_SNG: torch.Tensor, valid_S: np.ndarray) -> torch.Tensor:
    """The leading cells of each set, without asking the device how many they are."""
    n = cells_SNG.shape[1]
    cells = cells_SNG.flatten(0, 1)
    if (valid_S == n).all():
        return cells
    wanted = np.flatnonzero(np.arange(n) < valid_S[:, None])
    return cells[torch.from_numpy(wanted).to(cells.device, non_blocking=True)]


def assemble(
    predicted: np.ndarray | sp.csr_matrix,
    plan: PredictionPlan,
    screen: Screen,
    keys: ScreenKeys,
    *,
    var: pd.DataFrame,
    control_layer: np.ndarray | None = None,
    uns: Mapping[str, Any],
) -> ad.AnnData:
    """Put predicted cells into an AnnData that scanpy takes as it is.

    Columns of ``obs`` are named as in the training data; ``origin`` names the control cell that each started from.
    """
    start = np.concatenate([t.controls for t in plan.tasks])
    n = [len(t.controls) for t in plan.tasks]
    said = label_columns(plan.labels, keys)
    columns: dict[str, Any] = {key: np.repeat(values, n) for key, values in said.items()}
    if keys.context_key is not None:
        columns[keys.context_key] = np.repeat([c.context for c in plan.conditions], n)
    if keys.batch_key is not None and screen.batch is not None:
        columns.setdefault(keys.batch_key, np.asarray(screen.batch.names)[screen.batch.codes[start]])
    obs = pd.DataFrame(
        {k: v if v.dtype.kind == "f" else pd.Categorical(v) for k, v in columns.items()},
        index=[f"predicted_{i}" for i in range(len(start))],
    )
    obs[OBS.ORIGIN] = np.asarray(screen.cells[start], dtype=object).astype(str)
    result = ad.AnnData(predicted, obs=obs, var=var, uns=dict(uns))
    if control_layer is not None:
        result.layers["control"] = control_layer
    return result
