"""Improve step i of Grow step g, and the value network that some losses read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rest import processes
from rest.baselines.bc import human_pairs
from rest.columns import Scorers, learn_value
from rest.data.store import ScoredDataset
from rest.folder import StageFolder, StageName, discard
from rest.improve import improve
from rest.policy.policy import Policy
from rest.policy.value import Value
from rest.reward.reward import Reward
from rest.stages.inputs import Inputs, finish_policy


@dataclass(frozen=True)
class Improve:
    """A policy that is fine-tuned on the rows of D_g that pass; the best on dev."""

    g: int
    i: int
    start: Policy
    dataset: ScoredDataset
    reward: Reward
    scorers: Scorers
    """The networks behind the columns that the loss reads."""

    shared: ClassVar[bool] = False

    @property
    def path(self) -> str:
        return StageName("improve", self.g, self.i).folder

    def settings(self, inputs: Inputs) -> dict[str, Any]:
        e = inputs.experiment
        known: dict[str, Any] = {
            "policy": self.start.identity,
            "dataset": self.dataset.identity,
            "reward": self.reward.settings,
        }
        known |= {"improve": e.improve.at(self.g, self.i) | {"batch": e.improve_batch}, "choose": inputs.choose}
        known |= inputs.share if e.improve.human_pairs == "all" else {}
        return known | {name: of.identity for name, of in vars(self.scorers).items() if of is not None}

    def make(self, inputs: Inputs, folder: StageFolder) -> None:
        e = inputs.experiment
        policy, result = improve(
            self.start,
            self.dataset,
            e.improve,
            e.improve_batch,
            g=self.g,
            i=self.i,
            evaluate=inputs.on_dev(self.reward),
            folder=folder.path,
            seed=e.seed,
            pairs=human_pairs(self.start, inputs.parts.bc) if e.improve.human_pairs == "all" else None,
            scorers=self.scorers,
            machine=e.machine,
        )
        finish_policy(folder, policy, result | {"chosen_by": e.choose.name})

    def read(self, inputs: Inputs, folder: Path) -> Policy:
        return inputs.policy(folder / "policy")


@dataclass(frozen=True)
class LearnValue:
    """The value of D_1's prefixes, learned once."""

    bc: Policy
    dataset: ScoredDataset
    path: str = StageName("value").folder

    shared: ClassVar[bool] = False

    def settings(self, inputs: Inputs) -> dict[str, Any]:
        e = inputs.experiment
        return {"bc": self.bc.identity, "dataset": self.dataset.identity, "value": e.improve.value, "batch": e.batch}

    def make(self, inputs: Inputs, folder: StageFolder) -> None:
        e = inputs.experiment
        value, result = learn_value(
            self.bc, self.dataset, e.improve.value, e.batch, folder=folder.path, seed=e.seed, machine=e.machine
        )
        processes.first(lambda: value.save(folder.path / "network"))
        processes.first(lambda: discard(folder.path / "checkpoints"))
        folder.finish(result)

    def read(self, inputs: Inputs, folder: Path) -> Value:
        return Value.load(folder / "network", self.bc, inputs.experiment.machine)
