from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from scvi_tahoe.cli import app


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_version_is_that_of_the_package():
    from importlib.metadata import version

    assert run("--version").output.strip() == f"scvi-tahoe {version('scvi-tahoe')}"


@pytest.mark.parametrize("command", [c.name or c.callback.__name__ for c in app.registered_commands])
def test_every_command_explains_itself(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output
    text = " ".join(result.output.split())
    examples = text.count(f"scvi-tahoe {command} ") - text.count("Usage: scvi-tahoe ")
    assert examples >= 2


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


def test_an_unknown_option_exits_with_2():
    assert run("demo", "--stpes", 3).exit_code == 2


def test_the_demo_refuses_a_foreign_folder_in_one_line(tmp_path):
    (tmp_path / "thesis.tex").touch()
    result = run("demo", "--folder", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith("scvi-tahoe: ")
    assert len(result.stderr.splitlines()) == 1


def test_the_demo_refuses_a_run_without_steps(tmp_path):
    assert run("demo", "--folder", tmp_path / "demo", "--max-steps", 0).exit_code == 2
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("on_the_path", [True, False])
def test_a_stopped_demo_names_the_program_as_it_can_be_typed(tmp_path, monkeypatch, on_the_path):
    from scvi_tahoe.cli import _demo

    def stop(*_arguments, **_options):
        raise KeyboardInterrupt

    program = tmp_path / "bin" / "scvi-tahoe"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(program.parent) if on_the_path else "")
    monkeypatch.setattr("sys.argv", [str(program), "demo"])
    monkeypatch.setattr(_demo, "run_demo", stop)
    result = run("demo", "--folder", "first")
    assert result.exit_code == 130
    name = "scvi-tahoe" if on_the_path else str(program)
    assert result.stderr.strip().endswith(f"go on from there with: {name} demo --folder first")


def test_a_file_that_does_not_exist_is_one_line(tmp_path):
    result = run(
        "evaluate", tmp_path / "a.h5ad", tmp_path / "b.h5ad", "--perturbation-key", "p", "--control", "c"
    )  # fmt: skip
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "a.h5ad" in result.stderr
