"""From a file of cells to a report, or to a run file, in one command."""

from __future__ import annotations

import re
import shlex
from textwrap import dedent

import anndata as ad
import numpy as np
import pytest
import yaml

from scvi_tahoe.datasets import simulate_screen
from scvi_tahoe.study import TahoeRun, look_at_screen, write_new_run


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    adata = simulate_screen(2, 10, n_genes=40, n_cells=24, n_control_cells=60, seed=3)
    adata.obs["treatment"] = adata.obs["perturbation"].astype(str).replace({"control": "DMSO"})
    adata.obs["donor"] = adata.obs["context"].astype(str)
    adata.obs["well"] = [f"w{i % 96}" for i in range(adata.n_obs)]
    adata.obs = adata.obs[["treatment", "donor", "well"]]
    adata.uns.clear()
    path = tmp_path_factory.mktemp("screen") / "screen.h5ad"
    adata.write_h5ad(path)
    return path


LABELS = ("--perturbation-key", "treatment", "--control", "DMSO")


def test_init_finds_labels_and_writes_a_run_file_with_comments(run, screen, tmp_path):
    text = run("init", screen, "-o", tmp_path / "run.yaml").output
    assert "10 perturbations (obs['treatment'])" in text
    written = TahoeRun.from_yaml(tmp_path / "run.yaml")
    assert written.data.files == (str(screen.resolve()),)
    assert (written.data.perturbation_key, written.data.control, written.data.context_key) == (
        "treatment", "DMSO", "donor",
    )  # fmt: skip
    assert written.split["kind"] == "held_out_conditions"
    assert "# embedding_files:" in (tmp_path / "run.yaml").read_text()
    assert "1" not in run("finetune", tmp_path / "run.yaml", "--dry-run").output.splitlines()[-1]


def test_train_leaves_a_report_and_says_what_is_next(run, invoke, screen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = ad.read_h5ad(screen)
    donors, labels = cells.obs["donor"], cells.obs["treatment"]
    missing = (donors == max(donors)) & labels.isin(sorted(set(labels) - {"DMSO"})[:3])
    folder, screen = tmp_path / "first", tmp_path / "screen.h5ad"
    cells[~missing].write_h5ad(screen)
    options = ("--context-key", "donor", "--max-steps", 2, "--preset", "quick", "--folder", folder, "--quiet")
    lines = run("train", screen, *LABELS, *options).output.splitlines()
    assert f"Open {folder / 'report.html'}" in lines
    plan = lines.pop()
    assert lines[-1].startswith(f"Next: scvi-tahoe predict {folder}")
    assert "predicted cells" in run(*shlex.split(lines[-1])[2:]).output  # as it is pasted
    assert plan.startswith(f"What to measure next: scvi-tahoe plan {screen} --perturbation-key treatment")
    assert len(run(*shlex.split(plan)[5:]).output.splitlines()) == 1 + 3 + 1  # what no cells measure there
    before = screen.read_bytes()
    onto_itself = invoke(*shlex.split(lines[-1])[2:4], screen, "-o", screen, "--overwrite")
    assert onto_itself.exit_code == 2
    assert f"{screen} is what this command reads, or holds it; give another name" in onto_itself.stderr
    assert screen.read_bytes() == before
    assert any(line.startswith("Verdict on ") for line in lines)
    assert any(line.startswith("Network: The network ") for line in lines)
    assert "<html" in (folder / "report.html").read_text()
    assert yaml.safe_load((folder / "config.yaml").read_text())["split"]["kind"] == "held_out_conditions"
    predicted = ad.read_h5ad(folder / "prediction.h5ad")
    assert predicted.uns["scvi_tahoe_prediction"]["scvi_tahoe_version"]
    for path, expected in (
        (folder / "prediction.h5ad", "A prediction of scvi-tahoe"),
        (folder / "scores", "EvaluationResult"),
        (folder / "model", "parameters"),
        (folder, "metrics.csv"),
        (folder, "Verdict on "),
    ):
        assert expected in run("inspect", path).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("--perturbation-key", "treatmen", "--control", "DMSO"), "did you mean 'treatment'", id="column"),
        pytest.param(("--perturbation-key", "treatment", "--control", "dmso"), "did you mean 'DMSO'", id="label"),
        pytest.param((*LABELS, "--context-key", "line"), "no column 'line'", id="context"),
        pytest.param((*LABELS, "--table", "esm2"), "is not NAME=FILE", id="table"),
    ],
)
def test_train_refuses_what_the_file_does_not_have(refusal, screen, arguments, message):
    assert message in refusal("train", screen, *arguments)


def test_init_says_which_columns_there_are_if_none_looks_like_perturbations(refusal, screen, tmp_path):
    adata = ad.read_h5ad(screen)
    adata.obs = adata.obs[["well"]]
    adata.write_h5ad(tmp_path / "x.h5ad")
    assert "give --perturbation-key and --control. obs has ['well']" in refusal("init", tmp_path / "x.h5ad")


@pytest.mark.parametrize("label", ["sgCtrl", "siScramble", "neg_control_2", "NT", "sgLacZ-1"])
def test_controls_are_found_by_the_names_that_laboratories_give_them(screen, tmp_path, label):
    adata = ad.read_h5ad(screen)
    adata.obs["treatment"] = adata.obs["treatment"].astype(str).replace({"DMSO": label})
    adata.write_h5ad(tmp_path / "x.h5ad")
    assert look_at_screen(tmp_path / "x.h5ad").control == label


@pytest.mark.parametrize("label", ["a\nseed: 99", "it's: {b}", 'say "c"', "\u2028d", "#e"])
def test_a_run_file_takes_any_label(screen, tmp_path, label):
    adata = ad.read_h5ad(screen)
    for name in ("treatment", "donor"):
        column = adata.obs[name].astype(str)
        adata.obs[name] = column.replace({next(v for v in column.unique() if v != "DMSO"): label})
    adata.write_h5ad(tmp_path / "x.h5ad")
    look = look_at_screen(tmp_path / "x.h5ad", perturbation_key="treatment", control="DMSO", context_key="donor")
    run = write_new_run(look, tmp_path / "new\nname: run.yaml")
    assert (run.seed, run.data.context_key, run.name) == (0, "donor", "x")


def test_init_says_so_if_there_is_a_single_context(run, screen, tmp_path):
    adata = ad.read_h5ad(screen)
    adata[adata.obs["donor"] == "context_1"].write_h5ad(tmp_path / "one.h5ad")
    text = run("init", tmp_path / "one.h5ad", "-o", tmp_path / "run.yaml").output
    assert "measured in one context each" in text


@pytest.mark.parametrize("command", ["train", "init", "inspect"])
def test_counts_as_a_sequencer_leaves_them_are_refused_with_the_lines_that_mend_them(
    invoke, run, screen, tmp_path, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    adata = ad.read_h5ad(screen)
    adata.X = adata.layers.pop("counts")
    labels = adata.obs["treatment"].astype(object).to_numpy(copy=True)
    labels[:3], labels[3:5] = None, "multi"
    adata.obs["treatment"] = labels
    adata.var_names = ["twice", "twice", *adata.var_names[2:]]
    adata.write_h5ad("raw.h5ad")
    result = invoke(command, "raw.h5ad", *(LABELS if command == "train" else ()))
    assert result.exit_code == (0 if command == "inspect" else 2)
    text = " ".join((result.stdout + result.stderr).split())
    for problem in ("several genes have the same name", "(3) or are labelled 'multi'", "X holds raw counts"):
        assert problem in text
    lines = re.search(r"    import scanpy as sc\n.*write_h5ad\S+", result.stdout + result.stderr, re.DOTALL)
    exec(dedent(lines[0]), {})  # as it is pasted
    assert "10 perturbations" in run("init", "raw_prepared.h5ad", "-o", "run.yaml").output
    assert "Nothing was written" in run("finetune", "run.yaml", "--dry-run").output


@pytest.mark.parametrize(
    ("kept", "line"),
    [
        pytest.param("counts", "adata.X = adata.layers['counts'].copy()", id="counts in a layer"),
        pytest.param("raw", "adata = adata.raw.to_adata()", id="raw"),
    ],
)
def test_scaled_values_are_refused_with_the_matrix_to_take_instead(invoke, screen, tmp_path, kept, line):
    adata = ad.read_h5ad(screen)
    adata.raw = adata if kept == "raw" else None
    adata.layers = {"counts": adata.layers["counts"]} if kept == "counts" else {}
    adata.X = adata.X.toarray() - 1
    adata.write_h5ad(tmp_path / "scaled.h5ad")
    message = invoke("train", tmp_path / "scaled.h5ad", *LABELS).stderr
    assert "X holds negative values, as after sc.pp.scale" in message
    assert line in message


def test_the_command_for_a_prepared_file_does_not_ask_for_the_layer_that_was_counts(invoke, screen, tmp_path):
    for option in (["--layer", "counts"], ["--layer=counts"]):
        message = invoke("train", screen, *LABELS, *option).stderr
        assert "layer 'counts' holds raw counts" in message
        assert "--layer" not in message.split("Then:")[1]


@pytest.mark.parametrize("column", ["concordance", "dose"], ids=["not a dose", "not known of some cells"])
def test_numbers_that_cannot_be_doses_are_not_taken_for_doses(run, screen, tmp_path, column):
    adata = ad.read_h5ad(screen)
    adata.obs[column] = np.linspace(0.1, 1, adata.n_obs)
    if column == "dose":
        adata.obs.loc[adata.obs_names[-1], column] = np.nan
    adata.write_h5ad(tmp_path / "screen.h5ad")
    run("init", tmp_path / "screen.h5ad", "-o", tmp_path / "run.yaml")
    assert TahoeRun.from_yaml(tmp_path / "run.yaml").data.dose_key is None


def test_init_reads_the_layer_that_holds_logarithms_of_counts(run, screen, tmp_path):
    adata = ad.read_h5ad(screen)
    adata.layers["log1p"], adata.X = adata.X.copy(), adata.layers["counts"]
    adata.write_h5ad(tmp_path / "layers.h5ad")
    text = run("init", tmp_path / "layers.h5ad", "-o", tmp_path / "run.yaml").output
    assert "layer 'log1p' is read instead" in text
    assert TahoeRun.from_yaml(tmp_path / "run.yaml").data.layer == "log1p"


def test_init_holds_out_combinations_whose_parts_are_measured_alone(run, screen, tmp_path):
    adata = ad.read_h5ad(screen)
    adata = adata[adata.obs["donor"] == "context_1"].copy()
    singles = [f"G{i}" for i in range(6)]
    pairs = [f"{a}+{b}" for i, a in enumerate(singles) for b in singles[i + 1 :]]
    adata.obs["gene"] = [["control", *singles, *pairs][i % 22] for i in range(adata.n_obs)]
    adata.obs = adata.obs[["gene"]]
    adata.write_h5ad(tmp_path / "pairs.h5ad")
    assert "combinations, separated by '+'" in run("init", tmp_path / "pairs.h5ad", "-o", tmp_path / "run.yaml").output
    written = TahoeRun.from_yaml(tmp_path / "run.yaml")
    assert written.data.combination_separator == "+"
    assert written.split["kind"] == "held_out_perturbations"
    assert {*written.split["test"]} <= {*pairs} - {*written.split["validation"]}


def test_doses_are_found_by_the_name_of_their_column(run, screen, tmp_path):
    adata = ad.read_h5ad(screen)
    adata.obs["dose_uM"] = [
        0.0 if label == "DMSO" else (0.1, 1.0)[i % 2] for i, label in enumerate(adata.obs["treatment"])
    ]
    adata.obs["concordance"] = 1.0
    adata.write_h5ad(tmp_path / "doses.h5ad")
    run("init", tmp_path / "doses.h5ad", "-o", tmp_path / "run.yaml")
    assert TahoeRun.from_yaml(tmp_path / "run.yaml").data.dose_key == "dose_uM"
    assert "--dose-key dose_uM" in run("train", tmp_path / "doses.h5ad", *LABELS, "--dry-run").output
    assert "--dose-key dose_uM" in run("inspect", tmp_path / "doses.h5ad").output


def test_init_names_a_column_that_may_be_contexts_but_is_not_called_so(run, screen, tmp_path):
    adata = ad.read_h5ad(screen)
    adata.obs = adata.obs.rename(columns={"donor": "stim"})
    adata.write_h5ad(tmp_path / "stim.h5ad")
    text = run("init", tmp_path / "stim.h5ad", "-o", tmp_path / "run.yaml").output
    assert "obs['stim'] may be contexts or batches" in " ".join(text.split())


def test_a_run_file_of_init_holds_out_no_more_than_can_be(run, screen, tmp_path):
    adata = ad.read_h5ad(screen)
    names = sorted(set(adata.obs["treatment"]) - {"DMSO"})
    gone = (adata.obs["donor"] == "context_2") & adata.obs["treatment"].isin(names[: int(0.6 * len(names))])
    adata[~gone.to_numpy()].copy().write_h5ad(tmp_path / "partly.h5ad")
    run("init", tmp_path / "partly.h5ad", "-o", tmp_path / "run.yaml")
    assert TahoeRun.from_yaml(tmp_path / "run.yaml").split["kind"] == "held_out_conditions"
    assert "Nothing was written" in run("finetune", tmp_path / "run.yaml", "--dry-run").output
