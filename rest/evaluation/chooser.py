"""What chooses a checkpoint on dev: the reward of samples or of greedy outputs, a metric of those, or the loss.

What training optimises need not be what a user wants to choose by: a consensus of samples cannot score a greedy output
alone, and a learned reward may not see what BC gains by training on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from rest import processes
from rest.baselines.bc import dev_loss
from rest.data.batches import BatchSettings
from rest.data.corpus import Split
from rest.errors import UserError, refuse_below
from rest.evaluation.outputs import LEAST_PEERS, draw, rewards_of
from rest.learning.mesh import MachineSettings
from rest.policy.beam import BeamSettings, translate
from rest.policy.policy import Policy
from rest.policy.sampler import SamplingSettings
from rest.reward.reward import Reward, name_of
from rest.statistics.intervals import corpus_scores

Score = Callable[[Policy], dict[str, float]]
"""An evaluation for `train`: "score", of which more is better, the same at every call."""


@dataclass(frozen=True)
class Dev:
    """The dev text, and how policies are run on it."""

    split: Split
    sampling: SamplingSettings
    beam: BeamSettings
    """Its lengths; on dev decoding is greedy."""
    batch: BatchSettings
    bleu_tokenizer: str
    seed: int
    machine: MachineSettings | None = None

    def first(self, sources: int) -> Split:
        """So many sources, all for 0."""
        return self.split.take(slice(0, sources)) if 0 < sources < len(self.split) else self.split

    @property
    def greedy(self) -> BeamSettings:
        """Without the settings that decide nothing with one beam."""
        return BeamSettings(1, max_target_tokens=self.beam.max_target_tokens)

    def translated(self, policy: Policy, split: Split) -> list[str]:
        """The greedy output of every source."""
        return translate(policy, split.sources, self.greedy, self.machine)


@runtime_checkable
class DevChooser(Protocol):
    """Any frozen dataclass that can score policies on dev will do."""

    @property
    def name(self) -> str:
        """What chose, for the report: "loss of the references"."""
        ...

    @property
    def by_reward(self) -> bool:
        """Whether the reward decides; without it, a control is the same beside every reward."""
        ...

    def settings(self, dev: Dev) -> dict[str, Any]:
        """What of `dev` but its text and seed decides the choice: part of the identity of the stages that choose."""
        ...

    def of(self, dev: Dev, reward: Reward) -> Score:
        """How policies that learn from `reward` are scored; UserError where that is not possible."""
        ...


@dataclass(frozen=True)
class RewardOfSamples:
    """The mean reward of samples."""

    samples_per_source: int = 4
    """Samples of each dev source; a reward that compares them with each other needs four."""
    sources: int = 0
    """Dev sources; 0: all."""
    by_reward: ClassVar[bool] = True

    def __post_init__(self) -> None:
        refuse_below("choose.", self, {"samples_per_source": 1, "sources": 0})

    @property
    def name(self) -> str:
        many = self.samples_per_source
        return f"mean reward of {many} samples a source" if many > 1 else "mean reward of a sample of each source"

    def settings(self, dev: Dev) -> dict[str, Any]:
        return {"sampling": dev.sampling}

    def of(self, dev: Dev, reward: Reward) -> Score:
        split, n = dev.first(self.sources), self.samples_per_source
        if reward.compares and n < LEAST_PEERS:
            raise UserError(
                f"choose.samples_per_source {n}: the reward {reward.name} compares the samples of a source, "
                f"so at least {LEAST_PEERS} are needed"
            )

        def score(policy: Policy) -> dict[str, float]:
            def work(own: slice) -> np.ndarray:
                part = split.take(own)
                drawn = draw(policy, part, n, dev.sampling, dev.seed, dev.machine)
                return _there(rewards_of(reward, part, drawn))

            return {"score": _mean(processes.divided(len(split), work))}

        return score


@dataclass(frozen=True)
class RewardOfGreedy:
    """The mean reward of greedy outputs."""

    sources: int = 0
    """Dev sources; 0: all."""
    name: ClassVar[str] = "mean reward of greedy outputs"
    by_reward: ClassVar[bool] = True

    def __post_init__(self) -> None:
        refuse_below("choose.", self, {"sources": 0})

    def settings(self, dev: Dev) -> dict[str, Any]:
        return {"greedy": dev.greedy}

    def of(self, dev: Dev, reward: Reward) -> Score:
        split = dev.first(self.sources)
        if reward.compares:
            raise UserError(
                f"choose: the reward {reward.name} compares samples and cannot score greedy outputs alone; "
                "let RewardOfSamples, MetricOfGreedy or DevLoss choose"
            )

        def score(policy: Policy) -> dict[str, float]:
            def work(own: slice) -> np.ndarray:
                part = split.take(own)
                return _there(rewards_of(reward, part, [[y] for y in dev.translated(policy, part)]))

            return {"score": _mean(processes.divided(len(split), work))}

        return score


@dataclass(frozen=True)
class CorpusChrF:
    """sacreBLEU's chrF of all outputs together, from 0 to 100."""

    name: ClassVar[str] = "chrF"

    def __call__(self, outputs: list[str], split: Split, bleu_tokenizer: str) -> float:
        return _corpus("chrf", outputs, split, bleu_tokenizer)


@dataclass(frozen=True)
class CorpusBLEU:
    """sacreBLEU's BLEU of all outputs together, from 0 to 100."""

    name: ClassVar[str] = "BLEU"

    def __call__(self, outputs: list[str], split: Split, bleu_tokenizer: str) -> float:
        return _corpus("bleu", outputs, split, bleu_tokenizer)


@dataclass(frozen=True)
class CorpusMean:
    """The geometric mean of metrics from 0 up, in which a tenth more of any counts alike.

    chrF weighs what is missing twice as heavily as what is too much, so that by it alone a weak policy wins that learns
    to write long texts; BLEU falls with each word that is too much.
    """

    metrics: tuple[Any, ...] = (CorpusBLEU(), CorpusChrF())

    @property
    def name(self) -> str:
        names = [getattr(metric, "name", name_of(metric)) for metric in self.metrics]
        return f"mean of {' and '.join(names)}"

    def __call__(self, outputs: list[str], split: Split, bleu_tokenizer: str) -> float:
        scores = [float(metric(outputs, split, bleu_tokenizer)) for metric in self.metrics]
        return float(np.prod(scores) ** (1 / len(scores)))


@dataclass(frozen=True)
class MetricOfGreedy:
    """A metric of greedy outputs against dev's references: what a user ships, by what nothing was trained on."""

    metric: Any = field(default_factory=CorpusChrF)
    """CorpusChrF, CorpusBLEU, CorpusMean, or any function of (outputs, split, BLEU's tokenizer); more is better."""
    sources: int = 0
    """Dev sources; 0: all."""
    by_reward: ClassVar[bool] = False

    def __post_init__(self) -> None:
        refuse_below("choose.", self, {"sources": 0})

    @property
    def name(self) -> str:
        return f"{getattr(self.metric, 'name', name_of(self.metric))} of greedy outputs"

    def settings(self, dev: Dev) -> dict[str, Any]:
        return {"greedy": dev.greedy, "bleu_tokenizer": dev.bleu_tokenizer}

    def of(self, dev: Dev, reward: Reward) -> Score:
        split = dev.first(self.sources)
        if split.references is None:
            raise UserError("choose: MetricOfGreedy needs the references of dev, and this text has none")
        return lambda policy: {"score": float(self.metric(dev.translated(policy, split), split, dev.bleu_tokenizer))}


@dataclass(frozen=True)
class DevLoss:
    """The loss of dev's references, as in behavioural cloning."""

    name: ClassVar[str] = "loss of the references"
    by_reward: ClassVar[bool] = False

    def settings(self, dev: Dev) -> dict[str, Any]:
        return {"batch": dev.batch}

    def of(self, dev: Dev, reward: Reward) -> Score:
        return lambda policy: dict(dev_loss(policy, dev.split, dev.batch)(policy))


def _there(rewards: np.ndarray | None) -> np.ndarray:
    assert rewards is not None  # there are peers enough where they are needed
    return rewards


def _mean(rewards: list[np.ndarray]) -> float:
    return float(np.concatenate(rewards).mean(dtype=np.float64))


def _corpus(name: str, outputs: list[str], split: Split, bleu_tokenizer: str) -> float:
    assert split.references is not None  # MetricOfGreedy has looked
    found = corpus_scores(outputs, split.references, 1, bleu_tokenizer, split.more_references, (name,))[name]
    assert isinstance(found, float)
    return found
