"""From a question (which perturbations, in which contexts) to control cells to start from; and labels of the answer."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_tahoe._constants import OBS
from scvi_tahoe._names import nearest_names
from scvi_tahoe.data import Condition, ConditionRequest, label_columns
from scvi_tahoe.response import CONTROL_CELLS, ResidualCells, prior_and_targets

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from scvi_tahoe.data import (
        CellSetDataset,
        ConditionIndex,
        DataSpec,
        EmbeddingTable,
        LabelParser,
        Screen,
        ScreenKeys,
    )

__all__ = [
    "PredictionPlan",
    "asked_in_order",
    "cells_of_plan",
    "conditions_asked",
    "covered_by_asking",
    "plan_prediction",
    "resolve_conditions",
    "with_residual_input",
]


@dataclass(frozen=True)
class PredictionPlan:
    """What is to be predicted: conditions, and the control cells that each starts from.

    ``labels`` are the perturbations as they were asked for, which may be another spelling than the model's.
    """

    conditions: tuple[Condition, ...]
    labels: tuple[str, ...]
    tasks: tuple[ConditionRequest, ...]

    @property
    def n_cells(self) -> int:
        """Number of cells that will be predicted."""
        return sum(self.sizes.values())

    @property
    def sizes(self) -> dict[Condition, int]:
        """Number of cells of each condition."""
        return {c: len(t.controls) for c, t in zip(self.conditions, self.tasks, strict=True)}

    @property
    def stops(self) -> np.ndarray:
        """Row after the last cell of each condition, int64 ``[conditions]``."""
        return np.cumsum([len(task.controls) for task in self.tasks])

    @property
    def start_rows(self) -> np.ndarray:
        """The control cell that each predicted cell starts from, int64 ``[n_cells]``."""
        return np.concatenate([task.controls for task in self.tasks])

    @property
    def rows_read(self) -> np.ndarray:
        """All control cells that the prediction reads, also to fill up windows, int64, ascending."""
        # contexts share one pool, which is looked at once
        pools = {id(task.pool): task.pool for task in self.tasks}
        return np.unique(np.concatenate([*pools.values(), self.start_rows]))

    @property
    def left_as_prior(self) -> list[str]:
        """Labels whose prior the network does not correct."""
        return sorted({label for label, task in zip(self.labels, self.tasks, strict=True) if task.keeps_residual_input})

    def part(self, first: int, stop: int) -> PredictionPlan:
        """The conditions from ``first`` to before ``stop``."""
        return PredictionPlan(self.conditions[first:stop], self.labels[first:stop], self.tasks[first:stop])


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


def resolve_conditions(
    index: ConditionIndex,
    table: EmbeddingTable,
    *,
    perturbations: Sequence[str] | None,
    contexts: Sequence[str] | None,
) -> dict[Condition, Condition]:
    """Resolve labels.

    Returns
    -------
    For each condition as it was asked for, the same in the table's spelling.

    Raises
    ------
    ValueError
        If a label is unknown, listed twice or the control's, or a context has no control cells.
    """
    for given, what in ((perturbations, "perturbations"), (contexts, "contexts")):
        if isinstance(given, str):
            raise TypeError(f"{what} is a list of labels; got the text {given!r}, write [{given!r}].")
        if given is not None and (len(given) == 0 or len(set(given)) < len(given)):
            raise ValueError(f"{what} must name each label once, and at least one; got {list(given)[:10]}.")
    if perturbations is None:
        perturbations = [n for n in table.names if n != index.control]
    else:
        perturbations = [str(p) for p in perturbations]
        _refuse_control(index, table, perturbations)
    chosen = _chosen_contexts(index, None if contexts is None else [str(c) for c in contexts])
    known = _known_names(table, perturbations)
    return {Condition(c, p): Condition(c, known[p]) for c in chosen for p in perturbations}


def plan_prediction(
    index: ConditionIndex,
    table: EmbeddingTable,
    *,
    perturbations: Sequence[str] | None,
    contexts: Sequence[str] | None,
    n_cells: int | Mapping[Condition, int] | None,
    seed: int,
) -> PredictionPlan:
    """Resolve labels, as :func:`resolve_conditions` does, and draw start cells.

    Every condition draws from a generator of its own, seeded by the seed and its two labels: a prediction does not
    depend on what else is asked.

    Raises
    ------
    ValueError
        If a label is unknown, listed twice or the control's, or a number of cells is below 1.
    """
    if seed < 0:
        raise ValueError(f"seed={seed!r} must be 0 or more.")
    found = resolve_conditions(index, table, perturbations=perturbations, contexts=contexts)
    if isinstance(n_cells, Mapping):
        found = {asked: known for asked, known in found.items() if asked in n_cells}
        if not found:
            raise ValueError(
                f"n_cells names none of the conditions that are asked for; its keys are (context, perturbation), "
                f"e.g. {list(n_cells)[:2]}."
            )
    pools = {context: index.controls(context) for context in dict.fromkeys(c.context for c in found)}
    tasks = []
    for asked, condition in found.items():
        n = n_cells[asked] if isinstance(n_cells, Mapping) else n_cells
        if n is not None and (not isinstance(n, int | np.integer) or n < 1):
            raise ValueError(f"n_cells={n!r} must be a whole number of 1 or more.")
        task_seed = (seed, *(zlib.crc32(label.encode()) for label in condition))
        controls = pools[condition.context]
        start = _start_cells(controls, n, np.random.default_rng(task_seed))
        tasks.append(ConditionRequest(start, table.row(condition.perturbation), controls, (*task_seed, 1)))
    return PredictionPlan(tuple(found.values()), tuple(asked.perturbation for asked in found), tuple(tasks))


def with_residual_input(
    dataset: CellSetDataset,
    plan: PredictionPlan,
    learned: Mapping[str, Any] | None,
    spec: DataSpec,
    screen: Screen,
    index: ConditionIndex,
    *,
    seed: int,
    device: torch.device,
) -> tuple[CellSetDataset, PredictionPlan, ResidualCells | None, list[str]]:
    """What a learned prior adds to a prediction.

    Returns
    -------
    Sources with the shift of a prior of means; the plan, its tasks with the rows of a prior of cells, and whether these
    are the prediction; what makes these cells, None without such a prior; and what each condition starts from, in
    words.
    """
    if learned is None:
        return dataset, plan, None, [CONTROL_CELLS] * len(plan.tasks)
    prior, targets = prior_and_targets(learned, spec, screen, index, plan.conditions)
    words = prior.starts_from(plan.conditions, spec.table)
    corrected = prior.is_corrected(plan.conditions, spec.table)
    has_cells = prior.kind == "cells"
    tasks = tuple(
        replace(
            task,
            keeps_residual_input=not yes,
            residual_input=np.arange(stop - len(task.controls), stop) if has_cells else None,
        )
        for task, yes, stop in zip(plan.tasks, corrected.tolist(), plan.stops, strict=True)
    )
    plan = replace(plan, tasks=tasks)
    if has_cells:
        return (
            dataset,
            plan,
            ResidualCells(prior, targets, plan.conditions, plan.sizes, spec.table, seed, device),
            words,
        )
    base = prior.base_from(targets, plan.conditions, spec.table, n_cells=plan.sizes, seed=seed, device=device)
    return replace(dataset, residual_shift=base.shift), plan, None, words


def _refuse_control(index: ConditionIndex, table: EmbeddingTable, labels: Sequence[str]) -> None:
    # its row would give it the mean effect of all perturbations
    parser = None if table.composition is None else table.composition.parser
    for label in labels:
        if label == index.control or (parser is not None and parser.is_control(label)):
            raise ValueError(
                f"perturbations names {label!r}, which is the control ({index.control!r}): control cells are what "
                "predictions start from, and are in the data. Name perturbations, or leave the argument out for all "
                "that the model knows."
            )


def covered_by_asking(screen: Screen, table: EmbeddingTable, labels: Sequence[str]) -> EmbeddingTable:
    """The table with rows of the combinations and doses that are asked for, where their parts have rows.

    A combination that names a part twice, as two guides of one gene do, has a row only where it was measured: in the
    training data, or in these.
    """
    if table.composition is None:
        return table
    parser, measured = table.composition.parser, set(screen.perturbation.names)
    return table.with_composed([p for p in labels if p in measured or p in table.row_of or parser.repeated(p) is None])


def _known_names(table: EmbeddingTable, labels: Sequence[str]) -> dict[str, str]:
    """The table's spelling of every label."""
    known = {label: table.known_name(label) for label in labels}
    unknown = [label for label, name in known.items() if name not in table.row_of]
    for label in unknown:
        if table.composition is not None and (part := table.composition.parser.repeated(label)):
            raise ValueError(
                f"perturbation {label!r} names {part!r} twice, and was not measured: {part!r} would count twice. Name "
                "each part of a combination once."
            )
    if unknown:
        raise ValueError(table_message(table, unknown))
    if len(set(known.values())) < len(known):
        raise ValueError(f"perturbations must name each label once; some of {list(known)[:10]} mean the same.")
    return known


def table_message(table: EmbeddingTable, unknown: Sequence[str]) -> str:
    """Why labels cannot be predicted, and what would help."""
    parts = table.components
    composition = table.composition
    names = unknown if composition is None else [p for u in unknown for p in composition.unknown_components(u)]
    near = "; ".join(f"{name!r}{nearest_names(name, parts.names)}" for name in dict.fromkeys(names[:5]))
    remedy = (
        "it was trained with one-hot labels and can only predict those; register a perturbation_embedding_key to "
        "predict new ones"
        if parts.one_hot
        else "add their rows to the perturbation-embedding table of the data"
    )
    return f"the model knows no perturbation {near}: {remedy}."


def conditions_asked(index: ConditionIndex, parser: LabelParser) -> dict[str, Any]:
    """Arguments of ``predict`` that ask for the conditions of observed data, as many cells as were observed of each."""
    observed = np.bincount(index.condition_of_cell[~index.is_control])
    # controls may be labelled as a combination of controls
    sizes = {
        c: int(n)
        for c, n in zip(index.conditions, observed, strict=True)
        if not (parser.composes and parser.is_control(c.perturbation))
    }
    return asked_in_order(sizes)


def asked_in_order(sizes: Mapping[Condition, int]) -> dict[str, Any]:
    """Arguments of ``predict`` that ask for so many cells of each condition; these come in the order of ``sorted``."""
    return {
        "perturbations": sorted({c.perturbation for c in sizes}),
        "contexts": sorted({c.context for c in sizes}),
        "n_cells": sizes,
    }


def cells_of_plan(plan: PredictionPlan, screen: Screen, keys: ScreenKeys) -> pd.DataFrame:
    """``obs`` of a prediction: columns as in the training data, and ``origin``, the control cell of each.

    Labels of a condition are repeated as numbers, never compared as text once a cell.
    """
    start = plan.start_rows
    of_cell = np.repeat(np.arange(len(plan.tasks)), [len(t.controls) for t in plan.tasks])
    said: dict[str, Any] = dict(label_columns(plan.labels, keys))
    if keys.context_key is not None:
        said[keys.context_key] = [c.context for c in plan.conditions]
    columns: dict[str, Any] = {}
    for key, values in said.items():
        of_condition = np.asarray(values)
        columns[key] = of_condition[of_cell] if of_condition.dtype.kind == "f" else _taken(values, of_cell)
    if keys.batch_key is not None and screen.batch is not None:
        columns.setdefault(keys.batch_key, _taken(screen.batch.names, screen.batch.codes[start]))
    obs = pd.DataFrame(columns, index=[f"predicted_{i}" for i in range(len(start))])
    obs[OBS.ORIGIN] = np.asarray(screen.cells[start], dtype=object).astype(str)
    return obs


def _taken(values: Sequence[str], codes: np.ndarray) -> pd.Categorical:
    """``values[codes]`` with sorted categories, and none that does not occur."""
    names, code = np.unique(np.asarray(values, dtype=str), return_inverse=True)
    used, place = np.unique(code[codes], return_inverse=True)
    return pd.Categorical.from_codes(place, categories=names[used].astype(object))
