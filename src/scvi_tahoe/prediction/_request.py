"""What a user asks for: the request, the control cells that it starts from, and the plan of conditions it becomes."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scvi_tahoe._constants import OBS, STREAMS
from scvi_tahoe._memory import verify_memory
from scvi_tahoe._messages import warn
from scvi_tahoe._names import nearest_names
from scvi_tahoe.data import (
    OUTPUTS,
    Condition,
    ConditionRequest,
    align_genes,
    label_columns,
    read_screen,
    read_table,
    verify_screen,
)
from scvi_tahoe.prediction._file import verify_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi_tahoe._compat import AnnOrMuData
    from scvi_tahoe._devices import Devices
    from scvi_tahoe.data import (
        ConditionIndex,
        DataSpec,
        EmbeddingTable,
        GeneAlignment,
        LabelParser,
        Output,
        Screen,
        ScreenKeys,
        StoreKind,
    )

logger = logging.getLogger(__name__)

_SCALE_CELLS = 256  # cells whose scale is looked at
#: cell types differ by less than this; a tenth of the total gives less than half of the log1p expression
_SCALE_LIMIT = 1.6


@dataclass(frozen=True, kw_only=True)
class PredictionRequest:
    """Arguments of :meth:`~scvi_tahoe.TahoeST.predict`, as they are documented there."""

    perturbations: Sequence[str] | Literal["all"] | None = None
    contexts: Sequence[str] | None = None
    n_cells: int | Mapping[Condition, int] | None = None
    output: Output = "expression"
    counts_layer: str | None = None
    control_layer: bool = False
    seed: int = 0
    batch_size: int | None = None
    store: StoreKind = "auto"
    precision: str | int = "auto"
    max_missing_genes: float = 0.1
    check_scale: bool = True
    new_batches: Literal["error", "mean", "nearest"] = "error"
    devices: Devices = None
    path: str | Path | None = None
    overwrite: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        output = self.output
        if output not in OUTPUTS:
            raise ValueError(f"output={output!r} is unknown; allowed are {', '.join(map(repr, OUTPUTS))}.")
        if output != "counts" and self.counts_layer is not None:
            raise ValueError(f"counts_layer={self.counts_layer!r} is for output='counts'; the output is {output!r}.")
        if output == "counts" and self.control_layer:
            raise ValueError("control_layer keeps log1p expression; with output='counts' take the cells from the data.")
        if self.new_batches not in ("error", "mean", "nearest"):
            raise ValueError(f"new_batches={self.new_batches!r} is unknown; allowed are 'error', 'mean' and 'nearest'.")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed!r} must be 0 or more.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size!r} must be 1 or more.")
        if self.path is not None:
            verify_path(Path(self.path), overwrite=self.overwrite)


def arguments_for(sizes: Mapping[Condition, int]) -> dict[str, Any]:
    """Return the arguments of ``predict`` for so many cells of each condition; these come in sorted order."""
    return {
        "perturbations": sorted({c.perturbation for c in sizes}),
        "contexts": sorted({c.context for c in sizes}),
        "n_cells": sizes,
    }


def arguments_for_observed(data: AnnOrMuData, keys: ScreenKeys) -> dict[str, Any]:
    """Return the arguments of ``predict`` for the conditions of observed data, as many cells as were observed."""
    index, parser = read_screen(data, keys).index, keys.parser
    observed = np.bincount(index.condition_of_cell[~index.is_control])
    # controls may be labelled as a combination of controls
    sizes = {
        c: int(n)
        for c, n in zip(index.conditions, observed, strict=True)
        if not (parser.composes and parser.is_control(c.perturbation))
    }
    return arguments_for(sizes)


@dataclass(frozen=True, kw_only=True)
class PredictionData:
    """The data whose control cells a prediction starts from.

    Attributes
    ----------
    adata, screen
        The data as given and as read.
    spec
        What the model fixes about its data; the table has rows for what the data and the request bring.
    alignment
        Alignment of the data's genes to the model's.
    own
        The model's own data; None if it has none.
    perturbations
        Those that are predicted if none are named: of the training data and of these, as far as the table has them.
    """

    adata: AnnOrMuData
    screen: Screen
    spec: DataSpec
    alignment: GeneAlignment
    own: AnnOrMuData | None
    perturbations: tuple[str, ...]

    @classmethod
    def read(
        cls,
        adata: AnnOrMuData,
        spec: DataSpec,
        *,
        own: AnnOrMuData | None,
        own_screen: Screen | None,
        trained: Sequence[str],
        perturbations: Sequence[str] | None,
        max_missing_genes: float,
    ) -> PredictionData:
        """Read and verify data for a prediction; ``own_screen`` are the data as read before, if they are ``own``.

        ``trained`` are the labels of the training data.
        """
        new = read_table(adata, spec.keys, required=False, like=spec.table)
        table = spec.table if new is None else spec.table.extended(new)
        screen = own_screen or verify_screen(adata, spec.keys, for_training=False)
        # rows that were made of labels are those of the training data
        is_made = table.one_hot or table.composition is not None
        measured = set(table.names) if is_made else {*trained, *screen.perturbation.names}
        known = tuple(name for name in table.names if name in measured and name != screen.control)
        if perturbations is not None and not isinstance(perturbations, str) and table.composition is not None:
            # a combination that names a component twice, as two guides of one gene do, needs to have been measured
            parser, spelled = table.composition.parser, {*screen.perturbation.names, *table.row_of}
            asked = [str(p) for p in perturbations]
            table = table.with_composed([p for p in asked if p in spelled or parser.repeated(p) is None])
        alignment = align_genes(spec.genes, screen.genes, max_missing=max_missing_genes)
        if not alignment.is_identity:
            logger.info(str(alignment))
        return cls(
            adata=adata, screen=screen, spec=replace(spec, table=table), alignment=alignment, own=own,
            perturbations=known,
        )  # fmt: skip


def verify_control_scale(data: PredictionData, rows: np.ndarray, prior: Mapping[str, Any] | None) -> None:
    """Refuse new control cells that have far more or less expression than the model's own.

    Compared are means of log1p expression over the genes that both have. Nothing is known of the model's own controls
    if it has neither a prior nor its training data.
    """
    if not len(rows) or (prior is None and (data.own is None or data.adata is data.own)):
        return
    present = data.alignment.columns >= 0
    if prior is not None:
        own_G = np.asarray(prior.get("arrays", prior)["control_means"], dtype=np.float64).mean(axis=0)
    else:
        own = read_screen(data.own, data.spec.keys)
        own_G = mean_expression(
            some_cells(own, np.flatnonzero(own.perturbation.codes == own.perturbation.code(own.control)))
        )
    new_G = mean_expression(data.alignment.apply(some_cells(data.screen, np.unique(rows))))
    known, new = (float(mean_G[present].mean()) for mean_G in (own_G, new_G))
    if known > 0 and not 1 / _SCALE_LIMIT <= new / known <= _SCALE_LIMIT:
        raise ValueError(
            f"the control cells have {new / known:.2g} times the log1p expression of those that the model was trained "
            "on: they were probably normalised to another total, which the prediction would not undo. Normalise them "
            "as the training data were (sc.pp.normalize_total with the same target_sum, then sc.pp.log1p), or give "
            "check_scale=False if these cells do express that much more or less."
        )


def warn_about_doses(labels: Sequence[str], measured: Sequence[str], parser: LabelParser) -> None:
    """Warn of doses beyond the measured ones of their perturbation, where nothing says how its response goes on."""
    if not parser.has_dose:
        return
    doses: dict[str, list[float]] = {}
    for component in (c for label in measured for c in parser.components(label)):
        if component.dose is not None:
            doses.setdefault(component.name, []).append(component.dose)
    beyond = {}
    for component in (c for label in labels for c in parser.components(label)):
        known = doses.get(component.name)
        if component.dose is not None and known and not min(known) <= component.dose <= max(known):
            beyond[str(component)] = f"{component.name} was measured from {min(known):.10g} to {max(known):.10g}"
    if beyond:
        first, why = next(iter(beyond.items()))
        more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        warn(
            f"{first}{more}: beyond the measured doses ({why}). Nothing in the data says how the response goes on; "
            "predictions stay near that of the nearest measured dose, however far the dose is."
        )


def some_cells(screen: Screen, rows: np.ndarray) -> Any:
    """Return the expression of some of the cells, spread over all of them."""
    return screen.expression[rows[:: -(-len(rows) // _SCALE_CELLS)]]


def mean_expression(cells: Any) -> np.ndarray:
    """Return the mean of each gene over cells."""
    return np.asarray(cells.mean(axis=0), dtype=np.float64).ravel()


@dataclass(frozen=True)
class PredictionPlan:
    """What is to be predicted: conditions, and the control cells that each starts from.

    ``labels`` are the perturbations as they were requested, which may be another spelling than the model's.
    """

    conditions: tuple[Condition, ...]
    labels: tuple[str, ...]
    requests: tuple[ConditionRequest, ...]

    @property
    def n_cells(self) -> int:
        """Number of cells that will be predicted."""
        return sum(self.sizes.values())

    @property
    def sizes(self) -> dict[Condition, int]:
        """Number of cells of each condition."""
        return {c: len(r.controls) for c, r in zip(self.conditions, self.requests, strict=True)}

    @property
    def stops(self) -> np.ndarray:
        """Row after the last cell of each condition, int64 ``[conditions]``."""
        return np.cumsum([len(request.controls) for request in self.requests])

    @property
    def start_rows(self) -> np.ndarray:
        """The control cell that each predicted cell starts from, int64 ``[n_cells]``."""
        return np.concatenate([request.controls for request in self.requests])

    @property
    def rows_read(self) -> np.ndarray:
        """All control cells that the prediction reads, also to fill up windows, int64, ascending."""
        pools = {id(request.pool): request.pool for request in self.requests}  # of contexts, each looked at once
        return np.unique(np.concatenate([*pools.values(), self.start_rows]))

    def part(self, first: int, stop: int) -> PredictionPlan:
        """Return the conditions from ``first`` to before ``stop``."""
        return PredictionPlan(self.conditions[first:stop], self.labels[first:stop], self.requests[first:stop])

    def with_prior(self, corrected: np.ndarray, *, has_cells: bool, is_paired: bool) -> PredictionPlan:
        """Return the plan with what the network corrects, and the rows of a prior's cells in their order."""
        requests = tuple(
            replace(
                request,
                keeps_residual_input=not yes,
                residual_input=np.arange(stop - len(request.controls), stop) if has_cells else None,
                is_paired=is_paired,
            )
            for request, yes, stop in zip(self.requests, corrected.tolist(), self.stops, strict=True)
        )
        return replace(self, requests=requests)

    def obs(self, screen: Screen, keys: ScreenKeys) -> pd.DataFrame:
        """Return ``obs`` of the prediction: columns as in the training data, and the control cell of each."""
        start = self.start_rows
        # labels are repeated as numbers, never compared as text once a cell
        of_cell = np.repeat(np.arange(len(self.requests)), [len(r.controls) for r in self.requests])
        by_condition: dict[str, Any] = dict(label_columns(self.labels, keys))
        if keys.context_key is not None:
            by_condition[keys.context_key] = [c.context for c in self.conditions]
        columns: dict[str, Any] = {}
        for key, values in by_condition.items():
            array = np.asarray(values)
            columns[key] = array[of_cell] if array.dtype.kind == "f" else _repeated(values, of_cell)
        if keys.batch_key is not None and screen.batch is not None:
            columns.setdefault(keys.batch_key, _repeated(screen.batch.names, screen.batch.codes[start]))
        obs = pd.DataFrame(columns, index=[f"predicted_{i}" for i in range(len(start))])
        name = OBS.ORIGIN if OBS.ORIGIN not in columns else OBS.ORIGIN_CELL  # never in place of a label
        obs[name] = np.asarray(screen.cells[start], dtype=object).astype(str)
        return obs


def _repeated(values: Sequence[str], codes: np.ndarray) -> pd.Categorical:
    """Return ``values[codes]`` with sorted categories, and none that does not occur."""
    names, code = np.unique(np.asarray(values, dtype=str), return_inverse=True)
    used, place = np.unique(code[codes], return_inverse=True)
    return pd.Categorical.from_codes(place, categories=names[used].astype(object))


#: Memory of the labels of one predicted cell: its name, that of its control cell, and its row there.
_BYTES_OF_LABELS = 200


def plan_prediction(request: PredictionRequest, data: PredictionData) -> PredictionPlan:
    """Resolve labels, as :func:`resolve_conditions` does, and draw start cells.

    Every condition draws from a generator of its own, seeded by the seed and its two labels: a prediction does not
    depend on what else is requested.
    """
    n_cells, index, table = request.n_cells, data.screen.index, data.spec.table
    found = resolve_conditions(data, perturbations=request.perturbations, contexts=request.contexts)
    if isinstance(n_cells, Mapping):
        found = {asked: known for asked, known in found.items() if asked in n_cells}
        if not found:
            raise ValueError(
                f"n_cells names none of the requested conditions; its keys are (context, perturbation), "
                f"e.g. {list(n_cells)[:2]}."
            )
    pools = {context: index.controls(context) for context in dict.fromkeys(c.context for c in found)}
    asked_for = n_cells.values() if isinstance(n_cells, Mapping) else [n_cells] * len(found)
    total = sum(n for n in asked_for if isinstance(n, int | np.integer))
    in_memory = request.path is None and request.output != "counts"
    width = (4 * len(data.spec.genes) if in_memory else 0) * (1 + request.control_layer)
    remedy = "Lower n_cells" + (", or write the prediction to a file with path=..." if in_memory else "")
    verify_memory("cells to predict", total, width + _BYTES_OF_LABELS, f"{remedy}.")
    requests = []
    for asked, condition in found.items():
        n = n_cells[asked] if isinstance(n_cells, Mapping) else n_cells
        if n is not None and (not isinstance(n, int | np.integer) or n < 1):
            raise ValueError(f"n_cells={n!r} must be a whole number of 1 or more.")
        seed = (request.seed, *(zlib.crc32(label.encode()) for label in condition))
        controls = pools[condition.context]
        start = _start_cells(controls, n, np.random.default_rng(seed))
        requests.append(
            ConditionRequest(start, table.row(condition.perturbation), controls, (*seed, STREAMS.PREDICTED_SETS))
        )
    plan = PredictionPlan(tuple(found.values()), tuple(asked.perturbation for asked in found), tuple(requests))
    if request.progress:
        n_rows = len(table.names) - (index.control in table.row_of)
        some = request.perturbations is None and len(data.perturbations) < n_rows
        left_out = f"; perturbations='all' asks for all {n_rows:,} of the embedding table" if some else ""
        several = "condition" if len(requests) == 1 else "conditions"
        logger.info(f"predicting {plan.n_cells:,} cells of {len(requests):,} {several}{left_out}.")
    return plan


def _start_cells(controls: np.ndarray, n_cells: int | None, rng: np.random.Generator) -> np.ndarray:
    """Draw control rows, each once before any comes again."""
    n = len(controls) if n_cells is None else n_cells
    return np.concatenate([rng.permutation(controls) for _ in range(-(-n // len(controls)))])[:n]


def resolve_conditions(
    data: PredictionData, *, perturbations: Sequence[str] | None, contexts: Sequence[str] | None
) -> dict[Condition, Condition]:
    """Return each requested condition, as it was spelled, and the same in the table's spelling."""
    index, table = data.screen.index, data.spec.table
    if isinstance(perturbations, str) and perturbations == "all" and "all" not in table.row_of:
        perturbations = [n for n in table.names if n != index.control]
    for given, what in ((perturbations, "perturbations"), (contexts, "contexts")):
        if isinstance(given, str):
            raise TypeError(f"{what} is a list of labels; got the text {given!r}, write [{given!r}].")
        if given is not None and (len(given) == 0 or len(set(given)) < len(given)):
            raise ValueError(f"{what} must name each label once, and at least one; got {list(given)[:10]}.")
    if perturbations is None:
        perturbations = data.perturbations
    else:
        perturbations = [str(p) for p in perturbations]
        parser = None if table.composition is None else table.composition.parser
        for label in perturbations:
            # its row would give it the mean effect of all perturbations
            if label == index.control or (parser is not None and parser.is_control(label)):
                raise ValueError(
                    f"perturbations names {label!r}, which is the control ({index.control!r}): control cells are what "
                    "predictions start from, and are in the data. Name perturbations, or leave the argument out for "
                    "those of the data."
                )
    chosen = _chosen_contexts(index, None if contexts is None else [str(c) for c in contexts])
    known = _known_names(table, perturbations)
    return {Condition(c, p): Condition(c, known[p]) for c in chosen for p in perturbations}


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


def _separator(labels: Sequence[str], known: Sequence[str]) -> str | None:
    """Return what joins labels of known parts, or parts of known labels, if something does."""
    whole = {*known}
    parts = {s: {part for label in known for part in label.split(s)} - whole for s in "+|&;"}
    for separator, of_known in parts.items():
        for label in labels:
            if label in of_known or (separator in label and {*label.split(separator)} & (whole | of_known)):
                return separator
    return None


def _known_names(table: EmbeddingTable, labels: Sequence[str]) -> dict[str, str]:
    """Return the table's spelling of every label."""
    known = {label: table.known_name(label) for label in labels}
    unknown = [label for label, name in known.items() if name not in table.row_of]
    for label in unknown:
        if table.composition is not None and (part := table.composition.parser.repeated(label)):
            raise ValueError(
                f"perturbation {label!r} names {part!r} twice, and was not measured: {part!r} would count twice. Name "
                "each part of a combination once."
            )
    if unknown:
        composition = table.composition
        names = unknown if composition is None else [c for u in unknown for c in composition.unknown_components(u)]
        near = "; ".join(f"{n!r}{nearest_names(n, table.components.names)}" for n in dict.fromkeys(names[:5]))
        separator = None if composition is not None else _separator(unknown, table.components.names)
        remedy = (
            f"it takes each label as a whole; if {separator!r} joins the parts of combinations, say so in "
            f"setup_anndata(..., combination_separator={separator!r})"
            if separator is not None
            else "it was trained with one-hot labels and can only predict those; register a perturbation_embedding_key "
            "to predict new ones"
            if table.components.one_hot
            else "add their rows to the perturbation-embedding table of the data"
        )
        raise ValueError(f"the model knows no perturbation {near}: {remedy}.")
    if len(set(known.values())) < len(known):
        raise ValueError(f"perturbations must name each label once; some of {list(known)[:10]} mean the same.")
    return known
