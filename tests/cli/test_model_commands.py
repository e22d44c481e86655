from __future__ import annotations

import json

import pandas as pd
import pytest
from anndata import read_h5ad, read_zarr

from scvi_tahoe import TahoeST, read_store
from scvi_tahoe.datasets import simulate_screen

LABELS = ("--perturbation-key", "perturbation", "--control", "control", "--context-key", "context")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Observed cells, a model trained for two steps, and an export of parts that arc-state knows, too."""
    folder = tmp_path_factory.mktemp("cli")
    screen = simulate_screen(2, 4, n_genes=40, n_cells=30, n_control_cells=40)
    screen.write_h5ad(folder / "screen.h5ad")
    TahoeST.setup_anndata(screen, perturbation_key="perturbation", control="control", context_key="context")
    model = TahoeST(screen, set_size=16)
    model.train(max_steps=2, progress=False)
    model.save(folder / "model")
    TahoeST(screen, set_size=16, network={"head": "hidden_residual", "keep_zeros": False}).export(folder / "export")
    return folder


@pytest.fixture
def predict(folder):
    """Arguments that predict from the model into a file of the folder."""
    return lambda output: ("predict", folder / "model", folder / "screen.h5ad", "--output", folder / output)


def test_predict_writes_the_cells_that_were_asked_for(run, predict, folder):
    wanted = ("--perturbation", "perturbation_1", "--perturbation", "perturbation_3", "--context", "context_2")
    result = run(*predict("predicted.h5ad"), *wanted)
    predicted = read_h5ad(folder / "predicted.h5ad")
    assert set(predicted.obs["perturbation"]) == {"perturbation_1", "perturbation_3"}
    assert set(predicted.obs["context"]) == {"context_2"}
    assert str(predicted.n_obs) in result.output


def test_predict_says_how_much_it_predicts_and_takes_the_whole_table_only_if_told(run, predict, folder, caplog):
    run(*predict("measured.h5ad"), "--n-cells", 1)
    n_obs = read_h5ad(folder / "measured.h5ad").n_obs
    assert f"predicting {n_obs} cells of {n_obs} conditions" in caplog.text
    run(*predict("whole.h5ad"), "--n-cells", 1, "--perturbation", "all")
    assert read_h5ad(folder / "whole.h5ad").n_obs == n_obs  # one-hot: there is nothing else


def test_predict_from_an_export_writes_what_the_model_predicts(run, folder):
    TahoeST.load(folder / "model", adata=read_h5ad(folder / "screen.h5ad")).export(folder / "handed_on")
    predicted = []
    for model in ("model", "handed_on"):
        written = folder / f"by_{model}.h5ad"
        options = ("--perturbation", "perturbation_1", "--n-cells", 5)
        run("predict", folder / model, folder / "screen.h5ad", "-o", written, *options)
        predicted.append(read_h5ad(written))
    assert (predicted[0].X == predicted[1].X).all()
    pd.testing.assert_frame_equal(predicted[0].obs, predicted[1].obs)


def test_predict_writes_zarr_and_replaces_it_only_when_asked(run, refusal, predict, folder):
    arguments = (*predict("twice.zarr"), "--n-cells", 2)
    run(*arguments)
    assert "overwrite" in refusal(*arguments)
    run(*arguments, "--overwrite")
    assert read_zarr(folder / "twice.zarr").n_obs == 2 * 4 * 2


DEVICES = "must be 'auto', a number of CUDA devices or a list"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        pytest.param("--devices", "7", DEVICES, id="number of devices"),
        pytest.param("--devices", "0,7", DEVICES, id="list of devices"),
        pytest.param("--devices", "all", "devices is a list, or 'auto'", id="word for devices"),
        pytest.param("--perturbation", "pertrubation_1", "perturbation_1", id="label"),
    ],
)
def test_predict_refuses_what_is_not_there(refusal, predict, folder, option, value, message):
    assert message in refusal(*predict("x.h5ad"), option, value)
    assert not (folder / "x.h5ad").exists()


def test_evaluate_prints_the_summary_and_writes_it(run, predict, folder):
    run(*predict("all.h5ad"))
    command = ("evaluate", folder / "all.h5ad", folder / "screen.h5ad", *LABELS, "--preset", "quick")
    assert "pearson_delta" in run(*command, "-o", folder / "scores").output
    written = pd.read_csv(folder / "scores" / "summary.csv", index_col=0)
    assert "pearson_delta" in set(written.index)
    printed = json.loads(run(*command, "--json").stdout)
    assert printed["mae"]["value"] == pytest.approx(written.loc["mae", "value"])


def test_evaluate_tells_what_is_wrong_before_the_scores(run, refusal, folder):
    screen = read_h5ad(folder / "screen.h5ad")
    screen.X = screen.X.log1p()
    screen.write_h5ad(folder / "double.h5ad")
    command = ("evaluate", folder / "double.h5ad", folder / "screen.h5ad", *LABELS, "--preset", "quick")
    assert "log1p was applied twice" in refusal(*command)
    shown = run(*command, "--representation-check", "warn").stdout
    assert shown.index("log1p was applied twice") < shown.index("mae")
    printed = run(*command, "--representation-check", "warn", "--json")
    assert "log1p was applied twice" in printed.stderr
    assert json.loads(printed.stdout)["mae"]["value"] > 0


def test_evaluate_scales_from_the_baseline_that_is_named(run, refusal, predict, folder):
    run(*predict("named.h5ad"))
    command = ("evaluate", folder / "named.h5ad", folder / "screen.h5ad", *LABELS, "--preset", "quick")
    shown = run(*command).output
    assert "baseline 'control'" in shown
    assert "Verdict on" in shown
    shown = run(*command, "--baseline", "none", "--no-baselines").output
    assert "baseline None" in shown
    assert "no baseline was scored" in shown
    assert "computed from training data" in refusal(*command, "--baseline", "deviation")


def test_evaluate_refuses_an_unknown_preset(refusal, folder):
    command = ("evaluate", folder / "screen.h5ad", folder / "screen.h5ad", *LABELS)
    assert "vcc2024" in refusal(*command, "--preset", "vcc2024")


def test_convert_writes_the_other_format_and_back(run, folder):
    run("convert", folder / "export", folder / "arc", "--to", "arc")
    run("convert", folder / "arc", folder / "again")
    for model in ("export", "arc"):
        assert "perturbation" in run("inspect", folder / model).output


def test_convert_writes_h5ad_files_as_a_store_on_disk(run, folder):
    result = run("convert", folder / "screen.h5ad", folder / "screen.h5ad", folder / "store", *LABELS)
    n_cells = 2 * read_h5ad(folder / "screen.h5ad").n_obs
    assert f"{n_cells} cells x 40 genes" in result.output
    assert "scvi_tahoe.read_store(" in result.output
    adata = read_store(folder / "store")
    assert adata.shape == (n_cells, 40)
    assert "perturbation_embedding" in adata.uns


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("screen.h5ad", "x"), "give --perturbation-key and --control"),
        (("screen.h5ad", "x", *LABELS, "--checkpoint", "best"), "--checkpoint is for models, and the format is store"),
        (("export", "x", *LABELS), "--perturbation-key, --control, --context-key is for data"),
        (("export", "export", "x"), "one model is converted at a time, and there are 2"),
        (("absent.h5ad", "x", *LABELS), "absent.h5ad does not exist"),
        (
            ("screen.h5ad", "export", *LABELS, "--overwrite"),
            "export exists and is not a store on disk; it is not replaced",
        ),
        (("export", "model"), "model"),
    ],
    ids=["no labels", "checkpoint of data", "labels of a model", "two models", "no file", "a model as store", "in use"],
)
def test_convert_says_what_does_not_go_together(refusal, folder, arguments, message):
    before = sorted((folder / "model").iterdir())
    names = ("screen.h5ad", "export", "absent.h5ad", "x", "model")
    assert message in refusal("convert", *(folder / a if a in names else a for a in arguments))
    assert not (folder / "x").exists()
    assert sorted((folder / "model").iterdir()) == before
