"""Names that several parts of the package share: registry keys, minibatch keys, columns we write. No functions.

Shapes: **S** sets in a minibatch, **N** cells in a set, **G** genes, **P** width of a perturbation embedding,
**E** width of a cell embedding, **D** hidden width.
"""

from __future__ import annotations

from typing import NamedTuple


class _Registry(NamedTuple):
    """Keys of the scvi-tools registry; ``X`` and ``batch`` mean what they mean in scvi-tools."""

    EXPRESSION: str = "X"
    PERTURBATION: str = "perturbation"
    CONTEXT: str = "context"
    BATCH: str = "batch"
    CONTROL: str = "control"
    CELL_EMBEDDING: str = "cell_embedding"
    PERTURBATION_EMBEDDING: str = "perturbation_embedding"


class _Tensors(NamedTuple):
    """Keys of a minibatch, which name the shape of what they hold."""

    CONTROL: str = "control_SNX"  #: control cells at the width of the network's input (genes or cell embedding)
    OBSERVED: str = "observed_SNX"  #: observed perturbed cells at the width of the network's output
    OBSERVED_GENES: str = "observed_SNG"  #: their expression, where a gene decoder is trained
    OBSERVED_EMBEDDING: str = "observed_SNE"  #: their cell embedding, where it is an auxiliary signal
    RESIDUAL_INPUT: str = "residual_input_SNX"  #: the prior's cells, which the network corrects, if it has such a prior
    RESIDUAL_SHIFT: str = "residual_shift_SX"  #: the prior's change of the mean, added to control cells, if it has one
    PERTURBATION: str = "perturbation_SP"  #: one embedding row a set
    BATCH: str = "batch_SN"  #: technical batch of each perturbed cell
    CONTROL_MEAN: str = "control_mean_SX"  #: mean control cell of the context of each set, where the objective asks
    GENE_WEIGHT: str = "gene_weight_SX"  #: how strongly each gene responds in the condition of each set, where it asks
    CONDITION: str = "condition_S"  #: index into the condition list


class _Obs(NamedTuple):
    """Columns that predictions have in addition to those named as in the training data."""

    ORIGIN: str = "origin"  #: name of the control cell that a predicted cell started from
    ORIGIN_CELL: str = "origin_cell"  #: the same where a column of labels is called "origin"


class _Streams(NamedTuple):
    """Numbers that keep apart what is drawn with one seed: ``default_rng((seed, STREAMS.GENE_WEIGHTS))``.

    Training sets are drawn from ``(seed, epoch)``; what is drawn for a condition has hashes of its labels before the
    number.
    """

    VALIDATION_SETS: int = 1  #: cells of the sets that validate
    PREDICTED_SETS: int = 1  #: control cells that fill the last set of a condition
    PREDICTED_CELLS: int = 2  #: cells of the residual input of a condition, and its counts
    GENE_WEIGHTS: int = 3  #: cells that weights of genes and mean control cells are computed from
    PRIOR_CELLS: int = 3  #: cells that a prior makes of a condition
    CONDITION_MEANS: int = 4  #: cells that the mean of a condition is computed from
    SHRINKAGE: int = 5  #: cells that the shrinkage factor of a correction is fitted on
    GENE_SLOTS: int = 6  #: genes of equal value that a cell is embedded from


REGISTRY = _Registry()
TENSORS = _Tensors()
OBS = _Obs()
STREAMS = _Streams()

#: the one context of a screen that was registered without ``context_key``
ALL_CONTEXT = "all cells"
#: in ``uns`` of changes of conditions: which columns of ``obs`` hold their labels
EFFECTS_KEYS = "scvi_tahoe_effects"
#: log1p expression stays below it, as in cell-eval; ``expm1(15)`` is 3.3 million counts of one gene in one cell
LOG1P_LIMIT = 15.0
