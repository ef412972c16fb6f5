"""`rest study`: variants x seeds of an experiment file, and one table of them all."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from rest.commands.flags import ALL, OutFlags, configure_jax, console, experiment_flags
from rest.errors import UserError
from rest.experiment import load_variants
from rest.folder import read_json, replacing, write_json
from rest.journal import literal
from rest.report.joint import section as joint_section
from rest.report.studies import console as in_terminal
from rest.report.studies import figure, lines_of, section
from rest.study import Study


@dataclass(frozen=True)
class Flags(OutFlags):
    """Every variant with every seed, each a run in OUT/VARIANT/SEED; stages that are the same are made once. The same
    command goes on with what is missing, in as many processes as you like. Settings given as flags are every variant's.
    """

    seeds: tuple[int, ...] = (0,)
    """Each variant is run with each of them."""
    variants: tuple[str, ...] = ()
    """Names in FILE, or in the dictionary that FILE:NAME names; none: all of them."""
    every: bool = False
    """Show every policy, and not only the last of each variant and the controls."""
    results: Path | None = None
    """Write the record, OUT/study.json, to this file too."""
    shown: bool = False
    """Make nothing, and show what is complete."""


def study(arguments: Sequence[str]) -> None:
    """The cells that are missing, then the table."""
    if not arguments or arguments[0].startswith("-"):
        raise UserError("name an experiment first, as in `rest study FILE[:group] --out DIR --seeds 0 1 2`")
    name, *given = arguments
    variants = load_variants(name)
    if {"-h", "--help", ALL} & set(given):
        experiment_flags("study", given, Flags, next(iter(variants.values())))
    asked, _ = tyro.cli(Flags, args=given, prog="rest study FILE", return_unknown_args=True)  # which variants
    chosen = load_variants(name, asked.variants)
    parsed = {each: experiment_flags("study", given, Flags, experiment) for each, experiment in chosen.items()}
    flags, variants = asked, {each: experiment for each, (_, experiment) in parsed.items()}
    configure_jax()
    cells = Study(variants, flags.seeds, flags.out)
    if flags.shown and not cells.rows:
        raise UserError(f"{flags.out}: no cell of this study is complete")
    try:
        if not flags.shown:
            cells.make()
    finally:
        if cells.rows:
            _show(cells, flags, shlex.join(["rest", "study", *arguments]), name.partition(":")[2].replace(".", "-"))


def _show(cells: Study, flags: Flags, command: str, group: str) -> None:
    """The table, study.md, study.json, study.svg and study.png; study-GROUP.md where these are of other variants.

    With --shown only the table, and --results.
    """
    found = lines_of(cells.rows, flags.every)
    record = cells.record(command)
    joint = joint_section(record["variants"])
    files = flags.out / "study"
    if group and files.with_suffix(".json").exists():
        known = read_json(files.with_suffix(".json")).get("variants", {})
        files = files if {*known} & {*cells.variants} else flags.out / f"study-{group}"
    kept = [] if flags.shown else [files.with_suffix(".json")]
    for path in [*kept, *([] if flags.results is None else [flags.results])]:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
    if not flags.shown:
        with replacing(files.with_suffix(".md")) as file:
            parts = [*section(found).markdown(), *(joint.markdown() if joint else [])]
            file.write(("\n\n".join(parts) + "\n").encode())
        drawn = figure(found)
        for kind in ("svg", "png"):
            with replacing(files.with_suffix(f".{kind}")) as file:
                drawn.savefig(file, format=kind, dpi=120)
    shown = console()
    shown.print(in_terminal(found))
    if joint:
        shown.print(*joint.console(), sep="\n")
    complete, wanted = len(cells.rows), len(cells.cells)
    where = "" if flags.shown else f"; {files.with_suffix('.md')}, .json, .svg, .png"
    shown.print(literal(f"{complete} of {wanted} cells are complete{where}"))
