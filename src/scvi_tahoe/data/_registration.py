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
    import pandas as pd

    from scvi_tahoe._compat import AnnOrMuData


class _ScreenField(BaseAnnDataField):
    """Base of our fields: a key, a place, and the screen's keys."""

    registry_key: str = ""
    attr_name: str = ""
    attr_key: str | None = None
    mod_key: str | None = None
    is_empty = False  # fields that were not asked for are never made

    def __init__(
        self, registry_key: str, attr_name: str, attr_key: str | None, keys: ScreenKeys, mod_key: str | None = None
    ) -> None:
        self.registry_key, self.attr_name, self.attr_key, self.mod_key = registry_key, attr_name, attr_key, mod_key
        self._keys = keys

    def validate_field(self, adata: AnnOrMuData) -> None:
        """Do nothing: the screen is verified before any field is registered."""

    def transfer_field(self, state_registry: dict, adata_target: AnnOrMuData, **kwargs: object) -> dict:
        """Keep what the model was trained with; names are matched when the data are read."""
        return dict(state_registry)

    def get_summary_stats(self, state_registry: dict) -> dict:
        """Return no statistics unless a field has some."""
        return {}

    def view_state_registry(self, state_registry: dict) -> rich.table.Table | None:
        """Show the first entries."""
        table = rich.table.Table(title=f"{self.registry_key} state registry")
        table.add_column("entry")
        table.add_column("value", overflow="fold")
        for key, value in state_registry.items():
            text = f"array {value.shape}" if isinstance(value, np.ndarray) and value.ndim > 1 else str(value)
            table.add_row(key, text if len(text) < 200 else text[:200] + " ...")
        return table


class ExpressionField(_ScreenField):
    """Expression in X or a layer; keeps the gene names, by which new data are aligned."""

    def __init__(self, keys: ScreenKeys) -> None:
        attribute = "X" if keys.layer is None else "layers"
        super().__init__(REGISTRY.EXPRESSION, attribute, keys.layer, keys, keys.expression_modality)

    def register_field(self, adata: AnnOrMuData) -> dict:
        """Store the gene names."""
        names = np.asarray(expression_adata(adata, self._keys).var_names, dtype=object).astype(str).astype(object)
        return {"n_vars": len(names), "column_names": names}

    def get_summary_stats(self, state_registry: dict) -> dict:
        """Return the number of genes."""
        return {"n_vars": state_registry["n_vars"]}


class CellEmbeddingField(_ScreenField):
    """A cell embedding in ``obsm``, or a modality of its own."""

    def __init__(self, keys: ScreenKeys) -> None:
        attribute = "X" if keys.cell_embedding_key is None else "obsm"
        modality = keys.embedding_modality or keys.expression_modality
        super().__init__(REGISTRY.CELL_EMBEDDING, attribute, keys.cell_embedding_key, keys, modality)

    def register_field(self, adata: AnnOrMuData) -> dict:
        """Store the width."""
        return {"width": int(self.get_field_data(adata).shape[1])}

    def get_summary_stats(self, state_registry: dict) -> dict:
        """Return the width of the embedding."""
        return {"n_cell_embedding": state_registry["width"]}


class LabelField(_ScreenField):
    """A column of labels; keeps the sorted names seen at registration."""

    def __init__(self, registry_key: str, key: str, keys: ScreenKeys, names: tuple[str, ...]) -> None:
        super().__init__(registry_key, "obs", key, keys)
        self._names = names

    def register_field(self, adata: AnnOrMuData) -> dict:
        """Store the names that occur."""
        return {"names": np.array(self._names, dtype=object)}

    def get_summary_stats(self, state_registry: dict) -> dict:
        """Return the number of names."""
        return {f"n_{self.registry_key}": len(state_registry["names"])}


class ControlLabelField(_ScreenField):
    """The label of control cells: a property of a value, not of a column."""

    def __init__(self, keys: ScreenKeys) -> None:
        super().__init__(REGISTRY.CONTROL, "obs", keys.perturbation_key, keys)

    def get_data_registry(self) -> dict:
        """Return nothing: there is nothing to load for each cell."""
        return {}

    def register_field(self, adata: AnnOrMuData) -> dict:
        """Store the label."""
        return {"label": self._keys.control}


class EmbeddingTableField(_ScreenField):
    """The perturbation-embedding table: one row per label, kept in the registry, out of the loaders' reach.

    Without a key the rows are one-hot over the labels of the screen, control included. Where labels are combinations
    or carry doses, the registry keeps the rows of their components.
    """

    def __init__(self, keys: ScreenKeys, labels: tuple[str, ...]) -> None:
        super().__init__(REGISTRY.PERTURBATION_EMBEDDING, "uns", "+".join(keys.table_keys) or None, keys)
        self._labels = labels

    def get_data_registry(self) -> dict:
        """Return nothing: a registered ``uns`` table would be indexed by cell number."""
        return {}

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
            composition = Composition(
                parser=keys.parser, components=table, combination=keys.combination, n_components=n_components
            )
            table = EmbeddingTable.composed(composition, labels)
        return self.state(table)

    def transfer_field(self, state_registry: dict, adata_target: AnnOrMuData, **kwargs: object) -> dict:
        """Keep the trained table, and add rows for labels that only the new data's table has."""
        table = self.table(state_registry)
        new = read_table(adata_target, self._keys, required=False, like=table)
        return self.state(table if new is None else table.extended(new))

    @staticmethod
    def table(state_registry: dict) -> EmbeddingTable:
        """Return the table that a state registry holds."""
        fusion, composition = state_registry.get("fusion"), state_registry.get("composition")
        components = EmbeddingTable(
            tuple(str(n) for n in state_registry["names"]),
            np.asarray(state_registry["matrix"], dtype=np.float32),
            bool(state_registry["one_hot"]),
            fusion=None if fusion is None else TableFusion.from_dict(fusion),
        )
        if composition is None:
            return components
        return EmbeddingTable.composed(Composition.from_dict(composition, components), state_registry["labels"])

    @staticmethod
    def state(table: EmbeddingTable) -> dict:
        """Return what a state registry holds of a table."""
        components = table.components
        state = {
            "names": np.array(components.names, dtype=object),
            "matrix": components.matrix,
            "one_hot": components.one_hot,
        }
        if components.fusion is not None:
            state["fusion"] = components.fusion.to_dict()
        if table.composition is not None:
            state |= {"composition": table.composition.to_dict(), "labels": list(table.names)}
        return state

    def get_summary_stats(self, state_registry: dict) -> dict:
        """Return the inputs of the perturbation encoder, and the number of components that it encodes one by one."""
        table = self.table(state_registry)
        return {"n_perturbation_embedding": table.encoder_width, "n_perturbation_parts": table.n_components}


def screen_fields(keys: ScreenKeys, screen: Screen) -> list[BaseAnnDataField]:
    """Return all fields of a screen, in the order in which they are registered."""
    labels = screen.perturbation.names
    fields: list[BaseAnnDataField] = [
        ExpressionField(keys),
        LabelField(REGISTRY.PERTURBATION, keys.perturbation_key, keys, labels),
        ControlLabelField(keys),
        EmbeddingTableField(keys, labels),
    ]
    if keys.context_key is not None:
        fields.append(LabelField(REGISTRY.CONTEXT, keys.context_key, keys, screen.context.names))
    if keys.batch_key is not None and screen.batch is not None:
        fields.append(LabelField(REGISTRY.BATCH, keys.batch_key, keys, screen.batch.names))
    if keys.has_cell_embedding:
        fields.append(CellEmbeddingField(keys))
    return fields


@dataclass(frozen=True)
class VerifiedScreen:
    """A screen that was verified, and what tells whether its data changed since.

    Attributes
    ----------
    screen
        The screen.
    keys
        Where its parts are.
    for_training
        Whether it was verified for training.
    columns
        Copies of the columns of ``obs`` that its labels were read from.
    checksums
        Sums of the values of its matrices.
    """

    screen: Screen
    keys: ScreenKeys
    for_training: bool
    columns: tuple[pd.Series, ...]
    checksums: tuple[float | None, ...]

    @classmethod
    def of(
        cls, data: AnnOrMuData, keys: ScreenKeys, *, for_training: bool = True, table_required: bool = True
    ) -> VerifiedScreen:
        """Verify a screen as :func:`verify_screen` does."""
        screen = verify_screen(data, keys, for_training=for_training, table_required=table_required)
        columns = tuple(column.copy() for column in _label_columns(data, keys))
        return cls(screen, keys, for_training, columns, _checksums(screen))

    def is_current(self, data: AnnOrMuData, *, values: bool = True) -> bool:
        """Whether the data are those that were verified: the same matrices, names, labels and, if asked, values."""
        known, adata = self.screen, expression_adata(data, self.keys)
        try:
            columns = _label_columns(data, self.keys)
            expression, embedding = read_matrices(data, self.keys)
        except KeyError:
            return False
        return (
            known.cells.equals(adata.obs_names)
            and np.array_equal(known.genes, np.asarray(adata.var_names, dtype=object).astype(str))
            and all(before.equals(now) for before, now in zip(self.columns, columns, strict=True))
            and _is_same(known.expression, expression)
            and _is_same(known.cell_embedding, embedding)
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


def _checksums(screen: Screen) -> tuple[float | None, ...]:
    """Sum of the values of each matrix in memory, which is not finite if one of them is not."""
    values = [getattr(matrix, "data", None) if sp.issparse(matrix) else matrix for matrix in screen.matrices]
    return tuple(float(np.sum(v)) if isinstance(v, np.ndarray) else None for v in values)


class ScreenManager(AnnDataManager):
    """Registers a screen, and keeps it verified, so that it is read and indexed once while the data stay the same."""

    _verified: VerifiedScreen | None = None

    @classmethod
    def of(cls, data: AnnOrMuData, keys: ScreenKeys, setup_method_args: dict, **kwargs: Any) -> ScreenManager:
        """Verify data and register them; data that come to a trained model need control cells only."""
        verified = VerifiedScreen.of(data, keys, for_training="source_registry" not in kwargs)
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
            or not known.is_current(self.adata, values=for_training)
        ):
            known = self._verified = VerifiedScreen.of(
                self.adata, keys, for_training=for_training, table_required=False
            )
        return known.screen
