"""Which checkpoint of a reward in training is kept: the one that agrees best with the ratings held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from rest.ratings.record import pairs_within
from rest.statistics.correlation import pearson, ranked_right


@runtime_checkable
class Choice(Protocol):
    """How well scores agree with the ratings of the same rows, all [n]; higher is better. Any Python function will do.

    Rows of one source have one number in `groups`.
    """

    def __call__(self, scores: np.ndarray, ratings: np.ndarray, groups: np.ndarray, /) -> float: ...


@dataclass(frozen=True)
class WithinSources:
    """The share of the pairs of one source that are ranked right.

    It is all that rules per source, Best-of-N and losses that compare candidates ask of a reward, while most of what
    ratings differ by is which source is hard.
    """

    def __call__(self, scores: np.ndarray, ratings: np.ndarray, groups: np.ndarray) -> float:
        return ranked_right(scores, ratings, groups)


@dataclass(frozen=True)
class AcrossSources:
    """Pearson's correlation over all rows: what one threshold for all sources asks of a reward."""

    def __call__(self, scores: np.ndarray, ratings: np.ndarray, groups: np.ndarray) -> float:
        return pearson(scores, ratings)


@dataclass(frozen=True)
class WithinAndAcross:
    """The mean of both."""

    def __call__(self, scores: np.ndarray, ratings: np.ndarray, groups: np.ndarray) -> float:
        return (ranked_right(scores, ratings, groups) + pearson(scores, ratings)) / 2


def can_rank(ratings: np.ndarray, groups: np.ndarray) -> bool:
    """Whether a source has two rows of different ratings."""
    left, right = pairs_within(groups)
    return bool((ratings[left] != ratings[right]).any())
