"""Trivial rewards, by hand."""

import numpy as np
import pytest

from rest.ratings.record import RatingRow, from_rows
from rest.reward.trivial import LengthRatio, SourceOverlap, trivial_rewards


def test_length_ratio_is_best_at_the_usual_one():
    reward = LengthRatio.of(["a b c", "a", "a b"], ["x x x x x x x", "x x x", "x x x x x"])  # 8/4, 4/2, 6/3
    scores = reward(["a b c", "a b c", "", "汉字字"], ["x x x x x x x", "x x x", "x", "x x x x x x x"], None)
    assert scores.tolist() == pytest.approx([0, -np.log(2), 0, 0], abs=1e-6)
    assert scores.dtype == np.float32


def test_overlap_is_highest_for_a_copy():
    copy, other = SourceOverlap()(["the same words"] * 2, ["the same words", "lauter andere"], None)
    assert copy == 100
    assert other < 30


def test_chrf_is_there_where_all_rows_have_references():
    row = RatingRow("s", "h", 0.0, 0, "r", "", "", "", "", "")
    assert "chrF with reference" in trivial_rewards(from_rows([row]))
    assert "chrF with reference" not in trivial_rewards(from_rows([row, row._replace(reference=None)]))
