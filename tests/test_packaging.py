"""What a release needs: one version everywhere, a recipe with the same requirements, texts that are made anew."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: names that conda-forge has for packages of PyPI
ON_CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
#: names that packages are imported by, if they are others
IMPORTED_AS = {"scikit-learn": "sklearn", "scvi-tools": "scvi", "pyyaml": "yaml"}


def test_the_conda_recipe_has_the_version_and_the_requirements_of_the_package():
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text())
    assert recipe["context"]["version"] == PROJECT["version"]
    assert f">={recipe['context']['python_min']}" == PROJECT["requires-python"]
    wanted = [re.fullmatch(r"([\w-]+)(.*)", requirement).groups() for requirement in PROJECT["dependencies"]]
    assert recipe["requirements"]["run"][1:] == [f"{ON_CONDA.get(name, name)} {limit}" for name, limit in wanted]
    assert recipe["build"]["python"]["entry_points"] == [f"{k} = {v}" for k, v in PROJECT["scripts"].items()]


@pytest.mark.parametrize("path", sorted((ROOT / "tutorials").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_tutorial_imports_what_the_package_brings_and_nothing_else(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    code = "\n".join(line for cell in cells for line in "".join(cell["source"]).splitlines() if line[:1] not in "%!")
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    brought = {re.match(r"[\w-]+", requirement)[0] for requirement in PROJECT["dependencies"]} | {PROJECT["name"]}
    modules = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in brought}
    assert {name.partition(".")[0] for name in names} <= modules | {"IPython"} | sys.stdlib_module_names


def test_zenodo_and_citation_say_what_the_package_says():
    zenodo = json.loads((ROOT / ".zenodo.json").read_text())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert zenodo["title"] == citation["title"]
    assert zenodo["license"] == PROJECT["license"]
    assert zenodo["description"] == PROJECT["description"]
    assert [one["name"] for one in zenodo["creators"]] == [one["name"] for one in citation["authors"]]


def test_the_file_for_assistants_names_every_page_of_the_guide_and_every_tutorial():
    made = subprocess.run(
        [sys.executable, ROOT / "docs" / "llms_txt.py"], capture_output=True, text=True, check=True
    ).stdout
    pages = {path.stem for path in (ROOT / "docs" / "user_guide").glob("*.md")} - {"index"}
    assert pages == set(re.findall(r"user_guide/(\w+)\.html", made))
    tutorials = {path.stem for path in (ROOT / "tutorials").glob("*.ipynb")}
    assert tutorials == set(re.findall(r"tutorials/(\w+)\.html", made))
    assert "TahoeST.setup_anndata(" in made
