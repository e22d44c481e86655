"""Registration with scvi-tools: what it stores about a screen, and the manager that keeps the screen verified.

Unlike scvi-tools' categorical fields, ours add no columns to the user's ``obs``, and new data may have unseen labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import rich.table
import scipy.sparse as sp
from scvi.data import AnnDataManager
from scvi.data.fields import BaseAnnDataField

from scvi_tahoe._constants import REGISTRY
from scvi_tahoe.data._perturbations import Composition, EmbeddingTable, TableFusion
from scvi_tahoe.data._screen import Screen, ScreenKeys, expression_adata, obs_column, read_matrices, read_table
from scvi_tahoe.data._verification import verify_screen

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from scvi_tahoe._compat import AnnOrMuData


class _ScreenField(BaseAnnDataField):
    """A key, a place in the data, and what the registry stores about them, known since the screen was verified.

    ``summary`` makes the field's summary statistics of that. Unless ``per_cell``, there is nothing for loaders to read.
    """

    registry_key: str = ""
    attr_name: str = ""
    attr_key: str | None = None
    mod_key: str | None = None
    is_empty = False  # fields that were not asked for are never made

    def __init__(
        self,
        registry_key: str,
        attr_name: str,
        attr_key: str | None,
        *,
        state: dict[str, Any] | None = None,
        summary: Callable[[dict], dict] = lambda _: {},
        per_cell: bool = True,
        mod_key: str | None = None,
    ) -> None:
        self.registry_key, self.attr_name, self.attr_key, self.mod_key = registry_key, attr_name, attr_key, mod_key
        self._state, self._summary, self._per_cell = state or {}, summary, per_cell

    def validate_field(self, adata: AnnOrMuData) -> None:
        """Do nothing: the screen is verified before any field is registered."""

    def register_field(self, adata: AnnOrMuData) -> dict:
        return dict(self._state)

    def transfer_field(self, state_registry: dict, adata_target: AnnOrMuData, **kwargs: object) -> dict:
        """Keep what the model was trained with; names are matched when the data are read."""
        return dict(state_registry)

    def get_data_registry(self) -> dict:
        """Return where the data of each cell are; nothing for a label or a table."""
        return super().get_data_registry() if self._per_cell else {}

    def get_summary_stats(self, state_registry: dict) -> dict:
        return self._summary(state_registry)

    def view_state_registry(self, state_registry: dict) -> rich.table.Table | None:
        table = rich.table.Table("entry", rich.table.Column("value", overflow="fold"))
        table.title = f"{self.registry_key} state registry"
        for key, value in state_registry.items():
            text = f"array {value.shape}" if isinstance(value, np.ndarray) and value.ndim > 1 else str(value)
            table.add_row(key, text if len(text) < 200 else text[:200] + " ...")
        return table


class EmbeddingTableField(_ScreenField):
    """The perturbation-embedding table: one row per label, kept in the registry, out of the loaders' reach.

    Without a key the rows are one-hot over the labels of the screen, control included. Where labels are combinations
    or carry doses, the registry keeps the rows of their components.
    """

    def __init__(self, keys: ScreenKeys, labels: tuple[str, ...]) -> None:
        place = "+".join(keys.table_keys) or None
        super().__init__(REGISTRY.PERTURBATION_EMBEDDING, "uns", place, summary=self._widths, per_cell=False)
        self._keys, self._labels = keys, labels

    def register_field(self, adata: AnnOrMuData) -> dict:
        """Store names and matrix, with a row of zeros for a control that the table lacks."""
        keys, labels = self._keys, self._labels
        components = [keys.parser.components(label) for label in labels]
        table = read_table(adata, keys)
        if table is None:
            table = EmbeddingTable.from_labels(component.name for label in components for component in label)
        elif keys.control not in table.names:
            zeros = np.zeros((1, table.width), dtype=np.float32)
            table = table.extended(EmbeddingTable((keys.control,), zeros))
        if keys.parser.composes:
            # pairs of perturbations of which only single ones were measured are what a combination is asked for
            n_components = max(2, *map(len, components)) if keys.combination == "learned" else 1
            how: dict[str, Any] = {"combination": keys.combination, "n_components": n_components}
            table = EmbeddingTable.composed(Composition(parser=keys.parser, components=table, **how), labels)
        return self.state(table)

    def transfer_field(self, state_registry: dict, adata_target: AnnOrMuData, **kwargs: object) -> dict:
        """Keep the trained table, and add rows for labels that only the new data's table has."""
        table = self.table(state_registry)
        new = read_table(adata_target, self._keys, required=False, like=table)
        return self.state(table if new is None else table.extended(new))

    def _widths(self, state_registry: dict) -> dict:
        """Count the inputs of the perturbation encoder, and the components that it encodes one by one."""
        table = self.table(state_registry)
        return {"n_perturbation_embedding": table.encoder_width, "n_perturbation_parts": table.n_components}

    @staticmethod
    def table(state_registry: dict) -> EmbeddingTable:
        """Return the table that a state registry holds."""
        fusion, composition = state_registry.get("fusion"), state_registry.get("composition")
        names, matrix = tuple(map(str, state_registry["names"])), np.asarray(state_registry["matrix"], dtype=np.float32)
        fused = None if fusion is None else TableFusion.from_dict(fusion)
        components = EmbeddingTable(names, matrix, bool(state_registry["one_hot"]), fusion=fused)
        if composition is None:
            return components
        return EmbeddingTable.composed(Composition.from_dict(composition, components), state_registry["labels"])

    @staticmethod
    def state(table: EmbeddingTable) -> dict:
        """Return what a state registry holds of a table."""
        components = table.components
        names = np.array(components.names, dtype=object)
        state = {"names": names, "matrix": components.matrix, "one_hot": components.one_hot}
        if components.fusion is not None:
            state["fusion"] = components.fusion.to_dict()
        if table.composition is not None:
            state |= {"composition": table.composition.to_dict(), "labels": list(table.names)}
        return state


def _label_field(registry_key: str, key: str, names: tuple[str, ...]) -> _ScreenField:
    """Make the field of a column of labels, of which the registry keeps the sorted names."""
    state = {"names": np.array(names, dtype=object)}
    return _ScreenField(registry_key, "obs", key, state=state, summary=lambda s: {f"n_{registry_key}": len(s["names"])})


def screen_fields(keys: ScreenKeys, screen: Screen) -> list[BaseAnnDataField]:
    """Return all fields of a screen, in the order in which they are registered."""
    labels = screen.perturbation.names
    fields: list[BaseAnnDataField] = [
        _ScreenField(  # gene names, by which new data are aligned
            REGISTRY.EXPRESSION,
            "X" if keys.layer is None else "layers",
            keys.layer,
            state={"n_vars": len(screen.genes), "column_names": screen.genes.astype(object)},
            summary=lambda stored: {"n_vars": stored["n_vars"]},
            mod_key=keys.expression_modality,
        ),
        _label_field(REGISTRY.PERTURBATION, keys.perturbation_key, labels),
        _ScreenField(REGISTRY.CONTROL, "obs", keys.perturbation_key, state={"label": keys.control}, per_cell=False),
        EmbeddingTableField(keys, labels),
    ]
    if keys.context_key is not None:
        fields.append(_label_field(REGISTRY.CONTEXT, keys.context_key, screen.context.names))
    if keys.batch_key is not None and screen.batch is not None:
        fields.append(_label_field(REGISTRY.BATCH, keys.batch_key, screen.batch.names))
    if keys.has_cell_embedding:
        fields.append(
            _ScreenField(
                REGISTRY.CELL_EMBEDDING,
                "X" if keys.cell_embedding_key is None else "obsm",
                keys.cell_embedding_key,
                state={"width": int(screen.cell_embedding.shape[1])},
                summary=lambda stored: {"n_cell_embedding": stored["width"]},
                mod_key=keys.embedding_modality or keys.expression_modality,
            )
        )
    return fields


@dataclass(frozen=True)
class _VerifiedScreen:
    """A screen that was verified, and what tells whether its data changed since.

    That are copies of the columns of ``obs`` that its labels were read from, and sums of the values of its matrices.
    """

    screen: Screen
    for_training: bool
    columns: list[pd.Series]
    matrices: tuple[Any, Any]
    checksums: list[float | None]

    def is_current(self, data: AnnOrMuData, keys: ScreenKeys, *, values: bool) -> bool:
        """Whether the data are those that were verified: the same matrices, names, labels and, if asked, values."""
        known, adata = self.screen, expression_adata(data, keys)
        try:
            columns = _label_columns(data, keys)
            expression, embedding = read_matrices(data, keys)
        except KeyError:
            return False
        return (
            known.cells.equals(adata.obs_names)
            and np.array_equal(known.genes, np.asarray(adata.var_names, dtype=object).astype(str))
            and all(before.equals(now) for before, now in zip(self.columns, columns, strict=True))
            and all(map(_is_same, self.matrices, (expression, embedding)))
            and (not values or self.checksums == _checksums(known))
        )


def _label_columns(data: AnnOrMuData, keys: ScreenKeys) -> list[pd.Series]:
    """Columns of ``obs`` that labels are read from."""
    columns = (keys.perturbation_key, keys.dose_key, keys.context_key, keys.batch_key)
    return [obs_column(data, keys, key) for key in columns if key is not None]


def _is_same(before: Any, now: Any) -> bool:
    """Whether two matrices are one: the same object in memory, or the same place in a file that only is read."""
    if before is now:
        return True
    before, now = (getattr(matrix, "group", matrix) for matrix in (before, now))  # of a sparse one on disk
    read_only = getattr(now, "read_only", None) or getattr(getattr(now, "file", None), "mode", "") == "r"
    return type(before) is type(now) and read_only and bool(before == now)


def _checksums(screen: Screen) -> list[float | None]:
    """Sum of the values of each matrix in memory, which is not finite if one of them is not."""
    matrices = (screen.expression, screen.cell_embedding)
    values = [getattr(matrix, "data", None) if sp.issparse(matrix) else matrix for matrix in matrices]
    return [float(np.sum(v)) if isinstance(v, np.ndarray) else None for v in values]


class ScreenManager(AnnDataManager):
    """Registers a screen, and keeps it verified, so that it is read and indexed once while the data stay the same."""

    _verified: _VerifiedScreen | None = None

    @classmethod
    def of(cls, data: AnnOrMuData, keys: ScreenKeys, setup_method_args: dict, **kwargs: Any) -> ScreenManager:
        """Verify data and register them; data that come to a trained model need control cells only."""
        verified = cls._verify(data, keys, for_training="source_registry" not in kwargs)
        manager = cls(fields=screen_fields(keys, verified.screen), setup_method_args=setup_method_args)
        manager.register_fields(data, **kwargs)
        manager._verified = verified
        return manager

    def screen(self, keys: ScreenKeys, *, for_training: bool = False) -> Screen:
        """Return the registered screen, verified again if the data changed since (values only for training)."""
        known = self._verified
        if (
            known is None
            or (for_training and not known.for_training)
            or not known.is_current(self.adata, keys, values=for_training)
        ):
            known = self._verified = self._verify(self.adata, keys, for_training=for_training, table_required=False)
        return known.screen

    @staticmethod
    def _verify(
        data: AnnOrMuData, keys: ScreenKeys, *, for_training: bool, table_required: bool = True
    ) -> _VerifiedScreen:
        screen = verify_screen(data, keys, for_training=for_training, table_required=table_required)
        columns = [column.copy() for column in _label_columns(data, keys)]
        return _VerifiedScreen(screen, for_training, columns, read_matrices(data, keys), _checksums(screen))
