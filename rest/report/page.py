"""A run folder as one page: report.html, which stands by itself, and report.md with the same tables.

The page is made from what lies in the folder and nothing else, so it can be made again at any time and
comes out the same.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow.parquet as pq
from markupsafe import Markup

from rest.errors import UserError
from rest.folder import StageName
from rest.report import best_of_n, comparisons, data, human, pace, plots, tables, under_way
from rest.report.rewards import reward_tables, reward_warnings
from rest.report.sections import Drawing, Section, markdown_lines, stages_of
from rest.report.tables import Row, label
from rest.report.verdict import advice, differences, verdict

MORE = (("Rewards of greedy and beam outputs", tables.DECODING_COLUMNS), ("The text itself", tables.TEXT_COLUMNS))
SAMPLES_OPEN = 6  # sample translations in view at first
STANDS = {"above": "▲", "below": "▼"}  # how an interval lies to BC's
ORDERS = {  # of the sample translations: what page.js sorts by, and which way
    "as drawn": "place 1",
    "most reward gained first": "gain -1",
    "most reward lost first": "gain 1",
    "lowest reward first": "reward 1",
    "longest source first": "length -1",
}


@dataclass(frozen=True)
class Content:
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
    spent: dict[StageName, dict[str, Any]]  # results of stages that tell the seconds they took
    compared: list[dict[str, Any]]  # paired comparisons of policies
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


def write_waiting(run: Path, refresh: float) -> Path:
    """A page of what is under way, while no policy has been evaluated; it loads itself again."""
    found = under_way.section(run) or Section("Under way", ["No stage has recorded anything yet."])
    here, page = Path(__file__).parent, run / "report.html"
    style = (here / "page.css").read_text(encoding="utf-8")
    name = run.resolve().name
    text = (
        _environment()
        .get_template("waiting.html.jinja")
        .render(name=name, section=found, refresh=refresh, style=Markup(style))
    )
    page.write_text(text, encoding="utf-8")
    return page


# Reading


def _read(run: Path) -> Content:
    """Everything the report shows, checked."""
    path = run / "summary.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist, so there is nothing to report: evaluate the run first")
    rows = _rows(_json(path), path)
    split = next((name for name in tables.SPLITS if any(row["split"] == name for row in rows)), rows[0]["split"])
    samples = run / "evaluation" / "samples.json"
    grows = {name.g: run / name.folder for name in stages_of(run, "grow")}
    return Content(
        name=run.resolve().name,
        rows=rows,
        split=split,
        settings=settings_of(run),
        samples=_samples(_json(samples), samples) if samples.is_file() else [],
        stages=[_improved(run / name.folder) for name in stages_of(run, "improve")],
        grows=grown(run),
        rewards={g: rewards for g, folder in grows.items() if (rewards := _rewards(folder)) is not None},
        fits={name.g: _result(run / name.folder) for name in stages_of(run, "reward")},
        spent=_spent(run),
        compared=comparisons.read(run),
        sections=[
            section
            for read in (
                under_way.section,
                comparisons.section,
                data.section,
                human.section,
                best_of_n.section,
                pace.section,
            )
            if (section := read(run))
        ],
    )


def settings_of(run: Path) -> dict[str, Any]:
    """experiment.json; empty where there is none."""
    path = run / "experiment.json"
    return _typed(_json(path), dict, path) if path.is_file() else {}


def grown(run: Path) -> dict[int, dict[str, Any]]:
    """The manifest of every Grow step."""
    paths = {name.g: run / name.folder / "manifest.json" for name in stages_of(run, "grow")}
    return {g: _typed(_json(path), dict, path) for g, path in paths.items() if path.is_file()}


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


def _improved(folder: Path) -> dict[str, Any]:
    path, result = folder / "stage.json", _result(folder)
    for field in ("grow", "improve"):
        if not isinstance(result.get(field), int):
            raise UserError(f"{path}: the field {field!r} must be an int")
    return result


def _spent(run: Path) -> dict[StageName, dict[str, Any]]:
    """The results of the stages that tell their seconds: BC, each Grow with its Improves, other baselines."""

    def ran(name: StageName) -> tuple[Any, ...]:
        part = {"bc": 0, "reward_start": 0, "bc_continued": 2, "ppo": 2}.get(name.kind, 1)
        return part, max(1, name.g), name.order

    results = {name: _result(run / name.folder) for name in sorted(stages_of(run), key=ran)}
    return {name: result for name, result in results.items() if result.get("wall_s") is not None}


def _rewards(folder: Path) -> np.ndarray | None:
    """float32 [rows]: the rewards that a Grow step stored, or None where its shards are not here."""
    shards = sorted(folder.glob("part-*.parquet"))
    if not shards:
        return None
    return np.concatenate([pq.read_table(shard, columns=["reward"])["reward"].to_numpy() for shard in shards])


# What the page says


def _first(run: Content) -> list[Drawing]:
    """What a user would see of the last policy, at one glance."""
    found = []
    for each in differences(run.rows, run.split, run.compared):
        if each.test is None:
            continue
        title, ends = each.column.title, [each.test[key] for key in ("difference", "lo", "hi")]
        if each.column.best is min:  # turned, so that what is better is always on the right
            title, ends = title.replace("less is better", "how much less"), [-ends[0], -ends[2], -ends[1]]
        found.append(plots.Shipped(title, label(each.base), *ends))
    caption = (
        "What the last policy's outputs have more than the baselines', with paired 95% intervals: right of the line it "
        "is better, and beyond chance where the interval does not touch the line."
    )
    figure = plots.shipped(found)
    return [] if figure is None else [(figure, "shipped", caption)]


def _origin(run: Content) -> list[str]:
    """How the report was made, in sentences."""
    read = ["summary.json"]
    read += ["experiment.json"] if run.settings else []
    read += ["evaluation/samples.json"] if run.samples else []
    names = [StageName("reward", g) for g in run.fits]
    names += [StageName("improve", stage["grow"], stage["improve"]) for stage in run.stages]
    read += [f"{name.folder}/stage.json" for name in names]
    read += [f"{StageName('grow', g).folder}/manifest.json" for g in run.grows]
    read += [f"{StageName('grow', g).folder}/part-*.parquet" for g in run.rewards]
    read += ["*/metrics.jsonl"] if any(section.title == pace.TITLE for section in run.sections) else []
    return [
        "ReST starts from behavioural cloning (BC) on human pairs. A Grow step (G) samples hypotheses from "
        "the policy and scores them; each Improve step (I) fine-tunes on the rows whose reward is above its "
        "threshold τ and keeps the checkpoint that is best on dev. I0 is a side branch trained "
        "on all rows. BC continued is BC trained on the human pairs for as many further steps as ReST, at the same "
        "learning rates; “last” is where that ended, whatever dev says. BC at lower temperatures T, its best of N and "
        "its MBR are samples of BC: what is only sharper, and what training on samples can distil.",
        "Intervals are 95% bootstrap intervals. “Above” and “below” mean that a paired interval leaves zero out, or, "
        "without one, that two intervals do not touch; else two policies are “not told apart”, which does not show "
        "that they are equal. Dev selects, test reports.",
        f"Made from these files of the run and nothing else: {', '.join(read)}.",
    ]


# Markdown


def _markdown(run: Content) -> str:
    text = tables.markdown_text
    parts = [
        f"# {text(run.name)}",
        "## Verdict",
        f"- {text(advice(run.rows, run.split, run.compared))}",
        *(
            f"- {text(line)}"
            for line in verdict(run.rows, run.split, run.compared, run.grows, run.settings.get("reward"))
        ),
    ]
    parts += [f"## Results on {text(run.split)}", tables.markdown(run.rows, run.split).rstrip()]
    for title, columns in MORE:
        if tables.present(tables.of_split(run.rows, run.split), columns):
            parts += [f"## {title}", tables.markdown(run.rows, run.split, columns).rstrip()]
    for section in run.sections:
        parts += section.markdown()
    if run.stages:
        parts += ["## What each Improve kept", markdown_lines(tables.improve_lines(run.stages))]
    if len(grown := tables.grow_lines(run.grows)) > 1:
        parts.append(markdown_lines(grown))
    if len(spent := tables.spent_lines(run.spent)) > 1:
        parts += ["Where time and samples went:", markdown_lines(spent)]
    if found := reward_tables(run.fits, run.rows, run.split):
        parts += ["## The reward", *(f"- {text(line)}" for line in reward_warnings(run.fits))]
        parts += [part for caption, lines in found for part in (text(caption), markdown_lines(lines))]
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


def _html(run: Content, refresh: float | None = None) -> str:
    """The page, from page.html.jinja, page.css and page.js beside this file; what is not our own markup is escaped."""
    here, rows = Path(__file__).parent, tables.of_split(run.rows, run.split)
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            run=run,
            refresh=refresh,
            verdict=verdict(run.rows, run.split, run.compared, run.grows, run.settings.get("reward")),
            advice=advice(run.rows, run.split, run.compared),
            first=_first(run),
            shown=_results(rows, tables.COLUMNS),
            notes=tables.notes(rows),
            curves=_curves(run),
            more_results=[(title, _results(rows, columns)) for title, columns in MORE if tables.present(rows, columns)],
            improved=tables.improve_lines(run.stages),
            grown=tables.grow_lines(run.grows),
            spent=tables.spent_lines(run.spent),
            warnings=reward_warnings(run.fits),
            rewards=reward_tables(run.fits, run.rows, run.split),
            samples=[_sample(sample) for sample in run.samples],
            policies={"all": ""} | {str(o["policy"]): str(o["policy"]) for s in run.samples for o in s["outputs"]},
            settings=tables.setting_lines(run.settings),
            origin=_origin(run),
            style=Markup((here / "page.css").read_text(encoding="utf-8")),
            script=Markup((here / "page.js").read_text(encoding="utf-8")),
        )
    )


def _environment() -> jinja2.Environment:
    """The templates beside this file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["svg"] = plots.svg
    environment.globals.update(SAMPLES_OPEN=SAMPLES_OPEN, STANDS=STANDS, ORDERS=ORDERS)
    return environment


def _curves(run: Content) -> list[Drawing]:
    """The curves, each with a caption that says what to look for."""
    steps = "Filled points are Improve steps, hollow ones side branches; dashed lines are the other policies."
    bars = "Bars and bands are 95% intervals."
    by = {f": {stage['chosen_by']}" for stage in run.stages if "chosen_by" in stage}
    kept = f"The score on dev during each Improve{''.join(sorted(by)[:1])}; the dot is the checkpoint that was kept."
    against = (
        "Reward of samples against how many of them differ (hollow: BC at lower temperatures, and side branches), "
        "against how far a policy is from BC, and against the length of its greedy outputs."
    )
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
    return [(figure, name, caption) for figure, name, caption in drawn if figure]


@dataclass(frozen=True)
class Cell:
    """A number of a results table and its interval as text, each empty where there is none."""

    value: str
    ends: str
    best: bool  # of its column
    stands: str | None  # "above" or "below" BC


@dataclass(frozen=True)
class Line:
    """A row of a results table."""

    label: str
    last: bool  # whether it is the policy that the run ends with
    cells: list[Cell]


def _results(rows: list[Row], columns: tuple[tables.Column, ...]) -> tuple[list[str], list[Line]]:
    """The head and the lines of a results table."""
    shown, last = tables.present(rows, columns), tables.last_rest(rows, rows[0]["split"])
    bc = next((row for row in rows if row["policy"] == "bc"), None)
    best = {column: tables.best(rows, column) for column in shown}

    def cell(row: Row, column: tables.Column) -> Cell:
        value, ends = tables.cell(row, column)
        stands = tables.relation(row, bc, column) if bc and column.interval else None
        return Cell(value, ends, bool(value) and value == best[column], stands if stands in STANDS else None)

    lines = [Line(tables.label(row), row is last, [cell(row, column) for column in shown]) for row in rows]
    titles = ["policy", *(column.title for column in shown)]
    return titles, [line for line in lines if any(each.value for each in line.cells)]


def _sample(sample: dict[str, Any]) -> dict[str, Any]:
    """One source with its outputs, and what page.js sorts by, for the template."""
    rewards = [float(output.get("reward") or 0.0) for output in sample["outputs"]] or [0.0]
    outputs = []
    for output, reward in zip(sample["outputs"], rewards, strict=False):
        scores = [(name, output[name]) for name in ("reward", "gold") if output.get(name) is not None]
        outputs.append(
            {
                "policy": str(output["policy"]),
                "hypothesis": str(output["hypothesis"]),
                "meter": f"{max(0.0, min(1.0, reward)):.1%}",
                "scores": [(name, tables.plain(float(value))) for name, value in scores],
            }
        )
    texts = {"source": str(sample["source"]), "reference": sample.get("reference")}
    return {**texts, "gain": rewards[-1] - rewards[0], "reward": rewards[-1], "outputs": outputs}
