"""What chooses a reward's checkpoint: pairs within sources, correlation across them."""

import numpy as np
import pytest

from rest.reward.learned.choice import AcrossSources, Choice, WithinAndAcross, WithinSources, can_rank

RATINGS = np.array([0.1, 0.2, 0.8, 0.9], np.float32)
GROUPS = np.array([5, 5, 7, 7])


def test_sources_told_apart_and_their_hypotheses_told_apart_are_two_things():
    hard, order = np.array([2.0, 1.0, 9.0, 8.0]), np.array([1.0, 2.0, -1.0, 0.0])
    assert WithinSources()(hard, RATINGS, GROUPS) == 0 and AcrossSources()(hard, RATINGS, GROUPS) > 0.95
    assert WithinSources()(order, RATINGS, GROUPS) == 1 and AcrossSources()(order, RATINGS, GROUPS) < -0.5
    for scores in (hard, order):
        parts = WithinSources()(scores, RATINGS, GROUPS), AcrossSources()(scores, RATINGS, GROUPS)
        assert WithinAndAcross()(scores, RATINGS, GROUPS) == pytest.approx(sum(parts) / 2)
    assert all(isinstance(choice(), Choice) for choice in (WithinSources, AcrossSources, WithinAndAcross))


def test_pairs_need_a_source_with_two_ratings():
    assert can_rank(RATINGS, GROUPS) and not can_rank(RATINGS, np.arange(4))
    assert not can_rank(np.array([1.0, 1.0, 2.0, 2.0]), GROUPS)
