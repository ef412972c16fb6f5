"""How long filtering takes at the paper's size: 16,000,000 made rows, 100 a source, in 64 shards.

    python scripts/benchmarks/filtering.py                    # in a temporary folder, removed afterwards
    python scripts/benchmarks/filtering.py --folder made      # kept, and used again if it is complete

Each measurement runs in a process of its own, so that the peak of memory is its own. Prints Markdown.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tyro
from rich.progress import track

from rest.data.shards import write_shard
from rest.data.store import ScoredDataset, write_manifest
from rest.improve import text_numbers
from rest.selection import Columns
from rest.thresholds import Fixed, GlobalPercentile, PerSourcePercentile, PerSourceTop, Rule

SHARDS = 64
WORDS = 2_000
NEEDED = ["source_id", "reward", "is_reference"]
KEPT = ["source_id", "source", "tokens", "behaviour_log_probs", "reward"]
RULES = {
    "everything (I = 0)": (Fixed(), 0),
    "fixed, τ = 0.9": (Fixed((0.9,)), 1),
    "global percentile 90": (GlobalPercentile((90.0,)), 1),
    "percentile 90 of each source": (PerSourcePercentile((90.0,)), 1),
    "best 8 of each source": (PerSourceTop((8,)), 1),
}


def shard_columns(index: int, rows: int, per_source: int) -> dict[str, Any]:
    """Made columns of one shard; the last row of each source is its human pair."""
    rng = np.random.default_rng(index)
    number = np.arange(rows)
    source_id = index * (-(-rows // per_source)) + number // per_source
    is_reference = number % per_source == per_source - 1
    reward = rng.beta(8, 3, rows).astype(np.float32)
    lengths = rng.integers(4, 12, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tokens = rng.zipf(1.3, offsets[-1]).clip(2, WORDS - 1).astype(np.int32)
    ragged = pa.ListArray.from_arrays(pa.array(offsets), pa.array(tokens))
    # Sixty-fourths of a nat: as fast to read as any other number, and small on disk.
    log_probs = pa.array(rng.integers(-256, 0, offsets[-1]).astype(np.float32) / 64)
    per_token = pa.ListArray.from_arrays(pa.array(offsets), log_probs, mask=pa.array(is_reference))
    words = pa.array([f"word{k}" for k in range(WORDS)])
    hypothesis = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), words.take(pa.array(tokens))), " ")
    return {
        "source_id": source_id,
        "sample_index": np.where(is_reference, -1, number % per_source),
        "origin": pa.array(["sample", "reference"]).take(pa.array(is_reference.astype(np.int32))),
        "source": pc.binary_join_element_wise("sentence", pc.cast(pa.array(source_id), pa.string()), " "),
        "hypothesis": hypothesis,
        "tokens": ragged,
        "log_probs": per_token,
        "behaviour_log_probs": per_token,
        "finish": pa.repeat("eos", rows),
        "raw_score": reward * 25,
        "reward": reward,
        "flags": pa.array(["", "copies"]).take(pa.array((reward < 0.2).astype(np.int32))),
    }


def make(folder: Path, rows: int, per_source: int) -> int:
    """Writes the dataset, unless it is there; gives its bytes."""
    if not (folder / "manifest.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        edges = np.linspace(0, rows // per_source, SHARDS + 1).astype(int) * per_source
        edges[-1] = rows
        for index in track(range(SHARDS), "making", disable=not sys.stderr.isatty()):
            write_shard(folder, index, SHARDS, shard_columns(index, edges[index + 1] - edges[index], per_source))
        write_manifest(folder, settings={"rows": rows}, identities={}, seed=0, scale=(0.0, 1.0))
    return sum(shard.bytes for shard in ScoredDataset.open(folder).manifest.shards)


def load(folder: Path) -> tuple[float, int]:
    """Opens the dataset and reads the columns that rules look at."""
    start = time.perf_counter()
    columns = ScoredDataset.open(folder).columns(NEEDED)
    return time.perf_counter() - start, len(columns["reward"])


def verify(folder: Path) -> tuple[float, int]:
    """Hashes every shard."""
    start = time.perf_counter()
    dataset = ScoredDataset.open(folder)
    dataset.verify()
    return time.perf_counter() - start, dataset.rows


def columns_of(dataset: ScoredDataset) -> Columns:
    """What rules look at."""
    source_id, reward, is_reference = dataset.columns(NEEDED).values()
    return Columns(source_id, reward, is_reference, lambda: text_numbers(dataset))


def choose(folder: Path, rule: Rule, i: int) -> tuple[float, int]:
    """One rule, once the columns are read; where it asks for the texts, reading them is measured too."""
    columns = columns_of(ScoredDataset.open(folder))
    start = time.perf_counter()
    chosen = rule.choose(columns, i)
    return time.perf_counter() - start, chosen.rows


def keep(folder: Path, cache: Path) -> tuple[float, int]:
    """The rows of the top 1 %, written to `cache` where they are not there yet, and mapped into memory."""
    dataset = ScoredDataset.open(folder)
    mask = GlobalPercentile((99.0,)).choose(columns_of(dataset), 1).mask
    start = time.perf_counter()
    table = dataset.keep(mask, KEPT, cache)
    return time.perf_counter() - start, len(table)


def measured(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What `work` gives, and the peak of resident memory (GB) of this process."""
    found = work(*arguments)
    return found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def alone(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """`measured` in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measured, work, *arguments).result()


def run(folder: Path, rows: int, per_source: int) -> None:
    start = time.perf_counter()
    size, peak = alone(make, folder, rows, per_source)
    print(f"{rows:,} rows, {per_source} a source, {SHARDS} shards, {size / 1e9:.2f} GB on disk\n")
    print("| work | seconds | peak memory, GB | rows |\n|--|--:|--:|--:|")
    print(f"| make the dataset | {time.perf_counter() - start:.1f} | {peak:.2f} | {rows:,} |")
    with tempfile.TemporaryDirectory() as cache:
        works: dict[str, tuple[Any, ...]] = {
            "read source_id, reward, origin": (load, folder),
            **{f"choose: {name}": (choose, folder, *rule) for name, rule in RULES.items()},
            "cache of the top 1 %: make": (keep, folder, Path(cache)),
            "cache of the top 1 %: open": (keep, folder, Path(cache)),
            "verify every shard": (verify, folder),
        }
        for name, work in works.items():
            (seconds, count), peak = alone(*work)
            print(f"| {name} | {seconds:.2f} | {peak:.2f} | {count:,} |", flush=True)


def main(rows: int = 16_000_000, per_source: int = 100, folder: Path | None = None) -> None:
    """Times the filter on a made scored dataset.

    Args:
        rows: Of the dataset.
        per_source: Rows of a source, its human pair among them.
        folder: Where to keep the dataset; without it a temporary folder.
    """
    with tempfile.TemporaryDirectory() as temporary:
        run(folder or Path(temporary), rows, per_source)


if __name__ == "__main__":
    tyro.cli(main)
