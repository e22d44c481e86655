"""A run as a file: everything that decides about its numbers, in frozen dataclasses that a YAML file fills."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from scvi_tahoe.data import Split, split_from_dict
from scvi_tahoe.evaluate import BASELINES
from scvi_tahoe.nn import GeneDecoderConfig, NetworkConfig, ObjectiveConfig
from scvi_tahoe.pretrained import DECISIONS
from scvi_tahoe.response import PRIORS
from scvi_tahoe.study._data_config import DataConfig  # noqa: TC001  its type is looked up when a file is read
from scvi_tahoe.study._plain_values import build, nearest, plain, typed
from scvi_tahoe.study._yaml import read_mapping, written
from scvi_tahoe.training import PlanConfig, Recipe

__all__ = ["LOGGERS", "PLAN_ELSEWHERE", "ModelConfig", "ScoreConfig", "StartConfig", "TahoeRun", "TrainConfig"]

LOGGERS = ("mlflow", "tensorboard", "wandb")
#: options of the optimisation that are not in ``train.plan``
PLAN_ELSEWHERE = ("max_steps", "lr", "recipe", "freeze_backbone", "seed")

_PRECISIONS = (
    "auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true", "32", "bf16", "16", "64",
)  # fmt: skip
_DIMENSIONS = ("hidden", "n_layers", "intermediate", "n_heads")


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """Where the weights come from. Weights only: never an optimizer, a schedule or a step.

    Attributes
    ----------
    source
        Folder of an earlier run, folder in Arc's format or of an export, or name on the hub; None starts from scratch.
    checkpoint
        Which checkpoint of the source; None takes the best.
    accept
        Decisions of :data:`scvi_tahoe.pretrained.DECISIONS` that the start may make.
    attention
        Overrides the attention that the source states.
    check_scale
        Refuse data on another scale than the weights'.
    revision, accept_license, offline
        Of the hub.
    """

    source: str | None = None
    checkpoint: str | None = None
    accept: tuple[str, ...] = ()
    attention: Literal["full", "causal", "causal_rope", "self_only"] | None = None
    check_scale: bool = True
    revision: str | None = None
    accept_license: bool | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        for name in self.accept:
            if name not in DECISIONS:
                raise ValueError(f"start.accept names the unknown decision {name!r}{nearest(name, DECISIONS)}")
        if self.source is None and (self.checkpoint or self.accept or self.attention):
            raise ValueError("start.source is missing, and start names a checkpoint, attention or decisions for it.")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model, as :class:`~scvi_tahoe.TahoeST` takes it; None and what is left out are the defaults of the package.

    ``size`` is not used where weights bring their own.
    """

    size: str | dict[str, Any] | None = None
    representation: Literal["expression", "embedding", "expression+embedding"] = "expression"
    set_size: int | None = None
    network: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    prior: str | None = None
    batch_encoder: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", typed(ObjectiveConfig, self.objective, "model.objective"))
        object.__setattr__(self, "network", _network(self.network, "model.network"))
        if isinstance(self.size, dict):
            object.__setattr__(self, "size", _network(self.size, "model.size"))
            if missing := [name for name in _DIMENSIONS if name not in self.size]:
                raise ValueError(f"model.size lacks {missing}; it is the name of a size, or has {list(_DIMENSIONS)}.")
        ObjectiveConfig.from_kwargs(self.objective)
        _verify_at_least_one("model", set_size=self.set_size)
        if self.prior is not None and self.prior not in PRIORS:
            raise ValueError(f"model.prior is {self.prior!r}; it is one of {', '.join(PRIORS)}.")
        if self.representation == "embedding" and self.prior not in (None, "none"):
            raise ValueError(f"model.prior is {self.prior!r}; a prior is made of expression, not of embeddings.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the model is trained, as :meth:`~scvi_tahoe.TahoeST.train` takes it; None is the default of the package.

    Attributes
    ----------
    freeze_projection
        Never train the projection to the output, not even where it is new and thus random. arc-state does so whenever
        the backbone is frozen; here to reproduce its runs.
    threads
        Of the processor. Sums over more threads are rounded otherwise, so a run keeps the number it began with; None
        takes as many as PyTorch would.
    plan
        Further options of :class:`~scvi_tahoe.training.PlanConfig` by name.
    loggers
        Beside ``metrics.csv``: any of :data:`LOGGERS`. None by default.
    offline
        Loggers write into the run folder and use no network.
    """

    max_steps: int | None = None
    recipe: Recipe = "freeze_then_unfreeze"
    freeze_backbone: bool | int | None = None
    freeze_projection: bool = False
    lr: float | None = None
    batch_size: int | None = None
    accumulate: int = 1
    validate_every: int | None = None
    monitor: str = "validation_loss"
    patience: int | None = None
    store: Literal["auto", "device", "host", "disk"] = "auto"
    precision: str = "auto"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    threads: int | None = None
    loggers: tuple[str, ...] = ()
    offline: bool = True
    plan: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _verify_at_least_one(
            "train", max_steps=self.max_steps, batch_size=self.batch_size, accumulate=self.accumulate,
            validate_every=self.validate_every, patience=self.patience, threads=self.threads,
        )  # fmt: skip
        if self.precision not in _PRECISIONS:
            raise ValueError(f"train.precision is {self.precision!r}; it is one of {', '.join(_PRECISIONS)}.")
        for name in self.loggers:
            if name not in LOGGERS:
                raise ValueError(
                    f"train.loggers names the unknown {name!r}{nearest(name, LOGGERS)} It takes {LOGGERS}."
                )
        if twice := sorted(set(self.plan) & set(PLAN_ELSEWHERE)):
            raise ValueError(f"train.plan repeats {twice}, which belong to train (and seed to the run).")
        known = {f.name for f in fields(PlanConfig)} - set(PLAN_ELSEWHERE)
        for name in self.plan:
            if name not in known:
                raise ValueError(f"train.plan has no key {name!r}{nearest(name, known)} It takes {sorted(known)}.")
        object.__setattr__(self, "plan", typed(PlanConfig, self.plan, "train.plan"))
        given: dict[str, Any] = {k: v for k, v in {"max_steps": self.max_steps, "lr": self.lr}.items() if v is not None}
        step = self.freeze_backbone
        if self.max_steps is None and step is not None and not isinstance(step, bool):
            raise ValueError("train.freeze_backbone names a step, so train.max_steps is needed, too.")
        PlanConfig(**{"max_steps": 1, **given}, recipe=self.recipe, freeze_backbone=self.freeze_backbone, **self.plan)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How the prediction is scored, as :func:`scvi_tahoe.evaluate.evaluate` takes it; no preset, no scores."""

    preset: Literal["quick", "vcc2025", "minimal", "full"] | None = "vcc2025"
    baseline: str | None = "train_mean"
    representation_check: Literal["error", "warn"] = "error"

    def __post_init__(self) -> None:
        if self.baseline is not None and self.baseline not in BASELINES:
            raise ValueError(f"score.baseline is {self.baseline!r}; it is one of {', '.join(BASELINES)}, or null.")


@dataclass(frozen=True, kw_only=True)
class TahoeRun:
    """One run, from data to scored prediction.

    Attributes
    ----------
    name
        Of the run, and of its folder.
    data, start, model, train, score
        Its parts.
    split
        Which cells validate and which are predicted, as :meth:`Split.to_dict` writes it; None takes that of the
        data set, or a tenth of the cells of every condition for validation.
    seed
        Of everything that is drawn.

    Examples
    --------
    >>> from scvi_tahoe.study import TahoeRun, finetune
    >>> run = TahoeRun.from_yaml("run.yaml")  # doctest: +SKIP
    >>> finetune(run, "runs/first").scores  # doctest: +SKIP
    """

    name: str
    data: DataConfig
    start: StartConfig = field(default_factory=StartConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    split: dict[str, Any] | None = None
    train: TrainConfig = field(default_factory=TrainConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.name or any(c in self.name for c in "/\\") or self.name.startswith("."):
            raise ValueError(f"name is {self.name!r}; it names a folder, so it is text without slashes.")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more.")
        if self.split is not None:
            split_from_dict(self.split)
        if self.model.representation != "expression" and not self.data.has_cell_embedding:
            raise ValueError(
                f"model.representation is {self.model.representation!r} and the data have no cell embedding; give "
                "data.cell_embedding_key, or data.cell_embedding_components to have one made."
            )

    @property
    def chosen_split(self) -> Split | None:
        """The split as an object."""
        return None if self.split is None else split_from_dict(self.split)

    @classmethod
    def from_dict(cls, values: object) -> TahoeRun:
        """Build from plain values.

        Raises
        ------
        ValueError
            If a key is unknown (the message names the nearest known one) or a value is out of range.
        """
        return build(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return plain(self)

    @classmethod
    def from_yaml(cls, path: str | Path) -> TahoeRun:
        """Read a run from a file. Relative paths in it count from the folder of the file.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            As :meth:`from_dict`.
        """
        path = Path(path)
        return cls.from_dict(read_mapping(path)).anchored(path.parent)

    def to_yaml(self, path: str | Path) -> None:
        """Write the run to a file, whole or not at all; defaults are spelled out."""
        written(Path(path), self.to_dict())

    def anchored(self, folder: Path) -> TahoeRun:
        """The run with paths relative to ``folder`` made absolute, where something exists there."""

        def absolute(text: str | None) -> str | None:
            if text is None:
                return None
            place = folder / Path(text).expanduser()
            return str(place.resolve()) if place.exists() else text

        data = replace(self.data, path=absolute(self.data.path), held_out=absolute(self.data.held_out))
        return replace(self, data=data, start=replace(self.start, source=absolute(self.start.source)))


def _network(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Options of the network, each of its kind; the decoder's number of genes is that of the data."""
    options = {name: value for name, value in values.items() if name != "gene_decoder"}
    options = typed(NetworkConfig, options, where)
    if "gene_decoder" not in values:
        return options
    decoder = values["gene_decoder"]
    return options | {
        "gene_decoder": None if decoder is None else plain(typed(GeneDecoderConfig, decoder, f"{where}.gene_decoder"))
    }


def _verify_at_least_one(where: str, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{where}.{name} is {value}; it must be 1 or more.")
