"""The training plan: rates, decay, clipping, mode, and what is logged."""

from __future__ import annotations

import re

import lightning.pytorch as pl
import pandas as pd
import pytest
import torch

from scvi_tahoe import FractionSplit
from scvi_tahoe.training import PlanConfig, learning_rate_share

TINY = {"hidden": 8, "n_layers": 1, "intermediate": 8, "n_heads": 2}


def rates(trainer, plan):
    return [g["lr"] for g in trainer.optimizers[0].param_groups]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_schedule_moves_the_rate_at_every_optimizer_step(accumulate, make_model, train, spy):
    look = spy(lambda trainer, plan: (trainer.global_step, rates(trainer, plan)), at_start=True)
    options = {"accumulate_grad_batches": accumulate, "lr": 0.01, "plan_kwargs": {"log_every": 1}}
    model = train(make_model(), callbacks=[look], **options)
    assert len(look.seen) == 8 * accumulate
    schedule = {"schedule": "cosine", "start": 0, "end": 8, "warmup": 0.05, "floor": 0.02}
    for step, values in look.seen:
        assert values == pytest.approx([0.01 * learning_rate_share(step, **schedule)] * len(values))
    assert {step for step, _ in look.seen} == set(range(8))
    logged = model.history["lr_new"]["lr_new"]
    assert logged.to_dict() == pytest.approx({step: values[0] for step, values in look.seen})


def test_an_accumulated_gradient_is_the_mean_of_those_of_its_minibatches(make_model, train):
    model = make_model(network={"dropout": 0.0})
    copy = make_model(network={"dropout": 0.0}).module
    batches, gradients = [], {}

    class Collect(pl.Callback):
        def on_train_batch_start(self, trainer, plan, batch, *args):
            batches.append(batch)

        def on_before_optimizer_step(self, trainer, plan, optimizer):
            gradients.update({n: p.grad.clone() for n, p in plan.module.named_parameters() if p.grad is not None})
            trainer.should_stop = True

    options = {"plan_kwargs": {"gradient_clip": None}, "accumulate_grad_batches": 2, "max_steps": 1}
    train(model, callbacks=[Collect()], **options)
    assert len(batches) == 2
    (sum(copy(batch)[-1].loss for batch in batches) / 2).backward()
    assert gradients
    for name, parameter in copy.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad)


def test_rates_norm_and_decay_of_every_group_are_in_the_file_from_step_0(pretrained, train, tmp_path):
    groups = {}

    class Names(pl.Callback):
        def on_train_start(self, trainer, plan):
            groups.update({g["name"]: g["lr"] for g in trainer.optimizers[0].param_groups})

    train(pretrained(), save_dir=tmp_path, callbacks=[Names()])
    first = pd.read_csv(tmp_path / "metrics.csv").iloc[0]
    assert first["step"] == 0
    assert {n for n in first.index if n.startswith("lr_")} == {f"lr_{name}" for name in groups}
    assert {"heads", "upper", "lower"} <= set(groups)
    for name, rate in groups.items():
        assert first[f"lr_{name}"] == pytest.approx(rate)
    assert first["lr_lower"] == 0 < first["lr_heads"]
    assert first["gradient_norm"] > 0
    assert first["weight_decay"] == 0.01


def probabilities(model):
    return [m.p for m in model.module.modules() if isinstance(m, torch.nn.Dropout)]


def test_a_run_has_its_own_dropout_and_leaves_that_of_the_model(pretrained, train, spy, interrupt):
    model = pretrained()
    before = probabilities(model)
    assert 0.2 in before
    look = spy(lambda trainer, plan: [m.p for m in plan.module.modules() if isinstance(m, torch.nn.Dropout)])
    train(model, callbacks=[look], plan_kwargs={"dropout": 0.45})
    assert all(set(seen) == {0.45} for seen in look.seen)
    assert probabilities(model) == before
    with pytest.raises(KeyboardInterrupt):
        train(model, callbacks=[interrupt(3)], plan_kwargs={"dropout": 0.0})
    assert probabilities(model) == before


def test_weight_decay_shrinks_matrices_alone(make_model, train):
    """Two runs of one step that differ in nothing but the decay differ by the decay."""
    options = {"network": {"confidence_token": True}, "setup": {"perturbation_embedding_key": "perturbation_embedding"}}
    start = dict(make_model(**options).module.named_parameters())
    plan = {"schedule": "constant", "warmup": 0.0}
    without, decayed = (
        dict(
            train(
                make_model(**options), plan_kwargs={**plan, "weight_decay": decay}, max_steps=1,
                split=FractionSplit(validation=0.0),
            ).module.named_parameters()
        )
        for decay in (0.0, 0.5)
    )  # fmt: skip
    shrunk = {n for n in start if not torch.equal(decayed[n], without[n])}
    for name in shrunk:
        torch.testing.assert_close(decayed[name] - without[name], -1e-3 * 0.5 * start[name], atol=2e-7, rtol=1e-3)
    assert shrunk == {n for n, p in start.items() if p.ndim >= 2 and not n.endswith("token") and p.any()}


def test_batches_are_not_decayed(make_model, train, spy):
    decays = {}

    def members(trainer, plan):
        names = {id(p): n for n, p in plan.module.named_parameters()}
        for group in trainer.optimizers[0].param_groups:
            decays.update({names[id(p)]: group["weight_decay"] for p in group["params"]})

    train(make_model(batch_encoder=True), callbacks=[spy(members)])
    assert decays["network.batch_encoder.weight"] == decays["network.backbone.norm.weight"] == 0.0
    assert decays["network.head.project.layers.0.weight"] == 0.01


def gradient_norm(trainer, plan):
    gradients = [p.grad for p in plan.module.parameters() if p.grad is not None]
    return float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients])))


@pytest.mark.parametrize("limit", [0.125, None])
def test_clipping_clips_and_the_norm_before_it_is_logged(limit, make_model, train, spy):
    look = spy(gradient_norm)
    model = train(make_model(), callbacks=[look], plan_kwargs={"gradient_clip": limit, "log_every": 1})
    logged = model.history["gradient_norm"]["gradient_norm"]
    assert (logged > 1).all()
    assert look.seen == pytest.approx([limit] * 8 if limit else logged.tolist(), rel=1e-4)


def dropout_is_on(module):
    return [m.training for m in module.modules() if isinstance(m, torch.nn.Dropout)]


def test_dropout_is_on_in_a_second_training_and_after_loading(make_model, train, spy, tmp_path):
    model = make_model()
    looks = [spy(lambda trainer, plan: (plan.module.training, dropout_is_on(plan.module))) for _ in range(3)]
    train(model, callbacks=[looks[0]])
    assert not model.module.training
    train(model, callbacks=[looks[1]], recipe="full")
    model.save(tmp_path / "model")
    train(type(model).load(tmp_path / "model", model.adata), callbacks=[looks[2]], recipe="full")
    for look in looks:
        assert len(look.seen) == 8
        for training, dropout in look.seen:
            assert training
            assert dropout
            assert all(dropout)


def test_the_validation_loss_is_the_loss_that_is_trained(make_model, train):
    """On the same sets, without dropout, training and validation report the same number."""
    model = make_model(network={"dropout": 0.0}, objective={"terms": {"energy": 1.0, "delta_mse": 10.0}})
    seen = {}

    class Compare(pl.Callback):
        def on_validation_batch_start(self, trainer, plan, batch, *args):
            if trainer.sanity_checking:
                return
            with torch.no_grad():
                seen.setdefault("as_trained", []).append(float(plan.module(batch)[-1].loss))
                seen.setdefault("n_sets", []).append(len(next(iter(batch.values()))))

    train(model, max_steps=1, validate_every=1, callbacks=[Compare()])
    mean = sum(v * n for v, n in zip(seen["as_trained"], seen["n_sets"], strict=True)) / sum(seen["n_sets"])
    assert model.history["validation_loss"]["validation_loss"].iloc[-1] == pytest.approx(mean, rel=1e-5)
    parts = {k: model.history[f"validation_{k}"].iloc[-1, 0] for k in ("energy", "delta_mse")}
    assert mean == pytest.approx(parts["energy"] + 10 * parts["delta_mse"], rel=1e-5)


def test_layer_decay_gives_lower_blocks_lower_rates_or_is_refused(pretrained, make_model, train, spy):
    look = spy(lambda trainer, plan: {g["name"]: g["lr"] for g in trainer.optimizers[0].param_groups})
    lower = {"plan_kwargs": {"layer_decay": 0.5}}
    for options in ({"recipe": "heads"}, {"freeze_backbone": True}):
        with pytest.raises(ValueError, match=f"layer_decay=0.5 has no effect: .*with .*{list(options.values())[0]}"):
            train(pretrained(), **options, **lower)
    train(make_model(), callbacks=[look], **lower)  # from scratch nothing is frozen
    assert look.seen[0]["new_depth2"] == pytest.approx(look.seen[0]["new"] / 4)
    with pytest.raises(ValueError, match="layer_decay=0.5 has no effect"):
        train(make_model(size=TINY), **lower)
    train(pretrained(), freeze_backbone=2, **lower)


def test_dropout_is_refused_where_there_is_no_layer_of_it(make_model, train):
    size = {"hidden": 8, "n_layers": 1, "intermediate": 8, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1}
    with pytest.raises(ValueError, match="dropout=0.3 has no effect: this network has no layer of dropout"):
        train(make_model(size=size), plan_kwargs={"dropout": 0.3})
    train(make_model(size=size | {"backbone": "gpt2"}), plan_kwargs={"dropout": 0.3})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps=0 must be a whole number of 1 or more"),
        ({"max_steps": 1.5}, "max_steps is 1.5; allowed is a whole number"),
        ({"log_every": 0}, "log_every=0 must be a whole number of 1 or more"),
        ({"lr": 0.0}, "lr=0.0 must be positive"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be 0 or more"),
        ({"eps": 0.0}, "eps=0.0 must be positive"),
        ({"betas": (1.5, 0.9)}, "betas=(1.5, 0.9) must be two numbers from 0 to below 1"),
        ({"betas": (0.9,)}, "betas is (0.9,); allowed is 2 values (a number, a number)."),
        ({"gradient_clip": 0.0}, "gradient_clip=0.0 must be positive, or None"),
        ({"warmup": 1.5}, "warmup=1.5 must be a fraction from 0 to 1"),
        ({"min_lr_ratio": -0.5}, "min_lr_ratio=-0.5 must be a fraction from 0 to 1"),
        ({"layer_decay": 0.0}, "layer_decay=0.0 must be above 0 and at most 1"),
        ({"dropout": 1.0}, "dropout=1.0 must be from 0 to below 1, or None"),
        ({"ema": 1.0}, "ema=1.0 must be between 0 and 1, or None"),
        ({"ema": 0.0}, "ema=0.0 must be between 0 and 1, or None"),
        ({"lora_rank": 0}, "lora_rank=0 must be a whole number of 1 or more"),
        ({"lora_alpha": 0.0}, "lora_alpha=0.0 must be positive, or None"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
        ({"learning_rate": 1e-3}, "training options ['learning_rate'] are unknown; there are ['max_steps', 'lr'"),
        ({"schedule": "constant", "min_lr_ratio": 0.3}, "min_lr_ratio=0.3 has no effect with schedule='constant'"),
        ({"schedule": "linear"}, "schedule='linear' is unknown; allowed are 'cosine', 'constant', 'one_cycle'"),
        ({"recipe": "ia3"}, "recipe='ia3' is unknown; allowed are 'freeze_then_unfreeze', 'full', 'heads', 'lora'"),
        ({"recipe": "lora", "freeze_backbone": 3}, "recipe='lora' keeps all pretrained weights frozen, which freeze_b"),
        ({"lora_rank": 4}, "lora_rank needs recipe='lora'; this is recipe='freeze_then_unfreeze'"),
        ({"lora_alpha": 4.0, "recipe": "full"}, "lora_alpha needs recipe='lora'; this is recipe='full'"),
        ({"freeze_backbone": 10}, "freeze_backbone=10 is the step"),
    ],
)
def test_options_that_are_unknown_or_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PlanConfig.from_kwargs({"max_steps": 10, **options})
    config = PlanConfig(max_steps=10, betas=(0.8, 0.9), freeze_backbone=3)
    assert PlanConfig.from_kwargs(config.to_kwargs()) == config
