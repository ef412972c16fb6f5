"""A section of the report: sentences, tables and figures of one kind of evidence, for page, Markdown and terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape

from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text

from rest.report.plots import svg
from rest.report.tables import NAMES, markdown_text

Lines = list[list[str]]  # a table: its head first, the first cell of a line that line's name


@dataclass(frozen=True)
class Section:
    """What one kind of evidence adds to the report."""

    title: str
    sentences: list[str]
    tables: list[Lines] = field(default_factory=list)
    figures: list[tuple[Figure, str, str]] = field(default_factory=list)  # figure, name, caption

    def markdown(self) -> list[str]:
        sentences = [f"- {markdown_text(line)}" for line in self.sentences]
        return [f"## {markdown_text(self.title)}", *sentences, *map(markdown_lines, self.tables)]

    def html(self) -> Iterator[str]:
        yield f"<h2>{escape(self.title)}</h2>"
        yield items(self.sentences)
        for figure, name, caption in self.figures:
            yield f"<figure>{svg(figure, name, caption)}<figcaption>{escape(caption)}</figcaption></figure>"
        for lines in self.tables:
            yield table(lines, "section")

    def console(self) -> Iterator[Table | Text]:
        """The tables, then the sentences."""
        for head, *lines in self.tables:
            shown = Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAD)
            for title in head:
                shown.add_column(Text(title), justify="left" if title == head[0] else "right", overflow="fold")
            for line in lines:
                shown.add_row(*(literal(cell) for cell in line))
            yield shown
        for sentence in self.sentences:
            yield literal(sentence)


def label_of(folder: str) -> str:
    """The name of a policy's folder in tables: "BC", "BC continued", "G1 I2"."""
    if step := re.fullmatch(r"improve-(\d+)-(\d+)", folder):
        return f"G{step[1]} I{step[2]}"
    return NAMES.get(folder.split("-")[0], folder)


def order_of(folder: str) -> tuple[int, list[int], str]:
    """A key that sorts policies' folders: BC, BC continued, Improve steps, others."""
    name, *numbers = folder.split("-")
    rank = {"bc": 0, "bc_continued": 1, "improve": 2}.get(name, 3)
    return rank, [int(number) for number in numbers if number.isdigit()], folder


def literal(text: str) -> Text:
    """Text as it stands: no markup, nothing that steers a terminal."""
    return Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def markdown_lines(lines: Lines) -> str:
    rows = ["| " + " | ".join(markdown_text(str(cell)) for cell in line) + " |" for line in lines]
    return "\n".join([rows[0], "|" + " --- |" * len(lines[0]), *rows[1:]])


def table(lines: Lines, kind: str) -> str:
    """A plain table as HTML."""
    body = []
    for name, *cells in lines[1:]:
        texts = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
        body.append(f'<tr><th scope="row">{escape(str(name))}</th>{texts}</tr>')
    titles = f"<thead><tr>{head(lines[0])}</tr></thead>"
    return f'<div class="wide"><table class="{kind}">{titles}<tbody>{"".join(body)}</tbody></table></div>'


def head(titles: list[str]) -> str:
    return "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)


def items(lines: list[str], kind: str = "") -> str:
    return f'<ul class="{kind}">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>' if lines else ""
