"""`rest human-eval export` and `rest human-eval import`: blind sheets for raters, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from rest.commands.flags import console, parsed
from rest.errors import UserError, check_seed, refuse_below
from rest.evaluation.human import export_sheet, import_sheets
from rest.evaluation.outputs import Outputs
from rest.folder import newest_evaluations, write_json
from rest.journal import literal
from rest.report.human import section


@dataclass(frozen=True)
class ExportFlags:
    """A blind sheet for raters."""

    run: tyro.conf.Positional[Path]
    """The run's folder, with evaluated policies."""
    sheet: Path
    """The CSV file to make: one copy a rater, who fills in score_1 and score_2, from 0 to 6."""
    key: Path
    """The JSON file to make, which says whose outputs they are; not for raters."""
    policies: tuple[str, ...]
    """Policies to compare with the baseline: improve-1-1 improve-1-2."""
    baseline: str = "bc"
    """What every policy is compared with."""
    sources: int = 100
    """Random sources of the test split."""
    seed: int = 0
    """Of sources and order."""


@dataclass(frozen=True)
class ImportFlags:
    """What the filled sheets say."""

    run: tyro.conf.Positional[Path]
    """The run's folder; the result is kept in it and shown by `rest report`."""
    key: Path
    """The file that `export` made."""
    sheets: tuple[Path, ...]
    """Filled sheets, one a rater."""


def export(arguments: Sequence[str]) -> None:
    """Sheet and key from the greedy outputs of evaluated policies."""
    flags = parsed(ExportFlags, "human-eval export", arguments)
    check_seed(flags.seed, "--seed")
    refuse_below("--", flags, {"sources": 1})
    names = list(dict.fromkeys([flags.baseline, *flags.policies]))
    if len(names) < 2:
        raise UserError(f"--policies: name at least one policy other than {flags.baseline}")
    files = {name: newest_evaluations(flags.run) / name / "greedy.parquet" for name in names}
    for name, file in files.items():
        if not file.is_file():
            raise UserError(f"{file}: no such outputs; they are made with `rest evaluate --policy {name}`")
    for path in (flags.sheet, flags.key):
        if path.exists():
            raise UserError(f"{path}: exists already, and may hold somebody's work; choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
    outputs = {name: Outputs.read(file) for name, file in files.items()}
    count = export_sheet(outputs, flags.baseline, flags.sources, flags.seed, flags.sheet, flags.key)
    console().print(literal(f"{count} items in {flags.sheet}; keep {flags.key} from the raters"))


def import_(arguments: Sequence[str]) -> None:
    """What filled sheets say, kept in the run's folder."""
    flags = parsed(ImportFlags, "human-eval import", arguments)
    if not flags.run.is_dir():
        raise UserError(f"{flags.run}: no such folder")
    if not flags.sheets:
        raise UserError("--sheets: name at least one filled sheet")
    found = import_sheets(flags.sheets, flags.key)
    (flags.run / "evaluation").mkdir(exist_ok=True)
    write_json(flags.run / "evaluation" / "human.json", asdict(found) | {"ranks": found.ranks()})
    shown = section(flags.run)
    assert shown is not None
    console().print(*shown.console(), sep="\n")
