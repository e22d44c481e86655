"""AnnData to minibatches of cell sets."""

from __future__ import annotations

from scvi_tahoe.data._alignment import GeneAlignment, align_genes
from scvi_tahoe.data._composition import NUMBER_COLUMNS, Combination, Composition
from scvi_tahoe.data._conditions import Condition, ConditionIndex, ControlPools
from scvi_tahoe.data._datamodule import CellSetDataModule, LoaderConfig
from scvi_tahoe.data._dataset import CellSetDataset, MinibatchSources
from scvi_tahoe.data._embedding_table import EmbeddingTable, nearest_names
from scvi_tahoe.data._fields import (
    CellEmbeddingField,
    ControlLabelField,
    EmbeddingTableField,
    ExpressionField,
    LabelField,
    PerturbationField,
    screen_fields,
)
from scvi_tahoe.data._fingerprints import smiles_fingerprints
from scvi_tahoe.data._fusion import TableFusion
from scvi_tahoe.data._gene_weights import Moments, condition_moments, de_weights
from scvi_tahoe.data._label_reading import LabelReading, Part, dose_label
from scvi_tahoe.data._prior import PRIORS, CellPrior, Prior, PriorBase, PriorOrigin, PriorTarget
from scvi_tahoe.data._row_reading import DiskRows, is_sharded
from scvi_tahoe.data._sampler import (
    CellSetRequest,
    ExhaustiveSampler,
    FixedSampler,
    PredictionTask,
    RandomSampler,
    SetPlan,
)
from scvi_tahoe.data._scale import ScaleReport, infer_scale, verify_log1p
from scvi_tahoe.data._screen import (
    Labels,
    Screen,
    ScreenKeys,
    expression_adata,
    label_columns,
    read_screen,
    spelled_labels,
    with_condition_labels,
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
from scvi_tahoe.data._store import CellStore, DeviceStore, DiskStore, HostStore, make_store
from scvi_tahoe.data._store_conversion import write_store
from scvi_tahoe.data._store_folder import read_store
from scvi_tahoe.data._store_writer import StoreWriter
from scvi_tahoe.data._verification import read_table, verify_controls, verify_screen

__all__ = [
    "NUMBER_COLUMNS",
    "PRIORS",
    "AssignedSplit",
    "CellEmbeddingField",
    "CellPrior",
    "CellSetDataModule",
    "CellSetDataset",
    "CellSetRequest",
    "CellStore",
    "Combination",
    "Composition",
    "Condition",
    "ConditionIndex",
    "ControlLabelField",
    "ControlPools",
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
    "LabelReading",
    "Labels",
    "LoaderConfig",
    "MinibatchSources",
    "Moments",
    "Part",
    "PerturbationField",
    "PredictionTask",
    "Prior",
    "PriorBase",
    "PriorOrigin",
    "PriorTarget",
    "RandomSampler",
    "ScaleReport",
    "Screen",
    "ScreenKeys",
    "SetPlan",
    "Split",
    "SplitAudit",
    "StoreWriter",
    "TableFusion",
    "align_genes",
    "condition_moments",
    "de_weights",
    "dose_label",
    "expression_adata",
    "infer_scale",
    "is_sharded",
    "label_columns",
    "make_store",
    "nearest_names",
    "read_screen",
    "read_store",
    "read_table",
    "screen_fields",
    "smiles_fingerprints",
    "default_split",
    "split_from_dict",
    "verify_controls",
    "verify_log1p",
    "verify_screen",
    "spelled_labels",
    "with_condition_labels",
    "write_store",
]
