"""How fast, and in how much memory, rows are chosen and packed into rows of batches: 16 and 100 million made rows.

    python scripts/benchmarks/planning.py
    python scripts/benchmarks/planning.py --rows 1_000_000

The columns are made without text: source ids, rewards, lengths, and a number for each text. Reading them from a stored
dataset, and writing what passes, is measured by filtering.py. Each line is a process of its own; what of its memory is
the columns is said beside its peak. Prints Markdown.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro
from filtering import RULES, alone

from rest.data.batches import BatchSettings, Examples, plan_rows
from rest.data.ragged import Ragged
from rest.selection import Columns
from rest.thresholds import Rule, choose

PART = 1 << 20  # rows made at a time
PER_SOURCE = 100
BATCH = BatchSettings(2048, 96, 96)


def made(rows: int, low: int, high: int) -> Ragged:
    """Rows of so many numbers, all of them the same one; their lengths are all that is in memory."""
    rng, one, parts = np.random.default_rng(0), np.zeros(1, np.int32), []
    for start in range(0, rows, PART):
        offsets = np.zeros(min(PART, rows - start) + 1, np.int32)
        np.cumsum(rng.integers(low, high, len(offsets) - 1, np.int32), out=offsets[1:])
        parts.append((offsets, np.broadcast_to(one, offsets[-1])))
    return Ragged(parts)


def sources_of(rows: int) -> np.ndarray:
    """The source of each row, int64 [rows]."""
    return np.repeat(np.arange(-(-rows // PER_SOURCE)), PER_SOURCE)[:rows]


def plain(rows: int) -> Examples:
    return Examples(made(rows, 8, 43), made(rows, 8, 43))


def grouped(rows: int) -> Examples:
    return Examples(made(rows, 8, 43), made(rows, 8, 43), groups=sources_of(rows))


def shared(rows: int) -> Examples:
    return Examples(made(-(-rows // PER_SOURCE), 8, 43), made(rows, 8, 43), source_of=sources_of(rows).astype(np.int32))


PACKED = {"pairs": plain, "pairs, those of a source together": grouped, "pairs that share their sources": shared}


def columns(rows: int) -> Columns:
    """Of each source one row is its human pair, and a fifth of the texts are there twice."""
    rng, reward, texts = np.random.default_rng(0), np.empty(rows, np.float32), np.empty(rows, np.int32)
    for start in range(0, rows, PART):
        part = slice(start, min(rows, start + PART))
        texts[part] = np.arange(part.start, part.stop)
        texts[part] -= rng.integers(0, 5, part.stop - start) == 0
        reward[part] = rng.random(part.stop - start, np.float32)
    is_reference = np.zeros(rows, np.bool_)
    is_reference[PER_SOURCE - 1 :: PER_SOURCE] = True
    return Columns(sources_of(rows), reward, is_reference, lambda: texts)


def timed(make: Callable[[int], Any], work: Callable[[Any], int], rows: int) -> tuple[float, float, float, int]:
    """Memory of what is worked on (GB), seconds, of CPU, and what the work gives."""
    given = make(rows)
    before, start, cpu = resident(), time.perf_counter(), time.process_time()
    count = work(given)
    return before, time.perf_counter() - start, time.process_time() - cpu, count


def resident() -> float:
    """Memory of this process now, GB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) * 1024 / 1e9


def pack(name: str, rows: int) -> tuple[float, float, float, int]:
    """Rows of batches that all pairs take."""
    return timed(PACKED[name], lambda examples: len(plan_rows(examples, BATCH, 0).rows), rows)


def filtered(rule: Rule, i: int, rows: int) -> tuple[float, float, float, int]:
    """Rows that pass a rule."""
    return timed(columns, lambda found: choose(rule, found, i).rows, rows)


def main(rows: tuple[int, ...] = (16_000_000, 100_000_000)) -> None:
    """Time the rules, and the packing of all rows, for so many made rows."""
    print("| work | rows | found | seconds | of CPU | rows a second of CPU | columns, GB | peak, GB |")
    print("|--|--:|--:|--:|--:|--:|--:|--:|")
    for count in rows:
        works: dict[str, tuple[Any, ...]] = {f"pack {name}": (pack, name) for name in PACKED}
        works |= {f"choose: {name}": (filtered, *rule) for name, rule in RULES.items()}
        for name, work in works.items():
            (before, seconds, cpu, found), peak = alone(*work, count)
            print(
                f"| {name} | {count:,} | {found:,} | {seconds:.1f} | {cpu:.1f} | {count / max(cpu, 1e-9):,.0f} "
                f"| {before:.2f} | {peak:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    tyro.cli(main)
