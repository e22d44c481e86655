"""AnnData to minibatches of cell sets."""

from __future__ import annotations

from scvi_tahoe.data._cell_files import CellFile, open_cells
from scvi_tahoe.data._fingerprints import smiles_fingerprints
from scvi_tahoe.data._matrix import DiskRows, GeneAlignment, align_genes, dense_rows, is_sharded
from scvi_tahoe.data._minibatches import (
    OUTPUTS,
    REPRESENTATIONS,
    CellSetDataModule,
    CellSetDataset,
    DataSpec,
    LoaderConfig,
    Output,
    Representation,
    aligned_expression,
    cell_set_dataset,
    random_minibatches,
)
from scvi_tahoe.data._perturbations import (
    NUMBER_COLUMNS,
    Combination,
    Component,
    Composition,
    EmbeddingTable,
    LabelParser,
    TableFusion,
    dose_label,
)
from scvi_tahoe.data._quality import screen_quality
from scvi_tahoe.data._registration import EmbeddingTableField, ScreenManager
from scvi_tahoe.data._sampler import CellSetRequest, ConditionRequest, ExhaustiveSampler, draw_window
from scvi_tahoe.data._screen import (
    Condition,
    ConditionIndex,
    Screen,
    ScreenKeys,
    combines_measured_components,
    condition_of_cell,
    expression_adata,
    label_columns,
    read_screen,
    read_table,
    spelled_labels,
    with_condition_labels,
)
from scvi_tahoe.data._splits import (
    SPLITS,
    AssignedSplit,
    FewShotContext,
    FractionSplit,
    HeldOutConditions,
    HeldOutContexts,
    HeldOutPerturbations,
    ListedConditions,
    Split,
    default_split,
    register_split,
    split_from_dict,
)
from scvi_tahoe.data._start_cells import ControlProfile, StartTable, moved_to_mean
from scvi_tahoe.data._store import CellStore, DeviceStore, StoreKind, make_store
from scvi_tahoe.data._store_conversion import write_store
from scvi_tahoe.data._store_folder import is_store, read_store, record_files
from scvi_tahoe.data._verification import infer_scale, verify_screen

__all__ = [
    "AssignedSplit",
    "CellSetDataset",
    "CellStore",
    "Composition",
    "Condition",
    "ConditionIndex",
    "DataSpec",
    "EmbeddingTable",
    "LabelParser",
    "Output",
    "Screen",
    "ScreenKeys",
    "Split",
    "make_store",
    "read_table",
    "register_split",
]
