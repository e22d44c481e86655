"""Weights shared out over processes: which parts are gathered together, and what needs whole weights is refused.

What processes train together is tested in test_two_processes.py, with the other strategies.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_tahoe.training import TrainingRun
from scvi_tahoe.training._sharded_weights import ShardedWeightsStrategy, _linear_parts, copy_to_shard

GPU = torch.cuda.is_available()


def test_linear_layers_are_gathered_by_parts_and_all_else_together(make_model):
    module = make_model().module
    parts = {name: part for name, part in module.named_modules() if part in set(_linear_parts(module))}
    assert {"network.control_encoder", "network.head", "network.backbone.blocks.0.attention"} <= set(parts)
    gathered = {id(p) for part in parts.values() for p in part.parameters()}
    rest = {name for name, p in module.named_parameters() if id(p) not in gathered}
    assert rest
    assert all("norm" in name for name in rest)
    assert len(gathered) + len(rest) == len(list(module.parameters()))


def test_a_copy_to_shard_has_layers_of_its_own_on_the_same_weights(make_model):
    module = make_model().module
    copied = copy_to_shard(module)
    assert not {id(m) for m in module.modules()} & {id(m) for m in copied.modules()}
    for (name, weight), (other, twin) in zip(module.named_parameters(), copied.named_parameters(), strict=True):
        assert name == other
        assert weight is not twin
        assert weight.data_ptr() == twin.data_ptr()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "16-mixed"}, "give precision='bf16-mixed', or strategy='ddp'"),
        ({"plan_kwargs": {"ema": 0.9}}, "'ema': .* does not go with strategy='fsdp2'"),
        ({"compile": True}, "compile=True does not go with strategy='fsdp2'"),
    ],
    ids=["float16", "average", "compiled"],
)
def test_what_needs_whole_weights_is_refused(make_model, options, said):
    with pytest.raises(ValueError, match=said):
        make_model().plan_training(2, strategy="fsdp2", devices=2, accelerator="cpu", **options)


def test_adapters_are_refused(pretrained):
    with pytest.raises(ValueError, match="recipe='lora' does not go with strategy='fsdp2'"):
        pretrained().plan_training(2, strategy="fsdp2", devices=2, accelerator="cpu", recipe="lora")


def test_one_device_has_nobody_to_share_with(make_model):
    plan = make_model().plan_training(2, strategy="fsdp2", devices=1, accelerator="cpu")
    assert (plan.strategy, plan.shards_weights) == ("auto", False)


def test_the_memory_of_shards_is_that_of_all_weights_divided(make_model):
    plans = [
        make_model().memory_plan(devices=4, accelerator="cpu", precision="32-true", strategy=strategy)
        for strategy in ("ddp", "ddp_sharded", "fsdp2")
    ]
    whole, optimizer, shards = ((plan.weights, plan.gradients, plan.optimizer) for plan in plans)
    assert optimizer[2] == whole[2] // 4
    assert shards == tuple(part // 4 for part in whole)


@pytest.mark.parametrize(
    "accelerator",
    ["cpu", pytest.param("gpu", marks=[pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="needs a GPU")])],
)
def test_a_process_with_the_only_shard_trains_as_one_with_whole_weights(make_model, train, accelerator, monkeypatch):
    options = {"accelerator": accelerator, "devices": 1, "compile": False, "recipe": "full"}
    plain = make_model()
    train(plain, **options)
    monkeypatch.setattr(TrainingRun, "n_processes", 2)  # one alone would not share
    ours, before = make_model(), torch.cuda.memory_allocated() if GPU else 0
    try:
        train(ours, strategy="fsdp2", **options)
        assert isinstance(ours.trainer.strategy, ShardedWeightsStrategy)
    finally:
        torch.distributed.destroy_process_group()
    assert {type(p) for p in ours.module.parameters()} == {torch.nn.Parameter}
    exact = {} if accelerator == "cpu" else {"rtol": 0.02, "atol": 1e-3}
    for name, weight in plain.module.state_dict().items():
        torch.testing.assert_close(ours.module.state_dict()[name].cpu(), weight.cpu(), **exact)
    for name in ("train_loss", "validation_loss"):
        np.testing.assert_allclose(ours.history[name], plain.history[name], rtol=1e-5 if accelerator == "cpu" else 0.01)
    if GPU:
        ours.to_device("cpu")
        assert torch.cuda.memory_allocated() <= before + 2**20  # nothing keeps the shards
