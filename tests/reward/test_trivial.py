"""Trivial rewards: by hand, and against the policy's own log-probability."""

import numpy as np
import pytest

from rest.data.batches import BatchSettings, Examples
from rest.policy.policy import sequence_log_probs
from rest.ratings.record import RatingRow, from_rows
from rest.reward.trivial import LengthRatio, PolicyLogProb, SourceOverlap, trivial_rewards


def test_length_ratio_is_best_at_the_usual_one():
    reward = LengthRatio.of(["a b c", "a", "a b"], ["x x x x x x x", "x x x", "x x x x x"])  # 8/4, 4/2, 6/3
    scores = reward(["a b c", "a b c", "", "汉字字"], ["x x x x x x x", "x x x", "x", "x x x x x x x"], None)
    assert scores.tolist() == pytest.approx([0, -np.log(2), 0, 0], abs=1e-6)
    assert scores.dtype == np.float32


def test_overlap_is_highest_for_a_copy():
    copy, other = SourceOverlap()(["the same words"] * 2, ["the same words", "lauter andere"], None)
    assert copy == 100
    assert other < 30


def test_log_probability_is_the_policys_a_token(policy, corpus, batch):
    sources, texts = corpus.dev.sources[:3], corpus.dev.references[:3]
    targets = policy.encode_references(texts)
    total = sequence_log_probs(policy, Examples(policy.encode_sources(sources), targets), batch)
    expected = total / [len(ids) for ids in targets]
    np.testing.assert_allclose(PolicyLogProb(policy, batch)(sources, texts, None), expected, rtol=1e-6)
    cut = PolicyLogProb(policy, BatchSettings(64, 8, 8))(sources, texts, None)  # long texts are no error
    assert np.isfinite(cut).all()


def test_chrf_is_there_where_all_rows_have_references():
    row = RatingRow("s", "h", 0.0, 0, "r", "", "", "", "", "")
    assert "chrF with reference" in trivial_rewards(from_rows([row]))
    assert "chrF with reference" not in trivial_rewards(from_rows([row, row._replace(reference=None)]))
