"""The ways from a policy to one hypothesis per source: greedy, beam search, a sample, Best-of-N and MBR."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from rest.data.corpus import Gold, Split
from rest.errors import UserError, refuse_below
from rest.evaluation.best_of_n import BestOfN
from rest.evaluation.mbr import MBR, UTILITIES, ConfidencePruning, ModelBased, MonteCarlo
from rest.evaluation.outputs import Chooser, Outputs, draw, score
from rest.folder import seed_for
from rest.learning.mesh import MachineSettings
from rest.policy.beam import BeamSettings, translate
from rest.policy.policy import Policy
from rest.policy.sampler import SamplingSettings
from rest.reward.reward import Reward
from rest.statistics.intervals import bootstrap_ci, corpus_scores, length_ratio
from rest.statistics.text_metrics import copy_rate, empty_rate, repeated_ngrams

Way = Literal["greedy", "beam", "sample", "best_of_n", "mbr"]


@runtime_checkable
class Decoder(Protocol):
    """A policy's hypothesis for every source; some choose by a reward."""

    def __call__(
        self, policy: Policy, split: Split, reward: Chooser | None, seed: int, machine: MachineSettings | None = None, /
    ) -> list[str]: ...


@dataclass(frozen=True)
class Beam:
    """Beam search; with one beam greedy decoding."""

    settings: BeamSettings = BeamSettings()

    def __call__(
        self,
        policy: Policy,
        split: Split,
        reward: Chooser | None,
        seed: int,
        machine: MachineSettings | None = None,
    ) -> list[str]:
        return translate(policy, split.sources, self.settings, machine)


@dataclass(frozen=True)
class Sampled:
    """One draw."""

    sampling: SamplingSettings = SamplingSettings()

    def __call__(
        self,
        policy: Policy,
        split: Split,
        reward: Chooser | None,
        seed: int,
        machine: MachineSettings | None = None,
    ) -> list[str]:
        return [texts[0] for texts in draw(policy, split, 1, self.sampling, seed, machine)]


@dataclass(frozen=True)
class DecodingSettings:
    """How one hypothesis per source is found."""

    decode: Way = "beam"
    """best_of_n: the sample with the highest reward; mbr: the sample that is most like the others."""
    n: int = 16
    """Samples per source of best_of_n and mbr."""
    utility: Literal["chrf", "chrf-aggregate", "chrf++", "bleu", "chrf-bleu"] = "chrf"
    """What mbr compares samples by; chrf-aggregate is quick where n is in the hundreds, chrf-bleu the mean of both."""
    prune_to: int = 0
    """So many samples with the highest rewards are mbr's candidates; 0: all."""
    model_based: bool = False
    """In mbr a sample counts as the policy's probability of it, not as often as it was drawn."""
    confidence: float = 1.0
    """mbr leaves out early what is not the best with this confidence, such as 0.99; 1: every pair is compared."""

    def __post_init__(self) -> None:
        refuse_below("", self, {"n": 1, "prune_to": 0})
        if not 0 < self.confidence <= 1:
            raise UserError(f"confidence must be above 0 and at most 1, not {self.confidence}")

    def decoder(self, beam: BeamSettings, sampling: SamplingSettings) -> Decoder:
        ways: dict[str, Decoder] = {
            "greedy": Beam(replace(beam, beams=1)),
            "beam": Beam(beam),
            "sample": Sampled(sampling),
            "best_of_n": BestOfN(self.n, sampling),
            "mbr": self._mbr(sampling),
        }
        return ways[self.decode]

    def _mbr(self, sampling: SamplingSettings) -> MBR:
        weights = ModelBased() if self.model_based else MonteCarlo()
        pruning = None if self.confidence == 1 else ConfidencePruning(self.confidence)
        return MBR(self.n, UTILITIES[self.utility], self.prune_to, sampling, weights, pruning)

    @property
    def draws(self) -> int:
        """Samples per source."""
        return {"greedy": 0, "beam": 0, "sample": 1}.get(self.decode, self.n)

    @property
    def name(self) -> str:
        """For folders: best_of_n-16, mbr-16-bleu-8."""
        if self.decode == "mbr":
            further = ("-model" if self.model_based else "") + ("" if self.confidence == 1 else f"-{self.confidence:g}")
            return f"mbr-{self.n}-{self.utility}-{self.prune_to}{further}"
        return self.decode + (f"-{self.n}" if self.decode == "best_of_n" else "")


def evaluate_decoding(
    texts: list[str], split: Split, reward: Reward, gold: Gold | None, seed: int, tokenize: str = "13a"
) -> tuple[dict[str, Any], Outputs]:
    """Metrics of one hypothesis per source, under the names that a summary's row has, and the outputs.

    `tokenize` is sacreBLEU's name of what BLEU parts sentences by.
    """
    outputs = Outputs(split, [[y] for y in texts], score(reward, gold, split, [[y] for y in texts], chrf=True))
    metrics: dict[str, Any] = {}
    for name in [name for name in ("reward", "gold") if name in outputs.scores]:
        values = outputs.scores[name]
        metrics[f"{name}_mean"] = float(values.mean(dtype=np.float64))
        metrics[f"{name}_ci95"] = list(bootstrap_ci(values, seed_for(seed, "bootstrap")))
    if split.references is not None:
        metrics |= corpus_scores(texts, split.references, tokenize=tokenize, more_references=split.more_references)
        metrics["length_ratio"] = length_ratio(texts, split.references)
    metrics |= {"copy_rate": copy_rate(split.sources, texts), "empty_rate": empty_rate(texts)}
    return metrics | {"repeated_trigrams": repeated_ngrams(texts)}, outputs
