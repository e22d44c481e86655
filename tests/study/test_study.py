from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from study_samples import RUN

from scvi_tahoe.study import SHIPPED, StudyConfig, TahoeRun, TrainConfig, read_study, rounds_text, run_study
from scvi_tahoe.study._data import load_data
from scvi_tahoe.study._plain_values import differences
from scvi_tahoe.study._study_config import judge, merged, scaled


def study(values, **changes):
    shared = {name: values[name] for name in ("data", "split", "model", "score", "train")}
    return {
        "name": "ladder",
        "title": "A <small> ladder",
        "seed": 3,
        **shared,
        "lesson": [["first"], ["second"]],
        "rounds": [
            {"name": "backbone", "role": "pretraining", "train": {"max_steps": 2}},
            {"name": "first", "start": {"round": "backbone"}, "published": {"overall": 1.5}},
            {"name": "second", "start": {"round": "first", "checkpoint": "last"}, "train": {"lr": 0.001}},
        ],
        **changes,
    }


def write(content, folder):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    lines = []
    result = run_study(write(study(RUN), folder), folder=folder / "out", progress=False, report=lines.append)
    return result, lines


def test_a_study_leaves_rounds_a_table_figures_and_a_report(done):
    files = "backbone first second study.yaml scores.csv curves.png scores.png report.html"
    assert {path.name for path in done[0].folder.iterdir()} >= set(files.split())


def test_the_table_has_a_row_for_each_scored_round(done):
    table = done[0].table
    assert list(table.index) == ["first", "second"]
    assert table.loc["second", "steps"] == 6
    assert table["MAE"].notna().all()
    assert table.loc["first", "published_overall"] == 1.5


def test_a_round_starts_from_the_checkpoint_that_was_asked_for(done):
    folder = done[0].folder
    start = yaml.safe_load((folder / "second" / "config.yaml").read_text())["start"]
    assert start["source"] == str(folder / "first")
    assert start["checkpoint"] == "last"


def test_finished_rounds_are_not_done_again(done):
    result, first = done
    before = (result.folder / "second" / "best.ckpt").stat().st_mtime_ns
    lines = []
    again = run_study(result.config, folder=result.folder, progress=False, report=lines.append)
    assert all("finished before" in line for line in lines)
    assert (again.folder / "second" / "best.ckpt").stat().st_mtime_ns == before
    assert any("steps" in line for line in first)


def test_a_study_is_read_from_its_folder(done):
    assert read_study(done[0].folder).table.equals(done[0].table)


def test_the_report_needs_nothing_but_itself(done):
    text = (done[0].folder / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert "http" not in re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert "A &lt;small&gt; ladder" in text
    sections = ["Scores", "Learning curves", "Rounds side by side", "Warnings and failed checks"]
    for section in [*sections, "Differences between the configurations", "scvi-tahoe predict"]:
        assert section in text
    for sentence in (text, str(done[0].lesson)):
        assert "there is no score of first, second" in sentence
    assert "train.lr" in text
    assert "model.set_size" not in text, "it is the same in all rounds"


def test_another_study_in_the_folder_is_refused(done):
    other = StudyConfig.from_yaml(write(study(RUN, seed=9), done[0].folder.parent))
    with pytest.raises(ValueError, match="holds a study that differs"):
        run_study(other, folder=done[0].folder)


def test_a_foreign_folder_is_refused(values, tmp_path):
    path = write(study(values), tmp_path)
    with pytest.raises(ValueError, match="not a study"):
        run_study(path, folder=tmp_path.parent)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 2.0}, "scale is 2.0"),
        ({"rounds": []}, "has no rounds"),
        ({"rounds": [{"name": "a"}, {"name": "a"}]}, "two rounds named 'a'"),
        ({"rounds": [{"name": "alpha"}, {"name": "b", "start": {"round": "alpah"}}]}, "did you mean 'alpha'"),
        ({"rounds": [{"name": "a", "tarin": {}}]}, "did you mean 'train'"),
        ({"rounds": [{"name": "a", "train": {"max_step": 3}}]}, "round 'a': train has no key 'max_step'"),
        ({"rounds": [{"name": "a"}], "lesson": [["b"]]}, "lesson names 'b'"),
        ({"rounds": [{"name": "a"}], "lesson": ["a"]}, "lesson holds 'a'; it takes lists of rounds"),
        ({"rounds": [{"name": "a"}], "lesson": [{"rounds": ["a"], "at_most": 2}]}, "at_most: 2"),
        ({"rounds": {"a": {}}}, "allowed is a list"),
        ({"ruonds": []}, "did you mean 'rounds'"),
    ],
)
def test_a_mistake_in_a_study_is_named(values, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        StudyConfig.from_yaml(write(study(values, **changes), tmp_path))


def test_a_study_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="case_study, recommended"):
        StudyConfig.from_yaml("case_studdy")
    with pytest.raises(FileNotFoundError, match="holds no study"):
        read_study(tmp_path)
    with pytest.raises(ValueError, match="there is no study"):
        run_study()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_studies_are_complete(name):
    config = StudyConfig.from_yaml(name)
    assert (config.rounds[0].role == "pretraining") == (name != "full_size")  # which starts from ST-Tahoe itself
    assert rounds_text(name).count("\n") == len(config.rounds) + 1


def test_the_case_study_has_the_published_sizes_at_full_scale():
    config = StudyConfig.from_yaml("case_study")
    full = replace(config, scale=1.0)
    runs = {one.name: full.run(one, Path()) for one in full.rounds}
    facts = {name: (r.train.max_steps, r.train.lr, r.train.batch_size, r.model.set_size) for name, r in runs.items()}
    assert {name: facts[name] for name in facts if name != "backbone"} == {
        "round-1": (8000, 3e-4, 32, 256), "round-2": (4100, 5e-5, 48, 256), "round-3a": (1000, 1e-4, 16, 512),
        "round-3b": (10000, 5e-5, 12, 512), "round-4a": (10000, 1e-5, 6, 512), "round-4b": (37500, 3e-5, 6, 512),
    }  # fmt: skip
    frozen = {"round-1", "round-2", "round-3a", "round-3b"}
    assert {n for n, r in runs.items() if r.train.freeze_backbone} == frozen
    assert {n for n, r in runs.items() if r.train.freeze_projection} == frozen
    assert {n for n, r in runs.items() if r.model.network["head"] == "down_up"} == set(runs) - {"backbone"}


def test_the_recommended_round_leaves_the_package_its_defaults():
    config = StudyConfig.from_yaml("recommended")
    (run,) = (config.run(one, Path()) for one in config.rounds if one.name == "recommended")
    assert run.train == TrainConfig()
    assert (run.model.prior, run.model.objective, run.model.set_size) == (None, {}, None)


def test_the_new_context_is_predicted_from_four_with_effects_smaller_than_their_differences():
    config = StudyConfig.from_yaml("new_context")
    data = load_data(config.run(config.rounds[1], Path()))
    obs = data.train.obs
    controls = data.train.to_df()[obs["perturbation"] == "control"].groupby(obs["context"], observed=True).mean()
    effects = pd.concat(data.train.uns["true_delta"])
    assert set(obs["context"][obs["perturbation"] != "control"]) == {f"context_{i}" for i in range(1, 5)}
    assert set(controls.index) == {f"context_{i}" for i in range(1, 6)}
    assert effects.pow(2).sum(axis=1).mean() < 0.2 * controls.var().sum()


def test_the_full_size_ladder_has_the_rounds_of_the_case_study():
    full, case = StudyConfig.from_yaml("full_size"), replace(StudyConfig.from_yaml("case_study"), scale=1.0)
    rounds = {one.name: one for one in case.rounds}
    for one in full.rounds:
        ours, theirs = full.run(one, Path()), case.run(rounds[one.name], Path())
        assert ours.train.replaced(precision="auto") == theirs.train
        assert ours.model.replaced(batch_encoder=None) == theirs.model
        assert (ours.start.source == "ST-Tahoe") == (theirs.start.source == "backbone")
        assert one.published == rounds[one.name].published


def test_the_case_study_and_the_recommended_recipe_share_their_backbone():
    both = merged(("case_study", "recommended"))
    assert [one.name for one in both.rounds].count("backbone") == 1
    assert both.rounds[-1].name == "recommended"
    assert both.lesson[-1] == ["recommended"]


def test_rounds_of_one_name_must_be_the_same(values):
    with pytest.raises(ValueError, match="is not the same in all studies"):
        merged([StudyConfig(**study(values)), StudyConfig(**study(values, seed=4))])


def test_files_and_weights_of_a_study_count_from_its_folder(values, tmp_path):
    for name in ("screen.h5ad", "ST-Tahoe"):
        (tmp_path / name).mkdir()
    labels = {"perturbation_key": "gene", "control": "control"}
    content = study(values) | {"data": {"path": "screen.h5ad", **labels}}
    content["rounds"] = [{"name": "first", "start": {"source": "ST-Tahoe"}, "train": {"max_steps": 1}}]
    content |= {"split": None, "lesson": [], "model": {}, "train": {}, "score": {}}
    config = StudyConfig.from_yaml(write(content, tmp_path))
    assert config.run(config.rounds[0], Path()).start.source == str(tmp_path / "ST-Tahoe")
    assert config.data["path"] == str(tmp_path / "screen.h5ad")


def test_one_number_scales_steps_cells_and_rate(values):
    values["train"] |= {"max_steps": 800, "validate_every": 100, "lr": 1e-4}
    values["model"] |= {"set_size": 256, "network": {"gene_decoder": {"hidden": [1024, 64]}}}
    run = scaled(TahoeRun.from_dict(values), 0.125)
    assert run.model.network["gene_decoder"]["hidden"] == [128, 16]
    assert (run.train.max_steps, run.train.validate_every, run.train.lr) == (100, 12, 8e-4)
    assert run.model.set_size == 32
    assert scaled(run, 1) is run


def test_the_lesson_holds_only_if_every_round_is_in_its_place():
    groups = [["a", "b"], ["c"]]
    assert judge(groups, {"a": 1.0, "b": 2.0, "c": 3.0}).holds
    found = judge(groups, {"a": 1.0, "b": 3.5, "c": 3.0})
    assert not found.holds
    assert "c (3.0) is not above b (3.5)" in str(found)
    assert "cannot be judged" in str(judge(groups, {"a": 1.0}))
    assert "expects no order" in str(judge([], {}))


def test_far_below_is_a_share_of_the_next_scores():
    groups = [{"rounds": ["a"], "at_most": 0.5}, ["b"], ["c"]]
    assert judge(groups, {"a": 1.0, "b": 2.0, "c": 2.1}).holds
    found = judge(groups, {"a": 1.5, "b": 2.0, "c": 2.1})
    assert "a at most 50% of b < c" in str(found)
    assert found.exceptions == ("a (1.5) has 75% of b (2.0)",)
    assert str(found).endswith("As expected: a < c; b < c.")


def test_cells_of_all_rounds_are_verified_before_the_first_runs(values, tmp_path):
    rounds = [{"name": "first"}, {"name": "second", "data": {"path": "nowhere.h5ad", "perturbation_key": "p",
                                                            "control": "c", "cell_embedding_key": "X"}}]  # fmt: skip
    path = write(study(values, rounds=rounds, lesson=[]), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"round 'second': there is no file nowhere\.h5ad"):
        run_study(path, folder=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_differences_name_keys_by_their_path():
    found = differences([{"x": {"y": 1, "z": 2}}, {"x": {"y": 1, "z": 3}, "w": 4}])
    assert found == {"x.z": [2, 3], "w": [None, 4]}
