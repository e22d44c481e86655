"""The network, and the distances it is trained with: torch only, no files."""

from __future__ import annotations

from scvi_tahoe.nn._adapters import attach_adapters, linear_layers, merge_adapters, merged_state, original_name
from scvi_tahoe.nn._config import SIZES, GeneDecoderConfig, NetworkConfig
from scvi_tahoe.nn._contrastive import contrastive_alignment, contrastive_delta, info_nce
from scvi_tahoe.nn._losses import (
    SET_LOSSES,
    de_weighted_mse,
    delta_mse,
    energy_distance,
    kernel_mmd,
    mse,
    sinkhorn_divergence,
)
from scvi_tahoe.nn._networks import NetworkOutput, SetTransformer
from scvi_tahoe.nn._objective import EMBEDDING_TERMS, TERMS, Objective, ObjectiveConfig, SetReference
from scvi_tahoe.nn._part_losses import (
    batch_classification,
    confidence_error,
    control_shift,
    decoder_loss,
    distillation,
)

__all__ = [
    "EMBEDDING_TERMS",
    "SET_LOSSES",
    "SIZES",
    "TERMS",
    "GeneDecoderConfig",
    "NetworkConfig",
    "NetworkOutput",
    "Objective",
    "ObjectiveConfig",
    "SetReference",
    "SetTransformer",
    "attach_adapters",
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
    "linear_layers",
    "merge_adapters",
    "merged_state",
    "mse",
    "original_name",
    "sinkhorn_divergence",
]
