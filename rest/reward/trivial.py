"""Trivial rewards, which any reward worth training must agree better with people than."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rest.ratings.record import Ratings
from rest.reward.reference_based import SentenceChrF
from rest.reward.reward import RewardFunction
from rest.statistics.words import count_words, log_length_ratios


@dataclass(frozen=True)
class LengthRatio:
    """Minus how far the hypothesis' length is from the usual one, as a logarithm; 0 is best."""

    usual: float = 0.0  # logarithm of the usual ratio of hypothesis to source, in words

    @classmethod
    def of(cls, sources: Sequence[str], hypotheses: Sequence[str]) -> LengthRatio:
        """With the median ratio of these texts as the usual one."""
        return cls(float(np.median(log_length_ratios(sources, hypotheses))))

    def __call__(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
    ) -> np.ndarray:
        """Raw scores, float32 [n]. References are not looked at."""
        return -np.abs(log_length_ratios(sources, hypotheses) - self.usual).astype(np.float32)


@dataclass(frozen=True)
class Constant:
    """The same score for everything: its calibrated pairwise accuracy is the share of pairs that people tie."""

    def __call__(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
    ) -> np.ndarray:
        """Raw scores, float32 [n]. Nothing is looked at."""
        return np.zeros(len(hypotheses), np.float32)


@dataclass(frozen=True)
class ShortSource:
    """Minus the logarithm of the source's words: a long sentence has more errors, whatever its translation is."""

    def __call__(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
    ) -> np.ndarray:
        """Raw scores, float32 [n]. Only the sources are looked at."""
        return -np.log1p([count_words(text) for text in sources]).astype(np.float32)


@dataclass(frozen=True)
class SourceOverlap:
    """chrF of the hypothesis with its source, 0..100: highest for a copy of the source."""

    def __call__(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
    ) -> np.ndarray:
        """Raw scores, float32 [n]. References are not looked at."""
        return SentenceChrF()(sources, hypotheses, sources)


def trivial_rewards(ratings: Ratings) -> dict[str, RewardFunction]:
    """Those that need nothing but the ratings, by name; chrF only where all rows have references."""
    found: dict[str, RewardFunction] = {
        "constant": Constant(),
        "length ratio": LengthRatio.of(ratings.sources, ratings.hypotheses),
        "short source": ShortSource(),
        "overlap with source": SourceOverlap(),
    }
    return found if ratings.all_references is None else {**found, "chrF with reference": SentenceChrF()}
