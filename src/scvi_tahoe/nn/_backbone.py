"""The set transformer's backbone: attention between the cells of a set, two kinds of blocks, and linear layers.

Shape suffixes: **S** sets in a minibatch, **T** tokens of a set (its cells and special tokens), **D** hidden width,
**H** attention heads, **K** key/value heads, **W** width of a head.

The llama block follows Touvron et al. (2023, arXiv:2302.13971), the GPT-2 block Radford et al. (2019), rotary positions
Su et al. (2021, arXiv:2104.09864) in the half-rotation convention with base 10,000.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_tahoe.nn._config import NetworkConfig

_RMS_EPSILON = 1e-6
_ROTARY_BASE = 10_000.0
_INITIAL_STD = 0.02
#: the matrix units load 16 bytes at a time; a row of 16-bit numbers that does not start there is read several times
#: slower, and numbers of genes are rarely multiples of 8
_STEP = 8

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
        gate, up = self.gate_up(self.feed_forward_norm(tokens_STD)).chunk(2, dim=-1)
        return tokens_STD + self.down(F.silu(gate) * up)


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
        heads_SHTW = self._project(tokens_STD, more).unflatten(-1, (-1, self.head_dim + more)).transpose(1, 2)
        query_SHTW, key_SKTW, value_SKTW = heads_SHTW.split([self.n_heads, self.n_kv_heads, self.n_kv_heads], dim=1)
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
        weight = _widened_heads(_rounded(self.qkv.weight).T, self.head_dim, more).T
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


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019), computed in float32 for inputs of any precision."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``weight * x / sqrt(mean(x**2) + 1e-6)`` over the last dimension."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + _RMS_EPSILON)
        return self.weight * wide.to(x.dtype)


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
    allowed = present_ST[:, None, None, :]
    if not causal:
        return allowed
    n_tokens = present_ST.shape[1]
    return allowed & torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=present_ST.device).tril()


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


def runs_in_16_bits(x: Tensor) -> bool:
    """Return whether products with ``x`` are computed by a GPU in 16 bits."""
    return x.is_cuda and torch.is_autocast_enabled("cuda")


def more_to_align(width: int) -> int:
    """Return the number of columns missing to the next multiple of 8, at which matrix units are fast."""
    return -width % _STEP


def widened(x: Tensor, width: int) -> Tensor:
    """Pad ``x`` with columns of zeros up to ``width``."""
    more = width - x.shape[-1]
    return F.pad(x, (0, more)) if more else x


class AlignedLinear(nn.Linear):
    """``nn.Linear``, whose 16-bit products on a GPU run on widths padded with zeros to multiples of 8.

    Parameters and results are those of ``nn.Linear``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` mapped to ``out_features``."""
        if not (more_to_align(self.in_features) or more_to_align(self.out_features)) or not runs_in_16_bits(x):
            return super().forward(x)
        weight, bias = self.aligned(torch.get_autocast_dtype(x.device.type))
        return F.linear(widened(x, weight.shape[1]), weight, bias)[..., : self.out_features]

    def aligned(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias in ``dtype``, both widths padded with zeros to multiples of 8."""
        more_in, more_out = more_to_align(self.in_features), more_to_align(self.out_features)
        # rounded before they are padded: half the bytes
        weight, bias = self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)
        if not (more_in or more_out):
            return weight, bias
        return F.pad(weight, (0, more_in, 0, more_out)), None if bias is None else F.pad(bias, (0, more_out))
