"""The energy distance and its gradient against float64, at the width of a whole transcriptome.

python benchmarks/energy_accuracy.py
"""

from __future__ import annotations

import torch

from scvi_tahoe.nn import energy_distance

SETS, CELLS, GENES = 3, 512, 18_080


def cells(generator: torch.Generator, mean: torch.Tensor) -> torch.Tensor:
    """Cells that scatter around a mean, and are zero where they would be negative."""
    return (torch.randn(SETS, CELLS, GENES, generator=generator) * 0.5 + mean).relu()


def value_and_gradient(x: torch.Tensor, y: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in float64."""
    x = x.clone().requires_grad_()
    value = energy_distance(x, y, **options)
    value.sum().backward()
    return value.detach().double(), x.grad.double()


def main() -> None:
    """Print the table."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.rand(GENES, generator=generator) * 1.5
    x, y = cells(generator, mean), cells(generator, 1.1 * mean)
    print(f"{SETS} sets of {CELLS} cells, {GENES:,} genes; error relative to float64 (norms)")
    for diagonal in ("zero", "excluded"):
        exact = value_and_gradient(x.double(), y.double(), diagonal=diagonal)
        for products in (torch.float32, torch.float16, torch.bfloat16):
            fast = value_and_gradient(x, y, diagonal=diagonal, products=products)
            value, gradient = (float((f - e).norm() / e.norm()) for f, e in zip(fast, exact))
            print(f"{diagonal:<10}{str(products):<16} value {value:.1e}  gradient {gradient:.1e}", flush=True)


if __name__ == "__main__":
    main()
