"""Sidecars: further columns of a scored dataset, same rows, same order, each a folder of its own beside the shards.

grow-1/columns/<name>/part-... + manifest.json
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np
import pyarrow as pa

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
        if not name.isidentifier() or name in SCHEMA.names or name in DERIVED:
            raise UserError(f"column name {name!r} cannot be used: it must be an identifier that is not yet taken")
        final = self.folder / "columns" / name
        if final.exists():
            raise UserError(f"{final} exists already: columns never change, choose another name")
        temporary = final.with_name(f".{name}.{uuid.uuid4().hex[:8]}.writing")
        temporary.mkdir(parents=True)
        try:
            edges = np.cumsum([shard.rows for shard in self.shards])[:-1]
            parts = np.split(values, edges) if isinstance(values, np.ndarray) else values
            kind = None
            for shard, part in zip(self.shards, parts, strict=True):
                array = as_array(part, kind)
                if len(array) != shard.rows or pa.types.is_null(array.type):
                    raise ValueError(f"column {name}, {shard.name}: {array.type} [{len(array)}], not [{shard.rows}]")
                kind = array.type
                write_parquet(temporary / shard.name, pa.table({name: array}), self.row_group)
            data = {
                "dataset": self.dataset,
                "settings": settings,
                "schema_version": SCHEMA_VERSION,
                "shards": [asdict(shard) for shard in describe_shards(temporary)],
            }
            write_json(temporary / "manifest.json", data)
            os.replace(temporary, final)
            sync_folder(final.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def write_once(self, name: str, make: Callable[[], Iterable[Any]], settings: dict[str, Any]) -> None:
        """The same unless it is there; of several processes one makes it, and the others wait for it.

        UserError if it is there and was made with other settings.
        """
        (self.folder / "columns").mkdir(exist_ok=True)
        with filelock.FileLock(self.folder / "columns" / f".{name}.lock"):
            if name not in self.names:
                self.write(name, make(), settings)
            elif self.open(name).settings != settings:
                raise UserError(f"{self.folder / 'columns' / name} was made with other settings; remove it")
