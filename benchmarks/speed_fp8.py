"""What products in 8-bit floating point (FP8) would gain on one GPU: an experiment, not part of the package.

The products of the backbone's blocks, forward and both backward, are computed in FP8 with one scale for a tensor
(Micikevicius et al. 2022, *FP8 formats for deep learning*, arXiv:2209.05433): e4m3 for cells and weights, e5m2 for
gradients. Encoders, head, norms and attention stay as they are. It goes through ``torch._scaled_mm``, which is private
to torch, as neither torchao nor TransformerEngine is needed that way. First the products alone, then the same with
what it takes to find scales, round and transpose (compiled), then a whole recorded step.

    python benchmarks/speed_fp8.py
"""

from __future__ import annotations

import argparse
import gc
import statistics

import speed_gpu
import torch
import torch.nn.functional as F

ROWS = speed_gpu.SETS * speed_gpu.SET_SIZE
#: weights of a block at the published size: queries, keys and values; output of attention; gate and up; down
SHAPES = {"qkv": (4608, 1488), "attention out": (1488, 1536), "gate, up": (11904, 1488), "down": (1488, 5952)}
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}


def _rounded(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows in FP8, the same transposed, and what they are to be multiplied with."""
    scale = x.abs().amax().float().clamp_min(1e-12) / LARGEST[dtype]
    small = (x / scale).to(dtype)
    return small, small.t().contiguous(), scale


torch._dynamo.config.recompile_limit = 64  # shapes, precisions, and with or without gradients
rounded = torch.compile(_rounded, dynamic=False)


def product(a: torch.Tensor, b: torch.Tensor, scale_a: torch.Tensor, scale_b: torch.Tensor, fast: bool) -> torch.Tensor:
    """``a @ b.T`` of two matrices by rows."""
    return torch._scaled_mm(a, b.t(), scale_a, scale_b, out_dtype=torch.bfloat16, use_fast_accum=fast)


class Linear8(torch.autograd.Function):
    """A linear layer without bias whose three products are in FP8."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """``x @ weight.T``."""
        x8, xt8, x_scale = rounded(x.reshape(-1, x.shape[-1]), torch.float8_e4m3fn)
        w8, wt8, w_scale = rounded(weight, torch.float8_e4m3fn)
        ctx.save_for_backward(xt8, x_scale, wt8, w_scale)
        return product(x8, w8, x_scale, w_scale, True).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of the input and of the weight."""
        xt8, x_scale, wt8, w_scale = ctx.saved_tensors
        g8, gt8, g_scale = rounded(gradient.reshape(-1, gradient.shape[-1]), torch.float8_e5m2)
        of_input = product(g8, wt8, g_scale, w_scale, False).view(*gradient.shape[:-1], -1)
        return of_input, product(gt8, xt8, g_scale, x_scale, False)


def milliseconds(function) -> float:
    """Median."""
    return 1000 * statistics.median(speed_gpu.timed(function))


def products() -> None:
    """The products of one block."""
    total = dict.fromkeys(("bfloat16", "FP8 products", "FP8 with rounding"), 0.0)
    print(f"{'ms, forward and backward':<26}" + "".join(f"{name:>20}" for name in total))
    for name, (n_out, n_in) in SHAPES.items():
        x = torch.randn(ROWS, n_in, device="cuda").bfloat16().requires_grad_()
        weight = (0.02 * torch.randn(n_out, n_in, device="cuda")).bfloat16().requires_grad_()
        gradient = torch.randn(ROWS, n_out, device="cuda").bfloat16()
        exact, found = F.linear(x.detach().float(), weight.detach().float()), Linear8.apply(x, weight)
        error = float((found - exact).detach().norm() / exact.norm())
        x8, xt8, one = rounded(x.detach(), torch.float8_e4m3fn)
        (w8, wt8, _), (g8, gt8, _) = rounded(weight.detach(), torch.float8_e4m3fn), rounded(gradient, torch.float8_e5m2)

        def alone(a=(x8, w8), b=(g8, wt8), c=(gt8, xt8), one=one) -> None:
            product(*a, one, one, True), product(*b, one, one, False), product(*c, one, one, False)

        def all_of(layer, x=x, weight=weight, gradient=gradient) -> None:
            torch.autograd.grad(layer(x, weight), (x, weight), gradient)

        times = [
            milliseconds(lambda: all_of(F.linear)),
            milliseconds(alone),
            milliseconds(lambda: all_of(Linear8.apply)),
        ]
        print(f"{name:<26}" + "".join(f"{t:>20.3f}" for t in times) + f"   relative error {error:.3f}", flush=True)
        total = {key: value + t for (key, value), t in zip(total.items(), times, strict=True)}
    print(f"{'a block':<26}" + "".join(f"{t:>20.3f}" for t in total.values()))


def step(n_cells: int) -> None:
    """Recorded steps with and without."""
    adata = speed_gpu.screen(speed_gpu.csr_on_card(n_cells, speed_gpu.GENES))
    linear, shapes, medians = F.linear, set(SHAPES.values()), {}

    def sometimes_in_8_bits(x, weight, bias=None):
        if bias is None and x.is_cuda and weight.dtype == torch.bfloat16 and tuple(weight.shape) in shapes:
            return Linear8.apply(x, weight)
        return linear(x, weight, bias)

    for name, layer in (("bfloat16", linear), ("FP8 in the blocks", sometimes_in_8_bits)):
        model = speed_gpu.new_model(adata, "down_up")
        F.linear = torch.nn.functional.linear = layer
        function, acceleration = speed_gpu.step_function(model, adata, mode="recorded")
        medians[name] = statistics.median(speed_gpu.timed(function, repeats=30))
        print(f"recorded step, down_up, {name}: {speed_gpu.SETS / medians[name]:.1f} sets/s", flush=True)
        acceleration.end()
        F.linear = torch.nn.functional.linear = linear
        del model, function
        gc.collect()
        torch.cuda.empty_cache()
    before, after = medians.values()
    print(f"{before / after:.2f} times as fast")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=12_000)
    args = parser.parse_args()
    print(torch.cuda.get_device_name(0), "torch", torch.__version__, flush=True)
    products()
    step(args.cells)


if __name__ == "__main__":
    main()
