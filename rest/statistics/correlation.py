"""How far two columns of numbers agree: correlations, and the share of pairs in the same order."""

from __future__ import annotations

import numpy as np


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r of a and b [n]; 0 where one side does not vary."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    from scipy import stats  # takes half a second, and most of what imports this asks for no correlation

    return float(stats.pearsonr(a.astype(np.float64), b.astype(np.float64)).statistic)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rho of a and b [n], ties at their mean rank; 0 where one side does not vary."""
    from scipy.stats import rankdata

    return pearson(rankdata(a), rankdata(b))


def kendall(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's tau-b of a and b [n]; 0 where one side does not vary."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    from scipy.stats import kendalltau

    return float(kendalltau(a, b).statistic)


def ranked_right(scores: np.ndarray, ratings: np.ndarray, groups: np.ndarray) -> float:
    """Share of the pairs of one group with different ratings that the scores order alike; ties count half.

    All three are [n]. 0.5 where there is no such pair.
    """
    right = pairs = 0.0
    order = np.argsort(groups, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        above = np.sign(ratings[rows][:, None] - ratings[rows]) > 0
        agree = np.sign(scores[rows][:, None] - scores[rows])[above]
        right, pairs = right + float((agree + 1).sum()) / 2, pairs + float(above.sum())
    return right / pairs if pairs else 0.5
