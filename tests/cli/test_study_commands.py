from __future__ import annotations

import json

import pytest
import torch
import yaml

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
MEANINGLESS = ARC | {"data": {"kwargs": {"embed_key": "X_e", "output_space": "embedding"}}}


def test_finetune_runs_reads_and_rebuilds(run, write, tmp_path):
    path, folder = write(RUN, "run.yaml"), tmp_path / "a"
    shown = run("finetune", path, "--folder", folder, "--dry-run").stdout
    assert "Nothing was written" in shown
    assert not folder.exists()
    first = run("finetune", path, "--folder", folder, "--quiet", "--json")
    assert json.loads(first.stdout)["scores"]["mae"] > 0
    assert "finished" in run("finetune", path, "--folder", folder, "--quiet").stdout
    assert "the same numbers" in run("finetune", folder / "config.yaml", "--quiet").stdout
    assert (tmp_path / "a-rebuilt" / "result.json").exists()


def test_a_mistake_in_the_file_is_one_line(refusal, write):
    assert "did you mean 'train'" in refusal("finetune", write(RUN | {"tarin": {}}))


@pytest.mark.parametrize(
    ("config", "options", "code"),
    [
        pytest.param(ARC, (), 0, id="warnings"),
        pytest.param(ARC, ("--strict",), 1, id="warnings, strict"),
        pytest.param(MEANINGLESS, (), 1, id="a run that would mean nothing"),
        pytest.param(RUN, (), 2, id="another file"),
    ],
)
def test_check_exits_by_what_it_found(invoke, write, config, options, code):
    assert invoke("check", write(config), *options).exit_code == code


def test_check_prints_json_for_scripts(run, write):
    content = json.loads(run("check", write(ARC), "--json").stdout)
    assert [f["rule"] for f in content["findings"]] == ["loss_fn"]
    assert content["run"]["name"] == "theirs"


def test_check_writes_a_run_and_never_over_one(run, invoke, write, tmp_path):
    command = ("check", write(ARC), "--write", tmp_path / "run.yaml")
    run(*command)
    assert yaml.safe_load((tmp_path / "run.yaml").read_text())["data"]["control"] == "ntc"
    refused = invoke(*command)
    assert refused.exit_code == 2
    assert "give the name of a new file" in refused.stderr


def test_inspect_draws_the_log(run, tmp_path):
    log = tmp_path / "metrics.csv"
    log.write_text("step,train_loss,val_loss\n9,1.0,\n9,,2.0\n19,0.5,\n19,,1.5\n")
    result = run("inspect", log, "--figure", tmp_path / "log.png", "--json")
    assert json.loads(result.stdout)["logs"][0]["best_step"] == 19
    assert (tmp_path / "log.png").stat().st_size > 1000


def test_inspect_refuses_a_figure_of_no_log(refusal, tmp_path):
    torch.save({"state_dict": {"w": torch.ones(2)}, "global_step": 3}, tmp_path / "a.ckpt")
    assert "no figure to draw" in refusal("inspect", tmp_path / "a.ckpt", "--figure", tmp_path / "a.png")


def test_a_study_is_shown_before_it_is_run(run):
    shown = run("study", "case_study", "recommended", "--dry-run").stdout
    assert "round-4b" in shown
    assert "Nothing was written" in shown


def test_a_study_runs_and_prints_its_table(run, write, tmp_path):
    shared = {key: RUN[key] for key in ("data", "split", "model", "train", "score")}
    path = write({"name": "one", **shared, "rounds": [{"name": "only"}]})
    result = run("study", path, "--folder", tmp_path / "out", "--quiet", "--json")
    assert json.loads(result.stdout)["only"]["steps"] == 2
