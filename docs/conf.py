"""Sphinx: `python -m sphinx -W docs docs/_build` (the packages are in the extra `docs`)."""

import rest

project = "rest"
author = "the authors of rest"
release = rest.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "rest"
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "show-inheritance": False, "undoc-members": False}
# Docstrings are written to be read in the source: shapes in brackets and starred names are no markup, and of the words
# before a colon, which are read as types, several fields may have the name ("ref.python").
suppress_warnings = ["docutils", "autodoc", "ref.python"]
