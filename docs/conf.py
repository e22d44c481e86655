"""Sphinx configuration, after the scverse template."""

from importlib.metadata import metadata

info = metadata("scvi-tahoe")
project = info["Name"]
author = "scvi-tahoe developers"
copyright = f"2026, {author}"
version = release = info["Version"]

extensions = [
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx.ext.mathjax",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
source_suffix = {".rst": "restructuredtext", ".ipynb": "myst-nb", ".myst": "myst-nb"}

autosummary_generate = True
autodoc_member_order = "bysource"
# The methods of scvi-tools' base classes are documented there.
autodoc_default_options = {"inherited-members": False}
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = True
napoleon_use_param = True
napoleon_include_init_with_doc = False
typehints_defaults = "braces"
always_use_bars_union = True

myst_heading_anchors = 3
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "html_admonition", "html_image"]
# Notebooks are stored with their outputs; the machines that build the pages have no GPU.
nb_execution_mode = "off"

html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_title = project
html_theme_options = {"navigation_with_keys": False, "show_toc_level": 2}
pygments_style = "default"

intersphinx_mapping = {
    "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
    "numpy": ("https://numpy.org/doc/stable/", None),
    "pandas": ("https://pandas.pydata.org/pandas-docs/stable/", None),
    "python": ("https://docs.python.org/3", None),
    "scipy": ("https://docs.scipy.org/doc/scipy/", None),
    "scvi": ("https://docs.scvi-tools.org/en/stable/", None),
    "torch": ("https://docs.pytorch.org/docs/stable/", None),
}
