"""Private phrases that must not come back into docstrings, names and pages: standard words instead."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]

#: private names of the first version, in code
NAMES = r"""
BaseSupply PriorBase MinibatchSources Arrivals LateNumber LabelReading PredictionTask BaselineTask refuse_unused as_said
act_on begin_prior _base_supply _sources _exchange _arrivals gravest calibrate
""".split()

#: what a native engineer or biologist would not write, in docstrings and pages
PHRASES = [
    r"\bNone (takes|for none|leaves it|does not|predicts|gives|means the|keeps)\b",
    r"\bbut for\b",
    r"^\s+Of [a-z`:]|^Of (the|its) [a-z]",
    r"\bWhichever\b",
    r"^\s+Which\.$",
    r"appears when it is complete",
    r"Which (control )?cells meet",
    r"\bgravest\b",
    r"\bgraded\b",
    r"\bin words\b",
    r"\bunless said\b",
    r"\b[Bb]eside\b",
    r"\bwhat it (would|was told|is told)\b",
    r"\bis told so\b",
    r"\bhand(ed)? (it )?on\b",
    r"\bgo(es)? on from\b",
    r"\bthat (nobody|no one) (measured|screened|tried)\b",
    r"\bone (row|label|task|dot|number|column) a [a-z]+",
    r"\bsets a (second|step)\b",
    r"\bsteps a second\b",
    r"\bcells a condition\b",
]


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the first line number and the text of every docstring of a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                yield first.lineno, first.value.value


def markdown() -> Iterator[tuple[str, int, str]]:
    """Yield place, line number and line of all pages, and the same of the text in tutorials."""
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tutorials").glob("*.md")]:
        if not {"_build", "generated"} & {*path.parts}:
            for number, line in enumerate(path.read_text().splitlines(), 1):
                yield str(path.relative_to(ROOT)), number, line
    for path in (ROOT / "tutorials").glob("*.ipynb"):
        for index, cell in enumerate(json.loads(path.read_text())["cells"]):
            if cell["cell_type"] == "markdown":
                yield from (
                    (f"{path.relative_to(ROOT)} cell", index, line) for line in "".join(cell["source"]).split("\n")
                )


def pages() -> Iterator[tuple[str, int, str]]:
    """Yield place, line number and line of all prose: pages, tutorials and docstrings."""
    yield from markdown()
    for path in (ROOT / "src").rglob("*.py"):
        for start, text in docstrings(path):
            for offset, line in enumerate(text.splitlines()):
                yield str(path.relative_to(ROOT)), start + offset, line


def names() -> Iterator[tuple[str, int, str]]:
    """Yield place, line number and text of every line of code."""
    for path in (ROOT / "src").rglob("*.py"):
        yield str(path.relative_to(ROOT)), 0, path.stem
        for number, line in enumerate(path.read_text().splitlines(), 1):
            yield str(path.relative_to(ROOT)), number, line


def test_no_private_phrase_in_docstrings_names_and_pages():
    phrases, private = re.compile("|".join(PHRASES)), re.compile(rf"\b({'|'.join(NAMES)})\b")
    found = [f"{place}:{number}: {m[0]!r}" for place, number, line in pages() if (m := phrases.search(line))]
    found += [f"{place}:{number}: {m[0]!r}" for place, number, line in names() if (m := private.search(line))]
    assert not found, "write these in standard words (docs/contributing.md):\n" + "\n".join(found)
