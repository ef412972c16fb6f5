"""How fast a corpus that does not fit into memory is cleaned into shards, and in how much memory.

    python scripts/benchmarks/streaming.py                  # 10,000,000 made pairs, in a temporary folder
    python scripts/benchmarks/streaming.py --pairs 1000000

A tenth of the pairs were there before, a few are empty, too long or in the test set. Times include the making of
them, about two fifths of the CPU. Prints Markdown.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from rest.data.corpus import Cleaning, Pair, Rows
from rest.data.large import write_shards

WORDS = np.array([f"word{k}" for k in range(20_000)])
BLOCK = 10_000


@dataclass(frozen=True)
class Made:
    """So many training pairs of about 20 words a side."""

    pairs: int

    def rows(self, split: str) -> Rows:
        """Dev and test are the first pairs of other blocks."""
        made = self._train() if split == "train" else iter(block(-1 if split == "dev" else 3)[:100])
        return Rows(split, made, f"made {split} sources", f"made {split} references")

    def _train(self) -> Iterator[Pair]:
        for start in range(0, self.pairs, BLOCK):
            index = start // BLOCK
            again = index % 10 == 9  # the block that was three before
            yield from block(index - 3 if again else index)[: self.pairs - start]


def block(index: int) -> list[Pair]:
    """Pairs of words drawn with frequencies as in text; the same for the same index."""
    rng = np.random.default_rng(index + 1)
    lengths = rng.poisson(20, BLOCK)  # a few are empty
    lengths[rng.integers(0, BLOCK, 20)] = 120
    words = WORDS[rng.zipf(1.2, 2 * lengths.sum()) % len(WORDS)].tolist()
    ends = np.cumsum(np.repeat(lengths, 2)).tolist()
    texts = [" ".join(words[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
    return [Pair(*both) for both in zip(texts[::2], texts[1::2], strict=True)]


def main(pairs: int = 10_000_000) -> None:
    """Clean so many pairs, and print what it took."""
    cleaning = Cleaning(min_length_ratio=1 / 3, max_length_ratio=3, drop_duplicates=True)
    with tempfile.TemporaryDirectory() as folder:
        start, cpu = time.perf_counter(), time.process_time()
        counts = write_shards(Made(pairs), cleaning, Path(folder) / "shards")["train"]
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("| pairs | kept | duplicates | seconds | of CPU | pairs a second | peak memory, GB | shards, GB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    print(
        f"| {counts['read']:,} | {counts['kept']:,} | {counts['duplicate']:,} | {seconds:.0f} | {cpu:.0f} "
        f"| {counts['read'] / seconds:,.0f} | {peak:.2f} | {size / 1e9:.2f} |"
    )


if __name__ == "__main__":
    tyro.cli(main)
