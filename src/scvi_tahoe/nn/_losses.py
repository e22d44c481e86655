"""Losses of predicted cells and of what else a network may predict: pure functions with one value per set.

S sets, N predicted and M observed cells of a set, G genes (or any width), E width of a cell embedding, B technical
batches. Everything is computed in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from scvi_tahoe.nn._energy_distance import EnergyDistance
from scvi_tahoe.nn._terms import register_term

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Diagonal = Literal["zero", "excluded", "rounded"]

#: kernels of :func:`kernel_mmd`
KERNELS = ("gaussian", "laplacian")

# geomloss clamps squared distances here, so that the gradient of the root stays finite
_SMALLEST_SQUARE = 1e-8


def _wide(cells: Tensor) -> Tensor:
    """At least float32."""
    return cells if cells.dtype == torch.float64 else cells.float()


def _pairwise_distance(x_SNG: Tensor, y_SMG: Tensor) -> Tensor:
    """Euclidean distances ``[S, N, M]`` from one batched product, never holding S x N x M x G."""
    square_SN1 = x_SNG.square().sum(-1, keepdim=True)
    square_S1M = y_SMG.square().sum(-1)[:, None, :]
    square_SNM = square_SN1 - 2 * torch.bmm(x_SNG, y_SMG.mT) + square_S1M
    return square_SNM.clamp_min(_SMALLEST_SQUARE).sqrt()


def _mean_within(x_SNG: Tensor) -> Tensor:
    """Mean distance between the cells of each set, with what rounding makes of that of a cell to itself."""
    return _pairwise_distance(x_SNG, x_SNG).mean((1, 2))


@register_term("energy", options={"diagonal": "energy_diagonal", "products": "matmul_dtype"})
def energy_distance(
    x_SNG: Tensor, y_SMG: Tensor, *, diagonal: Diagonal = "zero", products: torch.dtype = torch.float32
) -> Tensor:
    r"""Half of the energy distance between predicted and observed cells of each set.

    .. math:: E(x, y) = \frac{1}{NM}\sum_{ij} d(x_i, y_j) - \frac{1}{2N^2}\sum_{ij} d(x_i, x_j)
              - \frac{1}{2M^2}\sum_{ij} d(y_i, y_j)

    with the Euclidean distance *d* (Székely & Rizzo 2013, *J. Stat. Plan. Inference* 143, 1249). This is what geomloss
    computes as ``SamplesLoss("energy")`` and what ST models are trained with.

    Parameters
    ----------
    x_SNG
        Predicted cells.
    y_SMG
        Observed cells. No gradient flows into them.
    diagonal
        The distance of a cell to itself, one of:

        * ``'zero'`` - is zero, and is part of the mean (V-statistic; the formula above) (default)
        * ``'excluded'`` - is left out of the mean (U-statistic, N(N-1) pairs); otherwise even a perfect generator
          scores about (mean distance) / N
        * ``'rounded'`` - is what float32 makes of it, up to 0.06 in wide data: the value geomloss reports, and the
          one in the logs of models trained with it
    products
        Precision of what is multiplied; sums, norms and roots are float32 in any case. ``torch.float16`` is several
        times faster on a GPU and agrees to 0.001, gradients too. Cells in float64 are computed in float64.

    Returns
    -------
    One value a set, in the units of the cells.
    """
    if diagonal != "rounded":
        dtype = torch.float64 if torch.float64 in (x_SNG.dtype, y_SMG.dtype) else products
        return EnergyDistance.apply(x_SNG, y_SMG.detach(), diagonal == "excluded", dtype)
    x_SNG, y_SMG = _wide(x_SNG), _wide(y_SMG)
    with torch.no_grad():
        within_y_S = _mean_within(y_SMG)
    across_S = _pairwise_distance(x_SNG, y_SMG).mean((1, 2))
    return across_S - 0.5 * _mean_within(x_SNG) - 0.5 * within_y_S


@register_term("sinkhorn", options={"blur": "blur"})
def sinkhorn_divergence(x_SNG: Tensor, y_SMG: Tensor, *, blur: float = 0.05) -> Tensor:
    """Debiased Sinkhorn divergence with squared Euclidean cost, by geomloss.

    Feydy et al. 2019, *Interpolating between optimal transport and MMD using Sinkhorn divergences* (AISTATS).

    Parameters
    ----------
    x_SNG, y_SMG
        Predicted and observed cells.
    blur
        Finest scale, in the units of the cells.

    Returns
    -------
    One value a set.
    """
    from geomloss import SamplesLoss

    loss = SamplesLoss("sinkhorn", p=2, blur=blur, scaling=0.5, debias=True, backend="tensorized")
    return loss(_wide(x_SNG), _wide(y_SMG))


@register_term("mmd", options={"kernel": "kernel", "blur": "blur"})
def kernel_mmd(x_SNG: Tensor, y_SMG: Tensor, *, kernel: str = "gaussian", blur: float = 0.05) -> Tensor:
    """Half of the squared maximum mean discrepancy, by geomloss.

    Gretton et al. 2012, *A kernel two-sample test*, JMLR 13.

    Parameters
    ----------
    x_SNG, y_SMG
        Predicted and observed cells.
    kernel
        ``'gaussian'`` or ``'laplacian'``.
    blur
        Width of the kernel, in the units of the cells.

    Returns
    -------
    One value a set.
    """
    from geomloss import SamplesLoss

    return SamplesLoss(kernel, blur=blur, backend="tensorized")(_wide(x_SNG), _wide(y_SMG))


@register_term("mse")
def mse(x_SNG: Tensor, y_SNG: Tensor) -> Tensor:
    """Mean squared difference of cell n of one set and cell n of the other: a loss for paired cells.

    One of the losses of State Transition models (Adduri et al. 2025, bioRxiv 2025.06.26.661135). A screen pairs no
    cells, and there its minimum is the mean observed cell, without any spread.

    Parameters
    ----------
    x_SNG, y_SNG
        Predicted and observed cells, as many of each.

    Returns
    -------
    One value a set, in squared units of the cells.
    """
    return (_wide(x_SNG) - _wide(y_SNG)).square().mean((1, 2))


def set_mean(cells_SNG: Tensor) -> Tensor:
    """Mean cell of each set, at least in float32 and without a wide copy of the cells or of their gradient."""
    return _SetMean.apply(cells_SNG)


class _SetMean(torch.autograd.Function):
    """The mean over cells, whose gradient is the same for every cell and takes the memory of one."""

    @staticmethod
    def forward(ctx: Any, cells_SNG: Tensor) -> Tensor:  # type: ignore[override]
        ctx.shape, ctx.dtype = cells_SNG.shape, cells_SNG.dtype
        return cells_SNG.mean(1, dtype=torch.promote_types(cells_SNG.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_SG: Tensor) -> Tensor:
        return (gradient_SG / ctx.shape[1]).to(ctx.dtype)[:, None].expand(ctx.shape)


@register_term("delta_mse")
def delta_mse(x_SNG: Tensor, y_SMG: Tensor) -> Tensor:
    r"""Squared difference between the mean predicted and the mean observed cell, averaged over genes.

    .. math:: \frac{1}{G}\sum_g (\bar x_g - \bar y_g)^2

    Controls cancel, so this is the squared error of the delta, which linear models of pseudobulks minimise
    (Ahlmann-Eltze, Huber & Anders 2025, *Nature Methods* 22, 1657). Its floor is the sampling variance of a mean of M
    cells.

    Parameters
    ----------
    x_SNG, y_SMG
        Predicted and observed cells.

    Returns
    -------
    One value a set, in squared units of the cells.
    """
    return (set_mean(x_SNG) - set_mean(y_SMG)).square().mean(1)


@register_term("de_weighted", needs=("gene_weight_SG",))
def de_weighted_mse(x_SNG: Tensor, y_SMG: Tensor, weight_SG: Tensor) -> Tensor:
    r"""Squared error of the delta, each gene weighted by how strongly it responds to the perturbation.

    .. math:: \sum_g w_g (\bar x_g - \bar y_g)^2

    The WMSE of Mejia et al. 2025, *Diversity by Design: addressing mode collapse improves scRNA-seq perturbation
    modeling on well-calibrated metrics* (arXiv 2506.22641), as a loss. With equal weights 1/G it is
    :func:`delta_mse`.

    Parameters
    ----------
    x_SNG, y_SMG
        Predicted and observed cells.
    weight_SG
        Weight of each gene; rows sum to 1. It must not come from the observed cells of the very set: large weights
        would then meet large noise, and the minimum would lie at up to three times a small effect.

    Returns
    -------
    One value a set, in squared units of the cells.
    """
    return (weight_SG * (set_mean(x_SNG) - set_mean(y_SMG)).square()).sum(1)


def decoder_loss(decoded_SNG: Tensor, observed_SMG: Tensor, *, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """How far decoded genes are from observed ones: the loss of the cells, asked of genes.

    A State Transition model of cell embeddings is trained on both at once (Adduri et al. 2025, *Predicting cellular
    responses to perturbation across diverse contexts with State*, bioRxiv 2025.06.26.661135). The two spaces differ in
    scale, see :func:`~scvi_tahoe.suggest_decoder_weight`.

    Parameters
    ----------
    decoded_SNG, observed_SMG
        Expression read from the predicted cells, and that of the observed cells.
    distance
        Distance of predicted from observed cells, one value a set.

    Returns
    -------
    One value a set, in the units of the distance.
    """
    return distance(decoded_SNG, observed_SMG)


@register_term("distillation", of_embedding=True)
def distillation(read_SNE: Tensor, observed_SME: Tensor) -> Tensor:
    """Energy distance between cell embeddings read from the network's hidden cells and those of the observed cells.

    A linear reading of the student's hidden cells is regressed on the teacher, as in Romero et al. 2015, *FitNets:
    hints for thin deep nets* (arXiv 1412.6550); set by set, since a screen pairs no cells.

    Parameters
    ----------
    read_SNE, observed_SME
        Embeddings read from the hidden cells, and those of the observed cells. No gradient flows into the latter.

    Returns
    -------
    One value a set, in the units of the embedding.
    """
    return energy_distance(read_SNE, observed_SME, diagonal="excluded")


def batch_classification(logits_SB: Tensor, batch_S: Tensor) -> Tensor:
    """Cross entropy of the technical batch of each set, as read from the batch token.

    Used by State Transition models with such a token (Adduri et al. 2025, bioRxiv 2025.06.26.661135).

    Parameters
    ----------
    logits_SB
        Scores of the batches.
    batch_S
        The right one of each set, counted from 0.

    Returns
    -------
    One value a set, in nats.
    """
    return F.cross_entropy(logits_SB.float(), batch_S, reduction="none")


def confidence_error(confidence_S: Tensor, loss_S: Tensor, *, scale: float) -> Tensor:
    """Squared error of the loss that the confidence token expects.

    A network that learns to predict its own loss: Yoo & Kweon 2019, *Learning loss for active learning*
    (arXiv 1905.03677), here by regression, as in State Transition models (Adduri et al. 2025, bioRxiv
    2025.06.26.661135).

    Parameters
    ----------
    confidence_S
        Expected loss of each set.
    loss_S
        Its loss. No gradient flows into it.
    scale
        What the loss is multiplied with to be the target.

    Returns
    -------
    One value a set, in squared units of the scaled loss.
    """
    return (confidence_S.float() - scale * loss_S.detach()).square()


def control_shift(predicted_SNG: Tensor, control_SNG: Tensor) -> Tensor:
    """Mean absolute difference of each predicted cell from the control cell that it starts from.

    The penalty of the lasso (Tibshirani 1996, *Regression shrinkage and selection via the lasso*, JRSS B 58, 267), on
    changes instead of coefficients: a gene stays as it is unless the other terms pay for its change.

    Parameters
    ----------
    predicted_SNG, control_SNG
        Predicted cells and their controls.

    Returns
    -------
    One value a set, in the units of the cells.
    """
    return (predicted_SNG.float() - control_SNG.float()).abs().mean((1, 2))
