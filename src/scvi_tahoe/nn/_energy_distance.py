"""The energy distance with its gradient written out: two batched products forwards, one backwards.

Shapes: **S** sets, **N** predicted and **M** observed cells of a set, **G** genes, **C** = M + N cells.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from torch import Tensor

# A squared distance below this fraction of the two squared lengths is taken as zero. It is what rounding leaves of the
# distance between a cell and its copy, and its inverse would pull at random.
_ROUNDING = {torch.float32: 4e-6, torch.float64: 1e-14}
#: the largest value that float16 products are given; log1p expression is far below
_LARGEST_HALF = 6e4
#: observed and predicted cells of a set that a program of a kernel holds at once; larger sets are left to torch
_MOST_CELLS = 8192


class EnergyDistance(torch.autograd.Function):
    r"""Half of the energy distance of each set, ``(S, N, G)`` and ``(S, M, G)`` to ``(S,)``.

    The gradient with respect to a predicted cell is

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
    ) -> Tensor:
        """Compute the distances, and keep the cells in ``dtype`` for the gradient."""
        m, n = y_SMG.shape[1], x_SNG.shape[1]
        pairs_x, pairs_y = (k * (k - 1) if excludes_diagonal and k > 1 else k * k for k in (n, m))
        ctx.by_kernels = dtype == torch.float16 and x_SNG.is_cuda and _kernels_hold(m + n)
        ctx.pairs_x, ctx.dtype, ctx.x_dtype, ctx.n_genes = pairs_x, dtype, x_SNG.dtype, x_SNG.shape[2]
        compute = _distances_by_kernels if ctx.by_kernels else _distances_by_torch
        cells_SCG, distance_SNC, across_S, within_x_S, within_y_S = compute(x_SNG, y_SMG, dtype)
        ctx.save_for_backward(cells_SCG, distance_SNC)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return (across_S / (n * m) - 0.5 * within_x_S / pairs_x - 0.5 * within_y_S / pairs_y).to(wide)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_S: Tensor) -> tuple[Tensor, None, None, None]:
        """One product of inverse distances with the cells."""
        cells_SCG, distance_SNC = ctx.saved_tensors
        if ctx.by_kernels:
            return _pulled_by_kernels(ctx, cells_SCG, distance_SNC, gradient_S), None, None, None
        n, c = distance_SNC.shape[1:]
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
        if pulled_SNG.dtype == ctx.x_dtype:
            return pulled_SNG.mul_(scale_S11), None, None, None
        return torch.mul(pulled_SNG, scale_S11, out=torch.empty_like(pulled_SNG, dtype=ctx.x_dtype)), None, None, None


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


def _pulled_by_kernels(ctx: Any, cells_SCP: Tensor, distance_SNC: Tensor, gradient_S: Tensor) -> Tensor:
    """Compute the gradient with respect to the predicted cells."""
    from scvi_tahoe.nn._energy_kernels import pull_weights, scaled_rows

    n, c = distance_SNC.shape[1:]
    m = c - n
    weight_SNC, scale_SN = pull_weights(distance_SNC, n_observed=m, across=1 / (n * m), within=1 / ctx.pairs_x)
    return scaled_rows(torch.bmm(weight_SNC, cells_SCP), scale_SN * gradient_S[:, None], ctx.n_genes, ctx.x_dtype)


def _kernels_hold(n_cells: int) -> bool:
    """Return whether the Triton kernels can be used for sets of this many observed and predicted cells."""
    return _have_triton() and n_cells <= _MOST_CELLS and _sums_in_float32()


@cache
def _have_triton() -> bool:
    return find_spec("triton") is not None


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
