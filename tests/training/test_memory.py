"""What a run takes of a device's memory is said before, and running out of it says what to lower."""

from __future__ import annotations

import pytest
import torch

from scvi_tahoe.nn import SIZES, NetworkConfig
from scvi_tahoe.training import MemoryPlan, explained_out_of_memory, plan_memory

CPU = torch.device("cpu")
GENES = 18_080
CONFIG = NetworkConfig(n_input=GENES, n_output=GENES, n_perturbation=5_120, head="down_up", **SIZES["tahoe"])


def plan(**changes):
    usual = {"n_parameters": 10**8, "n_trainable": 10**8, "cells_per_step": 6_144, "in_16_bits": True, "expression": 10}
    return plan_memory(CONFIG, **{**usual, **changes}, device=CPU)


def test_frozen_weights_cost_neither_gradients_nor_optimizer_state():
    frozen = plan(n_trainable=0)
    assert frozen.gradients == frozen.optimizer == 0
    assert frozen.weights == plan().weights
    assert plan().optimizer == 2 * plan().gradients == 8 * 10**8


def test_activations_grow_with_the_cells_of_a_step_and_shrink_with_the_precision():
    assert plan(cells_per_step=2 * 6_144).activations == 2 * plan().activations
    assert plan(in_16_bits=False).activations > plan().activations


def test_the_total_is_the_sum_and_says_whether_it_fits():
    memory = MemoryPlan(weights=1, gradients=2, optimizer=3, activations=4, expression=5, available=15)
    assert memory.total == 15
    assert memory.fits
    assert not MemoryPlan(weights=9, gradients=9, optimizer=9, activations=9, expression=9, available=15).fits
    assert MemoryPlan(weights=9, gradients=0, optimizer=0, activations=0, expression=0).fits  # nothing is known


def test_a_plan_reads_as_a_sentence():
    memory = MemoryPlan(
        weights=2**30, gradients=2**30, optimizer=2**31, activations=2**32, expression=2**20, available=2**34
    )
    assert str(memory) == (
        "about 8.0 GiB of 16.0 GiB free (weights 1.0 GiB, gradients 1.0 GiB, optimizer 2.0 GiB, activations 4.0 GiB, "
        "expression 1.0 MiB)"
    )


def test_a_model_says_what_its_training_takes(make_model):
    model = make_model()
    n = sum(p.numel() for p in model.module.parameters())
    memory = model.memory_plan(batch_size=4)
    assert memory.weights == 4 * n
    assert memory.activations == 2 * model.memory_plan(batch_size=2).activations
    assert memory.expression == 4 * model.adata.n_obs * model.adata.n_vars
    assert model.memory_plan(store="host").expression == 0


@pytest.mark.parametrize(("batch_size", "advice"), [(12, r"lower batch_size \(now 12\), e.g. batch_size=6"),
                                                    (1, r"fewer cells a set \(set_size is 64\)")])  # fmt: skip
def test_running_out_of_memory_says_what_to_lower(batch_size, advice):
    with (
        pytest.raises(MemoryError, match=rf"training ran out of the memory of the device: .*{advice}.*store='host'"),
        explained_out_of_memory(batch_size=batch_size, set_size=64, doing="training"),
    ):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="shape"), explained_out_of_memory(batch_size=1, set_size=1, doing="x"):
        raise RuntimeError("shape")
