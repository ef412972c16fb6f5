"""A section of the report: sentences, tables and figures of one kind of evidence, for page, Markdown and terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text

from rest.folder import StageName, asked_for, read_json, stages_in
from rest.journal import literal
from rest.report.tables import markdown_text

Lines = list[list[str]]  # a table: its head first, the first cell of a line that line's name
Drawing = tuple[Figure, str, str]  # a figure, its name and its caption


@dataclass(frozen=True)
class Section:
    """What one kind of evidence adds to the report."""

    title: str
    sentences: list[str]
    tables: list[Lines] = field(default_factory=list)
    figures: list[Drawing] = field(default_factory=list)

    def markdown(self) -> list[str]:
        sentences = [f"- {markdown_text(line)}" for line in self.sentences]
        return [f"## {markdown_text(self.title)}", *sentences, *map(markdown_lines, self.tables)]

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


def stages_of(run: Path, kind: str | None = None) -> list[StageName]:
    """The complete stages that the run's settings ask for."""
    return list(filter(asked_for(run), stages_in(run, kind)))


def updates_after_bc(run: Path) -> int:
    """Those of all Improve steps on the way, or of PPO if it took more: the control in a table has as many."""
    paths = [name for name in stages_of(run, "improve") if name.on_the_way], stages_of(run, "ppo")
    return max(sum(result_of(run, name)["gradient_steps"] for name in path) for path in paths)


def result_of(run: Path, name: StageName) -> dict[str, Any]:
    """What a complete stage has recorded."""
    return read_json(run / name.folder / "stage.json")["result"]


def label_of(folder: str) -> str:
    """What tables call the policy of this folder; a folder that is no stage's by its own name."""
    name = StageName.parse(folder)
    return name.label if name else folder


def markdown_lines(lines: Lines) -> str:
    rows = ["| " + " | ".join(markdown_text(str(cell)) for cell in line) + " |" for line in lines]
    return "\n".join([rows[0], "|" + " --- |" * len(lines[0]), *rows[1:]])
