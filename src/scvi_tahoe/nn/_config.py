"""What a network is made of: one frozen dataclass, checked when it is built, and the sizes that have a name."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypedDict, get_args

from scvi_tahoe._arguments import checked_fields

AttentionName = Literal["full", "causal", "causal_rope", "self_only"]
BackboneName = Literal["llama", "gpt2"]
ControlEncoder = Literal["mlp", "linear"]
HeadName = Literal["delta", "hidden_residual", "absolute", "down_up"]
SizeName = Literal["mini", "small", "medium", "base", "large", "tahoe"]

#: Names of the activations that the encoders and the head accept.
ACTIVATIONS = ("gelu", "relu", "leakyrelu", "elu", "selu")

#: Named sizes, smallest first. Every entry holds keyword arguments of :class:`NetworkConfig`. ``mini`` trains on a
#: laptop; ``medium``, ``base``, ``large`` and ``tahoe`` have the dimensions of published ST models.
SIZES: dict[str, dict[str, int]] = {
    "mini": {"hidden": 128, "n_layers": 2, "intermediate": 512, "n_heads": 4, "head_dim": 32,
             "n_encoder_layers": 2, "n_decoder_layers": 2},
    "small": {"hidden": 256, "n_layers": 4, "intermediate": 1024, "n_heads": 8, "head_dim": 32,
              "n_encoder_layers": 2, "n_decoder_layers": 2},
    "medium": {"hidden": 672, "n_layers": 4, "intermediate": 2688, "n_heads": 8, "head_dim": 84,
               "n_encoder_layers": 4, "n_decoder_layers": 4},
    "base": {"hidden": 768, "n_layers": 8, "intermediate": 3072, "n_heads": 12, "head_dim": 64,
             "n_encoder_layers": 1, "n_decoder_layers": 1},
    "large": {"hidden": 1440, "n_layers": 4, "intermediate": 4416, "n_heads": 12, "head_dim": 120,
              "n_encoder_layers": 4, "n_decoder_layers": 4},
    "tahoe": {"hidden": 1488, "n_layers": 6, "intermediate": 5952, "n_heads": 12, "head_dim": 124,
              "n_encoder_layers": 4, "n_decoder_layers": 4},
}  # fmt: skip


@checked_fields
@dataclass(frozen=True, kw_only=True)
class GeneDecoderConfig:
    """The decoder that turns a predicted cell (often an embedding) into gene expression.

    Raises
    ------
    ValueError
        If a width is not positive, or residual blocks have different widths.
    """

    #: Number of genes that come out.
    n_genes: int
    #: Widths of the hidden blocks, in order.
    hidden: tuple[int, ...]
    #: Add the output of block ``k - 1`` to the output of block ``k`` for odd ``k``.
    residual: bool = False
    #: Dropout probability after each block.
    dropout: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        _verify_positive(n_genes=self.n_genes, **{f"hidden[{i}]": width for i, width in enumerate(self.hidden)})
        _verify_probability(dropout=self.dropout)
        if not self.hidden:
            raise ValueError("hidden of the gene decoder is empty; give the width of at least one block, e.g. (512,).")
        odd = range(1, len(self.hidden), 2)
        if self.residual and any(self.hidden[k] != self.hidden[k - 1] for k in odd):
            raise ValueError(f"A residual gene decoder adds blocks in pairs of equal width; got hidden={self.hidden}.")


@checked_fields
@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Everything that decides the shape and the function of a :class:`SetTransformer`.

    Parameters
    ----------
    n_input
        Width of a cell at the input: number of genes, or width of the cell embedding.
    n_output
        Width of a predicted cell.
    n_perturbation
        Numbers that the perturbation encoder takes in (number of labels where they are one-hot).
    n_perturbation_parts
        With 2 or more, a perturbation vector holds that many parts, each of ``n_perturbation`` numbers and a mark of
        presence; each part is encoded and the encoded parts are summed.
    hidden, n_layers, intermediate, n_heads
        Width, depth, feed-forward width and number of attention heads of the backbone.
    n_kv_heads
        Number of key/value heads; fewer than ``n_heads`` shares each among a group of heads. If None, ``n_heads``.
    head_dim
        Width of a head; ``n_heads * head_dim`` need not equal ``hidden``. If None, ``hidden // n_heads``.
    n_encoder_layers, n_decoder_layers
        Linear layers of the two encoders and of the projection to the output.
    control_encoder
        One of:

        * ``'mlp'`` - ``n_encoder_layers`` linear layers with activations between (default)
        * ``'linear'`` - a single linear layer
    backbone
        One of:

        * ``'llama'`` - RMS norms, gated feed-forward, no biases (default)
        * ``'gpt2'`` - layer norms, GELU feed-forward, biases
    attention
        Which cells of its set a cell sees, one of:

        * ``'full'`` - all of them; the network is permutation-equivariant (default)
        * ``'causal'`` - those before it
        * ``'causal_rope'`` - those before it, with rotary positions
        * ``'self_only'`` - only itself
    head
        How the prediction is formed from the backbone output ``t``, with ``c`` the encoded control, one of:

        * ``'delta'`` - ``base + project(t)``, the last layer starting at zero: an untrained network predicts its
          controls (default)
        * ``'hidden_residual'`` - ``project(t + c)``
        * ``'absolute'`` - ``project(t)``
        * ``'down_up'`` - ``up(gelu(down(project(t) + control)))``
    rectify
        Set negative predictions to zero.
    keep_zeros
        With ``head='delta'``: change only genes that a cell of the base expresses. A change added to every zero would
        turn the ties of rank tests into differences, and real cells are mostly zeros.
    base_encoder
        Whether the cells that ``head='delta'`` adds to are given at the input, too, in addition to the control cells.
    sees_perturbation
        Whether the network is told which perturbation a set received. Without, it knows what ``base_encoder`` shows of
        it: it can learn how a base errs in general, and cannot learn single perturbations by heart.
    n_batches
        If positive, a learned vector for each technical batch is added to every cell of it.
    batch_token
        Put a learned token before the cells and classify the technical batch from it.
    n_batch_classes
        Number of batches that the classifier distinguishes; needs ``batch_token``.
    confidence_token
        Put a learned token behind the cells and read an expected loss of the set from it.
    gene_decoder
        Decoder from the predicted cell to genes, or ``None``.
    activation
        Activation of the encoders and of the projection: ``'gelu'``, ``'relu'``, ``'leakyrelu'``, ``'elu'``,
        ``'selu'``.
    dropout
        Dropout probability in the encoders and in the projection.
    attention_dropout
        Dropout probability of attention weights.
    backbone_dropout
        Dropout probability on the residual branches of a ``'gpt2'`` backbone. ``'llama'`` has none.

    Raises
    ------
    ValueError
        If a value is out of range or two values contradict each other.
    """

    n_input: int
    n_output: int
    n_perturbation: int
    hidden: int
    n_layers: int
    intermediate: int
    n_heads: int
    n_perturbation_parts: int = 1
    n_kv_heads: int | None = None
    head_dim: int | None = None
    n_encoder_layers: int = 2
    n_decoder_layers: int = 2
    control_encoder: ControlEncoder = "mlp"
    backbone: BackboneName = "llama"
    attention: AttentionName = "full"
    head: HeadName = "delta"
    rectify: bool = True
    keep_zeros: bool = False
    base_encoder: bool = False
    sees_perturbation: bool = True
    n_batches: int = 0
    batch_token: bool = False
    n_batch_classes: int = 0
    confidence_token: bool = False
    gene_decoder: GeneDecoderConfig | None = None
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    backbone_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        self._verify_values()
        if self.head_dim is None:
            if self.hidden % self.n_heads:
                sizes = f"hidden={self.hidden} is not divisible by n_heads={self.n_heads}"
                raise ValueError(f"{sizes}; give head_dim explicitly.")
            object.__setattr__(self, "head_dim", self.hidden // self.n_heads)
        self._verify_attention()
        self._verify_tokens_and_head()

    @property
    def perturbation_width(self) -> int:
        """P, the width of a perturbation vector."""
        n = self.n_perturbation_parts
        return self.n_perturbation if n == 1 else n * (self.n_perturbation + 1)

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads, resolved."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def width_of_head(self) -> int:
        """Width of an attention head, resolved."""
        return self.hidden // self.n_heads if self.head_dim is None else self.head_dim

    @property
    def down_width(self) -> int:
        """Width of the bottleneck of ``head='down_up'``: an eighth of the output."""
        return self.n_output // 8

    def to_kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments that build this configuration again, as plain values fit for JSON."""
        kwargs = asdict(self)
        if self.gene_decoder is not None:
            kwargs["gene_decoder"]["hidden"] = list(self.gene_decoder.hidden)
        return kwargs

    @classmethod
    def from_kwargs(cls, kwargs: dict[str, Any]) -> NetworkConfig:
        """Build a configuration from what :meth:`to_kwargs` returned.

        Raises
        ------
        ValueError
            If a key is unknown.
        """
        _verify_known_keys(cls, kwargs)
        if (decoder := kwargs.get("gene_decoder")) is not None:
            _verify_known_keys(GeneDecoderConfig, decoder)
            if missing := sorted({"n_genes", "hidden"} - set(decoder)):
                raise ValueError(f"gene_decoder lacks {missing}; hidden is a list of widths, e.g. [512, 512].")
            kwargs = {**kwargs, "gene_decoder": GeneDecoderConfig(**decoder)}
        return cls(**kwargs)

    def _verify_values(self) -> None:
        names = ["n_input", "n_output", "n_perturbation", "n_perturbation_parts", "hidden", "n_layers", "intermediate",
                 "n_heads", "n_kv_heads", "n_encoder_layers", "n_decoder_layers"]  # fmt: skip
        names += [] if self.head_dim is None else ["head_dim"]
        _verify_positive(**{name: getattr(self, name) for name in names})
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, choices))}.")
        _verify_probability(
            dropout=self.dropout, attention_dropout=self.attention_dropout, backbone_dropout=self.backbone_dropout
        )

    def _verify_attention(self) -> None:
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.kv_heads}.")
        if self.attention == "causal_rope" and self.width_of_head % 2:
            raise ValueError(f"attention='causal_rope' rotates pairs; head_dim={self.width_of_head} is odd.")
        if self.backbone != "gpt2":
            return
        if self.kv_heads != self.n_heads or self.n_heads * self.width_of_head != self.hidden:
            raise ValueError("backbone='gpt2' needs n_kv_heads == n_heads and n_heads * head_dim == hidden.")
        if self.attention == "causal_rope":
            raise ValueError("backbone='gpt2' has no rotary positions; use attention='causal' or 'full'.")

    def _verify_tokens_and_head(self) -> None:
        if self.n_batches < 0 or self.n_batch_classes < 0:
            raise ValueError("n_batches and n_batch_classes are numbers of batches and cannot be negative.")
        if self.batch_token != (self.n_batch_classes > 0):
            raise ValueError(
                f"batch_token={self.batch_token} does not fit n_batch_classes={self.n_batch_classes}; "
                "the token needs at least one class and classes need the token."
            )
        if self.confidence_token and self.hidden < 4:
            raise ValueError(f"confidence_token needs hidden >= 4; got {self.hidden}.")
        if (self.keep_zeros or self.base_encoder) and self.head != "delta":
            raise ValueError(f"keep_zeros and base_encoder need head='delta'; got head={self.head!r}.")
        if not (self.sees_perturbation or self.base_encoder):
            raise ValueError(
                "sees_perturbation=False leaves the network without any sign of the perturbation; it needs "
                "base_encoder=True, which prior='cells' brings."
            )
        if self.head == "down_up" and self.n_input != self.n_output:
            raise ValueError(
                f"head='down_up' adds the control to the output; n_input={self.n_input} and n_output={self.n_output} "
                "must be equal."
            )
        if self.head == "down_up" and self.n_output < 8:
            raise ValueError(f"head='down_up' squeezes the output to an eighth; n_output={self.n_output} is below 8.")


_CHOICES: dict[str, tuple[str, ...]] = {
    "control_encoder": get_args(ControlEncoder),
    "backbone": get_args(BackboneName),
    "attention": get_args(AttentionName),
    "head": get_args(HeadName),
    "activation": ACTIVATIONS,
}


def _verify_positive(**values: int) -> None:
    """Raise ``ValueError`` unless every value is an integer of at least one."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be a positive integer.")


def _verify_probability(**values: float) -> None:
    """Raise ``ValueError`` unless every value lies in [0, 1)."""
    for name, value in values.items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name}={value!r} must be at least 0 and below 1.")


def _verify_known_keys(owner: type, kwargs: dict[str, Any]) -> None:
    """Raise ``ValueError`` if a key is not a field of the dataclass."""
    known = {field.name for field in fields(owner)}
    if unknown := sorted(set(kwargs) - known):
        raise ValueError(f"{owner.__name__} does not know {unknown}; it knows {sorted(known)}.")


class NetworkOptions(TypedDict, total=False):
    """Options of :class:`NetworkConfig` by name, for type checkers: ``TahoeST(network=...)``."""

    n_input: int
    n_output: int
    n_perturbation: int
    hidden: int
    n_layers: int
    intermediate: int
    n_heads: int
    n_perturbation_parts: int
    n_kv_heads: int | None
    head_dim: int | None
    n_encoder_layers: int
    n_decoder_layers: int
    control_encoder: ControlEncoder
    backbone: BackboneName
    attention: AttentionName
    head: HeadName
    rectify: bool
    keep_zeros: bool
    base_encoder: bool
    sees_perturbation: bool
    n_batches: int
    batch_token: bool
    n_batch_classes: int
    confidence_token: bool
    gene_decoder: dict[str, Any] | None
    activation: str
    dropout: float
    attention_dropout: float
    backbone_dropout: float
