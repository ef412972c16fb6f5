"""A run of several processes, and what becomes of it when one of them ends.

    python scripts/benchmarks/processes.py losses                       # of the same updates on every topology
    python scripts/benchmarks/processes.py faults --stages bc grow      # exit statuses, seconds, the result afterwards
    python scripts/benchmarks/processes.py kills --kills 140            # at any moment, again and again

`losses` makes the cases of tests/several.py as 1 x 1, 1 x 4, 2 x 2 and 4 x 1 (processes x devices). `faults` runs
tests/tiny.py in two processes, and in each stage lets a process be killed, be sent SIGTERM or Ctrl-C, make a user's
mistake or raise an error; then the same command goes on, and its summary is held against an undisturbed one. `kills`
kills one process of a run at a moment that chance chooses and starts the same command again, until the run is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any

import tyro

ROOT = Path(__file__).resolve().parents[2]
LOCAL, SEVERAL = ROOT / "scripts" / "launch" / "local.py", ROOT / "tests" / "several.py"
UNDER_WAY = {  # a file that is there while the stage is being made
    "bc": ".bc.partial/checkpoints",
    "reward": ".reward.partial/checkpoints",
    "grow": ".grow-1.partial/part-*",
    "improve": ".improve-1-1.partial/checkpoints",
    "ppo": ".ppo.partial/checkpoints",
    "evaluate": "evaluation/.bc.partial",
}
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "interrupt": signal.SIGINT}
ERRORS = {"mistake": "UserError", "error": "ValueError"}
# An experiment in which one process fails where a stage of this name ends; in Grow, which only process 0 finishes, at
# the first shard that it wrote.
FAULTY = """
import rest.grow
from rest import folder, processes
from rest.errors import UserError
from rest.experiment import load_experiment

experiment = load_experiment({tiny!r})
finish, write_shard = folder.StageFolder.finish, rest.grow.write_shard

def fail():
    if processes._group and processes._group.index == {process}:
        raise {error}("of process {process}")

def finishing(stage, result):
    if stage.final.name == {stage!r} != "grow-1":
        fail()
    finish(stage, result)

def writing(*shard):
    write_shard(*shard)
    if {stage!r} == "grow-1":
        fail()

folder.StageFolder.finish, rest.grow.write_shard = finishing, writing
"""
ENDS = {"bc": "bc", "reward": "reward", "grow": "grow-1", "improve": "improve-1-1", "ppo": "ppo", "evaluate": "bc"}


@dataclass(frozen=True)
class Losses:
    """Losses of the same updates on every topology."""

    topologies: tuple[str, ...] = ("1x1", "1x4", "2x2", "4x1")
    """Processes x devices of each."""


@dataclass(frozen=True)
class Faults:
    """One fault at a time."""

    stages: tuple[str, ...] = tuple(UNDER_WAY)
    faults: tuple[str, ...] = (*SIGNALS, *ERRORS)
    processes: tuple[int, ...] = (0, 1)
    """Which of the two processes is struck."""
    folder: Path | None = None
    """Where to work; none: a temporary one."""


@dataclass(frozen=True)
class Kills:
    """A run that is killed at moments of chance until it is whole, then another."""

    kills: int = 140
    processes: int = 2
    """Of the run; one of them is killed."""
    seed: int = 0
    """Of the moments and of which process."""
    longest: float = 20.0
    """Seconds after a start within which the kill falls."""
    variant: str = ":ppo"
    """Of tests/tiny.py."""
    folder: Path | None = None
    """Where to work; none: a temporary one."""


def main() -> None:
    flags = tyro.cli(
        Annotated[Losses, tyro.conf.subcommand("losses")]
        | Annotated[Faults, tyro.conf.subcommand("faults")]
        | Annotated[Kills, tyro.conf.subcommand("kills")]
    )
    if isinstance(flags, Losses):
        losses(flags)
        return
    with tempfile.TemporaryDirectory() as folder:
        place = flags.folder or Path(folder)
        if isinstance(flags, Kills):
            kills(flags, place)
        else:
            faults(flags, place)


def losses(flags: Losses) -> None:
    """A table of the last loss of every case, and whether two topologies agree to the bit."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for topology in flags.topologies:
            processes, devices = topology.split("x")
            out = Path(folder) / topology
            out.mkdir()
            group = [sys.executable, str(LOCAL), "--processes", processes, "--devices", devices]
            command = [*group, sys.executable, str(SEVERAL), str(out), "all"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            found[topology] = json.loads((out / "found.json").read_text())
    cases = [case for case in next(iter(found.values())) if ", " in case]
    print("| case |", " | ".join(found), "|")
    for case in cases:
        print(
            f"| {case} |", " | ".join(f"{each[case][-1]:.7f}" if case in each else "-" for each in found.values()), "|"
        )
    for one, other in (("2x2", "4x1"), ("1x4", "2x2")):
        if {one, other} <= set(found):
            same = sum(found[one][case] == found[other][case] for case in cases)
            print(f"{one} and {other}: equal to the bit in {same} of {len(cases)} cases")


def faults(flags: Faults, folder: Path) -> None:
    """A row a fault."""
    variant = {"ppo": ":ppo"}
    undisturbed: dict[str, Any] = {}
    print("| stage | fault | process | statuses | seconds | goes on | same summary |", flush=True)
    for stage in flags.stages:
        experiment = f"{ROOT / 'tests' / 'tiny.py'}{variant.get(stage, '')}"
        if experiment not in undisturbed:
            whole = folder / f"undisturbed{variant.get(stage, '').replace(':', '-')}"
            subprocess.run(command(experiment, whole), check=True, capture_output=True)
            undisturbed[experiment] = whole
        for fault in flags.faults:
            for process in flags.processes:
                out = folder / f"{stage}-{fault}-{process}"
                before(undisturbed[experiment], out, stage)
                statuses, seconds = struck(experiment, out, stage, fault, process)
                again = subprocess.run(command(experiment, out), capture_output=True).returncode
                same = again == 0 and summary(out) == summary(undisturbed[experiment])
                print(
                    f"| {stage} | {fault} | {process} | {statuses} | {seconds:.1f} | {again == 0} | {same} |",
                    flush=True,
                )
                shutil.rmtree(out)


def kills(flags: Kills, folder: Path) -> None:
    """A row a run: how often it was killed, in which stages, and whether its summary is that of an undisturbed one."""
    experiment = f"{ROOT / 'tests' / 'tiny.py'}{flags.variant}"
    whole, random = folder / "undisturbed", Random(flags.seed)
    told = folder / "told.txt"  # what the processes say, for a status that is not explained
    if status := started(command(experiment, whole, flags.processes), told).wait():
        raise SystemExit(f"{whole}: ended with status {status} though nothing was killed\n{told.read_text()[-4000:]}")
    print("| run | kills | under way when killed | same summary |", flush=True)
    left, run = flags.kills, 0
    while left:
        out, met = folder / f"run-{run}", Counter[str]()
        while True:
            launcher = started(command(experiment, out, flags.processes), told)
            try:
                ended = launcher.wait(random.uniform(0, flags.longest) if left else None)
            except subprocess.TimeoutExpired:
                under_way = [path.name for path in [*out.glob(".*.partial"), *out.glob("evaluation*/.*.partial")]]
                own = children(launcher.pid)
                if not own:  # it has not started them yet, or they have just ended
                    launcher.kill()
                else:
                    os.kill(random.choice(own), signal.SIGKILL)
                launcher.wait()
                met[" ".join(sorted(name[1:-8] for name in under_way)) or "between stages"] += 1
                left -= 1
                continue
            if ended:
                raise SystemExit(f"{out}: ended with status {ended}, not killed\n{told.read_text()[-4000:]}")
            break
        stages = ", ".join(f"{name} {count}" for name, count in sorted(met.items()))
        print(f"| {run} | {met.total()} | {stages} | {summary(out) == summary(whole)} |", flush=True)
        shutil.rmtree(out)
        run += 1


def started(made: list[str], told: Path) -> subprocess.Popen[bytes]:
    """A launcher whose processes write what they say to a file."""
    told.parent.mkdir(parents=True, exist_ok=True)
    with told.open("wb") as file:
        return subprocess.Popen(made, stdout=file, stderr=file)


def command(experiment: str, out: Path, processes: int = 2) -> list[str]:
    """So many processes that make a run."""
    run = [sys.executable, "-m", "rest", "run", experiment, "--out", str(out), "--distributed"]
    return [sys.executable, str(LOCAL), "--processes", str(processes), "--devices", "1", *run]


def before(whole: Path, out: Path, stage: str) -> None:
    """The folder as it is before a stage: what was made later is left out."""
    made = sorted(whole.glob("*/stage.json"), key=lambda path: path.stat().st_mtime)
    made += sorted(whole.glob("evaluation*/*/stage.json"), key=lambda path: path.stat().st_mtime)
    stop = whole / ("evaluation/bc" if stage == "evaluate" else ENDS[stage]) / "stage.json"
    out.mkdir()
    for path in made:
        if path.stat().st_mtime < stop.stat().st_mtime:
            shutil.copytree(path.parent, out / path.parent.relative_to(whole))


def struck(experiment: str, out: Path, stage: str, fault: str, process: int) -> tuple[list[str], float]:
    """Runs until the fault has ended all: the launcher's status and those of both, and the seconds that took."""
    if fault in ERRORS:
        file = out.with_suffix(".py")
        values = {"tiny": experiment, "stage": ENDS[stage], "process": process, "error": ERRORS[fault]}
        file.write_text(FAULTY.format(**values))
        experiment = str(file)
    launcher = subprocess.Popen(command(experiment, out), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    began = time.monotonic()
    if fault in SIGNALS:
        while not list(out.glob(UNDER_WAY[stage])) and launcher.poll() is None:
            time.sleep(0.01)
        began = time.monotonic()
        os.kill(children(launcher.pid)[process], SIGNALS[fault])
    assert launcher.stderr is not None
    ended = []
    for line in launcher.stderr:
        if fault in ERRORS and f"of process {process}" in line:
            began = time.monotonic()
        if "ended with status" in line:
            ended.append(line.split("status ")[1].strip())
    return [str(launcher.wait()), *ended], time.monotonic() - began


def children(launcher: int) -> list[int]:
    """The processes of a launcher, by their numbers."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields, told = path.read_text().rsplit(")", 1)[1].split(), (path.parent / "environ").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == launcher and b"REST_PROCESS=" in told:
            found[int(told.split(b"REST_PROCESS=")[1].split(b"\0")[0])] = int(path.parent.name)
    return [found[number] for number in sorted(found)]


def summary(out: Path) -> Any:
    """What came of a run, without what a clock decides."""
    rows = json.loads((out / "summary.json").read_text())
    return [{key: value for key, value in row.items() if key != "wall_s"} for row in rows]


if __name__ == "__main__":
    main()
