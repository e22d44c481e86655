"""The network: encoders, set transformer, head and gene decoder. No loss, no files, no checkpoint names.

Shape suffixes: **S** sets in a minibatch, **N** cells in a set, **T** tokens (cells and special tokens), **G** genes or
width of a cell, **P** width of a perturbation vector, **B** technical batches, **D** hidden width, **H** attention
heads, **K** key/value heads, **W** width of a head.

.. code-block:: text

    control_SNG ──► control_encoder ──► c ──────┐
    perturbation_SP ──► perturbation_encoder ───┼─ + ──► [batch token] cells [confidence token] ──► backbone ──► t
    batch_SN ──► batch_encoder ─────────────────┘

    t (and c, or the control) ──► head ──► ReLU ──► prediction_SNG ──► gene_decoder ──► genes_SNG

The llama block follows Touvron et al. (2023, arXiv:2302.13971), the GPT-2 block Radford et al. (2019), rotary positions
Su et al. (2021, arXiv:2104.09864) in the half-rotation convention with base 10,000.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

from scvi_tahoe._memory import verify_memory
from scvi_tahoe.nn._layers import (
    AlignedLinear,
    RMSNorm,
    changed_cells,
    gated_silu,
    more_to_align,
    rectified,
    rounded_to_products,
    runs_in_16_bits,
    widened,
)

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_tahoe.nn._config import GeneDecoderConfig, NetworkConfig

_ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "leakyrelu": nn.LeakyReLU, "elu": nn.ELU, "selu": nn.SELU}


class NetworkOutput(NamedTuple):
    """What :class:`SetTransformer` returns."""

    prediction_SNG: Tensor
    """Predicted cells."""
    genes_SNG: Tensor | None
    """Output of the gene decoder, or ``None``."""
    confidence_S: Tensor | None
    """Expected loss of each set (the scale is the training's), or ``None``."""
    batch_logits_SB: Tensor | None
    """Scores of the technical batches, or ``None``."""
    hidden_SND: Tensor
    """Backbone output of the cells."""


class SetTransformer(nn.Module):
    """Predicts the perturbed counterpart of every control cell of a set, all cells of the set at once.

    Parameters
    ----------
    config
        Shape and function of the network.

    Notes
    -----
    The architecture is that of the State Transition model (Adduri et al. 2025, bioRxiv 2025.06.26.661135), written
    independently. Submodules: ``control_encoder``, ``perturbation_encoder``, ``batch_encoder`` (or ``None``),
    ``backbone`` with ``blocks`` and ``norm``, ``head``, ``gene_decoder`` (or ``None``).
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        hidden, n_layers = config.hidden, config.n_encoder_layers
        if torch.get_default_device().type != "meta":
            width = config.n_input + config.n_output + 3 * config.n_layers * config.intermediate
            verify_memory("units in a hidden layer", hidden, 4.0 * width, "Choose a smaller size of the network.")
        n_control_layers = 1 if config.control_encoder == "linear" else n_layers
        self.control_encoder = MLP(config.n_input, hidden, hidden, n_control_layers, config)
        self.perturbation_encoder = MLP(config.n_perturbation, hidden, hidden, n_layers, config)
        self.base_encoder = MLP(config.n_output, hidden, hidden, n_layers, config) if config.base_encoder else None
        self.batch_encoder = nn.Embedding(config.n_batches, hidden) if config.n_batches else None
        if self.batch_encoder is not None:
            nn.init.normal_(self.batch_encoder.weight, std=0.02)
        self.batch_token = nn.Parameter(torch.randn(1, 1, hidden)) if config.batch_token else None
        self.batch_classifier = nn.Linear(hidden, config.n_batch_classes) if config.batch_token else None
        self.confidence = Confidence(hidden) if config.confidence_token else None
        self.backbone = Backbone(config)
        self.head = Head(config)
        self.gene_decoder = GeneDecoder(config.n_output, config.gene_decoder) if config.gene_decoder else None

    def forward(
        self,
        control_SNG: Tensor,
        perturbation_SP: Tensor,
        batch_SN: Tensor | None = None,
        base_SNG: Tensor | None = None,
        present_SN: Tensor | None = None,
    ) -> NetworkOutput:
        """Predict the perturbed cells of every set.

        Parameters
        ----------
        control_SNG
            Control cells; any number of sets and of cells in a set.
        perturbation_SP
            One perturbation vector per set, or one per cell, ``(S, N, P)``. One per set is encoded once; in training
            its cells then share the dropout mask of the encoder.
        batch_SN
            Technical batch of every cell: integer labels (one per set, ``(S, 1)``, is enough) or one-hot ``(S, N, B)``.
            Needed where the network has a batch encoder, ignored where it has none.
        base_SNG
            Cells to which ``head='delta'`` adds its change. If None, the control cells.
        present_SN
            ``False`` for cells that only fill up a set, behind the real ones; no other cell sees them and what is
            predicted for them has no meaning. If None, all cells are real.

        Raises
        ------
        ValueError
            If the network has a batch encoder and no batch is given.
        """
        base_SNG = control_SNG if base_SNG is None else base_SNG
        control_SNG = rounded_to_products(control_SNG)  # once for all of its products
        encoded_SND = self.control_encoder(control_SNG)
        cells_SND = encoded_SND + self._encode_perturbation(perturbation_SP)
        if self.base_encoder is not None:
            cells_SND = cells_SND + self.base_encoder(rounded_to_products(base_SNG))
        if self.batch_encoder is not None:
            # in the precision of the cells, which the sum would not have otherwise, nor all that follows
            cells_SND = cells_SND + self._encode_batch(batch_SN).to(cells_SND.dtype)

        tokens_STD, present_ST = self._add_tokens(cells_SND, present_SN)
        output_STD = self.backbone(tokens_STD, present_ST)
        first = 0 if self.batch_token is None else 1
        hidden_SND = output_STD[:, first : first + cells_SND.shape[1]]

        prediction_SNG = self.head(hidden_SND, encoded_SND, control_SNG, base_SNG)
        return NetworkOutput(
            prediction_SNG=prediction_SNG,
            genes_SNG=None if self.gene_decoder is None else self.gene_decoder(prediction_SNG),
            confidence_S=None if self.confidence is None else self.confidence(output_STD[:, -1]),
            batch_logits_SB=None if self.batch_classifier is None else self.batch_classifier(output_STD[:, 0]),
            hidden_SND=hidden_SND,
        )

    def _encode_perturbation(self, perturbation: Tensor) -> Tensor:
        if not self.config.sees_perturbation:
            perturbation = torch.zeros_like(perturbation)
        if (n_parts := self.config.n_perturbation_parts) > 1:
            parts = perturbation.unflatten(-1, (n_parts, -1))
            # a sum does not depend on the order of the parts, and a part that is absent adds nothing to it
            encoded = (self.perturbation_encoder(parts[..., :-1]) * parts[..., -1:]).sum(-2)
        else:
            encoded = self.perturbation_encoder(perturbation)
        return encoded[:, None] if perturbation.ndim == 2 else encoded

    def _encode_batch(self, batch: Tensor | None) -> Tensor:
        if batch is None or self.batch_encoder is None:
            raise ValueError("This network has a batch encoder: give the technical batch of every cell (batch_SN).")
        return self.batch_encoder((batch.argmax(-1) if batch.ndim == 3 else batch).long())

    def _add_tokens(self, cells_SND: Tensor, present_SN: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Put the batch token before the cells and the confidence token behind them."""
        n_sets = cells_SND.shape[0]
        before = [] if self.batch_token is None else [self.batch_token.expand(n_sets, -1, -1)]
        behind = [] if self.confidence is None else [self.confidence.token.expand(n_sets, -1, -1)]
        if not before and not behind:
            return cells_SND, present_SN
        tokens_STD = torch.cat([tokens.to(cells_SND.dtype) for tokens in (*before, cells_SND, *behind)], dim=1)
        if present_SN is not None:
            present_SN = F.pad(present_SN, (len(before), len(behind)), value=True)
        return tokens_STD, present_SN


class MLP(nn.Module):
    """Linear layers with activation and dropout between them, none after the last."""

    def __init__(self, n_in: int, width: int, n_out: int, n_layers: int, config: NetworkConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AlignedLinear(a, b) for a, b in pairwise([n_in, *[width] * (n_layers - 1), n_out]))
        self.activation = _ACTIVATIONS[config.activation]()
        # a single layer has nothing between, and nothing there may look as if it could be changed
        self.dropout = nn.Dropout(config.dropout) if n_layers > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` mapped from the first width to the last; leading dimensions stay."""
        return self.layers[-1](self.before_last(x))

    def before_last(self, x: Tensor) -> Tensor:
        """Return the input of the last layer."""
        for layer in self.layers[:-1]:
            x = self.dropout(self.activation(layer(x)))
        return x


class Head(nn.Module):
    """Forms the prediction from the backbone output, in one of the four ways of :class:`NetworkConfig`."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.kind, self.rectify, self.keep_zeros = config.head, config.rectify, config.keep_zeros
        self.project = MLP(config.hidden, config.hidden, config.n_output, config.n_decoder_layers, config)
        self.down = AlignedLinear(config.n_output, config.down_width) if config.head == "down_up" else None
        self.up = AlignedLinear(config.down_width, config.n_output) if config.head == "down_up" else None
        if config.head == "delta":
            for parameter in self.project.layers[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, hidden_SND: Tensor, encoded_SND: Tensor, control_SNG: Tensor, base_SNG: Tensor) -> Tensor:
        """Return the predicted cells."""
        if self.kind == "hidden_residual":
            prediction_SNG = self.project(hidden_SND + encoded_SND)
        elif self.kind == "absolute":
            prediction_SNG = self.project(hidden_SND)
        elif self.down is not None and self.up is not None:
            prediction_SNG = self._down_and_up(hidden_SND, control_SNG, self.down, self.up)
        else:
            change_SNG = self.project(hidden_SND)
            return changed_cells(base_SNG, change_SNG, keeps_zeros=self.keep_zeros, rectifies=self.rectify)
        return rectified(prediction_SNG) if self.rectify else prediction_SNG

    def _down_and_up(self, hidden_SND: Tensor, control_SNG: Tensor, down: AlignedLinear, up: AlignedLinear) -> Tensor:
        """``up(gelu(down(project(hidden) + control)))``.

        Only linear maps lie between the last hidden layer of ``project`` and the bottleneck. For many cells their
        product is formed first, which saves a product of all cells at the width of all genes, and rounding to 16 bits
        of a small change that was added to the control.
        """
        last, n_cells = cast("AlignedLinear", self.project.layers[-1]), control_SNG.shape[:-1].numel()
        # adapters replace layers by ones that are more than a weight and a bias
        plain = all(type(layer) is AlignedLinear for layer in (down, up, last))
        saves = n_cells * (down.in_features - down.out_features) > down.in_features * down.out_features
        if not (plain and saves and runs_in_16_bits(control_SNG)):
            return up(F.gelu(down(self.project(hidden_SND) + control_SNG)))
        dtype = torch.get_autocast_dtype(control_SNG.device.type)
        (down_weight, down_bias), (up_weight, up_bias), (weight, bias) = (x.aligned(dtype) for x in (down, up, last))
        before_SND = widened(self.project.before_last(hidden_SND), weight.shape[1])
        constant = None if bias is None else down_weight @ bias
        lowered = F.linear(before_SND, down_weight @ weight, constant)
        lowered = lowered + F.linear(widened(control_SNG, down_weight.shape[1]), down_weight, down_bias)
        return F.linear(F.gelu(lowered), up_weight, up_bias)[..., : up.out_features]


class Confidence(nn.Module):
    """A learned token and the projection that reads a non-negative number from its backbone output."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, hidden))
        self.projection = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise([hidden, hidden // 2, hidden // 4, 1]))
        self.norms = nn.ModuleList([nn.LayerNorm(hidden // 2), nn.LayerNorm(hidden // 4)])
        self.dropout = nn.Dropout(0.1)

    def forward(self, output_SD: Tensor) -> Tensor:
        """Return one number per set, shape ``(S,)``."""
        for layer, norm in zip(self.projection[:-1], self.norms, strict=True):
            output_SD = self.dropout(F.gelu(norm(layer(output_SD))))
        return F.relu(self.projection[-1](output_SD)).squeeze(-1)


class GeneDecoder(nn.Module):
    """Maps predicted cells of width ``n_in`` to non-negative gene expression."""

    def __init__(self, n_in: int, config: GeneDecoderConfig) -> None:
        super().__init__()
        self.residual = config.residual
        widths = [n_in, *config.hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in config.hidden)
        self.out = nn.Linear(widths[-1], config.n_genes)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, cells_SNG: Tensor) -> Tensor:
        """Return the expression of every cell."""
        x, previous = cells_SNG, None
        for k, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = self.dropout(F.gelu(norm(layer(x))))
            if self.residual and k % 2 == 1 and previous is not None:
                x = x + previous
            previous = x
        return F.relu(self.out(x))


_ROTARY_BASE = 10_000.0
_INITIAL_STD = 0.02

Rotary = tuple["Tensor", "Tensor"]


class Backbone(nn.Module):
    """A stack of blocks and a final norm; ``(S, T, D)`` in and out."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        block = LlamaBlock if config.backbone == "llama" else Gpt2Block
        self.blocks = nn.ModuleList(block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.hidden) if config.backbone == "llama" else nn.LayerNorm(config.hidden)
        self.rotary_width = config.width_of_head if config.attention == "causal_rope" else 0
        self.causal = config.attention in ("causal", "causal_rope")

    def forward(self, tokens_STD: Tensor, present_ST: Tensor | None = None) -> Tensor:
        """Return the normed output of the last block; no token attends to those that are not ``present_ST``."""
        allowed = None if present_ST is None else _allowed(present_ST, causal=self.causal)
        rotary = _rotary_tables(tokens_STD, present_ST, self.rotary_width) if self.rotary_width else None
        for block in self.blocks:
            tokens_STD = block(tokens_STD, allowed, rotary)
        return self.norm(tokens_STD)


class LlamaBlock(nn.Module):
    """Attention and a gated feed-forward, each on RMS-normed input, without biases."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden)
        self.attention = Attention(config, bias=False)
        self.feed_forward_norm = RMSNorm(config.hidden)
        self.gate_up = _linear(config.hidden, 2 * config.intermediate, bias=False)
        self.down = _linear(config.intermediate, config.hidden, bias=False, branches=2 * config.n_layers)

    def forward(self, tokens_STD: Tensor, allowed: Tensor | None = None, rotary: Rotary | None = None) -> Tensor:
        """Return the tokens with attention and feed-forward added."""
        tokens_STD = tokens_STD + self.attention(self.attention_norm(tokens_STD), allowed, rotary)
        return tokens_STD + self.down(gated_silu(self.gate_up(self.feed_forward_norm(tokens_STD))))


class Gpt2Block(nn.Module):
    """Attention and a GELU (tanh form) feed-forward, each on layer-normed input, with biases."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden)
        self.attention = Attention(config, bias=True)
        self.feed_forward_norm = nn.LayerNorm(config.hidden)
        self.up = _linear(config.hidden, config.intermediate, bias=True)
        self.down = _linear(config.intermediate, config.hidden, bias=True, branches=2 * config.n_layers)
        self.dropout = nn.Dropout(config.backbone_dropout)

    def forward(self, tokens_STD: Tensor, allowed: Tensor | None = None, rotary: Rotary | None = None) -> Tensor:
        """Return the tokens with attention and feed-forward added."""
        attended_STD = self.attention(self.attention_norm(tokens_STD), allowed, rotary)
        tokens_STD = tokens_STD + self.dropout(attended_STD)
        wide = F.gelu(self.up(self.feed_forward_norm(tokens_STD)), approximate="tanh")
        return tokens_STD + self.dropout(self.down(wide))


class Attention(nn.Module):
    """Multi-head attention between the tokens of a set; queries, keys and values come from one matrix product."""

    def __init__(self, config: NetworkConfig, *, bias: bool) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.kv_heads, config.width_of_head
        self.kind = config.attention
        self.dropout = config.attention_dropout
        queries, keys = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        self.qkv = _linear(config.hidden, queries + 2 * keys, bias=bias)
        self.out = _linear(queries, config.hidden, bias=bias, branches=2 * config.n_layers)

    def forward(self, tokens_STD: Tensor, allowed: Tensor | None = None, rotary: Rotary | None = None) -> Tensor:
        """Return what every token gathers from the tokens it may see."""
        # the fused kernels want heads of multiples of 8, and would copy queries, keys and values to get them
        more = more_to_align(self.head_dim) if rotary is None and runs_in_16_bits(tokens_STD) else 0
        # split before heads come first: so the gradients of the parts are joined in the order of the columns
        parts = self._project(tokens_STD, more).unflatten(-1, (-1, self.head_dim + more))
        heads = parts.split([self.n_heads, self.n_kv_heads, self.n_kv_heads], dim=2)
        query_SHTW, key_SKTW, value_SKTW = (part.transpose(1, 2) for part in heads)
        value_SHTW = self._grouped(value_SKTW)
        if self.kind == "self_only":
            # A softmax over one token is 1, so the token's own value is all there is to gather.
            return self._join(value_SHTW, more)
        if rotary is not None:
            query_SHTW, key_SKTW = _rotate(query_SHTW, rotary), _rotate(key_SKTW, rotary)
        gathered_SHTW = F.scaled_dot_product_attention(
            query_SHTW,
            self._grouped(key_SKTW),
            value_SHTW,
            attn_mask=allowed,
            dropout_p=self.dropout if self.training else 0.0,
            # Without padding no mask is built at all: the fused kernels take this path.
            is_causal=allowed is None and self.kind != "full",
            scale=self.head_dim**-0.5,
        )
        return self._join(gathered_SHTW, more)

    def _project(self, tokens_STD: Tensor, more: int) -> Tensor:
        """Return queries, keys and values of all heads, each head with ``more`` columns of zeros."""
        if not more or type(self.qkv) is not nn.Linear:
            return _widened_heads(self.qkv(tokens_STD), self.head_dim, more)
        weight = F.pad(_rounded(self.qkv.weight).unflatten(0, (-1, self.head_dim)), (0, 0, 0, more)).flatten(0, 1)
        bias = None if self.qkv.bias is None else _widened_heads(self.qkv.bias, self.head_dim, more)
        return F.linear(tokens_STD, weight, bias)

    def _join(self, heads_SHTW: Tensor, more: int) -> Tensor:
        """Map what the heads gathered back to the tokens."""
        flat = heads_SHTW.transpose(1, 2).flatten(2)
        if not more:
            return self.out(flat)
        if type(self.out) is not nn.Linear:
            return self.out(heads_SHTW[..., : self.head_dim].transpose(1, 2).flatten(2))
        weight = _widened_heads(_rounded(self.out.weight), self.head_dim, more)
        return F.linear(flat, weight, self.out.bias)

    def _grouped(self, shared_SKTW: Tensor) -> Tensor:
        """Repeat shared key/value heads so that there is one for every query head."""
        group = self.n_heads // self.n_kv_heads
        return shared_SKTW if group == 1 else shared_SKTW.repeat_interleave(group, dim=1)


def _linear(n_in: int, n_out: int, *, bias: bool, branches: int = 1) -> nn.Linear:
    """Return a linear layer with small normal weights, smaller where ``branches`` outputs add up in the residual."""
    layer = nn.Linear(n_in, n_out, bias=bias)
    nn.init.normal_(layer.weight, std=_INITIAL_STD / branches**0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _rounded(weight: Tensor) -> Tensor:
    """Round a weight to the 16 bits of the products, before anything else is done with it: half the bytes."""
    return weight.to(torch.get_autocast_dtype(weight.device.type))


def _widened_heads(flat: Tensor, head_dim: int, more: int) -> Tensor:
    """Append ``more`` columns of zeros to each head."""
    return F.pad(flat.unflatten(-1, (-1, head_dim)), (0, more)).flatten(-2) if more else flat


def _allowed(present_ST: Tensor, *, causal: bool) -> Tensor:
    """Return who may look at whom, ``(S, 1, T or 1, T)``."""
    allowed, n_tokens = present_ST[:, None, None, :], present_ST.shape[1]
    earlier = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=present_ST.device).tril()
    return allowed & earlier if causal else allowed


def _rotary_tables(tokens_STD: Tensor, present_ST: Tensor | None, width: int) -> Rotary:
    """Return cosine and sine of every position, ``(S or 1, 1, T, W)``; padding takes up no position."""
    if present_ST is None:
        positions = torch.arange(tokens_STD.shape[1], device=tokens_STD.device)[None]
    else:
        positions = present_ST.cumsum(1) - 1
    powers = torch.arange(0, width, 2, device=tokens_STD.device).float() / width
    angles = positions[:, None, :, None].float() / _ROTARY_BASE**powers
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, rotary: Rotary) -> Tensor:
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)
