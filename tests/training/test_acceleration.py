"""What makes steps fast changes nothing else, and nothing of it is left behind."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch

from scvi_tahoe._devices import autocast_dtype, resolve_precision
from scvi_tahoe.training import compiling_pays
from scvi_tahoe.training._acceleration import Acceleration
from scvi_tahoe.training._plan import AsyncScalar

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
BRIEF = {"max_steps": 8, "validate_every": 4, "batch_size": 2, "progress": False}


def test_only_long_runs_on_a_gpu_are_compiled():
    long = {"n_parameters": 3 * 10**8, "cells_per_step": 6144, "n_steps": 100_000}
    assert compiling_pays(GPU, **long)
    assert not compiling_pays(CPU, **long)
    assert not compiling_pays(GPU, **{**long, "n_steps": 100})


def test_pausing_and_ending_give_the_parts_their_own_code_back(make_model):
    module = make_model().module
    acceleration = Acceleration(module, compiles=True)
    acceleration.begin("32-true", CPU)
    head = module.network.head
    assert "forward" in vars(head)
    acceleration.pause()
    assert "forward" not in vars(head)
    acceleration.resume()
    assert "forward" in vars(head)
    acceleration.end()
    assert not any("forward" in vars(part) for part in module.modules())


@pytest.mark.parametrize(("precision", "expected"), [("bf16-mixed", torch.float16), ("32-true", torch.float32)])
def test_the_loss_multiplies_16_bit_numbers_where_the_network_does(precision, expected, make_model):
    module = make_model().module
    acceleration = Acceleration(module, compiles=False)
    acceleration.begin(precision, GPU)
    assert module.objective.matmul_dtype == expected
    acceleration.begin(precision, CPU)
    assert module.objective.matmul_dtype == torch.float32
    acceleration.end()


def test_an_interrupted_run_leaves_no_compiled_part_behind(make_model):
    class Break(pl.Callback):
        def on_train_start(self, trainer, plan):
            assert "forward" in vars(plan.module.network.head)
            raise RuntimeError("enough")

    model = make_model()
    with pytest.raises(RuntimeError, match="enough"):
        model.train(**BRIEF, compile=True, callbacks=[Break()])
    assert not any("forward" in vars(part) for part in model.module.modules())


def test_an_unknown_choice_is_refused(make_model):
    model = make_model()
    with pytest.raises(ValueError, match=r"compile='yes' is unknown; allowed are 'auto', 'record' or true or false"):
        model.train(**BRIEF, compile="yes")
    model.train(**BRIEF)
    with pytest.raises(ValueError, match=r"precision='half' is unknown; allowed are 'auto', '32'"):
        model.predict(precision="half", progress=False)


def test_gradient_norms_of_every_interval_are_logged(make_model):
    assert float(AsyncScalar(torch.tensor(1.5, requires_grad=True))) == 1.5
    model = make_model()
    model.train(**BRIEF, plan_kwargs={"log_every": 3})
    assert model.history["gradient_norm"].index.tolist() == [0, 3, 6]
    assert (model.history["gradient_norm"]["gradient_norm"] > 0).all()


@pytest.mark.parametrize(
    ("given", "dtype", "resolved"),
    [("auto", None, "32-true"), ("bf16", torch.bfloat16, "bf16"), ("16", torch.float16, "16"), (32, None, "32")],
)
def test_a_precision_that_is_given_is_taken_and_auto_is_float32(given, dtype, resolved):
    assert autocast_dtype(given, CPU) == dtype
    assert resolve_precision(given, CPU) == resolved


def test_training_in_bfloat16_ends_close_to_float32(make_model):
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        model = make_model()
        model.train(**{**BRIEF, "max_steps": 40, "validate_every": 40}, precision=precision)
        losses[precision] = float(model.history["validation_loss"].iloc[-1, 0])
        assert next(model.module.parameters()).dtype == torch.float32
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.02)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("compiles", [False, True])
def test_on_a_gpu_training_ends_where_it_ends_in_float32(compiles, make_model):
    losses = {}
    for options in ({"precision": "32-true", "accelerator": "cpu"}, {"compile": compiles}):
        model = make_model()
        model.train(**{**BRIEF, "max_steps": 40, "validate_every": 20}, **options)
        losses[len(losses)] = float(model.history["validation_loss"].iloc[-1, 0])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.gpu
@on_gpu
def test_on_a_gpu_predictions_do_not_depend_on_how_they_are_brought_back(make_model):
    model = make_model()
    model.train(**BRIEF)
    few, many = (model.predict(batch_size=n, precision="32", seed=1, progress=False).X for n in (1, 5))
    torch.testing.assert_close(torch.from_numpy(few), torch.from_numpy(many), rtol=1e-4, atol=1e-5)


def test_an_error_of_the_compiler_ends_compiling_and_not_the_run(make_model, monkeypatch, caplog):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    torch._dynamo.reset()
    model = make_model()
    model.train(**BRIEF, compile=True)
    assert model.history["train_loss"].notna().all().all()
    assert sum("compiling failed" in record.message for record in caplog.records) == 1
