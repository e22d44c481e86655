"""Baselines: simple predictors that a model has to beat, by name.

None of them looks at an observed cell of a held-out condition. Shapes: **C** cells, **G** genes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from scvi_tahoe._names import Registry
from scvi_tahoe.evaluate._cells import CellTable, align_genes, cells_from_adata, dense

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

    from scvi_tahoe.evaluate._cells import Matrix

    Predict = Callable[["BaselineInputs", int], CellTable]


@dataclass(frozen=True)
class Baseline:
    """A simple predictor."""

    #: returns predicted cells for its inputs and a random seed
    predict: Predict
    #: whether it is computed from training data, and from perturbation embeddings
    needs_train: bool = True
    needs_embeddings: bool = False


#: names that ``baseline=...`` and :func:`baseline_prediction` take
BASELINES: Registry[Baseline] = Registry("baseline")


def register_baseline(
    name: str, *, needs_train: bool = True, needs_embeddings: bool = False
) -> Callable[[Predict], Predict]:
    """Register the decorated function as a baseline."""

    def register(predict: Predict) -> Predict:
        BASELINES.register(name, Baseline(predict, needs_train, needs_embeddings))
        return predict

    return register


@dataclass(frozen=True)
class BaselineInputs:
    """Everything a baseline knows; the observed cells of held-out conditions are not part of it."""

    #: training cells over the same genes, for the baselines that need them
    train: CellTable
    #: real control cells of each context to predict, ``[C, G]``
    controls: Mapping[str, Matrix]
    #: cells to predict for each perturbation of each context
    n_cells: Mapping[str, Mapping[str, int]]
    #: label of control cells
    control: str
    #: gene names, ``[G]``
    genes: NDArray[np.str_]
    #: vector of each perturbation, for the baselines that need them
    embeddings: Mapping[str, NDArray[np.float64]]
    _deltas: dict[tuple[str, str], NDArray[np.float64]] = field(default_factory=dict, repr=False)

    @cached_property
    def seen(self) -> dict[str, tuple[str, ...]]:
        """Training perturbations of each training context."""
        return {c: self.train.perturbations(c, control=self.control) for c in self.train.contexts}

    def train_controls(self, context: str) -> Matrix:
        """Control cells of a context in the training data, else the real ones that the prediction starts from."""
        if (context, self.control) in self.train.rows:
            return self.train.block(context, self.control)
        if context in self.controls:
            return self.controls[context]
        raise ValueError(f"The training data have no control cells ({self.control!r}) in context {context!r}.")

    def delta(self, context: str, perturbation: str) -> NDArray[np.float64]:
        """Mean of the training cells of a condition minus the mean of the controls of its context, ``[G]``."""
        key = (context, perturbation)
        if key not in self._deltas:
            control = (context, self.control)
            if control not in self._deltas:
                self._deltas[control] = column_mean(self.train_controls(context))
            self._deltas[key] = column_mean(self.train.block(*key)) - self._deltas[control]
        return self._deltas[key]

    def mean_delta(self, context: str) -> NDArray[np.float64]:
        """Mean of the training deltas of a context; mean of the other contexts' means if it has none, ``[G]``."""
        by_context = {c: seen for c, seen in self.seen.items() if seen}
        if not by_context:
            raise ValueError(f"The training data hold control cells ({self.control!r}) only: there is no mean delta.")
        if context in by_context:
            return np.mean([self.delta(context, p) for p in by_context[context]], axis=0)
        return np.mean([self.mean_delta(other) for other in by_context], axis=0)

    def other_contexts(self, context: str, perturbation: str) -> list[str]:
        """Other training contexts in which a perturbation was seen."""
        return [other for other, seen in self.seen.items() if other != context and perturbation in seen]


def verify_baseline(name: str, train: CellTable | None, embeddings: Mapping[str, Any] | None) -> None:
    """Reject a baseline that does not exist or lacks what it is computed from."""
    kind = BASELINES.find(name)
    if kind.needs_embeddings and embeddings is None:
        raise ValueError(
            f"The baseline {name!r} needs perturbation embeddings: pass perturbation_embedding=... to "
            "baseline_prediction or EvaluationReference.from_adata."
        )
    if kind.needs_train and train is None:
        raise ValueError(
            f"The baseline {name!r} is computed from training data: pass train=<AnnData the model was trained on>, "
            'or choose baseline="control" or baseline=None.'
        )


def baseline_cells(
    name: str,
    held_out: CellTable,
    train: CellTable | None,
    *,
    control: str,
    embeddings: Mapping[str, NDArray[np.float64]] | None,
    seed: int,
) -> CellTable:
    """Predict every condition of the held-out cells, from their controls and numbers of cells."""
    verify_baseline(name, train, embeddings)
    conditions = {c: held_out.perturbations(c, control=control) for c in held_out.contexts}
    inputs = BaselineInputs(
        train=cast("CellTable", train),
        controls={c: held_out.block(c, control) for c in conditions},
        n_cells={c: {p: len(held_out.rows[c, p]) for p in wanted} for c, wanted in conditions.items()},
        control=control,
        genes=held_out.genes,
        embeddings=embeddings or {},
    )
    return BASELINES.find(name).predict(inputs, seed)


def assemble(inputs: BaselineInputs, predict: Callable[[str, str, int], Matrix]) -> CellTable:
    """Stack what ``predict(context, perturbation, n_cells)`` returns for every condition, sorted."""
    n_cells = sum(n for wanted in inputs.n_cells.values() for n in wanted.values())
    # filled in place: the parts must not exist beside the whole
    expression = np.empty((n_cells, len(inputs.genes)), dtype=np.float32)
    perturbations: list[str] = []
    contexts: list[str] = []
    for context, wanted in inputs.n_cells.items():
        for perturbation, n in wanted.items():
            start = len(perturbations)
            expression[start : start + n] = dense(predict(context, perturbation, n))
            perturbations += [perturbation] * n
            contexts += [context] * n
    names = np.array([f"predicted_{i}" for i in range(n_cells)])
    return CellTable(expression, np.array(perturbations), np.array(contexts), inputs.genes, names)


def column_mean(matrix: Matrix) -> NDArray[np.float64]:
    """Mean over cells in float64, ``[G]``."""
    return np.asarray(matrix.mean(axis=0, dtype=np.float64)).ravel()


def shifted_controls(inputs: BaselineInputs, delta: Callable[[str, str], NDArray[np.floating]], seed: int) -> CellTable:
    """Control cells drawn with replacement, plus ``delta(context, perturbation)``, ``[G]``, clipped at zero.

    Every context has a random stream of its own, so its baseline does not depend on which others are scored.
    """
    # one stream beside that of the moved cells, so that which control is drawn says nothing about quantile ties
    generators = {context: np.random.default_rng(seed + 1) for context in inputs.n_cells}

    def predict(context: str, perturbation: str, n: int) -> NDArray[np.floating]:
        controls = inputs.controls[context]
        drawn = dense(controls[generators[context].choice(controls.shape[0], n)])
        return np.maximum(drawn + delta(context, perturbation), 0)

    return assemble(inputs, predict)


def baseline_prediction(
    name: str,
    held_out: AnnData,
    train: AnnData | None = None,
    *,
    perturbation_key: str,
    control: str,
    context_key: str | None = None,
    perturbation_embedding: Mapping[str, ArrayLike] | pd.DataFrame | tuple[Sequence[str], ArrayLike] | None = None,
    layer: str | None = None,
    seed: int = 0,
) -> AnnData:
    """Return the cells that a simple baseline predicts for the held-out conditions.

    Only the control cells of ``held_out`` and the number of cells of each condition are used.

    Parameters
    ----------
    name
        One of :data:`BASELINES`:

        * ``"control"`` - control cells as they are
        * ``"train_mean"`` - control cells plus the mean training delta of their context
        * ``"train_mean_pooled"`` - plus the mean training delta of all contexts
        * ``"context_transfer"`` - plus the perturbation's own mean delta in other contexts
        * ``"cells_shifted"`` - its cells of other contexts, shifted by the control means
        * ``"cells_quantile"`` - its cells of other contexts, moved through the quantiles of the controls
        * ``"ridge"`` - plus a ridge regression of training deltas on perturbation embeddings
        * ``"nearest"`` - plus the mean delta of the five perturbations of most similar embedding
    held_out
        Cells with the conditions to predict and the controls of their contexts; log1p expression.
    train
        Training data; every baseline but ``"control"`` needs it.
    perturbation_key, control, context_key, perturbation_embedding, layer
        As in :meth:`EvaluationReference.from_adata`, for both objects.
    seed
        Random seed for drawing cells.

    Returns
    -------
    AnnData with float32 expression, ``[cells, genes]``, and the two label columns.
    """
    read = partial(cells_from_adata, perturbation_key=perturbation_key, context_key=context_key, layer=layer)
    cells = read(held_out, role="reference")
    known = None
    if train is not None:
        known = align_genes(read(train, role="training data"), cells.genes, role="training data")
    embeddings = embedding_rows(perturbation_embedding)
    predicted = baseline_cells(name, cells, known, control=control, embeddings=embeddings, seed=seed)
    return predicted.to_adata(perturbation_key=perturbation_key, context_key=context_key)


def embedding_rows(
    embedding: Mapping[str, ArrayLike] | pd.DataFrame | tuple[Sequence[str], ArrayLike] | None,
) -> dict[str, NDArray[np.float64]] | None:
    """Read perturbation embeddings as the vector of each label; ``{"names": labels, "matrix": rows}`` is read, too."""
    if embedding is None:
        return None
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
    """Control cells of the context as they are, drawn with replacement."""
    return shifted_controls(inputs, lambda context, perturbation: np.zeros(len(inputs.genes)), seed)


@register_baseline("train_mean")
def train_mean(inputs: BaselineInputs, seed: int) -> CellTable:
    """Control cells moved by the mean training delta of their context, as the challenge of 2025 scales from."""
    return shifted_controls(inputs, lambda context, perturbation: inputs.mean_delta(context), seed)


@register_baseline("train_mean_pooled")
def train_mean_pooled(inputs: BaselineInputs, seed: int) -> CellTable:
    """Control cells moved by the mean of the training deltas of all contexts, each condition counted once."""
    pooled = np.mean([inputs.delta(c, p) for c, seen in inputs.seen.items() for p in seen], axis=0)
    return shifted_controls(inputs, lambda context, perturbation: pooled, seed)


@register_baseline("context_transfer")
def context_transfer(inputs: BaselineInputs, seed: int) -> CellTable:
    """Control cells moved by the perturbation's mean delta in other contexts, one vote each, else as `train_mean`."""

    def delta(context: str, perturbation: str) -> NDArray[np.float64]:
        elsewhere = [inputs.delta(other, perturbation) for other in inputs.other_contexts(context, perturbation)]
        return np.mean(elsewhere, axis=0) if elsewhere else inputs.mean_delta(context)

    return shifted_controls(inputs, delta, seed)
