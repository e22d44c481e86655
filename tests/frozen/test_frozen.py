"""What version 0.1 wrote is still read, and what it computed is still computed.

Files of version 0.1 are in ``tests/files/0.1``. Numbers are equal to the last bit where torch, numpy and the kind of
processor are those they were written with, and nearly equal elsewhere.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from threadpoolctl import threadpool_limits

# tests are imported by their path, so a file beside them is not found by itself
sys.path.insert(0, str(Path(__file__).parent))

from frozen_numbers import FAST, compute, differences, header
from write_artefacts import (
    FILES,
    LABELS,
    LONG,
    LORA,
    MODELS,
    SIZE,
    evaluated,
    from_export,
    losses,
    make,
    predict,
    run_cells,
    small_screen,
    train,
)

from scvi_tahoe import EvaluationResult, TahoeEnsemble, TahoeST, read_store
from scvi_tahoe.study import TahoeRun, finetune

DECIDES = ("torch", "numpy", "cpu capability")
EXACT = [json.loads((FILES / "environment.json").read_text())[key] for key in DECIDES] == [header()[k] for k in DECIDES]


pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="the numbers are those of a CPU"),
    pytest.mark.filterwarnings("ignore:mode collapse"),
]


@pytest.fixture(autouse=True)
def one_thread():
    """The order of sums depends on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def equal(found, expected):
    if EXACT:
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def numbers(name):
    return np.load(FILES / name)


@pytest.mark.parametrize("name", [*MODELS, "model_adapters"])
def test_a_saved_model_of_old_predicts_what_it_predicted(name):
    expected = numbers(f"{name}/numbers.npz")
    loaded = TahoeST.load(FILES / name, small_screen())
    equal(predict(loaded), expected["prediction"])
    equal(predict(TahoeST.load(FILES / name, adata=False), small_screen()), expected["prediction"])
    for key, values in losses(loaded).items():
        np.testing.assert_array_equal(values, expected[key])


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_of_old_trains_on_to_the_same_numbers(name):
    model = train(TahoeST.load(FILES / name, small_screen()), recipe="full")
    equal(predict(model), numbers(f"{name}/trained_on.npy"))


def test_a_run_that_broke_off_ends_as_if_it_had_not(tmp_path):
    folder = shutil.copytree(FILES / "broken_run", tmp_path / "run")
    model = make(prior="cells")
    model.train(**LONG, save_dir=folder, resume_from=folder / "last.ckpt")
    expected = numbers("broken_run/whole.npz")
    equal(predict(model), expected["prediction"])
    for key, values in losses(model).items():
        equal(values, expected[key])


def test_an_export_of_old_predicts_with_its_prior():
    expected = numbers("export/prediction.npy")
    equal(predict(from_export()), expected)
    equal(predict(TahoeST.from_pretrained(FILES / "export"), small_screen()), expected)


def test_an_export_of_old_in_arcs_format_predicts_the_same():
    equal(predict(from_export("export_arc")), numbers("export_arc/prediction.npy"))


def test_adapters_of_old_are_put_back_and_trained_the_same():
    pytest.importorskip("peft")
    expected = numbers("model_adapters/numbers.npz")["prediction"]
    model = from_export()
    model.load_adapters(FILES / "adapters")
    model.prior_ = TahoeST.load(FILES / "model_adapters", adata=False).prior_  # trained on the same cells
    equal(predict(model), expected)
    again = from_export()
    again.train(**LORA)
    equal(predict(again), expected)


@pytest.mark.filterwarnings("ignore:.*annbatch")
def test_a_store_of_old_holds_its_cells_and_trains_the_same():
    expected = numbers("store.npz")
    store = read_store(FILES / "store.zarr")
    assert list(store.obs_names) == list(expected["cells"])
    np.testing.assert_array_equal(store.to_memory().X.toarray(), expected["X"])
    TahoeST.setup_anndata(store, **LABELS)
    model = train(TahoeST(store, size=SIZE, set_size=4, prior="none"))
    equal(predict(model), expected["prediction"])


#: baselines are exact by now, so they and what is scaled by them have other values
SUMMARY = ("value", "ceiling")


def test_an_evaluation_of_old_is_read():
    expected, result = numbers("scores.npz"), EvaluationResult.load(FILES / "scores")
    assert list(result.summary.index) == list(expected["metrics"])
    for name in SUMMARY:  # which are text in the file
        np.testing.assert_allclose(result.summary[name].to_numpy(dtype=float), expected[name], rtol=1e-14)
    np.testing.assert_array_equal(result.vcc["overall"], expected["overall"])
    assert len(result.de_observed) == len(result.de_predicted) == 24


def test_cells_are_scored_as_they_were():
    expected, summary = numbers("scores.npz"), evaluated("quick").summary
    summary = summary.loc[list(expected["quick_metrics"])]  # there are more by now
    for name in SUMMARY:
        equal(summary[name].to_numpy(dtype=float), expected[f"quick_{name}"])


def same_run(result):
    expected = numbers("run.npz")
    summary = result.scores.summary["value"].loc[list(expected["metrics"])]  # there are more by now
    equal(summary.to_numpy(dtype=float), expected["value"])
    assert result.best_step == expected["best_step"]
    log = pd.read_csv(result.folder / "metrics.csv")["validation_loss"].dropna()
    equal(log.to_numpy(), expected["validation_loss"])
    folder = result.folder / "model"  # of 0.1 a saved model, today an export
    is_export = not (folder / "model.pt").exists()
    model = TahoeST.from_pretrained(folder) if is_export else TahoeST.load(folder, adata=False)
    equal(predict(model, run_cells()), expected["prediction"])


def test_a_finished_run_of_old_is_read_and_not_done_again(tmp_path):
    folder = shutil.copytree(FILES / "run", tmp_path / "run")
    before = (folder / "best.ckpt").stat().st_mtime_ns
    same_run(finetune(TahoeRun.from_yaml(folder / "config.yaml"), folder, progress=False))
    assert (folder / "best.ckpt").stat().st_mtime_ns == before


def test_the_configuration_of_an_old_run_rebuilds_it(tmp_path):
    folder = shutil.copytree(FILES / "run", tmp_path / "run")
    same_run(finetune(folder / "config.yaml", progress=False))


def test_an_ensemble_of_old_predicts_what_it_predicted():
    expected = numbers("ensemble.npz")
    predicted = TahoeEnsemble.load(FILES / "ensemble", small_screen()).predict(n_cells=4, progress=False)
    equal(predicted.X, expected["prediction"])
    equal(predicted.varm["ensemble_sd"], expected["sd"])


def test_frozen_numbers_have_not_changed_by_a_bit():
    """The quick ones; ``frozen_numbers.py --compare`` computes all."""
    file = Path(__file__).parent / f"python{sys.version_info.major}.{sys.version_info.minor}.json"
    if not file.exists():
        pytest.skip(f"there are no numbers of Python {sys.version_info.major}.{sys.version_info.minor}")
    expected = json.loads(file.read_text())
    was, now = expected["header"], header()
    if changed := {key: (was[key], now[key]) for key in was if was[key] != now[key]}:
        pytest.skip(f"the frozen numbers were computed with others: {changed}")
    assert differences(expected, compute(FAST), FAST) == []
