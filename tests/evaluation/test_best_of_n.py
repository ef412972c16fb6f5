"""Best-of-N against brute force over every choice of N samples, and against simulation where the truth is known."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rest.errors import UserError
from rest.evaluation.best_of_n import BestOfN, Curve, best_of, crossing, curves_of, kl_bound, order_weights, win_rate

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rl_losses.json").read_text())
SCORES = np.array([[0.1, 0.9, 0.4, 0.7, 0.2, 0.3, 0.8, 0.5]])
# few different numbers, so that ties are common
tied = arrays.arrays(np.float64, st.tuples(st.just(2), st.integers(2, 6)), elements=st.sampled_from([0.0, 0.25, 1.0]))


def by_force(reward: np.ndarray, values: np.ndarray, n: int) -> float:
    """The mean over every choice of n samples; of those with the highest reward any is as likely."""
    told = []
    for chosen in itertools.combinations(range(len(reward)), n):
        best = [k for k in chosen if reward[k] == max(reward[list(chosen)])]
        told.append(np.mean(values[best]))
    return float(np.mean(told))


def wins_by_force(reward: np.ndarray, values: np.ndarray, n: int) -> float:
    told = []
    for opponent in range(len(reward)):
        others = [k for k in range(len(reward)) if k != opponent]
        for chosen in itertools.combinations(others, n):
            best = [k for k in chosen if reward[k] == max(reward[list(chosen)])]
            told.append(np.mean([0.5 * (1 + np.sign(values[k] - values[opponent])) for k in best]))
    return float(np.mean(told))


def test_the_curve_is_the_golden_one() -> None:
    found = best_of(SCORES, SCORES)[0]
    for n, expected in GOLDEN["best_of_n_expected"].items():
        assert found[int(n) - 1] == pytest.approx(expected, abs=1e-6)


@given(tied)
def test_every_n_is_the_mean_over_all_choices(both: np.ndarray) -> None:
    reward, values = both
    found, wins = best_of(reward[None], values[None])[0], win_rate(reward[None], values[None])[0]
    for n in range(1, len(reward) + 1):
        assert found[n - 1] == pytest.approx(by_force(reward, values, n))
        if n < len(reward):
            assert wins[n - 1] == pytest.approx(wins_by_force(reward, values, n))


@pytest.mark.parametrize("samples", [1, 2, 7, 500])
def test_the_weights_are_the_binomials_and_a_distribution(samples: int) -> None:
    weights = order_weights(samples)
    np.testing.assert_allclose(weights.sum(0), 1)
    for n, i in [(1, 1), (samples, samples), (max(1, samples // 2), max(1, samples * 2 // 3))]:
        exact = math.comb(i - 1, n - 1) / math.comb(samples, n)
        assert weights[i - 1, n - 1] == pytest.approx(exact, rel=1e-9, abs=1e-300)


def test_a_binary_reward_gives_pass_at_k() -> None:
    right = np.array([[1.0] * 3 + [0.0] * 9])
    expected = [1 - math.comb(9, n) / math.comb(12, n) for n in range(1, 13)]
    np.testing.assert_allclose(best_of(right, right)[0], expected)


def test_the_win_rate_of_the_reward_itself_is_the_bound_where_nothing_ties() -> None:
    n = np.arange(1, 8)
    np.testing.assert_allclose(win_rate(SCORES, SCORES)[0], n / (n + 1))
    assert win_rate(SCORES, -SCORES)[0] == pytest.approx(1 - n / (n + 1))
    np.testing.assert_allclose(win_rate(np.ones((1, 8)), np.ones((1, 8)))[0], 0.5)


def test_many_sources_are_compared_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = np.random.default_rng(0).integers(4, size=(7, 5)).astype(float)
    whole = win_rate(reward, -reward)
    monkeypatch.setattr("rest.evaluation.best_of_n.CELLS_AT_ONCE", 60)
    np.testing.assert_array_equal(win_rate(reward, -reward), whole)


def test_the_bound_on_the_divergence() -> None:
    np.testing.assert_allclose([kl_bound(n) for n in (1, 2, 4, 256)], [0, 0.193147, 0.636294, 4.549084], atol=1e-6)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Uniform rewards: the best of N is N / (N + 1); the gold of the chosen is (N / (N + 1)) / 2 + a source's own."""
    rng, n = np.random.default_rng(5), np.arange(1, 7)
    covered = []
    for seed in range(150):
        reward = rng.uniform(size=(50, 6))
        gold = reward / 2 + rng.uniform(-0.5, 0.5, size=(50, 1)) + rng.normal(0, 0.1, (50, 6))
        curves, _ = curves_of({"reward": reward, "gold": gold}, seed)
        truths = {"reward": n / (n + 1), "gold": n / (n + 1) / 2}
        covered += [(lo <= truths[name]) & (truths[name] <= hi) for name in truths for lo, hi in [curves[name].ci95]]
    share = np.reshape(covered, (150, 2, 6)).mean(0)
    assert (share > 0.88).all() and (share < 0.99).all()


def test_crossings_are_where_one_curve_reaches_another() -> None:
    rng = np.random.default_rng(1)
    weak, strong = rng.uniform(size=(2000, 12)), np.sqrt(rng.uniform(size=(2000, 12)))  # the best of two uniforms
    a, b = (Curve.of(best_of(r, r), seed=0) for r in (weak, strong))
    found = crossing(a, b, at=1)
    assert found.lo is not None and found.hi is not None and found.lo <= 2 <= found.hi <= 3
    assert found.target == pytest.approx(2 / 3, abs=0.01)
    far = crossing(a, b, at=12)  # as the best of 24
    assert (far.n, far.hi) == (None, None)
    assert crossing(b, b, at=5).n == 5


def test_what_has_no_curve_is_refused() -> None:
    for reward in (np.zeros(3), np.zeros((0, 2)), np.array([[0.5, np.nan]])):
        with pytest.raises(UserError, match="Best-of-N needs"):
            best_of(reward, reward)
    with pytest.raises(UserError, match="at least 2"):
        win_rate(np.zeros((3, 1)), np.zeros((3, 1)))
    with pytest.raises(UserError, match="not 0"):
        BestOfN(0)


def test_one_sample_has_a_curve_and_no_win_rate() -> None:
    curves, wins = curves_of({"reward": np.full((3, 1), 0.5)}, seed=0)
    assert curves["reward"].record() == {"mean": [0.5], "lo": [0.5], "hi": [0.5]} and not wins
