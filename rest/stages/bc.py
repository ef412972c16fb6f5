"""Behavioural cloning: π₀, the control that is trained on for longer, and the start of a reward of its own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rest.baselines.bc import clone, dev_loss
from rest.evaluation.evaluate import mean_reward
from rest.folder import StageFolder, StageName, seed_for
from rest.journal import say
from rest.learning.train import TrainSettings
from rest.model.families.huggingface import HuggingFaceModel
from rest.policy.policy import Policy
from rest.reward.learned.settings import TranslationModel
from rest.reward.reward import Reward
from rest.stages.inputs import Inputs, finish_policy


@dataclass(frozen=True)
class _Cloning:
    """What all three have in common: a policy at the end."""

    shared: ClassVar[bool] = False

    def read(self, inputs: Inputs, folder: Path) -> Policy:
        return Policy.load(folder / "policy")


@dataclass(frozen=True)
class BC(_Cloning):
    """π₀: behavioural cloning until the dev loss stops falling."""

    path: str = StageName("bc").folder

    def settings(self, inputs: Inputs) -> dict[str, Any]:
        e = inputs.experiment
        start: dict[str, Any] = {"tokenizer": e.tokenizer, "model": e.model}
        if isinstance(e.model, HuggingFaceModel):  # known by its content, wherever its folder is
            start = {"start": inputs.new_policy().identity}
        return {**start, **inputs.share, "batch": e.batch, "bc": e.bc}

    def make(self, inputs: Inputs, folder: StageFolder) -> None:
        _clone(inputs, folder, self.path, inputs.new_policy(), inputs.experiment.bc.train)


@dataclass(frozen=True)
class RewardStart(_Cloning):
    """A translation model of the reward's own, with BC's tokenizer."""

    bc: Policy
    start: TranslationModel
    path: str = StageName("reward_start").folder

    def settings(self, inputs: Inputs) -> dict[str, Any]:
        e = inputs.experiment
        known = {"tokenizer": self.bc.tokenizer.identity, "batch": e.batch, "loss": e.bc.loss, "start": self.start}
        return {**known, **inputs.share}

    def make(self, inputs: Inputs, folder: StageFolder) -> None:
        new = Policy.new(self.start.model, self.bc.tokenizer, seed_for(inputs.experiment.seed, "reward start"))
        _clone(inputs, folder, self.path, new, self.start.train)


def _clone(inputs: Inputs, folder: StageFolder, name: str, new: Policy, training: TrainSettings) -> None:
    """Behavioural cloning of a new policy, and its stage."""
    e = inputs.experiment
    new.tokenizer.save(folder.path / "tokenizer")
    trained = clone(
        new,
        inputs.parts.bc,
        e.bc.loss,
        training,
        e.batch,
        evaluate=dev_loss(new, inputs.corpus.dev, e.batch),
        folder=folder.path,
        seed=e.seed,
        description=name,
        machine=e.machine,
    )
    say(f"{name}: {trained.steps} steps, {trained.stopped}, best step {trained.best_step}")
    finish_policy(folder, trained.best, {"gradient_steps": trained.steps, "stopped": trained.stopped})


@dataclass(frozen=True)
class BCContinued(_Cloning):
    """The control: BC trained on D for as many further steps as what it is compared with, by the same reward."""

    bc: Policy
    reward: Reward
    steps: int

    @property
    def path(self) -> str:
        return StageName("bc_continued", steps=self.steps).folder

    def settings(self, inputs: Inputs) -> dict[str, Any]:
        e = inputs.experiment
        known: dict[str, Any] = {"policy": self.bc.identity, "reward": self.reward.settings, "loss": e.bc.loss}
        known |= {"train": self._training(inputs), "batch": e.batch, "choose": inputs.choose}
        return {**known, **inputs.share}

    def _training(self, inputs: Inputs) -> TrainSettings:
        training = inputs.experiment.improve.training(1)
        return dataclasses.replace(training, max_steps=self.steps, patience=self.steps + 1)

    def make(self, inputs: Inputs, folder: StageFolder) -> None:
        e, dev = inputs.experiment, inputs.corpus.dev
        trained = clone(
            self.bc,
            inputs.parts.bc,
            e.bc.loss,
            self._training(inputs),
            e.batch,
            evaluate=mean_reward(dev, self.reward, e.evaluation, e.evaluation_sampling, e.seed, e.machine),
            folder=folder.path,
            seed=e.seed,
            description="bc_continued",
            machine=e.machine,
        )
        if trained.best_step == 0:
            say("bc_continued: no checkpoint scored above BC, which is kept")
        finish_policy(folder, trained.best, {"gradient_steps": trained.steps, "best_step": trained.best_step})
