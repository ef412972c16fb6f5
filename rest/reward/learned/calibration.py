"""What maps the scores of a learned reward to [0, 1], fitted on ratings that it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import isotonic_regression

from rest.errors import UserError
from rest.reward.reward import Calibration


@dataclass(frozen=True)
class MinMax:
    """The range of the held-out scores: 0 below the lowest, 1 above the highest. Ratings are not looked at."""

    margin: float = 0.05
    """How far beyond, as a share of the range."""

    def fit(self, scores: np.ndarray, ratings: np.ndarray) -> Calibration:
        low, high = float(scores.min()), float(scores.max())
        margin = self.margin * (high - low)
        return Calibration((low - margin, high + margin), (0.0, 1.0))


def _shares(ratings: np.ndarray, low: float, high: float) -> np.ndarray:
    """Ratings with `low` and `high` as 0 and 1, float64. UserError where most are beyond: another scale was meant."""
    shares = (ratings.astype(np.float64) - low) / (high - low)
    beyond = np.mean((shares < -1e-6) | (shares > 1 + 1e-6))  # ratings are float32
    if beyond > 0.5:
        raise UserError(
            f"calibration: {beyond:.0%} of the held-out ratings, {ratings.min():g} to {ratings.max():g}, lie beyond "
            f"its low {low:g} and high {high:g}. Ratings of several files have mean 0 and standard deviation 1"
        )
    return shares


@dataclass(frozen=True)
class Affine:
    """The least-squares line from scores to ratings, which `low` and `high` say to be 0 and 1."""

    low: float = 0.0
    high: float = 1.0

    def check(self, ratings: np.ndarray) -> None:
        """UserError where most ratings are not between `low` and `high`."""
        _shares(ratings, self.low, self.high)

    def fit(self, scores: np.ndarray, ratings: np.ndarray) -> Calibration:
        """UserError where the ratings do not rise with the scores, or most are not between `low` and `high`."""
        x, y = scores.astype(np.float64), _shares(ratings, self.low, self.high)
        slope = np.mean((x - x.mean()) * (y - y.mean())) / max(np.var(x), 1e-12)
        if slope <= 0:
            raise UserError("calibration: the held-out ratings do not rise with the reward's scores")
        zero = x.mean() - y.mean() / slope
        return Calibration((float(zero), float(zero + 1 / slope)), (0.0, 1.0))


@dataclass(frozen=True)
class Isotonic:
    """The rising steps nearest to the ratings, joined by lines (Zadrozny and Elkan 2002).

    Scores of one step get one reward: a threshold cannot part them.
    """

    low: float = 0.0
    high: float = 1.0

    def check(self, ratings: np.ndarray) -> None:
        """UserError where most ratings are not between `low` and `high`."""
        _shares(ratings, self.low, self.high)

    def fit(self, scores: np.ndarray, ratings: np.ndarray) -> Calibration:
        """UserError where the ratings do not rise with the scores, or most are not between `low` and `high`."""
        x, place, rows = np.unique(scores.astype(np.float64), return_inverse=True, return_counts=True)
        y = np.bincount(place, _shares(ratings, self.low, self.high)) / rows  # equal scores get one reward
        fitted = isotonic_regression(y, weights=rows)
        # a step at the mean of its scores
        at = fitted.blocks[:-1]
        knots = np.add.reduceat(x * rows, at) / np.add.reduceat(rows, at)
        levels = np.clip(fitted.x[at], 0, 1)
        rising = np.concatenate([[True], np.diff(knots) > 0])
        knots, levels = knots[rising], levels[rising]
        if len(knots) < 2:
            raise UserError("calibration: the held-out ratings do not rise with the reward's scores")
        return Calibration(tuple(map(float, knots)), tuple(map(float, levels)))


@dataclass(frozen=True)
class Quantile:
    """A reward is the share of the held-out samples whose scores lie below: 0.9 is exceeded by a tenth of them.

    The paper's thresholds, 0.7 to 0.99, then let shares of rows pass, whatever the scale of the scores. Human pairs
    that are rated are left out, since nearly all rows of Grow are samples. A score beyond all of theirs gets 0 or 1.
    """

    knots: int = 200
    """So many quantiles, evenly apart, are joined by lines."""

    of_samples: ClassVar[bool] = True  # `fit` gives no scores of human pairs

    def __post_init__(self) -> None:
        if self.knots < 2:
            raise UserError(f"calibration.knots must be at least 2, not {self.knots}")

    def fit(self, scores: np.ndarray, ratings: np.ndarray) -> Calibration:
        """The ratings are not looked at. UserError where all scores are equal."""
        shares = np.linspace(0, 1, self.knots)
        levels, which = np.unique(np.quantile(scores.astype(np.float64), shares), return_inverse=True)
        if len(levels) < 2:
            raise UserError(f"calibration: all {len(scores)} held-out scores are {levels[0]:g}")
        # scores that many samples have get the middle of their shares
        rewards = np.bincount(which, shares) / np.bincount(which)
        return Calibration(tuple(levels.tolist()), (0.0, *rewards[1:-1].tolist(), 1.0))
