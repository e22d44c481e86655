"""AnnData to minibatches of cell sets."""

from __future__ import annotations

from scvi_tahoe.data._alignment import GeneAlignment, align_genes
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
    screen_fields,
)
from scvi_tahoe.data._prior import PRIORS, CellPrior, Prior, PriorBase
from scvi_tahoe.data._sampler import (
    CellSetRequest,
    ExhaustiveSampler,
    FixedSampler,
    PredictionTask,
    RandomSampler,
    SetPlan,
)
from scvi_tahoe.data._scale import ScaleReport, infer_scale, verify_log1p
from scvi_tahoe.data._screen import Labels, Screen, ScreenKeys, expression_adata, labelled_expression, read_screen
from scvi_tahoe.data._splits import (
    AssignedSplit,
    FewShotContext,
    FractionSplit,
    HeldOutContexts,
    HeldOutPerturbations,
    Split,
    SplitAudit,
    split_from_dict,
)
from scvi_tahoe.data._store import CellStore, DeviceStore, DiskStore, HostStore, make_store
from scvi_tahoe.data._verification import read_table, verify_controls, verify_screen

__all__ = [
    "PRIORS",
    "AssignedSplit",
    "CellEmbeddingField",
    "CellPrior",
    "CellSetDataModule",
    "CellSetDataset",
    "CellSetRequest",
    "CellStore",
    "Condition",
    "ConditionIndex",
    "ControlLabelField",
    "ControlPools",
    "DeviceStore",
    "DiskStore",
    "EmbeddingTable",
    "EmbeddingTableField",
    "ExhaustiveSampler",
    "ExpressionField",
    "FewShotContext",
    "FixedSampler",
    "FractionSplit",
    "GeneAlignment",
    "HeldOutContexts",
    "HeldOutPerturbations",
    "HostStore",
    "LabelField",
    "Labels",
    "LoaderConfig",
    "MinibatchSources",
    "PredictionTask",
    "Prior",
    "PriorBase",
    "RandomSampler",
    "ScaleReport",
    "Screen",
    "ScreenKeys",
    "SetPlan",
    "Split",
    "SplitAudit",
    "align_genes",
    "expression_adata",
    "infer_scale",
    "labelled_expression",
    "make_store",
    "nearest_names",
    "read_screen",
    "read_table",
    "screen_fields",
    "split_from_dict",
    "verify_controls",
    "verify_log1p",
    "verify_screen",
]
