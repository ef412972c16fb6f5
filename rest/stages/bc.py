"""Behavioural cloning: π₀, the control that is trained on for longer, and the start of a reward of its own."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rest import processes
from rest.baselines.bc import clone, dev_loss
from rest.data.tokenizer import Tokenizer
from rest.evaluation.chooser import DevLoss
from rest.folder import StageFolder, StageName, seed_for
from rest.journal import say
from rest.learning.optimizers import InTurn, Stretch
from rest.learning.train import TrainSettings
from rest.model.families.huggingface import HuggingFaceModel
from rest.policy.policy import Policy
from rest.reward.learned.settings import TranslationModel
from rest.reward.reward import Reward
from rest.stages.inputs import Inputs, fetched, finish_policy


@dataclass(frozen=True)
class _Cloning:
    """What all three have in common: a policy at the end."""

    shared: ClassVar[bool] = False

    def read(self, inputs: Inputs, folder: Path) -> Policy:
        return inputs.policy(folder / "policy")


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
        e = inputs.experiment
        _warn_of_lost_characters(inputs.tokenizer, inputs.train.references or [])
        _clone(inputs, folder, self.path, inputs.new_policy(), e.bc.train, fetched(e.model))


def _warn_of_lost_characters(tokenizer: Tokenizer, references: list[str], texts: int = 1000, most: float = 0.1) -> None:
    """Say so where the vocabulary cannot write the text: one of lowercased text, say, beside text with capitals."""
    looked_at = references[:: max(1, len(references) // texts)][:texts]
    written = tokenizer.decode(tokenizer.encode_targets(looked_at))
    lost = [set(text) - set(again) for text, again in zip(looked_at, written, strict=True)]
    share = sum(map(bool, lost)) / max(1, len(lost))
    if share > most:
        counted = Counter(character for characters in lost for character in characters).most_common(5)
        examples = ", ".join(repr(character) for character, _ in counted)
        say(
            f"bc: warning: the vocabulary cannot write {examples}: {share:.0%} of the references lose a character. "
            "Start from a model of such text, or clean the text like its own (cleaning.lowercase, unicode_form)"
        )


@dataclass(frozen=True)
class RewardStart(_Cloning):
    """A translation model of the reward's own, with BC's tokenizer."""

    bc: Policy
    start: TranslationModel
    path: str = StageName("reward_start").folder

    def settings(self, inputs: Inputs) -> dict[str, Any]:
        e = inputs.experiment
        known = {"tokenizer": self.bc.tokenizer.identity, "batch": e.batch, "start": self.start}
        known |= {"label_smoothing": e.bc.label_smoothing}
        return {**known, **inputs.share}

    def make(self, inputs: Inputs, folder: StageFolder) -> None:
        new = Policy.new(self.start.model, self.bc.tokenizer, seed_for(inputs.experiment.seed, "reward start"))
        _clone(inputs, folder, self.path, new, self.start.train, {})


def _clone(
    inputs: Inputs, folder: StageFolder, name: str, new: Policy, training: TrainSettings, known: dict[str, str]
) -> None:
    """Behavioural cloning of a new policy, and its stage, whose result says what is known of the start."""
    e = inputs.experiment
    processes.first(lambda: new.tokenizer.save(folder.path / "tokenizer"))
    trained = clone(
        new,
        inputs.parts.bc,
        e.bc.label_smoothing,
        training,
        e.batch,
        evaluate=dev_loss(new, inputs.corpus.dev, e.batch),
        folder=folder.path,
        seed=e.seed,
        description=name,
        machine=e.machine,
    )
    say(f"{name}: {trained.steps} steps, {trained.stopped}, best step {trained.best_step}")
    result = {"gradient_steps": trained.steps, "stopped": trained.stopped, "chosen_by": DevLoss.name}
    finish_policy(folder, trained.best, result | known)


@dataclass(frozen=True)
class BCContinued(_Cloning):
    """The control: BC trained on D for as many further updates as what it is compared with, and at the same rates.

    Beside the policy that dev chooses stands the last one, in policy-last, where it is another: what chooses on dev may
    not see what BC gains.
    """

    bc: Policy
    reward: Reward
    steps: int
    way: tuple[tuple[StageName, int], ...] = ()
    """The Improve steps whose rates it follows and their updates; after them it goes on at the rates of PPO."""

    @property
    def path(self) -> str:
        return StageName("bc_continued", steps=self.steps).folder

    def settings(self, inputs: Inputs) -> dict[str, Any]:
        e = inputs.experiment
        known: dict[str, Any] = {"policy": self.bc.identity, "choose": inputs.choose}
        if e.choose.by_reward:
            known["reward"] = self.reward.settings
        known |= {"label_smoothing": e.bc.label_smoothing, "train": self.training(inputs), "batch": e.batch}
        if (share := e.improve.interpolation) < 1:
            known["interpolation"] = share
        return {**known, **inputs.share}

    def training(self, inputs: Inputs) -> TrainSettings:
        """One training with the learning rates of all those steps, averaged like them, and then with PPO's."""
        improve, ppo = inputs.experiment.improve, inputs.experiment.ppo
        rates = []
        for name, steps in self.way:
            one = improve.training(name.g, name.i)
            rates.append(Stretch(steps, one.schedule, one.rate_factor * improve.control_rate_factor))
        further = self.steps - sum(steps for _, steps in self.way)
        rates += [Stretch(further, ppo.schedule)] if further else []
        like: dict[str, Any] = {"schedule": InTurn(tuple(rates)), "rate_factor": 1.0}
        if not self.way:
            like |= {key: getattr(ppo, key) for key in ("optimizer", "trainable", "average", "ema")}
        return dataclasses.replace(improve.train, **like, max_steps=self.steps, patience=self.steps + 1)

    def make(self, inputs: Inputs, folder: StageFolder) -> None:
        e, evaluate = inputs.experiment, inputs.on_dev(self.reward)

        def interpolated(reached: Policy) -> Policy:
            return self.bc.towards(reached, e.improve.interpolation)

        trained = clone(
            self.bc,
            inputs.parts.bc,
            e.bc.label_smoothing,
            self.training(inputs),
            e.batch,
            evaluate=lambda reached: evaluate(interpolated(reached)),
            folder=folder.path,
            seed=e.seed,
            description="bc_continued",
            machine=e.machine,
        )
        if trained.best_step == 0:
            say("bc_continued: no checkpoint scored above BC, which is kept")
        same = trained.last.identity == trained.best.identity
        if not same:
            last = interpolated(trained.last)
            processes.first(lambda: last.save(folder.path / "policy-last"))
        result = {"gradient_steps": trained.steps, "best_step": trained.best_step, "dev_reward": trained.history}
        finish_policy(folder, interpolated(trained.best), result | {"chosen_by": e.choose.name, "last_is_chosen": same})
