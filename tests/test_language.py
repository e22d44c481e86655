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


def prose() -> Iterator[tuple[str, int, str]]:
    """Yield place, line number and line of pages, text of tutorials, and docstrings."""
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tutorials").glob("*.md")]:
        if not {"_build", "generated"} & {*path.parts}:
            yield from lines_of(path, path.read_text())
    for path in (ROOT / "tutorials").glob("*.ipynb"):
        for index, cell in enumerate(json.loads(path.read_text())["cells"]):
            if cell["cell_type"] == "markdown":
                yield from lines_of(f"{path} cell {index}", "".join(cell["source"]))
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node, clean=False) or ""
                yield from lines_of(path, text, node.body[0].lineno if text else 1)


def code() -> Iterator[tuple[str, int, str]]:
    """Yield place, line number and text of every line of code, the name of its file before them."""
    for path in (ROOT / "src").rglob("*.py"):
        yield from lines_of(path, f"{path.stem}\n{path.read_text()}", 0)


def lines_of(place: object, text: str, first: int = 1) -> Iterator[tuple[str, int, str]]:
    return ((str(place), number, line) for number, line in enumerate(text.splitlines(), first))


def test_no_private_phrase_in_docstrings_names_and_pages():
    phrases, private = re.compile("|".join(PHRASES)), re.compile(rf"\b({'|'.join(NAMES)})\b")
    found = [f"{place}:{number}: {m[0]!r}" for place, number, line in prose() if (m := phrases.search(line))]
    found += [f"{place}:{number}: {m[0]!r}" for place, number, line in code() if (m := private.search(line))]
    assert not found, "write these in standard words (docs/contributing.md):\n" + "\n".join(found)
