"""The text of llms.txt: every page of the documentation in a line, for assistants (llmstxt.org).

The build of the documentation puts it next to index.html; `python docs/llms_txt.py` prints it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
SITE = "https://scvi-tahoe.readthedocs.io/page/"
SECTIONS = {
    "Start": ("installation", "quick_start", "coming_from_arc_state", "glossary"),
    "API": ("api/index", "api/developers", "gallery"),
    "Results": ("results", "how_good", "does_the_network_help"),
    "About": (
        "stability",
        "weights_licence",
        "contributing",
        "architecture",
        "how_to_add",
    ),
}
RULES = """
- `X` (or `layer`) is log1p of normalised counts; raw counts are refused.
- Every context with perturbed cells needs control cells.
- Hold out what is to be scored before `TahoeST.setup_anndata`, and keep its contexts' controls.
- `model.evaluate(held_out)` returns scores with baseline and ceiling; report `result.verdict`, not a single score.
- Weights of Arc and what is made of them are under a non-commercial licence.
"""


def title(page: str) -> str:
    text = (DOCS / f"{page}.md").read_text()
    return re.search(r"^# (.+)$", text, re.MULTILINE)[1].strip()


def link(page: str, about: str = "") -> str:
    return f"- [{title(page)}]({SITE}{page}.html)" + (f": {about}" if about else "")


def text() -> str:
    readme = (DOCS.parent / "README.md").read_text()
    tagline = re.search(r"^\*\*(.+)\*\*$", readme, re.MULTILINE)[1]
    about = re.search(
        r"<!-- docs: what it is -->\n(.*?)\n<!-- end -->", readme, re.DOTALL
    )[1]
    snippet = re.search(
        r"<!-- docs: snippet -->\n(.*?)\n<!-- end -->", readme, re.DOTALL
    )[1]
    guide = (DOCS / "user_guide" / "index.md").read_text()
    pages = re.findall(r"^\| \{doc\}`(\w+)` \| (.+) \|$", guide, re.MULTILINE)
    tutorials = re.findall(  # name of a notebook and the sentence on its card
        r"^:link: (\w+)\n:link-type: doc\n\n(.+?)\n\n",
        (DOCS / "tutorials" / "index.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    parts = [f"# scvi-tahoe\n\n> {tagline}\n\n{about}\n\n{snippet}\n{RULES}"]
    parts.append(
        "## User guide\n\n"
        + "\n".join(link(f"user_guide/{page}", what) for page, what in pages)
    )
    rows = [
        f"- [{name}]({SITE}tutorials/{name}.html): {' '.join(what.split())}"
        for name, what in tutorials
    ]
    parts.append("## Tutorials\n\n" + "\n".join(rows))
    parts += [
        f"## {name}\n\n" + "\n".join(link(page) for page in found)
        for name, found in SECTIONS.items()
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
