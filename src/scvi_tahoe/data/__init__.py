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
    "EmbeddingTable",
    "GeneAlignment",
    "LabelParser",
    "LoaderConfig",
    "Output",
    "Representation",
    "Screen",
    "ScreenKeys",
    "Split",
    "StoreKind",
    "align_genes",
    "default_split",
    "infer_scale",
    "make_store",
    "read_screen",
    "read_table",
    "register_split",
    "split_from_dict",
    "verify_screen",
]
