"""The import rules of docs/architecture.md and the house rules that a linter does not know."""

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
FILES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = ("cli", "data", "datasets", "demo", "evaluate", "nn", "pl", "pretrained", "study", "train")

#: Part of the package -> the parts it may import. "" is the package itself, `from scvi_tahoe import TahoeST`.
MAY_IMPORT = {
    "_constants": set(),
    "_compat": {"_constants"},
    "_atomic_folder": set(),
    "nn": set(),
    "data": {"_constants", "_compat", "_atomic_folder"},
    "pretrained": {"_constants", "_atomic_folder", "nn"},
    "_module": {"_constants", "nn"},
    "train": {"_constants", "_compat"},
    "evaluate": {"_constants"},
    "pl": {"_constants", "evaluate"},
    "datasets": {"_constants"},
    "_model": {"_constants", "_compat", "_module", "data", "evaluate", "nn", "pl", "pretrained", "train"},
    # A study runs the whole package from a configuration, as a user would.
    "study": {"", "_constants", "_compat", "_model", "data", "datasets", "evaluate", "nn", "pl", "pretrained", "train"},
    "demo": {"", "_constants", "datasets", "evaluate", "pl"},
    "cli": {"", "_constants", "datasets", "demo", "evaluate", "pretrained", "study"},
    "": {"_constants", "_model", "_module", "data", "datasets", "evaluate", "nn", "pl", "pretrained", "train"},
}
#: The same, for imports inside a function: a result can draw itself, and drawing knows results.
MAY_IMPORT_LATE = {"evaluate": {"pl"}}
#: The same, for imports that exist for type checkers only.
MAY_IMPORT_TYPES = {
    "train": {"_module", "nn", "data"},
}
#: Part of the package -> other people's packages it must not know.
NEVER_IMPORTS = {
    "nn": {"anndata", "scvi", "lightning", "pandas"},
    "data": {"cell_eval", "lightning.pytorch.callbacks"},
    "evaluate": {"torch", "scvi", "lightning"},
    "pl": {"torch", "scvi", "lightning"},
    "datasets": {"torch", "scvi"},
}
#: One question to a package it otherwise does not know, inside a function: is there a device?
MAY_ASK = {"_differential_expression_gpu.py": "torch"}
#: Slow to import or not needed by most: imported inside the function that uses them.
HEAVY = {"cell_eval", "matplotlib", "mudata", "pdex", "peft", "polars", "scanpy", "seaborn", "transformers", "wandb"}
FORBIDDEN_NAMES = re.compile(r"utils|helpers|misc|^_?(common|base)$")


class Import(NamedTuple):
    target: str
    for_types: bool
    late: bool
    line: int


def part_of(module: str) -> str:
    """`scvi_tahoe.data._splits` -> `data`; the package's own file -> the empty name.

    The files beside `_model.py` that its methods hand their work to count as parts of it.
    """
    part = (module.split(".") + [""])[1]
    return "_model" if (PACKAGE / f"{part}.py").exists() and part not in MAY_IMPORT else part


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, for_types: bool, late: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, True, late)
            return
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, for_types, late, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.extend(Import(f"{node.module}.{alias.name}", for_types, late, node.lineno) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child, for_types, late or isinstance(node, ast.FunctionDef))

    visit(ast.parse(path.read_text()), False, False)
    return found


def our_part(target: str) -> str:
    part = part_of(target)
    # `from scvi_tahoe import TahoeST` names an object of the package, not a part of it.
    return part if part in MAY_IMPORT else ""


files = pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(PACKAGE)) for p in FILES])


@files
def test_a_part_imports_only_what_the_import_table_allows(path):
    part = part_of(module_of(path))
    for item in imports_of(path):
        if item.target.split(".")[0] != "scvi_tahoe":
            continue
        allowed = MAY_IMPORT[part] | {part}
        allowed |= MAY_IMPORT_TYPES.get(part, set()) if item.for_types else set()
        allowed |= MAY_IMPORT_LATE.get(part, set()) if item.late else set()
        assert our_part(item.target) in allowed, f"{path.name}:{item.line} imports {item.target}"


@files
def test_a_part_does_not_know_packages_that_are_another_parts_business(path):
    never = NEVER_IMPORTS.get(part_of(module_of(path)), set())
    for item in imports_of(path):
        for name in never - ({MAY_ASK.get(path.name)} if item.late else set()):
            assert not f"{item.target}.".startswith(f"{name}."), f"{path.name}:{item.line} imports {item.target}"


@files
def test_nothing_private_of_scvi_or_lightning_is_imported(path):
    for item in imports_of(path):
        top, *rest = item.target.split(".")
        if top in {"scvi", "lightning", "torch", "anndata"}:
            private = [name for name in rest if name.startswith("_") and not name.startswith("__")]
            assert not private, f"{path.name}:{item.line} imports {item.target}"


@files
def test_the_name_of_a_file_is_its_concept(path):
    assert not FORBIDDEN_NAMES.search(path.stem)


@files
def test_a_module_says_what_it_exports(path):
    names = {target.id for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign)
             for target in node.targets if isinstance(target, ast.Name)}  # fmt: skip
    assert "__all__" in names or not path.read_text().strip(), f"{path.name} has no __all__"


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


def test_every_folder_of_the_package_is_in_the_import_table():
    assert {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()} == set(FOLDERS)
    assert set(FOLDERS) <= set(MAY_IMPORT)


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
        "import sys, scvi; before = set(sys.modules); import scvi_tahoe; "
        "sys.stdout.write(' '.join(sorted({m.split('.')[0] for m in set(sys.modules) - before})))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(result.stdout.split())
