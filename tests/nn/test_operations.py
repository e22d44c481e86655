"""Counted operations against torch's own counter, which sees every product."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scvi_tahoe.nn import NetworkConfig, SetTransformer, energy_distance, step_operations

SMALL = {"n_input": 40, "n_output": 40, "n_perturbation": 12, "hidden": 24, "n_layers": 2, "intermediate": 56}
SMALL |= {"n_heads": 4, "dropout": 0.0}


@pytest.mark.parametrize("changes", [{}, {"base_encoder": True}, {"backbone": "gpt2"}, {"n_kv_heads": 2}], ids=str)
@pytest.mark.parametrize("frozen", [False, True], ids=["all trains", "frozen backbone"])
def test_operations_are_those_that_torch_counts(changes, frozen):
    torch.manual_seed(0)
    network = SetTransformer(NetworkConfig(**{**SMALL, **changes}))
    network.backbone.requires_grad_(not frozen)
    control, observed, perturbation = torch.rand(3, 16, 40), torch.rand(3, 16, 40), torch.rand(3, 12)
    with sdpa_kernel([SDPBackend.MATH]), FlopCounterMode(display=False) as counter:
        energy_distance(network(control, perturbation).prediction_SNG, observed).sum().backward()
    counted = step_operations(network, n_sets=3, set_size=16)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.01)
