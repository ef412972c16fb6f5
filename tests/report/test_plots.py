"""Figures draw what was measured, and their SVG stands in a page by itself."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rest.report import plots


def row(policy: str, grow: int, improve: int, **metrics: Any) -> dict[str, Any]:
    return {
        "policy": policy,
        "grow": grow,
        "improve": improve,
        "decode": "sample",
        "split": "test",
        "metrics": metrics,
    }


def rows() -> list[dict[str, Any]]:
    found = [row("bc", 0, 0, reward_mean=0.70, reward_ci95=[0.69, 0.71], bleu=30.0)]
    found += [row("bc_continued", 0, 0, reward_mean=0.701, reward_ci95=None, bleu=30.1)]
    for grow, improve, reward in ((1, 0, 0.72), (1, 1, 0.75), (2, 1, 0.8)):
        found.append(
            row(
                "rest",
                grow,
                improve,
                reward_mean=reward,
                reward_ci95=[reward - 0.01, reward + 0.01],
                bleu=31.0,
            )
        )
    return found


def stage(improve: int, best: int = 20) -> dict[str, Any]:
    curve = [[0, 0.6], [10, 0.65], [20, 0.7], [30, 0.68]]
    return {"grow": 1, "improve": improve, "threshold": 0.5, "best_step": best, "dev_reward": curve}


def texts(drawing: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", drawing)


def test_reward_steps_names_every_policy_and_step() -> None:
    figure = plots.reward_steps(rows())
    assert figure is not None
    found = texts(plots.svg(figure, "reward", "Reward"))
    assert {"BC", "BC continued", "ReST", "G1 I0", "G1 I1", "G2 I1", "reward (samples), test"} <= set(found)
    (axes,) = figure.axes
    chain = max(axes.lines, key=lambda line: len(line.get_xdata()) * (line.get_linestyle() == "-"))
    assert list(chain.get_ydata()) == [0.75, 0.8]  # the side branch is not part of the chain


def test_held_out_steps_draws_only_what_was_measured() -> None:
    figure = plots.held_out_steps(rows())
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["BLEU, greedy, test"]
    assert plots.held_out_steps([row("rest", 1, 1, reward_mean=0.5, gold_mean=None)]) is None


def test_without_rest_there_is_no_figure() -> None:
    assert plots.reward_steps(rows()[:2]) is None
    assert plots.dev_rewards([]) is None
    assert plots.dev_rewards([{"grow": 1, "improve": 1}]) is None


def test_names_at_the_edge_do_not_cover_one_another() -> None:
    figure = plots.reward_steps(rows())
    assert figure is not None
    heights = sorted(text.get_position()[1] for text in figure.axes[0].texts)
    assert min(np.diff(heights)) > 0.04


@pytest.mark.parametrize("stages", [1, 4, 6])
def test_dev_rewards_marks_the_kept_checkpoint(stages: int) -> None:
    figure = plots.dev_rewards([stage(improve) for improve in range(1, stages + 1)])
    assert figure is not None
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == stages
    dot = shown[0].lines[1]
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (20, 0.7)
    assert shown[0].get_title(loc="left") == "G1 I1, τ = 0.5"


def test_dev_rewards_of_one_checkpoint() -> None:
    figure = plots.dev_rewards([{"grow": 1, "improve": 1, "dev_reward": [[0, 0.5]], "best_step": 0}])
    assert figure is not None
    assert "0.500" in texts(plots.svg(figure, "dev", "Dev"))


@settings(max_examples=5, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50))
def test_histogram_counts_every_row(rewards: list[float]) -> None:
    figure = plots.reward_histogram(np.array(rewards, np.float32), [("I1", 0.5)])
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == len(rewards)


def test_histogram_tells_the_share_above_each_threshold() -> None:
    figure = plots.reward_histogram(np.linspace(0, 1, 101, dtype=np.float32), [("I2", 0.9), ("I1", 0.505)])
    assert [text.get_text() for text in figure.axes[0].texts] == [
        "I1: τ = 0.505, keeps 49.5%",
        "I2: τ = 0.9, keeps 9.9%",
    ]
    assert len(plots.reward_histogram(np.zeros(3, np.float32), []).axes[0].texts) == 0


def test_svg_is_well_formed_escaped_and_self_contained() -> None:
    named = [*rows(), row("<script>$x$", 0, 0, reward_mean=0.73)]
    figure = plots.reward_steps(named)
    assert figure is not None
    drawing = plots.svg(figure, "one", 'a "caption" & <more>')
    root = ElementTree.fromstring(drawing)
    assert root.tag.endswith("svg") and "width" not in root.attrib
    assert "<script" not in drawing
    assert "&lt;script&gt;$x$" in drawing
    assert not re.search(r'(?<!xmlns)(?<!xmlns:xlink)="https?:', drawing)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", drawing)
    assert all(name.startswith("one-") for name in re.findall(r'\bid="([^"]*)"', drawing))
    ids = set(re.findall(r'\bid="([^"]*)"', drawing))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', drawing)) <= ids


def test_the_same_figure_gives_the_same_bytes() -> None:
    once, twice = (plots.svg(plots.reward_steps(rows()), "a", "b") for _ in range(2))
    assert once == twice


def test_reward_is_drawn_against_variety_with_bc_at_lower_temperatures() -> None:
    named = [
        each | {"metrics": each["metrics"] | {"distinct_per_source": 3.0 - k / 4}} for k, each in enumerate(rows())
    ]
    named.append(row("bc", 0, 0, reward_mean=0.73, distinct_per_source=2.0) | {"temperature": 0.5})
    for each in named[:-1]:
        each["metrics"]["kl_to_bc"] = 1.0
    figure = plots.reward_against(named)
    assert figure is not None
    varied, far = figure.axes
    assert varied.get_xlabel() == "distinct per source" and far.get_xlabel() == "KL to BC (nats)"
    shown = [{text.get_text() for text in axes.texts} for axes in (varied, far)]
    assert "BC, T = 0.5" in shown[0] and "BC, T = 0.5" not in " ".join(shown[1])
