"""AnnData to minibatches of cell sets."""

from __future__ import annotations

from scvi_tahoe.data._alignment import GeneAlignment, align_genes
from scvi_tahoe.data._conditions import (
    CellLabels,
    Condition,
    ConditionIndex,
    ControlPools,
    combines_measured_components,
)
from scvi_tahoe.data._datamodule import CellSetDataModule, LoaderConfig
from scvi_tahoe.data._dataset import CellSetDataset
from scvi_tahoe.data._disk_store import DiskRows, DiskStore, is_sharded
from scvi_tahoe.data._embedding_table import NUMBER_COLUMNS, Combination, Composition, EmbeddingTable, TableFusion
from scvi_tahoe.data._fields import (
    CellEmbeddingField,
    ControlLabelField,
    EmbeddingTableField,
    ExpressionField,
    LabelField,
    ScreenManager,
)
from scvi_tahoe.data._fingerprints import smiles_fingerprints
from scvi_tahoe.data._label_parser import Component, LabelParser, dose_label
from scvi_tahoe.data._make_store import StoreKind, make_store
from scvi_tahoe.data._sampler import (
    CellSetRequest,
    ConditionRequest,
    ExhaustiveSampler,
    FixedSampler,
    RandomSampler,
    SetPlan,
    draw_window,
)
from scvi_tahoe.data._scale import ScaleReport, infer_scale, verify_log1p
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
    AssignedSplit,
    FewShotContext,
    FractionSplit,
    HeldOutConditions,
    HeldOutContexts,
    HeldOutPerturbations,
    Split,
    SplitAudit,
    default_split,
    split_from_dict,
)
from scvi_tahoe.data._store import CellStore, DeviceStore, HostStore
from scvi_tahoe.data._store_conversion import write_store
from scvi_tahoe.data._store_folder import StoreWriter, read_store
from scvi_tahoe.data._verification import read_table, verify_controls, verify_screen

__all__ = [
    "NUMBER_COLUMNS",
    "OUTPUTS",
    "REPRESENTATIONS",
    "AssignedSplit",
    "CellEmbeddingField",
    "CellLabels",
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
    "ControlLabelField",
    "ControlPools",
    "DataSpec",
    "DeviceStore",
    "DiskRows",
    "DiskStore",
    "EmbeddingTable",
    "EmbeddingTableField",
    "ExhaustiveSampler",
    "ExpressionField",
    "FewShotContext",
    "FixedSampler",
    "FractionSplit",
    "GeneAlignment",
    "HeldOutConditions",
    "HeldOutContexts",
    "HeldOutPerturbations",
    "HostStore",
    "LabelField",
    "LabelParser",
    "LoaderConfig",
    "Output",
    "RandomSampler",
    "Representation",
    "ScaleReport",
    "Screen",
    "ScreenKeys",
    "ScreenManager",
    "SetPlan",
    "Split",
    "SplitAudit",
    "StoreKind",
    "StoreWriter",
    "TableFusion",
    "align_genes",
    "aligned_expression",
    "cell_set_dataset",
    "combines_measured_components",
    "condition_of_cell",
    "default_split",
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
    "smiles_fingerprints",
    "spelled_labels",
    "split_from_dict",
    "verify_controls",
    "verify_log1p",
    "verify_screen",
    "with_condition_labels",
    "write_store",
]
