"""How long `rest inspect --where` takes on 10 million made rows.

    python scripts/benchmarks/inspection.py [--rows 10000000] [--folder FOLDER]

Makes a scored dataset (about 1 GB, in a temporary folder unless one is named, where it is found again), then times
conditions on it, each in a process of its own as a user would start it. Prints one line of JSON each.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import tyro

from rest.data.shards import ROW_GROUP, shard_name, write_shard
from rest.data.store import write_manifest

SHARD_ROWS = 10 * ROW_GROUP
WORDS = "the a cat dog bird sat ran sings on in near park tree mat house river under blue old small".split()
CONDITIONS = (
    ["--where", "reward > 0.99 and flags = ''"],
    ["--where", "reward < 0.01 or is_truncated", "--rows", "20"],
    ["--source-id", "1234"],
    ["--where", "reward > 0.999 and hypothesis != ''"],
)


def make(folder: Path, rows: int) -> None:
    """One shard of made rows, as often as it takes."""
    rng = np.random.default_rng(0)
    k = np.arange(SHARD_ROWS)
    human = k % 8 == 7
    sentences = [" ".join(rng.choice(WORDS, size=12)) for _ in range(SHARD_ROWS)]
    offsets = pa.array(np.arange(SHARD_ROWS + 1, dtype=np.int32) * 16)
    tokens = rng.integers(3, 8000, size=SHARD_ROWS * 16, dtype=np.int32)
    log_probs = pa.ListArray.from_arrays(
        offsets, pa.array(-rng.exponential(size=len(tokens)).astype(np.float32)), mask=pa.array(human)
    )
    reward = rng.uniform(size=SHARD_ROWS).astype(np.float32)
    columns = {
        "source_id": k // 8,
        "sample_index": np.where(human, -1, k % 8),
        "origin": np.where(human, "reference", "sample").tolist(),
        "source": [sentences[i - i % 8] for i in k],
        "hypothesis": sentences,
        "tokens": pa.ListArray.from_arrays(offsets, pa.array(tokens)),
        "log_probs": log_probs,
        "behaviour_log_probs": log_probs,
        "finish": np.where((rng.random(SHARD_ROWS) < 0.01) & ~human, "length", "eos").tolist(),
        "raw_score": reward,
        "reward": reward,
        "flags": np.where(rng.random(SHARD_ROWS) < 0.05, "repetition", "").tolist(),
    }
    count = -(-rows // SHARD_ROWS)
    folder.mkdir(parents=True)
    write_shard(folder, 0, count, columns)
    for index in range(1, count):
        shutil.copyfile(folder / shard_name(0, count), folder / shard_name(index, count))
    write_manifest(folder, settings={}, identities={"policy": "made"}, seed=0, scale=None)


def main(rows: int = 10_000_000, folder: Path | None = None) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        dataset = (folder or Path(temporary)) / "grow-1"
        if not dataset.exists():
            make(dataset, rows)
        stored = sum(file.stat().st_size for file in dataset.glob("part-*"))
        print(json.dumps({"rows": rows, "megabytes": round(stored / 1e6)}), flush=True)
        for flags in CONDITIONS:
            began = time.perf_counter()
            shown = subprocess.run(
                [sys.executable, "-m", "rest", "inspect", str(dataset), *flags],
                capture_output=True,
                text=True,
                check=True,
            )
            looked_at = next(line.split()[-1] for line in shown.stdout.splitlines() if "rows looked at" in line)
            seconds = round(time.perf_counter() - began, 1)
            print(json.dumps({"flags": flags, "rows_looked_at": looked_at, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
