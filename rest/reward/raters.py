"""Raters: where ratings to learn a reward from come from when no person can be asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from rest.data.corpus import Gold
from rest.errors import UserError
from rest.reward.reference_based import SentenceBLEU, SentenceChrF
from rest.statistics.words import log_length_ratios

# Relative lengths this factor apart are one standard deviation apart; a constant, so that a rating does not depend
# on what is rated beside it.
LENGTH_FACTOR = 1.3


def _normals(sources: Sequence[str], hypotheses: Sequence[str], seed: int, rater: int) -> np.ndarray:
    """Standard normal noise, float64 [n]: a function of (seed, rater, source, hypothesis) alone."""
    digests = bytearray()
    for source, hypothesis in zip(sources, hypotheses, strict=True):
        # The source's length parts it from the hypothesis; lone surrogates are text too.
        key = f"{seed}/{rater}/{len(source)}/{source}{hypothesis}"
        digests += blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    uniform = (np.frombuffer(digests, "<u8").reshape(-1, 2) >> 11) * 2.0**-53  # [n, 2] in [0, 1)
    return np.sqrt(-2 * np.log1p(-uniform[:, 0])) * np.cos(2 * np.pi * uniform[:, 1])  # Box–Muller


def _relative_lengths(sources: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
    """Words of the hypothesis over words of the source, float64 [n], in standard deviations within [-3, 3]."""
    return np.clip(log_length_ratios(sources, hypotheses) / math.log(LENGTH_FACTOR), -3, 3)


@dataclass(frozen=True)
class SimulatedRater:
    """People who see the gold quality through noise, and may favour long translations."""

    noise: float = 0.25  # standard deviation of one person's rating around the gold quality
    length_bias: float = 0.0  # added per standard deviation of relative length
    raters: int = 1  # people whose ratings are averaged

    def __post_init__(self) -> None:
        if not 0 <= self.noise < math.inf:
            raise UserError(f"noise must be a number not below 0, but is {self.noise}.")
        if not math.isfinite(self.length_bias):
            raise UserError(f"length_bias must be a number, but is {self.length_bias}.")
        if self.raters < 1:
            raise UserError(f"raters must be at least 1, but is {self.raters}.")

    def rate(
        self,
        sources: Sequence[str],
        hypotheses: Sequence[str],
        references: Sequence[str] | None,
        gold: Gold | None,
        seed: int,
    ) -> np.ndarray:
        """Ratings, float32 [n] in [0, 1]; a row's depends on its texts and the seed, not on the rows beside it.

        References are not looked at. UserError where the task knows no gold quality.
        """
        if gold is None:
            raise UserError("the simulated rater needs a task with gold quality, but this one has none.")
        noise = np.zeros(len(sources))
        for rater in range(self.raters):
            noise += _normals(sources, hypotheses, seed, rater) * self.noise / self.raters
        quality = np.asarray(gold(sources, hypotheses), float)
        bias = self.length_bias * _relative_lengths(sources, hypotheses)
        return np.clip(quality + noise + bias, 0, 1).astype(np.float32)


@dataclass(frozen=True)
class MetricRater:
    """A metric against the reference in place of people: for real text that nobody rated."""

    metric: SentenceChrF | SentenceBLEU = SentenceChrF()  # what is measured

    def rate(
        self,
        sources: Sequence[str],
        hypotheses: Sequence[str],
        references: Sequence[str] | None,
        gold: Gold | None,
        seed: int,
    ) -> np.ndarray:
        """Ratings, float32 [n] in [0, 1]: the metric on its scale; UserError without references.

        Gold and seed are not looked at.
        """
        low, high = self.metric.scale
        return np.clip((self.metric(sources, hypotheses, references) - low) / (high - low), 0, 1)
