"""A model as it lies in a folder: network, weights, labels of its axes and origin; and the formats of folders.

A file ``_format_*.py`` for each format, reader and writer together, registers itself in ``FORMATS``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from scvi_tahoe._arguments import checked
from scvi_tahoe._names import Registry
from scvi_tahoe.files import UnsafeFileError
from scvi_tahoe.nn import SetTransformer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from scvi_tahoe.data import EmbeddingTable
    from scvi_tahoe.nn import NetworkConfig
    from scvi_tahoe.pretrained._report import LoadingReport

_Loss = Literal["energy", "sinkhorn", "energy+sinkhorn", "mse"]
_Kernel = Literal["energy", "gaussian", "laplacian"]
#: Building a network, even without weights, takes a millisecond a layer.
_MAX_LAYERS = 1_000
#: How the note begins that asks for names of genes; it goes when they are given.
UNNAMED_GENES = "the folder does not name the genes of the network"


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """How the weights were trained, as far as the folder says; names follow the terms of the loss.

    Raises
    ------
    ValueError
        If a setting is of another kind, negative or not finite.
    """

    #: Main loss: ``'energy'``, ``'sinkhorn'``, ``'energy+sinkhorn'`` or ``'mse'``.
    loss: _Loss = "energy"
    #: Distance of the energy loss: ``'energy'``, ``'gaussian'`` or ``'laplacian'``.
    kernel: _Kernel = "energy"
    #: Width of the kernel, or of the Sinkhorn smoothing.
    blur: float = 0.05
    #: Weights of the two terms of ``'energy+sinkhorn'``.
    energy_weight: float = 1.0
    sinkhorn_weight: float = 0.01
    #: Number of feature chunks the loss is averaged over, and whether features are shuffled first.
    n_chunks: int = 1
    shuffle_chunks: bool = False
    #: Weight of the gene decoder's loss, and whether its gradient stops at the decoder.
    decoder_weight: float = 1.0
    detach_decoder: bool = False
    #: Weight of the batch classifier's cross-entropy.
    batch_token_weight: float = 0.1
    #: Weight of the confidence loss and factor on the loss it predicts.
    confidence_weight: float = 0.01
    confidence_target_scale: float = 10.0
    #: Weight of the mean absolute change against the controls.
    regularization: float = 0.0
    #: Learning rate of that training, or ``None`` if unknown.
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in ("loss", "kernel"):
                fits = value in get_args(_Loss if name == "loss" else _Kernel)
            elif name in ("shuffle_chunks", "detach_decoder"):
                fits = isinstance(value, bool)
            else:
                fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
                fits = fits or (name == "learning_rate" and value is None)
            if not fits or (name == "n_chunks" and value < 1):
                raise ValueError(f"the loss setting {name} cannot be {str(value)[:40]!r}")

    def to_kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments that build these settings again, as plain values fit for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ModelFormat:
    """How a model folder of one format is recognised, read and written."""

    #: Whether a folder is in this format. None for the format that a folder is taken for if no other matches.
    matches: Callable[[Path], bool] | None
    #: ``read(folder, *, checkpoint, attention, genes, base)`` returns a :class:`PretrainedModel`, see
    #: :func:`read_pretrained`; what a format has no use for is refused.
    read: Callable[..., Any]
    #: ``write(model, folder, *, overwrite)``, and ``base`` if ``takes_base``: complete or not at all.
    write: Callable[..., None]
    #: Whether a folder can refer to the backbone of another model instead of holding it.
    takes_base: bool = False
    #: What a model does that the format has no counterpart for. If None, the format can hold every model.
    refusals: Callable[[Any], list[str]] | None = None


#: Formats that ``from_pretrained`` reads and ``export`` writes, by the name that ``format=`` and ``--to`` take.
FORMATS: Registry[ModelFormat] = Registry("format")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where weights came from and how their attention was decided.

    Raises
    ------
    ValueError
        If a value is not allowed, or the format is unknown.
    """

    #: Hub name or folder name (never an absolute path).
    source: str
    #: Commit of the hub, or ``None``.
    revision: str | None = None
    #: File the weights were read from.
    checkpoint: str | None = None
    #: A registered format, or ``'scratch'``.
    format: str = "scratch"
    #: Why the attention of the network is what it is.
    attention_reason: str = ""
    #: Whether that is stated by the folder rather than assumed.
    attention_certain: bool = True
    #: Whether the weights derive from Arc's, or may do so, and inherit their licence.
    non_commercial: bool = False
    #: Licence that the model card beside the weights names, as the hub writes it; empty if none.
    licence: str = ""

    def __post_init__(self) -> None:
        words = (self.source, self.revision or "", self.checkpoint or "", self.attention_reason, self.licence)
        if not all(isinstance(word, str) and len(word) < 2_000 and word.isprintable() for word in words):
            raise ValueError("where the weights come from is not stated in plain words")
        if self.format not in (*FORMATS, "scratch"):
            raise ValueError(f"the weights state the unknown format {str(self.format)[:40]!r}")


@dataclass(frozen=True, kw_only=True, eq=False)
class AxisLabels:
    """What the axes of a network stand for."""

    #: Names of the input and output columns where cells are expression; ``None`` where they are embeddings, or where
    #: the folder does not say.
    genes: tuple[str, ...] | None
    #: Perturbation names and vectors.
    perturbations: EmbeddingTable
    #: The perturbation name of control cells.
    control: str | None
    #: Cells in a set during training.
    set_size: int
    #: Names of the gene decoder's output columns.
    decoder_genes: tuple[str, ...] | None = None
    #: Technical batches, in the order of the batch encoder's rows.
    batches: tuple[str, ...] | None = None
    #: Cell lines, cell types or donors seen in training.
    contexts: tuple[str, ...] | None = None
    #: ``obsm`` key of the cell embedding the network works on, or ``None`` for expression.
    embedding: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class PretrainedModel:
    """Everything useful in a model folder: network, weights, labels, training settings, origin."""

    #: The network.
    config: NetworkConfig
    #: Its weights in our names, float32.
    state_dict: dict[str, Tensor] = field(repr=False)
    #: What its axes stand for.
    labels: AxisLabels
    #: How it was trained.
    loss: LossSettings = field(default_factory=LossSettings)
    #: ``'gene'`` (highly variable genes), ``'all'`` genes, or ``'embedding'``, as the folder says.
    output_space: Literal["gene", "all", "embedding"] = "gene"
    #: Where it came from.
    provenance: Provenance
    #: What happened to every tensor of the folder.
    report: LoadingReport | None = field(default=None, repr=False)
    #: Remarks a user should read.
    notes: tuple[str, ...] = ()
    #: Plain values that travel along in our own format (see :func:`export_model`).
    extra: dict[str, Any] = field(default_factory=dict, repr=False)
    #: What the prior of the model keeps of its training data, by the names of the fields of
    #: ``response._prior.CellPrior``; genes as in ``labels``.
    prior: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def genes(self) -> tuple[str, ...] | None:
        """Names of input and output columns, or ``None``."""
        return self.labels.genes

    @property
    def perturbations(self) -> EmbeddingTable:
        """Names and vectors of the perturbations."""
        return self.labels.perturbations

    @property
    def batches(self) -> tuple[str, ...] | None:
        """Technical batches in the order of the batch encoder."""
        return self.labels.batches

    @property
    def contexts(self) -> tuple[str, ...] | None:
        """Cell lines, cell types or donors of the training."""
        return self.labels.contexts

    @property
    def control(self) -> str | None:
        """Label of control cells."""
        return self.labels.control

    @property
    def set_size(self) -> int:
        """Cells in a set during training."""
        return self.labels.set_size

    @property
    def embed_key(self) -> str | None:
        """``obsm`` key of the cell embedding, or ``None`` for expression."""
        return self.labels.embedding

    @property
    def embeds(self) -> bool:
        """Whether cells are embeddings rather than expression."""
        return is_embedding(self.labels.embedding)

    @checked()
    def with_genes(self, genes: Sequence[str]) -> PretrainedModel:
        """Return the model with names for the genes of its input and output; a ValueError if they cannot be."""
        genes = tuple(genes)
        if self.config.n_input != self.config.n_output or self.embeds:
            raise ValueError("The cells of this model are embeddings; their columns have no gene names.")
        if len(genes) != self.config.n_output or len(set(genes)) != len(genes):
            raise ValueError(
                f"{len(genes)} gene names ({len(set(genes))} different) were given; the network has "
                f"{self.config.n_output} genes. Give the names of its columns, in their order."
            )
        notes = tuple(note for note in self.notes if not note.startswith(UNNAMED_GENES))
        return replace(self, labels=replace(self.labels, genes=genes), notes=notes)

    @checked()
    def build(self) -> Any:
        """Return a :class:`~scvi_tahoe.nn.SetTransformer` with these weights, sharing their memory, in eval mode."""
        return network_with(self.config, self.state_dict)


def network_with(config: NetworkConfig, state: Mapping[str, Tensor]) -> SetTransformer:
    """Return a network with these weights, sharing their memory, in eval mode."""
    with torch.device("meta"):
        network = SetTransformer(config)
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval()


def is_embedding(key: str | None) -> bool:
    """Return whether cells under an ``obsm`` key are embeddings rather than expression (of all or variable genes)."""
    return key not in (None, "X_hvg")


def target_shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a network, without building its weights."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in SetTransformer(config).state_dict().items()}


def verify_depth(config: NetworkConfig) -> None:
    """Raise :class:`UnsafeFileError` if a network claims so many layers that its shapes could not be listed."""
    n_layers = config.n_layers + config.n_encoder_layers + config.n_decoder_layers
    n_layers += len(config.gene_decoder.hidden) if config.gene_decoder else 0
    if n_layers > _MAX_LAYERS:
        raise UnsafeFileError(f"The folder describes a network of {n_layers:,} layers; the largest known has 16.")
