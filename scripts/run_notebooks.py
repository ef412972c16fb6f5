"""Runs docs/notebooks/*.ipynb, in order and in one folder, and writes what their cells showed into them.

    python scripts/run_notebooks.py [FOLDER]   about eight minutes; needs the extra `test`, and no Jupyter

FOLDER keeps what the notebooks make, so that they go on there; without one it is lost.

A cell shows what it prints, the value of its last line and the figures that it drew, as in Jupyter.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import linecache
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

NOTEBOOKS = Path(__file__).resolve().parent.parent / "docs" / "notebooks"
Output = dict[str, Any]


def run_cell(source: str, names: dict[str, Any]) -> list[Output]:
    """Runs a cell in the notebook's names; what it shows, as nbformat 4 has it."""
    name = f"cell-{len(linecache.cache)}.py"
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name  # a run saves functions by source
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, name, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), names)
    outputs: list[Output] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    if value is not None and not plt.get_fignums():
        data = {"text/plain": repr(value).splitlines(keepends=True)}
        if hasattr(value, "to_html"):  # a table of pandas
            data["text/html"] = value.to_html(border=0).splitlines(keepends=True)
        outputs.append({"output_type": "display_data", "metadata": {}, "data": data})
    for figure in map(plt.figure, plt.get_fignums()):
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=80, bbox_inches="tight", metadata={"Software": None})
        data = {"image/png": base64.b64encode(drawn.getvalue()).decode(), "text/plain": ["a figure"]}
        outputs.append({"output_type": "display_data", "metadata": {}, "data": data})
    plt.close("all")
    return outputs


def run(notebook: dict[str, Any]) -> dict[str, Any]:
    """Runs the code of a notebook in the working directory, and returns it with its outputs."""
    names: dict[str, Any] = {"__name__": "notebook"}
    for number, cell in enumerate((c for c in notebook["cells"] if c["cell_type"] == "code"), start=1):
        cell["execution_count"] = number
        cell["outputs"] = run_cell("".join(cell["source"]), names)
    return notebook


def main() -> None:
    matplotlib.use("agg")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(sys.argv[1] if len(sys.argv) > 1 else folder)
        for path in sorted(NOTEBOOKS.glob("*.ipynb")):
            done = run(json.loads(path.read_text(encoding="utf-8")))
            path.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print(f"{path.name}: {len(done['cells'])} cells")


if __name__ == "__main__":
    main()
