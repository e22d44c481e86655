"""What a build of the pages cannot see: public names without a page, tutorials without outputs, invalid metadata."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import scvi_tahoe

ROOT = Path(__file__).parents[1]
DOCS, TUTORIALS = ROOT / "docs", ROOT / "tutorials"
#: `cli` is used from a shell, and its commands document themselves with --help
FOLDERS = ("data", "datasets", "demo", "evaluate", "nn", "pl", "pretrained", "study", "tables", "training")
PAGE_WIDTH = 88


def documented(folder: str) -> set[str]:
    """Names in the autosummary blocks of the API pages, by the module they are looked up in."""
    names: set[str] = set()
    for page in (DOCS / "api").glob("*.md"):
        for block in re.split(r"\.\. currentmodule:: ", page.read_text())[1:]:
            module, *lines = block.split("```")[0].splitlines()
            if module.strip() == folder:
                names |= {line.strip() for line in lines if re.fullmatch(r"\s+\w+", line)}
    return names


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_name_that_a_folder_exports_is_in_the_api_pages(folder):
    module = f"scvi_tahoe.{folder}"
    known = documented(module) | documented("scvi_tahoe")
    missing = sorted(set(import_module(module).__all__) - known)
    assert not missing, f"add these to docs/api/developers.md or index.md under {module}: {missing}"


def test_the_api_pages_have_every_name_of_the_package_and_no_other():
    names = {module: documented(module) for module in ("scvi_tahoe", *(f"scvi_tahoe.{f}" for f in FOLDERS))}
    assert not set(scvi_tahoe.__all__).difference(FOLDERS, *names.values())
    assert [(m, n) for m, found in names.items() for n in found if not hasattr(import_module(m), n)] == []


PAGES = [*ROOT.glob("*.md"), *TUTORIALS.glob("*.md"), *(p for p in DOCS.rglob("*.md") if "_build" not in p.parts)]


@pytest.mark.parametrize("page", sorted(p.relative_to(ROOT).as_posix() for p in PAGES))
def test_links_of_a_page_into_the_repository_lead_somewhere(page):
    path = ROOT / page
    # code blocks and spans hold examples, not links
    text = re.sub(r"(`{3,}).*?\1|`[^`\n]*`", "", path.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\((?!https?:|mailto:|#)([^)\s]+?)(?:#[^)]*)?\)", text)
    assert [t for t in targets if not (path.parent / t).exists()] == []


def test_links_of_the_readme_work_outside_of_the_repository_and_lead_to_pages_that_exist():
    """PyPI shows the README, too, and knows no files of the repository."""
    text = (ROOT / "README.md").read_text()
    assert [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not t.startswith("https://")] == []
    pages = re.findall(r"readthedocs\.io/page/([^)#]+)\.html", text)
    assert len(pages) > 8
    assert [page for page in pages if not (DOCS / f"{page}.md").exists()] == []
    pictures = re.findall(r"readthedocs\.io/en/latest/([^)]+)\)", text)
    assert pictures
    assert [picture for picture in pictures if not (DOCS / picture).exists()] == []


def code_blocks(page):
    """Blocks of code of a page, which are shown as they are."""
    pattern = r"^( *)```+(?:python|bash|yaml|toml|console)\b[^\n]*\n(.*?)^\1```"
    return [block for _, block in re.findall(pattern, page, re.DOTALL | re.MULTILINE)]


@pytest.mark.parametrize("page", sorted(p.relative_to(ROOT).as_posix() for p in PAGES))
def test_no_line_of_a_code_block_is_wider_than_the_page(page):
    lines = [line for block in code_blocks((ROOT / page).read_text()) for line in block.splitlines()]
    assert [line for line in lines if len(line) > PAGE_WIDTH] == []


def literal_texts() -> str:
    """All text in the package's code; what an f-string fills in is left out."""
    texts = []
    for node in (node for path in (ROOT / "src").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
        elif isinstance(node, ast.ClassDef):
            texts.append(node.name)
    return "\n".join(texts)


def test_messages_on_the_troubleshooting_page_are_those_of_the_package():
    page = (DOCS / "user_guide" / "troubleshooting.md").read_text()
    ours, code = page.split("## scvi-tools and its neighbours")[0], literal_texts()
    # what stands for a value splits a message: ..., N, quotes, brackets, the name of the data and of a check
    messages = [m for line in ours.splitlines() if line.startswith("**") for m in re.findall(r"`([^`]+)`", line)]
    pieces = [p.strip() for m in messages for p in re.split(r"\.\.\.|\b[NM]\b|[\[\]():']|\b(?:adata|holds)\b", m)]
    assert len(pieces) > 40
    assert [p for p in pieces if len(p) > 4 and p not in code] == []


@pytest.mark.parametrize("path", sorted(TUTORIALS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_tutorial_is_stored_with_outputs_in_order_and_without_errors(path):
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    outputs = [o for c in cells for o in c["outputs"]]
    assert [o for o in outputs if o["output_type"] == "error"] == []
    assert f"scvi-tahoe {scvi_tahoe.__version__}" in json.dumps(cells[0]["outputs"]), "run it again with this release"
    assert not re.search(r"/(home|root|tmp|Users)/", json.dumps(outputs)), "outputs name folders of a machine"
    figures = sum("image/png" in o.get("data", {}) for o in outputs)
    source = "".join("".join(c["source"]) for c in cells)
    assert figures >= 2
    if not re.search(r"\.predict\(", source):
        return  # there are no predicted cells
    assert [name for name in ("umap(", "energy_distance") if name not in source] == []


def test_there_is_every_tutorial_that_the_index_promises():
    promised = set(re.findall(r"\d_\w+", (TUTORIALS / "index.md").read_text()))
    assert promised == {path.stem for path in TUTORIALS.glob("*.ipynb")}


def test_citation_and_ecosystem_entry_say_what_the_package_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation, entry = (yaml.safe_load((ROOT / name).read_text()) for name in ("CITATION.cff", "meta.yaml"))
    assert citation["version"] == project["version"]
    assert citation["license"] == entry["license"] == project["license"]
    assert entry["install"]["pypi"] == entry["name"] == project["name"]
    assert entry["description"].strip() == project["description"]
    required = {"name", "description", "project_home", "documentation_home", "install", "license", "tags"}
    assert required <= set(entry)
    assert "version" not in entry, "the schema of the ecosystem says: do not set this"


def test_read_the_docs_builds_with_warnings_as_errors():
    config = yaml.safe_load((ROOT / ".readthedocs.yaml").read_text())
    assert config["sphinx"]["fail_on_warning"] is True
