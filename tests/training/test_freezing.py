"""Frozen means: no gradient, no decay, no dropout, bit-identical afterwards; and only for pretrained tensors."""

from __future__ import annotations

import pytest
import torch

BACKBONE = "network.backbone."


def changed(before, after):
    return {k for k in before if not torch.equal(before[k], after[k])}


def state(trainer, plan):
    backbone = plan.module.network.backbone
    return {
        "step": trainer.global_step,
        "dropout": [m.training for m in backbone.modules() if isinstance(m, torch.nn.Dropout)],
        "mode": backbone.training,
        "gradients": {n for n, p in plan.module.named_parameters() if p.grad is not None},
        "weights": {k: v.clone() for k, v in plan.module.state_dict().items()},
    }


@pytest.mark.parametrize("with_checkpoints", [False, True])
def test_a_frozen_backbone_has_no_gradient_and_no_dropout(with_checkpoints, pretrained, train, spy, weights, tmp_path):
    model = pretrained(network={"backbone": "gpt2", "backbone_dropout": 0.2})
    before, look = weights(model), spy(state)
    options = {"freeze_backbone": True, "validate_every": 2, "plan_kwargs": {"weight_decay": 0.5}, "lr": 0.01}
    train(model, callbacks=[look], save_dir=tmp_path if with_checkpoints else None, **options)
    for seen in look.seen:
        assert not seen["mode"]
        assert seen["dropout"] == [False] * model.module.config.n_layers
        assert not any(name.startswith(BACKBONE) for name in seen["gradients"])
    moved = changed(before, weights(model))
    assert moved
    assert not any(name.startswith(BACKBONE) for name in moved)
    assert "network.head.project.layers.1.weight" in moved


def test_dropout_of_the_rest_stays_on_without_a_warning(pretrained, train, spy, recwarn):
    look = spy(lambda trainer, plan: [m.training for m in plan.module.network.head.modules()])
    train(pretrained(), callbacks=[look], freeze_backbone=True, validate_every=2)
    assert all(all(seen) for seen in look.seen)
    assert not [w for w in recwarn if "eval mode" in str(w.message)]


def test_unfreezing_at_a_step_changes_tensors_only_from_there_on(pretrained, train, spy, weights):
    model = pretrained()
    before, look = weights(model), spy(state)
    train(model, callbacks=[look], freeze_backbone=5, plan_kwargs={"weight_decay": 0.5})
    for seen in look.seen:  # after the minibatch: step counts the steps that were taken
        moved = any(name.startswith(BACKBONE) for name in changed(before, seen["weights"]))
        assert moved == (seen["step"] > 5), seen["step"]
        assert seen["mode"] == (seen["step"] > 5)


def test_the_default_recipe_unfreezes_the_upper_blocks_before_the_lower(pretrained, train, spy, weights):
    model = pretrained()
    before, look = weights(model), spy(state)
    train(model, callbacks=[look], max_steps=10, validate_every=5)
    first = {}
    for seen in look.seen:
        for name in changed(before, seen["weights"]):
            first.setdefault(name, seen["step"])
    assert {v for k, v in first.items() if not k.startswith(BACKBONE)} == {1}
    assert {v for k, v in first.items() if k.startswith((f"{BACKBONE}blocks.2", f"{BACKBONE}norm"))} == {3}
    assert {v for k, v in first.items() if k.startswith((f"{BACKBONE}blocks.0", f"{BACKBONE}blocks.1"))} == {5}


def test_a_tensor_without_pretrained_values_is_never_frozen(pretrained, train, weights):
    model = pretrained(new="blocks.0")
    before = weights(model)
    train(model, freeze_backbone=True)
    moved = {name for name in changed(before, weights(model)) if name.startswith(BACKBONE)}
    assert moved == {n for n in before if "blocks.0" in n}


@pytest.mark.parametrize("options", [{"recipe": "heads"}, {"freeze_backbone": True}, {"freeze_backbone": 3}], ids=str)
def test_a_random_backbone_cannot_be_frozen(make_model, options):
    with pytest.raises(ValueError, match="has no effect: no tensor of the backbone holds pretrained values"):
        make_model().plan_training(8, **options)


def test_what_the_user_froze_stays_frozen_and_nothing_else_is_left_behind(pretrained, train, weights):
    model = pretrained()
    mine = model.module.network.control_encoder
    mine.requires_grad_(False)
    wanted = {n: p.requires_grad for n, p in model.module.named_parameters()}
    before = weights(model)
    train(model, freeze_backbone=True)
    assert {n: p.requires_grad for n, p in model.module.named_parameters()} == wanted
    assert model.module.frozen == ()
    train(model, recipe="full")
    assert changed(before, weights(model)) == {n for n in before if "control_encoder" not in n}


def test_a_training_that_broke_off_leaves_nothing_frozen(pretrained, train, spy, interrupt, weights):
    def fail(trainer, plan):
        raise RuntimeError("out of paper")

    model = pretrained()
    for callback, error in ((spy(fail), RuntimeError), (interrupt(3), KeyboardInterrupt)):
        with pytest.raises(error):
            train(model, freeze_backbone=True, callbacks=[callback])
        assert all(p.requires_grad for p in model.module.parameters())
        assert model.module.frozen == ()
    before = weights(model)
    train(model, recipe="full")
    assert changed(before, weights(model)) == set(before)


def test_the_list_of_parts_says_how_many_parameters_train_when(pretrained, train, spy, capsys):
    look = spy(lambda trainer, plan: plan.describe())
    train(pretrained(new="head"), callbacks=[look], freeze_backbone=5)
    header, *rows = look.seen[0].splitlines()
    assert header.split() == ["part", "parameters", "frozen", "trainable", "trains"]
    lines = {row.split()[0]: row for row in rows}
    assert lines["new"].endswith("from step 0 at 1 x lr")
    assert lines["upper"].endswith("from step 5 at 0.5 x lr")
    numbers = {part: [int(n.replace(",", "")) for n in row.split()[1:4]] for part, row in lines.items()}
    assert all(n == frozen + trainable for n, frozen, trainable in numbers.values())
    assert numbers["new"][1] == numbers["upper"][2] == 0
    assert sum(n for n, *_ in numbers.values()) == sum(p.numel() for p in pretrained().module.parameters())
    assert "upper" not in capsys.readouterr().err
    train(pretrained(), progress=True)
    assert "upper" in capsys.readouterr().err


def test_what_is_unfrozen_starts_with_a_warm_up_of_its_own(pretrained, train, spy):
    def look(trainer, plan):
        optimizer, name = trainer.optimizers[0], "network.backbone.blocks.0.attention.qkv.weight"
        state = optimizer.state.get(dict(plan.module.named_parameters())[name], {})
        rate = {g["name"]: g["lr"] for g in optimizer.param_groups}["lower"]
        return trainer.global_step, int(state.get("step", 0)), rate

    before, after = spy(look, at_start=True), spy(look)
    plan = {"schedule": "constant", "warmup": 0.5}
    train(pretrained(), callbacks=[before, after], max_steps=10, freeze_backbone=6, lr=0.01, plan_kwargs=plan)
    assert [(step, moments) for step, moments, _ in after.seen] == [(s, max(0, s - 6)) for s in range(1, 11)]
    rates = {step: rate for step, _, rate in before.seen}
    assert [rates[s] for s in (5, 6, 7, 8)] == pytest.approx([0.0, 0.0025, 0.005, 0.005])
