"""Shards on disk: Parquet files of one schema, whole or absent, checked when they are read.

The same columns give the same bytes (under the same pyarrow), and every page carries a checksum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rest.errors import UserError
from rest.folder import replacing

SCHEMA_VERSION = 2
READABLE = (1, 2)  # 1 has no rows of origin "beam"


SCHEMA = pa.schema(
    [
        ("source_id", pa.int64()),
        ("sample_index", pa.int32()),  # -1: the human pair; beam search goes on where the samples end
        ("origin", pa.string()),  # "sample", "reference" or "beam": of the n-best list of beam search
        ("source", pa.string()),
        ("hypothesis", pa.string()),
        ("tokens", pa.list_(pa.int32())),  # ends in EOS exactly when finish is "eos"
        ("log_probs", pa.list_(pa.float32())),  # nats, temperature 1; null for human pairs
        ("behaviour_log_probs", pa.list_(pa.float32())),  # nats, under what a sample was drawn from; null elsewhere
        ("finish", pa.string()),  # "eos" or "length"; "eos" for human pairs
        ("raw_score", pa.float32()),
        ("reward", pa.float32()),  # in [0, 1]
        ("flags", pa.string()),  # the guards that fired, comma-joined; "" when none did
    ]
)


ROW_GROUP = 16_384  # rows decoded at a time: about 10 MB with sentences, so reading stays small


_REPEATING = ["source_id", "origin", "source", "tokens.list.element", "finish", "flags"]


def shard_name(index: int, count: int) -> str:
    """`part-00003-of-00064.parquet` for shard 3 of 64."""
    return f"part-{index:05d}-of-{count:05d}.parquet"


def write_shard(folder: Path, index: int, count: int, columns: Mapping[str, Any]) -> None:
    """Writes one shard under a temporary name and renames it.

    `columns` has every column of SCHEMA: numpy arrays, lists or pyarrow arrays of one length n; ragged
    columns are lists of n arrays (or None). UserError for a reward or raw score that is not a number, or a
    reward outside [0, 1]; ValueError for columns that break the contract of the store.
    """
    name = shard_name(index, count)
    if set(columns) != set(SCHEMA.names):
        raise ValueError(f"{name}: columns {sorted(set(columns) ^ set(SCHEMA.names))} are missing or unknown")
    arrays = [as_array(columns[field.name], field.type) for field in SCHEMA]
    lengths = dict(zip(SCHEMA.names, map(len, arrays), strict=True))
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{name}: columns differ in length: {lengths}")
    table = pa.Table.from_arrays(arrays, schema=SCHEMA)
    _check_rows(name, table)
    write_parquet(folder / name, table, ROW_GROUP)


def _check_rows(name: str, table: pa.Table) -> None:
    """Holds the rows to the contract: rewards in [0, 1], lengths agree, human pairs marked."""
    for column in ("raw_score", "reward"):
        values = table[column].to_numpy()
        bad = ~np.isfinite(values)
        if column == "reward":
            bad |= (values < 0) | (values > 1)
        if bad.any():
            row = int(np.argmax(bad))
            rule = "a number in [0, 1]" if column == "reward" else "a finite number"
            found = f"source_id {table['source_id'][row]}, sample_index {table['sample_index'][row]}"
            raise UserError(f"{name}: {column} must be {rule}, but is {values[row]} at {found}")
    is_reference = pc.equal(table["origin"], "reference")
    tokens = pc.list_value_length(table["tokens"])
    finish, origin = pa.array(["eos", "length"]), pa.array(["sample", "reference", "beam"])
    human = pc.equal(table["sample_index"], -1)
    rules = {
        "sample_index is -1 exactly for references": pc.equal(is_reference, human),
        "origin is sample, reference or beam": pc.is_in(table["origin"], value_set=origin),
        "finish is eos or length": pc.is_in(table["finish"], value_set=finish),
    }
    for column, origins in {"log_probs": ["reference"], "behaviour_log_probs": ["reference", "beam"]}.items():
        without = pc.is_in(table["origin"], value_set=pa.array(origins))
        agree = pc.equal(pc.list_value_length(table[column]), tokens)
        holds = pc.if_else(without, pc.is_null(table[column]), agree)
        rules[f"{column} is null where origin is {' or '.join(origins)}, elsewhere one a token"] = holds
    for column in set(SCHEMA.names) - {"log_probs", "behaviour_log_probs"}:
        rules[f"{column} is never null"] = pc.is_valid(table[column])
    for rule, holds in rules.items():
        good = pc.fill_null(holds, False).to_numpy()
        if not good.all():
            raise ValueError(f"{name}: row {int(np.argmin(good))} breaks the rule: {rule}")


def as_array(values: Any, kind: pa.DataType | None) -> pa.Array:
    """Values as one Arrow array of type `kind`; None: the type they have.

    Ragged rows go through one concatenation, which is much faster than row by row.
    """
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    plain = isinstance(values, pa.Array) or (isinstance(values, np.ndarray) and values.dtype != object)
    if plain or not any(isinstance(value, list | tuple | np.ndarray) for value in values):
        array = values if isinstance(values, pa.Array) else pa.array(values, kind)
        return array if kind is None else array.cast(kind)
    lengths = [0 if row is None else len(row) for row in values]
    offsets = pa.array(np.cumsum([0, *lengths]), pa.int32())
    filled: list[np.ndarray] = [np.asarray(row) for row in values if row is not None and len(row)]
    flat = pa.array(np.concatenate(filled or [np.zeros(0)]))
    if kind is None:
        kind = pa.list_(pa.float32() if pa.types.is_floating(flat.type) else flat.type)
    null = pa.array([row is None for row in values])
    return pa.ListArray.from_arrays(offsets, flat.cast(kind.value_type), mask=null).cast(kind)


@dataclass(frozen=True)
class Shard:
    """What the manifest says of one shard."""

    name: str
    rows: int
    bytes: int
    sha256: str


def shard_rows(path: Path) -> int | None:
    """Rows of a shard that can be read whole, None if it is absent or damaged, and so must be made."""
    if not path.exists():
        return None
    try:
        with open_shard(path) as file, reading(path):
            return sum(len(batch) for batch in file.iter_batches())
    except UserError:
        return None


def describe_shards(folder: Path) -> tuple[Shard, ...]:
    """The shards of a folder, in order. UserError if one is missing, of another count, or unreadable."""
    names = sorted(path.name for path in folder.glob("part-*.parquet"))
    count = int(names[0].removesuffix(".parquet").rsplit("-", 1)[1]) if names else 1
    expected = [shard_name(index, count) for index in range(count)]
    if odd := set(names) ^ set(expected):
        first = min(odd)
        raise UserError(f"{folder / first} " + ("is missing" if first in expected else f"is not one of {count} shards"))
    shards = []
    for name in expected:
        with open_shard(folder / name) as file:
            rows = file.metadata.num_rows
        shards.append(Shard(name, rows, (folder / name).stat().st_size, sha256(folder / name)))
    return tuple(shards)


def check_shards(folder: Path, shards: tuple[Shard, ...], schema: pa.Schema | None) -> None:
    """Everything about shards that can be told without reading rows."""
    for shard in shards:
        path = folder / shard.name
        with reading(path):
            size = path.stat().st_size
        if size != shard.bytes:
            raise UserError(f"{path} is damaged: it has {size} bytes, not {shard.bytes}")
        with open_shard(path) as file:
            if file.metadata.num_rows != shard.rows or (schema and not file.schema_arrow.equals(schema)):
                raise UserError(f"{path} is damaged: its rows or columns are not those of the manifest")


def open_shard(path: Path) -> pq.ParquetFile:
    with reading(path):
        return pq.ParquetFile(str(path), page_checksum_verification=True)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong in reading `path`, as one sentence that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read, it may be damaged: {reason}") from error


def made_once(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Writes a file unless it is there; of several processes one does, and those that come later wait for it.

    What a process that was killed left half made is removed.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists():
            return
        for leftover in path.parent.glob(f".{path.name}.*.writing"):
            leftover.unlink()
        with replacing(path) as file:
            write(file)


def write_parquet(path: Path, table: pa.Table, row_group: int) -> None:
    with replacing(path) as file:
        writer = pq.ParquetWriter(
            file,
            table.schema,
            compression="zstd",
            use_dictionary=_REPEATING,
            write_page_checksum=True,
            write_statistics=["source_id", "reward"],
        )
        with writer:
            if len(table):  # Hugging Face `datasets` cannot read a row group without rows
                writer.write_table(table, row_group)


def read_manifest(folder: Path, what: str) -> tuple[dict[str, Any], str]:
    """The content of `manifest.json` and its sha256."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a complete {what}: it has no manifest.json")
    content = path.read_bytes()
    try:
        data = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(data, dict) or data.get("schema_version") not in READABLE:
        found = data.get("schema_version") if isinstance(data, dict) else None
        raise UserError(f"{path} has schema_version {found}, and this version reads {READABLE[0]} to {READABLE[-1]}")
    return data, hashlib.sha256(content).hexdigest()


def sha256(path: Path) -> str:
    with reading(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
