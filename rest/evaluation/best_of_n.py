"""Best-of-N: the sample that the reward likes best of N, for all N at once, and what else is true of that sample.

M samples per source are drawn once. Every choice of N of them is a Best-of-N trial, and the mean over all of them has a
closed form: the i-th lowest of M samples is the best of N with probability C(i-1, N-1) / C(M, N). It has no bias,
which resampling N of M with replacement has (the paper's figure 6; Gao et al. 2023, arXiv 2210.10760, appendix I).

Ties: among samples of equal reward any is equally likely to be chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rest.data.corpus import Split
from rest.errors import UserError
from rest.evaluation.outputs import Chooser, Outputs, draw_hypotheses, flat_scores
from rest.learning.mesh import MachineSettings
from rest.policy.policy import Policy
from rest.policy.sampler import Hypotheses, SamplingSettings
from rest.statistics.intervals import resampled_curves

CELLS_AT_ONCE = 4_000_000  # pairs of samples compared at a time, about 100 MB


def order_weights(samples: int) -> np.ndarray:
    """float64 [M, M]: in column N - 1, how likely the i-th lowest of M samples is the best of N of them."""
    n, rank = np.arange(1, samples + 1)[None], np.arange(samples, 1, -1)[:, None]
    falls = np.maximum(rank - n, 0) / np.maximum(rank - 1, 1)  # C(i-2, N-1) / C(i-1, N-1), from i = M down to 2
    return (np.concatenate([n / samples, falls]).cumprod(axis=0))[::-1]


def best_of(reward: np.ndarray, values: np.ndarray) -> np.ndarray:
    """float64 [sources, M]: the expected value of the best of N = 1 ... M samples of each source.

    `reward` [sources, M] chooses and `values` [sources, M] is what is reported of the chosen: the reward itself, or
    another metric of the same samples.
    """
    reward, values = _checked(reward, values)
    order = np.argsort(reward, axis=1, kind="stable")
    ranked, told = np.take_along_axis(reward, order, 1), np.take_along_axis(values, order, 1)
    return _level(told, _groups(ranked)) @ order_weights(reward.shape[1])


def win_rate(reward: np.ndarray, values: np.ndarray) -> np.ndarray:
    """float64 [sources, M - 1]: how often the best of N = 1 ... M - 1 has a higher value than one sample more.

    The mean over every choice of N samples and one beside them; equal values count a half. Without ties the win rate
    of the reward itself is N / (N + 1), and with ties less.
    """
    reward, values = _checked(reward, values)
    sources, samples = reward.shape
    if samples < 2:
        raise UserError("a win rate against one sample needs at least 2 samples per source")
    block = max(1, CELLS_AT_ONCE // samples**2)
    parts = [_wins(reward[k : k + block], values[k : k + block]) for k in range(0, sources, block)]
    return np.concatenate(parts)


def _wins(reward: np.ndarray, values: np.ndarray) -> np.ndarray:
    samples = reward.shape[1]
    order = np.argsort(reward, axis=1, kind="stable")
    ranked, told = np.take_along_axis(reward, order, 1), np.take_along_axis(values, order, 1)
    beaten = 0.5 * (1 + np.sign(told[:, :, None] - told[:, None, :]))  # of each pair: won, drawn (a half), lost
    below = (beaten * (ranked[:, None, :] < ranked[:, :, None])).sum(2)
    above = (beaten * (ranked[:, None, :] > ranked[:, :, None])).sum(2)
    # Opponents of equal reward stand before or after at random, and two of them win against each other half the time.
    groups = _groups(ranked)
    place = np.arange(samples)[None]
    first = (ranked[:, None, :] < ranked[:, :, None]).sum(2)
    last = samples - 1 - (ranked[:, None, :] > ranked[:, :, None]).sum(2)
    below, above = _level(below, groups) + (place - first) / 2, _level(above, groups) + (last - place) / 2
    weights = order_weights(samples - 1)  # of the others, once the opponent is set aside
    nothing = np.zeros((1, samples - 1))
    return (below @ np.concatenate([nothing, weights]) + above @ np.concatenate([weights, nothing])) / samples


def kl_bound(n: int) -> float:
    """log N - (N - 1) / N, nats: KL(Best-of-N || policy) is at most that (Beirami et al. 2024, arXiv 2401.01879)."""
    return math.log(n) - (n - 1) / n


def _checked(reward: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    reward, values = np.asarray(reward, np.float64), np.asarray(values, np.float64)
    if reward.ndim != 2 or reward.size == 0 or reward.shape != values.shape:
        raise UserError(f"Best-of-N needs [sources, samples] twice, got shapes {reward.shape} and {values.shape}")
    if not (np.isfinite(reward).all() and np.isfinite(values).all()):
        raise UserError("Best-of-N needs finite rewards and metrics")
    return reward, values


def _groups(ranked: np.ndarray) -> np.ndarray:
    """int [sources, M]: a number for each run of equal rewards of a source."""
    new = np.ones(ranked.shape, bool)
    new[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    return new.cumsum().reshape(ranked.shape) - 1


def _level(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Each value replaced by the mean of its group."""
    flat = groups.ravel()
    return (np.bincount(flat, values.ravel()) / np.bincount(flat))[flat].reshape(values.shape)


@dataclass(frozen=True)
class Curve:
    """A metric of the best of N = 1 ... K samples, with intervals over sources."""

    mean: np.ndarray  # float64 [K]
    resampled: np.ndarray  # float64 [resamples, K]; the same resamples for every policy and metric of the same sources

    @classmethod
    def of(cls, values: np.ndarray, seed: int, resamples: int = 1000) -> Curve:
        """From values [sources, K]."""
        return cls(values.mean(axis=0), resampled_curves(values, seed, resamples))

    @property
    def ci95(self) -> np.ndarray:
        """float64 [2, K]"""
        return np.quantile(self.resampled, [0.025, 0.975], axis=0)

    def record(self) -> dict[str, list[float]]:
        lo, hi = self.ci95
        return {"mean": self.mean.tolist(), "lo": lo.tolist(), "hi": hi.tolist()}


@dataclass(frozen=True)
class Crossing:
    """The N at which one policy reaches what another has at `at`; None: not with as many samples as were drawn."""

    at: int
    target: float
    n: int | None
    lo: int | None  # the 95 % interval of n, paired over sources
    hi: int | None


def crossing(curve: Curve, other: Curve, at: int) -> Crossing:
    """Where `curve` reaches the value of `other` at N = `at`."""

    def reached(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """int [rows]: the first N, or one more than there are."""
        there = rows >= targets[:, None] - 1e-12
        return np.where(there.any(1), there.argmax(1), rows.shape[1]) + 1

    most = len(curve.mean)
    found = reached(curve.mean[None], other.mean[None, at - 1])[0]
    ends = np.quantile(reached(curve.resampled, other.resampled[:, at - 1]), [0.025, 0.975], method="inverted_cdf")
    n, lo, hi = (int(k) if k <= most else None for k in (found, *ends))
    return Crossing(at, float(other.mean[at - 1]), n, lo, hi)


def curves_of(scores: Mapping[str, np.ndarray], seed: int) -> tuple[dict[str, Curve], dict[str, Curve]]:
    """Curves of every metric of the chosen sample, and win rates against N = 1, by the name of the metric.

    `scores` are float [sources, M]; "reward" chooses.
    """
    reward = scores["reward"]
    curves = {name: Curve.of(best_of(reward, values), seed) for name, values in scores.items()}
    if reward.shape[1] < 2:
        return curves, {}
    return curves, {name: Curve.of(win_rate(reward, values), seed) for name, values in scores.items()}


def record(outputs: Outputs) -> dict[str, dict[str, dict[str, list[float]]]]:
    """All curves and win rates of samples, as JSON."""
    curves, wins = curves_of(outputs.scores, seed=0)
    named = {"curves": curves, "win_rates": wins}
    return {kind: {name: curve.record() for name, curve in found.items()} for kind, found in named.items()}


@dataclass(frozen=True)
class BestOfN:
    """Decoding: of N samples the one with the highest reward, of equal ones the first."""

    n: int = 8
    """Samples per source."""
    sampling: SamplingSettings = SamplingSettings()

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"n must be at least 1, not {self.n}")

    def __call__(
        self,
        policy: Policy,
        split: Split,
        reward: Chooser | None,
        seed: int,
        machine: MachineSettings | None = None,
    ) -> list[str]:
        """One hypothesis per source."""
        if reward is None:
            raise UserError("Best-of-N chooses by a reward, and there is none")
        return self.chosen(draw_hypotheses(policy, split, self.n, self.sampling, seed, machine), split, reward)

    def chosen(self, drawn: Hypotheses, split: Split, reward: Chooser) -> list[str]:
        """The same of samples that have been drawn already."""
        best = flat_scores(reward, split, drawn.texts).argmax(1)
        return [texts[k] for texts, k in zip(drawn.texts, best, strict=True)]
