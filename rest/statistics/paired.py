"""Whether two policies differ, sentence by sentence on the same text: paired bootstrap and approximate randomisation.

Koehn 2004 and Riezler and Maxwell 2005. Means and corpus metrics are treated alike: rows of sums and what is made of
their total.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from sacrebleu.metrics.base import Metric

from rest.errors import UserError
from rest.statistics.intervals import DRAWS_AT_ONCE, difference_of, per_source


class PairedTest(NamedTuple):
    """a minus b with its 95 % interval, and two two-sided p-values of no difference."""

    difference: float
    lo: float
    hi: float
    p_bootstrap: float
    p_randomisation: float

    def record(self) -> dict[str, float]:
        return self._asdict()


def paired_means(a: np.ndarray, b: np.ndarray, seed: int, resamples: int = 2000) -> PairedTest:
    """Means of `a` and `b`, float [sources] or [sources, samples] of the same sources.

    Sources are resampled for both at once, so what makes a source hard for both cancels.
    """
    return joint_means([(a, b)], seed, resamples)


def joint_means(pairs: Sequence[tuple[np.ndarray, np.ndarray]], seed: int, resamples: int = 2000) -> PairedTest:
    """The same of the mean difference of several pairs, such as of seeds, whose sources are resampled together."""
    a, b = ([per_source(pair[side], "ab"[side])[:, None] for pair in pairs] for side in (0, 1))
    return _paired(a, b, lambda sums, rows: sums[:, 0] / rows, seed, resamples)


def paired_corpus(
    metric: Metric,
    a: Sequence[str],
    b: Sequence[str],
    references: Sequence[Sequence[str]],
    seed: int,
    resamples: int = 1000,
) -> PairedTest:
    """A corpus metric of sacreBLEU of hypotheses `a` and `b`, both [sources].

    `references` are one or several lists, each with a reference per source. The p-value of the randomisation is that of
    sacreBLEU's own test; its bootstrap's counts one side only, and so is about half of this one.
    """
    return joint_corpus(metric, [(a, b)], references, seed, resamples)


def joint_corpus(
    metric: Metric,
    pairs: Sequence[tuple[Sequence[str], Sequence[str]]],
    references: Sequence[Sequence[str]],
    seed: int,
    resamples: int = 1000,
) -> PairedTest:
    """The same of the mean difference of several pairs, such as of seeds, whose sources are resampled together."""
    counts = [len(lines) for lines in (*(side for pair in pairs for side in pair), *references)]
    if len(set(counts)) > 1 or not counts[0]:
        raise UserError(f"a paired test needs as many lines on every side, got {' and '.join(map(str, counts))}")
    streams = tuple(tuple(lines) for lines in references)
    a, b = ([_statistics(metric, tuple(pair[side]), streams) for pair in pairs] for side in (0, 1))

    def score(totals: np.ndarray, rows: int) -> np.ndarray:
        return np.array([metric._compute_score_from_stats(total.tolist()).score for total in totals])

    return _paired(a, b, score, seed, resamples)


@lru_cache(maxsize=64)  # a policy is compared with several others
def _statistics(metric: Metric, side: tuple[str, ...], references: tuple[tuple[str, ...], ...]) -> np.ndarray:
    """What the metric counts in each sentence, float64 [sources, K]."""
    return np.asarray(metric._extract_corpus_statistics(list(side), [list(lines) for lines in references]), np.float64)


def _paired(
    a: Sequence[np.ndarray],
    b: Sequence[np.ndarray],
    score: Callable[[np.ndarray, int], np.ndarray],
    seed: int,
    resamples: int,
) -> PairedTest:
    """`a` and `b` are statistics [sources, K], R of each; `score` turns their totals [n, K] into n numbers."""
    if len(shapes := {part.shape for part in (*a, *b)}) > 1:
        sizes = " and ".join(str(size) for size, _ in sorted(shapes))
        raise UserError(f"a paired comparison needs the same sources on both sides, got {sizes}")
    rng, rows = np.random.default_rng(seed), len(a[0])
    ours, theirs = np.stack(a), np.stack(b)  # [R, sources, K]

    def less(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The mean difference of totals [R, n, K]."""
        return np.mean([score(one, rows) - score(other, rows) for one, other in zip(x, y, strict=True)], axis=0)

    x, y = ours.sum(1, keepdims=True), theirs.sum(1, keepdims=True)
    observed, resampled, swapped = float(less(x, y)[0]), [], []
    for start in range(0, resamples, at_once := max(1, DRAWS_AT_ONCE // rows)):
        n = min(at_once, resamples - start)
        counts = rng.multinomial(rows, np.full(rows, 1 / rows), size=n).astype(np.float64)
        resampled.append(less(counts @ ours, counts @ theirs))
        moved = rng.integers(2, size=(n, rows)).astype(np.float64) @ (theirs - ours)
        swapped.append(less(x + moved, y - moved))
    difference, lo, hi, p = difference_of(observed, np.concatenate(resampled))
    as_far = (np.abs(np.concatenate(swapped)) >= abs(observed) - 1e-9).sum()
    return PairedTest(difference, lo, hi, p, float((as_far + 1) / (resamples + 1)))
