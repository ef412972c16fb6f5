"""Figures 3 to 6 of the ReST paper (Gulcehre et al. 2023, arXiv 2308.08998), of experiments side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from rest.folder import StageName, read_json
from rest.report.best_of_n import TITLES, PolicyCurves, read_curves, shown_n
from rest.report.plots import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, REWARD, WIDTH, name_at_edge
from rest.report.tables import Row, interval, number, stage_of, whole

BC, CONTINUED, PPO = StageName("bc"), StageName("bc_continued"), StageName("ppo")
BASELINES = {BC: GREY, CONTINUED: ORANGE, PPO: GREEN}
SERIES = (BLUE, ORANGE, GREEN, PURPLE, "#56B4E9", "#E69F00", INK)  # Okabe and Ito's


class Point(NamedTuple):
    """The reward of a policy."""

    mean: float
    of_seeds: dict[int, float]
    ends: tuple[float, float] | None  # of a single seed: its interval over sources


@dataclass(frozen=True)
class Variant:
    """One experiment: its runs by seed."""

    name: str
    settings: Mapping[str, Any]  # of the first seed
    runs: Mapping[int, Path]

    @property
    def title(self) -> str:
        return self.name if len(self.runs) == 1 else f"{self.name}, {len(self.runs)} seeds"

    @property
    def loss(self) -> Any:
        """Of Improve, as experiment.json describes it."""
        return (self.settings.get("improve") or {}).get("loss")

    @cached_property
    def rows(self) -> dict[int, list[Row]]:
        return {seed: read_json(run / "summary.json") for seed, run in self.runs.items()}

    @cached_property
    def values(self) -> dict[StageName, dict[int, float]]:
        """The mean reward of samples by seed, of every policy that has one, in a table's order."""
        found: dict[StageName, dict[int, float]] = {}
        for seed, rows in self.rows.items():
            for row in whole(rows):
                stage, value = stage_of(row), number(row, REWARD.key)
                if stage is not None and value is not None:
                    found.setdefault(stage, {})[seed] = value
        return {stage: found[stage] for stage in sorted(found, key=lambda stage: stage.order)}

    @cached_property
    def points(self) -> dict[StageName, Point]:
        """What figures show: the policies that all seeds have, so that means are of the same seeds."""
        rows = whole(next(iter(self.rows.values()))) if len(self.runs) == 1 else []
        ends = {stage_of(row): interval(row, REWARD.interval) for row in rows}
        return {
            stage: Point(float(np.mean([*of_seeds.values()])), of_seeds, ends.get(stage))
            for stage, of_seeds in self.values.items()
            if stage not in self.uneven
        }

    @property
    def uneven(self) -> list[StageName]:
        """The policies that some seeds have, and others do not."""
        most = max(map(len, self.values.values()), default=0)
        return [stage for stage, of_seeds in self.values.items() if len(of_seeds) < most]

    @property
    def way(self) -> list[StageName]:
        """The Improve steps that led to the last policy."""
        return [stage for stage in self.points if stage.on_the_way]

    def last_of(self, g: int) -> StageName | None:
        """The last Improve step of a Grow step."""
        return max((stage for stage in self.way if stage.g == g), key=lambda stage: stage.i, default=None)


def unlike(variants: Sequence[Variant]) -> list[str]:
    """The settings by which the rewards of these runs cannot be held against one another."""
    parts = ("corpus", "reward")
    return [part for part in parts if len({json.dumps(variant.settings.get(part)) for variant in variants}) > 1]


def _grid(down: int, across: int, height: float, share: bool = False) -> tuple[Figure, np.ndarray]:
    """A figure and its panels, [down, across], each so many inches high."""
    figure = Figure(figsize=(WIDTH, height * down), layout="constrained")
    return figure, figure.subplots(down, across, squeeze=False, sharey=share)


def _shades(count: int) -> list[str]:
    """From light to dark blue."""
    shades = mpl.colormaps["Blues"](np.linspace(0.55, 1.0, count))
    return [BLUE] if count == 1 else [mpl.colors.to_hex(shade) for shade in shades]


def _dot(axes: Axes, x: float, point: Point, colour: str, filled: bool = True) -> None:
    if point.ends:
        axes.vlines(x, *point.ends, color=colour, linewidth=1.5, alpha=0.8)
    axes.plot(x, point.mean, "o", color=colour, markersize=6, markerfacecolor=colour if filled else "white", zorder=4)


def _chain(axes: Axes, points: Mapping[float, Point], colour: str) -> None:
    """Points by x, their means joined, and each of several seeds as a thin line."""
    axes.plot([*points], [point.mean for point in points.values()], color=colour, linewidth=1.6, zorder=3)
    for x, point in points.items():
        _dot(axes, x, point, colour)
    seeds = {seed for point in points.values() if len(point.of_seeds) > 1 for seed in point.of_seeds}
    for seed in seeds:
        line = [(x, point.of_seeds[seed]) for x, point in points.items() if seed in point.of_seeds]
        axes.plot(*zip(*line, strict=True), ".-", color=colour, linewidth=0.9, markersize=4, alpha=0.45)


def by_improve(variants: Sequence[Variant]) -> Figure | None:
    """Figure 3: a panel an experiment, a line a Grow step, BC at the left; BC continued and PPO dashed."""
    shown = [variant for variant in variants if variant.way]
    if not shown:
        return None
    across = min(3, len(shown))
    figure, panels = _grid(math.ceil(len(shown) / across), across, 3.0 if len(shown) <= 3 else 2.3, not unlike(shown))
    improves = [stage.i for variant in shown for stage in variant.points if stage.kind == "improve"]
    start, names = min(improves) - 1.0, list[list[tuple[float, str, str]]]()
    for axes, variant in zip(panels.ravel(), shown, strict=False):
        points, named = variant.points, list[tuple[float, str, str]]()
        for stage in (stage for stage in (CONTINUED, PPO) if stage in points):
            axes.axhline(points[stage].mean, color=BASELINES[stage], linewidth=1.2, linestyle="--")
            named.append((points[stage].mean, stage.label, BASELINES[stage]))
        grows = sorted({stage.g for stage in variant.way})
        for g, colour in zip(grows, _shades(len(grows)), strict=True):
            chain = {start: points[BC]} if g == 1 and BC in points else {}
            chain |= {float(stage.i): points[stage] for stage in variant.way if stage.g == g}
            _chain(axes, chain, colour)
            named.append(([*chain.values()][-1].mean, f"G{g}", colour))
            if side := points.get(StageName("improve", g, 0)):
                _dot(axes, 0.0, side, colour, filled=False)
        if BC in points:
            axes.plot(start, points[BC].mean, "o", color=GREY, markersize=6.5, zorder=5)
        steps = range(min(improves), max(improves) + 1)
        axes.set_xticks([start, *steps], ["BC", *(f"I{i}" for i in steps)])
        axes.set(xlim=(start - 0.4, steps[-1] + 0.4), title=variant.title)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        names.append(named)
    for axes, named in zip(panels.ravel(), names, strict=False):  # only now, for all panels may share their height
        name_at_edge(axes, named, fontsize=8.0)
    for axes in panels.ravel()[len(shown) :]:
        axes.set_visible(False)
    figure.supylabel(REWARD.title, fontsize=9.5)
    return figure


def by_grow(variants: Sequence[Variant]) -> Figure | None:
    """Figure 4: a line an experiment, BC and then the last policy of each Grow step; BC continued dashed."""
    most = max((stage.g for variant in variants for stage in variant.way), default=0)
    if most < 2:
        return None
    shown, named = [variant for variant in variants if variant.way], list[tuple[float, str, str]]()
    figure, ((axes,),) = _grid(1, 1, 3.4)
    for place, variant in enumerate(shown):
        colour = SERIES[place % len(SERIES)]
        stages = [BC, *filter(None, map(variant.last_of, range(1, most + 1)))]
        aside = 0.03 * (place - (len(shown) - 1) / 2)  # so that intervals do not cover one another
        chain = {stage.g + aside: variant.points[stage] for stage in stages if stage in variant.points}
        _chain(axes, chain, colour)
        named.append(([*chain.values()][-1].mean, variant.title, colour))
        if CONTINUED in variant.points:
            height = variant.points[CONTINUED].mean
            axes.axhline(height, color=colour, linewidth=1, linestyle="--", alpha=0.6)
            named += [(height, CONTINUED.label, colour)] if len(shown) == 1 else []
    axes.set_xticks(range(most + 1), ["BC", *(f"G{g}" for g in range(1, most + 1))])
    axes.set(xlim=(-0.3, most + 0.3), ylabel=REWARD.title)
    name_at_edge(axes, named, fontsize=8.5)
    return figure


def by_loss(variants: Sequence[Variant]) -> Figure | None:
    """Figure 5: a line an experiment, the best first: the last Improve step of Grow 1, beside its BC."""
    found = [(variant, variant.points[last]) for variant in variants if (last := variant.last_of(1))]
    if len({json.dumps(variant.loss) for variant, _ in found}) < 2:
        return None
    found.sort(key=lambda each: -each[1].mean)
    figure, ((axes,),) = _grid(1, 1, 0.9 + 0.3 * len(found))
    for stage in (BC, CONTINUED):
        line = [(v.points[stage].mean, place) for place, (v, _) in enumerate(found) if stage in v.points]
        if line:
            axes.plot(*zip(*line, strict=True), "o", color=BASELINES[stage], markersize=5, label=stage.label)
    for seed in {seed for _, point in found if len(point.of_seeds) > 1 for seed in point.of_seeds}:
        line = [(point.of_seeds[seed], place) for place, (_, point) in enumerate(found) if seed in point.of_seeds]
        axes.plot(*zip(*line, strict=True), ".-", color=BLUE, linewidth=0.9, markersize=4, alpha=0.45)
    for place, (_, point) in enumerate(found):
        if point.ends:
            axes.hlines(place, *point.ends, color=BLUE, linewidth=1.8, alpha=0.8)
    means = [point.mean for _, point in found]
    axes.plot(means, range(len(found)), "o", color=BLUE, markersize=7, label="last Improve step of G1")
    axes.set_yticks(range(len(found)), [_with_loss(variant) for variant, _ in found])
    axes.set(ylim=(len(found) - 0.5, -0.5), xlabel=REWARD.title)
    axes.grid(axis="x", color="#e6e6e6")
    figure.legend(loc="outside upper right", ncols=3, frameon=False, fontsize=8.5)
    return figure


def _with_loss(variant: Variant) -> str:
    """NLL-0.001; BVMPO, 3 seeds: Anchored(VMPO)."""

    def name(loss: Any) -> str:
        if not isinstance(loss, dict):
            return str(loss)
        inner = ", ".join(name(part) for part in loss.values() if isinstance(part, dict) and "type" in part)
        return str(loss.get("type")).rpartition(".")[2] + (f"({inner})" if inner else "")

    return variant.title if name(variant.loss) in variant.name else f"{variant.title}: {name(variant.loss)}"


def by_n(variants: Sequence[Variant]) -> Figure | None:
    """Figure 6: a row an experiment, a panel a metric, a line a policy; N on a logarithmic axis."""
    drawn: dict[str, dict[StageName, list[PolicyCurves]]] = {}
    for variant in variants:
        for policy in (policy for run in variant.runs.values() for policy in read_curves(run)):
            name = CONTINUED if policy.name.kind == CONTINUED.kind else policy.name  # whatever its steps
            drawn.setdefault(variant.title, {}).setdefault(name, []).append(policy)
    if not drawn:
        return None
    everyone = [policy for policies in drawn.values() for of_seeds in policies.values() for policy in of_seeds]
    metrics = [metric for metric in TITLES if any(metric in policy.curves for policy in everyone)]
    figure, panels = _grid(len(drawn), len(metrics), 3.0)
    for line, (title, policies) in zip(panels, drawn.items(), strict=True):
        steps = [name for name in policies if name.kind == "improve"]
        colours = BASELINES | dict(zip(steps, _shades(len(steps)), strict=True))
        for axes, metric in zip(line, metrics, strict=True):
            named, most = list[tuple[float, str, str]](), 1
            for name, of_seeds in policies.items():
                curves = [policy.curves[metric] for policy in of_seeds if metric in policy.curves]
                if not curves:
                    continue
                least = min(len(curve.mean) for curve in curves)
                n, each = np.arange(1, least + 1), np.array([curve.mean[:least] for curve in curves])
                mean, colour = each.mean(axis=0), colours.get(name, INK)
                axes.plot(n, mean, color=colour, linewidth=1.6, zorder=3)
                if len(curves) == 1:
                    axes.fill_between(n, *curves[0].ci95, color=colour, alpha=0.15, linewidth=0)
                else:
                    axes.plot(n, each.T, color=colour, linewidth=0.9, alpha=0.45)
                named.append((float(mean[-1]), name.label, colour))
                most = max(most, least)
            ticks = shown_n(most)[:: 1 + most.bit_length() // 6]
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [str(n) for n in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_title(TITLES[metric] if len(variants) == 1 else f"{title}: {TITLES[metric]}")
            name_at_edge(axes, named, fontsize=8.0)
    figure.supxlabel("N, samples that the reward chooses from", fontsize=9.5)
    return figure
