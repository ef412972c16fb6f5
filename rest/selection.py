"""What threshold rules read and give: the stored columns, the rows chosen, and orders and percentiles within sources.

Rewards are float32, so a threshold is rounded to float32 too before they are compared: a reward stored as 0.8 then
equals the threshold 0.8 and does not exceed it (as float64, float32(0.8) > 0.8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np

HumanPairs = Literal["compete", "always", "never"]
PART = 1 << 20  # rows that are sorted at a time


@dataclass(frozen=True)
class Columns:
    """The stored columns that rules look at; n rows, samples and human pairs."""

    source_id: np.ndarray  # int64 [n]; fastest when the rows of a source stand together
    reward: np.ndarray  # float32 [n], never NaN
    is_reference: np.ndarray  # bool [n], True for human pairs
    hypothesis: Callable[[], np.ndarray] | None = None
    """Gives small whole numbers [n] from 0, equal for equal texts of a source; called once."""

    @cached_property
    def groups(self) -> tuple[np.ndarray, int]:
        """The number of each row's source, int32 [n] in 0..count-1, and the count."""
        return number(self.source_id)

    @cached_property
    def texts(self) -> np.ndarray:
        """What `hypothesis` gives. ValueError where the texts are not known."""
        if self.hypothesis is None:
            raise ValueError("this rule needs the texts of the hypotheses")
        return self.hypothesis()

    @cached_property
    def candidates(self) -> np.ndarray:
        """The distinct texts among the samples of each source, one row of each: int64, ascending."""
        return self.distinct(np.flatnonzero(~self.is_reference))

    def distinct(self, rows: np.ndarray) -> np.ndarray:
        """Of the rows (int64 [k], ascending) one of each text of a source, ascending.

        It is the row with the text's highest reward, the first if equal.
        """
        group, texts, kept = self.groups[0][rows], self.texts, np.zeros(len(rows), np.bool_)
        for part in in_parts(group):
            kept[part] = _distinct(group[part], texts[rows[part]], self.reward[rows[part]])
        return rows[kept]

    @cached_property
    def best(self) -> np.ndarray:
        """The highest reward of each source's samples, float32 [sources]; -inf where it has none."""
        group, count = self.groups
        best = np.full(count, -np.inf, np.float32)
        np.maximum.at(best, group[~self.is_reference], self.reward[~self.is_reference])
        return best


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


def select(
    columns: Columns,
    mask: np.ndarray,
    human_pairs: HumanPairs,
    threshold: float | None = None,
    thresholds: dict[str, float] | None = None,
    warning: str | None = None,
) -> Selection:
    """A selection from the rows that pass their threshold (bool [n], may be written to)."""
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
        sources=number(columns.source_id[mask])[1],
        references=int(np.count_nonzero(mask & columns.is_reference)),
        mean_reward=float(kept.mean(dtype=np.float64)) if len(kept) else None,
        warning=warning,
    )


def everything(columns: Columns, human_pairs: HumanPairs) -> Selection:
    """All rows: improve step 0."""
    return select(columns, np.ones(len(columns.reward), np.bool_), human_pairs)


def to_compare(columns: Columns, selection: Selection, candidates: int, human_pairs: HumanPairs) -> Selection:
    """For losses that compare rows of one source: the best row that passed, the worst of all, and others between.

    `candidates` rows of a source, evenly apart in the order of their rewards, as far as it has so many. A source where
    nothing passed, or whose best and worst tie, gives nothing.
    """
    rows = np.arange(len(columns.reward))
    if human_pairs == "never":
        rows = rows[~columns.is_reference]
    group, groups = number(columns.source_id[rows])
    order = np.argsort(by_group(-columns.reward[rows], group), kind="stable")
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
    return select(columns, mask, "compete", selection.threshold, selection.thresholds, selection.warning)


# Orders and percentiles


def in_parts(group: np.ndarray) -> Iterator[slice]:
    """Slices of some million rows each that part no group; of groups that do not stand together one slice."""
    edges = [0, len(group)]
    if not (group[1:] < group[:-1]).any():
        edges = np.unique([0, *np.searchsorted(group, group[PART::PART]), len(group)]).tolist()
    for start, stop in pairwise(edges):
        if start < stop:
            yield slice(start, stop)


def _distinct(group: np.ndarray, texts: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """Marks one row of each text of a group, bool [n]. One sort of whole numbers, no loop."""
    texts = texts.astype(np.int64)
    keys = group * (texts.max() + 1) + texts
    order = np.argsort(keys, kind="stable")
    keys, reward = keys[order], reward[order]
    begins = np.diff(keys, prepend=-1) > 0
    firsts = np.flatnonzero(begins)
    if (~begins[1:] & (reward[1:] != reward[:-1])).any():  # repeats are seldom rewarded differently
        highest = np.repeat(np.maximum.reduceat(reward, firsts), np.diff(firsts, append=len(keys)))
        reached = np.flatnonzero(reward == highest)
        firsts = reached[np.searchsorted(reached, firsts)]
    kept = np.zeros(len(keys), np.bool_)
    kept[order[firsts]] = True
    return kept


def number(ids: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers the distinct ids: int32 [n] in 0..count-1, and the count."""
    starts = np.empty(len(ids), np.bool_)
    starts[:1] = True
    np.not_equal(ids[1:], ids[:-1], out=starts[1:])
    firsts = ids[starts]
    if len(np.unique(firsts)) == len(firsts):  # the rows of a source stand together: no sort of all rows
        group: np.ndarray = np.cumsum(starts, dtype=np.int32)
        group -= 1
        return group, len(firsts)
    unique, group = np.unique(ids, return_inverse=True)
    return group.astype(np.int32), len(unique)


def rank(group: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """How many of its group come before each row, int32 [n]: the higher rewards, and equal ones of earlier rows."""
    ranks = np.empty(len(group), np.int32)
    for part in in_parts(group):
        order = np.argsort(by_group(-reward[part], group[part]), kind="stable")
        sizes = np.bincount(group[part] - group[part].min())
        ranks[part][order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ranks


def percentile_of(values: np.ndarray, percentile: float) -> np.float32:
    """Percentile of float32 [n], with linear interpolation in float64; -inf when n = 0."""
    if not len(values):
        return np.float32(-np.inf)
    position = (len(values) - 1) * (percentile / 100)
    low = int(position)
    high = min(low + 1, len(values) - 1)
    ordered = np.partition(values, (low, high))
    return _between(ordered[[low]], ordered[[high]], np.array([position - low])).astype(np.float32)[0]


def percentile_by_group(values: np.ndarray, group: np.ndarray, groups: int, percentile: float) -> np.ndarray:
    """Percentile of the float32 [n] values of each group (int [n]): float32 [groups], -inf where empty."""
    taus = np.full(groups, -np.inf, np.float32)
    for part in in_parts(group):
        keys, lowest = by_group(values[part], group[part]), group[part].min()
        keys.sort()
        counts = np.bincount(group[part] - lowest)
        position = np.maximum(counts - 1, 0) * (percentile / 100)
        low = position.astype(np.int64)
        first = np.cumsum(counts) - counts
        full = counts > 0
        at_low = (first + low)[full]
        at_high = (first + np.minimum(low + 1, counts - 1))[full]
        found = _between(_value(keys[at_low]), _value(keys[at_high]), (position - low)[full])
        taus[lowest : lowest + len(counts)][full] = found
    return taus


def by_group(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Whole numbers [n] that order by group (int [n]), then by value (float32 [n]).

    The bits of a float32, negative ones turned over, rise as the number does. One sort of such numbers is several
    times faster than a sort by two keys.
    """
    bits = np.ascontiguousarray(values + np.float32(0)).view(np.int32)  # + 0 turns -0.0 into 0.0
    order = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int64) + 2**31
    return (group.astype(np.int64) << 32) | order


def _value(keys: np.ndarray) -> np.ndarray:
    """The float32 values behind numbers of `by_group`."""
    bits = ((keys & 0xFFFFFFFF) - 2**31).astype(np.int32)
    return np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).view(np.float32)


def _between(low: np.ndarray, high: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Linear interpolation [n] in float64, exact at both ends as numpy's own is."""
    low, high = low.astype(np.float64), high.astype(np.float64)
    return np.where(share < 0.5, low + (high - low) * share, high - (high - low) * (1 - share))
