"""How far a reward agrees with people: correlations and pairwise accuracies, with intervals over documents.

All statistics come from sums over the rows, or the pairs of rows, of each cluster (a document, or a source), so that a
bootstrap resample only weighs these sums anew: 20,000 rows and a thousand resamples take seconds. In a resample a row
is never compared with another copy of itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from rest.errors import UserError
from rest.folder import seed_for
from rest.ratings.record import Ratings, pairs_within
from rest.reward.reward import RewardFunction, raw_scores
from rest.statistics.intervals import PairedDifference, difference_of, percentile_interval

MIN_DOCUMENTS = 10  # from which on documents are resampled rather than sources
MAX_CLUSTERS = 1000  # more are joined at random into so many, so that cluster x cluster sums fit
PAIRS_AT_ONCE = 2_000_000  # pairs compared at once, about 50 MB
CALIBRATION_PAIRS = 2_000_000  # pairs that the tie threshold is searched on where all pairs are more


class Measured(NamedTuple):
    """A statistic of all rows, and of each resample."""

    value: float
    resampled: np.ndarray  # float64 [resamples]

    @property
    def ci95(self) -> tuple[float, float]:
        return percentile_interval(self.resampled)


@dataclass(frozen=True)
class Resampling:
    """Which cluster each row is in, and how often each resample drew each cluster."""

    unit: str  # "documents" or "sources"
    units: int  # how many of them there are
    clusters: np.ndarray  # int64 [n]
    counts: np.ndarray  # float64 [resamples, clusters]

    @classmethod
    def new(cls, ratings: Ratings, seed: int, resamples: int = 1000) -> Resampling:
        """Documents where there are at least ten (a row without one is its own), else sources."""
        documents = [d or s for d, s in zip(ratings.documents, ratings.sources, strict=True)]
        by_document = any(ratings.documents) and len(set(documents)) >= MIN_DOCUMENTS
        clusters = np.unique(documents if by_document else ratings.sources, return_inverse=True)[1]
        # a group stays whole: it is compared within itself
        first = np.unique(ratings.groups, return_index=True, return_inverse=True)
        clusters = clusters[first[1]][first[2]]
        units = int(clusters.max()) + 1
        rng = np.random.default_rng(seed_for(seed, "clusters"))
        if units > MAX_CLUSTERS:
            clusters = (rng.permutation(units) % MAX_CLUSTERS)[clusters]
        clusters = np.unique(clusters, return_inverse=True)[1]
        size = int(clusters.max()) + 1
        counts = rng.multinomial(size, np.full(size, 1 / size), size=resamples).astype(np.float64)
        return cls("documents" if by_document else "sources", units, clusters, counts)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """float64 [clusters]: the sum of values [n] in each cluster."""
        return np.bincount(self.clusters, values, minlength=self.counts.shape[1])


def measure(scores: np.ndarray, ratings: Ratings, resampling: Resampling) -> dict[str, Measured]:
    """Agreement of raw scores [n] with the ratings [n] by every statistic that there are the rows for.

    pearson, spearman, kendall_b and kendall_c over all rows; accuracy, the pairwise accuracy with calibrated ties of
    Deutsch et al. 2023 (acc-eq), within sources where most were rated in several translations, else over all pairs;
    system_accuracy (Kocmi et al. 2021) where there are systems. A reward that does not vary correlates 0.
    """
    x, y = np.asarray(scores, np.float64), np.asarray(ratings.scores, np.float64)
    if x.shape != y.shape or not np.isfinite(x).all():
        raise UserError(f"{len(y)} ratings need as many finite scores, got shape {x.shape}")
    within = compares_within_sources(ratings)
    threshold = 0.0 if within else _sampled_threshold(x, y)
    kendall_b, kendall_c, over_all = _over_all_pairs(x, y, threshold, resampling)
    found = {
        "pearson": resampled_pearson(x, y, resampling),
        "spearman": resampled_spearman(x, y, resampling),
        "kendall_b": kendall_b,
        "kendall_c": kendall_c,
        "accuracy": _accuracy_within(x, y, ratings.groups, resampling) if within else over_all,
    }
    if (systems := _system_accuracy(x, y, ratings, resampling)) is not None:
        found["system_accuracy"] = systems
    return found


def compares_within_sources(ratings: Ratings) -> bool:
    """Whether at least half of the rows have another one of their group to be compared with."""
    sizes = np.bincount(ratings.groups)
    return bool(2 * sizes[sizes > 1].sum() >= len(ratings))


def paired_differences(a: Mapping[str, Measured], b: Mapping[str, Measured]) -> dict[str, PairedDifference]:
    """How far `a` agrees better than `b`, both measured on the same resamples: the paired bootstrap."""
    return {name: difference_of(a[name].value - b[name].value, a[name].resampled - b[name].resampled) for name in a}


@dataclass(frozen=True)
class Agreement:
    """How far rewards agree with one set of ratings; all were measured on the same resamples."""

    set_name: str
    language_pair: str
    counts: dict[str, int]  # rows, sources, documents, systems
    resampled: str  # "documents" or "sources"
    within_sources: bool  # what the pairwise accuracy compares; False: all pairs
    rewards: dict[str, dict[str, Measured]]  # by reward and statistic
    differences: dict[str, dict[str, PairedDifference]]  # the first reward less each other one

    def record(self) -> dict[str, Any]:
        """For JSON: values, intervals and differences by reward."""
        rewards = {
            name: {key: {"value": m.value, "ci95": list(m.ci95)} for key, m in measured.items()}
            for name, measured in self.rewards.items()
        }
        differences = {
            name: {key: d._asdict() for key, d in compared.items()} for name, compared in self.differences.items()
        }
        return {
            "set": self.set_name,
            "language_pair": self.language_pair,
            **self.counts,
            "resampled": self.resampled,
            "accuracy_within_sources": self.within_sources,
            "resamples": len(next(iter(next(iter(self.rewards.values())).values())).resampled),
            "rewards": rewards,
            "first_minus": differences,
        }


def evaluate(rewards: Mapping[str, RewardFunction], ratings: Ratings, seed: int, resamples: int = 1000) -> Agreement:
    """Score the rated hypotheses with every reward, and measure how far each agrees with the ratings of one kind."""
    if len(kinds := set(ratings.kinds)) != 1:
        raise UserError(f"ratings of {len(kinds)} sets or language pairs are not on one scale; measure each alone")
    resampling = Resampling.new(ratings, seed, resamples)
    measured = {}
    for name, function in rewards.items():
        scores = raw_scores(function, ratings.sources, ratings.hypotheses, ratings.all_references)
        measured[name] = measure(scores, ratings, resampling)
    first, *others = measured
    counts = {"rows": len(ratings), "sources": len(set(ratings.sources))}
    counts |= {"documents": len({*ratings.documents} - {""}), "systems": len({*ratings.systems} - {""})}
    differences = {name: paired_differences(measured[first], measured[name]) for name in others}
    ((set_name, language_pair),) = kinds
    within = compares_within_sources(ratings)
    return Agreement(set_name, language_pair, counts, resampling.unit, within, measured, differences)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """0 where there is nothing to divide by: no variation, no agreement."""
    safe = denominator > 1e-12
    return np.where(safe, numerator / np.where(safe, denominator, 1.0), 0.0)


# Correlations of rows


def resampled_pearson(x: np.ndarray, y: np.ndarray, resampling: Resampling) -> Measured:
    """Pearson's r of x and y [n]."""
    x, y = _z(x), _z(y)
    sums = np.stack([resampling.sums(v) for v in (np.ones_like(x), x, y, x * x, y * y, x * y)], axis=1)

    def r(moments: np.ndarray) -> np.ndarray:
        n, sx, sy, sxx, syy, sxy = moments.T
        return _ratio(n * sxy - sx * sy, np.sqrt(np.maximum(n * sxx - sx**2, 0) * np.maximum(n * syy - sy**2, 0)))

    return Measured(float(r(sums.sum(0)[None])[0]), r(resampling.counts @ sums))


def _z(x: np.ndarray) -> np.ndarray:
    """Standardised, so that sums of squares lose no digits."""
    return (x - x.mean()) / (x.std() or 1.0)


def resampled_spearman(x: np.ndarray, y: np.ndarray, resampling: Resampling) -> Measured:
    """Spearman's rho of x and y [n]; rows are ranked anew in every resample."""
    sides, n = (_Ranked(x), _Ranked(y)), len(x)

    def rho(weights: np.ndarray) -> np.ndarray:
        rows = weights.sum(1, keepdims=True)
        a, b = (side.ranks(weights) - (rows + 1) / 2 for side in sides)  # centred: the mean rank
        wa = weights * a
        squares = np.einsum("rn,rn->r", wa, a) * np.einsum("rn,rn->r", weights * b, b)
        return _ratio(np.einsum("rn,rn->r", wa, b), np.sqrt(squares))

    block = max(1, PAIRS_AT_ONCE // n)
    starts = range(0, len(resampling.counts), block)
    resampled = [rho(resampling.counts[s : s + block][:, resampling.clusters]) for s in starts]
    return Measured(float(rho(np.ones((1, n)))[0]), np.concatenate(resampled))


class _Ranked:
    """Values [n] that are ranked under many weightings."""

    def __init__(self, values: np.ndarray) -> None:
        self.order = np.argsort(values, kind="stable")
        self.level = np.unique(values, return_inverse=True)[1]
        self.starts = np.unique(values[self.order], return_index=True)[1]

    def ranks(self, weights: np.ndarray) -> np.ndarray:
        """Mean ranks from 1, float64 [resamples, n], of rows that stand weights [resamples, n] times."""
        tied = np.add.reduceat(weights[:, self.order], self.starts, axis=1)
        return (np.cumsum(tied, axis=1) - tied + (tied + 1) / 2)[:, self.level]


# Statistics of pairs


def _over_all_pairs(
    x: np.ndarray, y: np.ndarray, epsilon: float, resampling: Resampling
) -> tuple[Measured, Measured, Measured]:
    """Kendall's tau-b and tau-c, and the pairwise accuracy with ties up to epsilon, over all pairs of rows.

    The threshold, and for tau-c the number of different values, are those of all rows in the resamples too.
    """
    agree, correct = _pair_sums(x, y, epsilon, resampling)
    n = resampling.sums(np.ones_like(x))
    pairs = np.outer(n, n) - np.diag(n)
    untied = [pairs - _tied_pairs(side, resampling) for side in (x, y)]
    weights = np.concatenate([np.ones((1, len(n))), resampling.counts])

    def total(matrix: np.ndarray) -> np.ndarray:
        return np.einsum("rc,rc->r", weights @ matrix, weights)

    balance, everything = total(agree), total(pairs)
    rows = weights @ n
    smaller = min(len(np.unique(x)), len(np.unique(y)))
    tau_b = _ratio(balance, np.sqrt(total(untied[0]) * total(untied[1])))
    tau_c = _ratio(balance * smaller, rows**2 * (smaller - 1.0))
    accuracy = _ratio(total(correct), everything)
    return _measured(tau_b), _measured(tau_c), _measured(accuracy)


def _measured(values: np.ndarray) -> Measured:
    """Of values [1 + resamples], that of all rows first."""
    return Measured(float(values[0]), values[1:])


def _tied_pairs(x: np.ndarray, resampling: Resampling) -> np.ndarray:
    """Ordered pairs of different rows with equal values, between clusters: float64 [clusters, clusters]."""
    values, level = np.unique(x, return_inverse=True)
    shape = resampling.counts.shape[1], len(values)
    table = sparse.coo_array((np.ones(len(x)), (resampling.clusters, level)), shape).tocsr()
    return (table @ table.T).toarray() - np.diag(resampling.sums(np.ones_like(x)))


def _pair_sums(x: np.ndarray, y: np.ndarray, epsilon: float, resampling: Resampling) -> tuple[np.ndarray, np.ndarray]:
    """Over ordered pairs of different rows, between clusters: float64 [clusters, clusters], twice.

    First concordant less discordant pairs, then pairs that are right when x ties up to epsilon.
    """
    order = np.argsort(resampling.clusters, kind="stable")
    x, y, clusters = x[order], y[order], resampling.clusters[order]
    size = resampling.counts.shape[1]
    agree, correct = np.zeros((2, size, size))
    block = max(1, PAIRS_AT_ONCE // len(x))
    for start in range(0, len(x), block):
        here = slice(start, min(start + block, len(x)))
        # the pairs with rows further down, each once, then those within the block, both ways round
        for there, share in ((slice(here.stop, len(x)), 1.0), (here, 0.5)):
            if there.start == there.stop:
                continue
            difference = x[here, None] - x[None, there]
            far = np.abs(difference) > epsilon
            people = _sign(y[here, None] - y[None, there])
            product = _sign(difference) * people
            right = np.where(people == 0, ~far, far & (product > 0))
            if there is here:
                np.fill_diagonal(right, False)
            for sums, values in ((agree, product), (correct, right)):
                _add(sums, values, clusters[here], clusters[there], share)
    return agree + agree.T, correct + correct.T


def _sign(x: np.ndarray) -> np.ndarray:
    return (x > 0).view(np.int8) - (x < 0).view(np.int8)


def _add(sums: np.ndarray, values: np.ndarray, rows: np.ndarray, columns: np.ndarray, share: float) -> None:
    """Adds values [rows, columns], both sorted by cluster, to the sums [clusters, clusters]."""
    across, starts = np.unique(columns, return_index=True)
    down, tops = np.unique(rows, return_index=True)
    inner = np.add.reduceat(values, starts, axis=1, dtype=np.int32)
    sums[np.ix_(down, across)] += share * np.add.reduceat(inner, tops, axis=0)


def _accuracy_within(x: np.ndarray, y: np.ndarray, groups: np.ndarray, resampling: Resampling) -> Measured:
    """The mean over sources of the pairwise accuracy within each, with the tie threshold that makes it highest.

    The threshold is that of all rows in the resamples too: fitted anew it would always find a little more in the noise.
    """
    left, right = pairs_within(groups)
    number = np.unique(groups[left], return_inverse=True)[1]
    pairs = _Pairs.of(x, y, left, right, weights=1 / np.bincount(number)[number])
    epsilon, accuracy = pairs.calibrate()
    correct = np.where(pairs.distance <= epsilon, pairs.tied, pairs.concordant)
    cluster, size = resampling.clusters[left], resampling.counts.shape[1]
    sums = np.bincount(cluster, pairs.weights * correct, minlength=size)
    sources = np.bincount(cluster, pairs.weights, minlength=size)
    return Measured(accuracy, _ratio(resampling.counts @ sums, resampling.counts @ sources))


def _sampled_threshold(x: np.ndarray, y: np.ndarray) -> float:
    """The best tie threshold over all pairs, or over two million drawn evenly where there are more."""
    n = len(x)
    if n * (n - 1) // 2 <= CALIBRATION_PAIRS:
        left, right = np.triu_indices(n, 1)
    else:
        rng = np.random.default_rng(0)
        left = rng.integers(n, size=CALIBRATION_PAIRS)
        right = (left + rng.integers(1, n, size=CALIBRATION_PAIRS)) % n
    if not len(left):
        return 0.0
    return _Pairs.of(x, y, left, right, np.ones(len(left))).calibrate()[0]


class _Pairs(NamedTuple):
    """Pairs of rows as people and a reward see them."""

    distance: np.ndarray  # float64 [pairs], between the reward's scores
    concordant: np.ndarray  # bool [pairs], neither side tied and both in the same order
    tied: np.ndarray  # bool [pairs], by people
    weights: np.ndarray  # float64 [pairs]

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, left: np.ndarray, right: np.ndarray, weights: np.ndarray) -> _Pairs:
        a, b = x[left] - x[right], y[left] - y[right]
        return cls(np.abs(a), a * np.sign(b) > 0, b == 0, weights)

    def calibrate(self) -> tuple[float, float]:
        """The smallest of the tie thresholds with the highest accuracy, and that accuracy (Deutsch et al. 2023).

        Scores that differ by no more than the threshold are tied; the candidates are 0 and the pairs' differences.
        """
        order = np.argsort(self.distance)
        distance = np.concatenate([[0.0], self.distance[order]])
        change = self.weights[order] * (self.tied[order].astype(float) - self.concordant[order])
        right = np.sum(self.weights * self.concordant) + np.concatenate([[0.0], np.cumsum(change)])
        last = np.append(np.diff(distance) > 0, True)  # a threshold takes all pairs of its difference
        right, distance = right[last], distance[last]
        best = int(np.argmax(right > right.max() - 1e-9))  # sums in another order differ in the last bits
        return float(distance[best]), float(right[best] / self.weights.sum())


def _system_accuracy(x: np.ndarray, y: np.ndarray, ratings: Ratings, resampling: Resampling) -> Measured | None:
    """The share of pairs of systems that are in the same order by mean score and by mean rating.

    Two systems are compared on the sources that both translated. None where no two systems share a source.
    """
    known = np.flatnonzero([bool(system) for system in ratings.systems])
    if not len(known):
        return None
    names = ["\t".join((*kind, system)) for kind, system in zip(ratings.kinds, ratings.systems, strict=True)]
    system = np.unique(np.array(names, object)[known], return_inverse=True)[1]
    group = np.unique(ratings.groups[known], return_inverse=True)[1]
    rows = np.zeros((group.max() + 1, system.max() + 1))
    np.add.at(rows, (group, system), 1.0)
    cluster = np.zeros(len(rows), np.int64)
    cluster[group] = resampling.clusters[known]

    def ahead(values: np.ndarray) -> np.ndarray:
        """How far the one system is above the other on what both translated, [clusters, systems, systems]."""
        means = np.zeros_like(rows)
        np.add.at(means, (group, system), values[known])
        means /= np.maximum(rows, 1)
        sums = np.zeros((resampling.counts.shape[1], rows.shape[1], rows.shape[1]))
        for one in range(rows.shape[1]):
            both = (rows[:, [one]] > 0) & (rows > 0)
            np.add.at(sums[:, one], cluster, np.where(both, means[:, [one]] - means, 0.0))
        return sums

    one, other = np.triu_indices(rows.shape[1], 1)
    shared = ((rows.T > 0).astype(float) @ (rows > 0))[one, other] > 0
    if not shared.any():
        return None
    one, other = one[shared], other[shared]
    weights = np.concatenate([np.ones((1, resampling.counts.shape[1])), resampling.counts])
    signs = [np.sign(np.round(weights @ ahead(_z(v))[:, one, other], 9)) for v in (x, y)]
    accuracy = (signs[0] == signs[1]).mean(1)
    return _measured(accuracy)
