"""Threshold rules: which rows of the scored dataset an improve step learns from (ReST, Algorithm 1 and A.7).

The filter is strict, R > tau. Rewards are float32, so tau is rounded to float32 too before they are compared:
a reward stored as 0.8 then equals the threshold 0.8 and does not pass (as float64, float32(0.8) > 0.8).

Percentiles are those of the samples' rewards (linear interpolation, as numpy's default); human pairs only
compete against them, so that adding or dropping D never moves a threshold. Because the filter is strict, a
percentile that falls on tied best candidates, or percentile 100, keeps no sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from rest.errors import UserError

HumanPairs = Literal["compete", "always", "never"]


@dataclass(frozen=True)
class Columns:
    """The stored columns that rules look at; n rows, samples and human pairs."""

    source_id: np.ndarray  # int64 [n]; fastest when the rows of a source stand together
    reward: np.ndarray  # float32 [n], never NaN
    is_reference: np.ndarray  # bool [n], True for human pairs
    hypothesis: Callable[[], np.ndarray] | None = None  # integers [n], equal for equal texts; read when asked for


@dataclass(frozen=True)
class Selection:
    """What a rule chose, and the numbers to report of it."""

    mask: np.ndarray  # bool [n], True for the rows kept
    threshold: float | None  # the one tau; None when there is none (improve step 0) or one a source
    thresholds: dict[str, float] | None  # with one tau a source: their min, mean and max
    rows: int  # kept
    sources: int  # with a row kept
    references: int  # human pairs kept
    mean_reward: float | None  # of the rows kept; None when there are none
    warning: str | None = None


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
            return _everything(columns, human_pairs)
        tau = self.at(i)["threshold"]
        mean = float(columns.reward.mean(dtype=np.float64)) if len(columns.reward) else -np.inf
        warning = None
        if tau <= mean:
            warning = f"threshold {tau:g} of improve step {i} is not above the dataset's mean reward {mean:.4f}"
        return _select(columns, columns.reward > np.float32(tau), human_pairs, threshold=tau, warning=warning)


@dataclass(frozen=True)
class GlobalPercentile:
    """One threshold for all sources, at a percentile of the samples' rewards."""

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
            return _everything(columns, human_pairs)
        tau = _percentile(columns.reward[~columns.is_reference], self.at(i)["percentile"])
        threshold = float(tau) if np.isfinite(tau) else None
        return _select(columns, columns.reward > tau, human_pairs, threshold=threshold)


@dataclass(frozen=True)
class PerSourcePercentile:
    """One threshold a source, at a percentile of its own samples' rewards, so that hard sources stay in.

    With 8 samples per source, 87.5 keeps the best one. A source whose best candidates tie at the threshold
    keeps none of them; a source without samples keeps its human pair, which has nothing to exceed.
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
            return _everything(columns, human_pairs)
        group, groups = _groups(columns.source_id)
        is_sample = ~columns.is_reference
        taus = _percentile_by_group(columns.reward[is_sample], group[is_sample], groups, self.at(i)["percentile"])
        return _select(columns, columns.reward > taus[group], human_pairs, thresholds=_summary(taus))


@dataclass(frozen=True)
class PerSourceInterpolation:
    """One threshold a source, between the mean and the best of its samples' rewards (ReST, A.7).

    tau = gamma max + (1 - gamma) mean; gamma = 1 would keep nothing.
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
            return _everything(columns, human_pairs)
        gamma = self.at(i)["gamma"]
        group, groups = _groups(columns.source_id)
        samples, of_samples = columns.reward[~columns.is_reference], group[~columns.is_reference]
        highest = np.full(groups, -np.inf)
        np.maximum.at(highest, of_samples, samples)
        counts = np.bincount(of_samples, minlength=groups)
        means = np.bincount(of_samples, samples, groups) / np.maximum(counts, 1)
        taus = (gamma * highest + (1 - gamma) * means).astype(np.float32) if gamma else means.astype(np.float32)
        taus[counts == 0] = -np.inf
        return _select(columns, columns.reward > taus[group], human_pairs, thresholds=_summary(taus))


@dataclass(frozen=True)
class PerSourceTop:
    """The best k samples of each source: RAFT and Best-of-N distillation with k = 1 (Dong et al. 2023).

    Ties are broken by the order of the rows, so that every source keeps exactly k, whatever its rewards are. A human
    pair that competes passes if it is above the last sample kept.
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
            return _everything(columns, human_pairs)
        group, groups = _groups(columns.source_id)
        samples = np.flatnonzero(~columns.is_reference)
        best = samples[_rank(group[samples], columns.reward[samples]) < self.at(i)["count"]]
        taus = np.full(groups, np.inf, np.float32)
        np.minimum.at(taus, group[best], columns.reward[best])
        taus[np.isinf(taus)] = -np.inf
        mask = columns.is_reference & (columns.reward > taus[group])
        mask[best] = True
        return _select(columns, mask, human_pairs, thresholds=_summary(taus))


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
        if columns.hypothesis is None:
            raise ValueError("a cap needs the texts of the hypotheses")
        counted = chosen.mask & ~columns.is_reference if human_pairs == "always" else chosen.mask
        rows = np.flatnonzero(counted)
        group, _ = _groups(columns.source_id[rows])
        _, first = np.unique(np.stack([group, columns.hypothesis()[rows]]), axis=1, return_index=True)
        rows, group = rows[np.sort(first)], group[np.sort(first)]
        mask = np.zeros(len(columns.reward), np.bool_)
        mask[rows[_rank(group, columns.reward[rows]) < self.cap]] = True
        return _select(columns, mask, human_pairs, chosen.threshold, chosen.thresholds, chosen.warning)


def to_compare(columns: Columns, selection: Selection, candidates: int, human_pairs: HumanPairs) -> Selection:
    """For losses that compare rows of one source: the best row that passed, the worst of all, and others between.

    `candidates` rows of a source, evenly apart in the order of their rewards, as far as it has so many. A source where
    nothing passed, or whose best and worst tie, gives nothing.
    """
    rows = np.arange(len(columns.reward))
    if human_pairs == "never":
        rows = rows[~columns.is_reference]
    group, groups = _groups(columns.source_id[rows])
    order = np.lexsort((rows, -columns.reward[rows], group))
    rows, group = rows[order], group[order]
    passed = np.flatnonzero(selection.mask[rows])
    found, firsts = np.unique(group[passed], return_index=True)
    best = passed[firsts]
    worst = (np.cumsum(np.bincount(group, minlength=groups)) - 1)[found]
    differ = columns.reward[rows[best]] > columns.reward[rows[worst]]
    best, worst = best[differ], worst[differ]
    between = np.rint(np.linspace(0, 1, candidates)[None] * (worst - best)[:, None]).astype(np.int64)
    mask = np.zeros(len(columns.reward), np.bool_)
    mask[rows[best[:, None] + between]] = True
    return _select(columns, mask, "compete", selection.threshold, selection.thresholds, selection.warning)


def _rank(group: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """How many of its group come before each row, int64 [n]: the higher rewards, and equal ones of earlier rows."""
    order = np.lexsort((-reward, group))  # stable
    rank = np.empty(len(group), np.int64)
    sorted_group = group[order]
    rank[order] = np.arange(len(group)) - np.searchsorted(sorted_group, sorted_group)
    return rank


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


def _everything(columns: Columns, human_pairs: HumanPairs) -> Selection:
    return _select(columns, np.ones(len(columns.reward), np.bool_), human_pairs)


def _select(
    columns: Columns,
    mask: np.ndarray,
    human_pairs: HumanPairs,
    threshold: float | None = None,
    thresholds: dict[str, float] | None = None,
    warning: str | None = None,
) -> Selection:
    """A selection from the rows that exceed their threshold (bool [n], may be written to)."""
    if human_pairs == "always":
        mask |= columns.is_reference
    elif human_pairs == "never":
        mask &= ~columns.is_reference
    kept = columns.reward[mask]
    return Selection(
        mask=mask,
        threshold=threshold,
        thresholds=thresholds,
        rows=len(kept),
        sources=_groups(columns.source_id[mask])[1],
        references=int(np.count_nonzero(mask & columns.is_reference)),
        mean_reward=float(kept.mean(dtype=np.float64)) if len(kept) else None,
        warning=warning,
    )


def _groups(ids: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers the distinct ids: int64 [n] in 0..count-1, and the count."""
    starts = np.empty(len(ids), np.bool_)
    starts[:1] = True
    np.not_equal(ids[1:], ids[:-1], out=starts[1:])
    firsts = ids[starts]
    if len(np.unique(firsts)) == len(firsts):  # the rows of a source stand together: no sort of all rows
        return np.cumsum(starts) - 1, len(firsts)
    unique, group = np.unique(ids, return_inverse=True)
    return group, len(unique)


def _percentile(values: np.ndarray, percentile: float) -> np.float32:
    """Percentile of float32 [n], with linear interpolation in float64; -inf when n = 0."""
    if not len(values):
        return np.float32(-np.inf)
    position = (len(values) - 1) * (percentile / 100)
    low = int(position)
    high = min(low + 1, len(values) - 1)
    ordered = np.partition(values, (low, high))
    return _between(ordered[[low]], ordered[[high]], np.array([position - low])).astype(np.float32)[0]


def _percentile_by_group(values: np.ndarray, group: np.ndarray, groups: int, percentile: float) -> np.ndarray:
    """Percentile of the float32 [n] values of each group (int64 [n]): float32 [groups], -inf where empty."""
    # One sort of whole numbers orders by group, then value: the bits of a float32, negative ones turned
    # over, rise as the number does. It is several times faster than a sort by two keys.
    bits = np.ascontiguousarray(values + np.float32(0)).view(np.int32)  # + 0 turns -0.0 into 0.0
    order = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int64) + 2**31
    keys = (group << 32) | order
    keys.sort()
    counts = np.bincount(group, minlength=groups)
    position = np.maximum(counts - 1, 0) * (percentile / 100)
    low = position.astype(np.int64)
    first = np.cumsum(counts) - counts
    full = counts > 0
    at_low = (first + low)[full]
    at_high = (first + np.minimum(low + 1, counts - 1))[full]
    taus = np.full(groups, -np.inf, np.float32)
    taus[full] = _between(_from_key(keys[at_low]), _from_key(keys[at_high]), (position - low)[full])
    return taus


def _from_key(keys: np.ndarray) -> np.ndarray:
    """The float32 values behind sorted keys."""
    bits = ((keys & 0xFFFFFFFF) - 2**31).astype(np.int32)
    return np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).view(np.float32)


def _between(low: np.ndarray, high: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Linear interpolation [n] in float64, exact at both ends as numpy's own is."""
    low, high = low.astype(np.float64), high.astype(np.float64)
    return np.where(share < 0.5, low + (high - low) * share, high - (high - low) * (1 - share))
