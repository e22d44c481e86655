"""Tables that help to predict conditions which are left out; the kernels of others get no weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.response._leave_out import left_out_blocks
from scvi_tahoe.response._regression import learn_weights, solve

if TYPE_CHECKING:
    import torch

    from scvi_tahoe.response._kernels import ConditionKernels, Conditions
    from scvi_tahoe.response._members import Members


def useful_kernels(
    kernels: ConditionKernels,
    some: Conditions,
    responses_nG: np.ndarray,
    noise_nG: np.ndarray,
    members: Members,
    *,
    n_components: int,
    device: torch.device,
    seed: int,
) -> np.ndarray | None:
    """Return which kernels may have weight, ``[K]``; None if no table is left out.

    The likelihood gives narrow kernels of a table that says nothing as much weight as what is a perturbation's own, and
    its wide ones some weight by chance. So weights are learned again without each table in turn. While left-out
    conditions are predicted better without one, the one without which they are predicted best is left out. The squared
    errors of the ways to leave out, each relative to that with all tables, count alike.

    Parameters
    ----------
    kernels, some
        Kernels, and the conditions that decide.
    responses_nG, noise_nG
        Their changes, and the sampling variance of these.
    members
        What tells which conditions are left out together.
    n_components
        Most components of the basis.
    device
        Where matrices are inverted.
    seed
        Random seed.
    """
    blocks = {way: of_way for way, of_way in left_out_blocks(some, members).items() if of_way and way != "context"}
    if not blocks or not kernels.tables:
        return None

    def errors(used: np.ndarray) -> np.ndarray:
        learned = learn_weights(
            kernels, some, responses_nG, noise_nG, n_components=n_components, chosen=[np.arange(len(some))], seed=seed,
            tick=lambda: None, used=used,
        )  # fmt: skip
        _, left = solve(learned, kernels, some, responses_nG, noise_nG, blocks=blocks, device=device, tick=lambda: None)
        truth = responses_nG @ learned.basis_QG.T
        return np.array([np.square(found.mean_nQ - truth)[found.rows].sum() for found in left.values()])

    used, left = np.ones(len(kernels.names), bool), list(kernels.tables)
    with_all = best = errors(used)
    while left:
        tried = {table: errors(used & ~kernels.of_table(table)) for table in left}
        worst = min(tried, key=lambda table: (tried[table] / with_all).mean())
        if (tried[worst] / with_all).mean() >= (best / with_all).mean():
            break
        best, used = tried[worst], used & ~kernels.of_table(worst)
        left.remove(worst)
    return None if used.all() else used
