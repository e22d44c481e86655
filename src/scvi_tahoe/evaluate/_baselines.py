"""Baselines: simple predictors to compare a model with, by name, as cells whose means are exact.

None of them looks at an observed cell of a held-out condition. Shapes: **C** cells, **G** genes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import pandas as pd

from scvi_tahoe._arguments import checked
from scvi_tahoe._names import Registry
from scvi_tahoe.evaluate._arithmetic import SeenChanges
from scvi_tahoe.evaluate._cells import CellTable, align_genes, cells_from_adata, dense
from scvi_tahoe.evaluate._exact_means import chosen_rows, column_mean, generator, scaled_to_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

    from scvi_tahoe.evaluate._cells import Matrix

    Predict = Callable[["BaselineInputs", int], CellTable]


#: rows of several embedding tables, by the name of the table
Tables: TypeAlias = "Mapping[str, Mapping[str, NDArray[np.float64]]]"


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A simple predictor."""

    #: returns predicted cells for its inputs and a random seed
    predict: Predict
    #: whether it is computed from training data, and from perturbation embeddings
    needs_train: bool = True
    needs_embeddings: bool = False
    #: whether it needs conditions whose perturbation was seen in another context
    needs_elsewhere: bool = False
    #: whether it needs combinations whose components were seen alone
    needs_parts: bool = False
    #: whether every evaluation shows it where it applies
    shown: bool = True


#: names that ``baseline=...`` and :func:`baseline_prediction` take
BASELINES: Registry[Baseline] = Registry("baseline")


def register_baseline(name: str, **kind: bool) -> Callable[[Predict], Predict]:
    """Register the decorated function as a baseline; ``kind`` are the attributes of :class:`Baseline`."""

    def register(predict: Predict) -> Predict:
        BASELINES.register(name, Baseline(predict=predict, **kind))
        return predict

    return register


def find_baseline(name: str) -> tuple[Baseline, str | None]:
    """Find a baseline and the embedding table it names, as in ``"ridge:esm2"``."""
    kind, _, table = name.partition(":")
    return BASELINES.find(kind), table or None


@dataclass(frozen=True)
class BaselineInputs:
    """Everything a baseline knows; the observed cells of held-out conditions are not part of it."""

    #: training cells over the same genes, for the baselines that need them
    train: CellTable
    #: real control cells of each context to predict, ``[C, G]``
    controls: Mapping[str, Matrix]
    #: cells to predict for each perturbation of each context. If None, all control cells, or all that are moved
    n_cells: Mapping[str, Mapping[str, int | None]]
    #: label of control cells
    control: str
    #: gene names, ``[G]``
    genes: NDArray[np.str_]
    #: vector of each perturbation, for the baselines that need them
    embeddings: Mapping[str, NDArray[np.float64]]
    #: text between the perturbations of a combination; None without combinations
    combination_separator: str | None = None

    @cached_property
    def seen(self) -> dict[str, tuple[str, ...]]:
        """Training perturbations of each training context."""
        return {c: self.train.perturbations(c, control=self.control) for c in self.train.contexts}

    @cached_property
    def changes(self) -> SeenChanges:
        """Changes of the training conditions, and what can be made of them."""
        conditions = [(p, c) for c, seen in self.seen.items() for p in seen]
        if not conditions:
            raise ValueError(f"The training data hold control cells ({self.control!r}) only: there is no mean delta.")
        controls = {c: column_mean(self.train_controls(c)) for c, seen in self.seen.items() if seen}
        changes = np.stack([column_mean(self.train.block(c, p)) - controls[c] for p, c in conditions])
        perturbations, contexts = (np.array(labels) for labels in zip(*conditions, strict=True))
        return SeenChanges(perturbations, contexts, changes)

    def train_controls(self, context: str) -> Matrix:
        """Control cells of a context in the training data, else the real ones that the prediction starts from."""
        if (context, self.control) in self.train.rows:
            return self.train.block(context, self.control)
        if context in self.controls:
            return self.controls[context]
        raise ValueError(f"The training data have no control cells ({self.control!r}) in context {context!r}.")

    def mean_delta(self, context: str) -> NDArray[np.float64]:
        """Mean of the training deltas of a context; mean of the other contexts' means if it has none, ``[G]``."""
        return cast("NDArray[np.float64]", self.changes.mean(context))

    def other_contexts(self, context: str, perturbation: str) -> list[str]:
        """Other training contexts in which a perturbation was seen."""
        return [other for other, seen in self.seen.items() if other != context and perturbation in seen]


def verify_baseline(
    name: str, train: CellTable | None, embeddings: Tables | None, combination_separator: str | None
) -> None:
    """Reject a baseline that does not exist or lacks what it is computed from."""
    kind, table = find_baseline(name)
    if kind.needs_embeddings and not embeddings:
        raise ValueError(
            f"The baseline {name!r} needs perturbation embeddings: pass perturbation_embedding=... to "
            "baseline_prediction or EvaluationReference.from_adata."
        )
    if kind.needs_parts and combination_separator is None:
        raise ValueError(
            f"The baseline {name!r} needs the text between the parts of a combination: pass "
            "combination_separator=..., such as '+' in 'KLF1+MAP2K6'."
        )
    if table is not None and table not in (embeddings or {}):
        raise ValueError(
            f"The baseline {name!r} names an embedding table that was not given: {list(embeddings or {})}."
        )
    if kind.needs_train and train is None:
        raise ValueError(
            f"The baseline {name!r} is computed from training data: pass train=<AnnData the model was trained on>, "
            'or choose baseline="control" or baseline=None.'
        )


def chosen_baseline(
    baseline: Any, train: CellTable | None, embeddings: Tables | None, combination_separator: str | None
) -> Any:
    """Return the name of the baseline that scores are scaled from, with ``"auto"`` resolved."""
    if not isinstance(baseline, str):
        return baseline
    name = baseline if baseline != "auto" else "control" if train is None else "train_mean"
    verify_baseline(name, train, embeddings, combination_separator)
    return name


def applicable_baselines(
    conditions: Mapping[str, Sequence[str]],
    train: CellTable | None,
    embeddings: Tables | None,
    *,
    control: str,
    combination_separator: str | None,
) -> list[str]:
    """Names of the baselines that an evaluation of these conditions shows."""
    seen = set() if train is None else {(c, p) for c, p in train.rows if p != control}
    elsewhere = any(other != c and p in wanted for c, wanted in conditions.items() for other, p in seen)
    single = {p for _, p in seen}
    wanted_parts = (parts_of(p, combination_separator, control) for wanted in conditions.values() for p in wanted)
    alone = any(len(parts) > 1 and single.issuperset(parts) for parts in wanted_parts)
    names = []
    for name, kind in BASELINES.items():
        if not kind.shown or (kind.needs_train and not seen) or (kind.needs_elsewhere and not elsewhere):
            continue
        if kind.needs_parts and not alone:
            continue
        if not kind.needs_embeddings:
            names.append(name)
            continue
        for table, rows in (embeddings or {}).items():
            known = {p for _, p in seen} & set(rows)
            if len(known) > 1 and all(p in rows for wanted in conditions.values() for p in wanted):
                names.append(f"{name}:{table}" if table else name)
    return names


def baseline_cells(
    name: str,
    held_out: CellTable,
    train: CellTable | None,
    *,
    control: str,
    embeddings: Tables | None,
    combination_separator: str | None,
    seed: int,
    n_cells: Literal["observed", "all"] = "observed",
) -> CellTable:
    """Predict every condition of the held-out cells, from their controls and numbers of cells."""
    verify_baseline(name, train, embeddings, combination_separator)
    kind, table = find_baseline(name)
    tables = embeddings or {}
    conditions = {c: held_out.perturbations(c, control=control) for c in held_out.contexts}
    counted = n_cells == "observed"
    inputs = BaselineInputs(
        train=cast("CellTable", train),
        controls={c: held_out.block(c, control) for c in conditions},
        n_cells={c: {p: len(held_out.rows[c, p]) if counted else None for p in ps} for c, ps in conditions.items()},
        control=control,
        genes=held_out.genes,
        embeddings=tables[table] if table is not None else next(iter(tables.values()), {}),
        combination_separator=combination_separator,
    )
    return kind.predict(inputs, seed)


def parts_of(label: str, combination_separator: str | None, control: str) -> list[str]:
    """Perturbations of a label, without the control."""
    parts = [label] if combination_separator is None else label.split(combination_separator)
    return [part for part in parts if part != control]


def assemble(inputs: BaselineInputs, predict: Callable[[str, str, int | None], Matrix]) -> CellTable:
    """Stack what ``predict(context, perturbation, n_cells)`` returns for every condition, sorted."""
    wanted = [(c, p, n) for c, perturbations in inputs.n_cells.items() for p, n in perturbations.items()]
    counts = [n for _, _, n in wanted if n is not None]
    if len(counts) == len(wanted):  # filled in place: the parts must not exist beside the whole
        expression = np.empty((sum(counts), len(inputs.genes)), dtype=np.float32)
        start = 0
        for context, perturbation, n in wanted:
            expression[start : start + cast("int", n)] = dense(predict(context, perturbation, n))
            start += cast("int", n)
    else:
        parts = [dense(predict(*condition)) for condition in wanted]
        counts = [len(part) for part in parts]
        expression = np.concatenate(parts).astype(np.float32)
    contexts, perturbations = (np.repeat([condition[i] for condition in wanted], counts) for i in (0, 1))
    names = np.array([f"predicted_{i}" for i in range(len(expression))])
    return CellTable(expression, perturbations, contexts, inputs.genes, names)


def shifted_controls(inputs: BaselineInputs, delta: Callable[[str, str], NDArray[np.floating]], seed: int) -> CellTable:
    """Control cells, each gene scaled to the control mean plus ``delta(context, perturbation)``, ``[G]``.

    The mean of the cells is exact: all control cells, or so many of them, without a draw with replacement and without
    clipping single cells at zero. Zeros and spread are those of real cells. Each condition has a random stream of its
    own, so it does not depend on which others are scored.
    """
    means = {context: column_mean(controls) for context, controls in inputs.controls.items()}

    def predict(context: str, perturbation: str, n: int | None) -> Matrix:
        controls, rng = inputs.controls[context], generator(seed, context, perturbation)
        if n is not None:
            controls = controls[chosen_rows(controls.shape[0], n, rng)]
        return scaled_to_mean(dense(controls), means[context] + delta(context, perturbation), rng)

    return assemble(inputs, predict)


@checked()
def baseline_prediction(
    name: str,
    held_out: AnnData,
    train: AnnData | None = None,
    *,
    perturbation_key: str,
    control: str,
    context_key: str | None = None,
    perturbation_embedding: Mapping[str, ArrayLike] | pd.DataFrame | tuple[Sequence[str], ArrayLike] | None = None,
    combination_separator: str | None = None,
    layer: str | None = None,
    n_cells: Literal["observed", "all"] = "observed",
    seed: int = 0,
) -> AnnData:
    """Return the cells that a simple baseline predicts for the held-out conditions.

    Only the control cells of ``held_out`` and the number of cells of each condition are used. Means are exact: each
    gene of the chosen control cells is scaled to the mean that the baseline predicts.

    Parameters
    ----------
    name
        One of :data:`BASELINES`:

        * ``"control"`` - control cells as they are
        * ``"train_mean"`` - moved by the mean training delta of their context
        * ``"train_mean_pooled"`` - by the mean training delta of all contexts
        * ``"context_transfer"`` - by the perturbation's own mean delta in other contexts
        * ``"deviation"`` - by the mean delta here plus the perturbation's deviation from the mean elsewhere
        * ``"additive"`` - a combination by the sum of its parts' deltas, each here or else in other contexts
        * ``"ridge"`` - by a ridge regression of training deltas on perturbation embeddings
        * ``"nearest"`` - by the mean delta of the five perturbations of most similar embedding
        * ``"cells_shifted"`` - the perturbation's cells of other contexts, scaled to the mean of ``context_transfer``
        * ``"cells_quantile"`` - its cells of other contexts, moved through the quantiles of the controls
        * ``"vcc2025_mean"`` - copies of the mean training profile: the baseline of the Virtual Cell Challenge 2025

        With several embedding tables a name such as ``"ridge:esm2"`` selects one; otherwise, the first is used.
    held_out
        Cells with the conditions to predict and the controls of their contexts; log1p expression.
    train
        Training data; every baseline except ``"control"`` needs it.
    perturbation_key, control, context_key, perturbation_embedding, combination_separator, layer
        As in :meth:`EvaluationReference.from_adata`, for both objects.
    n_cells
        Number of cells of each condition: as many as ``"observed"``, or ``"all"`` control cells of its context.
    seed
        Random seed for the choice of cells.

    Returns
    -------
    AnnData with float32 expression, ``[cells, genes]``, and the two label columns.
    """
    read = partial(cells_from_adata, perturbation_key=perturbation_key, context_key=context_key, layer=layer)
    cells = read(held_out, role="reference")
    known = None
    if train is not None:
        known = align_genes(read(train, role="training data"), cells.genes, role="training data")
    embeddings = embedding_tables(perturbation_embedding)
    predicted = baseline_cells(
        name, cells, known, control=control, embeddings=embeddings, combination_separator=combination_separator,
        seed=seed, n_cells=n_cells,
    )  # fmt: skip
    return predicted.to_adata(perturbation_key=perturbation_key, context_key=context_key)


def embedding_tables(embedding: Any) -> dict[str, dict[str, NDArray[np.float64]]] | None:
    """Read one embedding table, named ``""``, or several given by their names."""
    if embedding is None:
        return None
    if isinstance(embedding, Mapping) and set(embedding) != {"names", "matrix"}:
        kinds = {isinstance(table, (Mapping, pd.DataFrame, tuple)) for table in embedding.values()}
        if kinds == {True}:
            return {str(name): embedding_rows(table) for name, table in embedding.items()}
    return {"": embedding_rows(embedding)}


def embedding_rows(
    embedding: Mapping[str, ArrayLike] | pd.DataFrame | tuple[Sequence[str], ArrayLike],
) -> dict[str, NDArray[np.float64]]:
    """Read perturbation embeddings as the vector of each label; ``{"names": labels, "matrix": rows}`` is read, too."""
    labels: Any
    rows: Any
    if isinstance(embedding, pd.DataFrame):
        labels, rows = embedding.index, embedding.to_numpy(float)
    elif isinstance(embedding, Mapping) and set(embedding) == {"names", "matrix"}:
        labels, rows = np.ravel(embedding["names"]), embedding["matrix"]
    elif isinstance(embedding, Mapping):
        labels, rows = list(embedding), [np.ravel(vector) for vector in embedding.values()]
        if len(lengths := {len(row) for row in rows}) > 1:
            raise ValueError(f"Perturbation embeddings have different lengths: {sorted(lengths)}.")
    else:
        labels, rows = embedding
    names, matrix = pd.Index(labels).astype(str), np.asarray(rows, dtype=float)
    if len(names) != len(matrix) or names.has_duplicates:
        raise ValueError(
            f"Perturbation embeddings need one row a label; got {names.nunique()} labels and {len(matrix)} rows."
        )
    if not np.isfinite(matrix).all():
        bad = list(names[~np.isfinite(matrix).all(axis=1)][:3])
        raise ValueError(f"Perturbation embeddings must be finite; rows {bad} are not.")
    return dict(zip(names, matrix))


@register_baseline("control", needs_train=False)
def control(inputs: BaselineInputs, seed: int) -> CellTable:
    """Control cells of the context as they are."""
    return shifted_controls(inputs, lambda context, perturbation: np.zeros(len(inputs.genes)), seed)


@register_baseline("train_mean")
def train_mean(inputs: BaselineInputs, seed: int) -> CellTable:
    """Control cells moved by the mean training delta of their context."""
    return shifted_controls(inputs, lambda context, perturbation: inputs.mean_delta(context), seed)


@register_baseline("train_mean_pooled", shown=False)
def train_mean_pooled(inputs: BaselineInputs, seed: int) -> CellTable:
    """Control cells moved by the mean of the training deltas of all contexts, each condition counted once."""
    pooled = inputs.changes.changes.mean(axis=0)
    return shifted_controls(inputs, lambda context, perturbation: pooled, seed)


@register_baseline("context_transfer", needs_elsewhere=True)
def context_transfer(inputs: BaselineInputs, seed: int) -> CellTable:
    """Control cells moved by the perturbation's mean delta in other contexts, one vote each, else as `train_mean`."""

    def delta(context: str, perturbation: str) -> NDArray[np.float64]:
        found = inputs.changes.transfer(perturbation, context)
        return inputs.mean_delta(context) if found is None else found

    return shifted_controls(inputs, delta, seed)


@register_baseline("deviation", needs_elsewhere=True)
def deviation(inputs: BaselineInputs, seed: int) -> CellTable:
    """Control cells moved by the mean here plus what the perturbation differs from the mean in other contexts."""

    def delta(context: str, perturbation: str) -> NDArray[np.float64]:
        found = inputs.changes.deviation(perturbation, context)
        return inputs.mean_delta(context) if found is None else found

    return shifted_controls(inputs, delta, seed)


@register_baseline("additive", needs_parts=True)
def additive(inputs: BaselineInputs, seed: int) -> CellTable:
    """Control cells moved by the sum of a combination's parts, each alone here or else elsewhere, or as `train_mean`.

    Ahlmann-Eltze, Huber and Anders (Nature Methods 2025) found no network ahead of this sum.
    """

    def delta(context: str, perturbation: str) -> NDArray[np.float64]:
        parts = parts_of(perturbation, inputs.combination_separator, inputs.control)
        known = [inputs.changes.alone(part, context) for part in parts]
        found = [change for change in known if change is not None]
        return np.sum(found, axis=0) if len(found) == len(parts) else inputs.mean_delta(context)

    return shifted_controls(inputs, delta, seed)


@register_baseline("vcc2025_mean", shown=False)
def vcc2025_mean(inputs: BaselineInputs, seed: int) -> CellTable:
    """Repeat the mean of `train_mean` in every cell: what the challenge scales from (``cell-eval baseline``)."""

    def predict(context: str, perturbation: str, n: int | None) -> Matrix:
        controls = inputs.controls[context]
        profile = np.maximum(column_mean(controls) + inputs.mean_delta(context), 0)
        return np.repeat(profile[None], controls.shape[0] if n is None else n, axis=0)

    return assemble(inputs, predict)
