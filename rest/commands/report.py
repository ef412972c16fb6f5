"""`rest report`: the table of a run, what it says, and its page; with --live again and again; a record for a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from rest.commands.flags import console, parsed
from rest.errors import UserError
from rest.folder import StageName, newest_evaluations, read_json, write_json
from rest.journal import literal, say
from rest.policy.policy import last_stage
from rest.report import comparisons, studies, tables
from rest.report.page import grown, settings_of, write_report, write_waiting
from rest.report.paper import TERMINAL, methods, read_variants, runs_in, write_paper
from rest.report.record import made_with, record_of, without_paths
from rest.report.sections import label_of
from rest.report.several import write_comparison
from rest.report.summary import summarise
from rest.report.verdict import advice, differences, verdict


@dataclass(frozen=True)
class Flags:
    """The table of a run, report.md and report.html; of several runs one page that compares them."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs."""
    out: Path | None = None
    """The page that compares several runs, comparison.html; with --paper the folder of its figures, paper."""
    paper: bool = False
    """Draw figures 3 to 6 and table 1 of the paper from these runs, or studies of runs, with seeds joined."""
    live: float | None = None
    """Write the report again every so many seconds while the run goes on, as a page that loads itself again."""
    record: Path | None = None
    """Also write all numbers of the run to this JSON file, with its settings and the versions. Do so in a checkout of
    the commit that made the run, which is recorded too."""
    command: str = ""
    """The command that made the run, for the record."""
    agreement: tuple[Path, ...] = ()
    """Files that `rest reward evaluate --out` wrote, to join to the record."""


def report(arguments: Sequence[str]) -> None:
    """What came of a run so far, or of several."""
    flags = parsed(Flags, "report", arguments)
    for run in flags.runs:
        if not run.is_dir():
            raise UserError(f"{run}: no such folder")
    if flags.paper and flags.runs:
        _paper(flags)
        return
    for run in flags.runs:
        if any(run.glob("study*.json")):
            raise UserError(
                f"{run} is a study: see its study.md, report one of its runs, VARIANT/SEED in it, or add --paper"
            )
    if len(flags.runs) > 1:
        _compare(flags)
        return
    if not flags.runs:
        raise UserError("name the folder of a run, as in `rest report runs/demo`")
    (run,) = flags.runs
    if flags.live is not None:
        _follow(run, flags.live)
    if flags.agreement and flags.record is None:
        raise UserError("--agreement joins files to a record; name its file with --record")
    if flags.record is None or any(run.glob("evaluation*/*/stage.json")):  # a reward alone has no table
        summarise(run)
        show(run)
    if flags.record is not None:
        _record(flags, run, flags.record)


def _compare(flags: Flags) -> None:
    """Several runs on one page."""
    if flags.live is not None or flags.record is not None:
        raise UserError("--live and --record are for one run")
    for run in flags.runs:
        summarise(run)
    page = flags.out or Path("comparison.html")
    found = write_comparison(flags.runs, page)
    console().print(*found.console(), sep="\n")
    console().print(literal(f"comparison: {page}"), soft_wrap=True)


def _paper(flags: Flags) -> None:
    """The figures of the paper, in a folder."""
    if flags.live is not None or flags.record is not None:
        raise UserError("--live and --record are for the report of one run, not for --paper")
    runs, left_out = runs_in(flags.runs)
    for run in runs:
        summarise(run)
    variants, out = read_variants(runs), flags.out or Path("paper")
    said = write_paper(variants, out, left_out)
    shown = console()
    shown.print(studies.console(methods(variants), TERMINAL, "Table 1"))
    shown.print(*map(literal, said), sep="\n")
    shown.print(literal(f"figures: {out / 'paper.html'}"), soft_wrap=True)


def _record(flags: Flags, run: Path, path: Path) -> None:
    """The run's numbers, and how they were made."""
    settings = without_paths(read_json(run / "experiment.json"))
    record = {**made_with(flags.command), "settings": settings, **record_of(run)}
    if flags.agreement:
        record["agreement"] = [without_paths(read_json(file)) for file in flags.agreement]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    console().print(literal(f"record: {path}"), soft_wrap=True)


def _follow(run: Path, seconds: float) -> None:
    """Write the report every so many seconds, until Ctrl-C."""
    if not seconds > 0:
        raise UserError(f"live must be above 0 seconds, not {seconds:g}")
    if not (run / "experiment.json").exists():
        raise UserError(f"{run} is no run's folder: it has no experiment.json")
    print(f"{run / 'report.html'} follows the run until Ctrl-C", file=sys.stderr)
    while True:
        if (newest_evaluations(run) / "bc" / "stage.json").exists():
            summarise(run)
            write_report(run, refresh=seconds)
        else:
            write_waiting(run, seconds)
        time.sleep(seconds)


def show(folder: Path) -> None:
    """The table of a run, what it says, and where the report is."""
    rows = read_json(folder / "summary.json")
    page = write_report(folder)
    shown = console()
    shown.print(tables.console(rows, "test"))
    compared, settings = comparisons.read(folder), settings_of(folder)
    shown.print(literal(advice(rows, "test", compared)))
    for sentence in verdict(rows, "test", compared, grown(folder), settings.get("reward")):
        shown.print(literal(sentence))
    shown.print(literal(f"report: {page}"), soft_wrap=True)


def say_advice(folder: Path) -> None:
    """Whether the last policy of an evaluated run may be shipped; nothing where none was compared."""
    rows, compared = read_json(folder / "summary.json"), comparisons.read(folder)
    shown, newest = tables.last_rest(rows, "test"), last_stage(folder).name
    if shown is not None and StageName("improve", shown["grow"], shown["improve"]).folder != newest:
        say(f"{folder}: this is {label_of(newest)}, which is not evaluated yet")
    elif differences(rows, "test", compared):
        say(f"{folder}: {advice(rows, 'test', compared)}")
