"""The network, and the distances it is trained with: torch only, no files."""

from __future__ import annotations

from scvi_tahoe.nn._adapters import attach_adapters, linear_layers, merge_adapters, merged_state, original_name
from scvi_tahoe.nn._config import SIZES, GeneDecoderConfig, NetworkConfig
from scvi_tahoe.nn._losses import SET_LOSSES, delta_mse, energy_distance, kernel_mmd, mse, sinkhorn_divergence
from scvi_tahoe.nn._networks import NetworkOutput, SetTransformer
from scvi_tahoe.nn._objective import Objective, ObjectiveConfig

__all__ = [
    "SET_LOSSES",
    "SIZES",
    "GeneDecoderConfig",
    "NetworkConfig",
    "NetworkOutput",
    "Objective",
    "ObjectiveConfig",
    "SetTransformer",
    "attach_adapters",
    "delta_mse",
    "energy_distance",
    "kernel_mmd",
    "linear_layers",
    "merge_adapters",
    "merged_state",
    "mse",
    "original_name",
    "sinkhorn_divergence",
]
