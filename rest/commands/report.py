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
from rest.folder import read_json, write_json
from rest.journal import literal
from rest.report import comparisons, tables
from rest.report.page import write_report
from rest.report.record import made_with, record_of, without_paths
from rest.report.summary import summarise
from rest.report.verdict import verdict


@dataclass(frozen=True)
class Flags:
    """The table of a run, report.md and report.html."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
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
    """What came of a run so far."""
    flags = parsed(Flags, "report", arguments)
    if not flags.run.is_dir():
        raise UserError(f"{flags.run}: no such folder")
    if (flags.run / "study.json").exists():
        raise UserError(f"{flags.run} is a study: see its study.md, or report one of its runs, VARIANT/SEED in it")
    if flags.live is not None:
        _follow(flags.run, flags.live)
    if flags.agreement and flags.record is None:
        raise UserError("--agreement joins files to a record; name its file with --record")
    if flags.record is None or any(flags.run.glob("evaluation*/*/stage.json")):  # a reward alone has no table
        summarise(flags.run)
        show(flags.run)
    if flags.record is not None:
        _record(flags, flags.record)


def _record(flags: Flags, path: Path) -> None:
    """The run's numbers, and how they were made."""
    settings = without_paths(read_json(flags.run / "experiment.json"))
    record = {**made_with(flags.command), "settings": settings, **record_of(flags.run)}
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
    print(f"{run / 'report.html'} follows the run until Ctrl-C, once a policy has been evaluated", file=sys.stderr)
    while True:
        if (run / "evaluation" / "bc" / "stage.json").exists():
            summarise(run)
            write_report(run, refresh=seconds)
        time.sleep(seconds)


def show(folder: Path) -> None:
    """The table of a run, what it says, and where the report is."""
    rows = read_json(folder / "summary.json")
    page = write_report(folder)
    shown = console()
    shown.print(tables.console(rows, "test"))
    for sentence in verdict(rows, "test", comparisons.read(folder)):
        shown.print(literal(sentence))
    shown.print(literal(f"report: {page}"), soft_wrap=True)
