"""AnnData to minibatches of cell sets."""

from __future__ import annotations

from scvi_tahoe.data._alignment import GeneAlignment, align_genes
from scvi_tahoe.data._conditions import Condition, ConditionIndex, combines_measured_components
from scvi_tahoe.data._datamodule import CellSetDataModule, LoaderConfig
from scvi_tahoe.data._dataset import CellSetDataset
from scvi_tahoe.data._disk_store import DiskRows, dense_rows, is_sharded
from scvi_tahoe.data._embedding_table import NUMBER_COLUMNS, Combination, Composition, EmbeddingTable, TableFusion
from scvi_tahoe.data._fields import EmbeddingTableField, ScreenManager
from scvi_tahoe.data._fingerprints import smiles_fingerprints
from scvi_tahoe.data._label_parser import Component, LabelParser, dose_label
from scvi_tahoe.data._make_store import StoreKind, make_store
from scvi_tahoe.data._sampler import CellSetRequest, ConditionRequest, ExhaustiveSampler, draw_window
from scvi_tahoe.data._scale import infer_scale
from scvi_tahoe.data._screen import (
    Screen,
    ScreenKeys,
    condition_of_cell,
    expression_adata,
    label_columns,
    read_screen,
    spelled_labels,
    with_condition_labels,
)
from scvi_tahoe.data._spec import (
    OUTPUTS,
    REPRESENTATIONS,
    DataSpec,
    Output,
    Representation,
    aligned_expression,
    cell_set_dataset,
    random_minibatches,
)
from scvi_tahoe.data._splits import (
    SPLITS,
    AssignedSplit,
    FewShotContext,
    FractionSplit,
    HeldOutConditions,
    HeldOutContexts,
    HeldOutPerturbations,
    Split,
    default_split,
    register_split,
    split_from_dict,
)
from scvi_tahoe.data._store import CellStore, DeviceStore
from scvi_tahoe.data._store_conversion import write_store
from scvi_tahoe.data._store_folder import read_store
from scvi_tahoe.data._verification import read_table, verify_screen

__all__ = [
    "NUMBER_COLUMNS",
    "OUTPUTS",
    "REPRESENTATIONS",
    "AssignedSplit",
    "CellSetDataModule",
    "CellSetDataset",
    "CellSetRequest",
    "CellStore",
    "Combination",
    "Component",
    "Composition",
    "Condition",
    "ConditionIndex",
    "ConditionRequest",
    "DataSpec",
    "DeviceStore",
    "DiskRows",
    "EmbeddingTable",
    "EmbeddingTableField",
    "ExhaustiveSampler",
    "FewShotContext",
    "FractionSplit",
    "GeneAlignment",
    "HeldOutConditions",
    "HeldOutContexts",
    "HeldOutPerturbations",
    "LabelParser",
    "LoaderConfig",
    "Output",
    "Representation",
    "Screen",
    "ScreenKeys",
    "ScreenManager",
    "Split",
    "StoreKind",
    "TableFusion",
    "align_genes",
    "aligned_expression",
    "cell_set_dataset",
    "combines_measured_components",
    "condition_of_cell",
    "default_split",
    "dense_rows",
    "dose_label",
    "draw_window",
    "expression_adata",
    "infer_scale",
    "is_sharded",
    "label_columns",
    "make_store",
    "random_minibatches",
    "read_screen",
    "read_store",
    "read_table",
    "register_split",
    "smiles_fingerprints",
    "spelled_labels",
    "split_from_dict",
    "verify_screen",
    "with_condition_labels",
    "write_store",
]
