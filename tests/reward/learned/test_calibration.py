"""What maps scores to [0, 1]: hand-worked lines, and rising steps against a brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest.errors import UserError
from rest.reward.learned.calibration import Affine, Isotonic, MinMax, Quantile
from rest.reward.reward import Calibration, Reward


def test_the_span_reaches_beyond_the_scores_by_a_margin():
    line = MinMax(0.1).fit(np.array([3.0, 1.0, 2.0]), np.zeros(3))
    assert line.ends == pytest.approx((0.8, 3.2)) and line.rewards == (0.0, 1.0)


def test_the_affine_line_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=200)
    ratings = 4 + 2 * scores + rng.normal(size=200)
    line = Affine(low=-10.0, high=20.0).fit(scores, ratings)
    slope, offset = np.polyfit(scores, (ratings + 10) / 30, 1)
    inside = np.array([-1.0, 0.0, 1.5], np.float32)
    np.testing.assert_allclose(line(inside), slope * inside + offset, rtol=1e-5)


def test_isotonic_steps_are_the_means_of_their_ratings():
    scores = np.array([4.0, 1.0, 2.0, 3.0, 5.0])
    ratings = np.array([0.4, 0.1, 0.5, 0.3, 0.9])
    # 0.5, 0.3 and 0.4 at 2, 3 and 4 are pooled to 0.4 at 3
    line = Isotonic().fit(scores, ratings)
    assert line.scores == pytest.approx((1, 3, 5)) and line.rewards == pytest.approx((0.1, 0.4, 0.9))
    np.testing.assert_allclose(line(np.array([0.0, 2.0, 9.0])), [0.1, 0.25, 0.9], atol=1e-6)


@pytest.mark.parametrize("kind", [Affine(-25.0, 0.0), Isotonic()])
def test_ratings_of_another_scale_are_refused(kind):
    scores = np.linspace(0, 1, 10)
    with pytest.raises(UserError, match=r"^calibration: 60% of the held-out ratings, -?.* lie beyond its low"):
        kind.fit(scores, np.where(np.arange(10) < 4, (kind.low + kind.high) / 2, kind.high + 1))


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(0, 1)), min_size=4, max_size=30))
def test_an_isotonic_line_never_falls(rows):
    scores, ratings = (np.asarray(column) for column in zip(*rows, strict=True))
    try:
        line = Isotonic().fit(scores, ratings)
    except UserError:
        return
    at = np.sort(np.concatenate([scores, scores + 1e-3]))
    assert (np.diff(line(at)) >= 0).all() and line(at).min() >= 0 and line(at).max() <= 1


def test_quantiles_by_hand():
    line = Quantile(knots=5).fit(np.array([5.0, 1.0, 2.0, 4.0, 3.0]), np.zeros(5))
    assert line.scores == (1, 2, 3, 4, 5) and line.rewards == (0, 0.25, 0.5, 0.75, 1)
    np.testing.assert_allclose(line(np.array([-9.0, 1.5, 4.0, 9.0])), [0, 0.125, 0.75, 1])
    # half of the scores are 2: they get the middle of their shares
    tied = Quantile(knots=5).fit(np.array([1.0, 2.0, 2.0, 2.0, 3.0]), np.zeros(5))
    assert tied.scores == (1, 2, 3) and tied.rewards == (0, 0.5, 1)


@given(st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=80, unique=True), st.integers(2, 50))
def test_the_quantile_q_of_the_scores_becomes_q(scores, knots):
    scores, shares = np.array(scores, np.float32), np.linspace(0, 1, 33)
    line = Quantile(knots).fit(scores, np.zeros(len(scores)))
    found = line(np.quantile(scores.astype(np.float64), shares))
    assert np.abs(found - shares).max() <= 1 / (knots - 1) + 1e-6
    assert line.rewards[0] == 0 and line.rewards[-1] == 1 and line.ends == (scores.min(), scores.max())


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=80), st.integers(2, 50))
def test_quantiles_rise_and_can_be_undone_between_their_knots(scores, knots):
    scores = np.array(scores, np.float32)
    if np.ptp(scores) == 0:
        with pytest.raises(UserError, match="held-out scores are"):
            Quantile(knots).fit(scores, scores)
        return
    line = Quantile(knots).fit(scores, np.zeros(len(scores)))
    assert (np.diff(line.scores) > 0).all() and (np.diff(line.rewards) > 0).all()
    at = np.linspace(*line.ends, 50).astype(np.float32)
    np.testing.assert_allclose(np.interp(line(at), line.rewards, line.scores), at, atol=1e-4)


def test_the_threshold_of_the_paper_lets_a_share_of_the_samples_pass():
    scores = np.random.default_rng(0).standard_normal(4000).astype(np.float32) * 5
    rewards = Quantile().fit(scores, scores)(scores)
    for tau in (0.7, 0.8, 0.9, 0.95, 0.99):
        assert (rewards > tau).mean() == pytest.approx(1 - tau, abs=1 / 200)


def test_fewer_than_two_knots_are_refused():
    with pytest.raises(UserError, match=r"calibration\.knots must be at least 2, not 1"):
        Quantile(1)


@pytest.mark.parametrize("kind", [Affine(), Isotonic()])
def test_ratings_that_fall_with_the_scores_are_refused(kind):
    with pytest.raises(UserError, match="do not rise"):
        kind.fit(np.arange(5.0), np.arange(5.0)[::-1] / 5)


@pytest.mark.parametrize(
    ("scores", "rewards"),
    [((0.0,), (0.0,)), ((1.0, 0.0), (0.0, 1.0)), ((0.0, 1.0), (0.5, 0.4)), ((0.0, 1.0), (0.0, 2.0))],
)
def test_a_line_must_rise_within_zero_and_one(scores, rewards):
    with pytest.raises(UserError, match="calibration"):
        Calibration(scores, rewards)


def test_a_reward_counts_what_is_beyond_the_ends():
    reward = Reward(
        lambda x, y, r: np.array([len(t) for t in y], np.float32), Calibration((1.0, 2.0, 4.0), (0.0, 0.8, 1.0))
    )
    scored = reward(["x"] * 4, ["", "a", "ab", "abcdef"], None)
    np.testing.assert_allclose(scored.reward, [0, 0, 0.8, 1])
    assert scored.clipped == 2 and reward.range == (1, 4)


@pytest.mark.parametrize("ratings", [[0, 1, 0, 1, 1], [1, 0, 1, 0, 1], [1, 1, 0, 0, 1]])
def test_equal_scores_get_one_reward_in_whatever_order_they_come(ratings):
    line = Isotonic().fit(np.array([0.2, 0.2, 0.8, 0.8, 0.9]), np.array(ratings, np.float64))
    again = Isotonic().fit(np.array([0.9, 0.8, 0.8, 0.2, 0.2]), np.array(ratings[::-1], np.float64))
    assert line == again
    if ratings[0] != ratings[1]:  # (0.2, 0.2, 0.8, 0.8) all rated 0.5 in the mean: one step
        assert line.scores == pytest.approx((0.5, 0.9)) and line.rewards == pytest.approx((0.5, 1.0))
