"""How likely a policy finds a text: the hypothesis given its source, or the source given the hypothesis.

The second is the channel model of translation (Brown et al. 1993; Yee et al. 2019, "Simple and Effective Noisy Channel
Modeling for Neural Machine Translation") and the reward of dual learning (He et al. 2016): what the hypothesis leaves
out cannot be found again. It needs human pairs and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from rest.data.batches import BatchSettings, Examples
from rest.data.corpus import Cleaning, cleaning_of
from rest.policy.policy import Policy, last_policy, sequence_log_probs
from rest.reward.reward import Reward


@dataclass(frozen=True)
class PolicyLogProb:
    """Mean log-probability of the hypothesis' tokens under a policy, nats; 0 is best."""

    policy: Policy
    batch: BatchSettings = BatchSettings()  # longer texts are cut to what a row holds

    def __call__(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
    ) -> np.ndarray:
        """Raw scores, float32 [n]. References are not looked at."""
        read = [ids[: self.batch.source_tokens] for ids in self.policy.encode_sources(sources)]
        written = [ids[: self.batch.target_tokens] for ids in self.policy.encode_references(hypotheses)]
        total = sequence_log_probs(self.policy, Examples(read, written), self.batch)
        return total / np.array([len(ids) for ids in written], np.float32)


@dataclass(frozen=True)
class Likelihood:
    """Mean log-probability of the hypothesis' tokens given the source, nats; 0 is best.

    The policy is that in the folder of a run or of a stage, and reads texts as that run cleaned its own. `reward` maps
    the scores to [0, 1].
    """

    folder: Path
    batch: BatchSettings = BatchSettings()
    """How many texts are read at once; longer ones are cut to what a row holds."""
    kind: ClassVar[str] = "Likelihood"

    @property
    def reward(self) -> Reward:
        """From -5 nats a token, below which nothing is told apart."""
        return Reward(self, (-5.0, 0.0))

    @cached_property
    def _read(self) -> tuple[PolicyLogProb, Cleaning]:
        """Read on first use."""
        return PolicyLogProb(last_policy(self.folder), self.batch), cleaning_of(self.folder)

    @property
    def identity(self) -> str:
        """What decides the scores, but not where the folder is."""
        read, cleaning = self._read
        lengths = self.batch.source_tokens, self.batch.target_tokens
        return f"{self.kind} {read.policy.identity} {lengths} {cleaning}"

    def __call__(self, sources: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        """Float32 [n]. What occurs twice is read once."""
        read, cleaning = self._read
        rows: dict[tuple[str, str], int] = {}
        which = [rows.setdefault(row, len(rows)) for row in zip(sources, hypotheses, strict=True)]
        given, told = ([cleaning.line(row[side]) for row in rows] for side in (0, 1))
        return self._of(read, given, told)[which]

    def _of(self, policy: PolicyLogProb, sources: list[str], hypotheses: list[str]) -> np.ndarray:
        return policy(sources, hypotheses, None)


@dataclass(frozen=True)
class Reconstruction(Likelihood):
    """Mean log-probability of the source's tokens given the hypothesis, by a policy that translates the other way."""

    kind: ClassVar[str] = "Reconstruction"

    def _of(self, policy: PolicyLogProb, sources: list[str], hypotheses: list[str]) -> np.ndarray:
        return policy(hypotheses, sources, None)
