"""The figures of the ReST paper from runs, and its table 1 (Gulcehre et al. 2023, arXiv 2308.08998): runs side by side,
the seeds of one experiment joined."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from rest.errors import UserError
from rest.folder import read_json
from rest.report.paper_figures import PPO, Variant, by_grow, by_improve, by_loss, by_n, unlike
from rest.report.plots import STYLE
from rest.report.sections import Lines, Section, markdown_lines
from rest.report.several import short_names, write_page
from rest.report.studies import Line, lines_of, section
from rest.report.tables import BY_KEY, Row, markdown_text, notes

METRICS = ("reward_mean", "reward_greedy_mean", "reward_beam_mean", "bleu", "bleu_beam", "chrf", "chrf_beam")
KNOWN = ("gold_mean", "gold_greedy_mean", "judge_mean")  # where a task or a run has them
COLUMNS = tuple(BY_KEY[key] for key in (*METRICS, *KNOWN, "samples_drawn"))  # of table 1
NOT_SHOWN = "reward_beam_mean", "chrf_beam", "gold_mean", "judge_mean"  # in a terminal, which has no room
TERMINAL = tuple(column for column in COLUMNS if column.key not in NOT_SHOWN)


# Reading


def runs_in(folders: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """The runs that these folders are, or hold as studies, and what is left out of them, in sentences."""
    runs, left_out = list[Path](), list[str]()
    for folder in folders:
        if (folder / "experiment.json").is_file():
            runs.append(folder)
            continue
        cells = [path.parent for depth in ("*", "*/*") for path in sorted(folder.glob(f"{depth}/experiment.json"))]
        complete = [cell for cell in cells if (cell / "complete.json").is_file()]
        if not complete:
            raise UserError(f"{folder}: is no run, and no study with a complete one")
        runs += complete
        if len(complete) < len(cells):
            left_out.append(f"Of {folder.name}, {len(cells) - len(complete)} of {len(cells)} runs are not complete.")
    return runs, left_out


def read_variants(runs: Sequence[Path]) -> list[Variant]:
    """The runs, each with a summary.json; those that differ in their seed alone are joined."""
    joined: dict[str, dict[int, Path]] = {}
    for run in runs:
        if not (run / "summary.json").is_file():
            raise UserError(f"{run}: has no summary.json; `rest report {run}` writes it")
        settings = read_json(run / "experiment.json")
        same = joined.setdefault(json.dumps(settings | {"seed": None, "machine": None}, sort_keys=True), {})
        seed = int(settings.get("seed", 0))
        if seed in same:
            raise UserError(f"{same[seed]} and {run} have the same settings and seed: leave one out")
        same[seed] = run
    first = [next(iter(by_seed.values())).resolve() for by_seed in joined.values()]
    cells = [run.parent if run.name.isdigit() else run for run in first]  # VARIANT/SEED
    names = short_names(cells if len({*cells}) == len(cells) else first)
    return [Variant(name, json.loads(key), runs) for name, (key, runs) in zip(names, joined.items(), strict=True)]


class Drawn(NamedTuple):
    """A figure of the paper: its file, how it is drawn, its caption, and what to say where no run has its data."""

    name: str
    draw: Callable[[Sequence[Variant]], Figure | None]
    caption: str
    missing: str


FIGURES = (
    Drawn(
        "figure-3",
        by_improve,
        "Figure 3. Reward by Improve step, a line for each Grow step. A hollow dot, I0, learned from all of D_g. "
        "Dashed: policies that no Improve step made.",
        "Figure 3, reward by Improve step, is left out: no run has the reward of one; grow_steps ≥ 1 makes some.",
    ),
    Drawn(
        "figure-4",
        by_grow,
        "Figure 4. Reward by Grow step, of the last policy of each. Dashed: BC continued, in the colour of its run.",
        "Figure 4, reward by Grow step, is left out: no run has a second Grow step; --grow-steps 2 makes one.",
    ),
    Drawn(
        "figure-5",
        by_loss,
        "Figure 5. Losses of Improve: the last Improve step of the first Grow step, beside the BC of the same runs.",
        "Figure 5, losses compared, is left out: all runs have the same improve.loss; a study of several has others.",
    ),
    Drawn(
        "figure-6",
        by_n,
        "Figure 6. The sample that the reward likes best of N, by N. Only the reward is what the choice was made by.",
        "Figure 6, the best of N, is left out: no run has such samples; rest best-of-n FILE --out RUN --samples 64 "
        "draws them.",
    ),
)


# Table 1, and all of it


def methods(variants: Sequence[Variant]) -> list[Line]:
    """The lines of table 1: BC, the controls, of each Grow step the last policy and the side branch, PPO."""

    def shown(row: Row, rows: list[Row]) -> bool:
        last = max(
            (each["improve"] for each in rows if each["policy"] == "rest" and each["grow"] == row["grow"]), default=0
        )
        return row["policy"] != "rest" or row["improve"] in (0, last)

    cells = {
        (v.name, seed): [row for row in rows if shown(row, rows)] for v in variants for seed, rows in v.rows.items()
    }
    found = []
    for line in lines_of(cells, every=True):
        shared = len(line.variants) == len(variants) > 1
        named = re.sub(r"^(?=G\d)", "ReST ", line.label)
        found.append(replace(line, label=named, variants=("all",) if shared else line.variants))
    return found


def latex(table: Lines) -> str:
    """A table for LaTeX with the package booktabs."""
    marks = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
    escaped = str.maketrans(marks | {mark: f"\\{mark}" for mark in "&%$#_{}"})
    head, *lines = (" & ".join(cell.translate(escaped) for cell in line) + r" \\" for line in table)
    begin = rf"\begin{{tabular}}{{ll{'r' * (len(table[0]) - 2)}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}", ""])


def _said(variants: Sequence[Variant]) -> Iterator[str]:
    """How to read the numbers, and what the runs lack of the table."""
    yield "Rewards are means over samples, on test; dev chose the checkpoints."
    if any(len(variant.runs) > 1 for variant in variants):
        yield (
            "Of several seeds, figures show the mean, and each as a thin line; the table has the mean and Student's "
            "95% interval over seeds."
        )
    if any(len(variant.runs) == 1 for variant in variants):
        yield "Of a single seed, intervals are 95% bootstrap intervals over sources."
    for variant in variants:
        if variant.uneven:
            names = ", ".join(stage.label for stage in variant.uneven)
            yield f"{variant.name}: figures leave out {names}, which not every seed has."
    if differ := unlike(variants):
        yield f"The runs differ in {' and '.join(differ)}: compare rewards within a run, not between runs."
    if len({(variant.settings.get("improve") or {}).get("label_smoothing") for variant in variants}) > 1:
        yield "The runs differ in improve.label_smoothing: figure 5 compares it as much as the losses."
    stages = {stage for variant in variants for stage in variant.points}
    if not any(stage.kind == "improve" and stage.i == 0 for stage in stages):
        yield "No run has I0, which learns from all of D_g; improve.unfiltered = True makes it."
    if PPO not in stages:
        yield "Table 1 has no online RL, for no run has PPO; --ppo.rollouts 50 trains it."


def write_paper(variants: Sequence[Variant], out: Path, left_out: Sequence[str] = ()) -> list[str]:
    """Writes paper.html, each figure as PDF and SVG, and table 1 as Markdown and LaTeX; returns what the page says."""
    out.mkdir(parents=True, exist_ok=True)
    said, figures = [*left_out, *_said(variants)], []
    for name, draw, caption, missing in FIGURES:
        with mpl.rc_context(STYLE | {"pdf.fonttype": 42}):
            figure = draw(variants)
            for kind, date in (("pdf", "CreationDate"), ("svg", "Date")):
                (out / f"{name}.{kind}").unlink(missing_ok=True)  # of other runs
                if figure is not None:
                    figure.savefig(out / f"{name}.{kind}", metadata={date: None})
        said += [missing] if figure is None else []
        figures += [(figure, name, caption)] if figure is not None else []
    signed = notes([row for variant in variants for rows in variant.rows.values() for row in rows])
    signatures = [note for note in signed if note.startswith(("BLEU", "chrF"))]
    said += signatures
    table = section(methods(variants), COLUMNS).tables[0]
    below = [f"- {markdown_text(note)}" for note in signatures]
    (out / "table-1.md").write_text("\n".join([markdown_lines(table), "", *below, ""]), encoding="utf-8")
    (out / "table-1.tex").write_text(latex(table), encoding="utf-8")
    write_page(Section("The figures of the paper", said, [table], figures), out / "paper.html")
    return said
