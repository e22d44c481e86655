"""Sphinx configuration, after the scverse template."""

import base64
import json
import os
import re
import sys
import warnings
from importlib.metadata import metadata
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer

import scvi_tahoe

sys.path.insert(0, str(Path(__file__).parent))
import llms_txt  # of this folder

HERE = Path(__file__).parent

# About calls inside that extension, hundreds of times.
warnings.filterwarnings("ignore", message=".*sphinx_autodoc_typehints.*")

info = metadata("scvi-tahoe")
project = info["Name"]
author = "scvi-tahoe developers"
copyright = f"2026, {author}"
version = release = info["Version"]
# the buttons that lead to the repository appear once its address is in the metadata of the package
repository_url = dict(line.split(", ") for line in info.get_all("Project-URL")).get(
    "Source"
)

extensions = [
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx.ext.mathjax",
    "sphinxcontrib.bibtex",
    "sphinxext.opengraph",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
source_suffix = {".rst": "restructuredtext", ".ipynb": "myst-nb", ".myst": "myst-nb"}

autosummary_generate = True
HIDDEN = """
setup_annbatch convert_legacy_save data_registry deregister_manager register_manager get_normalized_function_name
get_setup_arg get_state_registry get_var_names get_from_registry transfer_fields update_setup_method_args run_id run_name
state_registry
""".split()
autosummary_context = {
    # methods that a class page lists on top: our own ones, not those of scvi-tools that the class inherits
    "methods_of_class": {
        f"scvi_tahoe.{name}": [
            method
            for method in (
                "setup_anndata",
                "setup_mudata",
                "train",
                "predict",
                "evaluate",
                *dir(cls),
            )
            if not method.startswith("_")
            and method not in HIDDEN
            and getattr(getattr(cls, method, None), "__module__", "").startswith(
                "scvi_tahoe"
            )
        ]
        for name, cls in {
            "TahoeST": scvi_tahoe.TahoeST,
            "TahoeEnsemble": scvi_tahoe.TahoeEnsemble,
        }.items()
    },
    # not offered, or internals of the base classes of scvi-tools
    "hidden_members": ", ".join(HIDDEN),
    # the picture that a plot makes, drawn by draw_plots.py
    "figures_of_plots": {
        f"scvi_tahoe.pl.{path.stem}": f"/_static/plots/{path.name}"
        for path in (HERE / "_static" / "plots").glob("*.png")
    },
}
for _methods in autosummary_context["methods_of_class"].values():
    _methods[:] = dict.fromkeys(_methods)
autodoc_member_order = "bysource"
toc_object_entries_show_parents = "hide"  # method names that fit the list on the right
# The methods of scvi-tools' base classes are documented there.
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = True
napoleon_use_param = True
napoleon_include_init_with_doc = False
typehints_defaults = "braces"
always_use_bars_union = True

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

myst_heading_anchors = 3
myst_enable_extensions = [
    "amsmath",
    "colon_fence",
    "deflist",
    "dollarmath",
    "html_admonition",
    "html_image",
]
# Notebooks are stored with their outputs and executed by `make tutorials`; the machines that build the pages may
# have neither the time nor a GPU.
nb_execution_mode = "off"
nb_output_stderr = "remove"
nb_merge_streams = True
#: which picture of a tutorial is on its card; the first one if not said here
THUMBNAILS = {
    "1_quick_start": 1,
    "3_your_perturb_seq": 1,
    "9_from_predictions_to_decisions": 2,
}

html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_title = project
html_css_files = ["custom.css"]
html_logo = html_favicon = "_static/logo.svg"
html_theme_options = {
    **({"repository_url": repository_url} if repository_url else {}),
    "use_repository_button": repository_url is not None,
    "use_issues_button": repository_url is not None,
    "path_to_docs": "docs",
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "navbar_persistent": [],  # else a second search box
    "logo": {"text": f"{project} {version}"},
}
pygments_style = "default"

# Read the Docs adds the menu of versions; it needs the address of this one
html_baseurl = os.environ.get(
    "READTHEDOCS_CANONICAL_URL", "https://scvi-tahoe.readthedocs.io/"
)
html_context = {"READTHEDOCS": "READTHEDOCS" in os.environ}
ogp_site_url = html_baseurl
ogp_image = "_static/deltas.png"
ogp_social_cards = {"enable": False}

# Pages of other projects are linked where there is a network. Without one their inventories cannot be read, so the
# whole extension stays away instead of hiding warnings: `make docs DOCS_LINKS=1` builds as Read the Docs does.
if os.environ.get("READTHEDOCS") or os.environ.get("DOCS_LINKS"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "lightning": ("https://lightning.ai/docs/pytorch/stable/", None),
        "matplotlib": ("https://matplotlib.org/stable/", None),
        "mudata": ("https://mudata.readthedocs.io/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/pandas-docs/stable/", None),
        "python": ("https://docs.python.org/3", None),
        "scipy": ("https://docs.scipy.org/doc/scipy/", None),
        "scvi": ("https://docs.scvi-tools.org/en/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
    }

# Every reference to a public name of ours has to resolve. Names of other projects, and classes that only our own files
# see, may stay unlinked.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!scvi_tahoe\b).*"),
    ("py:.*", r"scvi_tahoe(\.\w+)*\._\w+\..*"),
]


def resolve_private_module(app, env, node, contnode):
    """Link a name by the folder that exports it: annotations carry the private file it is defined in."""
    target = node.get("reftarget", "")
    if not target.startswith("scvi_tahoe.") or node.get("refdomain") != "py":
        return None
    public = re.sub(r"\._\w+", "", target)
    domain = env.get_domain("py")
    for name in (public, re.sub(r"^scvi_tahoe\.\w+\.", "scvi_tahoe.", public)):
        for role in (node["reftype"], "obj"):
            found = domain.resolve_xref(
                env, node["refdoc"], app.builder, role, name, node, contnode
            )
            if found is not None:
                return found
    return None


def comment_of_constant(app, what, name, obj, options, lines):
    """Document a constant by the `#:` comment where it is defined, not by the docstring of its type."""
    if what != "data":
        return
    folder, constant = name.rsplit(".", 1)
    for file in sorted(
        module for module in sys.modules if module.startswith(f"{folder}.")
    ):
        comments = ModuleAnalyzer.for_module(file).find_attr_docs()
        if ("", constant) in comments:
            lines[:] = comments["", constant]
            return
    lines[:] = [f"A constant of ``{folder}``."]


def returns_as_text(app, what, name, obj, options, lines):
    """Keep what a function returns together: napoleon takes each line without a type for one."""
    ruled = [bool(line) and set(line) == {"-"} for line in lines[1:]]
    heads = [i for i, is_rule in enumerate(ruled) if is_rule and lines[i].strip()]
    for head, end in reversed([*zip(heads, [*heads[1:], len(lines)], strict=False)]):
        body = lines[head + 2 : end]
        if lines[head] == "Returns" and not "".join(body[1:2]).startswith("    "):
            # two empty lines end the section above
            text = [f"    {line}".rstrip() for line in body]
            lines[head:end] = ["", "", ":returns:", *text, ""]


def thumbnails(app):
    """Take the first picture of each tutorial that has one for its card."""
    folder = HERE / "_static" / "thumbnails"
    folder.mkdir(exist_ok=True)
    for path in (HERE / "tutorials").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        data = [out.get("data", {}) for c in cells for out in c.get("outputs", [])]
        pictures = [d["image/png"] for d in data if "image/png" in d]
        chosen = pictures[THUMBNAILS.get(path.stem, 0)]
        (folder / f"{path.stem}.png").write_bytes(base64.b64decode(chosen))


def write_llms_txt(app, exception):
    """Put the file for assistants next to the pages."""
    if exception is None and app.builder.format == "html":
        (Path(app.outdir) / "llms.txt").write_text(llms_txt.text())


def setup(app):
    app.connect("builder-inited", thumbnails)
    app.connect("autodoc-process-docstring", comment_of_constant)
    app.connect("autodoc-process-docstring", returns_as_text, priority=400)
    app.connect("missing-reference", resolve_private_module)
    app.connect("build-finished", write_llms_txt)
