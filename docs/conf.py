"""Sphinx: `python -m sphinx -W docs docs/_build` (the packages are in the extra `docs`)."""

import ast
import json
from pathlib import Path

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


def messages():
    """What `rest` says where something is to be mended, as Markdown: each sentence under the file that says it."""
    root = Path(rest.__file__).parent
    for path in sorted(root.rglob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call) and node.args]
        errors = [sentence(call.args[0]) for call in calls if getattr(call.func, "id", "") == "UserError"]
        warnings = [sentence(call.args[0]) for call in calls if getattr(call.func, "id", "") == "say"]
        found = [*errors, *(text for text in warnings if "warning:" in text)]
        found = [text for text in found if sum(map(str.isalpha, text)) > 7]  # less is nearly all filled in
        if found:
            yield f"\n## {path.relative_to(root.parent)}\n"
            yield from (f"* `` {text} ``" for text in dict.fromkeys(found))


def sentence(node):
    """The text of an expression; `…` is what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(sentence, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return sentence(node.left) + sentence(node.right)
    return "…"


def add_messages(app, page, source):
    if page == "messages":
        source[0] += "\n".join(messages()) + "\n"


def setup(app):
    app.connect("source-read", add_messages)
    app.add_js_file(None, body=ACCESSIBLE)
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(Notebook)
