"""`rest inspect`: what a scored dataset looks like. It imports nothing of JAX, which takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from rest.commands.flags import console, parsed
from rest.data.inspect import export, overview
from rest.data.store import ScoredDataset
from rest.data.where import rows_where
from rest.errors import UserError, refuse_below


@dataclass(frozen=True)
class Flags:
    """Counts, rewards, best and worst rows of a scored dataset."""

    folder: tyro.conf.Positional[Path]
    """A Grow step's folder: runs/demo/grow-1."""
    rows: int = 5
    """How many of the best, of the worst and of the most disputed rows to show."""
    where: str | None = None
    """Look only at rows that fulfil a condition on columns: "reward > 0.9 and flags = '' and length < 20"."""
    source_id: int | None = None
    """Look only at the rows of one source."""
    duplicates: bool = False
    """Count samples that repeat another sample of their source."""
    export: Path | None = None
    """Write the rows looked at to this .jsonl or .csv file instead."""
    verify: bool = False
    """Hash every shard and compare with the manifest."""


def inspect(arguments: Sequence[str]) -> None:
    """Show the rows that are asked for, or write them to a file."""
    flags = parsed(Flags, "inspect", arguments)
    refuse_below("--", flags, {"rows": 0})
    if not flags.folder.exists():
        raise UserError(f"{flags.folder}: no such grow step; make it with `rest grow`")
    dataset = ScoredDataset.open(flags.folder)
    if flags.verify:
        dataset.verify()
    of_source = None if flags.source_id is None else f"source_id = {flags.source_id}"
    conditions = [rows_where(dataset, text) for text in (flags.where, of_source) if text is not None]
    chosen = conditions[0] if conditions else None
    for more in conditions[1:]:
        chosen = chosen & more
    if flags.export is not None:
        print(f"{export(dataset, flags.export, chosen):,} rows in {flags.export}")
    else:
        console().print(overview(dataset, flags.rows, chosen, flags.duplicates))
