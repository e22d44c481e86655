from __future__ import annotations

import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from anndata import read_h5ad

from scvi_tahoe.datasets import papalexi_few_shot
from scvi_tahoe.demo import FILES, run_demo, score_table

N_STEPS = 4


class Stop:
    """A report that interrupts the job, as Ctrl-C does, when a line begins with a given word."""

    def __init__(self, word: str) -> None:
        self.word, self.lines = word, []

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        if line.startswith(self.word):
            raise KeyboardInterrupt


def leftovers(folder):
    return [p.name for p in folder.rglob("*") if p.name.startswith(".partial-") or p.name.endswith((".part", ".tmp"))]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A demo that was stopped between training and prediction."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    with pytest.raises(KeyboardInterrupt):
        run_demo(folder, max_steps=N_STEPS, report=Stop("Predicting"))
    return folder


@pytest.fixture(scope="module")
def finished(interrupted):
    """The same demo, taken up and finished."""
    lines = []
    before = (interrupted / "model" / "model.pt").stat().st_mtime_ns
    result = run_demo(interrupted, max_steps=N_STEPS, report=lines.append)
    assert (interrupted / "model" / "model.pt").stat().st_mtime_ns == before, "the model was trained again"
    assert not [line for line in lines if line.startswith("Training")]
    return result


def test_a_stopped_demo_leaves_whole_files_only(interrupted):
    assert {p.name for p in interrupted.iterdir()} == {"settings.json", "history.csv", "model", "training_curve.png"}
    assert not leftovers(interrupted)


@pytest.mark.slow
def test_a_finished_demo_leaves_every_file_and_is_not_run_again(finished):
    assert {p.name for p in finished.folder.iterdir()} == {*FILES, "settings.json"}
    assert not leftovers(finished.folder)
    lines = []
    again = run_demo(finished.folder, max_steps=N_STEPS, report=lines.append)
    assert again.scores.equals(finished.scores)
    assert len(lines) == 1


@pytest.mark.slow
def test_the_prediction_is_of_the_held_out_targets_alone(finished):
    task, prediction = papalexi_few_shot(), read_h5ad(finished.folder / "prediction.h5ad")
    assert set(prediction.obs[task.perturbation_key]) == set(task.targets)
    assert set(prediction.obs[task.context_key]) == {task.context}
    controls = task.held_out.obs_names[task.held_out.obs[task.perturbation_key] == task.control]
    assert set(prediction.obs["origin"]) <= set(controls)


@pytest.mark.slow
def test_the_table_holds_the_model_its_baselines_and_the_ceiling(finished):
    scores = finished.scores
    assert list(scores.columns) == ["DES", "PDS", "MAE", "Pearson", "direction", "score"]
    assert list(scores.index[[1, -2, -1]]) == ["mean of the seen targets", "TahoeST", "ceiling (replicate)"]
    assert scores.loc["mean of the seen targets", "score"] == 0
    # as measured with exact means by cell-eval alone
    assert scores.loc["mean of the seen targets", "PDS"] == pytest.approx(0.5486, abs=5e-4)
    assert scores.loc["the target's cells of 1, 2, through quantiles", "PDS"] == pytest.approx(0.84, abs=0.02)
    assert scores.loc["mean of the seen + the target's deviation in 1, 2", "MAE"] == pytest.approx(0.0266, abs=5e-5)
    assert "copies of the mean, baseline of the challenge" in scores.index
    assert "best baseline" in finished.verdict
    assert len(score_table(scores).splitlines()) == len(scores) + 1


def test_a_run_without_steps_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="max_steps=0 must be 1 or more"):
        run_demo(tmp_path / "demo", max_steps=0)
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_the_run_goes_on(tmp_path):
    folder = tmp_path / "demo"
    arguments = ["demo", "--folder", str(folder), "--max-steps", "60"]
    code = "from scvi_tahoe.cli import main; main()"
    # a shell that runs tests in the background hands an ignored SIGINT on to all their children
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, preexec_fn=listen) as process:
        deadline = time.monotonic() + 120
        while not (folder / "training" / "last.ckpt").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].endswith(f"continue with: scvi-tahoe demo --folder {folder} --max-steps 60")
    assert "Traceback" not in errors
    assert not leftovers(folder)
    stop = Stop("Predicting")
    with pytest.raises(KeyboardInterrupt):
        run_demo(folder, max_steps=60, report=stop)
    assert [line for line in stop.lines if line.endswith("taken up where it was stopped.")]
    assert (folder / "model").exists()
