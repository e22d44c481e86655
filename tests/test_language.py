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
    r"^\s+Of [a-z`:]|^Of (the|its) [a-z]|^\s+Which\.$|appears when it is complete|Which (control )?cells meet",
    r"\b(but for|Whichever|gravest|graded|in words|unless said|[Bb]eside|hand(ed)? (it )?on|go(es)? on from)\b",
    r"\b(what it (would|was told|is told)|is told so|that (nobody|no one) (measured|screened|tried))\b",
    r"\bone (row|label|task|dot|number|column) a [a-z]+|\b(sets a (second|step)|steps a second|cells a condition)\b",
]


def prose() -> Iterator[tuple[str, str]]:
    """Yield place and text of pages, of cells of tutorials, and of docstrings."""
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tutorials").glob("*.md")]:
        if not {"_build", "generated"} & {*path.parts}:
            yield str(path), path.read_text()
    for path in (ROOT / "tutorials").glob("*.ipynb"):
        cells = enumerate(json.loads(path.read_text())["cells"])
        yield from ((f"{path} cell {i}", "".join(c["source"])) for i, c in cells if c["cell_type"] == "markdown")
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path}:{getattr(node, 'lineno', 1)}", ast.get_docstring(node, clean=False) or ""


def test_no_private_phrase_in_docstrings_names_and_pages():
    code = ((path, f"{path.stem}\n{path.read_text()}") for path in (ROOT / "src").rglob("*.py"))
    found = [
        f"{place}: {line.strip()}"
        for pattern, texts in (("|".join(PHRASES), prose()), (rf"\b({'|'.join(NAMES)})\b", code))
        for place, text in texts
        for line in text.splitlines()
        if re.search(pattern, line)
    ]
    assert not found, "write these in standard words (docs/contributing.md):\n" + "\n".join(found)
