"""Threshold rules: which rows of the scored dataset an improve step learns from (ReST, Algorithm 1 and A.7).

The filter is strict, R > tau. But sampling repeats texts, above all the best ones of easy sources, and a threshold must
not drop a source for that: rules per source reckon with its distinct texts, and what equals the best sample passes
(of its source; under one percentile for all, of all). A row is judged by its own reward: where a text passes, so do
its repeats, which say how often the policy gives it. `Capped` keeps each text once.

Percentiles are those of the samples' rewards (linear interpolation, as numpy's default); human pairs only compete
against them, so that adding or dropping D never moves a threshold.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np

from rest.errors import UserError
from rest.selection import (
    Columns,
    HumanPairs,
    Selection,
    everything,
    percentile_by_group,
    percentile_of,
    rank,
    select,
)


@runtime_checkable
class Rule(Protocol):
    """What an improve step needs of a rule: any frozen dataclass that does this is one."""

    @property
    def steps(self) -> int:
        """The number of improve steps."""

    def at(self, i: int) -> dict[str, Any]:
        """What decides step i, JSON-able; the same whatever steps follow."""

    def choose(self, columns: Columns, i: int, human_pairs: HumanPairs = "compete") -> Selection:
        """The rows of improve step i in 1..steps; i = 0 keeps everything (tau = -inf).

        `human_pairs`: they "compete" like samples, or are "always" or "never" kept, whatever i.
        """


@dataclass(frozen=True)
class Fixed:
    """One threshold for all sources: the paper's main results."""

    thresholds: tuple[float, ...] = (0.7, 0.8, 0.9, 0.95, 0.99)
    """Rewards to exceed, one per Improve step, rising."""

    def __post_init__(self) -> None:
        _check_rising("thresholds", self.thresholds, low=0.0, high=1.0)

    @property
    def steps(self) -> int:
        return len(self.thresholds)

    def at(self, i: int) -> dict[str, Any]:
        return _at(self, "threshold", self.thresholds, i)

    def choose(self, columns: Columns, i: int, human_pairs: HumanPairs = "compete") -> Selection:
        """As `Rule.choose`; warns when tau is not above the mean reward of all rows, as Algorithm 1 asks."""
        if i == 0:
            return everything(columns, human_pairs)
        tau = self.at(i)["threshold"]
        mean = float(columns.reward.mean(dtype=np.float64)) if len(columns.reward) else -np.inf
        warning = None
        if tau <= mean:
            warning = f"threshold {tau:g} of improve step {i} is not above the dataset's mean reward {mean:.4f}"
        return select(columns, columns.reward > np.float32(tau), human_pairs, threshold=tau, warning=warning)


@dataclass(frozen=True)
class GlobalPercentile:
    """One threshold for all sources, at a percentile of the samples' rewards; 100 keeps the best."""

    percentiles: tuple[float, ...] = (50.0, 75.0, 90.0)
    """Percentiles in [0, 100], one per Improve step, rising."""

    def __post_init__(self) -> None:
        _check_rising("percentiles", self.percentiles, low=0.0, high=100.0)

    @property
    def steps(self) -> int:
        return len(self.percentiles)

    def at(self, i: int) -> dict[str, Any]:
        return _at(self, "percentile", self.percentiles, i)

    def choose(self, columns: Columns, i: int, human_pairs: HumanPairs = "compete") -> Selection:
        """As `Rule.choose`. Without any sample there is nothing to exceed and every row passes."""
        if i == 0:
            return everything(columns, human_pairs)
        samples = columns.reward[~columns.is_reference]
        tau = percentile_of(samples, self.at(i)["percentile"])
        mask = (columns.reward > tau) | (columns.reward >= samples.max(initial=-np.inf))
        return select(columns, mask, human_pairs, threshold=float(tau) if np.isfinite(tau) else None)


@dataclass(frozen=True)
class PerSourcePercentile:
    """One threshold a source, at a percentile of the rewards of its distinct samples, so that hard sources stay in.

    Of 8 different texts 87.5 keeps the best one. Texts as good as the best of a source always pass, and where they are
    all the same, all of them. A source without samples keeps its human pair, which has nothing to exceed.
    """

    percentiles: tuple[float, ...] = (50.0, 75.0, 90.0)
    """Percentiles in [0, 100], one per Improve step, rising."""

    def __post_init__(self) -> None:
        _check_rising("percentiles", self.percentiles, low=0.0, high=100.0)

    @property
    def steps(self) -> int:
        return len(self.percentiles)

    def at(self, i: int) -> dict[str, Any]:
        return _at(self, "percentile", self.percentiles, i)

    def choose(self, columns: Columns, i: int, human_pairs: HumanPairs = "compete") -> Selection:
        """As `Rule.choose`."""
        if i == 0:
            return everything(columns, human_pairs)
        (group, groups), rows = columns.groups, columns.candidates
        taus = percentile_by_group(columns.reward[rows], group[rows], groups, self.at(i)["percentile"])
        return _above(columns, taus, human_pairs)


@dataclass(frozen=True)
class PerSourceInterpolation:
    """One threshold a source, between the mean and the best of the rewards of its distinct samples (ReST, A.7).

    tau = gamma max + (1 - gamma) mean. The best of a source always pass; gamma = 1 keeps nothing else.
    """

    gammas: tuple[float, ...] = (0.3, 0.6, 0.9)
    """Each in [0, 1], one per Improve step, rising."""

    def __post_init__(self) -> None:
        _check_rising("gammas", self.gammas, low=0.0, high=1.0)

    @property
    def steps(self) -> int:
        return len(self.gammas)

    def at(self, i: int) -> dict[str, Any]:
        return _at(self, "gamma", self.gammas, i)

    def choose(self, columns: Columns, i: int, human_pairs: HumanPairs = "compete") -> Selection:
        """As `Rule.choose`. A source without samples keeps its human pair, which has nothing to exceed."""
        if i == 0:
            return everything(columns, human_pairs)
        gamma = self.at(i)["gamma"]
        (group, groups), rows = columns.groups, columns.candidates
        counts = np.bincount(group[rows], minlength=groups)
        means = np.bincount(group[rows], columns.reward[rows], groups) / np.maximum(counts, 1)
        best = np.where(counts, columns.best, 0).astype(np.float64)
        taus = (gamma * best + (1 - gamma) * means).astype(np.float32)
        taus[counts == 0] = -np.inf
        return _above(columns, taus, human_pairs)


@dataclass(frozen=True)
class PerSourceTop:
    """The best k texts of each source's samples: RAFT and Best-of-N distillation with k = 1 (Dong et al. 2023).

    A repeat is no further candidate, and each text is kept once. Ties are broken by the order of the rows, so that
    every source keeps exactly k, or all its texts where they are fewer. A human pair that competes passes if it is
    above the last sample kept.
    """

    counts: tuple[int, ...] = (4, 2, 1)
    """k, one per Improve step, falling."""

    def __post_init__(self) -> None:
        if min(self.counts, default=1) < 1 or any(b >= a for a, b in pairwise(self.counts)):
            raise UserError(f"counts must be at least 1 and fall, not {self.counts}")

    @property
    def steps(self) -> int:
        return len(self.counts)

    def at(self, i: int) -> dict[str, Any]:
        return _at(self, "count", self.counts, i)

    def choose(self, columns: Columns, i: int, human_pairs: HumanPairs = "compete") -> Selection:
        """As `Rule.choose`."""
        if i == 0:
            return everything(columns, human_pairs)
        (group, groups), rows = columns.groups, columns.candidates
        best = rows[rank(group[rows], columns.reward[rows]) < self.at(i)["count"]]
        taus = np.full(groups, np.inf, np.float32)
        np.minimum.at(taus, group[best], columns.reward[best])
        taus[np.isinf(taus)] = -np.inf
        mask = columns.is_reference & (columns.reward > taus[group])
        mask[best] = True
        return select(columns, mask, human_pairs, thresholds=_summary(taus))


@dataclass(frozen=True)
class Capped:
    """Another rule, then each text of a source once, and of those the best few (ReST-EM: Singh et al. 2023, §5.1)."""

    rule: Any = field(default_factory=Fixed)  # a Rule
    """What passes before the cap."""
    cap: int = 10
    """Rows of a source at most; ties go to the first."""

    def __post_init__(self) -> None:
        if self.cap < 1:
            raise UserError(f"cap must be at least 1, not {self.cap}")

    @property
    def steps(self) -> int:
        return int(self.rule.steps)

    def at(self, i: int) -> dict[str, Any]:
        return {**self.rule.at(i), "cap": self.cap}

    def choose(self, columns: Columns, i: int, human_pairs: HumanPairs = "compete") -> Selection:
        """As `Rule.choose`; human pairs that are always kept do not count, and step 0 is capped too."""
        chosen = self.rule.choose(columns, i, human_pairs)
        counted = chosen.mask & ~columns.is_reference if human_pairs == "always" else chosen.mask
        rows = columns.distinct(np.flatnonzero(counted))
        mask = np.zeros(len(columns.reward), np.bool_)
        mask[rows[rank(columns.groups[0][rows], columns.reward[rows]) < self.cap]] = True
        return select(columns, mask, human_pairs, chosen.threshold, chosen.thresholds, chosen.warning)


def choose(rule: Rule, columns: Columns, i: int, human_pairs: HumanPairs = "compete") -> Selection:
    """`rule.choose`, with a warning where a risen threshold keeps rows of a lower mean reward than the step before.

    Rules per source can do so, where sources with high rewards keep fewer rows. Human pairs that are always kept are in
    neither mean.
    """
    chosen = rule.choose(columns, i, human_pairs)
    if i == 0:
        return chosen
    decided = ~columns.is_reference if human_pairs == "always" else np.ones(len(columns.reward), np.bool_)
    masks = rule.choose(columns, i - 1, human_pairs).mask & decided, chosen.mask & decided
    if not masks[1].any():
        return chosen
    before, now = (round(float(columns.reward[mask].mean(dtype=np.float64)), 4) for mask in masks)
    if now >= before:
        return chosen
    falls = f"improve step {i} keeps rows of mean reward {now:.4f}, which is lower than {before:.4f} of step {i - 1}"
    return replace(chosen, warning=falls if chosen.warning is None else f"{chosen.warning}; {falls}")


def _above(columns: Columns, taus: np.ndarray, human_pairs: HumanPairs) -> Selection:
    """What exceeds the threshold of its source (float32 [sources]), and what is as good as the source's best sample."""
    group, _ = columns.groups
    mask = (columns.reward > taus[group]) | (columns.reward >= columns.best[group])
    return select(columns, mask, human_pairs, thresholds=_summary(taus))


def _summary(taus: np.ndarray) -> dict[str, float]:
    """Least, mean and highest of the thresholds that there are."""
    exact = taus[np.isfinite(taus)].astype(np.float64)
    return {"min": float(exact.min()), "mean": float(exact.mean()), "max": float(exact.max())} if len(exact) else {}


def _check_rising(name: str, values: tuple[float, ...], low: float, high: float) -> None:
    """UserError unless the values lie in [low, high] and rise, also when they are rounded to float32."""
    for value in values:
        if not low <= value <= high:  # also catches NaN
            raise UserError(f"{name} must lie in [{low:g}, {high:g}], but {value} does not")
    for before, after in pairwise(values):
        if not np.float32(before) < np.float32(after):
            raise UserError(f"{name} must rise, but {after} follows {before} in {tuple(values)}")


def _at(rule: Rule, name: str, values: tuple[float, ...] | tuple[int, ...], i: int) -> dict[str, Any]:
    """`at` of a rule that is a list of numbers. Step 0 depends on no rule."""
    if i == 0:
        return {"rule": "everything"}
    if not 1 <= i <= len(values):
        raise UserError(f"improve step {i} is not in 0..{len(values)}, the steps of {rule}")
    return {"rule": type(rule).__name__, name: values[i - 1]}
