"""Losses of predicted cells and of what else a network may predict: pure functions with one value per set.

S sets, N predicted and M observed cells of a set, C = M + N cells, G genes (or any width), E width of a cell embedding,
B technical batches. Everything is computed in float32.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from scvi_tahoe.nn._layers import have_triton
from scvi_tahoe.nn._terms import register_term

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# A squared distance below this fraction of the two squared lengths is taken as zero. It is what rounding leaves of the
# distance between a cell and its copy, and its inverse would pull at random.
_ROUNDING = {torch.float32: 4e-6, torch.float64: 1e-14}
#: the largest value that float16 products are given; log1p expression is far below
_LARGEST_HALF = 6e4
#: observed and predicted cells of a set that a program of a kernel holds at once; larger sets are left to torch
_MOST_CELLS = 8192


class EnergyDistance(torch.autograd.Function):
    r"""Half of the energy distance of each set, ``(S, N, G)`` and ``(S, M, G)`` to ``(S,)``, and mean predicted cells.

    The means ``(S, G)``, None where nothing trains, are for :func:`set_mean`: their gradient is added in the pass that
    writes that of the distance. The gradient with respect to a predicted cell is

    .. math:: \frac{1}{NM}\sum_j \frac{x_i - y_j}{d(x_i, y_j)} - \frac{1}{P}\sum_j \frac{x_i - x_j}{d(x_i, x_j)}

    with *P* the number of pairs within a set, N(N-1) or N². It is linear in the cells of both kinds, so that one
    product of an ``N x C`` matrix with the cells gives it. Automatic differentiation would keep and read the cells
    several times more.

    The distance does not change when both sets are moved. So the mean observed cell is subtracted first, which leaves
    float16 (11 significant bits, sums in float32) more precise than bfloat16 (8 bits) without losing speed.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x_SNG: Tensor, y_SMG: Tensor, excludes_diagonal: bool, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the distances, and keep the cells in ``dtype`` for the gradient."""
        ctx.set_materialize_grads(False)
        m, n = y_SMG.shape[1], x_SNG.shape[1]
        pairs_x, pairs_y = (k * (k - 1) if excludes_diagonal and k > 1 else k * k for k in (n, m))
        ctx.by_kernels = dtype == torch.float16 and x_SNG.is_cuda and _kernels_hold(m + n)
        ctx.pairs_x, ctx.dtype, ctx.x_dtype, ctx.n_genes = pairs_x, dtype, x_SNG.dtype, x_SNG.shape[2]
        compute = _distances_by_kernels if ctx.by_kernels else _distances_by_torch
        cells_SCG, distance_SNC, across_S, within_x_S, within_y_S = compute(x_SNG, y_SMG, dtype)
        ctx.save_for_backward(cells_SCG, distance_SNC)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        value_S = (across_S / (n * m) - 0.5 * within_x_S / pairs_x - 0.5 * within_y_S / pairs_y).to(wide)
        return value_S, _mean_cell(x_SNG) if ctx.needs_input_grad[0] else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_S: Tensor | None, of_mean_SG: Tensor | None) -> tuple[Tensor, None, None, None]:
        """One product of inverse distances with the cells."""
        cells_SCG, distance_SNC = ctx.saved_tensors
        n, c = distance_SNC.shape[1:]
        shift_SG = None if of_mean_SG is None else of_mean_SG / n
        if gradient_S is None:  # of the means alone
            gradient_S = cells_SCG.new_zeros(len(cells_SCG), dtype=distance_SNC.dtype)
        if ctx.by_kernels:
            return _pulled_by_kernels(ctx, cells_SCG, distance_SNC, gradient_S, shift_SG), None, None, None
        m = c - n
        # times N, so that float16 holds them well; nothing pulls on a cell where the distance is zero
        weight_SNC = torch.where(distance_SNC > 0, n / distance_SNC, 0)
        weight_SNC[:, :, :m] /= -(n * m)
        weight_SNC[:, :, m:] /= ctx.pairs_x
        own_SN = -weight_SNC.sum(-1)
        weight_SNC.diagonal(offset=m, dim1=1, dim2=2).add_(own_SN)
        # the largest weight of a set becomes 1
        scale_S11 = weight_SNC.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(weight_SNC.dtype).tiny)
        pulled_SNG = _product((weight_SNC / scale_S11).to(ctx.dtype), cells_SCG, weight_SNC.dtype)
        scale_S11 = scale_S11 * (gradient_S[:, None, None] / n)
        same = pulled_SNG.dtype == ctx.x_dtype
        out_SNG = pulled_SNG if same else torch.empty_like(pulled_SNG, dtype=ctx.x_dtype)
        torch.mul(pulled_SNG, scale_S11, out=out_SNG)
        if shift_SG is not None:
            out_SNG += shift_SG.to(ctx.x_dtype)[:, None]
        return out_SNG, None, None, None


def _distances_by_torch(x_SNG: Tensor, y_SMG: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Compute centred cells, distances of predicted to all cells, and sums across, within predicted and observed."""
    m = y_SMG.shape[1]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    cells_SCG = _centred(x_SNG, y_SMG, dtype, wide)
    observed_SMG, predicted_SNG = cells_SCG[:, :m], cells_SCG[:, m:]
    square_SC = torch.linalg.vector_norm(cells_SCG, dim=-1, dtype=wide).square()

    distance_SNC = _distance(_product(predicted_SNG, cells_SCG.mT, wide), square_SC[:, m:], square_SC)
    distance_SMM = _distance(_product(observed_SMG, observed_SMG.mT, wide), square_SC[:, :m], square_SC[:, :m])
    within_SNN = distance_SNC[:, :, m:]
    for distance in (within_SNN, distance_SMM):
        distance.diagonal(dim1=1, dim2=2).zero_()
    # the three means nearly cancel, so that rounding of their sums would be a hundred times larger in the result
    sums = torch.float32 if x_SNG.device.type == "mps" else torch.float64
    parts = (distance_SNC[:, :, :m], within_SNN, distance_SMM)
    return cells_SCG, distance_SNC, *(part.sum((1, 2), dtype=sums) for part in parts)


def _distances_by_kernels(x_SNG: Tensor, y_SMG: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Do the same on a GPU in float16, with one pass over the cells and one over the products."""
    from scvi_tahoe.nn._energy_kernels import centred_cells, distances

    m, rounding = y_SMG.shape[1], _ROUNDING[torch.float32]
    cells_SCP, square_SC = centred_cells(x_SNG, y_SMG, _LARGEST_HALF)
    observed_SMP = cells_SCP[:, :m]
    distance_SNC = _product(cells_SCP[:, m:], cells_SCP.mT, torch.float32)
    sums_SN2 = distances(distance_SNC, square_SC, first=m, split=m, rounding=rounding, keep=True)
    product_SMM = _product(observed_SMP, observed_SMP.mT, torch.float32)
    sums_SM2 = distances(product_SMM, square_SC, first=0, split=m, rounding=rounding, keep=False)
    across_S, within_x_S = sums_SN2.sum(1, dtype=torch.float64).unbind(-1)
    return cells_SCP, distance_SNC, across_S, within_x_S, sums_SM2[..., 0].sum(1, dtype=torch.float64)


def _pulled_by_kernels(
    ctx: Any, cells_SCP: Tensor, distance_SNC: Tensor, gradient_S: Tensor, shift_SG: Tensor | None
) -> Tensor:
    """Compute the gradient with respect to the predicted cells."""
    from scvi_tahoe.nn._energy_kernels import pull_weights, scaled_rows

    n, c = distance_SNC.shape[1:]
    m = c - n
    weight_SNC, scale_SN = pull_weights(distance_SNC, n_observed=m, across=1 / (n * m), within=1 / ctx.pairs_x)
    pulled_SNP = torch.bmm(weight_SNC, cells_SCP)
    return scaled_rows(pulled_SNP, scale_SN * gradient_S[:, None], ctx.n_genes, ctx.x_dtype, shift_SG=shift_SG)


def _kernels_hold(n_cells: int) -> bool:
    """Return whether the Triton kernels can be used for sets of this many observed and predicted cells."""
    return have_triton() and n_cells <= _MOST_CELLS and _sums_in_float32()


def _centred(x_SNG: Tensor, y_SMG: Tensor, dtype: torch.dtype, wide: torch.dtype) -> Tensor:
    """Subtract the mean observed cell from the observed and then the predicted cells of each set."""
    m, n = y_SMG.shape[1], x_SNG.shape[1]
    centre_S1G = y_SMG.mean(1, keepdim=True, dtype=wide)
    cells_SCG = torch.empty(*y_SMG.shape[:1], m + n, y_SMG.shape[2], dtype=dtype, device=y_SMG.device)
    for cells, place in ((y_SMG, cells_SCG[:, :m]), (x_SNG, cells_SCG[:, m:])):
        torch.sub(cells, centre_S1G, out=place)
    return cells_SCG.clamp_(-_LARGEST_HALF, _LARGEST_HALF) if dtype == torch.float16 else cells_SCG


def _distance(product_SNM: Tensor, square_SN: Tensor, square_SM: Tensor) -> Tensor:
    """Turn products into Euclidean distances in place, given the squared lengths."""
    lengths_SNM = square_SN[:, :, None] + square_SM[:, None, :]
    square_SNM = product_SNM.mul_(-2).add_(lengths_SNM)
    return square_SNM.masked_fill_(square_SNM <= _ROUNDING[square_SNM.dtype] * lengths_SNM, 0).sqrt_()


def _product(a: Tensor, b: Tensor, wide: torch.dtype) -> Tensor:
    """Multiply batches of matrices; summed and returned in ``wide``."""
    if a.dtype == wide:
        return torch.bmm(a, b)
    if a.is_cuda and _sums_in_float32():
        return torch.bmm(a, b, out_dtype=wide)
    return torch.bmm(a.to(wide), b.to(wide))


@cache
def _sums_in_float32() -> bool:
    """Whether this torch multiplies 16-bit numbers into a float32 result (2.8 and later)."""
    try:
        one = torch.ones(1, 16, 16, dtype=torch.float16, device="cuda")
        torch.bmm(one, one, out_dtype=torch.float32)
    except (TypeError, RuntimeError):
        return False
    return True


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
    One value per set, in the units of the cells.
    """
    if diagonal != "rounded":
        dtype = torch.float64 if torch.float64 in (x_SNG.dtype, y_SMG.dtype) else products
        value_S, mean_SG = EnergyDistance.apply(x_SNG, y_SMG.detach(), diagonal == "excluded", dtype)
        if mean_SG is not None and not x_SNG.is_leaf:
            x_SNG._mean_cell = x_SNG._version, mean_SG  # type: ignore[attr-defined]
        return value_S
    x_SNG, y_SMG = _wide(x_SNG), _wide(y_SMG)
    with torch.no_grad():
        within_y_S = _mean_within(y_SMG)
    across_S = _pairwise_distance(x_SNG, y_SMG).mean((1, 2))
    return across_S - 0.5 * _mean_within(x_SNG) - 0.5 * within_y_S


@register_term("sinkhorn", options={"blur": "blur"})
def sinkhorn_divergence(x_SNG: Tensor, y_SMG: Tensor, *, blur: float = 0.05) -> Tensor:
    """Debiased Sinkhorn divergence of each set, with squared Euclidean cost, by geomloss.

    Feydy et al. 2019, *Interpolating between optimal transport and MMD using Sinkhorn divergences* (AISTATS). ``blur``
    is the finest scale, in the units of the cells.
    """
    from geomloss import SamplesLoss

    loss = SamplesLoss("sinkhorn", p=2, blur=blur, scaling=0.5, debias=True, backend="tensorized")
    return loss(_wide(x_SNG), _wide(y_SMG))


@register_term("mmd", options={"kernel": "kernel", "blur": "blur"})
def kernel_mmd(x_SNG: Tensor, y_SMG: Tensor, *, kernel: str = "gaussian", blur: float = 0.05) -> Tensor:
    """Half of the squared maximum mean discrepancy of each set, by geomloss.

    Gretton et al. 2012, *A kernel two-sample test*, JMLR 13. ``blur`` is the width of the ``kernel``, ``'gaussian'`` or
    ``'laplacian'``, in the units of the cells.
    """
    from geomloss import SamplesLoss

    return SamplesLoss(kernel, blur=blur, backend="tensorized")(_wide(x_SNG), _wide(y_SMG))


@register_term("mse")
def mse(x_SNG: Tensor, y_SNG: Tensor) -> Tensor:
    """Mean squared difference of cell n of one set and cell n of the other: a loss for paired cells.

    One of the losses of State Transition models (Adduri et al. 2025, bioRxiv 2025.06.26.661135). A screen pairs no
    cells, and there its minimum is the mean observed cell, without any spread. In squared units of the cells.
    """
    return (_wide(x_SNG) - _wide(y_SNG)).square().mean((1, 2))


def set_mean(cells_SNG: Tensor) -> Tensor:
    """Mean cell of each set, at least in float32 and without a wide copy of the cells or of their gradient.

    Where the energy distance of the very cells was computed before, its gradient includes that of the mean.
    """
    version, mean_SG = getattr(cells_SNG, "_mean_cell", (None, None))
    return mean_SG if mean_SG is not None and version == cells_SNG._version else _SetMean.apply(cells_SNG)


def _mean_cell(cells_SNG: Tensor) -> Tensor:
    return cells_SNG.mean(1, dtype=torch.promote_types(cells_SNG.dtype, torch.float32))


class _SetMean(torch.autograd.Function):
    """The mean over cells, whose gradient is the same for every cell and takes the memory of one."""

    @staticmethod
    def forward(ctx: Any, cells_SNG: Tensor) -> Tensor:  # type: ignore[override]
        ctx.shape, ctx.dtype = cells_SNG.shape, cells_SNG.dtype
        return _mean_cell(cells_SNG)

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
    cells. In squared units of the cells.
    """
    return (set_mean(x_SNG) - set_mean(y_SMG)).square().mean(1)


@register_term("de_weighted", needs=("gene_weight_SG",))
def de_weighted_mse(x_SNG: Tensor, y_SMG: Tensor, weight_SG: Tensor) -> Tensor:
    r"""Squared error of the delta, each gene weighted by how strongly it responds to the perturbation.

    .. math:: \sum_g w_g (\bar x_g - \bar y_g)^2

    The WMSE of Mejia et al. 2025, *Diversity by Design: addressing mode collapse improves scRNA-seq perturbation
    modeling on well-calibrated metrics* (arXiv 2506.22641), as a loss, in squared units of the cells. Rows of weights
    sum to 1; with equal weights 1/G it is :func:`delta_mse`. They must not come from the observed cells of the very
    set: large weights would then meet large noise, and the minimum would lie at up to three times a small effect.
    """
    return (weight_SG * (set_mean(x_SNG) - set_mean(y_SMG)).square()).sum(1)


def decoder_loss(decoded_SNG: Tensor, observed_SMG: Tensor, *, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """How far decoded genes are from observed ones: the ``distance`` of predicted from observed cells, asked of genes.

    A State Transition model of cell embeddings is trained on both at once (Adduri et al. 2025, *Predicting cellular
    responses to perturbation across diverse contexts with State*, bioRxiv 2025.06.26.661135). The two spaces differ in
    scale, see :func:`~scvi_tahoe.suggest_decoder_weight`.
    """
    return distance(decoded_SNG, observed_SMG)


@register_term("distillation", of_embedding=True)
def distillation(read_SNE: Tensor, observed_SME: Tensor) -> Tensor:
    """Energy distance between cell embeddings read from the network's hidden cells and those of the observed cells.

    A linear reading of the student's hidden cells is regressed on the teacher, as in Romero et al. 2015, *FitNets:
    hints for thin deep nets* (arXiv 1412.6550); set by set, since a screen pairs no cells. No gradient flows into the
    observed embeddings, whose units it has.
    """
    return energy_distance(read_SNE, observed_SME, diagonal="excluded")


def batch_classification(logits_SB: Tensor, batch_S: Tensor) -> Tensor:
    """Cross entropy, in nats, of the technical batch of each set, counted from 0, as read from the batch token.

    Used by State Transition models with such a token (Adduri et al. 2025, bioRxiv 2025.06.26.661135).
    """
    return F.cross_entropy(logits_SB.float(), batch_S, reduction="none")


def confidence_error(confidence_S: Tensor, loss_S: Tensor, *, scale: float) -> Tensor:
    """Squared error of the loss of each set that the confidence token expects; the target is ``scale`` times the loss.

    A network that learns to predict its own loss, into which no gradient flows: Yoo & Kweon 2019, *Learning loss for
    active learning* (arXiv 1905.03677), here by regression, as in State Transition models (Adduri et al. 2025, bioRxiv
    2025.06.26.661135).
    """
    return (confidence_S.float() - scale * loss_S.detach()).square()


def control_shift(predicted_SNG: Tensor, control_SNG: Tensor) -> Tensor:
    """Mean absolute difference of each predicted cell from the control cell that it starts from.

    The penalty of the lasso (Tibshirani 1996, *Regression shrinkage and selection via the lasso*, JRSS B 58, 267), on
    changes instead of coefficients: a gene stays as it is unless the other terms pay for its change. In the units of
    the cells.
    """
    return (predicted_SNG.float() - control_SNG.float()).abs().mean((1, 2))
