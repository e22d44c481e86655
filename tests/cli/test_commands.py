from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

from scvi_tahoe.cli import app


def test_version_is_that_of_the_package(run):
    assert run("--version").output.strip() == f"scvi-tahoe {version('scvi-tahoe')}"


@pytest.mark.parametrize("command", [c.name or c.callback.__name__ for c in app.registered_commands])
def test_every_command_explains_itself(run, command):
    text = " ".join(run(command, "--help").output.split())
    assert "Usage" in text
    assert text.count(f"scvi-tahoe {command} ") - text.count("Usage: scvi-tahoe ") >= 2, "examples"


LIGHT = {
    "scvi_tahoe.cli": {"torch", "scvi", "anndata", "pandas", "matplotlib"},
    "scvi_tahoe.evaluate": {"torch", "scvi", "cell_eval", "matplotlib"},
    "scvi_tahoe.pl": {"torch", "scvi", "anndata", "matplotlib"},
}


@pytest.mark.slow
@pytest.mark.parametrize("module", LIGHT)
def test_a_module_starts_without_heavy_packages(module):
    code = f"import sys; import {module}; sys.stdout.write(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not LIGHT[module] & set(loaded)


@pytest.mark.parametrize("options", [("--stpes", 3), ("--max-steps", 0)], ids=["unknown option", "no steps"])
def test_the_demo_refuses_options_before_it_writes(invoke, tmp_path, options):
    assert invoke("demo", "--folder", tmp_path / "demo", *options).exit_code == 2
    assert not (tmp_path / "demo").exists()


def test_the_demo_refuses_a_foreign_folder(refusal, tmp_path):
    (tmp_path / "thesis.tex").touch()
    assert "not of a demo" in refusal("demo", "--folder", tmp_path)


@pytest.mark.parametrize("on_the_path", [True, False])
def test_a_stopped_demo_names_the_program_as_it_can_be_typed(invoke, tmp_path, monkeypatch, on_the_path):
    def stop(*_arguments, **_options):
        raise KeyboardInterrupt

    program = tmp_path / "bin" / "scvi-tahoe"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(program.parent) if on_the_path else "")
    monkeypatch.setattr("sys.argv", [str(program), "demo"])
    monkeypatch.setattr("scvi_tahoe.demo.run_demo", stop)
    result = invoke("demo", "--folder", "first")
    assert result.exit_code == 130
    name = "scvi-tahoe" if on_the_path else str(program)
    assert result.stderr.strip().endswith(f"continue with: {name} demo --folder first")


LABELS = ("--perturbation-key", "p", "--control", "c")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        pytest.param(("predict", "model", "gone.h5ad", "-o", "p.h5ad"), "there is no file gone.h5ad", id="predict"),
        pytest.param(("evaluate", "gone.h5ad", "b.h5ad", *LABELS), "there is no file gone.h5ad", id="evaluate"),
        pytest.param(("inspect", "gone"), "gone does not exist", id="inspect"),
        pytest.param(("check", "gone.yaml"), "there is no file gone.yaml", id="check"),
        pytest.param(("study", "gone"), "case_study, recommended", id="study"),
    ],
)
def test_what_is_not_there_is_one_line(refusal, tmp_path, monkeypatch, command, message):
    monkeypatch.chdir(tmp_path)
    assert message in refusal(*command)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("predict", "folder/model", "a.h5ad", "-o", "a.h5ad", "--overwrite"), id="predict onto the cells"),
        pytest.param(("evaluate", "a.h5ad", "b.h5ad", *LABELS, "--html", "b.h5ad"), id="evaluate"),
        pytest.param(("embed", "b.h5ad", "a.h5ad", "-o", "a.h5ad", "--overwrite"), id="embed"),
        pytest.param(("convert", "folder/model", "folder/model", "--overwrite"), id="convert onto itself"),
        pytest.param(("convert", "folder/model", "folder", "--overwrite"), id="convert onto the folder around it"),
        pytest.param(("convert", "a.h5ad", "folder/../a.h5ad", *LABELS), id="convert by another name"),
        pytest.param(("tables", "matrix", "t.csv", "-o", "t.csv", "--overwrite"), id="tables"),
        pytest.param(("tables", "matrix", "t.csv", "-o", "a.h5ad", "--labels", "a.h5ad", "--overwrite"), id="labels"),
        pytest.param(("respond", "a.h5ad", "--perturbation-key", "gene", "-o", "link.h5ad", "--overwrite"), id="link"),
        pytest.param(("check", "t.csv", "--write", "t.csv"), id="check"),
        pytest.param(("inspect", "t.csv", "--figure", "t.csv"), id="inspect"),
    ],
)
def test_nothing_is_written_over_what_is_read(refusal, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder" / "model").mkdir(parents=True)
    files = [tmp_path / name for name in ("a.h5ad", "b.h5ad", "t.csv")]
    for file in files:
        file.write_text("kept")
    (tmp_path / "link.h5ad").symlink_to("a.h5ad")
    assert "is what this command reads, or holds it; give another name" in refusal(*command)
    assert all(file.read_text() == "kept" for file in files)
    assert (tmp_path / "folder" / "model").is_dir()
