"""A run as a file: everything that decides about its numbers, in frozen dataclasses that a YAML file fills.

Which options there are, their types and their defaults, say the signatures of the methods of
:class:`~scvi_tahoe.TahoeST`: a new option of ``train()`` is an option of the file, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from scvi_tahoe import TahoeST
from scvi_tahoe._arguments import checked
from scvi_tahoe._names import nearest_names
from scvi_tahoe.data import Split, split_from_dict
from scvi_tahoe.datasets import simulate_screen
from scvi_tahoe.evaluate import BASELINES, PRESETS, evaluate
from scvi_tahoe.nn import GeneDecoderConfig, NetworkConfig, ObjectiveConfig
from scvi_tahoe.pretrained import DECISIONS
from scvi_tahoe.study._files import anchored, read_mapping, write_mapping
from scvi_tahoe.study._plain_values import Section, build, plain, section, typed
from scvi_tahoe.training import PlanConfig

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

LOGGERS = ("mlflow", "tensorboard", "wandb")
#: options of the optimisation that are not in ``train.plan``
PLAN_ELSEWHERE = ("max_steps", "lr", "recipe", "freeze_backbone", "seed")
#: key of ``obsm`` under which an embedding made from the data is kept
_MADE_EMBEDDING = "X_components"

#: options of ``data`` that name files
PATHS = ("path", "held_out", "embedding_files")
#: and those of ``start``
SOURCES = ("source", "backbone_from")
_Dataset = Literal["papalexi_few_shot", "papalexi_thp1", "norman_k562", "simulated"]
_MOST_THREADS = 1_024  # the system ends a process that asks for many more
_PRECISIONS = tuple("auto 32-true bf16-mixed 16-mixed bf16-true 16-true 64-true 32 bf16 16 64".split())
_DIMENSIONS = ("hidden", "n_layers", "intermediate", "n_heads")


@section(TahoeST.setup_anndata, TahoeST.setup_mudata, own_first=True)
class DataConfig(Section):
    """Where the cells of a run are, and how they are labelled: the arguments of ``TahoeST.setup_anndata``, and more.

    Attributes
    ----------
    path
        File with log1p expression: h5ad, several of them in a list, h5mu with ``modalities``, or the folder of a store
        that ``scvi-tahoe convert`` wrote.
    dataset
        A screen of the package instead, whose labels are known.
    held_out
        File, or several, of observed cells to predict and score, with controls. If None, the test part of the split.
    embedding_files
        Files with perturbation embeddings, as :func:`scvi_tahoe.pretrained.read_embedding_table` reads them, by the key
        of ``uns`` that they are put under; without ``perturbation_embedding_key`` all of them are used.
    cell_embedding_components
        Make a cell embedding of this many principal components of the control cells, every cell scaled to length 1: a
        stand-in where a pretrained embedding is not at hand, which has not seen perturbed cells either.
    n_genes
        Number of genes for ``dataset='simulated'``.
    simulation
        Further options of :func:`~scvi_tahoe.datasets.simulate_screen` for it.
    sha256
        What the content of the cells must hash to; a finished run writes it, so that a rebuild on other data stops.
    """

    path: str | tuple[str, ...] | None = None
    dataset: _Dataset | None = None
    held_out: str | tuple[str, ...] | None = None
    embedding_files: dict[str, str] = field(default_factory=dict)
    cell_embedding_components: int | None = None
    n_genes: int | None = None
    simulation: dict[str, Any] = field(default_factory=dict)
    sha256: str | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.dataset is None):
            screens = ", ".join(get_args(_Dataset))
            raise ValueError(f"data takes either path (an h5ad file) or dataset (one of {screens}).")
        _verify_not_empty("data", path=self.path, held_out=self.held_out)
        if self.path is not None and (self.perturbation_key is None or self.control is None):
            raise ValueError("data.path needs perturbation_key (column of obs) and control (label of control cells).")
        if self.dataset is not None and (self.perturbation_key or self.control):
            raise ValueError("data.dataset brings perturbation_key and control along; leave them out.")
        if (self.modalities is not None) != any(name.endswith(".h5mu") for name in self.files):
            raise ValueError("data.modalities says which parts of an h5mu file hold what; give both or neither.")
        if self.embedding_files and self.perturbation_embedding_key is None:
            object.__setattr__(self, "perturbation_embedding_key", tuple(self.embedding_files))
        for name in ("n_genes", "simulation"):
            if getattr(self, name) and self.dataset != "simulated":
                raise ValueError(f"data.{name} is for dataset: simulated only.")
        known = set(signature(simulate_screen).parameters) - {"n_genes"}
        _verify_known("data.simulation has no option", self.simulation, known)
        if self.cell_embedding_components is not None:
            _verify_at_least_one("data", cell_embedding_components=self.cell_embedding_components)
            if self.cell_embedding_key is not None:
                raise ValueError("data takes cell_embedding_key or cell_embedding_components, not both.")

    @property
    def embedding_key(self) -> str | None:
        """Key of ``obsm`` with the cell embedding; None if cells have none."""
        if self.cell_embedding_components is not None:
            return _MADE_EMBEDDING
        return self.cell_embedding_key or (self.modalities or {}).get("cell_embedding")

    @property
    def files(self) -> tuple[str, ...]:
        """Files of the cells."""
        return (self.path,) if isinstance(self.path, str) else self.path or ()

    @property
    def keys(self) -> dict[str, Any]:
        """Arguments of :meth:`~scvi_tahoe.TahoeST.setup_anndata`."""
        return self.arguments(TahoeST.setup_anndata) | {"cell_embedding_key": self.embedding_key}


@section(TahoeST.from_pretrained, without=("seed", "set_size", "network", "objective", "prior", "criterion",
                                           "representation", "batch_encoder"))  # fmt: skip
class StartConfig(Section):
    """Where the weights come from, as ``TahoeST.from_pretrained`` takes it: never an optimizer, a schedule or a step.

    Attributes
    ----------
    source
        Folder of an earlier run, folder in Arc's format or of an export, or name on the hub. If None, the model starts
        from scratch.
    check_scale
        Refuse data on another scale than the weights'. If None, for weights other than those of an earlier run.
    """

    source: str | None = None
    check_scale: bool | None = None

    def __post_init__(self) -> None:
        _verify_known("start.accept names the unknown decision", self.accept, DECISIONS)
        given = [f.name for f in fields(StartConfig) if getattr(self, f.name) != f.default]  # type: ignore[arg-type]
        if self.check_scale:  # as run folders of 0.1 have it, with or without a source
            given.remove("check_scale")
        if self.source is None and given:
            raise ValueError(f"start.source is missing, and start names {', '.join(given)} for it.")


@section(TahoeST.__init__, optional=True, without=("seed",))
class ModelConfig(Section):
    """The model, as :class:`~scvi_tahoe.TahoeST` and its ``from_pretrained`` take it.

    None and what is left out are as in the weights of ``start.source``, or else the defaults of the package. A ``size``
    that differs from that of the weights is refused.
    """

    network: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", typed(ObjectiveConfig, self.objective, "model.objective"))
        object.__setattr__(self, "network", _network(self.network, "model.network"))
        if isinstance(self.size, dict):
            object.__setattr__(self, "size", _network(self.size, "model.size"))
            if missing := [name for name in _DIMENSIONS if name not in self.size]:
                raise ValueError(f"model.size lacks {missing}; it is the name of a size, or has {list(_DIMENSIONS)}.")
        ObjectiveConfig.from_kwargs(self.objective)
        _verify_at_least_one("model", set_size=self.set_size)
        if self.representation == "embedding" and self.prior not in (None, "none"):
            raise ValueError(f"model.prior is {self.prior!r}; a prior is made of expression, not of embeddings.")


@section(TahoeST.train, without=("save_dir", "resume_from", "logger", "seed", "progress", "plan_kwargs"))
class TrainConfig(Section):
    """How the model is trained, as :meth:`~scvi_tahoe.TahoeST.train` takes it; None is the default of the package.

    Attributes
    ----------
    accumulate
        Minibatches per optimizer step.
    accelerator
        Where it is trained.
    freeze_projection
        Never train the projection to the output, not even where it is new and thus random. arc-state does so whenever
        the backbone is frozen; here to reproduce its runs.
    threads
        Threads of the processor. Sums over more threads are rounded otherwise, so a run keeps the number it began with.
        If None, as many as PyTorch would take.
    loggers
        Loggers in addition to ``metrics.csv``: any of :data:`LOGGERS`.
    offline
        Loggers write into the run folder and use no network.
    plan
        Further options of :class:`~scvi_tahoe.training.PlanConfig` by name.
    """

    accumulate: int = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    freeze_projection: bool = False
    threads: int | None = None
    loggers: tuple[str, ...] = ()
    offline: bool = True
    plan: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _verify_at_least_one(
            "train", max_steps=self.max_steps, batch_size=self.batch_size, accumulate=self.accumulate,
            validate_every=self.validate_every, patience=self.patience, save_steps=self.save_steps,
            threads=self.threads,
        )  # fmt: skip
        if (self.threads or 1) > _MOST_THREADS:
            raise ValueError(f"train.threads is {self.threads}; it must be at most {_MOST_THREADS:,}.")
        if str(self.precision) not in _PRECISIONS:
            raise ValueError(f"train.precision is {self.precision!r}; it is one of {', '.join(_PRECISIONS)}.")
        _verify_known("train.loggers names the unknown", self.loggers, LOGGERS)
        if twice := sorted(set(self.plan) & set(PLAN_ELSEWHERE)):
            raise ValueError(f"train.plan repeats {twice}, which belong to train (and seed to the run).")
        _verify_known("train.plan has no key", self.plan, {f.name for f in fields(PlanConfig)} - set(PLAN_ELSEWHERE))
        object.__setattr__(self, "plan", typed(PlanConfig, self.plan, "train.plan"))
        step = self.freeze_backbone
        if self.max_steps is None and step is not None and not isinstance(step, bool):
            raise ValueError("train.freeze_backbone names a step, so train.max_steps is needed, too.")
        given = {k: v for k, v in {"max_steps": self.max_steps, "lr": self.lr}.items() if v is not None}
        PlanConfig(**{"max_steps": 1, **given}, recipe=self.recipe, freeze_backbone=step, **self.plan)


@section(evaluate, TahoeST.evaluate, without=("perturbation_key", "control", "context_key", "allow_train", "seed",
                                              "progress"))  # fmt: skip
class ScoreConfig(Section):
    """How the prediction is scored, as :meth:`~scvi_tahoe.TahoeST.evaluate` takes it.

    Attributes
    ----------
    preset
        Which scores. If None, nothing is predicted and scored.
    """

    preset: str | None = "vcc2025"

    def __post_init__(self) -> None:
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"score.preset is {self.preset!r}; it is one of {', '.join(PRESETS)}, or null.")
        if self.baseline not in (None, "auto") and self.baseline.partition(":")[0] not in BASELINES:
            raise ValueError(
                f"score.baseline is {self.baseline!r}; it is one of auto, {', '.join(BASELINES)}, or null."
            )
        from_counts = self.preset is not None and PRESETS[self.preset].from_counts
        if from_counts != (self.counts_layer is not None):
            raise ValueError("score.preset: vcc2026 scores raw counts, and score.counts_layer names the layer with them"
                             "; give both or neither.")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TahoeRun:
    """One run, from data to scored prediction.

    Attributes
    ----------
    name
        Name of the run, and of its folder.
    data, start, model, train, score
        Its parts.
    split
        Which cells validate and which are predicted, as :meth:`Split.to_dict` writes it. If None, that of the data set,
        or the validation cells that :meth:`~scvi_tahoe.TahoeST.train` chooses by default; so also if it names only
        ``test``.
    seed
        Seed of everything that is drawn.

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
        _ = self.chosen_split
        kind = self.model.representation
        if kind not in (None, "expression") and self.data.embedding_key is None:
            raise ValueError(f"model.representation is {kind!r} and the data have no cell embedding; give data."
                             "cell_embedding_key, or data.cell_embedding_components to have one made.")  # fmt: skip

    @property
    def chosen_split(self) -> Split | None:
        """The split as an object."""
        return None if self.split is None else split_from_dict(self.split)

    @classmethod
    @checked()
    def from_dict(cls, values: object) -> TahoeRun:
        """Build from plain values.

        Raises
        ------
        ValueError
            If a key is unknown (the message names the nearest known one) or a value is out of range.
        """
        return build(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return plain(self)

    @classmethod
    @checked()
    def from_yaml(cls, path: str | Path) -> TahoeRun:
        """Read a run from a file. Relative paths in it count from the folder of the file.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If a key is unknown or a value is out of range, as in :meth:`from_dict`.
        """
        path = Path(path)
        run = cls.from_dict(read_mapping(path))

        def with_anchors(part: Section, *names: str) -> Any:
            return part.replaced(**{name: anchored(getattr(part, name), path.parent) for name in names})

        data = with_anchors(run.data, *PATHS)
        start = with_anchors(run.start, *SOURCES)
        return replace(run, data=data, start=start)

    @checked()
    def to_yaml(self, path: str | Path) -> None:
        """Write the run to a file, with its defaults spelled out; the file appears complete or not at all."""
        write_mapping(Path(path), self.to_dict())


def _network(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Check options of the network, each of its kind; the decoder's number of genes is that of the data."""
    options = typed(NetworkConfig, {k: v for k, v in values.items() if k != "gene_decoder"}, where)
    decoder = values.get("gene_decoder")
    if decoder is not None:
        decoder = plain(typed(GeneDecoderConfig, decoder, f"{where}.gene_decoder"))
    return options | ({"gene_decoder": decoder} if "gene_decoder" in values else {})


def _verify_known(problem: str, names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            near = nearest_names(name, list(known), n=1)
            raise ValueError(f"{problem} {name!r}{near}. It takes {', '.join(sorted(known))}.")


def _verify_not_empty(section: str, **values: Any) -> None:
    for name, value in values.items():
        if value in ("", ()):
            raise ValueError(f"{section}.{name} is empty; it names a file, or several in a list.")


def _verify_at_least_one(where: str, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{where}.{name} is {value}; it must be 1 or more.")
