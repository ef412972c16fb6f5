"""What experiments wrote in experiments/results/*.json, and how a number, a table and a difference are written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent.parent / "experiments" / "results"
Metrics = dict[str, Any]


def read(name: str) -> dict[str, Any]:
    """experiments/results/NAME.json."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


# How a number is written


def number(x: float, digits: int = 3, signed: bool = False) -> str:
    """With a true minus, and with a plus where it is a difference."""
    return f"{round(x, digits) + 0.0:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def interval(lo: float, hi: float, digits: int = 3) -> str:
    """An end just below 0 is −0.0, for 0 is then within."""
    return f"[{lo:.{digits}f}, {hi:.{digits}f}]".replace("-", "−")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def with_interval(metrics: Metrics, name: str, digits: int) -> str:
    """A metric, and its interval where one was recorded."""
    if metrics.get(name) is None:
        return ""
    limits = metrics.get(f"{name.removesuffix('_mean')}_ci95")
    return number(metrics[name], digits) + (f" {interval(*limits, digits)}" if limits else "")


def over_seeds(found: Sequence[Metrics], name: str, digits: int) -> str:
    """The mean, and the seeds in brackets."""
    values = [metrics.get(name) for metrics in found]
    if not values or None in values:
        return ""
    seeds = " ".join(number(x, digits).removeprefix("0" if digits > 1 else "") for x in values)
    return f"{number(float(np.mean(values)), digits)} ({seeds})"


def difference(pair: Metrics, name: str, digits: int) -> str:
    """A paired difference with its interval."""
    found = pair[name]
    return f"{number(found['difference'], digits, signed=True)} {interval(found['lo'], found['hi'], digits)}"


# Rows of a summary.json


def of(rows: Sequence[dict[str, Any]], policy: str, improve: int = 0, **more: Any) -> Metrics | None:
    """The metrics of one row of summary.json."""
    want = {"policy": policy, "improve": improve, "decode": "sample", "temperature": None, **more}
    for row in rows:
        if all(row.get(key) == value for key, value in want.items()):
            return row["metrics"]
    return None


def control(rows: Sequence[dict[str, Any]]) -> tuple[Metrics, str]:
    """BC continued: of the policy that dev chose and the last, the one with more greedy BLEU, and how it is named."""
    chosen, last = of(rows, "bc_continued"), of(rows, "bc_continued_last")
    assert chosen is not None
    return (last, "-last") if last is not None and last["bleu"] > chosen["bleu"] else (chosen, "")


GAINS = (("reward_mean", 3), ("gold_mean", 3), ("gold_greedy_mean", 3), ("bleu", 1))
HEAD = ["reward", "gold of samples", "gold, greedy", "BLEU, greedy"]


def differences(cells: dict[str, Any], policy: str, **more: Any) -> dict[str, list[float]]:
    """What a policy has more than BC of the same seed, by metric: a number each seed."""
    found: dict[str, list[float]] = {key: [] for key, _ in GAINS}
    for cell in cells.values():
        rows = [row for row in cell["rows"] if row["policy"] == policy and row["decode"] == "sample"]
        rows = [row for row in rows if all(row.get(key) == value for key, value in more.items())]
        if not rows:  # BC continued's last policy is its chosen one
            rows = [row for row in cell["rows"] if row["policy"] == "bc_continued"]
        last, start = max(rows, key=lambda row: (row["grow"], row["improve"]))["metrics"], of(cell["rows"], "bc")
        assert start is not None
        for key, values in found.items():
            values += [last[key] - start[key]] if key in last else []
    return found


def gains(cells: dict[str, Any], policy: str, **more: Any) -> list[str]:
    """Those differences as a table has them: the mean, and in brackets each seed."""
    shown, found = [], differences(cells, policy, **more)
    for key, digits in GAINS:
        values = [number(x, digits, signed=True) for x in found[key]]
        several = f" ({' '.join(values)})" if len(values) > 1 else ""
        shown.append(number(float(np.mean(found[key])), digits, signed=True) + several if values else "")
    return shown
