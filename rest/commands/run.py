"""`rest run` and the commands of single stages: all that open an experiment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rest import processes
from rest.algorithm import rest
from rest.commands.flags import OutFlags, console, opened
from rest.commands.plan import followed
from rest.commands.plan import plan as show_plan
from rest.commands.report import show
from rest.errors import UserError
from rest.evaluation.decoding import DecodingSettings
from rest.folder import StageName, newest_evaluations
from rest.grow import open_dataset
from rest.journal import say
from rest.report.best_of_n import section
from rest.report.page import write_report
from rest.report.summary import summarise
from rest.stages.evaluation import BestOfNCurves, Decode


@dataclass(frozen=True)
class RunFlags(OutFlags):
    """The whole loop; on a half-done folder, what is missing. Every setting of the experiment is a flag too."""

    plan: bool = False
    """Only say what it is going to take."""


@dataclass(frozen=True)
class GrowFlags(OutFlags):
    """One Grow step, or the reward before it."""

    g: int = 1
    """Grow step."""


@dataclass(frozen=True)
class ImproveFlags(GrowFlags):
    """One Improve step."""

    i: int = 1
    """Improve step; 0: all of the Grow step's rows."""


@dataclass(frozen=True)
class EvaluateFlags(OutFlags):
    """Reward and metrics of one policy on test. --decode sample is the whole evaluation, with greedy and beam search
    beside samples; the other ways of decoding add a row of their own."""

    policy: str = "bc"
    """Folder of the policy in the run: bc, bc_continued-600, improve-1-2, ppo, ..."""
    decoding: Annotated[DecodingSettings, tyro.conf.arg(name="")] = DecodingSettings("sample")


@dataclass(frozen=True)
class BestOfNFlags(OutFlags):
    """What the best of N samples is worth, for every N."""

    policies: tuple[str, ...] = ()
    """Folders of policies in the run; none: BC and every Improve step."""
    samples: int = 32
    """Samples per source: the curves go from N = 1 to this."""


def run(arguments: Sequence[str]) -> None:
    """The whole loop, what came of it, and its report."""
    if "--plan" in arguments:
        show_plan([argument for argument in arguments if argument != "--plan"])
        return
    with opened("run", arguments, RunFlags) as (flags, run), reported(flags.out), followed(run):
        rest(run)
    processes.first(lambda: summarise(flags.out))
    processes.first(lambda: show(flags.out))


@contextmanager
def reported(out: Path) -> Iterator[None]:
    """Where the run cannot go on, write the report of what is complete."""
    try:
        yield
    except (Exception, KeyboardInterrupt):
        with processes.alone():
            if processes.talks() and (newest_evaluations(out) / "bc" / "stage.json").exists():
                summarise(out)
                say(f"{write_report(out)}: the report of what is complete")
        raise


def bc(arguments: Sequence[str]) -> None:
    with opened("bc", arguments, OutFlags) as (_, run):
        run.bc()


def reward_train(arguments: Sequence[str]) -> None:
    with opened("reward train", arguments, GrowFlags) as (flags, run):
        _within("g", flags.g, 1, run.experiment.grow_steps, "grow_steps")
        if not run.inputs.learns_reward:
            raise UserError("reward: the experiment gives its reward, so there is none to train")
        run.reward(flags.g)


def grow(arguments: Sequence[str]) -> None:
    with opened("grow", arguments, GrowFlags) as (flags, run):
        _within("g", flags.g, 1, run.experiment.grow_steps, "grow_steps")
        run.grow(flags.g, run.policy_before(flags.g), run.reward(flags.g))


def improve(arguments: Sequence[str]) -> None:
    with opened("improve", arguments, ImproveFlags) as (flags, run):
        _within("g", flags.g, 1, run.experiment.grow_steps, "grow_steps")
        _within("i", flags.i, 0, run.experiment.improve.rule.steps, "steps of improve.rule")
        dataset = open_dataset(flags.out / StageName("grow", flags.g).folder)
        run.improve(flags.g, flags.i, run.policy_before(flags.g, flags.i), dataset, run.reward(flags.g))


def ppo(arguments: Sequence[str]) -> None:
    with opened("ppo", arguments, OutFlags) as (_, run):
        run.ppo()


def evaluate(arguments: Sequence[str]) -> None:
    with opened("evaluate", arguments, EvaluateFlags) as (flags, run):
        name = _policy(flags.policy)
        if flags.decoding.decode == "sample":
            run.evaluate(name, run.policy(name))
        else:
            newest = run.done.newest
            run.stage(Decode(name, run.policy(name), run.reward(newest), flags.decoding, newest))
        processes.first(lambda: summarise(flags.out))


def best_of_n(arguments: Sequence[str]) -> None:
    with opened("best-of-n", arguments, BestOfNFlags) as (flags, run):
        if flags.samples < 2:
            raise UserError(f"--samples {flags.samples}: must be at least 2")
        names = [_policy(folder) for folder in flags.policies]
        newest = run.done.newest
        for name in names or [StageName("bc"), *run.done.improves]:
            run.stage(BestOfNCurves(name, run.policy(name), run.reward(newest), flags.samples, newest))

        def show_curves() -> None:
            found = section(flags.out)
            assert found is not None
            console().print(*found.console(), sep="\n")

        processes.first(show_curves)


def _policy(folder: str) -> StageName:
    """The stage of a policy's folder."""
    name = StageName.parse(folder)
    if name is None or not name.has_policy:
        raise UserError(f"{folder}: no such policy in this run; policies are bc, improve-1-2, bc_continued-600 or ppo")
    return name


def _within(flag: str, value: int, low: int, high: int, limit: str) -> None:
    if not low <= value <= high:
        raise UserError(f"--{flag} {value}: must be from {low} to {high}, the {limit} of the experiment")
