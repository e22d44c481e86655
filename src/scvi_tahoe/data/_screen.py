"""A screen: expression, labels and control, read from AnnData or MuData, and the cells of each condition."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from scvi_tahoe._constants import ALL_CONTEXT
from scvi_tahoe.data._perturbations import DOSE_MARK, EmbeddingTable, LabelParser, TableFusion, with_dose

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scvi_tahoe._compat import AnnOrMuData
    from scvi_tahoe.data._perturbations import Combination


@dataclass(frozen=True)
class CellLabels:
    """One categorical column: ``codes[i]`` is the position in ``names`` of cell i's label.

    ``names`` are sorted, as strings, and each occurs in at least one cell.
    """

    codes: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def from_values(cls, values: Any) -> CellLabels:
        """Encode any column; unused categories are left out."""
        codes, found = pd.factorize(values if hasattr(values, "dtype") else np.asarray(values), use_na_sentinel=False)
        # text is made of each label, not of each cell
        names, code = np.unique(np.asarray(found).astype(str), return_inverse=True)
        return cls(codes=code.astype(np.int64)[codes], names=tuple(names.tolist()))

    def code(self, name: str) -> int:
        """Position of a label; KeyError if no cell has it."""
        if name not in self.names:
            raise KeyError(name)
        return self.names.index(name)


class Condition(NamedTuple):
    """One perturbation in one context."""

    context: str
    perturbation: str

    def __str__(self) -> str:
        return f"{self.perturbation} in {self.context}"


@dataclass(frozen=True)
class ControlPools:
    """Control cells in pools; each cell of the screen points to the pool it draws controls from.

    With batches a pool is the controls of one batch in one context; cells of a batch without controls draw from their
    whole context. Pools lie one after the other in ``rows``.
    """

    rows: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    pool_of_cell: np.ndarray

    def draw(self, cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One control row for each given cell, uniformly from its pool; the shape is kept."""
        pool = self.pool_of_cell[cells]
        offset = np.floor(rng.random(cells.shape) * self.sizes[pool]).astype(np.int64)
        return self.rows[self.starts[pool] + offset]


@dataclass(frozen=True)
class ConditionIndex:
    """Rows of every condition, and of the controls of every context."""

    conditions: tuple[Condition, ...]  #: conditions with at least one perturbed cell, sorted
    condition_of_cell: np.ndarray  #: position in ``conditions`` for each cell; -1 for controls
    context: CellLabels
    perturbation: CellLabels
    batch: CellLabels | None
    control: str  #: the control label
    weight_of_condition: np.ndarray | None = None  #: that of its context, float64; None if all are 1

    @classmethod
    def from_screen(cls, screen: Any) -> ConditionIndex:
        """Index a :class:`Screen`; its ``index`` is made once."""
        context, perturbation, control = screen.context, screen.perturbation, screen.control
        is_control = np.asarray([n == control for n in perturbation.names])[perturbation.codes]
        joint = context.codes * len(perturbation.names) + perturbation.codes
        present, position = np.unique(joint[~is_control], return_inverse=True)
        condition_of_cell = np.full(len(joint), -1, dtype=np.int64)
        condition_of_cell[~is_control] = position
        pairs = (divmod(j, len(perturbation.names)) for j in present)
        conditions = tuple(Condition(context.names[i], perturbation.names[j]) for i, j in pairs)
        weights = np.array([screen.context_weights.get(c.context, 1.0) for c in conditions])
        return cls(
            conditions, condition_of_cell, context, perturbation, screen.batch, control,
            None if (weights == 1).all() else weights,
        )  # fmt: skip

    @property
    def is_control(self) -> np.ndarray:
        """Whether each cell is a control."""
        return self.condition_of_cell < 0

    @property
    def contexts(self) -> tuple[str, ...]:
        """All contexts, those with controls only included."""
        return self.context.names

    @property
    def perturbations(self) -> tuple[str, ...]:
        """All perturbations but the control."""
        return tuple(n for n in self.perturbation.names if n != self.control)

    @property
    def perturbations_recur(self) -> bool:
        """Whether a perturbation is in more than one context."""
        return len(self.conditions) > len(self.perturbations)

    def controls(self, context: str) -> np.ndarray:
        """Rows of the control cells of a context, in the order of the data."""
        return np.flatnonzero(self.is_control & (self.context.codes == self.context.code(context)))

    def rows(self, condition: Condition) -> np.ndarray:
        """Rows of the perturbed cells of a condition; empty if there are none."""
        if condition not in self.conditions:
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(self.condition_of_cell == self.conditions.index(condition))

    def weighted(self, rows: np.ndarray) -> np.ndarray:
        """Take those of some rows of perturbed cells whose weight is not 0."""
        weights = self.weight_of_condition
        return rows if weights is None else rows[weights[self.condition_of_cell[rows]] > 0]

    def by_condition(self, rows: np.ndarray) -> dict[int, np.ndarray]:
        """Group rows by the position of their condition in ``conditions``, each group in the order of ``rows``."""
        condition = self.condition_of_cell[rows]
        order = np.argsort(condition, kind="stable")
        present, starts = np.unique(condition[order], return_index=True)
        return dict(zip(present.tolist(), np.split(rows[order], starts[1:]), strict=True))

    def control_pools(self) -> ControlPools:
        """Pools of control cells, matched by context and, where the screen has batches, by batch."""
        control_rows = np.flatnonzero(self.is_control)
        n_batches = 1 if self.batch is None else len(self.batch.names)
        batch = np.zeros(len(self.context.codes), np.int64) if self.batch is None else self.batch.codes
        # pools 0 .. n_contexts-1 hold whole contexts; then one pool for each (context, batch)
        fine = len(self.contexts) + self.context.codes * n_batches + batch
        n_pools = len(self.contexts) * (1 + n_batches)
        member = np.concatenate([self.context.codes[control_rows], fine[control_rows]])
        rows = np.tile(control_rows, 2)[np.argsort(member, kind="stable")]
        sizes = np.bincount(member, minlength=n_pools)
        pool_of_cell = np.where(sizes[fine] > 0, fine, self.context.codes)
        return ControlPools(rows, np.cumsum(sizes) - sizes, sizes, pool_of_cell)


def combines_measured_components(index: ConditionIndex, parser: LabelParser) -> bool:
    """Whether at least half of the combinations of a screen have components that were all measured alone."""
    components = [parser.components(label) for label in index.perturbations]
    alone = {of_label[0] for of_label in components if len(of_label) == 1}
    measured = [alone.issuperset(of_label) for of_label in components if len(of_label) > 1]
    return bool(measured) and 2 * sum(measured) >= len(measured)


@dataclass(frozen=True, kw_only=True)
class ScreenKeys:
    """Where a screen keeps its parts: the arguments of ``setup_anndata`` and ``setup_mudata``."""

    perturbation_key: str
    control: str
    layer: str | None = None
    cell_embedding_key: str | None = None
    perturbation_embedding_key: str | Sequence[str] | None = None
    context_key: str | None = None
    batch_key: str | None = None
    dose_key: str | None = None
    combination_separator: str | None = None
    combination: Combination = "sum"
    modalities: dict[str, str] = field(default_factory=dict)
    source_key: str | None = None
    weight_key: str | None = None

    def __post_init__(self) -> None:
        # labels are compared as text, so the control of a column of numbers may be given as a number
        object.__setattr__(self, "control", str(self.control))

    @property
    def table_keys(self) -> tuple[str, ...]:
        """Keys of ``uns`` with perturbation-embedding tables."""
        keys = self.perturbation_embedding_key
        return () if keys is None else (keys,) if isinstance(keys, str) else tuple(keys)

    @property
    def parser(self) -> LabelParser:
        """How perturbation labels are read."""
        separator, has_dose = self.combination_separator, self.dose_key is not None
        return LabelParser(control=self.control, combination_separator=separator, has_dose=has_dose)

    @property
    def expression_modality(self) -> str | None:
        """Modality that holds the expression of a MuData, or None for AnnData."""
        return self.modalities.get("expression")

    @property
    def embedding_modality(self) -> str | None:
        """Modality that holds the cell embedding of a MuData, or None."""
        return self.modalities.get("cell_embedding")

    @property
    def expression_place(self) -> str:
        """How messages call the expression matrix."""
        owner = "adata" if self.expression_modality is None else f"mdata[{self.expression_modality!r}]"
        return f"{owner}.X" if self.layer is None else f"{owner}.layers[{self.layer!r}]"

    @property
    def has_cell_embedding(self) -> bool:
        """Whether a cell embedding was registered."""
        return self.cell_embedding_key is not None or self.embedding_modality is not None


@dataclass(frozen=True)
class Screen:
    """A screen that was read. Matrices are the user's own, never copied or edited."""

    genes: np.ndarray  #: names of the columns of ``expression``
    cells: pd.Index  #: names of the rows
    expression: Any  #: cells x genes: numpy, scipy CSR/CSC, or a backed matrix; log1p of normalised counts
    cell_embedding: Any  #: cells x E, or None
    perturbation: CellLabels  #: labels of each cell
    context: CellLabels  #: labels of each cell
    batch: CellLabels | None  #: technical batch of each cell, or None
    control: str  #: the perturbation label of control cells
    context_sources: Mapping[str, str] = field(default_factory=dict)  #: data set of each context; empty if there is one
    context_weights: Mapping[str, float] = field(default_factory=dict)  #: weight of each context; empty if all are 1

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.cells)

    @cached_property
    def index(self) -> ConditionIndex:
        """Rows of every condition, and of the controls of every context."""
        return ConditionIndex.from_screen(self)


def expression_adata(data: AnnOrMuData, keys: ScreenKeys) -> AnnData:
    """AnnData that holds the expression: the object itself, or a modality of a MuData."""
    if not isinstance(data, MuData):
        return data
    if keys.expression_modality not in data.mod:
        raise KeyError(
            f"expression_modality={keys.expression_modality!r} is not in the MuData, which has {list(data.mod)}; "
            "give one of them, or the AnnData of that modality."
        )
    return data.mod[keys.expression_modality]


def obs_column(data: AnnOrMuData, keys: ScreenKeys, key: str) -> pd.Series:
    """Read a column of ``obs``; of a MuData, its own or the expression modality's, one value a cell of the latter."""
    expression = expression_adata(data, keys)
    if isinstance(data, MuData) and key in data.obs:
        # a MuData lists the cells of all its modalities, in an order of its own
        return data.obs[key].reindex(expression.obs_names)
    return expression.obs[key]


def condition_labels(data: AnnOrMuData, keys: ScreenKeys) -> np.ndarray:
    """Perturbation label of every cell, with its dose where the screen has doses (``"Trametinib@10"``).

    A perturbed cell without a positive dose for each component is a ValueError.
    """
    labels = obs_column(data, keys, keys.perturbation_key).astype(str).to_numpy()
    if keys.dose_key is None or (labels == keys.control).all():
        return labels
    pairs = pd.DataFrame({"label": labels, "dose": obs_column(data, keys, keys.dose_key).astype(object).to_numpy()})
    codes = pairs.groupby(["label", "dose"], sort=False, dropna=False).ngroup().to_numpy()
    pairs = pairs.iloc[np.unique(codes, return_index=True)[1]]
    return np.array([_dosed_label(label, dose, keys) for label, dose in pairs.itertuples(index=False)])[codes]


def _dosed_label(label: str, dose: Any, keys: ScreenKeys) -> str:
    names = keys.parser.split(label)
    if all(name == keys.control for name in names):
        return label
    doses: list[Any] = [dose] if len(names) == 1 or not isinstance(dose, str) else keys.parser.split(dose)
    if len(doses) != len(names):
        raise ValueError(
            f"obs[{keys.dose_key!r}] has {dose!r} for {label!r}; {len(names)} doses are needed, e.g. "
            f"{(keys.combination_separator or '').join(['1'] * len(names))!r}."
        )
    try:
        # the dose of a control part means nothing, like the part
        parts = [n if n == keys.control else with_dose(n, d) for n, d in zip(names, doses, strict=True)]
    except ValueError as error:
        raise ValueError(f"obs[{keys.dose_key!r}] (dose_key): {error} Only control cells may lack one.") from None
    return keys.parser.join(parts)


def label_columns(labels: Sequence[str], keys: ScreenKeys) -> dict[str, list[Any]]:
    """Columns of ``obs`` that say what labels say: the perturbation and, where the screen has doses, its dose.

    The inverse of :func:`condition_labels`. Doses are numbers; those of combinations are text, ``"1+10"``.
    """
    if keys.dose_key is None:
        return {keys.perturbation_key: list(labels)}
    parser, mark = keys.parser, (keys.combination_separator or "")
    pairs = [[text.rpartition(DOSE_MARK) for text in parser.split(label)] for label in labels]
    names = [mark.join(name or text for name, _, text in parts) for parts in pairs]
    doses: list[Any] = [mark.join(text if name else "1" for name, _, text in parts) for parts in pairs]
    if all(len(parts) == 1 for parts in pairs):
        doses = [float(dose) for dose in doses]
    return {keys.perturbation_key: names, str(keys.dose_key): doses}


def spelled_labels(data: AnnOrMuData, keys: ScreenKeys) -> np.ndarray:
    """Label of every cell's condition, perturbation and dose together, each condition in one spelling."""
    labels = CellLabels.from_values(condition_labels(data, keys))
    return np.array([keys.parser.spelling(name) for name in labels.names])[labels.codes]


def with_condition_labels(data: AnnOrMuData, keys: ScreenKeys) -> AnnData:
    """Label each condition once: perturbations and doses together, in one spelling.

    An AnnData whose labels are plain names is returned as it is.
    """
    adata = expression_adata(data, keys)
    if adata is data and not keys.parser.composes:
        return adata
    obs = adata.obs.assign(**{keys.perturbation_key: pd.Categorical(spelled_labels(data, keys))})
    if keys.context_key is not None:
        obs[keys.context_key] = obs_column(data, keys, keys.context_key)
    x = adata.to_memory().X if adata.isbacked else adata.X
    return AnnData(
        X=x,
        obs=obs,
        var=adata.var,
        layers={k: adata.layers[k] for k in adata.layers if k is not None},
        uns=dict(adata.uns),
    )


def embedding_adata(data: AnnOrMuData, keys: ScreenKeys) -> AnnData:
    """AnnData that holds the cell embedding: a modality of its own, or that of the expression."""
    own = isinstance(data, MuData) and keys.embedding_modality
    return data.mod[keys.embedding_modality] if own else expression_adata(data, keys)


def read_matrices(data: AnnOrMuData, keys: ScreenKeys) -> tuple[Any, Any]:
    """Expression, and the cell embedding or None."""
    adata, embedding = expression_adata(data, keys), None
    if keys.has_cell_embedding:
        owner = embedding_adata(data, keys)
        embedding = owner.X if keys.cell_embedding_key is None else owner.obsm[keys.cell_embedding_key]
    return (adata.X if keys.layer is None else adata.layers[keys.layer]), embedding


def read_screen(data: AnnOrMuData, keys: ScreenKeys) -> Screen:
    """Read a screen whose keys were verified."""
    expression, (matrix, embedding) = expression_adata(data, keys), read_matrices(data, keys)

    def labels(key: str | None) -> CellLabels | None:
        return None if key is None else CellLabels.from_values(obs_column(data, keys, key))

    context = labels(keys.context_key) or CellLabels(np.zeros(expression.n_obs, dtype=np.int64), (ALL_CONTEXT,))
    return Screen(
        genes=np.asarray(expression.var_names, dtype=object).astype(str),
        cells=expression.obs_names,
        expression=matrix,
        cell_embedding=embedding,
        perturbation=CellLabels.from_values(condition_labels(data, keys)),
        context=context,
        batch=labels(keys.batch_key),
        control=keys.control,
        context_sources={c: str(value) for c, value in _of_contexts(data, keys, "source_key", context).items()},
        context_weights={c: float(value) for c, value in _of_contexts(data, keys, "weight_key", context).items()},
    )


def _of_contexts(data: AnnOrMuData, keys: ScreenKeys, argument: str, context: CellLabels) -> dict[str, Any]:
    """Read a column that has one value in each context; new data may lack it."""
    key = getattr(keys, argument)
    try:
        values = None if key is None else obs_column(data, keys, key)
    except KeyError:
        values = None
    if values is None:
        return {}
    pairs = pd.DataFrame({"context": context.codes, "value": values.to_numpy()}).drop_duplicates()
    if pairs["context"].duplicated().any():
        name = context.names[int(pairs["context"][pairs["context"].duplicated()].iloc[0])]
        found = pairs["value"][pairs["context"] == context.code(name)].tolist()
        raise ValueError(
            f"obs[{key!r}] ({argument}) has several values in the context {name!r}: {found[:3]}; contexts need one "
            "each, so name contexts of different data sets differently, as scvi_tahoe.concat_screens does."
        )
    return {context.names[code]: value for code, value in pairs.itertuples(index=False)}


def read_table(
    data: AnnOrMuData, keys: ScreenKeys, *, required: bool = True, like: EmbeddingTable | None = None
) -> EmbeddingTable | None:
    """Read the user's perturbation-embedding table, several fused into one; None where one-hot rows are used.

    Unless ``required``, data may lack the table of a trained model. Several tables are fused as those of ``like``.
    """
    found = {**expression_adata(data, keys).uns, **data.uns}
    missing = [key for key in keys.table_keys if key not in found]
    if not keys.table_keys or (len(missing) == len(keys.table_keys) and not required):
        return None
    if missing:
        raise KeyError(f"perturbation_embedding_key={missing[0]!r} is not in uns; there are {list(map(str, found))}.")
    tables = [EmbeddingTable.from_user(found[key], f"uns[{key!r}]") for key in keys.table_keys]
    if isinstance(keys.perturbation_embedding_key, str):
        return tables[0]
    known = None if like is None else like.components.fusion
    return (known or TableFusion.of(tables)).apply(tables)


def condition_of_cell(obs: pd.DataFrame, keys: ScreenKeys) -> tuple[np.ndarray, pd.DataFrame]:
    """Count the conditions of predicted cells by the labels in ``obs``, in the order in which they were asked for.

    Returns the number of each cell, int64 ``[cells]``, and one row per condition with its labels (perturbation and dose
    in columns of their own).
    """
    columns = [key for key in (keys.perturbation_key, keys.dose_key, keys.context_key) if key is not None]
    labels = pd.DataFrame({key: pd.factorize(obs[key])[0] for key in columns})
    codes = labels.groupby(columns, sort=False).ngroup().to_numpy()
    table = obs[columns].iloc[np.unique(codes, return_index=True)[1]].reset_index(drop=True)
    return codes, table.astype({key: str for key in columns if table[key].dtype.kind != "f"})
