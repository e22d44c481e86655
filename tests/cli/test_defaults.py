"""The same option has the same default in Python, on the command line and in run files."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path

import pytest

from scvi_tahoe import TahoeST
from scvi_tahoe.cli import app
from scvi_tahoe.demo import run_demo
from scvi_tahoe.evaluate import evaluate
from scvi_tahoe.response import ResponseModel
from scvi_tahoe.study import TahoeRun, finetune

COMMANDS = {c.name or c.callback.__name__: c.callback for c in app.registered_commands}


def defaults(function):
    """Default of every option that has one."""
    found = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    found = {name: value.value if isinstance(value, Enum) else value for name, value in found.items()}
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in found.items()}
    return {name: value for name, value in plain.items() if value is not inspect.Parameter.empty}


def of_section(name):
    """Default of every option of a part of a run file; where that is null, the method's own applies."""
    section = next(f for f in fields(TahoeRun) if f.name == name).default_factory
    found = {f.name: f.default for f in fields(section) if f.default is not MISSING}
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize(
    ("given", "function", "fewest"),
    [
        pytest.param(defaults(COMMANDS["evaluate"]), evaluate, 8, id="evaluate"),
        pytest.param(defaults(COMMANDS["predict"]), TahoeST.predict, 5, id="predict"),
        pytest.param(defaults(COMMANDS["respond"]), ResponseModel.fit, 4, id="respond"),
        pytest.param(defaults(COMMANDS["demo"]), run_demo, 3, id="demo"),
        pytest.param(defaults(COMMANDS["finetune"]), finetune, 1, id="finetune"),
        pytest.param(of_section("train"), TahoeST.train, 6, id="train of a run file"),
        pytest.param(of_section("score"), evaluate, 6, id="score of a run file"),
        pytest.param(of_section("score"), TahoeST.evaluate, 1, id="score of a run file, of a model"),
    ],
)
def test_options_of_a_name_have_one_default(given, function, fewest):
    expected = defaults(function)
    shared = set(given) & set(expected)
    assert len(shared) >= fewest
    assert {name: given[name] for name in shared} == {name: expected[name] for name in shared}
