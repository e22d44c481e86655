"""The network, and the distances it is trained with: torch only, no files."""

from __future__ import annotations

from scvi_tahoe.nn._adapters import (
    attach_adapters,
    linear_layers,
    merge_adapters,
    merged_state,
    merged_tensors,
    original_name,
)
from scvi_tahoe.nn._cell_encoder import N_DATASET, CellEncoder, CellEncoderConfig
from scvi_tahoe.nn._config import SIZES, AttentionName, GeneDecoderConfig, NetworkConfig, NetworkOptions, SizeName
from scvi_tahoe.nn._losses import (  # before the contrasts: terms are listed in the order in which they register
    batch_classification,
    confidence_error,
    control_shift,
    de_weighted_mse,
    decoder_loss,
    delta_mse,
    distillation,
    energy_distance,
    kernel_mmd,
    mse,
    sinkhorn_divergence,
)

from scvi_tahoe.nn._contrastive import contrastive_alignment, contrastive_delta, info_nce  # isort: skip
from scvi_tahoe.nn._layers import have_triton
from scvi_tahoe.nn._networks import NetworkOutput, SetTransformer
from scvi_tahoe.nn._objective import (
    Ineffective,
    Objective,
    ObjectiveConfig,
    ObjectiveOptions,
    default_of,
    ineffective_in_network,
    ineffective_in_objective,
    non_default,
    reject_ineffective,
    reject_ineffective_options,
)
from scvi_tahoe.nn._operations import step_operations
from scvi_tahoe.nn._terms import EMBEDDING_TERMS, SET_LOSSES, TERMS, SetReference, Term, register_term

__all__ = [
    "CellEncoder",
    "GeneDecoderConfig",
    "NetworkConfig",
    "NetworkOutput",
    "Objective",
    "ObjectiveConfig",
    "SetReference",
    "SetTransformer",
    "Term",
    "batch_classification",
    "confidence_error",
    "contrastive_alignment",
    "contrastive_delta",
    "control_shift",
    "de_weighted_mse",
    "decoder_loss",
    "delta_mse",
    "distillation",
    "energy_distance",
    "info_nce",
    "kernel_mmd",
    "mse",
    "register_term",
    "sinkhorn_divergence",
]
