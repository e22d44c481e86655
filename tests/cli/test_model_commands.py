from __future__ import annotations

import json

import pandas as pd
import pytest
from anndata import read_h5ad, read_zarr
from typer.testing import CliRunner

from scvi_tahoe import TahoeST, read_store
from scvi_tahoe.cli import app
from scvi_tahoe.datasets import simulate_screen

LABELS = ("--perturbation-key", "perturbation", "--control", "control", "--context-key", "context")


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Observed cells, a model trained for two steps, and its export."""
    folder = tmp_path_factory.mktemp("cli")
    screen = simulate_screen(2, 4, n_genes=40, n_cells=30, n_control_cells=40)
    screen.write_h5ad(folder / "screen.h5ad")
    TahoeST.setup_anndata(screen, perturbation_key="perturbation", control="control", context_key="context")
    model = TahoeST(screen, set_size=16)
    model.train(max_steps=2, progress=False)
    model.save(folder / "model")
    # Of parts that arc-state knows too.
    TahoeST(screen, set_size=16, network={"head": "hidden_residual", "keep_zeros": False}).export(folder / "export")
    return folder


def test_predict_writes_the_cells_that_were_asked_for(folder):
    result = run(
        *("predict", folder / "model", folder / "screen.h5ad", "--output", folder / "predicted.h5ad"),
        *("--perturbation", "perturbation_1", "--perturbation", "perturbation_3", "--context", "context_2"),
    )
    assert result.exit_code == 0, result.output
    predicted = read_h5ad(folder / "predicted.h5ad")
    assert set(predicted.obs["perturbation"]) == {"perturbation_1", "perturbation_3"}
    assert set(predicted.obs["context"]) == {"context_2"}
    assert str(predicted.n_obs) in result.output


def test_predict_from_an_export_writes_what_the_model_predicts(folder):
    TahoeST.load(folder / "model", adata=read_h5ad(folder / "screen.h5ad")).export(folder / "handed_on")
    predicted = []
    for model in ("model", "handed_on"):
        written = folder / f"by_{model}.h5ad"
        options = ("--perturbation", "perturbation_1", "--n-cells", 5)
        result = run("predict", folder / model, folder / "screen.h5ad", "-o", written, *options)
        assert result.exit_code == 0, result.output
        predicted.append(read_h5ad(written))
    assert (predicted[0].X == predicted[1].X).all()
    pd.testing.assert_frame_equal(predicted[0].obs, predicted[1].obs)


def test_predict_writes_zarr_and_replaces_it_only_when_asked(folder):
    arguments = ("predict", folder / "model", folder / "screen.h5ad", "-o", folder / "twice.zarr", "--n-cells", 2)
    assert run(*arguments).exit_code == 0
    result = run(*arguments)
    assert result.exit_code == 2
    assert "overwrite" in result.stderr
    assert run(*arguments, "--overwrite").exit_code == 0
    assert read_zarr(folder / "twice.zarr").n_obs == 2 * 4 * 2


@pytest.mark.parametrize("devices", ["7", "0,7", "all"])
def test_predict_refuses_devices_that_are_not_there(folder, devices):
    result = run(
        *("predict", folder / "model", folder / "screen.h5ad", "-o", folder / "x.h5ad", "--devices", devices),
    )
    assert result.exit_code == 2
    assert "must be 'auto', a number of CUDA devices or a list" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_predict_names_a_label_that_the_model_does_not_know(folder):
    result = run(
        *("predict", folder / "model", folder / "screen.h5ad", "--output", folder / "x.h5ad"),
        *("--perturbation", "pertrubation_1"),
    )
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "perturbation_1" in result.stderr
    assert not (folder / "x.h5ad").exists()


def test_evaluate_prints_the_summary_and_writes_it(folder):
    prediction = folder / "all.h5ad"
    assert run("predict", folder / "model", folder / "screen.h5ad", "--output", prediction).exit_code == 0
    result = run("evaluate", prediction, folder / "screen.h5ad", *LABELS, "--preset", "quick", "-o", folder / "scores")
    assert result.exit_code == 0, result.output
    assert "pearson_delta" in result.output
    written = pd.read_csv(folder / "scores" / "summary.csv", index_col=0)
    assert "pearson_delta" in set(written.index)
    printed = json.loads(
        run("evaluate", prediction, folder / "screen.h5ad", *LABELS, "--preset", "quick", "--json").stdout
    )
    assert printed["mae"]["value"] == pytest.approx(written.loc["mae", "value"])


def test_evaluate_tells_what_is_wrong_before_the_scores_and_beside_json(folder):
    screen = read_h5ad(folder / "screen.h5ad")
    screen.X = screen.X.log1p()
    screen.write_h5ad(folder / "double.h5ad")
    command = ("evaluate", folder / "double.h5ad", folder / "screen.h5ad", *LABELS, "--preset", "quick")
    assert "log1p was applied twice" in run(*command).stderr
    shown = run(*command, "--representation-check", "warn").stdout
    assert shown.index("log1p was applied twice") < shown.index("mae")
    printed = run(*command, "--representation-check", "warn", "--json")
    assert "log1p was applied twice" in printed.stderr
    assert json.loads(printed.stdout)["mae"]["value"] > 0


def test_evaluate_refuses_an_unknown_preset_in_one_line(folder):
    result = run("evaluate", folder / "screen.h5ad", folder / "screen.h5ad", *LABELS, "--preset", "vcc2024")
    assert result.exit_code == 2
    assert "vcc2024" in result.stderr


def test_inspect_shows_what_an_export_holds(folder):
    result = run("inspect", folder / "export")
    assert result.exit_code == 0, result.output
    assert "perturbation" in result.output


def test_convert_writes_a_folder_in_the_other_format_and_back(folder):
    result = run("convert", folder / "export", folder / "arc", "--to", "arc")
    assert result.exit_code == 0, result.output
    assert run("inspect", folder / "arc").exit_code == 0
    assert run("convert", folder / "arc", folder / "again").exit_code == 0


DATA = ("--perturbation-key", "perturbation", "--control", "control", "--context-key", "context")


def test_convert_writes_h5ad_files_as_a_store_on_disk(folder):
    result = run("convert", folder / "screen.h5ad", folder / "screen.h5ad", folder / "store", *DATA)
    assert result.exit_code == 0, result.output
    observed = read_h5ad(folder / "screen.h5ad")
    assert f"{2 * observed.n_obs} cells x 40 genes" in result.output
    assert "scvi_tahoe.read_store(" in result.output
    adata = read_store(folder / "store")
    assert adata.shape == (2 * observed.n_obs, 40)
    assert "perturbation_embedding" in adata.uns


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("screen.h5ad", "x"), "give --perturbation-key and --control"),
        (("screen.h5ad", "x", *DATA, "--checkpoint", "best"), "--checkpoint is for models, and the format is store"),
        (("export", "x", *DATA), "--perturbation-key, --control, --context-key is for data"),
        (("export", "export", "x"), "one model is converted at a time, and there are 2"),
        (("absent.h5ad", "x", *DATA), "absent.h5ad does not exist"),
        (("screen.h5ad", "export", *DATA, "--overwrite"), "export exists and is no store on disk; it is not replaced"),
    ],
)
def test_convert_says_in_one_line_what_does_not_go_together(arguments, message, folder):
    paths = [folder / a if a in ("screen.h5ad", "export", "absent.h5ad", "x") else a for a in arguments]
    result = run("convert", *paths)
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert message in result.stderr
    assert not (folder / "x").exists()


def test_convert_does_not_replace_a_folder_unasked(folder):
    (folder / "precious").mkdir()
    (folder / "precious" / "thesis.tex").touch()
    result = run("convert", folder / "export", folder / "precious")
    assert result.exit_code == 2
    assert (folder / "precious" / "thesis.tex").exists()


def test_inspect_of_no_model_is_one_line(folder):
    result = run("inspect", folder / "nowhere")
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
