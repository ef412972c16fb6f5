"""What it costs that several processes are one run: the same work for each, joined and apart.

    python scripts/benchmarks/growing.py --out growing.json

1, 2 and 4 processes of one device each make updates of as many rows each, draw as many samples each as one would for a
shard of Grow, and translate as many sentences each as one would for a look at dev: joined as `--distributed` joins
them, and at another time each by itself, in turns. Processes share the cores of this machine in both cases, so that
joined over apart is what being one run costs as far as one machine can show it: what they tell each other goes over
loopback, not over a network. Times are those of the slowest process, as medians of its repetitions; memory is the most
that one of the processes held.
"""

from __future__ import annotations

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

LOCAL = Path(__file__).resolve().parents[1] / "launch" / "local.py"
WORK = "update", "shard", "look"


@dataclass(frozen=True)
class Flags:
    processes: tuple[int, ...] = (1, 2, 4)
    rounds: int = 3
    """In each of which every number of processes is started joined and apart."""
    repetitions: int = 5
    """Of each kind of work; an update is repeated ten times as often."""
    rows: int = 16
    """Of an update, of each process, 64 positions on either side."""
    sources: int = 64
    """Of a shard, with 8 samples each, and four times as many for a look."""
    width: int = 128
    out: Path | None = None
    """Write all times as JSON."""
    work: bool | None = None
    """(What a process is started with: whether it is joined.)"""


def times(flags: Flags, joined: bool) -> dict[str, float]:
    """Seconds of each kind of work in this process, and the MiB that it held at most."""
    from rest import processes

    if joined:
        processes.join()
    import jax

    from rest.data.batches import BatchSettings, Examples
    from rest.data.corpus import Cleaning, SyntheticCorpus
    from rest.data.synthetic import SyntheticLanguage
    from rest.data.tokenizer import SentencePieceSettings
    from rest.learning.learner import Learner
    from rest.learning.lora import Trainable
    from rest.learning.losses import NLL
    from rest.learning.mesh import MachineSettings
    from rest.learning.optimizers import Adam, Schedule
    from rest.learning.train import shuffled
    from rest.model.layers import TransformerSettings
    from rest.policy.beam import BeamSettings, translate
    from rest.policy.policy import Policy, PolicyObjective
    from rest.policy.sampler import SamplingSettings, sample

    count, machine = processes.count(), MachineSettings()
    corpus = SyntheticCorpus(SyntheticLanguage(train=2000, dev=100, test=100)).load(Cleaning())
    train, references = corpus.train, corpus.train.references or []
    tokenizer = SentencePieceSettings(1024).train([train.sources, references], 0)
    settings = TransformerSettings(flags.width, 4, 4 * flags.width, 3, 3, dropout=0.1)
    policy = Policy.new(settings, tokenizer, 1)
    batch = BatchSettings(batch_tokens=64 * flags.rows * count, source_tokens=64, target_tokens=64)
    examples = Examples(policy.encode_sources(train.sources), policy.encode_references(references))
    batches, _ = shuffled(examples, batch, pad_id=tokenizer.pad_id, seed=0, machine=machine)
    learner: Learner[Any] = Learner.begin(
        policy, PolicyObjective(NLL()), Adam(), Schedule(1e-3), Trainable(), seed=0, machine=machine
    )
    sampling = SamplingSettings(max_target_tokens=24)

    def update() -> None:
        float(learner.update(next(batches), jax.random.key(learner.steps))["loss"])

    def shard() -> None:
        with processes.alone():  # as Grow does: a shard is made by one process
            sample(policy, train.sources[: flags.sources], train.ids[: flags.sources], 8, sampling, seed=0)

    def look() -> None:
        translate(policy, train.sources[: 4 * flags.sources * count], BeamSettings(1, max_target_tokens=24), machine)

    def seconds(act: Callable[[], None], often: int) -> float:
        act(), act()  # compiles
        processes.wait_for_all()
        found = []
        for _ in range(often):
            began = time.perf_counter()
            act()
            found.append(time.perf_counter() - began)
        return statistics.median(found)

    many = flags.repetitions
    found = dict(zip(WORK, (seconds(update, 10 * many), seconds(shard, many), seconds(look, many)), strict=True))
    if joined:
        processes.leave()
    return found | {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}  # KiB on Linux


def started(flags: Flags, count: int, joined: bool) -> dict[str, float]:
    """The slowest of so many processes for each kind of work, and the largest."""
    sizes = (f"--{name}={getattr(flags, name)}" for name in ("repetitions", "rows", "sources", "width"))
    worker = [sys.executable, __file__, *sizes, f"--work={joined}"]
    command = [sys.executable, str(LOCAL), "--processes", str(count), "--devices", "1", *worker]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = [json.loads(line) for line in re.findall(r"^\[\d+\] (\{.*)$", done.stdout, re.MULTILINE)]
    assert len(found) == count, done.stdout
    return {name: max(each[name] for each in found) for name in (*WORK, "memory")}


def main() -> None:
    flags = tyro.cli(Flags, description=__doc__)
    if flags.work is not None:
        print(json.dumps(times(flags, flags.work)), flush=True)
        return
    found = []
    for turn in range(flags.rounds):
        for count in flags.processes:
            both = {"joined": started(flags, count, True), "apart": started(flags, count, False)}
            found.append({"round": turn, "processes": count, **both})
            print(found[-1], file=sys.stderr, flush=True)
            if flags.out is not None:
                flags.out.write_text(json.dumps({"cores": os.cpu_count(), "times": found}, indent=1))
    print(f"{os.cpu_count()} cores; ratios are medians of {flags.rounds} rounds, least to most")
    heads = [f"{name}: apart, times one | joined over apart" for name in WORK]
    print("| processes | " + " | ".join(heads) + " | MiB of a process, apart | joined |")
    print("| --- " * (3 + 2 * len(WORK)) + "|")
    for count in flags.processes:
        cells = [str(count)]
        for name in WORK:
            alone = [each["apart"][name] for each in found if each["processes"] == flags.processes[0]]
            mine = [each for each in found if each["processes"] == count]
            cells.append(ratios([each["apart"][name] / one for each, one in zip(mine, alone, strict=True)]))
            cells.append(ratios([each["joined"][name] / each["apart"][name] for each in mine]))
        cells += [f"{max(each[how]['memory'] for each in mine):.0f}" for how in ("apart", "joined")]
        print("| " + " | ".join(cells) + " |")


def ratios(found: list[float]) -> str:
    return f"{statistics.median(found):.2f} ({min(found):.2f}–{max(found):.2f})"


if __name__ == "__main__":
    main()
