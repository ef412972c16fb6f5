"""A run: an experiment in its folder. Each stage is made once; what is asked for again is remembered."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from rest import processes
from rest.columns import Scorers
from rest.data.store import ScoredDataset
from rest.errors import UserError
from rest.evaluation.compare import compare_stages
from rest.evaluation.decoding import DecodingSettings
from rest.experiment import Experiment
from rest.folder import StageFolder, StageName, open_stage, read_json, stages_in, write_json
from rest.grow import open_dataset, rescore
from rest.identity import describe
from rest.improve import named, select
from rest.journal import say
from rest.policy.policy import Policy
from rest.reward.learned.settings import TranslationModel
from rest.reward.reward import Reward
from rest.stages.bc import BC, BCContinued, RewardStart
from rest.stages.checks import check
from rest.stages.evaluation import Decode, Evaluate, SampledAt, evaluations
from rest.stages.grow import Grow
from rest.stages.improve import Improve, LearnValue
from rest.stages.inputs import Inputs, Stage
from rest.stages.ppo import PPO
from rest.stages.reward import LearnReward

T = TypeVar("T")
KEPT = ("bc", "reward", "value")  # results that are asked for again and again; others live while they are used


@dataclass(frozen=True)
class Done:
    """The stages of a run that are complete, and what follows from them."""

    experiment: Experiment
    out: Path

    def complete(self, kind: str) -> list[StageName]:
        """The stages of one kind that are complete, as process 0 sees it."""
        folders = processes.lead(lambda: [name.folder for name in stages_in(self.out, kind)])
        return [name for folder in folders if (name := StageName.parse(folder))]

    @property
    def improves(self) -> list[StageName]:
        """The Improve steps on the way (not the side branches), in order."""
        e = self.experiment
        steps, within = range(1, e.grow_steps + 1), range(1, e.improve.rule.steps + 1)
        return [name for name in self.complete("improve") if name.g in steps and name.i in within]

    @property
    def way(self) -> tuple[tuple[StageName, int], ...]:
        """The Improve steps on the way, each with its updates."""
        return tuple((name, self.result(name)["gradient_steps"]) for name in self.improves)

    @property
    def trained_further(self) -> int:
        """Updates after BC: those of all Improve steps on the way, or of PPO if it took more."""
        paths = self.improves, self.complete("ppo")
        return max(sum(self.result(name)["gradient_steps"] for name in path) for path in paths)

    @property
    def newest(self) -> int:
        """The Grow step of the newest reward; 1 where the reward is not refreshed."""
        steps = self.experiment.grow_steps if self.experiment.refresh else 1
        return max((name.g for name in self.complete("reward") if name.g <= steps), default=1)

    def before(self, name: StageName) -> StageName | None:
        """The policy that an Improve step goes on from; None for what is no Improve step."""
        if name.kind != "improve":
            return None
        if name.i > 1:
            return StageName("improve", name.g, name.i - 1)
        return next((step for step in reversed(self.improves) if step.g < name.g), StageName("bc"))

    def result(self, name: StageName) -> dict[str, Any]:
        """What a stage reported."""
        return read_json(self.out / name.folder / "stage.json")["result"]


class Run:
    """The stages of an experiment. Each method makes one, or reads it where it is complete."""

    def __init__(self, experiment: Experiment, out: Path | str, pool: Path | None = None) -> None:
        """With a `pool`, stages lie there by their content, for all runs that have the same, and here as links."""
        self.experiment, self.out, self.pool = experiment, Path(out), pool
        self.inputs, self.done = Inputs(experiment, self.out, pool), Done(experiment, self.out)
        self.watch: Callable[[str], AbstractContextManager[Any]] = nullcontext  # entered with a stage's path
        self.check = cache(partial(check, self.inputs))  # before the first stage is made
        self._kept: dict[str, tuple[Any, Any]] = {}
        self._used: WeakValueDictionary[str, Any] = WeakValueDictionary()

    # Stages, once each

    def stage(self, stage: Stage[T]) -> T:
        """The result of a stage: remembered, read, or made. UserError where the folder was made with other settings."""
        settings = json.loads(json.dumps(describe(self.inputs.decides(stage.settings(self.inputs)))))
        before, found = self._kept.get(stage.path, (None, None))
        if before == settings:
            return found
        with open_in_pool(self.out, self.pool, stage.path, settings, stage.shared) as folder:
            if not folder.finished:
                self.check()
                with self.watch(stage.path):
                    stage.make(self.inputs, folder)
                _worked(self.out, stage.path)
            found = self._used.get(stage.path) or stage.read(self.inputs, folder.path)
        if (name := StageName.parse(stage.path)) is not None and name.kind in KEPT:
            self._kept[stage.path] = settings, found
        if isinstance(found, Policy):
            self._used[stage.path] = found
        return found

    def bc(self) -> Policy:
        """π₀: behavioural cloning until the dev loss stops falling."""
        return self.stage(BC())

    def bc_continued(self) -> list[tuple[StageName, Policy]]:
        """BC trained on D for as many further steps as Improve, or PPO if that took more, at the same rates.

        Its best on dev and, where that is another, its last, with their names.
        """
        steps = self.done.trained_further
        if not steps:
            raise UserError(f"{self.out}: no Improve step and no PPO is complete, so BC has no steps to train on for")
        name, last = StageName("bc_continued", steps=steps), StageName("bc_continued_last", steps=steps)
        bc, reward = self.policy(StageName("bc")), self.reward(self.done.newest)
        found = [(name, self.stage(BCContinued(bc, reward, steps, self.done.way)))]
        return found + ([(last, self.policy(last))] if self._there(last.policy) else [])

    def reward(self, g: int = 1) -> Reward:
        """R of Grow step g: given by the experiment, or learned, and then perhaps refreshed between Grow steps."""
        e = self.experiment
        if not self.inputs.learns_reward:
            return self.inputs.given_reward
        g = 1 if e.refresh is None else g
        if (known := self._kept.get(StageName("reward", g).folder)) is not None:
            return known[1]
        bc = self.policy(StageName("bc"), "rest bc")
        start = self.stage(RewardStart(bc, e.reward.start)) if isinstance(e.reward.start, TranslationModel) else bc
        earlier = tuple(self.reward(h) for h in ((1, g - 1) if g > 2 else (1,) if g > 1 else ()))
        files = self.inputs.human_ratings(g) if e.reward.ratings else None
        latest = self.policy_before(g) if g > 1 and files is None else None
        reward = self.stage(LearnReward(g, bc, start, earlier, latest, files))
        of = "" if self.pool is None else f"_{reward.identity[:16]}"  # the dataset may be of other runs too
        for name in self.done.complete("grow"):
            if name.g < g:
                rescore(open_dataset(self.out / name.folder), reward, f"reward_{g}{of}")
        return reward

    def grow(self, g: int, policy: Policy, reward: Reward) -> ScoredDataset:
        """D_g."""
        return self.stage(Grow(g, policy, reward))

    def improve(self, g: int, i: int, policy: Policy, dataset: ScoredDataset, reward: Reward) -> Policy:
        """Improve step i of Grow step g."""
        improve = self.experiment.improve
        start = policy if improve.start == "previous" else self.policy(StageName("bc"))
        return self.stage(Improve(g, i, start, dataset, reward, self.scorers(improve.loss.needs)))

    def scorers(self, needs: tuple[str, ...]) -> Scorers:
        """The networks that a loss reads columns of: π₀, and the value of D_1's prefixes."""
        bc = self.policy(StageName("bc")) if {"bc_log_probs", "value"} & set(needs) else None
        if bc is None or "value" not in needs:
            return Scorers(bc)
        return Scorers(bc, self.stage(LearnValue(bc, open_dataset(self.out / StageName("grow", 1).folder))))

    def ppo(self) -> Policy:
        """Online RL from BC on the sources that Grow has, with the same reward."""
        if not self.experiment.ppo.rollouts:
            raise UserError("ppo.rollouts is 0, so there is no PPO to run; set it in the experiment or by a flag")
        return self.stage(PPO(self.policy(StageName("bc"), "rest bc"), self.reward()))

    def evaluate(self, name: StageName, policy: Policy) -> dict[str, Any]:
        """Reward and other metrics on test, and what differs from BC and from the policy before."""
        bc, newest, before = self.policy(StageName("bc"), "rest bc"), self.done.newest, self.done.before(name)
        previous = None if before is None else self.policy(before)
        first = self.reward() if newest > 1 else None
        result = self.stage(Evaluate(name, policy, self.reward(newest), bc, previous, newest, first))
        pairs = [(name, other) for other in dict.fromkeys([StageName("bc"), before]) if other and other != name]
        if name.made_by.kind == "bc_continued" and self.done.improves:
            pairs.append((self.done.improves[-1], name))
        for new, old in pairs:
            compare_stages(self.out / evaluations(newest), new.folder, old.folder, self.experiment.seed)
        return result

    # Policies that are there

    def policy_before(self, g: int, i: int = 0) -> Policy:
        """The policy that Improve step i of Grow step g starts from; of i = 0 the one that samples D_g."""
        before = self.done.before(StageName("improve", g, i))
        assert before is not None
        return self.policy(before, f"rest improve --g {g} --i {i - 1}" if i > 1 else "rest bc")

    def policy(self, name: StageName, made_by: str = "rest run") -> Policy:
        """The policy of a stage that must be complete."""
        if name.folder in self._used:
            return self._used[name.folder]
        if not self._there(name.policy):
            raise UserError(f"{self.out / name.folder}: no such policy in this run; they are made with `{made_by}`")
        self._used[name.folder] = policy = self.inputs.policy(self.out / name.policy)
        if name.kind == "bc":
            self._kept.setdefault("bc", (None, policy))
        return policy

    def nothing_passes(self, g: int, i: int, dataset: ScoredDataset) -> bool:
        """Whether the filter of Improve step i leaves nothing, which ends this Grow step with a warning."""
        improve = self.experiment.improve
        if self._there(StageName("improve", g, i).folder) or processes.agreed(select(dataset, improve, i).rows):
            return False
        say(f"improve {g}.{i}: warning: no row passes {named(improve.rule, i)}; grow {g} ends here")
        return True

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keeps experiment.json: the settings that the folder was last gone on with and not refused."""
        path, settings = self.out / "experiment.json", describe(self.experiment)
        self.out.mkdir(parents=True, exist_ok=True)
        if not self._there(path.name):
            processes.first(lambda: write_json(path, settings))
        yield
        processes.first(lambda: write_json(path, settings))

    def _there(self, path: str) -> bool:
        """Whether the run has a file or folder, as process 0 sees it."""
        return processes.lead((self.out / path).exists)


def _worked(out: Path, path: str) -> None:
    """Where several processes made a stage, a line in processes.jsonl: the rows of each."""
    each = processes.exchange(dict(processes.done))
    processes.done.clear()
    if processes.several() and processes.talks():
        with (out / "processes.jsonl").open("a") as file:
            file.write(json.dumps({"stage": path, "processes": each}) + "\n")


def controls(run: Run) -> None:
    """What a gain is held against: BC trained for as long, BC sampled at lower temperatures, and the best of BC's
    samples by the reward and by MBR, which is as much as training on them can distil."""
    settings, newest = run.experiment.evaluation, run.done.newest
    for name, policy in run.bc_continued():
        run.evaluate(name, policy)
    of_bc = StageName("bc"), run.policy(StageName("bc")), run.reward(newest)
    for temperature in settings.bc_temperatures:
        if temperature != run.experiment.evaluation_sampling.temperature:
            run.stage(SampledAt(*of_bc, temperature, newest))
    if n := settings.ceiling_samples:
        for ceiling in (DecodingSettings("best_of_n", n), DecodingSettings("mbr", n)):
            run.stage(Decode(*of_bc, ceiling, newest))


@contextmanager
def open_in_pool(
    out: Path, pool: Path | None, path: str, settings: dict[str, Any], shared: bool
) -> Iterator[StageFolder]:
    """The folder of a stage in a run's; where there is a pool, one of the pool, linked to when it is complete."""
    here = out / path
    if pool is None or (here.exists() and not here.is_symlink()):
        with open_stage(here, settings, shared=shared) as folder:
            yield folder
        return
    identity = hashlib.sha256(json.dumps([path, settings], sort_keys=True).encode()).hexdigest()
    there = pool / f"{path.replace('/', '.')}-{identity[:16]}"
    if here.is_symlink() and here.resolve() != there.resolve():
        with open_stage(here, settings, shared=shared):  # which says what differs
            raise UserError(f"{here}: links to another stage; remove the link")
    with open_stage(there, settings, shared=shared) as folder:
        yield folder
    if folder.finished and not here.is_symlink():
        here.parent.mkdir(parents=True, exist_ok=True)
        link = here.with_name(f".{here.name}.{os.getpid()}.link")
        link.symlink_to(os.path.relpath(there.resolve(), here.parent.resolve()), target_is_directory=True)
        os.replace(link, here)
