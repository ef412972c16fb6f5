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
    a, b = per_source(a, "a"), per_source(b, "b")
    return _paired(a[:, None], b[:, None], lambda sums, rows: sums[:, 0] / rows, seed, resamples)


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
    counts = [len(lines) for lines in (a, b, *references)]
    if len(set(counts)) > 1 or not counts[0]:
        raise UserError(f"a paired test needs as many lines on every side, got {' and '.join(map(str, counts))}")
    streams = tuple(tuple(lines) for lines in references)
    sums = [_statistics(metric, tuple(side), streams) for side in (a, b)]

    def score(totals: np.ndarray, rows: int) -> np.ndarray:
        return np.array([metric._compute_score_from_stats(total.tolist()).score for total in totals])

    return _paired(sums[0], sums[1], score, seed, resamples)


@lru_cache(maxsize=64)  # a policy is compared with several others
def _statistics(metric: Metric, side: tuple[str, ...], references: tuple[tuple[str, ...], ...]) -> np.ndarray:
    """What the metric counts in each sentence, float64 [sources, K]."""
    return np.asarray(metric._extract_corpus_statistics(list(side), [list(lines) for lines in references]), np.float64)


def _paired(
    a: np.ndarray, b: np.ndarray, score: Callable[[np.ndarray, int], np.ndarray], seed: int, resamples: int
) -> PairedTest:
    """`a` and `b` are statistics [sources, K]; `score` turns their totals [n, K] into n numbers."""
    if a.shape != b.shape:
        raise UserError(f"a paired comparison needs the same sources on both sides, got {len(a)} and {len(b)}")
    rng, rows = np.random.default_rng(seed), len(a)
    observed = float((score(a.sum(0)[None], rows) - score(b.sum(0)[None], rows))[0])
    resampled, swapped = [], []
    for start in range(0, resamples, at_once := max(1, DRAWS_AT_ONCE // rows)):
        n = min(at_once, resamples - start)
        counts = rng.multinomial(rows, np.full(rows, 1 / rows), size=n).astype(np.float64)
        resampled.append(score(counts @ a, rows) - score(counts @ b, rows))
        swap = rng.integers(2, size=(n, rows)).astype(np.float64)
        moved = swap @ (b - a)
        swapped.append(score(a.sum(0) + moved, rows) - score(b.sum(0) - moved, rows))
    difference, lo, hi, p = difference_of(observed, np.concatenate(resampled))
    as_far = (np.abs(np.concatenate(swapped)) >= abs(observed) - 1e-9).sum()
    return PairedTest(difference, lo, hi, p, float((as_far + 1) / (resamples + 1)))
