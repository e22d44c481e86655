"""The network, and the distances it is trained with: torch only, no files."""

from __future__ import annotations

from scvi_tahoe.nn._adapters import attach_adapters, linear_layers, merge_adapters, merged_state, original_name
from scvi_tahoe.nn._config import SIZES, Attention, GeneDecoderConfig, NetworkConfig
from scvi_tahoe.nn._contrastive import contrastive_alignment, contrastive_delta, info_nce
from scvi_tahoe.nn._ineffective_options import (
    as_said,
    default_of,
    options_given,
    options_of_user,
    refuse_unused,
    unused_in_network,
    unused_in_objective,
)
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
    "Attention",
    "GeneDecoderConfig",
    "NetworkConfig",
    "NetworkOutput",
    "Objective",
    "ObjectiveConfig",
    "SetReference",
    "SetTransformer",
    "as_said",
    "attach_adapters",
    "batch_classification",
    "confidence_error",
    "contrastive_alignment",
    "contrastive_delta",
    "control_shift",
    "de_weighted_mse",
    "decoder_loss",
    "default_of",
    "delta_mse",
    "distillation",
    "energy_distance",
    "info_nce",
    "kernel_mmd",
    "linear_layers",
    "merge_adapters",
    "merged_state",
    "mse",
    "options_given",
    "options_of_user",
    "original_name",
    "refuse_unused",
    "sinkhorn_divergence",
    "unused_in_network",
    "unused_in_objective",
]
