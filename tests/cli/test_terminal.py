from __future__ import annotations

import pytest
import typer

from scvi_tahoe.cli._terminal import TRACEBACK_VARIABLE, in_file_words, in_shell_words, one_line_errors

MISSING = "mlflow is needed; install it with: pip install 'scvi-tahoe[mlflow]'"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("set size is 0; it must\n be 1 or more"), 2, "scvi-tahoe: set size is 0; it must be 1 or more"),
        (KeyError("no column 'x'"), 2, "scvi-tahoe: no column 'x'"),
        (ImportError(MISSING), 2, f"scvi-tahoe: {MISSING}"),
        (KeyboardInterrupt(), 130, "Stopped; go on with: this"),
    ],
    ids=["value", "key", "extra that is not installed", "interruption"],
)
def test_a_users_mistake_is_one_line_with_an_exit_code(error, code, line, capsys):
    with pytest.raises(typer.Exit) as stopped, one_line_errors("Stopped; go on with: this"):
        raise error
    assert stopped.value.exit_code == code
    assert capsys.readouterr().err.strip() == line


@pytest.mark.parametrize(
    ("message", "typed"),
    [
        ("p.h5ad exists; give overwrite=True", "p.h5ad exists; give --overwrite"),
        ("give context_key=... for these", "give --context-key for these"),
        ("check_scale=False accepts them", "--no-check-scale accepts them"),
        ("preset='quick' is fast", "--preset quick is fast"),
        ("depth=3 is not an option", "depth=3 is not an option"),
    ],
)
def test_a_message_names_options_as_they_are_typed(message, typed):
    assert in_shell_words(message) == typed


@pytest.mark.parametrize(
    ("message", "written"),
    [
        ("both ends: accept=('new_input', 'new_output')", "both ends: start.accept: [new_input, new_output]"),
        ('pass representation_check="warn".', "pass score.representation_check: warn."),
        ("batch_encoder=True adds one", "model.batch_encoder: true adds one"),
        ("depth=3 is not an option", "depth=3 is not an option"),
    ],
)  # fmt: skip
def test_a_message_about_a_run_file_names_its_sections(message, written):
    assert in_file_words(message) == written


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), ImportError("no module of ours")], ids=repr)
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error), match=str(error)), one_line_errors():
        raise error


def test_the_traceback_of_a_mistake_can_be_asked_for(monkeypatch):
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    with pytest.raises(ValueError, match="too small"), one_line_errors():
        raise ValueError("too small")
