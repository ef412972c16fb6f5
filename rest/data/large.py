"""Corpora that do not fit into memory: cleaned, without duplicates, as Parquet shards, a block at a time.

corpus/train/part-00000.parquet ...   columns id, source, reference, more, document
corpus/dev/..., corpus/test/...
corpus/counts.json                    what was read, kept and dropped, as in Corpus.counts
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rest.data.corpus import COUNTS, Cleaning, Corpus, Pair, Rows, cleaned, load
from rest.data.shards import reading
from rest.errors import UserError
from rest.folder import discard, write_json

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),  # the position before cleaning
        ("source", pa.string()),
        ("reference", pa.string()),  # null: source text without translations
        ("more", pa.list_(pa.string())),  # further references
        ("document", pa.string()),
    ]
)
BLOCK = 1 << 16  # pairs in memory


def write_shards(
    corpus: Any, cleaning: Cleaning, folder: Path, pairs_per_shard: int = 1_000_000
) -> dict[str, dict[str, int]]:
    """Cleans a corpus into a new folder, which is whole or absent; the counts. Shards reads it.

    Memory: a block of pairs, the sources of dev and test, and 8 bytes a training pair where duplicates are dropped.
    """
    if folder.exists():
        raise UserError(f"{folder} is already there; remove it to clean the corpus anew")
    partial = folder.with_name(f".{folder.name}.partial")
    discard(partial)
    counts = {split: dict.fromkeys(COUNTS, 0) for split in ("dev", "test", "train")}
    measured: set[str] = set()
    for split, count in counts.items():
        pairs = cleaned(corpus.rows(split), cleaning, frozenset(measured), count)
        for block in _written(pairs, partial / split, max(1, pairs_per_shard)):
            if split != "train" and cleaning.drop_train_in_test:
                measured |= {pair.source for _, pair in block}
    write_json(partial / "counts.json", counts)
    os.replace(partial, folder)
    return counts


def _written(pairs: Iterator[tuple[int, Pair]], folder: Path, pairs_per_shard: int) -> Iterator[list[tuple[int, Pair]]]:
    """The blocks of pairs, each once it is in its shard."""
    folder.mkdir(parents=True)
    shard, written = 0, 0
    with ExitStack() as stack:
        writer = None
        while block := list(islice(pairs, min(BLOCK, pairs_per_shard - written))):
            if writer is None:
                path = folder / f"part-{shard:05d}.parquet"
                writer = stack.enter_context(pq.ParquetWriter(path, SCHEMA, compression="zstd"))
            columns = [[row for row, _ in block], *([pair[k] for _, pair in block] for k in range(4))]
            writer.write_table(pa.Table.from_arrays(list(map(pa.array, columns, SCHEMA.types)), schema=SCHEMA))
            written += len(block)
            if written == pairs_per_shard:
                stack.pop_all().close()
                writer, shard, written = None, shard + 1, 0
            yield block


@dataclass(frozen=True)
class Shards:
    """A corpus that write_shards has cleaned. What is loaded is in memory: some 400 bytes a pair."""

    folder: Path  # the folder with train, dev and test
    max_train: int | None = None  # take only the first training pairs

    def load(self, cleaning: Cleaning) -> Corpus:
        """Read, and clean once more: with the same cleaning, nothing more is dropped. Ids count what was kept.

        Pairs that are no translations are not looked for again: what is one depends on the pairs beside it.
        """
        return load(self.rows, replace(cleaning, non_translations=None))

    def rows(self, split: str) -> Rows:
        """A split, read a block at a time."""
        if not (self.folder / "counts.json").exists():
            raise UserError(f"{self.folder} is not a folder that write_shards has made")
        paths = sorted((self.folder / split).glob("part-*.parquet"))
        limit = self.max_train if split == "train" else None
        first = next(_pairs(paths), Pair(""))
        place = f"{self.folder}/{split}, "
        more = tuple(f"{place}further reference {k}" for k in range(1, 1 + len(first.more)))
        reference = None if first.reference is None else f"{place}references"
        return Rows(split, islice(_pairs(paths), limit), f"{place}sources", reference, more)


def _pairs(paths: list[Path]) -> Iterator[Pair]:
    for path in paths:
        with reading(path), pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BLOCK, columns=SCHEMA.names[1:]):
                columns = [column.to_pylist() for column in batch.columns]
                for source, reference, more, document in zip(*columns, strict=True):
                    yield Pair(source, reference, tuple(more), document)
