"""The rules of the house that a linter does not know; who may import whom is checked by `make lint` (import-linter)."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

import pytest

import scvi_tahoe

PACKAGE = Path(scvi_tahoe.__file__).parent
ROOT = Path(__file__).parents[1]
FILES = sorted(PACKAGE.rglob("*.py"))
#: Folder -> other people's packages that it must not know.
NEVER_IMPORTS = {
    "nn": {"anndata", "scvi", "lightning", "pandas"},
    "data": {"cell_eval", "lightning.pytorch.callbacks"},
    "evaluate": {"torch", "scvi", "lightning"},
    "pl": {"torch", "scvi", "lightning"},
    "datasets": {"torch", "scvi"},
}
#: One question to a package that a folder otherwise does not know, inside a function: is there a device?
MAY_ASK = {"_differential_expression_gpu.py": "torch"}
#: Where a function may take a whole TahoeST.
KNOW_THE_MODEL = {"model", "study", "demo", "cli"}
#: Slow to import or not needed by most: imported inside the function that uses them.
HEAVY = {"cell_eval", "matplotlib", "mudata", "pdex", "peft", "polars", "scanpy", "seaborn", "transformers", "wandb"}
FORBIDDEN_NAMES = re.compile(r"utils|helpers|misc|^_?(common|base)$")


class Import(NamedTuple):
    target: str
    late: bool
    line: int


def folder_of(path: Path) -> str:
    """`data` for a file of that folder; the file's own name at the root."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(path: Path) -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, late: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, late, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.extend(Import(f"{node.module}.{alias.name}", late, node.lineno) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child, late or isinstance(node, ast.FunctionDef))

    visit(ast.parse(path.read_text()), False)
    return found


files = pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(PACKAGE)) for p in FILES])


@files
def test_only_folders_above_the_model_take_a_whole_model(path):
    if folder_of(path) in KNOW_THE_MODEL:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        annotations = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        for annotation in filter(None, annotations):
            assert "TahoeST" not in re.findall(r"\w+", ast.unparse(annotation)), f"{path.name}:{node.lineno}"


@files
def test_no_file_is_imported_from_another_folder_than_its_own(path):
    for item in imports_of(path):
        parts = item.target.split(".")
        if parts[0] == "scvi_tahoe" and len(parts) > 3 and parts[2].startswith("_"):
            assert parts[1] == folder_of(path), f"{path.name}:{item.line} imports {item.target}: let the folder export it"


def test_the_map_of_files_names_every_file_once():
    page = (ROOT / "docs" / "architecture.md").read_text()
    names = re.findall(r"^\| `([\w/]+\.py)` \| \S.*[.?] \|$", page, flags=re.MULTILINE)
    expected = [p.relative_to(PACKAGE).as_posix() for p in FILES if p.name != "__init__.py"]
    assert sorted(names) == sorted(expected)


@files
def test_a_folder_does_not_know_packages_that_are_not_its_business(path):
    never = NEVER_IMPORTS.get(folder_of(path), set())
    for item in imports_of(path):
        for name in never - ({MAY_ASK.get(path.name)} if item.late else set()):
            assert not f"{item.target}.".startswith(f"{name}."), f"{path.name}:{item.line} imports {item.target}"


@files
def test_nothing_private_of_other_packages_is_imported(path):
    for item in imports_of(path):
        top, *rest = item.target.split(".")
        if top in {"scvi", "lightning", "torch", "anndata"}:
            private = [name for name in rest if name.startswith("_") and not name.startswith("__")]
            assert not private, f"{path.name}:{item.line} imports {item.target}"


@files
def test_the_name_of_a_file_is_its_concept(path):
    assert not FORBIDDEN_NAMES.search(path.stem)


@files
def test_no_prints_asserts_or_leftovers(path):
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        assert not isinstance(node, ast.Assert), f"{path.name}:{node.lineno} asserts; raise an error with a sentence"
        is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        assert not is_print, f"{path.name}:{node.lineno} prints"
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            assert not re.search(r"\b(TODO|FIXME|XXX)\b", token.string), f"{path.name}:{token.start[0]} is unfinished"


@files
def test_no_file_is_too_long_to_read_at_once(path):
    limit = 820 if path.name == "_prior.py" else 500  # the response model replaces that file
    assert len(path.read_text().splitlines()) <= limit


def test_public_documentation_has_no_placeholders_left():
    for name in scvi_tahoe.__all__:
        thing = getattr(scvi_tahoe, name)
        documented = [thing, *(getattr(thing, n) for n in vars(thing) if not n.startswith("_"))] if isinstance(
            thing, type
        ) else [thing]  # fmt: skip
        for one in documented:
            assert "%(" not in (getattr(one, "__doc__", None) or ""), f"{name}: {one}"


@pytest.mark.slow
def test_importing_the_package_loads_no_heavy_package_beyond_those_of_scvi():
    code = (
        "import sys, scvi; before = set(sys.modules); import scvi_tahoe; scvi_tahoe.TahoeST; "
        "sys.stdout.write(' '.join(sorted({m.split('.')[0] for m in set(sys.modules) - before})))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(result.stdout.split())
