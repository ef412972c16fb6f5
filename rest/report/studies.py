"""What the cells of a study show together: means over seeds, as a table and as a figure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text
from scipy import stats

from rest.journal import literal
from rest.report.plots import BLUE, STYLE, WIDTH
from rest.report.sections import Section
from rest.report.tables import COLUMNS, Column, Row, cell, interval, label, number

SHOWN = tuple(column for column in COLUMNS if column.key != "wall_s")
TERMINAL = tuple(column for column in SHOWN if column.key not in ("length_ratio", "chrf_beam", "samples_drawn"))
DRAWN = ("bleu", "chrf", "gold_greedy_mean", "bleu_beam", "reward_mean", "gold_mean", "kl_to_bc")  # one panel each


@dataclass(frozen=True)
class Line:
    """One policy of a study: its rows by seed. Several variants may have it."""

    variants: tuple[str, ...]
    label: str
    rows: Mapping[int, Row]

    @property
    def name(self) -> str:
        """rloo: PPO; BC where all have it is named once."""
        return f"{', '.join(self.variants)}: {self.label}"

    def mean(self, column: Column) -> Row | None:
        """A row with the mean over seeds and its 95 % interval; None where no seed has the number.

        The interval is Student's over seeds; of one seed alone it is its own, over sources.
        """
        rows = [row for row in self.rows.values() if number(row, column.key) is not None]
        values = np.asarray([number(row, column.key) for row in rows], np.float64)
        if not len(values):
            return None
        ends = interval(rows[0], column.interval)
        if len(values) > 1:
            half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
            ends = (float(values.mean() - half), float(values.mean() + half))
        shown = ends if column.interval or column.digits else None  # but not of counts
        return {"metrics": {column.key: float(values.mean()), column.interval or "ci95": shown}}


def lines_of(cells: Mapping[tuple[str, int], list[Row]], every: bool = False) -> list[Line]:
    """A line a policy, from the rows of every (variant, seed): the last policy and the controls, or every one.

    A policy that is the same in several variants, by all that is shown of it, has one line.
    """
    found: dict[tuple[str, str], dict[int, Row]] = {}
    for (variant, seed), rows in cells.items():
        sampled = [row for row in rows if row["decode"] == "sample"]
        for row in sampled if every else _last_and_controls(sampled):
            found.setdefault((variant, label(row)), {})[seed] = row
    lines: list[Line] = []
    for (variant, name), by_seed in found.items():
        same = [k for k, line in enumerate(lines) if line.label == name and _equal(line.rows, by_seed)]
        if same:
            lines[same[0]] = Line((*lines[same[0]].variants, variant), name, by_seed)
        else:
            lines.append(Line((variant,), name, by_seed))
    return lines


def _equal(some: Mapping[int, Row], others: Mapping[int, Row]) -> bool:
    """Whether these are the same policies, made with as many steps and samples."""
    shown = ("metrics", "gradient_steps", "samples_drawn")
    of = [{seed: [row[key] for key in shown] for seed, row in rows.items()} for rows in (some, others)]
    return of[0] == of[1]


def _last_and_controls(rows: Iterable[Row]) -> Iterator[Row]:
    """BC, BC continued, the last policy of ReST, PPO."""
    rows = list(rows)
    improves = [row for row in rows if row["policy"] == "rest" and row["improve"] > 0]
    return (row for row in rows if row["policy"] != "rest" or row in improves[-1:])


def section(lines: list[Line], shown: tuple[Column, ...] = SHOWN) -> Section:
    """The table: means over seeds with their intervals, then what each number is."""
    columns = [column for column in shown if any(line.mean(column) for line in lines)]
    table = [["variant", "policy", "seeds", *(column.title for column in columns)]]
    for line in lines:
        cells = []
        for column in columns:
            row = line.mean(column)
            value, ends = ("", "") if row is None else _written(row, column)
            cells.append(f"{value} [{ends}]" if ends else value)
        table.append([", ".join(line.variants), line.label, " ".join(map(str, line.rows)), *cells])
    said = ["Means over seeds; in brackets Student's 95 % interval over seeds, of a single seed the one over sources."]
    return Section("Study", said, [table])


def console(lines: list[Line], shown: tuple[Column, ...] = TERMINAL, title: str = "Study") -> Table:
    """The table for a terminal: intervals under their numbers, without what the page has room for."""
    columns = [column for column in shown if any(line.mean(column) for line in lines)]
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("variant", overflow="fold", max_width=24)
    table.add_column("policy", overflow="fold", max_width=13)
    table.add_column("seeds")
    for column in columns:
        table.add_column(column.short, justify="right", no_wrap=True)
    for line in lines:
        cells = []
        for column in columns:
            row = line.mean(column)
            value, ends = ("", "") if row is None else _written(row, column)
            text = Text(value)
            if ends:
                text.append("\n" + re.sub(r"(?<![\d.])0\.", ".", ends), style="dim")
            cells.append(text)
        table.add_row(literal(", ".join(line.variants)), literal(line.label), " ".join(map(str, line.rows)), *cells)
    return table


def _written(row: Row, column: Column) -> tuple[str, str]:
    """The mean and its interval, which every column may have here."""
    value, ends = cell(row, column)
    found = interval(row, column.interval or "ci95")
    if found and not ends:
        ends = f"{found[0]:.{column.digits}f}–{found[1]:.{column.digits}f}"
    return value, ends


def figure(lines: list[Line]) -> Figure:
    """A panel a metric: every line's mean and interval, the seeds as small dots."""
    columns = [column for column in COLUMNS if column.key in DRAWN and any(line.mean(column) for line in lines)]
    with mpl.rc_context(STYLE):
        across = min(3, len(columns))
        down = -(-len(columns) // across)
        drawn = Figure(figsize=(WIDTH * 1.4, (0.3 * len(lines) + 0.9) * down), layout="constrained")
        panels = drawn.subplots(down, across, squeeze=False, sharey=True).ravel()
        for axes, column in zip(panels, columns, strict=False):
            for place, line in enumerate(lines):
                row = line.mean(column)
                if row is None:
                    continue
                seeds = [number(each, column.key) for each in line.rows.values()]
                axes.plot(seeds, [place] * len(seeds), ".", color=BLUE, alpha=0.4, markersize=4)
                if ends := interval(row, column.interval or "ci95"):
                    axes.hlines(place, *ends, color=BLUE, linewidth=1.4)
                axes.plot(number(row, column.key), place, "o", color=BLUE, markersize=5)
            axes.set(title=column.title, yticks=range(len(lines)), yticklabels=[line.name for line in lines])
            axes.grid(axis="x", color="#e6e6e6")
            axes.set_ylim(len(lines) - 0.5, -0.5)
        for axes in panels[len(columns) :]:
            axes.set_visible(False)
    return drawn
