"""The scored dataset D_g: the samples and human pairs of one grow step with their rewards, in Parquet shards.

A source may also have the n-best list of beam search (origin "beam"), which nothing was drawn for.

    grow-1/part-00000-of-00064.parquet ...            the rows, never changed once written
    grow-1/manifest.json                              written last: a folder without it is not complete
    grow-1/columns/<name>/part-... + manifest.json    sidecar: one more column, same rows, same order

Nothing of ours is needed to look at it: `part-*.parquet` opens with pandas, DuckDB, Polars, HF `datasets`.
The same columns give the same bytes (under the same pyarrow), and every page carries a checksum, so damage
is found when it is read and not only by `ScoredDataset.verify`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rest import __version__
from rest.data.shards import (
    ROW_GROUP,
    SCHEMA,
    SCHEMA_VERSION,
    Shard,
    check_shards,
    describe_shards,
    made_once,
    open_shard,
    read_manifest,
    reading,
    sha256,
)
from rest.data.sidecars import DERIVED, Sidecars
from rest.errors import UserError
from rest.folder import write_json

DERIVE: dict[str, Callable[[Any], Any]] = {
    "is_reference": lambda origin: pc.equal(origin, "reference"),
    "is_sample": lambda origin: pc.equal(origin, "sample"),
    "is_truncated": lambda finish: pc.equal(finish, "length"),
    "is_flagged": lambda flags: pc.not_equal(flags, ""),
    "length": pc.list_value_length,
}
QUANTILES = tuple(round(0.05 * k, 2) for k in range(1, 20))


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`: where the rows come from and what they are; no time, path or process count."""

    schema_version: int
    rows: int
    row_group: int  # rows of a row group (the last of a shard may be shorter)
    shards: tuple[Shard, ...]
    settings: dict[str, Any]
    identities: dict[str, str]  # content hashes: of the policy, the reward, the tokenizer
    seed: int
    packages: dict[str, str | None]
    scale: tuple[float, float] | None  # raw scores that became 0 and 1; None: the raw score is the reward
    reward: dict[
        str, dict[str, Any]
    ]  # "all", "samples", "references", "beam" if any: rows, mean, std, min, max, quantiles
    clipped: int  # raw scores that fell outside the scale
    flagged: dict[str, int]  # guard -> rows

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        shards = tuple(Shard(**shard) for shard in data["shards"])
        scale = None if data["scale"] is None else tuple(data["scale"])
        return cls(**{**data, "shards": shards, "scale": scale})


def write_manifest(
    folder: Path,
    *,
    settings: dict[str, Any],
    identities: dict[str, str],
    seed: int,
    scale: tuple[float, float] | None,
) -> Manifest:
    """Reads the shards and writes `manifest.json`, which makes the folder complete.

    `settings` must be JSON-able. Raw scores outside `scale` were clipped, and are counted here. UserError if
    a shard is missing or damaged.
    """
    for leftover in folder.glob(".part-*.writing"):  # of a process that was killed
        leftover.unlink()
    shards = describe_shards(folder)
    packages: dict[str, str | None] = {
        "rest": __version__,
        **{name: version(name) for name in ("jax", "numpy", "pyarrow")},
    }
    rows = sum(shard.rows for shard in shards)
    manifest = Manifest(
        SCHEMA_VERSION, rows, ROW_GROUP, shards, settings, dict(identities), seed, packages, scale, {}, 0, {}
    )
    manifest = replace(manifest, **_statistics(ScoredDataset(folder, manifest, "")))
    write_json(folder / "manifest.json", asdict(manifest))
    return manifest


def _statistics(dataset: ScoredDataset) -> dict[str, Any]:
    """`reward`, `clipped` and `flagged` of a manifest."""
    columns = dataset.columns(["reward", "raw_score", "is_reference", "is_sample"])
    reward, is_reference, is_sample = columns["reward"], columns["is_reference"], columns["is_sample"]
    flagged: Counter[str] = Counter()
    for batch in dataset.batches(["flags"]):
        for entry in batch["flags"].value_counts():
            flagged.update({flag: entry["counts"].as_py() for flag in entry["values"].as_py().split(",") if flag})
    parts = {"all": reward, "samples": reward[is_sample], "references": reward[is_reference]}
    beam = ~is_sample & ~is_reference
    if beam.any():
        parts["beam"] = reward[beam]
    low, high = dataset.manifest.scale or (-np.inf, np.inf)
    if low > high:  # lower is better
        low, high = high, low
    return {
        "reward": {name: _moments(values) for name, values in parts.items()},
        "clipped": int(((columns["raw_score"] < low) | (columns["raw_score"] > high)).sum()),
        "flagged": dict(sorted(flagged.items())),
    }


def _moments(values: np.ndarray) -> dict[str, Any]:
    """Rows, mean, std, min, max and quantiles of float32 [n]; only the rows when there are none."""
    if not len(values):
        return {"rows": 0}
    values = np.sort(values).astype(np.float64)
    # Nine digits: more depends on the order in which a processor adds.
    numbers = {"mean": values.mean(), "std": values.std(), "min": values[0], "max": values[-1]}
    quantiles = zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)
    return {
        "rows": len(values),
        **{name: float(f"{number:.9g}") for name, number in numbers.items()},
        "quantiles": {f"{q:.2f}": float(f"{number:.9g}") for q, number in quantiles},
    }


@dataclass(frozen=True)
class ScoredDataset:
    """A complete scored dataset on disk, from `ScoredDataset.open`; only what is asked for is read."""

    folder: Path
    manifest: Manifest
    identity: str  # sha256 of the manifest, and so of every row

    @classmethod
    def open(cls, folder: Path) -> ScoredDataset:
        """UserError if the folder is not complete, or a shard is missing, of another size or unreadable."""
        folder = Path(folder)
        data, identity = read_manifest(folder, "scored dataset")
        try:
            manifest = Manifest.from_json(data)
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder / 'manifest.json'} is not that of a scored dataset: {error}") from error
        check_shards(folder, manifest.shards, SCHEMA)
        return cls(folder, manifest, identity)

    @property
    def rows(self) -> int:
        return self.manifest.rows

    def verify(self) -> None:
        """Hashes every shard, sidecars too. UserError naming the first whose bytes are not those written."""
        folders = [(self.folder, self.manifest.shards)]
        for name in self.sidecars.names:
            sidecar = self.sidecars.open(name)
            folders.append((sidecar.folder, sidecar.shards))
        for folder, shards in folders:
            for shard in shards:
                if sha256(folder / shard.name) != shard.sha256:
                    raise UserError(f"{folder / shard.name} is damaged: its sha256 is not the manifest's")

    def columns(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Whole columns as numpy [rows]: scalar columns of SCHEMA, scalar sidecars, and those derived:

        `is_reference`, `is_sample`, `is_truncated`, `is_flagged` (bool) and `length` (int32, tokens with EOS).
        `origin`, `finish` and `flags` come as object arrays of few shared strings. Other text and lists: `batches`.
        """
        found = {name: np.empty(self.rows, self._numpy_type(name)) for name in names}
        stored = list(dict.fromkeys(DERIVED.get(name, name) for name in names))
        shared: dict[str, str] = {}
        start = 0
        for batch in self.batches(stored):
            stop = start + len(batch)
            for name, values in found.items():
                values[start:stop] = _scalars(name, batch[DERIVED.get(name, name)], shared)
            start = stop
        return found

    def batches(self, names: Sequence[str], rows: np.ndarray | None = None) -> Iterator[pa.Table]:
        """Stored columns and sidecars a row group at a time, in row order.

        `rows`: bool [rows] or ascending int [k]; row groups with none of them are neither read nor yielded.
        UserError naming the shard that cannot be read.
        """
        mask = None if rows is None else _mask(rows, self.rows)
        kinds = {name: self._field(name).type for name in names}
        place = {name: self.folder if name in SCHEMA.names else self.sidecars.open(name).folder for name in names}
        start = 0
        for shard in self.manifest.shards:
            with ExitStack() as files:
                opened = {f: files.enter_context(open_shard(f / shard.name)) for f in set(place.values())}
                for group in range(-(-shard.rows // self.manifest.row_group)):
                    size = min(self.manifest.row_group, shard.rows - group * self.manifest.row_group)
                    chosen = None if mask is None else mask[start : start + size]
                    start += size
                    if chosen is not None and not chosen.any():
                        continue
                    columns: dict[str, pa.ChunkedArray] = {}
                    for folder, file in opened.items():
                        with reading(folder / shard.name):
                            wanted = [name for name in names if place[name] == folder]
                            part = file.read_row_group(group, columns=wanted)
                            found = {field.name: field.type for field in part.schema}
                            if len(part) != size or found != {name: kinds[name] for name in wanted}:
                                raise pa.ArrowInvalid(f"row group {group} has other rows or columns")
                        columns.update({name: part[name] for name in wanted})
                    table = pa.table({name: columns[name] for name in names})
                    yield table if chosen is None else table.filter(pa.array(chosen))

    def by_shard(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Stored columns and sidecars a shard at a time: what a sidecar is made from."""
        batches = self.batches(names)
        for shard in self.manifest.shards:
            groups = -(-shard.rows // self.manifest.row_group)
            yield pa.concat_tables([next(batches) for _ in range(groups)])

    def shard(self, number: int, names: Sequence[str]) -> pa.Table:
        """Stored columns of one shard."""
        path = self.folder / self.manifest.shards[number].name
        with reading(path), open_shard(path) as file:
            return file.read(columns=list(names))

    def keep(self, mask: np.ndarray, names: Sequence[str], cache: Path) -> pa.Table:
        """The rows of `mask` (bool [rows]) as a memory-mapped table of stored columns and sidecars.

        It is an uncompressed Arrow file in `cache`, in row order, named by a hash of what it holds; written a
        row group at a time whenever it is not there, so it may be deleted. Several processes read one file.
        """
        mask = _mask(mask, self.rows)
        sidecars = [self.sidecars.open(name).identity for name in names if name not in SCHEMA.names]
        key = hashlib.sha256(json.dumps([self.identity, list(names), sidecars]).encode())
        key.update(np.packbits(mask).tobytes())
        path = Path(cache) / f"{key.hexdigest()[:32]}.arrow"

        def write(file: BinaryIO) -> None:
            schema = pa.schema([self._field(name) for name in names])
            with pa.ipc.new_file(file, schema) as writer:
                waiting: list[pa.Table] = []
                for batch in self.batches(names, mask):
                    waiting.append(batch)
                    if sum(map(len, waiting)) >= self.manifest.row_group:  # few large batches: faster to read
                        writer.write_table(pa.concat_tables(waiting).combine_chunks())
                        waiting = []
                if waiting:
                    writer.write_table(pa.concat_tables(waiting).combine_chunks())

        made_once(path, write)
        with reading(path):
            return pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    @property
    def sidecars(self) -> Sidecars:
        """Its further columns, which may be added to."""
        return Sidecars(self.folder, self.identity, self.manifest.shards, self.manifest.row_group)

    def _field(self, name: str) -> pa.Field:
        """Name and Arrow type of a stored column or sidecar."""
        if name in SCHEMA.names:
            return SCHEMA.field(name)
        sidecar = self.sidecars.open(name)
        with open_shard(sidecar.folder / sidecar.shards[0].name) as file:
            return file.schema_arrow.field(name)

    def _numpy_type(self, name: str) -> np.dtype:
        """The numpy type that `columns` gives."""
        if name in DERIVED:
            return np.dtype(np.int32 if name == "length" else np.bool_)
        if name in ("origin", "finish", "flags"):
            return np.dtype(object)
        kind = self._field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise ValueError(f"{name} is {kind}, not a scalar column: read it with `batches`")
        return np.dtype(kind.to_pandas_dtype())


def _mask(rows: np.ndarray, count: int) -> np.ndarray:
    """Bool [rows] from bool [rows] or ascending int [k]."""
    rows = np.asarray(rows)
    if rows.dtype != np.bool_:
        if len(rows) and (rows[0] < 0 or rows[-1] >= count or (np.diff(rows) <= 0).any()):
            raise ValueError(f"rows must rise and lie in [0, {count})")
        mask = np.zeros(count, np.bool_)
        mask[rows.astype(np.int64)] = True
        return mask
    if rows.shape != (count,):
        raise ValueError(f"the mask has shape {rows.shape}, not ({count},)")
    return rows


def _scalars(name: str, column: pa.ChunkedArray, shared: dict[str, str]) -> np.ndarray:
    """One column of one row group as `columns` gives it; equal strings become one object through `shared`."""
    if name in DERIVE:
        column = DERIVE[name](column)
    elif pa.types.is_string(column.type):
        coded = column.combine_chunks().dictionary_encode()
        words = [shared.setdefault(word, word) for word in coded.dictionary.to_pylist()]
        return np.array(words, object)[coded.indices.to_numpy()]
    return column.to_numpy()
