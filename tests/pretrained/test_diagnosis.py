"""Which attention weights were trained with, and whether data are on their scale, can be read off the data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from scvi_tahoe.nn import NetworkConfig, SetTransformer
from scvi_tahoe.pretrained import compare_scale, diagnose_attention
from scvi_tahoe.pretrained._diagnosis import _verdict
from scvi_tahoe.pretrained._pretrained_model import network_with


def network(attention="full"):
    torch.manual_seed(0)
    net = SetTransformer(
        NetworkConfig(
            n_input=10, n_output=10, n_perturbation=3, hidden=16, n_layers=2, intermediate=16, n_heads=2,
            head="absolute", attention=attention, rectify=False,
        )
    )  # fmt: skip
    for block in net.backbone.blocks:
        torch.nn.init.normal_(block.attention.qkv.weight, std=1.0)
        torch.nn.init.normal_(block.attention.out.weight, std=0.5)
    return net.eval()


def minibatches(truth, n=6, noise=0.0):
    rng = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(n):
        inputs = {
            "control_SNG": torch.randn(4, 8, 10, generator=rng),
            "perturbation_SP": torch.randn(4, 3, generator=rng),
        }
        with torch.inference_mode():
            observed = truth(**inputs).prediction_SNG
        batches.append((inputs, observed + noise * torch.randn(observed.shape, generator=rng)))
    return batches


def squared_error(predicted, observed):
    return (predicted - observed).square().mean((1, 2))


@pytest.mark.parametrize("attention", ["full", "causal", "causal_rope"])
def test_the_attention_that_made_the_data_is_found(attention):
    truth = network(attention)
    diagnosis = diagnose_attention(network("full"), minibatches(truth), squared_error)
    assert diagnosis.best == attention
    assert diagnosis.certainty > 0.999
    assert "clearly" in diagnosis.verdict
    assert diagnosis.losses.shape == (24, 3)


def test_few_or_noisy_sets_are_said_not_to_tell():
    diagnosis = diagnose_attention(network(), minibatches(network(), 1), squared_error)
    assert "do not tell" in diagnosis.verdict
    noise = [(inputs, torch.randn(observed.shape)) for inputs, observed in minibatches(network())]
    assert diagnose_attention(network(), noise, squared_error).certainty < 0.999
    with pytest.raises(ValueError, match="no minibatches"):
        diagnose_attention(network(), [], squared_error)


def test_the_lowest_of_three_by_chance_is_not_taken_for_the_answer():
    """Loss without any difference between the three: what is lowest, is so by chance, and by that of three at once."""
    rng = np.random.default_rng(0)
    verdicts = [_verdict(pd.DataFrame(rng.normal(size=(32, 3)), columns=list("abc"))) for _ in range(200)]
    assert sum(v.certainty > 0.95 for v in verdicts) <= 10
    assert all(0 <= v.certainty <= 1 for v in verdicts)


def test_another_attention_shares_the_weights_and_changes_nothing():
    net = network().train()
    other = network_with(replace(net.config, attention="causal"), net.state_dict())
    assert other.config.attention == "causal"
    assert other.backbone.norm.weight.data_ptr() == net.backbone.norm.weight.data_ptr()
    assert net.config.attention == "full"
    assert net.training


def controls():
    rng = torch.Generator().manual_seed(0)
    return torch.rand(50, generator=rng) * 3 + 0.1 * torch.rand(4, 16, 50, generator=rng)


def test_controls_on_the_scale_of_the_weights_agree():
    check = compare_scale(controls() * 1.05 + 0.02, controls())
    assert check.ok
    assert "agree" in check.message
    assert not compare_scale(controls(), torch.zeros(4, 16, 50)).ok


@pytest.mark.parametrize("change", [lambda x: x.expm1() * 10, lambda x: x / 5, lambda x: x[..., torch.randperm(50)]])
def test_another_normalisation_or_gene_order_is_noticed(change):
    check = compare_scale(controls(), change(controls()))
    assert not check.ok
    assert "normalised differently" in check.message.replace("\n", " ")
