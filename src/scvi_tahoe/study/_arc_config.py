"""A configuration of arc-state, read for what it says, and as one of our runs; nothing in it is executed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scvi_tahoe.study._files import read_with_lines, value_at
from scvi_tahoe.study._run_config import DataConfig, ModelConfig, StartConfig, TahoeRun, TrainConfig

_ST_NAMES = ("state", "pertsets", "neuralot")
_NO_EMBEDDING = (None, "X_hvg", "")
#: Cells of a set of the released ST-Tahoe weights, most likely; third parties fine-tuned them with 256 and 512.
_TAHOE_SET = 512
BACKBONE = "model.kwargs.transformer_backbone_kwargs"
#: Keys of a backbone -> ours.
_DIMENSIONS = {
    "hidden_size": "hidden", "num_hidden_layers": "n_layers", "intermediate_size": "intermediate",
    "num_attention_heads": "n_heads", "num_key_value_heads": "n_kv_heads", "head_dim": "head_dim",
}  # fmt: skip
_LR, _STEPS, _SETS = 1e-4, 400_000, 16


@dataclass(frozen=True, eq=False)
class ArcConfig:
    """A configuration of arc-state: its file, its values, and the line of every key by its dotted path."""

    path: Path
    content: dict[str, Any]
    lines: dict[str, int]

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value by its dotted path."""
        return value_at(self.content, key, default)

    def text(self, key: str) -> str | None:
        """Return a value as text."""
        if isinstance(value := self.get(key), dict | list):
            raise self.error(key, "one text")
        return None if value is None else str(value)

    def has(self, key: str) -> bool:
        """Return whether a key is in the file."""
        return key in self.lines

    def number(self, key: str, default: float | None = None) -> float | None:
        """Return a number by its dotted path, also where YAML reads it as text, such as ``1e-4``."""
        value = self.get(key, default)
        if isinstance(value, bool) or value is None:
            return default
        try:
            found = float(value)
        except (TypeError, ValueError):
            raise self.error(key, "a number") from None
        if not math.isfinite(found):
            raise self.error(key, "a finite number")
        return found

    def whole(self, key: str, default: int | None = None) -> int | None:
        """Return a whole number by its dotted path."""
        found = self.number(key, default)
        if found is not None and found != int(found):
            raise self.error(key, "a whole number")
        return None if found is None else int(found)

    def error(self, key: str, needed: str) -> ValueError:
        """Return the error of a value that is something else than what is needed."""
        value = repr(self.get(key))[:80]
        return ValueError(f"{self.path}, line {self.lines.get(key)}: {key} is {value}; {needed} is needed.")

    @property
    def embedding(self) -> str | None:
        """Key of the cell embedding at the input; None for expression."""
        key = self.text("data.kwargs.embed_key")
        return None if key in _NO_EMBEDDING else key

    @property
    def set_size(self) -> int | None:
        """Cells of a set."""
        return self.whole("model.kwargs.cell_set_len")

    @property
    def starts_from_tahoe(self) -> bool:
        """Whether the run starts from the released ST-Tahoe weights."""
        source = str(self.get("model.kwargs.init_from") or "").replace("\\", "/").lower()
        return any(part in ("st-tahoe", "st_tahoe") for part in source.split("/")[:-1])

    @property
    def set_size_of_source(self) -> int | None:
        """Cells of a set in the training of the weights that the run starts from: as they say, or as is likely."""
        return self._stated_set_size or (_TAHOE_SET if self.starts_from_tahoe else None)

    @property
    def set_size_is_known(self) -> bool:
        """Whether the folder of the weights states their set size."""
        return self._stated_set_size is not None

    @property
    def _stated_set_size(self) -> int | None:
        source = self.get("model.kwargs.init_from")
        for file in [folder / "config.yaml" for folder in Path(str(source)).parents[:2]] if source else []:
            if file.is_file() and (size := ArcConfig(file, *read_with_lines(file)).set_size) is not None:
                return size
        return None

    @property
    def has_gene_decoder(self) -> bool:
        """Whether genes come from a trained decoder: where cells are embeddings and the output is genes."""
        wanted = self.get("data.kwargs.output_space", "gene") in ("all", "gene")
        return self.embedding is not None and wanted and self.get("model.kwargs.gene_decoder_bool", True) is not False


def read_arc_config(path: str | Path) -> ArcConfig:
    """Read a configuration of arc-state."""
    path = Path(path)
    content, lines = read_with_lines(path)
    config = ArcConfig(path, content, lines)
    if not isinstance(config.get("model"), dict) or not isinstance(config.get("data.kwargs"), dict):
        ours = " It is a run of ours; see it with: scvi-tahoe finetune --dry-run" if "start" in content else ""
        sections = "which has the sections data.kwargs, model and training"
        raise ValueError(f"{path} is not a configuration of arc-state, {sections}.{ours}")
    if not isinstance(config.get(BACKBONE, {}), dict | None):
        raise ValueError(f"{path}, line {lines.get(BACKBONE)}: {BACKBONE} is not a mapping of names to values.")
    if not isinstance(config.get("model.kwargs"), dict) or not isinstance(config.get("training"), dict):
        raise ValueError(f"{path} lacks model.kwargs or training; give the resolved config.yaml of a run folder.")
    name = str(config.get("model.name", "state"))
    if name.lower() not in _ST_NAMES:
        raise ValueError(f"{path} is of the model {name!r}; State Transition models ({', '.join(_ST_NAMES)}) are read.")
    return config


def run_from_arc(config: ArcConfig) -> TahoeRun:
    """Return the run that a configuration of arc-state asks for, as its author meant it.

    What arc-state ignores (decay, schedule, accumulation, precision) is done. Cells and split are in a TOML file there,
    which :func:`write_run_file` reads; until then ``data.path`` is a placeholder.
    """
    embedding = config.embedding
    source, features = config.text("model.kwargs.init_from"), config.text("data.kwargs.perturbation_features_file")
    data = DataConfig(
        path="FILL_IN.h5ad", perturbation_key=config.text("data.kwargs.pert_col") or "target_gene",
        control=config.text("data.kwargs.control_pert") or "non-targeting",
        context_key=config.text("data.kwargs.cell_type_key"), batch_key=config.text("data.kwargs.batch_col"),
        cell_embedding_key=embedding,
        embedding_files={"perturbation_features": str(features)} if features else {},
    )  # fmt: skip
    model = ModelConfig(
        size=_size(config), representation="embedding" if embedding else "expression", set_size=config.set_size,
        network=_network(config), objective=_objective(config),
        batch_encoder=bool(config.get("model.kwargs.batch_encoder", False)),
    )  # fmt: skip
    return TahoeRun(
        name=str(config.get("name") or config.path.stem).replace("/", "-"),
        seed=config.whole("training.train_seed", 42) or 0, data=data, model=model, train=_train(config),
        start=StartConfig() if not source else _start(str(source)),
    )  # fmt: skip


def _start(source: str) -> StartConfig:
    """Split ``.../run/checkpoints/name.ckpt`` or ``.../folder/name.ckpt`` into folder and checkpoint.

    In place of ``last.ckpt`` None is returned: the best one, or the last where no other is.
    """
    parts = source.replace("\\", "/").split("/")
    if not parts[-1].endswith(".ckpt"):
        return StartConfig(source=source)
    *folders, name = parts
    folders = folders[:-1] if folders[-1:] == ["checkpoints"] else folders
    return StartConfig(source="/".join(folders) or ".", checkpoint=None if name == "last.ckpt" else name)


def _size(config: ArcConfig) -> dict[str, Any] | str:
    values = {ours: config.whole(f"{BACKBONE}.{theirs}") for theirs, ours in _DIMENSIONS.items()}
    values |= {ours: config.whole(f"model.kwargs.{ours}") for ours in ("n_encoder_layers", "n_decoder_layers")}
    found = {name: value for name, value in values.items() if value is not None}
    return found if {"hidden", "n_layers", "intermediate", "n_heads"} <= set(found) else "tahoe"


def _network(config: ArcConfig) -> dict[str, Any]:
    residual = config.get("model.kwargs.predict_residual", True)
    # with or without embedding: it is the output space that decides
    squeezed = config.get("data.kwargs.output_space") == "all"
    network: dict[str, Any] = {"head": ("down_up" if squeezed else "hidden_residual") if residual else "absolute"}
    if config.get("model.kwargs.use_basal_projection", True) is False:
        network["control_encoder"] = "linear"
    if config.get("model.kwargs.mask_attn", False):
        network["attention"] = "self_only"
    if config.has_gene_decoder and config.get("model.kwargs.decoder_hidden_dims"):
        # the number of genes is that of the data, and is filled in when they are read
        network["gene_decoder"] = {
            "hidden": _widths(config),
            "residual": bool(config.get("model.kwargs.residual_decoder", False)),
            "dropout": config.number("model.kwargs.decoder_dropout", 0.1),
        }
    return network


def _widths(config: ArcConfig) -> list[int]:
    key = "model.kwargs.decoder_hidden_dims"
    widths = config.get(key)
    if not isinstance(widths, list) or not all(isinstance(width, int) and width > 0 for width in widths):
        raise config.error(key, "a list of whole numbers")
    return widths


def _objective(config: ArcConfig) -> dict[str, Any]:
    loss = str(config.get("model.kwargs.loss", "energy"))
    terms: dict[str, float | None] = {loss if loss in ("sinkhorn", "mse") else "energy": 1.0}
    if loss == "se":
        defaults = {"energy": 1.0, "sinkhorn": 0.01}
        terms = {name: config.number(f"model.kwargs.{name}_weight", weight) for name, weight in defaults.items()}
    decoder = {"decoder_weight": config.number("model.kwargs.decoder_weight", 1.0)} if config.has_gene_decoder else {}
    return {"terms": terms, **decoder}


def _train(config: ArcConfig) -> TrainConfig:
    number = config.number
    accumulated = number("training.gradient_accumulation_steps", number("training.accumulate_grad_batches", 1))
    return TrainConfig(
        max_steps=config.whole("training.max_steps", _STEPS) or _STEPS,
        lr=number("training.lr", _LR),
        batch_size=config.whole("training.batch_size", _SETS) or _SETS,
        accumulate=int(accumulated or 1),
        validate_every=config.whole("training.val_freq", 2_000) or 2_000,
        freeze_backbone=bool(config.get("model.kwargs.freeze_pert_backbone", False)),
        precision=str(config.get("training.precision", "auto")),
        loggers=("wandb",) if config.get("use_wandb", False) else (),
        plan={
            "weight_decay": number("training.weight_decay", 0.0),
            "gradient_clip": min(number("training.gradient_clip_val", 10.0) or 1.0, 1.0),
            "warmup": number("training.warmup_ratio", 0.05),
            "min_lr_ratio": number("training.min_lr_ratio", 0.02),
        },
    )
