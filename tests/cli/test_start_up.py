from __future__ import annotations

import json
import subprocess
import sys

import pytest

from scvi_tahoe.cli._demo import DEFAULT_STEPS
from scvi_tahoe.demo import DEFAULT_STEPS as STEPS_OF_THE_DEMO

#: each takes a good part of a second to import, or several
HEAVY = ("torch", "scvi", "scanpy", "anndata", "lightning", "pandas", "numpy", "scipy", "matplotlib", "yaml")
ALL_HELP_TEXTS = """
import json, sys
from typer.testing import CliRunner
from scvi_tahoe.cli import app
names = [command.callback.__name__ for command in app.registered_commands]
for arguments in ([], ["--version"], ["--help"], *([name, "--help"] for name in names)):
    result = CliRunner().invoke(app, arguments)
    assert result.output.strip(), arguments
print(json.dumps([names, sorted(sys.modules)]))
"""
BARE_IMPORT = """
import json, sys
import scvi_tahoe
assert "TahoeST" in dir(scvi_tahoe) and "__version__" in dir(scvi_tahoe)
print(json.dumps([[], sorted(sys.modules)]))
"""


def _modules(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


LOOK = """
import json, sys, tempfile, pathlib
import anndata, numpy
from scvi_tahoe.study import inspect_path
path = pathlib.Path(tempfile.mkdtemp(), "x.h5ad")
anndata.AnnData(numpy.eye(3, dtype="float32")).write_h5ad(path)
assert "3 cells" in inspect_path(path).text
print(json.dumps([[], sorted(sys.modules)]))
"""


@pytest.mark.parametrize("code", [ALL_HELP_TEXTS, BARE_IMPORT], ids=["every help text", "import scvi_tahoe"])
def test_nothing_heavy_is_imported_before_it_is_needed(code):
    commands, modules = _modules(code)
    assert code == BARE_IMPORT or "finetune" in commands
    assert not {*HEAVY} & {*modules}


def test_a_look_at_cells_loads_no_network():
    assert not {"torch", "scvi", "scanpy", "lightning"} & {*_modules(LOOK)[1]}


def test_the_package_is_a_program_as_well():
    code = [sys.executable, "-m", "scvi_tahoe"]
    done = subprocess.run([*code, "finetune", "gone.yaml"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "scvi-tahoe: there is no file gone.yaml.")
    assert "python -m scvi_tahoe" in subprocess.run([*code, "-h"], capture_output=True, text=True, check=True).stdout


def test_the_help_of_the_demo_shows_its_number_of_steps():
    assert DEFAULT_STEPS == STEPS_OF_THE_DEMO
