"""Write the map of files in architecture.md from the first line of every file. Run it when files come or go."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE, PAGE = ROOT / "src" / "scvi_tahoe", ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- map of files -->\n", "<!-- end of the map -->"
#: From the top floor down, as in pyproject.toml.
FOLDERS = (
    "cli", "demo", "study", "model", "tables", "pretrained", "training", "prediction", "response", "effects", "data",
    "nn", "evaluate", "datasets", "pl", "files",
)  # fmt: skip


def first_line(path: Path) -> str:
    """First line of a file's docstring, which says what the file is for."""
    text = ast.get_docstring(ast.parse(path.read_text()))
    if not text:
        raise SystemExit(
            f"{path} has no docstring; its first line is the file's entry in the map."
        )
    return text.splitlines()[0]


def table(paths: list[Path]) -> str:
    rows = [
        f"| `{path.relative_to(PACKAGE).as_posix()}` | {first_line(path)} |"
        for path in paths
    ]
    return "\n".join(["| file | what it is |", "|---|---|", *rows, ""])


def main() -> None:
    """Replace what stands between the two marks of the page."""
    own = sorted(p for p in PACKAGE.glob("*.py") if p.stem != "__init__")
    sections = [f"### The package itself\n\n{table(own)}"]
    for folder in FOLDERS:
        files = sorted(
            p for p in (PACKAGE / folder).rglob("*.py") if p.stem != "__init__"
        )
        sections.append(
            f"### {folder}/\n\n{first_line(PACKAGE / folder / '__init__.py')}\n\n{table(files)}"
        )
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(sections) + f"\n{END}{after}")


if __name__ == "__main__":
    main()
