"""Correlations against SciPy's and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rest.statistics.correlation import kendall, pearson, ranked_right, spearman


@pytest.mark.parametrize("correlation", [pearson, spearman, kendall])
def test_one_side_without_variation_correlates_with_nothing(correlation) -> None:
    constant, varied = np.full(7, 0.3, np.float32), np.arange(7, dtype=np.float32)
    assert correlation(constant, varied) == correlation(varied, constant) == 0
    assert correlation(varied, 2 * varied + 1) == pytest.approx(1)


def test_ranks_have_ties() -> None:
    a, b = np.array([1.0, 1, 2, 5, 4]), np.array([0.1, 0.3, 0.2, 0.2, 0.9])
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert kendall(a, b) == pytest.approx((5 - 3) / np.sqrt((10 - 1) * (10 - 1)))


def test_ranked_right_counts_pairs_within_groups_and_ties_half() -> None:
    ratings, groups = np.array([1.0, 2.0, 3.0, 1.0, 2.0]), np.array([0, 0, 0, 1, 1])
    assert ranked_right(ratings, ratings, groups) == 1
    assert ranked_right(np.array([5.0, 6.0, 7.0, 1.0, 2.0]), ratings, groups) == 1
    assert ranked_right(np.array([2.0, 1.0, 3.0, 1.0, 1.0]), ratings, groups) == (2 + 0.5) / 4
    assert ranked_right(ratings, np.ones(5), groups) == 0.5
