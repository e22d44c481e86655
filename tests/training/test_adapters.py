"""recipe='lora': adapters train beside loaded weights, are kept alone, and are merged on export."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from scvi_tahoe import TahoeST
from scvi_tahoe.nn import original_name

pytest.importorskip("peft")

LORA = {"recipe": "lora", "lr": 0.02, "plan_kwargs": {"lora_rank": 2}}


def state(model):
    return {k: v.clone() for k, v in model.module.state_dict().items()}


def predicted(model):
    return model.predict(n_cells=8, progress=False).X


@pytest.fixture
def trained(make_model, train):
    """A trained model, whose weights another training may freeze."""
    return train(make_model())


@pytest.fixture
def adapted(trained, train):
    """A model with trained adapters, and its weights and prediction before them."""
    before, prediction = state(trained), predicted(trained)
    train(trained, **LORA)
    return trained, before, prediction


def test_adapters_change_the_prediction_and_no_weight(adapted):
    model, before, prediction = adapted
    after = state(model)
    base = {original_name(k): v for k, v in after.items() if ".lora_" not in k}
    assert set(base) == set(before)
    assert all(torch.equal(v, before[k]) for k, v in base.items())
    assert any(v.any() for k, v in after.items() if "lora_B" in k)
    assert not np.allclose(predicted(model), prediction)
    for name in model.adapters_["layers"]:
        out, into = before[f"network.{name}.weight"].shape
        assert after[f"network.{name}.lora_A.default.weight"].shape == (2, into)
        assert after[f"network.{name}.lora_B.default.weight"].shape == (out, 2)
    assert {"backbone.blocks.0.attention.qkv", "control_encoder.layers.0"} <= set(model.adapters_["layers"])
    assert model.adapters_["alpha"] == 4.0


def test_before_they_are_trained_adapters_change_nothing(trained, train, spy):
    prediction = predicted(trained)
    look = spy(lambda trainer, plan: {n: p.requires_grad for n, p in plan.module.named_parameters()})
    train(trained, **{**LORA, "lr": 1e-12}, callbacks=[look])
    np.testing.assert_allclose(predicted(trained), prediction, atol=1e-5)
    assert all(trains == (".lora_" in name) for name, trains in look.seen[-1].items())


def test_a_tensor_without_loaded_values_trains_whole(trained, train):
    trained.pretrained_parameters_ = [n for n in trained.pretrained_parameters_ if ".head." not in n]
    before = state(trained)
    train(trained, **LORA)
    after = state(trained)
    assert not torch.equal(
        before["network.head.project.layers.1.weight"], after["network.head.project.layers.1.weight"]
    )
    assert not any("head" in name for name in trained.adapters_["layers"])


def test_a_saved_model_keeps_its_adapters_and_an_export_merges_them(adapted, tmp_path):
    model, before, _ = adapted
    model.save(tmp_path / "model")
    loaded = TahoeST.load(tmp_path / "model", model.adata)
    assert loaded.adapters_ == model.adapters_
    np.testing.assert_array_equal(predicted(loaded), predicted(model))
    model.export(tmp_path / "export")
    loaded = TahoeST.from_pretrained(tmp_path / "export", model.adata)
    assert loaded.adapters_ is None
    assert set(state(loaded)) == set(before)
    np.testing.assert_allclose(predicted(loaded), predicted(model), atol=1e-5)


def test_adapters_alone_fit_the_weights_they_were_trained_on(adapted, trained, make_model, train, tmp_path):
    model, before, _ = adapted
    model.save_adapters(tmp_path / "adapters")
    assert {f.name for f in (tmp_path / "adapters").iterdir()} == {"adapters.json", "adapters.safetensors"}
    settings = json.loads((tmp_path / "adapters" / "adapters.json").read_text())
    assert (settings["rank"], len(settings["base_sha256"])) == (2, 64)
    again = train(make_model())  # the same training gives the same weights
    again.load_adapters(tmp_path / "adapters")
    np.testing.assert_array_equal(predicted(again), predicted(model))
    with pytest.raises(ValueError, match="the model carries adapters already; call merge_adapters"):
        again.load_adapters(tmp_path / "adapters")
    other = train(make_model(), seed=7)
    weights = state(other)
    with pytest.raises(ValueError, match="were trained beside other weights than this model's"):
        other.load_adapters(tmp_path / "adapters")
    assert all(torch.equal(v, weights[k]) for k, v in state(other).items())
    with pytest.raises(FileNotFoundError, match="holds no adapters; save_adapters writes adapters.json and"):
        other.load_adapters(tmp_path)


def test_what_was_loaded_as_adapters_trains_on_as_adapters(adapted, train):
    model, before, _ = adapted
    first = state(model)
    train(model, **LORA)
    second = state(model)
    for name, value in first.items():
        assert torch.equal(value, second[name]) == (".lora_A" not in name and ".lora_B" not in name), name


def test_merged_adapters_leave_a_plain_model_that_trains_whole(adapted, train):
    model, before, _ = adapted
    prediction = predicted(model)
    with pytest.raises(ValueError, match=r"recipe='full' trains its weights; call merge_adapters\(\) first"):
        train(model, recipe="full")
    with pytest.raises(ValueError, match=r"of rank 2 and alpha 4, and \['rank', 'alpha'\] of this run differ"):
        train(model, recipe="lora", plan_kwargs={"lora_rank": 3})
    model.merge_adapters()
    assert set(state(model)) == set(before)
    np.testing.assert_allclose(predicted(model), prediction, atol=1e-5)
    merged = state(model)
    train(model, recipe="full")
    assert all(p.requires_grad for p in model.module.parameters())
    assert not torch.equal(merged["network.backbone.norm.weight"], state(model)["network.backbone.norm.weight"])


def test_without_weights_or_adapters_one_is_told(make_model, train, tmp_path):
    model = make_model()
    with pytest.raises(
        ValueError, match="recipe='lora' trains adapters beside loaded weights, and this model has none"
    ):
        train(model, recipe="lora")
    with pytest.raises(ValueError, match="the model carries no adapters to save"):
        model.save_adapters(tmp_path / "adapters")
    with pytest.raises(ValueError, match="the model carries no adapters; train"):
        model.merge_adapters()
    assert not (tmp_path / "adapters").exists()


def test_without_peft_the_extra_is_named(trained, train, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    before = state(trained)
    with pytest.raises(ImportError, match=r"adapters need PEFT; install it with: pip install 'scvi-tahoe\[lora\]'"):
        train(trained, **LORA)
    assert trained.adapters_ is None
    assert set(state(trained)) == set(before)
