from __future__ import annotations

import json

import pytest
import yaml
from typer.testing import CliRunner

from scvi_tahoe.cli import app

RUN = {
    "name": "tiny",
    "data": {"dataset": "simulated", "n_genes": 30},
    "split": {"kind": "few_shot_context", "context": "context_1", "validation": ["perturbation_01"],
              "test": ["perturbation_03", "perturbation_04"]},
    "model": {"size": {"hidden": 16, "n_layers": 1, "intermediate": 32, "n_heads": 2}, "set_size": 8},
    "train": {"max_steps": 2, "batch_size": 2, "validate_every": 1, "accelerator": "cpu"},
    "score": {"preset": "quick"},
}  # fmt: skip
ARC = {
    "data": {"kwargs": {"embed_key": None, "output_space": "all", "pert_col": "gene", "control_pert": "ntc"}},
    "model": {"name": "state", "kwargs": {"cell_set_len": 8, "mask_attn": True}},
    "training": {"loss_fn": "mse", "lr": 1e-3, "gradient_clip_val": 1.0},
    "name": "theirs",
}


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def write(content, folder, name):
    path = folder / name
    path.write_text(yaml.safe_dump(content))
    return path


def test_finetune_runs_reads_and_rebuilds(tmp_path):
    path = write(RUN, tmp_path, "run.yaml")
    first = run("finetune", path, "--folder", tmp_path / "a", "--quiet", "--json")
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["scores"]["mae"] > 0
    again = run("finetune", path, "--folder", tmp_path / "a", "--quiet")
    assert "finished" in again.stdout
    rebuilt = run("finetune", tmp_path / "a" / "config.yaml", "--quiet")
    assert "the same numbers" in rebuilt.stdout
    assert (tmp_path / "a-rebuilt" / "result.json").exists()


def test_a_dry_run_writes_nothing(tmp_path):
    path = write(RUN, tmp_path, "run.yaml")
    result = run("finetune", path, "--folder", tmp_path / "a", "--dry-run")
    assert result.exit_code == 0
    assert "Nothing was written" in result.stdout
    assert not (tmp_path / "a").exists()


def test_a_mistake_in_the_file_is_one_line_and_exit_code_2(tmp_path):
    result = run("finetune", write(RUN | {"tarin": {}}, tmp_path, "run.yaml"))
    assert result.exit_code == 2
    assert "did you mean 'train'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(("options", "code"), [((), 0), (("--strict",), 1)])
def test_check_exits_by_what_it_found(tmp_path, options, code):
    assert run("check", write(ARC, tmp_path, "config.yaml"), *options).exit_code == code


def test_check_exits_with_1_for_a_run_that_would_mean_nothing(tmp_path):
    config = {**ARC, "data": {"kwargs": {"embed_key": "X_e", "output_space": "embedding"}}}
    assert run("check", write(config, tmp_path, "config.yaml")).exit_code == 1


def test_check_exits_with_2_for_another_file(tmp_path):
    assert run("check", write(RUN, tmp_path, "config.yaml")).exit_code == 2
    assert run("check", tmp_path / "nowhere.yaml").exit_code == 2


def test_check_prints_json_for_scripts(tmp_path):
    content = json.loads(run("check", write(ARC, tmp_path, "config.yaml"), "--json").stdout)
    assert [f["rule"] for f in content["findings"]] == ["loss_fn"]
    assert content["run"]["name"] == "theirs"


def test_check_writes_a_run_and_never_over_one(tmp_path):
    path = write(ARC, tmp_path, "config.yaml")
    assert run("check", path, "--write", tmp_path / "run.yaml").exit_code == 0
    assert yaml.safe_load((tmp_path / "run.yaml").read_text())["data"]["control"] == "ntc"
    refused = run("check", path, "--write", tmp_path / "run.yaml")
    assert refused.exit_code == 2
    assert "give the name of a new file" in refused.stderr


def test_inspect_draws_the_log(tmp_path):
    log = tmp_path / "metrics.csv"
    log.write_text("step,train_loss,val_loss\n9,1.0,\n9,,2.0\n19,0.5,\n19,,1.5\n")
    result = run("inspect", log, "--figure", tmp_path / "log.png", "--json")
    assert json.loads(result.stdout)["logs"][0]["best_step"] == 19
    assert (tmp_path / "log.png").stat().st_size > 1000


def test_inspect_refuses_a_figure_of_no_log(tmp_path):
    import torch

    torch.save({"state_dict": {"w": torch.ones(2)}, "global_step": 3}, tmp_path / "a.ckpt")
    result = run("inspect", tmp_path / "a.ckpt", "--figure", tmp_path / "a.png")
    assert result.exit_code == 2
    assert "no figure to draw" in result.stderr


def test_a_study_is_shown_before_it_is_run():
    result = run("study", "case_study", "recommended", "--dry-run")
    assert result.exit_code == 0
    assert "round-4b" in result.stdout
    assert "Nothing was written" in result.stdout


def test_a_study_runs_and_prints_its_table(tmp_path):
    shared = {key: RUN[key] for key in ("data", "split", "model", "train", "score")}
    content = {"name": "one", **shared, "rounds": [{"name": "only"}]}
    result = run("study", write(content, tmp_path, "one.yaml"), "--folder", tmp_path / "out", "--quiet", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["only"]["steps"] == 2


def test_an_unknown_study_is_one_line_and_exit_code_2():
    result = run("study", "nothing")
    assert result.exit_code == 2
    assert "case_study, recommended" in result.stderr


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_cells_that_are_not_there_are_one_line(tmp_path, command):
    options = {"predict": ("-o", tmp_path / "p.h5ad"), "evaluate": ("--perturbation-key", "p", "--control", "c")}
    result = run(command, tmp_path / "nowhere", tmp_path / "nowhere.h5ad", *options[command])
    assert result.exit_code == 2
    assert "there is no file" in result.stderr
    assert len(result.stderr.splitlines()) == 1
