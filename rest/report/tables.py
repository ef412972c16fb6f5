"""A run's summary rows as tables for page, Markdown and terminal, and what they show in plain sentences."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rest.errors import UserError
from rest.folder import KINDS, StageName
from rest.statistics.intervals import LEAST_SOURCES

Row = dict[str, Any]  # one row of summary.json

SPLITS = ("test", "dev")  # what is reported, the better evidence first


@dataclass(frozen=True)
class Column:
    """One column: where its number and interval stand in a row, and how it is written."""

    title: str
    short: str  # for the terminal
    key: str  # in "metrics", or in the row itself
    digits: int
    interval: str | None = None  # in "metrics": [lo, hi]
    best: Callable[[Iterable[float]], float] | None = None  # max or min; None where neither end is the better one


COLUMNS = (  # what a user ships first, by what nothing was trained on
    Column("BLEU, greedy", "BLEU", "bleu", 1, "bleu_ci95", max),
    Column("chrF, greedy", "chrF", "chrf", 1, "chrf_ci95", max),
    Column("gold, greedy", "gold\ngreedy", "gold_greedy_mean", 3, "gold_greedy_ci95", max),
    Column("BLEU, beam", "BLEU\nbeam", "bleu_beam", 1, "bleu_beam_ci95", max),
    Column("chrF, beam", "chrF\nbeam", "chrf_beam", 1, "chrf_beam_ci95", max),
    Column("reward (samples)", "reward", "reward_mean", 3, "reward_ci95", max),
    Column("first reward (samples)", "first\nreward", "first_reward_mean", 3, "first_reward_ci95", max),
    Column("gold (samples)", "gold", "gold_mean", 3, "gold_ci95", max),
    Column("judge (samples)", "judge", "judge_mean", 3, "judge_ci95"),
    Column("share above the judge's limit", "above\nlimit", "judge_above_mean", 3, "judge_above_ci95"),
    Column("distinct per source", "dist-\ninct", "distinct_per_source", 1),
    Column("length ratio", "length\nratio", "length_ratio", 2),
    Column("KL to BC (nats)", "KL to\nBC", "kl_to_bc", 1, "kl_to_bc_ci95"),
    Column("steps", "steps", "gradient_steps", 0),
    Column("samples drawn", "samples\ndrawn", "samples_drawn", 0),
    Column("wall s", "wall s", "wall_s", 0),
)
DECODING_COLUMNS = (
    Column("reward, greedy", "greedy", "reward_greedy_mean", 3, "reward_greedy_ci95", max),
    Column("reward, beam", "beam", "reward_beam_mean", 3, "reward_beam_ci95", max),
    Column("gold, beam", "gold\nbeam", "gold_beam_mean", 3, "gold_beam_ci95", max),
    Column("judge, greedy", "judge\ngreedy", "judge_greedy_mean", 3, "judge_greedy_ci95", max),
    Column("judge, beam", "judge\nbeam", "judge_beam_mean", 3, "judge_beam_ci95", max),
)
TEXT_COLUMNS = (
    Column("TER, greedy (less is better)", "TER", "ter", 1, "ter_ci95", min),
    Column("copies", "copies", "copy_rate", 3),
    Column("empty", "empty", "empty_rate", 3),
    Column("repeated trigrams", "repeats", "repeated_trigrams", 3),
    Column("distinct-1 of samples", "dist-1", "distinct_1", 3),
    Column("distinct-2 of samples", "dist-2", "distinct_2", 3),
    Column("self-BLEU of samples", "self-\nBLEU", "self_bleu", 1),
    Column("entropy (nats per sentence)", "entropy", "entropy", 1, "entropy_ci95"),
    Column("KL to the step before (nats)", "KL to\nbefore", "kl_to_previous", 2, "kl_to_previous_ci95"),
)
BY_KEY = {column.key: column for column in (*COLUMNS, *DECODING_COLUMNS, *TEXT_COLUMNS)}


def stage_of(row: Row) -> StageName | None:
    """The stage that a row's policy is of: ReST's are Improve steps; None for the references and what is not ours."""
    policy = row["policy"]
    if policy == "rest":
        return StageName("improve", row["grow"], row["improve"])
    return StageName(policy) if policy in KINDS else None


def label(row: Row) -> str:
    """The name of a row: "BC", "BC continued", "G1 I2", "PPO", "BC, best of 8", "BC, T = 0.5"."""
    policy, decode, stage = str(row["policy"]), row.get("decode") or "sample", stage_of(row)
    if stage is not None:
        name = stage.label
    else:
        name = "Reference" if policy == "reference" else policy.replace("_", " ")
    if decode == "best_of_n":
        return f"{name}, best of {row.get('n')}"
    if decode == "mbr":
        return f"{name}, MBR of {row.get('n')}"
    if decode == "sample":
        return name if row.get("temperature") is None else f"{name}, T = {row['temperature']:g}"
    return f"{name}, {decode}"


def whole(rows: list[Row]) -> list[Row]:
    """The rows of whole evaluations: a policy's samples, greedy and beam outputs, and no other decodings of it."""
    return [row for row in rows if (row.get("decode") or "sample") == "sample" and row.get("temperature") is None]


def of_split(rows: list[Row], split: str) -> list[Row]:
    """The rows of one split in a table's order: BC, BC continued, ReST by step, PPO, others, references."""

    def place(row: Row) -> tuple[int, ...]:
        stage = stage_of(row)
        return (0, *stage.order) if stage else (2 if row["policy"] == "reference" else 1,)

    found = sorted((row for row in rows if row["split"] == split), key=place)
    if not found:
        others = ", ".join(sorted({str(row["split"]) for row in rows})) or "none"
        raise UserError(f"the summary has no row of split {split!r}; the splits it has: {others}")
    return found


def number(row: Row, key: str) -> float | None:
    """A row's metric, or its own field, as a finite number; None where it is absent, null or NaN."""
    value = row["metrics"].get(key, row.get(key))
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def interval(row: Row, key: str | None) -> tuple[float, float] | None:
    """A row's interval (lo, hi), or None where it is absent, null, not two finite numbers, or of a few sources only."""
    if row.get("sources", LEAST_SOURCES) < LEAST_SOURCES:
        return None
    pair = row["metrics"].get(key) if key else None
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        return None
    if not all(isinstance(end, (int, float)) and math.isfinite(end) for end in pair):
        return None
    return float(pair[0]), float(pair[1])


def present(rows: list[Row], columns: tuple[Column, ...] = COLUMNS) -> list[Column]:
    """The columns that at least one row has a number for."""
    return [column for column in columns if any(number(row, column.key) is not None for row in rows)]


def cell(row: Row, column: Column) -> tuple[str, str]:
    """A number and its interval as text, each empty where there is none."""
    value, ends = number(row, column.key), interval(row, column.interval)
    if value is None:
        return "", ""
    text = f"{value:,.{column.digits}f}"
    if not float(text.replace(",", "")):
        text = text.removeprefix("-")  # an estimate just below zero
    return text, f"{ends[0]:.{column.digits}f}–{ends[1]:.{column.digits}f}" if ends else ""


def best(rows: list[Row], column: Column) -> str:
    """The best number of a column as its cells write it; empty where none is the better one."""
    found = [value for row in rows if (value := number(row, column.key)) is not None]
    if column.best is None or not found:
        return ""
    chosen = column.best(found)
    return next(cell(row, column)[0] for row in rows if number(row, column.key) == chosen)


def notes(rows: list[Row]) -> list[str]:
    """Footnotes: what chose policies on dev, and each different sacreBLEU signature once; others do not compare."""
    chosen: dict[str, list[str]] = {}
    for row in whole(rows):
        if row.get("chosen_by"):
            last = " (which is its last)" if row.get("last_is_chosen") else ""
            chosen.setdefault(row["chosen_by"], []).append(label(row) + last)
    by = "; ".join(f"{name}: {', '.join(policies)}" for name, policies in chosen.items())
    found = {f"Chosen on dev by {by}": None} if by else {}  # a set that keeps its order
    for key, name in (("bleu_signature", "BLEU"), ("chrf_signature", "chrF"), ("ter_signature", "TER")):
        for row in rows:
            if row["metrics"].get(key):
                found[f"{name}: {row['metrics'][key]}"] = None
    return list(found)


def markdown(rows: list[Row], split: str = "test", columns: tuple[Column, ...] = COLUMNS) -> str:
    """A Markdown table of one split, intervals in brackets and signatures as lines below it."""
    shown = present(of_split(rows, split), columns)
    rows = [row for row in of_split(rows, split) if any(cell(row, column)[0] for column in shown)]
    lines = [
        "| " + " | ".join(["policy", *(column.title for column in shown)]) + " |",
        "| --- |" + " ---: |" * len(shown),
    ]
    for row in rows:
        cells = [cell(row, column) for column in shown]
        texts = [f"{value} [{ends}]" if ends else value for value, ends in cells]
        lines.append("| " + " | ".join([markdown_text(label(row)), *texts]) + " |")
    below = [f"- {markdown_text(note)}" for note in notes(rows)]
    if any(cell(row, column)[1] for row in rows for column in shown):
        below.insert(0, "- In brackets: the 95% bootstrap interval over sources.")
    return "\n".join([*lines, "", *below]).rstrip() + "\n"


def console(rows: list[Row], split: str = "test") -> Table:
    """The same table for a terminal of about 110 columns: intervals under their numbers."""
    rows = of_split(rows, split)
    # there is no room for all; the report has them
    without = ("bleu_beam", "chrf_beam", "kl_to_bc")
    shown = [replace(column, interval=None) if column.key in without else column for column in present(rows)]
    left_out = ["judge_mean", "judge_above_mean", "length_ratio", "wall_s"]
    if any(column.key == "first_reward_mean" for column in shown):
        left_out += ["distinct_per_source", "kl_to_bc"]
    shown = [column for column in shown if column.key not in left_out]
    caption = "\n".join(escape(note) for note in notes(rows) if not note.startswith("TER"))
    table = Table(
        title=f"{split} split",
        title_justify="left",
        caption=caption or None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("policy", overflow="fold", min_width=9, max_width=13)
    for column in shown:
        table.add_column(column.short, justify="right", no_wrap=True)
    for row in rows:
        texts = []
        for value, ends in (cell(row, column) for column in shown):
            # 16.0M: the width is needed for the other columns
            text = Text(f"{float(value.replace(',', '')) / 1e6:.1f}M" if value.count(",") > 1 else value)
            if ends:
                # and .701-.723 for 0.701-0.723
                text.append("\n" + re.sub(r"(?<![\d.])0\.", ".", ends), style="dim")
            texts.append(text)
        table.add_row(Text(label(row), style="bold" if row["policy"] == "rest" else ""), *texts)
    return table


def markdown_text(text: str) -> str:
    """Any text as literal Markdown on one line: HTML and Markdown's own marks lose their meaning."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def last_rest(rows: list[Row], split: str) -> Row | None:
    """The ReST policy a run ends with: the last Improve of the last Grow; side branches (I0) do not count."""
    steps = [row for row in whole(rows) if row["policy"] == "rest" and row["split"] == split and row["improve"] > 0]
    return max(steps, key=lambda row: (row["grow"], row["improve"]), default=None)


def relation(a: Row, b: Row, column: Column) -> str | None:
    """How `a` stands to `b`: "above" or "below" (their intervals do not touch), "overlap", "equal" (in number
    and interval), "unknown" (an interval is missing), or None where either has no number."""
    va, vb = number(a, column.key), number(b, column.key)
    if va is None or vb is None:
        return None
    ia, ib = interval(a, column.interval), interval(b, column.interval)
    if ia is None or ib is None:
        return "unknown"
    if va == vb and ia == ib:
        return "equal"
    if ia[0] > ib[1]:
        return "above"
    return "below" if ia[1] < ib[0] else "overlap"


def plain(value: Any, digits: int = 3) -> str:
    """A number as a reader wants it; empty for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return "−∞" if value == -math.inf else f"{value:.{digits}g}" if abs(value) < 1e-3 else f"{value:.{digits}f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _threshold(stage: dict[str, Any]) -> str:
    tau, spread = stage.get("threshold"), stage.get("thresholds")
    if spread:
        return f"one per source, {plain(spread['min'])}–{plain(spread['max'])}, mean {plain(spread['mean'])}"
    return "none" if tau is None or tau == -math.inf else plain(tau)


def improve_lines(stages: list[dict[str, Any]]) -> list[list[str]]:
    """What each Improve kept and did, its head first."""
    head = ["stage", "τ", "rows kept", "share", "sources", "human pairs", "mean reward kept", "steps", "best at"]
    lines = [[*head, "learning rate", "remarks"]]
    for stage in stages:
        kept, rows = stage.get("rows_kept"), stage.get("rows")
        share = f"{kept / rows:.1%}" if kept is not None and rows else ""
        remarks = [
            "the starting policy won" if stage.get("started_policy_won") else "",
            stage.get("warning") or "",
        ]
        lines.append(
            [
                StageName("improve", stage["grow"], stage["improve"]).label,
                _threshold(stage),
                plain(kept),
                share,
                plain(stage.get("sources_kept")),
                plain(stage.get("references_kept")),
                plain(stage.get("mean_reward_kept")),
                plain(stage.get("gradient_steps")),
                plain(stage.get("best_step")),
                f"{stage['learning_rate']:.3g}" if stage.get("learning_rate") is not None else "",
                "; ".join(filter(None, remarks)),
            ]
        )
    return lines


def grow_lines(grows: dict[int, dict[str, Any]]) -> list[list[str]]:
    """The mean rewards of each Grow's dataset, its head first; only the head where none is recorded."""
    parts = {"all": "mean reward", "samples": "of the samples", "beam": "of beam search", "references": "of references"}
    recorded = [reward for manifest in grows.values() if isinstance(reward := manifest.get("reward"), dict)]
    if not any("beam" in reward for reward in recorded):
        del parts["beam"]
    lines = [["Grow", *parts.values()]]
    for g, manifest in grows.items():
        reward = manifest.get("reward")
        found = [reward.get(part) for part in parts] if isinstance(reward, dict) else []
        means = [part.get("mean") if isinstance(part, dict) else None for part in found]
        if any(mean is not None for mean in means):
            lines.append([StageName("grow", g).label, *map(plain, means)])
    return lines


def spent_lines(spent: dict[StageName, dict[str, Any]]) -> list[list[str]]:
    """Seconds, samples and gradient steps of each stage, its head first."""
    total = sum(result["wall_s"] for result in spent.values())
    lines = [["stage", "seconds", "share", "samples drawn", "gradient steps"]]
    for stage, result in spent.items():
        cells = [plain(result.get(key)) for key in ("samples", "gradient_steps")]
        lines.append([stage.folder, f"{result['wall_s']:,.0f}", f"{result['wall_s'] / max(total, 1e-9):.0%}", *cells])
    return lines


def setting_lines(settings: dict[str, Any]) -> list[list[str]]:
    """Nested settings as lines like ["grow.temperature", "0.8"], a head before them."""

    def flat(value: Any, name: str) -> list[list[str]]:
        if isinstance(value, dict) and value:
            return [line for key in value for line in flat(value[key], f"{name}.{key}" if name else key)]
        return [[name, json.dumps(value, ensure_ascii=False)]]

    return [["setting", "value"], *flat(settings, "")]
