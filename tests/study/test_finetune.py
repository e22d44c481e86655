from __future__ import annotations

import copy
import json
import re
import shutil
import sqlite3
import sys
from contextlib import closing
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from anndata import AnnData, read_h5ad
from study_samples import RUN

from scvi_tahoe import FractionSplit, TahoeST, write_store
from scvi_tahoe.datasets import simulate_screen
from scvi_tahoe.pretrained import read_pretrained
from scvi_tahoe.study import TahoeRun, compare_runs, dry_run_text, finetune, is_run, result_text
from scvi_tahoe.study._data import load_data
from scvi_tahoe.study._finetune import _prepare, resolved
from scvi_tahoe.study._model import PeakMemory, build_model
from scvi_tahoe.study._run_files import read_checkpoint
from scvi_tahoe.study._run_folder import fingerprint, run_card

NOT_SCORED = {"preset": None}
BRIEF = {"max_steps": 1, "validate_every": 1}


def run(values, folder, **sections):
    """Carry out a run with parts of its sections changed."""
    values = copy.deepcopy(values)
    for name, part in sections.items():
        values[name] = values.get(name, {}) | part if isinstance(part, dict) else part
    return finetune(TahoeRun.from_dict(values), folder, progress=False)


def without_its_end(source, folder):
    """Copy a finished run as if it had been killed between its last step and saving."""
    shutil.copytree(source, folder)
    for path in (folder / name for name in ("model", "scores", "figures")):
        shutil.rmtree(path, ignore_errors=True)
    for name in ("result.json", "prediction.h5ad"):
        (folder / name).unlink(missing_ok=True)
    return folder


def content(path):
    return yaml.safe_load(path.read_text())


@pytest.fixture
def from_file(values, tmp_path):
    """Plain values of a run on cells in a file, a part of which is scored."""

    def from_file(cells, test=0.2, **keys):
        cells.write_h5ad(tmp_path / "cells.h5ad")
        data = {"path": str(tmp_path / "cells.h5ad"), "perturbation_key": "perturbation", "control": "control", **keys}
        return values | {"data": data, "split": {"kind": "fraction", "validation": 0.1, "test": test}}

    return from_file


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Values of a run of two layers that starts from another one, finished."""
    folder = tmp_path_factory.mktemp("deep") / "first"
    values = RUN | {"model": {"size": RUN["model"]["size"] | {"n_layers": 2}, "set_size": 8}, "score": NOT_SCORED}
    run(values, folder, train={"max_steps": 2})
    return values | {"start": {"source": str(folder)}}


def test_a_run_leaves_everything_that_is_needed_to_judge_it(finished):
    files = "provenance.json metrics.csv best.ckpt last.ckpt model prediction.h5ad scores loading_report.txt README.md"
    assert {path.name for path in finished.iterdir()} >= {*files.split(), "config.yaml", "figures", "result.json"}
    assert {p.name for p in (finished / "figures").iterdir()} == {"training.png", "bars.png", "deltas.png", "cells.png"}


def test_the_card_names_no_checkpoint_that_is_not_there(finished):
    weights, record = read_pretrained(finished / "model"), json.loads((finished / "provenance.json").read_text())
    assert "weights of the best validation, as in `best.ckpt`" in (finished / "README.md").read_text()
    never = replace(weights, extra=weights.extra | {"training": {}})
    card = run_card(TahoeRun.from_yaml(finished / "config.yaml"), never, record, None)
    assert "| best step | none validated |" in card
    assert "`best.ckpt`" not in card


def test_the_log_has_losses_rates_throughput_and_memory(finished):
    log = pd.read_csv(finished / "metrics.csv")
    assert {"train_loss", "validation_loss", "lr_new", "sets_per_second", "peak_memory_gb"} <= set(log.columns)
    assert log["peak_memory_gb"].max() > 0


def test_the_provenance_fixes_data_releases_and_seed(finished):
    record = json.loads((finished / "provenance.json").read_text())
    assert record["seed"] == 3
    assert {"torch", "scvi-tools", "numpy"} <= set(record["versions"])
    data = record["data"]
    assert data["train"]["n_genes"] == 40
    assert data["split"]["cells"]["validation"] == 2 * 40
    assert len(data["sha256"]) == len(data["split"]["sha256"]) == 64


def test_the_config_in_the_folder_spells_out_defaults(finished):
    config = content(finished / "config.yaml")
    model = TahoeST.from_pretrained(finished)
    assert config["model"]["prior"] == model.prior
    assert config["model"]["objective"] == model.module.objective.config.to_dict()
    assert config["model"]["network"]["head"] == model.module.config.head
    assert config["train"]["plan"]["warmup"] == model.training_config_["plan"]["warmup"]


def test_options_without_effect_are_refused_unless_defaults(finished, values):
    whole = content(finished / "config.yaml")["model"]
    data = load_data(TahoeRun.from_dict(values))

    def build(**changes):
        return build_model(TahoeRun.from_dict(values | {"model": whole | changes}), data).module

    assert build().objective.config.to_dict() == whole["objective"]
    assert build(objective={"decoder_weight": 1.0}).objective.config.to_dict() == whole["objective"]
    with pytest.raises(ValueError, match="objective option decoder_weight=0.5 has no effect"):
        build(objective=whole["objective"] | {"decoder_weight": 0.5})
    with pytest.raises(ValueError, match="network option backbone_dropout=0.1 has no effect"):
        build(network=whole["network"] | {"backbone_dropout": 0.1})
    values["start"] = {"source": str(finished)}
    with pytest.raises(ValueError, match="network option backbone_dropout=0.1 has no effect"):
        build(network={"backbone_dropout": 0.1})


def test_a_run_is_rebuilt_with_options_that_its_weights_bring(values, tmp_path):
    data = load_data(TahoeRun.from_dict(values))
    TahoeST.setup_anndata(data.train, **data.config.keys)
    weights = TahoeST(
        data.train, size=values["model"]["size"], set_size=8, prior="none",
        network={"confidence_token": True, "attention_dropout": 0.3}, objective={"confidence_weight": 0.5, "chunks": 2},
    )  # fmt: skip
    weights.train(1, validate_every=1, batch_size=2, progress=False)
    weights.export(tmp_path / "weights")
    values["start"] = {
        "source": str(tmp_path / "weights"), "accept": ["drop_tokens", "other_attention"], "check_scale": False,
    }  # fmt: skip
    network = {"confidence_token": False, "attention": "self_only"}
    written = TahoeRun.from_dict(values | {"model": {"network": network}})
    first = build_model(written, data)
    assert first.module.objective.config.chunks == 2
    config = resolved(written, data, first, "0" * 64)
    config.to_yaml(tmp_path / "config.yaml")
    again = build_model(TahoeRun.from_yaml(tmp_path / "config.yaml"), data)
    assert again.module.objective.config == first.module.objective.config
    assert again.module.config == first.module.config
    assert resolved(config, data, again, "0" * 64) == config


FINISHED = {"source": "the finished run"}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        pytest.param({"train": {"monitor": "validation_foo"}}, ValueError,
                     r"is not computed in this run.*there are \['validation_loss'", id="monitor"),
        pytest.param({"data": {"perturbation_embedding_key": "esm"}}, KeyError, "is not in uns", id="embedding"),
        pytest.param({"data": {"cell_embedding_components": 40}}, ValueError, "must be less than the 40 genes",
                     id="components"),
        pytest.param({"data": {"sha256": "0" * 64}}, ValueError, "the data are not those of the run", id="other data"),
        pytest.param({"train": {"save_steps": 3}}, ValueError, "save_steps=3 must be a multiple of validate_every",
                     id="checkpoints between validations"),
        pytest.param({"start": FINISHED, "train": {"freeze_backbone": True, "plan": {"layer_decay": 0.5}}}, ValueError,
                     "layer_decay=0.5 has no effect", id="no effect on the weights"),
        pytest.param({"start": FINISHED | {"checkpoint": "step=5"}}, FileNotFoundError,
                     "it has best.ckpt, last.ckpt", id="checkpoint"),
        pytest.param({"start": FINISHED, "model": {"representation": "embedding"}}, ValueError, "new_input",
                     id="weights that do not fit"),
    ],
)  # fmt: skip
def test_a_refused_run_leaves_nothing(finished, values, tmp_path, changes, error, message):
    if "start" in changes:
        changes = changes | {"start": changes["start"] | {"source": str(finished)}}
    with pytest.raises(error, match=message):
        run(values, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("damaged", ValueError, "is not a readable h5ad file"),
        ("no", FileNotFoundError, "an h5ad file with cells is expected"),
    ],
)
def test_files_that_are_no_cells_are_named(values, tmp_path, name, error, message):
    (tmp_path / "damaged.h5ad").write_text("no cells")
    data = {"perturbation_key": "p", "control": "c", "cell_embedding_key": "X", "path": str(tmp_path / f"{name}.h5ad")}
    with pytest.raises(error, match=message):
        run(values | {"data": data}, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "message"), [("", "not of a run"), ("thesis.tex", "is a file")], ids=["foreign folder", "file"]
)
def test_a_place_that_is_taken_is_refused(values, tmp_path, name, message):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=message):
        run(values, tmp_path / name)


def test_a_folder_with_another_run_is_refused(finished, values):
    with pytest.raises(ValueError, match=r"train.lr was 0.01, now 0.02"):
        run(values, finished, train={"lr": 0.02})


def test_adapters_not_attached_yet_may_have_rates_by_depth(deep, tmp_path):
    train = deep["train"] | {"recipe": "lora", "max_steps": 2, "plan": {"layer_decay": 0.5}}
    TahoeRun.from_dict(deep | {"model": {}, "train": train}).to_yaml(tmp_path / "run.yaml")
    assert "Nothing was written." in dry_run_text(tmp_path / "run.yaml")


def test_a_frozen_projection_keeps_its_random_numbers(finished, values, tmp_path):
    values["train"] |= {"freeze_projection": True}
    result = run(values, tmp_path / "out")
    first, now = (read_checkpoint(f / "last.ckpt")["state_dict"] for f in (finished, result.folder))
    config = TahoeRun.from_dict(values)
    untrained = build_model(config, load_data(config)).module.state_dict()
    name = next(n for n in untrained if n.startswith("network.head.project.layers.0"))
    assert torch.equal(now[f"module.{name}"], untrained[name])
    assert not torch.equal(first[f"module.{name}"], untrained[name])


def test_held_out_cells_are_not_in_the_training_data(finished):
    predicted = read_h5ad(finished / "prediction.h5ad")
    assert set(predicted.obs["perturbation"]) == {f"perturbation_0{i}" for i in (3, 4, 5)}
    assert set(predicted.obs["context"]) == {"context_1"}
    record = json.loads((finished / "provenance.json").read_text())["data"]
    assert record["train"]["n_cells"] == 3 * (24 * 40 + 200) - 3 * 40


def test_the_comparison_says_where_another_seed_gives_other_numbers(finished, values, tmp_path):
    run(values, tmp_path / "other", seed=4)
    comparison = compare_runs(finished, tmp_path / "other")
    assert not comparison.same
    assert " was " in str(comparison)
    assert " and is " in str(comparison)


def test_a_run_keeps_its_threads_and_pytorch_gets_its_own_back(values, tmp_path):
    before = torch.get_num_threads()
    result = run(values, tmp_path / "run", train={"threads": before + 1}, score={"preset": "vcc2025"})
    assert torch.get_num_threads() == before
    assert json.loads((result.folder / "provenance.json").read_text())["machine"]["threads"] == before + 1
    assert content(result.folder / "config.yaml")["train"]["threads"] == before + 1


def test_a_run_that_is_taken_up_keeps_the_threads_it_began_with(finished, values, tmp_path):
    began = content(finished / "config.yaml")["train"]["threads"]
    before = torch.get_num_threads()
    torch.set_num_threads(began + 1)
    try:
        finetune(TahoeRun.from_dict(values), finished, progress=False)
    finally:
        torch.set_num_threads(before)


def test_a_finished_run_is_read_and_not_done_again(finished, values):
    before = (finished / "best.ckpt").stat().st_mtime_ns
    lines = []
    result = finetune(TahoeRun.from_dict(values), finished, progress=False, report=lines.append)
    assert (finished / "best.ckpt").stat().st_mtime_ns == before
    assert "finished" in lines[0]
    assert result.scores is not None
    assert result.best_step in (0, 2, 4, 6)


def test_a_run_written_before_an_option_existed_is_still_that_run(finished, values, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    config = content(finished / "config.yaml")
    for part, name in (("train", "compile"), ("train", "save_steps"), ("start", "genes"), ("score", "counts_layer")):
        del config[part][name]
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    lines = []
    finetune(TahoeRun.from_dict(values), tmp_path / "run", progress=False, report=lines.append)
    assert "finished" in lines[0]


@pytest.mark.parametrize("kept", ["best and last", "best"])
def test_an_interrupted_run_goes_on_to_the_same_numbers(kept, finished, values, tmp_path, monkeypatch):
    def interrupted(self, trainer, *args):
        if trainer.global_step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(PeakMemory, "on_train_batch_start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(values, tmp_path / "run")
    monkeypatch.undo()
    assert not (tmp_path / "run" / "model").exists()
    if kept == "best":  # killed between the first two checkpoints
        (tmp_path / "run" / "last.ckpt").unlink()
    run(values, tmp_path / "run")
    assert compare_runs(finished, tmp_path / "run").same


def test_a_run_killed_between_its_last_step_and_saving_is_restored(finished, values, tmp_path):
    result = run(values, without_its_end(finished, tmp_path / "run"))
    assert compare_runs(finished, tmp_path / "run").same
    assert result.best_step == json.loads((finished / "result.json").read_text())["best_step"]


def test_a_run_is_restored_though_its_last_step_trains_no_backbone(deep, tmp_path):
    train = {"recipe": "full", "max_steps": 2, "plan": {"layer_decay": 0.5}}
    run(deep, tmp_path / "run", train=train)
    run(deep, without_its_end(tmp_path / "run", tmp_path / "restored"), train=train)
    assert compare_runs(tmp_path / "run", tmp_path / "restored").same


def test_a_later_run_starts_from_best_or_last_weights_alone(finished, values, tmp_path):
    for name in ("best", "last"):
        start = {"source": str(finished), "checkpoint": name}
        run(values, tmp_path / name, start=start, train=BRIEF | {"lr": 1e-9}, score=NOT_SCORED)
        source = torch.load(finished / f"{name}.ckpt", weights_only=True)
        started = torch.load(tmp_path / name / "last.ckpt", weights_only=True)
        for tensor, value in source["state_dict"].items():
            torch.testing.assert_close(started["state_dict"][tensor], value, rtol=0, atol=1e-6)
        assert started["global_step"] == 1
        assert "loaded" in (tmp_path / name / "loading_report.txt").read_text()


def test_a_later_run_starts_from_the_last_weights_where_no_best_ones_are(finished, values, tmp_path):
    first = shutil.copytree(finished, tmp_path / "first")
    values["start"] = {"source": str(first)}

    def weights():
        return build_model(TahoeRun.from_dict(values), load_data(TahoeRun.from_dict(values))).module.state_dict()

    for name in ("best", "last"):
        kept = torch.load(first / f"{name}.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(weight, kept[f"module.{tensor}"]) for tensor, weight in weights().items())
        (first / "best.ckpt").unlink(missing_ok=True)


def test_how_to_score_may_be_decided_after_training_and_nothing_else(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "again")
    shutil.rmtree(folder / "scores")
    written = TahoeRun.from_yaml(folder / "config.yaml")
    warned = replace(written, score=written.score.replaced(representation_check="warn"))
    before = (folder / "best.ckpt").stat().st_mtime_ns
    with pytest.raises(ValueError, match="another configuration .*train.lr"):
        finetune(replace(warned, train=warned.train.replaced(lr=0.5)), folder, progress=False)
    (folder / "result.json").unlink()
    assert finetune(warned, folder, progress=False).scores is not None
    assert (folder / "best.ckpt").stat().st_mtime_ns == before
    assert TahoeRun.from_yaml(folder / "config.yaml") == warned
    with pytest.raises(ValueError, match="another configuration .*score.representation_check"):
        finetune(written, folder, progress=False)


@pytest.mark.slow
def test_adapters_are_restored_and_a_later_run_starts_from_them(finished, values, tmp_path):
    pytest.importorskip("peft")
    train = {"recipe": "lora", "max_steps": 2, "validate_every": 1, "plan": {"lora_rank": 2, "ema": 0.5}}
    adapters = values | {"start": {"source": str(finished)}, "train": values["train"] | train}
    run(adapters, tmp_path / "first")
    run(adapters, without_its_end(tmp_path / "first", tmp_path / "restored"))
    assert compare_runs(tmp_path / "first", tmp_path / "restored").same
    start = {"source": str(tmp_path / "first")}
    run(values, tmp_path / "later", start=start, train=BRIEF | {"lr": 1e-9}, score=NOT_SCORED)
    started = torch.load(tmp_path / "later" / "last.ckpt", weights_only=True)["state_dict"]
    name = "network.backbone.blocks.0.down.weight"
    merged = TahoeST.from_pretrained(tmp_path / "first")
    torch.testing.assert_close(started[f"module.{name}"], merged.module.state_dict()[name], rtol=0, atol=1e-6)


def test_an_embedding_model_takes_the_backbone_of_an_expression_model(finished, values, tmp_path):
    values["start"] = {"source": str(finished), "accept": ["new_input", "new_output", "new_gene_decoder", "other_head"]}
    result = run(values, tmp_path / "run", model={"representation": "embedding", "network": {
        "gene_decoder": {"hidden": [16]}
    }}, score={"preset": "quick", "representation_check": "warn"})  # fmt: skip
    model = TahoeST.from_pretrained(result.folder)
    assert model.module.config.gene_decoder.hidden == (16,)
    assert model.module.config.n_input == 6
    loaded = torch.load(finished / "best.ckpt", weights_only=True)["state_dict"]
    name = "network.backbone.norm.weight"
    assert f"module.{name}" in loaded
    assert name in model.pretrained_parameters_


def test_a_file_of_cells_with_doses_is_read_and_its_test_cells_are_scored(from_file, tmp_path):
    cells = simulate_screen(n_genes=30, n_cells=20, n_control_cells=60)
    is_control = (cells.obs["perturbation"] == "control").to_numpy()
    cells.obs["dose"] = np.where(is_control, 0.0, np.resize([1.0, 10.0], cells.n_obs))
    values = from_file(cells, context_key="context", batch_key="batch", dose_key="dose")
    result = run(values, tmp_path / "run", train={"save_steps": 4})
    assert (result.folder / "step=000004.ckpt").exists()
    labels = result.scores.per_perturbation.index.get_level_values("perturbation")
    assert {"perturbation_01@1", "perturbation_01@10"} <= set(labels)
    assert len(labels) == 2 * 72
    assert np.isfinite(result.scores.summary["value"]["mae"])


def test_counts_are_predicted_and_scored_on_request(from_file, tmp_path):
    pytest.importorskip("cell_eval2")
    cells = simulate_screen(n_genes=30, n_cells=60, n_control_cells=100)
    values = from_file(
        cells[cells.obs["context"] == "context_1"].copy(), 0.3, perturbation_embedding_key="perturbation_embedding"
    )
    score = {"preset": "vcc2026", "counts_layer": "counts"}
    result = run(values, tmp_path / "run", train={"max_steps": 2}, score=score)
    assert result.scores.vcc["year"] == 2026
    counts = read_h5ad(result.folder / "prediction.h5ad").X
    assert np.array_equal(counts, np.rint(counts)) if isinstance(counts, np.ndarray) else (counts.data % 1 == 0).all()


def test_runs_that_are_not_there_cannot_be_compared(finished, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no trained run"):
        compare_runs(finished, tmp_path)


def test_a_dry_run_tells_and_writes_nothing(values, tmp_path, monkeypatch):
    TahoeRun.from_dict(values).to_yaml(tmp_path / "run.yaml")
    monkeypatch.chdir(tmp_path)
    text = dry_run_text("run.yaml")
    assert "3,360 cells of 40 genes" in text
    assert "6 steps of 2 sets of 8 cells" in text
    assert [p.name for p in tmp_path.iterdir()] == ["run.yaml"]


def _in_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [event.value for event in EventAccumulator(str(folder / "tensorboard")).Reload().Scalars("validation_loss")]


def _in_mlflow(folder):
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return [value for (value,) in database.execute("select value from metrics where key = 'validation_loss'")]


def _in_wandb(folder):
    (log,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return [float(number) for number in re.findall(rb"validation_loss.{0,4}?(\d+\.\d+)", log.read_bytes(), re.DOTALL)]


def test_loggers_write_offline_what_the_csv_has(values, tmp_path, monkeypatch):
    for proxy in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # whatever asks a server fails
    loggers = {"tensorboard": _in_tensorboard, "mlflow": _in_mlflow, "wandb": _in_wandb}
    result = run(values, tmp_path / "run", train=BRIEF | {"max_steps": 2, "loggers": [*loggers]}, score=NOT_SCORED)
    in_csv = pd.read_csv(result.folder / "metrics.csv")["validation_loss"].dropna()
    assert len(in_csv)
    for name, logged in loggers.items():
        assert sorted(set(logged(result.folder))) == pytest.approx(sorted(set(in_csv)), rel=1e-5), name


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_named_with_its_extra(values, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(ImportError, match=rf"scvi-tahoe\[{name}\]"):
        run(values, tmp_path / "run", train={"loggers": [name]})


def test_a_run_from_weights_in_arcs_format_carries_their_licence(finished, values, tmp_path):
    first = run(
        values, tmp_path / "first", train=BRIEF, score=NOT_SCORED,
        model={"network": {"head": "hidden_residual", "keep_zeros": False}},
    )  # fmt: skip
    TahoeST.from_pretrained(first.folder).export(tmp_path / "weights", format="arc")
    # after a single step, controls predicted from controls are not like controls
    values["start"] = {"source": str(tmp_path / "weights"), "check_scale": False}
    result = run(values, tmp_path / "run", train=BRIEF, score=NOT_SCORED)
    assert "Non-Commercial" in (result.folder / "README.md").read_text()
    assert "loaded" in (result.folder / "loading_report.txt").read_text()
    assert "Non-Commercial" not in (finished / "README.md").read_text()


def test_a_new_head_on_earlier_weights_has_default_options(values, tmp_path):
    head = {"head": "hidden_residual"}
    first = run(values, tmp_path / "first", model={"network": head}, score=NOT_SCORED)
    values["start"] = {"source": str(first.folder), "accept": ["other_head"]}
    model = {"network": {"head": "delta"}, "prior": "cells"}
    second = run(values, tmp_path / "second", model=model, score=NOT_SCORED)
    network = content(second.folder / "config.yaml")["model"]["network"]
    assert (network["head"], network["keep_zeros"], network["base_encoder"]) == ("delta", True, True)


# ---------------------------------------------------------------- one default for files and for Python


def split_of(values, **sections):
    """Return the resolved split of a run, and the numbers of cells that train and validate."""
    prepared, data, found, _ = _prepare(TahoeRun.from_dict(values | sections))
    return prepared.split, data, found["split"]["cells"]


def test_a_file_without_a_split_validates_as_train_does(values):
    del values["split"]
    run_ = TahoeRun.from_dict(values)
    split, data, cells = split_of(values)
    model = build_model(run_, data)
    chosen = model.plan_training(max_steps=2).split
    assert data.held_out is None
    assert split == chosen.to_dict()
    assert split["kind"] == "held_out_conditions"
    assert cells["validation"] > 0


@pytest.mark.parametrize(
    "split",
    [
        pytest.param({"kind": "held_out_perturbations", "test": ["perturbation_03"]}, id="perturbations"),
        pytest.param({"kind": "few_shot_context", "context": "context_1", "test": ["perturbation_03"]}, id="few shots"),
    ],
)
def test_a_split_that_names_only_test_validates_by_default(values, split, tmp_path):
    resolved_split, data, cells = split_of(values, split=split)
    assert resolved_split["test"] == ["perturbation_03"]
    assert data.held_out is not None
    assert cells["validation"] > 0
    values["score"] = NOT_SCORED
    result = run(values | {"split": split}, tmp_path / "run", train=BRIEF)
    assert np.isfinite(result.best_value)
    again = finetune(tmp_path / "run" / "config.yaml", progress=False)
    assert compare_runs(tmp_path / "run", again.folder).same


def test_a_run_that_names_no_validation_on_purpose_has_none(values, tmp_path):
    split = {"kind": "held_out_perturbations", "validation": [], "test": ["perturbation_03"]}
    with pytest.warns(UserWarning, match="no cell validates"):
        result = run(values | {"split": split, "score": NOT_SCORED}, tmp_path / "run", train=BRIEF)
    assert "best validation" not in result_text(result)
    assert is_run(tmp_path / "run")


def test_the_file_of_a_finished_run_rebuilds_it_in_python_too(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "first")
    again = finetune(tmp_path / "first" / "config.yaml", progress=False)
    assert again.folder == tmp_path / "first-rebuilt"
    assert compare_runs(tmp_path / "first", again.folder).same


@pytest.fixture
def listed(values):
    """Plain values of a run on files of one's own, part of which is predicted."""
    test = {"context_1": ["perturbation_03"]}
    return values | {"split": {"kind": "listed_conditions", "test": test}, "score": NOT_SCORED}


def test_several_files_and_a_table_in_its_own_are_one_screen(listed, tmp_path):
    cells = simulate_screen(n_genes=30, n_cells=10, n_control_cells=30)
    table = {name: torch.ones(3) * i for i, name in enumerate(sorted(cells.obs["perturbation"].unique()))}
    torch.save(table, tmp_path / "table.pt")
    parts = []
    for context in cells.obs["context"].unique():
        parts.append(f"{context}.h5ad")
        cells[cells.obs["context"] == context].write_h5ad(tmp_path / parts[-1])
    labels = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}
    listed["data"] = {"path": parts, "embedding_files": {"table": "table.pt"}, **labels}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(listed))
    data = load_data(TahoeRun.from_yaml(tmp_path / "run.yaml"))
    assert data.train.n_obs + data.held_out.n_obs == cells.n_obs + 30  # the controls of a context are in both
    assert data.config.keys["perturbation_embedding_key"] == ("table",)
    assert set(data.held_out.obs["perturbation"]) == {"perturbation_03", "control"}
    cells[:, 1:].write_h5ad(tmp_path / parts[0])
    with pytest.warns(UserWarning, match="the files share 29 genes; 1 of .*h5ad are left out"):
        assert "gene_01" not in load_data(TahoeRun.from_yaml(tmp_path / "run.yaml")).train.var_names
    cells[:, :20].write_h5ad(tmp_path / parts[0])
    with pytest.raises(ValueError, match="the files share 20 of the 30 genes"):
        load_data(TahoeRun.from_yaml(tmp_path / "run.yaml"))


def test_parts_of_a_mudata_are_one_screen(listed, tmp_path):
    mudata = pytest.importorskip("mudata")
    cells = simulate_screen(n_genes=30, n_cells=10, n_control_cells=30)
    state = AnnData(np.ones((cells.n_obs, 5), dtype=np.float32), obs=cells.obs[[]])
    mudata.MuData({"rna": cells, "state": state[::-1].copy()}).write_h5mu(tmp_path / "cells.h5mu")
    labels = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}
    parts = {"expression": "rna", "cell_embedding": "state"}
    listed["data"] = {"path": str(tmp_path / "cells.h5mu"), "modalities": parts, **labels}
    data = load_data(TahoeRun.from_dict(listed))
    assert data.train.obsm[data.config.embedding_key].shape == (data.train.n_obs, 5)
    with pytest.raises(ValueError, match="give both or neither"):
        TahoeRun.from_dict(listed | {"data": listed["data"] | {"modalities": None}})


def test_a_store_on_disk_is_a_screen(listed, tmp_path):
    pytest.importorskip("zarr")
    cells = simulate_screen(n_genes=30, n_cells=10, n_control_cells=30)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    labels = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}
    write_store(tmp_path / "cells.h5ad", tmp_path / "store.zarr", **labels)
    listed["data"] = {"path": str(tmp_path / "store.zarr"), **labels}
    data = load_data(TahoeRun.from_dict(listed))
    assert set(data.held_out.obs["perturbation"]) == {"perturbation_03", "control"}
    whole = load_data(TahoeRun.from_dict(listed | {"split": None}))
    first, second = (fingerprint(d, FractionSplit(), seed=0)["train"] for d in (whole, whole))
    assert first == second
    assert first["n_cells"] == cells.n_obs
