"""Measuring `rest` beside others: a process each, every one at its best size, then all of them in turns.

Speeds of one machine drift, and so a ratio is taken of two speeds of the same round, and the median of the rounds.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
Size = TypeVar("Size")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENVIRONMENT = ".venv-benchmark"  # of the peers, but for mbrs
KEEPING = {  # what rest.allocator does, by environment variables
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),
}


class Asked:
    """A process that is asked by JSON lines, as `peers.serve` answers them."""

    def __init__(self, command: Sequence[str | Path], *, threads: int = 2, keeping: bool = False) -> None:
        """`keeping`: the process holds on to memory that it frees."""
        quiet = {
            "TOKENIZERS_PARALLELISM": "false",
            "TRANSFORMERS_VERBOSITY": "error",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        environment = {**os.environ, **quiet, "OMP_NUM_THREADS": str(threads), **(KEEPING if keeping else {})}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"{self.process.args} has ended with {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self.process.communicate()


def peer(task: str, folder: Path, *, threads: int = 2, keeping: bool = False, environment: str = ENVIRONMENT) -> Asked:
    """The process of one of the tasks of peers.py."""
    python = program("python", environment)
    return Asked([python, HERE / "peers.py", task, folder, str(threads)], threads=threads, keeping=keeping)


def program(name: str, environment: str = ENVIRONMENT) -> Path:
    """A program of a peers' environment."""
    path = ROOT / environment / "bin" / name
    if not path.exists():
        kind = environment.removeprefix(ENVIRONMENT).replace("-", " ")
        raise SystemExit(f"make {environment} first: bash scripts/benchmarks/setup_environment.sh{kind}")
    return path


def fastest(system: str, speed: Callable[[Size], float], sizes: Iterable[Size], *, warm: bool = False) -> Size:
    """The size with the greatest speed. `warm`: each is run once before, as what compiles needs it."""
    speeds: dict[Size, float] = {}
    for size in sizes:
        if warm:
            speed(size)
        speeds[size] = speed(size)
        print(f"{system}, {size}: {speeds[size]:.0f}/s", flush=True)
    return max(speeds, key=lambda size: speeds[size])


def in_turns(systems: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each gave in each round, in which they come one after another."""
    found = [{name: measure() for name, measure in systems.items()} for _ in range(rounds)]
    return {name: [each[name] for each in found] for name in systems}


def faster_by(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The ratios of speeds of the same rounds: their median, and all."""
    ratios = np.asarray(ours) / np.asarray(theirs)
    return {"faster_by": float(np.median(ratios)), "faster_by_of_rounds": [round(float(x), 2) for x in ratios]}


def shown(ratio: Mapping[str, Any]) -> str:
    """What `faster_by` found: the median and the range."""
    each = ratio["faster_by_of_rounds"]
    return f"{ratio['faster_by']:.2f} x ({min(each):.2f} - {max(each):.2f})"
