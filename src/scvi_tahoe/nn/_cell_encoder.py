"""The network of a State Embedding model: from the genes of a cell and their counts to one vector per cell.

Shape suffixes: **C** cells, **T** slots for genes, **G** genes, **E** width of a protein embedding, **D** hidden width,
**H** attention heads, **W** width of a head, **O** width of the cell's own part of the output.

.. code-block:: text

    proteins_GE ──► gene_encoder ──► genes_GD ──┐
                          gene of each slot ────┼─ + ──► [cell] genes [data set] ──► blocks ──► head ──► output
    counts_CT ──► bin_weights ──► bins ─────────┘

There are no positions and no mask, so the order of the slots has no meaning. The first slot holds the token of the cell
instead of a gene. Only the published weights are run here; there is no dropout and no training (Adduri et al. 2025,
bioRxiv 2025.06.26.661135).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

_N_BINS, _BIN_WIDTH = 10, 512
_SMALLEST_NORM = 1e-12
#: Numbers that are read off the token of the data set.
N_DATASET = 10


@dataclass(frozen=True, kw_only=True)
class CellEncoderConfig:
    """Shape of a :class:`CellEncoder`.

    Raises
    ------
    ValueError
        If the heads do not divide the hidden width.
    """

    #: Width of a protein embedding.
    protein_width: int
    #: Hidden width.
    hidden: int
    #: Number of blocks.
    n_layers: int
    #: Attention heads in each block.
    n_heads: int
    #: Width of the feed-forward layer in each block.
    intermediate: int
    #: Width of the cell's own part of the output; ``N_DATASET`` numbers follow it.
    n_output: int

    def __post_init__(self) -> None:
        if self.n_heads < 1 or self.hidden % self.n_heads:
            raise ValueError(f"{self.n_heads} attention heads cannot share a hidden width of {self.hidden}.")

    @property
    def width(self) -> int:
        """Width of a cell's embedding."""
        return self.n_output + N_DATASET


class CellEncoder(nn.Module):
    """Embeds each cell from its genes and their counts.

    Parameters
    ----------
    config
        Shape of the network.
    """

    def __init__(self, config: CellEncoderConfig) -> None:
        super().__init__()
        self.config = config
        width, hidden = config.protein_width, config.hidden
        self.cell_token = nn.Parameter(torch.zeros(1, width))
        self.dataset_token = nn.Parameter(torch.zeros(1, width))
        self.gene_encoder = nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.SiLU())
        self.bin_weights = nn.Sequential(nn.Linear(1, _BIN_WIDTH), nn.LeakyReLU(), nn.Linear(_BIN_WIDTH, _N_BINS))
        self.bins = nn.Parameter(torch.zeros(_N_BINS, hidden))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.n_layers))
        self.head = nn.Sequential(_SkipBlock(hidden), nn.Linear(hidden, config.n_output))
        self.dataset_readout = nn.Linear(config.n_output, N_DATASET)

    def encode_genes(self, proteins_GE: Tensor) -> Tensor:
        """Return the vectors ``[G, D]`` that genes enter the blocks with, from protein embeddings of any length."""
        return self._encode(F.normalize(proteins_GE, dim=-1, eps=_SMALLEST_NORM))

    def forward(self, genes_GD: Tensor, slots_CT: Tensor, counts_CT: Tensor) -> Tensor:
        """Embed cells.

        Parameters
        ----------
        genes_GD
            What :meth:`encode_genes` returned.
        slots_CT
            Row of ``genes_GD`` in each slot; that of the first slot is not used.
        counts_CT
            Share of each slot's gene in the log counts of the cell, times 100.

        Returns
        -------
        ``[C, O + N_DATASET]``: the output at the token of the cell, at length 1, and what is read off the token of the
        data set.
        """
        output_C2O = self._output(genes_GD, slots_CT, counts_CT)
        cell_CO = F.normalize(output_C2O[:, 0].float(), dim=-1, eps=_SMALLEST_NORM)
        return torch.cat([cell_CO, self.dataset_readout(output_C2O[:, 1]).float()], dim=-1)

    def _output(self, genes_GD: Tensor, slots_CT: Tensor, counts_CT: Tensor) -> Tensor:
        """Return the head's output ``[C, 2, O]`` at the tokens of cell and data set."""
        tokens_CTD = self.tokens(genes_GD, slots_CT, counts_CT)
        for block in self.blocks[:-1]:
            tokens_CTD = block(tokens_CTD, tokens_CTD)
        # nothing reads the other tokens of the last block
        return self.head(self.blocks[-1](tokens_CTD, tokens_CTD[:, [0, -1]]))

    def tokens(self, genes_GD: Tensor, slots_CT: Tensor, counts_CT: Tensor) -> Tensor:
        """Return the input of the first block, ``[C, T + 1, D]``: the cell, its genes, the data set."""
        cell_1D, dataset_1D = self._encode(self.cell_token), self._encode(self.dataset_token)
        encoded_CTD = genes_GD[slots_CT]
        encoded_CTD[:, 0] = cell_1D
        count_CTD = self.bin_weights(counts_CT[..., None]).softmax(-1) @ self.bins
        return torch.cat([encoded_CTD + count_CTD, dataset_1D.expand(len(slots_CT), 1, -1)], dim=1)

    def _encode(self, proteins_GE: Tensor) -> Tensor:
        return math.sqrt(self.config.hidden) * self.gene_encoder(proteins_GE).float()


class _Block(nn.Module):
    """Attention and feed-forward layer, each followed by its norm (Vaswani et al. 2017)."""

    def __init__(self, config: CellEncoderConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.n_heads = config.n_heads
        self.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.attended = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden, config.intermediate), nn.GELU(), nn.Linear(config.intermediate, hidden)
        )
        self.norm = nn.LayerNorm(hidden)

    def forward(self, tokens_CTD: Tensor, asking_CQD: Tensor) -> Tensor:
        """Return the block's output for those tokens that ask, ``[C, Q, D]``; they attend to all tokens."""
        n_cells, n_asking, hidden = asking_CQD.shape
        weight, bias = self.query_key_value.weight, self.query_key_value.bias
        query_CQD = F.linear(asking_CQD, weight[:hidden], bias[:hidden])
        key_value_CTD = F.linear(tokens_CTD, weight[hidden:], bias[hidden:]).chunk(2, dim=-1)
        query, key, value = (
            x.view(n_cells, -1, self.n_heads, hidden // self.n_heads).transpose(1, 2)
            for x in (query_CQD, *key_value_CTD)
        )
        mixed_CQD = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(n_cells, n_asking, hidden)
        x_CQD = self.attention_norm(asking_CQD + self.attended(mixed_CQD))
        return self.norm(x_CQD + self.feed_forward(x_CQD))


class _SkipBlock(nn.Module):
    """Two layers with a residual connection, and a norm."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, hidden))
        self.norm = nn.LayerNorm(hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.wide(x))
