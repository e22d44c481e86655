"""Runs, and configurations and logs in arc-state's format: the keys are the program's, every number is ours."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
import yaml

#: A run that trains in a second.
RUN: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "data": {"dataset": "simulated", "n_genes": 40, "cell_embedding_components": 6},
    "split": {
        "kind": "few_shot_context",
        "context": "context_1",
        "validation": ["perturbation_01", "perturbation_02"],
        "test": ["perturbation_03", "perturbation_04", "perturbation_05"],
    },
    "model": {"size": {"hidden": 16, "n_layers": 1, "intermediate": 32, "n_heads": 2}, "set_size": 8},
    "train": {"max_steps": 6, "batch_size": 2, "validate_every": 2, "accelerator": "cpu", "lr": 0.01},
    "score": {"preset": "quick"},
}

_EXPRESSION: dict[str, Any] = {
    "data": {
        "name": "PerturbationDataModule",
        "kwargs": {
            "embed_key": None, "output_space": "all", "pert_col": "gene", "cell_type_key": "line", "batch_col": "plate",
            "control_pert": "ntc", "perturbation_features_file": "/data/features.pt",
        },
    },
    "model": {
        "name": "state",
        "kwargs": {
            "cell_set_len": 64, "loss": "energy", "predict_residual": True, "n_encoder_layers": 2,
            "n_decoder_layers": 2,
            "batch_encoder": True, "use_basal_projection": True, "init_from": None, "freeze_pert_backbone": False,
            "transformer_backbone_key": "llama",
            "transformer_backbone_kwargs": {
                "bidirectional_attention": True, "max_position_embeddings": 64, "hidden_size": 96,
                "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
            },
        },
    },
    "training": {
        "batch_size": 4, "lr": 2.0e-4, "max_steps": 500, "train_seed": 7, "val_freq": 50, "gradient_clip_val": 1.0,
    },
    "name": "study-of-ours",
    "use_wandb": False,
}  # fmt: skip


def expression_config() -> dict[str, Any]:
    """A configuration that arc-state obeys in full."""
    return copy.deepcopy(_EXPRESSION)


def embedding_config() -> dict[str, Any]:
    """Cells are embeddings, genes come from a decoder."""
    config = expression_config()
    config["data"]["kwargs"]["embed_key"] = "X_cells"
    config["model"]["kwargs"] |= {"decoder_weight": 0.3, "decoder_hidden_dims": [32, 48], "decoder_dropout": 0.2}
    return config


def with_key(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The configuration with one key set, or left out if the value is ``...``."""
    *parents, key = path.split(".")
    section = config
    for name in parents:
        section = section[name]
    section[key] = value
    if value is ...:
        del section[key]
    return config


def write_config(config: dict[str, Any], folder: Any, name: str = "config.yaml") -> Any:
    """Write a configuration, and return its path."""
    path = folder / name
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def arc_log(
    *, n_steps: int = 4000, every: int = 50, epoch: int | None = None, validation: Any = None, rate: Any = None,
    decoder: bool = False, resumed_at: int = 0, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """A log as arc-state writes it: a row for training, another for validation, counted from step 0."""
    rng = np.random.default_rng(seed)
    steps = np.arange(resumed_at + every - 1, resumed_at + n_steps, every)
    length = epoch or 10**9
    # what a set costs belongs to its place in the epoch, where sets are repeated
    cost = rng.lognormal(0, 0.4, size=length if epoch else len(steps))
    factor = cost[steps % length] if epoch else cost
    train = pd.DataFrame(
        {"step": steps, "epoch": steps // length, "train_loss": (0.2 + 3 * np.exp(-steps / 300)) * factor}
    )
    train["cell_sets_per_sec"] = 5.0 + rng.normal(0, 0.1, len(steps))
    train["batch_time_avg"] = 0.1
    if rate is not None:
        train["lr-Adam"] = [rate(step) for step in steps]
    if decoder:
        train["decoder_loss"] = 4.0 * factor
    rows = [train]
    if validation is not None:
        at = np.linspace(n_steps // len(validation), n_steps, len(validation)).astype(int) - 1
        held = pd.DataFrame({"step": at, "epoch": at // length, "val_loss": validation})
        if decoder:
            held["val/decoder_loss"] = 12.0
        rows.append(held)
    return pd.concat(rows).sort_values("step", kind="stable")
