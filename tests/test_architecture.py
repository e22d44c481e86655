"""The rules of the house that a linter does not know; who may import whom is checked by `make lint` (import-linter)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

import scvi_tahoe

if TYPE_CHECKING:
    from collections.abc import Iterator

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
MAY_ASK = {"_differential_expression.py": "torch"}
#: Where a function may take a whole TahoeST.
KNOW_THE_MODEL = {"model", "study", "demo", "cli"}
#: Slow to import or not needed by most: imported inside the function that uses them.
HEAVY = {"cell_eval", "matplotlib", "mudata", "pdex", "peft", "polars", "scanpy", "seaborn", "transformers", "wandb"}
FORBIDDEN_NAMES = re.compile(r"utils|helpers|misc|^_?(common|base)$")


class Import(NamedTuple):
    path: Path
    target: str
    late: bool
    line: int

    def __str__(self) -> str:
        return f"{self.path.relative_to(PACKAGE)}:{self.line} imports {self.target}"


TREES = {path: ast.parse(path.read_text()) for path in FILES}
NODES = [(path, node) for path, tree in TREES.items() for node in ast.walk(tree)]


def folder_of(path: Path) -> str:
    """`data` for a file of that folder; the file's own name at the root."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"


def imports_of(path: Path) -> Iterator[Import]:
    late = {id(n) for f in ast.walk(TREES[path]) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            yield from (Import(path, module + alias.name, id(node) in late, node.lineno) for alias in node.names)


IMPORTS = [item for path in FILES for item in imports_of(path)]


def test_only_folders_above_the_model_take_a_whole_model():
    taking = [
        place(path, node)
        for path, node in NODES
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if folder_of(path) not in KNOW_THE_MODEL and isinstance(annotation, ast.AST)
        if "TahoeST" in re.findall(r"\w+", ast.unparse(annotation))
    ]
    assert taking == []


def test_of_another_folder_only_what_it_exports_is_imported():
    split = [(item, item.target.split(".")) for item in IMPORTS]
    inner = [(i, parts) for i, parts in split if parts[0] == "scvi_tahoe" and len(parts) > 3 and parts[2][0] == "_"]
    assert [str(item) for item, parts in inner if parts[1] != folder_of(item.path)] == []


def test_the_map_of_files_names_every_file_once():
    page = (ROOT / "docs" / "architecture.md").read_text().partition("<!-- map of files -->")[2]
    names = re.findall(r"^\| `([\w/]+\.py)` \| \S.*[.?] \|$", page, flags=re.MULTILINE)
    expected = [p.relative_to(PACKAGE).as_posix() for p in FILES if p.name != "__init__.py"]
    assert sorted(names) == sorted(expected)


def test_a_folder_does_not_know_packages_that_are_not_its_business():
    assert [
        str(item)
        for item in IMPORTS
        for name in NEVER_IMPORTS.get(folder_of(item.path), set())
        if f"{item.target}.".startswith(f"{name}.") and not (item.late and MAY_ASK.get(item.path.name) == name)
    ] == []


def test_nothing_private_of_other_packages_is_imported():
    split = [(item, item.target.split(".")) for item in IMPORTS]
    others = [(item, rest) for item, (top, *rest) in split if top in {"scvi", "lightning", "torch", "anndata"}]
    assert [str(i) for i, rest in others if any(n.startswith("_") and not n.startswith("__") for n in rest)] == []


def test_nothing_is_printed_or_asserted_in_the_package():
    calls = [(path, node, node.func) for path, node in NODES if isinstance(node, ast.Call)]
    assert [place(p, node) for p, node, f in calls if isinstance(f, ast.Name) and f.id == "print"] == []
    assert [place(path, node) for path, node in NODES if isinstance(node, ast.Assert)] == []


def test_a_file_is_named_by_its_concept_finished_and_short():
    texts = {path: path.read_text() for path in FILES}
    assert [path.name for path in FILES if FORBIDDEN_NAMES.search(path.stem)] == []
    assert [path.name for path, text in texts.items() if re.search(r"\b(TODO|FIXME|XXX)\b", text)] == []
    limits = {"_prior.py": 850}  # the response model replaces that file
    lengths = {path.name: len(text.splitlines()) - limits.get(path.name, 500) for path, text in texts.items()}
    assert {name: over for name, over in lengths.items() if over > 0} == {}


def test_public_documentation_has_no_placeholders_left():
    things = [getattr(scvi_tahoe, name) for name in scvi_tahoe.__all__]
    members = [getattr(t, n) for t in things if isinstance(t, type) for n in vars(t) if not n.startswith("_")]
    assert [thing for thing in things + members if "%(" in (getattr(thing, "__doc__", None) or "")] == []


@pytest.mark.slow
def test_importing_the_package_loads_no_heavy_package():
    code = (
        "import sys, scvi; before = set(sys.modules); import scvi_tahoe; scvi_tahoe.TahoeST; "
        "sys.stdout.write(' '.join(sorted({m.split('.')[0] for m in set(sys.modules) - before})))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(result.stdout.split())


def test_every_name_of_a_type_names_one_type():
    """Arguments are checked by the names in their annotations, many of which are imported for type checkers only."""
    defined: dict[str, list[str]] = {}
    for path, tree in TREES.items():
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [node]
            for name in [getattr(target, "id", getattr(target, "name", "")) for target in targets]:
                if name[:1].isupper() and not name.isupper():
                    defined.setdefault(name, []).append(place(path, node))
    assert {name: places for name, places in defined.items() if len(places) > 1} == {}
    assert len(defined) > 100
