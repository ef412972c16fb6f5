"""A run folder as one page: report.html, which stands by itself, and report.md with the same tables.

The page is made from what lies in the folder and nothing else, so it can be made again at any time and
comes out the same.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from rest.errors import UserError
from rest.report import best_of_n, comparisons, human, plots, tables, under_way
from rest.report.rewards import reward_tables, reward_warnings
from rest.report.sections import Section, head, items, markdown_lines, table
from rest.report.tables import Row

SAMPLES_OPEN = 6  # sample translations in view at first
STANDS = {"above": "▲", "below": "▼"}  # how an interval lies to BC's


@dataclass(frozen=True)
class Run:
    """What a run folder holds for its report; all but `rows` may be empty."""

    name: str
    rows: list[Row]  # summary.json
    split: str  # the reported split: test, or dev where test was not evaluated
    settings: dict[str, Any]  # experiment.json
    samples: list[dict[str, Any]]  # evaluation/samples.json
    stages: list[dict[str, Any]]  # results in improve-*/stage.json in the order they ran
    grows: dict[int, dict[str, Any]]  # grow-*/manifest.json
    rewards: dict[int, np.ndarray]  # g -> float32 [rows], the stored rewards of grow-g
    fits: dict[int, dict[str, Any]]  # g -> result in reward/stage.json, of g = 1, and in reward-g/stage.json
    spent: dict[str, dict[str, Any]]  # stage -> its result, where that has the seconds it took
    sections: list[Section]  # further evidence, where there is some


def write_report(run: Path, refresh: float | None = None) -> Path:
    """Writes report.html and report.md into the run folder and returns the first one's path.

    With `refresh` the page loads itself again after so many seconds.
    Only summary.json must exist. Raises UserError naming the file and what is wrong in it.
    """
    content = _read(run)
    (run / "report.md").write_text(_markdown(content), encoding="utf-8")
    page = run / "report.html"
    page.write_text(_html(content, refresh), encoding="utf-8")
    return page


# Reading


def _read(run: Path) -> Run:
    """Everything the report shows, checked."""
    path = run / "summary.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist, so there is nothing to report: evaluate the run first")
    rows = _rows(_json(path), path)
    split = next((name for name in tables.SPLITS if any(row["split"] == name for row in rows)), rows[0]["split"])
    experiment, samples = run / "experiment.json", run / "evaluation" / "samples.json"
    stages = [
        _stage(folder) for _, folder in _folders(run, r"improve-(\d+)-(\d+)") if (folder / "stage.json").is_file()
    ]
    grows = {steps[0]: folder for steps, folder in _folders(run, r"grow-(\d+)")}
    return Run(
        name=run.resolve().name,
        rows=rows,
        split=split,
        settings=_typed(_json(experiment), dict, experiment) if experiment.is_file() else {},
        samples=_samples(_json(samples), samples) if samples.is_file() else [],
        stages=stages,
        grows={
            g: _typed(_json(folder / "manifest.json"), dict, folder / "manifest.json")
            for g, folder in grows.items()
            if (folder / "manifest.json").is_file()
        },
        rewards={g: rewards for g, folder in grows.items() if (rewards := _rewards(folder)) is not None},
        fits={
            steps[0] if steps else 1: _result(folder)
            for pattern in ("reward", r"reward-(\d+)")
            for steps, folder in _folders(run, pattern)
            if (folder / "stage.json").is_file()
        },
        spent=_spent(run),
        sections=[
            section
            for read in (under_way.section, comparisons.section, human.section, best_of_n.section)
            if (section := read(run))
        ],
    )


def _json(path: Path) -> Any:
    """A JSON file's content; UserError if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


def _typed(content: Any, kind: type, path: Path) -> Any:
    if not isinstance(content, kind):
        raise UserError(f"{path} must hold a {kind.__name__}, got a {type(content).__name__}")
    return content


def _rows(content: Any, path: Path) -> list[Row]:
    """The rows of summary.json, each with the fields that a table cannot do without."""
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} must hold a list of at least one row")
    for index, row in enumerate(content):
        needed: dict[str, type] = {"policy": str, "split": str, "metrics": dict}
        if isinstance(row, dict) and row.get("policy") == "rest":
            needed |= {"grow": int, "improve": int}
        for field, kind in needed.items():
            if not isinstance(row, dict) or not isinstance(row.get(field), kind):
                raise UserError(f"{path}, row {index}: the field {field!r} must be a {kind.__name__}")
    return content


def _samples(content: Any, path: Path) -> list[dict[str, Any]]:
    """The sample translations, each with a source and a list of outputs that have policy and hypothesis."""
    for index, sample in enumerate(_typed(content, list, path)):
        outputs = sample.get("outputs") if isinstance(sample, dict) and "source" in sample else None
        if not isinstance(outputs, list) or not all({"policy", "hypothesis"} <= set(output) for output in outputs):
            raise UserError(f"{path}, entry {index}: needs a source and outputs with policy and hypothesis")
    return content


def _result(folder: Path) -> dict[str, Any]:
    path = folder / "stage.json"
    return _typed(_typed(_json(path), dict, path).get("result"), dict, path)


def _stage(folder: Path) -> dict[str, Any]:
    path, result = folder / "stage.json", _result(folder)
    for field in ("grow", "improve"):
        if not isinstance(result.get(field), int):
            raise UserError(f"{path}: the field {field!r} must be an int")
    return result


def _spent(run: Path) -> dict[str, dict[str, Any]]:
    """The results of the stages that tell their seconds: BC, each Grow with its Improves, other baselines."""
    within = ("reward", "grow", "value", "improve")

    def place(name: str) -> tuple[int, ...]:
        kind, *numbers = name.split("-")
        g, *i = [int(number) for number in numbers if number.isdigit()] or [1]
        return (1, g, within.index(kind), *i) if kind in within else (0 if kind == "bc" else 2, g)

    results = {path.parent.name: _result(path.parent) for path in run.glob("[!.]*/stage.json")}
    return {name: results[name] for name in sorted(results, key=place) if results[name].get("wall_s") is not None}


def _folders(run: Path, pattern: str) -> list[tuple[tuple[int, ...], Path]]:
    """The stage folders whose whole name fits, with the numbers in it, in the order of the numbers."""
    found = [(match, folder) for folder in run.iterdir() if (match := re.fullmatch(pattern, folder.name))]
    return sorted((tuple(int(step) for step in match.groups()), folder) for match, folder in found)


def _rewards(folder: Path) -> np.ndarray | None:
    """float32 [rows]: the rewards that a Grow step stored, or None where its shards are not here."""
    shards = sorted(folder.glob("part-*.parquet"))
    if not shards:
        return None
    return np.concatenate([pq.read_table(shard, columns=["reward"])["reward"].to_numpy() for shard in shards])


# What the page says


def _origin(run: Run) -> list[str]:
    """How the report was made, in sentences."""
    read = ["summary.json"]
    read += ["experiment.json"] if run.settings else []
    read += ["evaluation/samples.json"] if run.samples else []
    read += [f"reward{'' if g == 1 else f'-{g}'}/stage.json" for g in run.fits]
    read += [f"improve-{stage['grow']}-{stage['improve']}/stage.json" for stage in run.stages]
    read += [f"grow-{g}/manifest.json" for g in run.grows] + [f"grow-{g}/part-*.parquet" for g in run.rewards]
    return [
        "ReST starts from behavioural cloning (BC) on human pairs. A Grow step (G) samples hypotheses from "
        "the policy and scores them; each Improve step (I) fine-tunes on the rows whose reward is above its "
        "threshold τ and keeps the checkpoint with the best mean reward on dev. I0 is a side branch trained "
        "on all rows. BC continued is BC trained on the human pairs for as many further steps as ReST.",
        "Intervals are 95% bootstrap intervals. “Above” and “below” mean that two intervals do not touch; "
        "that two overlap does not show that the policies are equal. Dev selects, test reports.",
        f"Made from these files of the run and nothing else: {', '.join(read)}.",
    ]


# Markdown


def _markdown(run: Run) -> str:
    text = tables.markdown_text
    parts = [
        f"# {text(run.name)}",
        "## Verdict",
        *(f"- {text(line)}" for line in tables.verdict(run.rows, run.split)),
    ]
    parts += [f"## Results on {text(run.split)}", tables.markdown(run.rows, run.split).rstrip()]
    if tables.present(tables.of_split(run.rows, run.split), tables.DECODING_COLUMNS):
        parts += [
            "## Greedy and beam search",
            tables.markdown(run.rows, run.split, tables.DECODING_COLUMNS).rstrip(),
        ]
    if tables.present(tables.of_split(run.rows, run.split), tables.TEXT_COLUMNS):
        parts += ["## The text itself", tables.markdown(run.rows, run.split, tables.TEXT_COLUMNS).rstrip()]
    for section in run.sections:
        parts += section.markdown()
    if run.stages:
        parts += ["## What each Improve kept", markdown_lines(tables.improve_lines(run.stages))]
    if len(grown := tables.grow_lines(run.grows)) > 1:
        parts.append(markdown_lines(grown))
    if len(spent := tables.spent_lines(run.spent)) > 1:
        parts += ["Where time and samples went:", markdown_lines(spent)]
    if judged := reward_tables(run.fits, run.rows, run.split):
        parts += ["## The reward", *(f"- {text(line)}" for line in reward_warnings(run.fits))]
        parts += [part for caption, lines in judged for part in (text(caption), markdown_lines(lines))]
    if run.samples:
        parts.append("## Sample translations")
    for sample in run.samples:
        lines = [["", "text", "reward", "gold"], ["source", sample["source"], "", ""]]
        lines += [["reference", sample["reference"], "", ""]] if sample.get("reference") else []
        for output in sample["outputs"]:
            scores = [tables.plain(output.get("reward")), tables.plain(output.get("gold"))]
            lines.append([output["policy"], output["hypothesis"], *scores])
        parts.append(markdown_lines(lines))
    if run.settings:
        parts += ["## Settings", markdown_lines(tables.setting_lines(run.settings))]
    parts += ["## How this was made", *_origin(run)]
    return re.sub(r"(?m)^(- .*)\n\n(?=- )", r"\1\n", "\n\n".join(parts)) + "\n"


# HTML


def _html(run: Run, refresh: float | None = None) -> str:
    rows = tables.of_split(run.rows, run.split)
    lead, *others = tables.verdict(run.rows, run.split)
    body = [
        f'<header><p class="kicker">Reinforced Self-Training</p><h1>{escape(run.name)}</h1></header>',
        f'<section class="verdict"><p class="lead">{escape(lead)}</p>{items(others)}</section>',
        f"<h2>Results on {escape(run.split)}</h2>",
        _results(rows, tables.COLUMNS),
        items(tables.signatures(rows), "notes"),
        *_figures(run),
    ]
    if tables.present(rows, tables.DECODING_COLUMNS):
        body += ["<h2>Greedy and beam search</h2>", _results(rows, tables.DECODING_COLUMNS)]
    if tables.present(rows, tables.TEXT_COLUMNS):
        body += ["<h2>The text itself</h2>", _results(rows, tables.TEXT_COLUMNS)]
    for section in run.sections:
        body += section.html()
    if run.stages:
        body += ["<h2>What each Improve kept</h2>", table(tables.improve_lines(run.stages), "stages")]
    if len(grown := tables.grow_lines(run.grows)) > 1:
        body += ["<h3>What each Grow made</h3>", table(grown, "grown")]
    if len(spent := tables.spent_lines(run.spent)) > 1:
        body += ["<h3>Where time and samples went</h3>", table(spent, "grown")]
    if judged := reward_tables(run.fits, run.rows, run.split):
        body += ["<h2>The reward</h2>", items(reward_warnings(run.fits))]
        body += [f"<p>{escape(caption)}</p>{table(lines, 'grown')}" for caption, lines in judged]
    if run.samples:
        body += ["<h2>Sample translations</h2>", _browser(run.samples)]
    if run.settings:
        pairs = tables.setting_lines(run.settings)
        body += ["<h2>Settings</h2>", _details(f"{len(pairs) - 1} settings", table(pairs, "settings"))]
    body += ["<h2>How this was made</h2>", *(f"<p>{escape(line)}</p>" for line in _origin(run))]
    here = Path(__file__)
    return PAGE.format(
        title=escape(run.name),
        refresh=f'\n<meta http-equiv="refresh" content="{refresh:g}">' if refresh else "",
        style=here.with_suffix(".css").read_text(encoding="utf-8"),
        body="\n".join(filter(None, body)),
        script=here.with_suffix(".js").read_text(encoding="utf-8"),
    )


def _figures(run: Run) -> Iterable[str]:
    """The curves, each with a caption that says what to look for."""
    steps = "Filled points are Improve steps, hollow ones side branches; dashed lines are the other policies."
    bars = "Bars and bands are 95% intervals."
    kept = "Dev reward during each Improve; the dot is the checkpoint that was kept."
    against = "Reward of samples against how far a policy is from BC, and against the length of its greedy outputs."
    drawn = [
        (plots.reward_steps(run.rows, run.split), "reward", f"Reward of samples by step. {steps} {bars}"),
        (plots.held_out_steps(run.rows, run.split), "held-out", "Metrics not trained on, at the same steps."),
        (plots.reward_against(run.rows, run.split), "against", against),
        (plots.dev_rewards(run.stages), "dev", kept),
    ]
    for g, rewards in run.rewards.items():
        stages = [stage for stage in run.stages if stage["grow"] == g]
        found = [(f"I{stage['improve']}", stage.get("threshold")) for stage in stages]
        numbers = [(name, float(tau)) for name, tau in found if isinstance(tau, (int, float))]
        taus = [(name, tau) for name, tau in numbers if math.isfinite(tau)]
        caption = f"Rewards of the {len(rewards):,} rows of Grow {g}" + (
            ", and what each threshold keeps." if taus else "."
        )
        drawn.append((plots.reward_histogram(rewards, taus), f"grow{g}", caption))
    if any(figure for figure, _, _ in drawn):
        yield "<h2>Curves</h2>"
    for figure, name, caption in drawn:
        if figure:
            drawing = plots.svg(figure, name, caption)
            yield f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _results(rows: list[Row], columns: tuple[tables.Column, ...]) -> str:
    """The results table: intervals under their numbers, the best in bold, the policy the run ends with marked."""
    shown, last = tables.present(rows, columns), tables.last_rest(rows, rows[0]["split"])
    bc = next((row for row in rows if row["policy"] == "bc"), None)
    best = {column: tables.best(rows, column) for column in shown}
    lines = [f"<tr>{head(['policy', *(column.title for column in shown)])}</tr></thead><tbody>"]
    for row in rows:
        cells = [tables.cell(row, column) for column in shown]
        if any(value for value, _ in cells):
            texts = ""
            for column, (value, ends) in zip(shown, cells, strict=True):
                text = f"<b>{value}</b>" if value and value == best[column] else value
                stands = tables.compare(row, bc, column) if bc and column.interval else None
                if stands in STANDS:
                    text += f'<i class="stands" role="img" aria-label="{stands} BC">{STANDS[stands]}</i>'
                texts += f"<td>{text}{ends and f'<small>{ends}</small>'}</td>"
            mark = ' class="last"' if row is last else ""
            lines.append(f'<tr{mark}><th scope="row">{escape(tables.label(row))}</th>{texts}</tr>')
    note = items(["Bold: the best of a column. ▲ ▼: the interval lies above, or below, that of BC."], "notes")
    return f'<div class="wide"><table><thead>{"".join(lines)}</tbody></table></div>{note}'


def _browser(samples: list[dict[str, Any]]) -> str:
    """The sample translations, and what searches, sorts and filters them where scripts run."""
    policies = dict.fromkeys(str(output["policy"]) for sample in samples for output in sample["outputs"])
    orders = {
        "as drawn": "place 1",
        "most reward gained first": "gain -1",
        "most reward lost first": "gain 1",
        "lowest reward first": "reward 1",
        "longest source first": "length -1",
    }
    form = (
        '<form hidden role="search"><label>Search<input type="search" name="search"></label>'
        f"<label>Order{_select('order', orders)}</label>"
        f"<label>Policy{_select('policy', {'all': ''} | {name: name for name in policies})}</label>"
        '<button type="button" name="more"></button><output aria-live="polite"></output></form>'
    )
    cards = "".join(_sample(sample, place) for place, sample in enumerate(samples))
    return f'<div class="samples" data-few="{SAMPLES_OPEN}">{form}{cards}</div>'


def _select(name: str, options: dict[str, str]) -> str:
    texts = "".join(f'<option value="{escape(value)}">{escape(title)}</option>' for title, value in options.items())
    return f'<select name="{name}">{texts}</select>'


def _sample(sample: dict[str, Any], place: int) -> str:
    """One source with its reference above, the policies' outputs side by side below."""
    rewards = [float(output.get("reward") or 0.0) for output in sample["outputs"]] or [0.0]
    keys = {"place": place, "gain": rewards[-1] - rewards[0], "reward": rewards[-1], "length": len(sample["source"])}
    data = " ".join(f'data-{key}="{value:.6g}"' for key, value in keys.items())
    above = f'<dt>source</dt><dd dir="auto">{escape(str(sample["source"]))}</dd>'
    if sample.get("reference"):
        above += f'<dt>reference</dt><dd dir="auto">{escape(str(sample["reference"]))}</dd>'
    cards = []
    for output in sample["outputs"]:
        found = [(name, output[name]) for name in ("reward", "gold") if output.get(name) is not None]
        scores = "".join(f"<span>{name} <b>{tables.plain(float(value))}</b></span>" for name, value in found)
        policy = escape(str(output["policy"]))
        meter = max(0.0, min(1.0, float(output.get("reward") or 0.0)))
        cards.append(
            f'<div class="output" data-policy="{policy}"><h4>{policy}</h4>'
            f'<p dir="auto">{escape(str(output["hypothesis"]))}</p>'
            f'<div class="meter"><i style="width:{meter:.1%}"></i></div><p class="scores">{scores}</p></div>'
        )
    return f'<article {data}><dl>{above}</dl><div class="outputs">{"".join(cards)}</div></article>'


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">{refresh}
<title>{title}</title>
<style>{style}</style>
</head>
<body><main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""
