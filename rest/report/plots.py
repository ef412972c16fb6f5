"""A run's curves as matplotlib figures, and those as SVG that stands in a page by itself.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; names stand beside the series, not in
a legend.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rest.folder import StageName
from rest.report.tables import BY_KEY, Column, Row, interval, label, number, of_split, whole

BLUE, ORANGE, GREEN, PURPLE, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#767676", "#333333"
COLOURS = {"rest": BLUE, "bc": GREY, "ppo": GREEN, "reference": PURPLE}
COLOURS |= dict.fromkeys(("bc_continued", "bc_continued_last"), ORANGE)
REWARD = BY_KEY["reward_mean"]
HELD_OUT = BY_KEY["bleu"], BY_KEY["chrf"], BY_KEY["gold_greedy_mean"]
AGAINST = BY_KEY["distinct_per_source"], BY_KEY["kl_to_bc"], BY_KEY["length_ratio"]
WIDTH = 8.4  # inches, the width of the page's column
STYLE = {
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # a policy's name may hold a dollar sign
    "axes.edgecolor": "#aaaaaa",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": "#e6e6e6",
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "svg.fonttype": "none",  # text stays text: readable aloud, selectable and small
    "svg.hashsalt": "rest",  # the same figure gives the same bytes
}


def reward_steps(rows: list[Row], split: str = "test") -> Figure | None:
    """Mean reward of samples at each (g, i) with its interval, baselines as lines with bands, or None."""
    return _step_figure(rows, split, (REWARD,), height=3.5)


def shipped(found: Sequence[Shipped]) -> Figure | None:
    """A panel a metric: how far the last policy's outputs are from those of each baseline, with paired intervals."""
    titles = list(dict.fromkeys(each.title for each in found))
    if not titles:
        return None
    across = min(3, len(titles))
    down = math.ceil(len(titles) / across)
    baselines = list(dict.fromkeys(each.baseline for each in found))
    with mpl.rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure = Figure(figsize=(WIDTH, (0.62 + 0.26 * len(baselines)) * down), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
        for axes, title in zip(panels, titles, strict=False):
            axes.axvline(0, color=INK, linewidth=1)
            for each in (each for each in found if each.title == title):
                place = baselines.index(each.baseline)
                colour = GREEN if each.low > 0 else ORANGE if each.high < 0 else GREY
                axes.hlines(place, each.low, each.high, color=colour, linewidth=2.2)
                axes.plot(each.difference, place, "o", color=colour, markersize=6)
            axes.set(title=title, yticks=range(len(baselines)), yticklabels=[f"against {name}" for name in baselines])
            axes.set_ylim(len(baselines) - 0.5, -0.5)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.margins(x=0.12)
        for axes in panels[len(titles) :]:
            axes.set_visible(False)
    return figure


class Shipped(NamedTuple):
    """A difference of a metric of what a user sees: what the last policy has more than a baseline."""

    title: str
    baseline: str
    difference: float
    low: float
    high: float


def held_out_steps(rows: list[Row], split: str = "test") -> Figure | None:
    """BLEU, chrF and gold of greedy outputs at the same steps, as many side by side as were measured; or None."""
    return _step_figure(rows, split, HELD_OUT, height=2.9)


def reward_against(rows: list[Row], split: str = "test") -> Figure | None:
    """Mean reward of samples against how much they differ, with BC at lower temperatures, against the KL to BC and
    against the length ratio; ReST's chain joined. None without ReST."""
    rows = [row for row in of_split(rows, split) if (row.get("decode") or "sample") == "sample"]
    rows = [row for row in rows if number(row, REWARD.key) is not None and row["policy"] != "reference"]
    policies = whole(rows)
    shown = [column for column in AGAINST if all(number(row, column.key) is not None for row in policies)]
    if not shown or not any(row["policy"] == "rest" for row in rows):
        return None
    chain = [row for row in policies if row["policy"] == "rest" and row["improve"] > 0]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
        for axes, column in zip(figure.subplots(1, len(shown), squeeze=False, sharey=True)[0], shown, strict=True):

            def place(row: Row, column: Column = column) -> tuple[float, float]:
                x, y = number(row, column.key), number(row, REWARD.key)
                assert x is not None and y is not None  # only rows with both are here
                return x, y

            axes.plot(*np.array([place(row) for row in chain]).reshape(-1, 2).T, color=BLUE, linewidth=1.2)
            names: dict[tuple[float, float], list[str]] = {}  # a policy that kept its start lies on it
            for row in (row for row in rows if number(row, column.key) is not None):
                colour = COLOURS.get(row["policy"], INK)
                branch = row.get("temperature") is not None or (row["policy"] == "rest" and row["improve"] == 0)
                x, y = place(row)
                names.setdefault((x, y), []).append(label(row))
                if ends := interval(row, REWARD.interval):
                    axes.vlines(x, *ends, color=colour, linewidth=1.2, alpha=0.5)
                axes.plot(x, y, "o", color=colour, markersize=5.5, markerfacecolor="white" if branch else colour)
            for at, here in names.items():
                axes.annotate(", ".join(here), at, (6, 3), textcoords="offset points", color=INK, fontsize=8)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.set_xlabel(column.title)
            axes.margins(x=0.2)
        figure.supylabel(REWARD.title, fontsize=9.5)
    return figure


def dev_rewards(stages: list[dict[str, Any]]) -> Figure | None:
    """The score on dev during each Improve, one panel a stage, a dot on the checkpoint that was kept.

    `stages` are the results of the Improve steps, in order. None if no stage has a curve.
    """
    stages = [stage for stage in stages if stage.get("dev_reward")]
    if not stages:
        return None
    with mpl.rc_context(STYLE):
        columns = min(4, len(stages))
        lines = math.ceil(len(stages) / columns)
        figure = Figure(figsize=(WIDTH, 2.1 * lines + 0.3), layout="constrained")
        grid = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
        for axes, stage in zip(grid, stages, strict=False):
            steps, rewards = np.asarray(stage["dev_reward"], dtype=float).T
            axes.plot(steps, rewards, color=BLUE, linewidth=1.6, marker="." if len(steps) < 3 else "")
            best = int(np.argmin(np.abs(steps - stage["best_step"]))) if "best_step" in stage else None
            if best is not None:
                axes.plot(steps[best], rewards[best], "o", color=ORANGE, markersize=5.5)
                axes.annotate(
                    f"{rewards[best]:.3f}", (steps[best], rewards[best]), (0, 6), color=ORANGE,
                    textcoords="offset points", ha=_side(steps[best], steps), fontsize=8.5,
                )  # fmt: skip
            name = StageName("improve", stage["grow"], stage["improve"])
            axes.set_title(name.label + _threshold_title(stage.get("threshold")))
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.margins(x=0.04, y=0.18)
        for axes in grid[len(stages) :]:
            axes.set_visible(False)
        figure.supxlabel("gradient steps", fontsize=9.5)
        figure.supylabel("score on dev", fontsize=9.5)
    return figure


def reward_histogram(rewards: np.ndarray, thresholds: list[tuple[str, float]]) -> Figure:
    """How the rewards [rows] of a Grow step are spread, and the share above each threshold (name, τ)."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.subplots()
        counts, edges = np.histogram(rewards, bins=60, range=(0.0, 1.0))
        lowest = min((tau for _, tau in thresholds), default=-math.inf)
        colours = [BLUE if left >= lowest else "#c9c9c9" for left in edges[:-1]]
        axes.bar(
            edges[:-1],
            counts,
            width=np.diff(edges),
            align="edge",
            color=colours,
            edgecolor="white",
            linewidth=0.4,
        )
        top = counts.max() * (1.08 + 0.11 * len(thresholds))
        for rank, (name, tau) in enumerate(sorted(thresholds, key=lambda item: item[1])):
            height = top - counts.max() * 0.11 * (rank + 0.5)
            axes.vlines(tau, 0, height, color=ORANGE, linewidth=1.3)
            right = tau > 0.78
            text = f"{name}: τ = {tau:.3g}, keeps {np.mean(rewards > tau):.1%}"
            axes.annotate(
                text,
                (tau, height),
                (-4 if right else 4, 0),
                textcoords="offset points",
                va="center",
                ha="right" if right else "left",
                color=ORANGE,
                fontsize=8.5,
                bbox={
                    "facecolor": "white",
                    "edgecolor": "none",
                    "pad": 1,
                },  # over the lines of other thresholds
            )
        axes.set(xlim=(0, 1), ylim=(0, top or 1), xlabel="reward", ylabel="rows")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure


def svg(figure: Figure, name: str, description: str) -> Markup:
    """A figure as an inline <svg> element without prolog, metadata or size; its ids begin with `name`."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context(STYLE):
        figure.savefig(out, format="svg", metadata=nothing, transparent=True)
    text = out.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\1{name}-", text)
    text = re.sub(r"(font(?:-family)?:[^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1system-ui, sans-serif", text)
    head, _, drawing = text.partition(">")
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    named = Markup(' role="img" aria-label="{0}">\n <title>{0}</title>').format(description)
    return Markup(head) + named + Markup(drawing)


def _step_figure(rows: list[Row], split: str, columns: tuple[Column, ...], height: float) -> Figure | None:
    """One panel a column that any ReST row has: the steps from left to right, the other policies as lines."""
    rows = whole(of_split(rows, split))
    steps = [row for row in rows if row["policy"] == "rest"]
    shown = [column for column in columns if any(number(row, column.key) is not None for row in steps)]
    if not shown:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        for axes, column in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            _steps(axes, steps, [row for row in rows if row["policy"] != "rest"], column, small=len(shown) > 1)
            axes.set_title(column.title if len(shown) > 1 else f"{column.title}, {split}")
    return figure


def _steps(axes: Axes, steps: list[Row], others: list[Row], column: Column, small: bool) -> None:
    """One panel: points with intervals, joined; lines with bands; names at the right edge."""
    names: list[tuple[float, str, str]] = []  # height, text, colour
    for row in others:
        value, ends = number(row, column.key), interval(row, column.interval)
        if value is None:
            continue
        colour = COLOURS.get(row["policy"], INK)
        axes.axhline(value, color=colour, linewidth=1.3, linestyle=":" if row["policy"] == "reference" else "--")
        if ends:
            axes.axhspan(*ends, color=colour, alpha=0.13, linewidth=0)
        names.append((value, label(row), colour))
    places = range(len(steps))
    chain: list[tuple[int, float]] = []  # the side branches (I0) stand beside the chain of Improve steps
    for place, row in zip(places, steps, strict=True):
        value, ends = number(row, column.key), interval(row, column.interval)
        if value is None:
            continue
        branch = row["improve"] == 0
        if ends:
            axes.vlines(place, *ends, color=BLUE, linewidth=1.6, alpha=0.8)
        axes.plot(place, value, "o", color=BLUE, markersize=6, markerfacecolor="white" if branch else BLUE, zorder=3)
        if not branch:
            chain.append((place, value))
    axes.plot(*np.array(chain).reshape(-1, 2).T, color=BLUE, linewidth=1.4)
    if chain:
        names.append((chain[-1][1], "ReST", BLUE))
    ticks = [label(row).replace(" ", "\n") if small or len(steps) > 9 else label(row) for row in steps]
    every = 1 + len(steps) // 10 if small else 1  # so that the ticks of a narrow panel do not run together
    axes.set_xticks(places[::every], ticks[::every])
    axes.set_xlim(-0.5, len(steps) - 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(5 if small else 6))
    axes.grid(False, axis="x")
    for place in places[1:]:
        if steps[place]["grow"] != steps[place - 1]["grow"]:
            axes.axvline(place - 0.5, color="#cccccc", linewidth=0.8)
    name_at_edge(axes, names, fontsize=8.0 if small else 9.0)


def name_at_edge(axes: Axes, names: list[tuple[float, str, str]], fontsize: float) -> None:
    """Writes each name at its height right of the axes, moved apart so that none covers another."""
    lo, hi = axes.get_ylim()
    rows = spec.nrows if (spec := axes.get_gridspec()) else 1
    figure_height = axes.figure.get_figheight() * 72 * 0.75 / rows  # points the axes roughly have
    gap = 1.25 * fontsize / figure_height
    names = sorted(names)
    heights = np.array([(value - lo) / (hi - lo) for value, _, _ in names])
    for _ in range(200):
        distances = np.diff(heights)
        close = np.flatnonzero(distances < gap - 1e-6)
        if not len(close):
            break
        push = (gap - distances[close[0]]) / 2
        heights[close[0]] -= push
        heights[close[0] + 1] += push
    for height, (_, text, colour) in zip(heights, names, strict=True):
        axes.text(
            1.015, height, text, transform=axes.transAxes, color=colour, va="center", fontsize=fontsize,
            fontweight="bold" if text == "ReST" else "normal",
        )  # fmt: skip


def _side(at: float, steps: np.ndarray) -> str:
    """Which way the text of a dot runs, so that it stays inside its panel."""
    share = (at - steps.min()) / max(float(np.ptp(steps)), 1.0)
    return "left" if share < 0.25 else "right" if share > 0.75 else "center"


def _threshold_title(threshold: object) -> str:
    return f", τ = {threshold:.3g}" if isinstance(threshold, (int, float)) and math.isfinite(threshold) else ""
