"""Raters: how well they see the gold quality, and that a rating depends on its own row and seed alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest.data.synthetic import SyntheticLanguage
from rest.errors import UserError
from rest.reward.raters import MetricRater, SimulatedRater
from rest.reward.reference_based import SentenceBLEU, SentenceChrF

LANGUAGE = SyntheticLanguage(train=800)
SOURCES, REFERENCES = LANGUAGE.sentences("train")
GOLD = LANGUAGE.gold(SOURCES, REFERENCES)


def gold_of_references(sources: list[str], hypotheses: list[str]) -> np.ndarray:
    return GOLD


def rate(rater: SimulatedRater, seed: int = 0) -> np.ndarray:
    return rater.rate(SOURCES, REFERENCES, None, gold_of_references, seed)


def zero(sources: list[str], hypotheses: list[str]) -> np.ndarray:
    return np.zeros(len(sources), np.float32)


def half(sources: list[str], hypotheses: list[str]) -> np.ndarray:
    return np.full(len(sources), 0.5, np.float32)


def correlation(ratings: np.ndarray, gold: np.ndarray = GOLD) -> float:
    return float(np.corrcoef(ratings, gold)[0, 1])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_rater_correlates_with_gold_as_people_do(seed):
    assert 0.5 <= correlation(rate(SimulatedRater(), seed=seed)) <= 0.7


def test_one_rater_correlates_with_gold_on_corrupted_hypotheses():
    hypotheses = [
        text
        for i, source in enumerate(SOURCES)
        for text in LANGUAGE.corrupt([source], (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)[i % 6], seed=1)
    ]
    gold = LANGUAGE.gold(SOURCES, hypotheses)
    ratings = SimulatedRater().rate(SOURCES, hypotheses, None, LANGUAGE.gold, 0)
    assert 0.5 <= correlation(ratings, gold) <= 0.7


def test_more_raters_see_better():
    one, four, many = (correlation(rate(SimulatedRater(raters=n))) for n in (1, 4, 32))
    assert one + 0.1 < four < many - 0.05


def test_without_noise_the_rating_is_gold():
    np.testing.assert_array_equal(rate(SimulatedRater(noise=0.0)), GOLD)


def test_noise_is_normal_and_of_the_asked_size():
    ratings = SimulatedRater(noise=0.1).rate(SOURCES, REFERENCES, None, half, 0) - 0.5
    assert abs(ratings.mean()) < 0.01
    assert ratings.std() == pytest.approx(0.1, rel=0.06)
    assert (np.abs(ratings) < 0.1).mean() == pytest.approx(0.683, abs=0.04)


def test_another_seed_is_another_person():
    first, second = (SimulatedRater(noise=0.1).rate(SOURCES, REFERENCES, None, half, seed) for seed in (0, 1))
    assert abs(correlation(first, second)) < 0.1


@given(seed=st.integers(0, 2**40), order=st.permutations(range(12)), cut=st.integers(1, 11))
def test_ratings_do_not_depend_on_batching_or_order(seed, order, cut):
    rater = SimulatedRater(length_bias=0.05, raters=2)
    together = rater.rate(SOURCES[:12], REFERENCES[:12], None, LANGUAGE.gold, seed)
    for part in (order[:cut], order[cut:]):
        ratings = rater.rate([SOURCES[i] for i in part], [REFERENCES[i] for i in part], None, LANGUAGE.gold, seed)
        np.testing.assert_array_equal(ratings, together[list(part)])


@given(
    texts=st.lists(st.tuples(st.text(), st.text()), max_size=5),
    noise=st.floats(0, 100),
    bias=st.floats(-10, 10),
    raters=st.integers(1, 3),
)
def test_ratings_of_any_text_are_float32_in_0_1(texts, noise, bias, raters):
    sources, hypotheses = [s for s, _ in texts], [h for _, h in texts]
    ratings = SimulatedRater(noise, bias, raters).rate(sources, hypotheses, None, half, 0)
    assert ratings.dtype == np.float32 and ratings.shape == (len(texts),)
    assert ((ratings >= 0) & (ratings <= 1)).all()


def test_text_is_told_apart_where_source_and_hypothesis_meet():
    ratings = SimulatedRater(noise=0.1).rate(["ab", "a", "\ud800"], ["c", "bc", ""], None, half, 0)
    assert len(set(ratings.tolist())) == 3


def test_ratings_of_seed_0_never_change():
    ratings = SimulatedRater(noise=0.1).rate(["a source"], ["a hypothesis"], None, half, 0)
    assert ratings[0] == pytest.approx(0.5069674, abs=1e-6)


def test_length_bias_favours_long_hypotheses():
    lengths = ["one", "one two three", "one two three four five six"]
    sources = ["a b c"] * 3
    favouring, against = (SimulatedRater(0.0, bias).rate(sources, lengths, None, half, 0) for bias in (0.1, -0.1))
    assert favouring[0] < favouring[1] == 0.5 < favouring[2]
    np.testing.assert_allclose(favouring + against, 1, atol=1e-6)


def test_length_bias_is_bounded():
    ratings = SimulatedRater(0.0, 0.1).rate(["a b c"] * 2, ["", "word " * 1000], None, half, 0)
    np.testing.assert_allclose(ratings, [0.2, 0.8], atol=1e-6)


def test_a_simulated_rater_needs_gold():
    with pytest.raises(UserError, match="needs a task with gold quality"):
        SimulatedRater().rate(["a"], ["b"], ["c"], None, 0)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"noise": -0.1}, "noise must be a number not below 0, but is -0.1"),
        ({"noise": float("nan")}, "noise must be a number not below 0, but is nan"),
        ({"length_bias": float("inf")}, "length_bias must be a number, but is inf"),
        ({"raters": 0}, "raters must be at least 1, but is 0"),
    ],
)
def test_impossible_settings_are_refused(settings, problem):
    with pytest.raises(UserError, match=problem):
        SimulatedRater(**settings)


@pytest.mark.parametrize("metric", [SentenceChrF(), SentenceBLEU()], ids=str)
def test_a_metric_rater_puts_the_metric_on_0_1(metric):
    clean = LANGUAGE.clean(SOURCES[:50])
    ratings = MetricRater(metric).rate(SOURCES[:50], REFERENCES[:50], clean, None, 0)
    assert ratings.dtype == np.float32
    np.testing.assert_allclose(ratings * 100, metric(SOURCES[:50], REFERENCES[:50], clean), atol=1e-4)
    assert correlation(ratings, GOLD[:50]) > 0.7
    assert MetricRater(metric).rate(SOURCES[:1], clean[:1], clean[:1], zero, 0)[0] == pytest.approx(1)


def test_a_metric_rater_needs_references():
    with pytest.raises(UserError, match="this text has none"):
        MetricRater().rate(["a"], ["b"], None, zero, 0)
