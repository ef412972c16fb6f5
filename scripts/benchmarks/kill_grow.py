"""Kill one Grow step again and again, and compare what it becomes with an undisturbed one, byte for byte.

    python scripts/benchmarks/kill_grow.py --kills 50 --processes 1

A small untrained policy samples for a made-up language into many shards. Three kills fall at chosen points: before a
shard is synced to disk, before it takes its name, and between the last shard and the manifest; the others at random
times. With more processes, all work on the same step at once, and each kill takes one of them.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tyro

import rest.data.shards
import rest.grow
from rest.data.corpus import Cleaning, SyntheticCorpus
from rest.data.synthetic import SyntheticLanguage
from rest.data.tokenizer import SentencePieceSettings
from rest.folder import open_stage, replacing
from rest.grow import GrowSettings, grow
from rest.learning.mesh import MachineSettings
from rest.model.layers import TransformerSettings
from rest.policy.policy import Policy
from rest.policy.sampler import SamplingSettings
from rest.reward.reward import Reward

CALLS = {"sync": "fsync", "rename": "replace"}  # of `os`, once a shard is written
POINTS = (*CALLS, "manifest")


@dataclass(frozen=True)
class Flags:
    kills: int = 50
    """How often a process is killed."""
    processes: int = 1
    """Processes that work on the step at once."""
    shards: int = 60
    """Shards of the step."""
    seed: int = 0
    """Of the times of the kills."""
    work_in: Path | None = None
    """Work on the step in this folder (what the processes that are killed are started with)."""
    die_at: str = "never"
    """sync, rename or manifest: kill oneself there."""


def words(sources: list[str], hypotheses: list[str], references: list[str] | None) -> np.ndarray:
    """A reward: one word in twenty."""
    return np.array([min(1.0, len(y.split()) / 20) for y in hypotheses], np.float32)


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def dying(call: str, path: Path) -> Iterator[BinaryIO]:
    """How a shard is written, but for this call of `os`."""
    with replacing(path) as file:
        yield file
        setattr(os, call, die)


def work(flags: Flags, folder: Path) -> None:
    """One process's part of the Grow step."""
    if flags.die_at in CALLS:
        rest.data.shards.replacing = partial(dying, CALLS[flags.die_at])
    elif flags.die_at == "manifest":
        rest.grow.write_manifest = die
    corpus = SyntheticCorpus(SyntheticLanguage(train=20 * flags.shards, dev=8, test=8)).load(Cleaning())
    tokenizer = SentencePieceSettings(256).train([corpus.train.sources, corpus.train.references or []], 0)
    network = TransformerSettings(width=64, heads=2, feed_forward=128, encoder_layers=1, decoder_layers=1)
    settings = GrowSettings(samples_per_source=8, sources_per_shard=-(-len(corpus.train) // flags.shards))
    drawn, machine = SamplingSettings(max_target_tokens=32), MachineSettings(rows=32)
    with open_stage(folder, {"grow": settings}, shared=True) as stage:
        if not stage.finished:
            policy = Policy.new(network, tokenizer, 0)
            grow(stage, policy, [corpus.train], Reward(words), settings, drawn, g=1, seed=0, machine=machine)


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of all that a dataset is."""
    return {path.name: path.read_bytes() for path in [*folder.glob("part-*"), folder / "manifest.json"]}


def shards_in(folder: Path) -> int:
    partial = folder.with_name(f".{folder.name}.partial")
    return len(list((folder if folder.exists() else partial).glob("part-*.parquet")))


class Workers:
    """The processes on one step; `kill` takes one and starts another."""

    def __init__(self, flags: Flags, folder: Path) -> None:
        self.flags, self.folder = flags, folder
        self.running = [self.start() for _ in range(flags.processes)]

    def start(self, die_at: str = "never") -> subprocess.Popen[bytes]:
        settings = ["--shards", str(self.flags.shards), "--work-in", str(self.folder), "--die-at", die_at]
        return subprocess.Popen([sys.executable, __file__, *settings], stderr=subprocess.PIPE)

    def wait(self, until: Callable[[], bool], limit: float = 300) -> None:
        end = time.monotonic() + limit
        while not until():
            if time.monotonic() > end:
                raise SystemExit(f"nothing happened for {limit:.0f} s; {shards_in(self.folder)} shards")
            time.sleep(0.02)

    def finish(self) -> None:
        for process in self.running:
            _, error = process.communicate()
            if process.returncode:
                raise SystemExit(f"a process ended with {process.returncode}: {error.decode()[-500:]}")


def disturbed(flags: Flags, folder: Path, say: Callable[[str], None]) -> Counter[str]:
    """Make the step with all the kills. Returns how many fell where."""
    rng, fell = random.Random(flags.seed), Counter[str]()
    workers = Workers(flags, folder)
    for kill in range(flags.kills - len(POINTS)):
        before, victim = shards_in(folder), workers.running[kill % flags.processes]
        # a third at once, which hits the start; the others once work goes on, but never so late that it ends
        if kill % 3 and before < flags.shards - 2 * flags.processes - 4:
            workers.wait(lambda before=before: shards_in(folder) > before)
            time.sleep(rng.random() * 0.3)
        else:
            time.sleep(rng.random() * 6)
        if shards_in(folder) >= flags.shards - 2:
            raise SystemExit("the step is nearly made and not all kills were; give it more --shards")
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
        done = shards_in(folder)
        fell["before the first shard" if not done else "between the first and the last"] += 1
        say(f"kill {kill + 1}: {done} shards")
        workers.running[kill % flags.processes] = workers.start()
    for process in workers.running:
        process.kill()
        process.communicate()
    fell["between the first and the last"] += len(workers.running)
    for point in POINTS:
        victim = workers.start(point)
        if victim.wait() != -signal.SIGKILL:
            raise SystemExit(f"the kill at {point} did not come: status {victim.returncode}")
        fell[f"before {point}"] += 1
        say(f"kill before {point}: {shards_in(folder)} shards")
    workers.running = [workers.start() for _ in range(flags.processes)]
    workers.finish()
    return fell


def main() -> None:
    flags = tyro.cli(Flags, description=__doc__)
    if flags.work_in is not None:
        work(flags, flags.work_in)
        return
    with tempfile.TemporaryDirectory() as scratch:
        alone, many = Path(scratch) / "undisturbed" / "grow-1", Path(scratch) / "disturbed" / "grow-1"
        once = Workers(Flags(shards=flags.shards), alone)
        once.finish()
        print(f"undisturbed: {shards_in(alone)} shards")
        fell = disturbed(flags, many, print)
        for place, count in fell.items():
            print(f"{count:4d} kills {place}")
        same = contents(alone) == contents(many)
        print(f"{flags.processes} processes, {len(contents(many))} files:", "byte-equal" if same else "NOT EQUAL")
        raise SystemExit(0 if same else 1)


if __name__ == "__main__":
    main()
