"""Sphinx: `python -m sphinx -W docs docs/_build` (the packages are in the extra `docs`)."""

import json

from myst_parser.parsers.sphinx_ import MystParser

import rest

project = "rest"
author = "the authors of rest"
release = rest.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "rest"
html_copy_source = False  # the link to it stands outside what screen readers find their way by
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "show-inheritance": False, "undoc-members": False}
# Docstrings are written to be read in the source: shapes in brackets and starred names are no markup, and of the words
# before a colon, which are read as types, several fields may have the name ("ref.python").
suppress_warnings = ["docutils", "autodoc", "ref.python"]


# What keyboards and screen readers need and the theme leaves out
ACCESSIBLE = """addEventListener("DOMContentLoaded", () => {
  const set = (where, name, value) => document.querySelectorAll(where).forEach(each => each.setAttribute(name, value));
  set("[role=heading]:not([aria-level])", "aria-level", 2);
  set("pre, .table-wrapper", "tabindex", 0);
  set(".sidebar-drawer", "aria-label", "pages");
  set(".toc-drawer", "aria-label", "on this page");
})"""


class Notebook(MystParser):
    """Notebooks are shown with the outputs that scripts/run_notebooks.py wrote into them."""

    supported = ("notebook",)

    def parse(self, inputstring, document):
        super().parse("\n\n".join(map(cell, json.loads(inputstring)["cells"])), document)


def cell(cell):
    """A cell and its outputs as Markdown."""
    text = "".join(cell["source"])
    return (
        text if cell["cell_type"] == "markdown" else "\n\n".join([fenced("python", text), *map(shown, cell["outputs"])])
    )


def shown(output):
    data = output.get("data", {})
    if "image/png" in data:
        return fenced("{raw} html", f'<img alt="a figure" src="data:image/png;base64,{data["image/png"]}">')
    if "text/html" in data:
        table = "".join(data["text/html"]).replace("<th></th>", "<td></td>")  # pandas' corner heads nothing
        table = table.replace('class="dataframe"', 'class="docutils"')  # the theme's own tables
        return fenced("{raw} html", f'<div class="table-wrapper docutils container">{table}</div>')
    return fenced("text", "".join(data.get("text/plain", output.get("text", []))).rstrip("\n"))


def fenced(kind, text):
    return f"```{kind}\n{text}\n```"


def setup(app):
    app.add_js_file(None, body=ACCESSIBLE)
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(Notebook)
