from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml
from typer.testing import CliRunner

from scvi_tahoe.cli import app


def _invoke(*arguments):
    words = [str(a) for a in arguments]
    program = sys.argv[0] if Path(sys.argv[0]).name == "scvi-tahoe" else "scvi-tahoe"  # however pytest was started
    with mock.patch.object(sys, "argv", [program, *words]):
        return CliRunner().invoke(app, words)


@pytest.fixture(scope="session")
def run():
    """Run a command and return its output; it must succeed."""

    def run(*arguments):
        result = _invoke(*arguments)
        assert result.exit_code == 0, result.output
        return result

    return run


@pytest.fixture(scope="session")
def invoke():
    """Run a command, whatever its exit code."""
    return _invoke


@pytest.fixture(scope="session")
def refusal():
    """Run a command that must end with exit code 2, and return the one line that it says."""

    def refusal(*arguments):
        result = _invoke(*arguments)
        assert result.exit_code == 2, result.output
        (line,) = result.stderr.strip().splitlines()
        assert line.startswith("scvi-tahoe: ")
        return line

    return refusal


@pytest.fixture
def write(tmp_path):
    """Write a YAML file and return its path."""

    def write(content, name="config.yaml"):
        (tmp_path / name).write_text(yaml.safe_dump(content))
        return tmp_path / name

    return write
