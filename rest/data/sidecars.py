"""Sidecars: further columns of a scored dataset, same rows, same order, each a folder of its own beside the shards.

grow-1/columns/<name>/part-... + manifest.json
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np
import pyarrow as pa

from rest import processes
from rest.data.shards import (
    SCHEMA,
    SCHEMA_VERSION,
    Shard,
    as_array,
    check_shards,
    describe_shards,
    read_manifest,
    write_parquet,
)
from rest.errors import UserError
from rest.folder import sync_folder, write_json

# Columns that `ScoredDataset.columns` derives, and the stored column each is read from.
DERIVED = {
    "is_reference": "origin",
    "is_sample": "origin",
    "is_truncated": "finish",
    "is_flagged": "flags",
    "length": "tokens",
}


class Sidecar(NamedTuple):
    """One that is complete."""

    folder: Path
    shards: tuple[Shard, ...]
    settings: dict[str, Any]  # what it was made with
    identity: str  # sha256 of its manifest


@dataclass(frozen=True)
class Sidecars:
    """Those of one dataset: where it is, its identity, and how its rows are divided."""

    folder: Path
    dataset: str
    shards: tuple[Shard, ...]
    row_group: int

    @property
    def names(self) -> list[str]:
        """Those that are complete."""
        return sorted(path.parent.name for path in self.folder.glob("columns/[!.]*/manifest.json"))

    def open(self, name: str) -> Sidecar:
        """UserError if it is absent or belongs to other rows."""
        folder = self.folder / "columns" / name
        if not folder.is_dir():
            known = ", ".join([*SCHEMA.names, *DERIVED, *self.names])
            raise UserError(f"{self.folder} has no column {name!r}; it has {known}")
        data, identity = read_manifest(folder, "column")
        if data["dataset"] != self.dataset:
            raise UserError(f"{folder} was made for another dataset than the one now in {self.folder}")
        shards = tuple(Shard(**shard) for shard in data["shards"])
        check_shards(folder, shards, None)
        return Sidecar(folder, shards, data["settings"], identity)

    def write(self, name: str, values: np.ndarray | Iterable[Any], settings: dict[str, Any]) -> None:
        """Adds one, complete or not at all.

        `values`: numpy [rows] in row order, or an iterable with one entry a shard (so that not all need be
        held): an array [rows of the shard], or a list of that many arrays, None where a row has no value.
        """
        edges = np.cumsum([shard.rows for shard in self.shards])[:-1]
        parts = iter(np.split(values, edges) if isinstance(values, np.ndarray) else values)
        folder = self._temporary(name)
        try:
            self._write_shards(folder, name, slice(None), lambda _: next(parts, []))
            if next(parts, None) is not None:
                raise ValueError(f"column {name}: values of more than {len(self.shards)} shards")
            self._complete(folder, self.folder / "columns" / name, settings)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _temporary(self, name: str) -> Path:
        """A new folder to write a column in; UserError where it cannot have this name."""
        if not name.isidentifier() or name in SCHEMA.names or name in DERIVED:
            raise UserError(f"column name {name!r} cannot be used: it must be an identifier that is not yet taken")
        final = self.folder / "columns" / name
        if final.exists():
            raise UserError(f"{final} exists already: columns never change, choose another name")
        temporary = final.with_name(f".{name}.{uuid.uuid4().hex[:8]}.writing")
        temporary.mkdir(parents=True)
        return temporary

    def _write_shards(self, folder: Path, name: str, which: slice, part: Callable[[int], Any]) -> None:
        """Writes the values of some shards."""
        kind = None
        for number in range(*which.indices(len(self.shards))):
            shard, array = self.shards[number], as_array(part(number), kind)
            if len(array) != shard.rows or pa.types.is_null(array.type):
                raise ValueError(f"column {name}, {shard.name}: {array.type} [{len(array)}], not [{shard.rows}]")
            kind = array.type
            write_parquet(folder / shard.name, pa.table({name: array}), self.row_group)

    def _complete(self, folder: Path, final: Path, settings: dict[str, Any]) -> None:
        """Writes the manifest of a column whose shards are all there, and gives it its name."""
        data = {
            "dataset": self.dataset,
            "settings": settings,
            "schema_version": SCHEMA_VERSION,
            "shards": [asdict(shard) for shard in describe_shards(folder)],
        }
        write_json(folder / "manifest.json", data)
        os.replace(folder, final)
        sync_folder(final.parent)

    def write_once(self, name: str, part: Callable[[int], Any], settings: dict[str, Any]) -> None:
        """The same unless it is there; `part` gives the values of a shard by its number.

        Of processes that do this together each makes a part of the shards; of others one makes all, and the rest wait
        for it. UserError if it is there and was made with other settings.
        """
        final = self.folder / "columns" / name
        final.parent.mkdir(exist_ok=True)
        with ExitStack() as held:

            def enter() -> str | None:
                held.enter_context(filelock.FileLock(final.parent / f".{name}.lock"))
                for leftover in final.parent.glob(f".{name}.*.writing"):  # of a process that was killed
                    shutil.rmtree(leftover)
                return None if name in self.names else self._temporary(name).name

            temporary = processes.lead(enter)
            if temporary is None:
                processes.visible(final)
                if self.open(name).settings != settings:
                    raise UserError(f"{final} was made with other settings; remove it")
                return
            folder = final.with_name(temporary)
            processes.visible(folder)
            try:
                processes.divided(len(self.shards), lambda own: self._write_shards(folder, name, own, part))
                processes.first(lambda: self._complete(folder, final, settings))
                processes.visible(final)
            finally:
                if processes.talks():
                    shutil.rmtree(folder, ignore_errors=True)
