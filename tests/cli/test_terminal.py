from __future__ import annotations

import pytest
import typer

from scvi_tahoe.cli._terminal import TRACEBACK_VARIABLE, one_line_errors


@pytest.mark.parametrize("error", [ValueError("set size is 0; it must\n be 1 or more"), KeyError("no column 'x'")])
def test_a_users_mistake_is_one_line_and_exit_code_2(error, capsys):
    with pytest.raises(typer.Exit) as stopped, one_line_errors():
        raise error
    assert stopped.value.exit_code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0] == f"scvi-tahoe: {' '.join(error.args[0].split())}"


def test_an_extra_that_is_not_installed_is_one_line(capsys):
    with pytest.raises(typer.Exit) as stopped, one_line_errors():
        raise ImportError("mlflow is needed; install it with: pip install 'scvi-tahoe[mlflow]'")
    assert stopped.value.exit_code == 2
    assert "pip install" in capsys.readouterr().err
    with pytest.raises(ImportError, match="no module"), one_line_errors():
        raise ImportError("no module of ours")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="size mismatch"), one_line_errors():
        raise RuntimeError("size mismatch")


def test_the_traceback_of_a_mistake_can_be_asked_for(monkeypatch):
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    with pytest.raises(ValueError, match="too small"), one_line_errors():
        raise ValueError("too small")


def test_an_interruption_says_how_to_go_on_and_exits_with_130(capsys):
    with pytest.raises(typer.Exit) as stopped, one_line_errors("Stopped; go on with: this"):
        raise KeyboardInterrupt
    assert stopped.value.exit_code == 130
    assert capsys.readouterr().err.strip() == "Stopped; go on with: this"
