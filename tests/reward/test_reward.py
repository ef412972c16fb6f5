"""Rewards: any function of text, its scale, and what is refused."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest

from rest.errors import UserError
from rest.reward.composition import Cached
from rest.reward.reference_based import SentenceChrF
from rest.reward.reward import Reward, raw_scores

SOURCES = ["one two", "three", "four five six"]
HYPOTHESES = ["eins zwei", "drei", "vier fünf sechs"]


def words(sources, hypotheses, references):
    return np.array([len(y.split()) for y in hypotheses])


def returns(values):
    """A reward function that gives these scores."""

    def given(sources, hypotheses, references):
        return np.asarray(values)

    return given


@dataclass(frozen=True)
class Share:
    """The share of one letter, as a reward with a setting."""

    letter: str

    def __call__(self, sources, hypotheses, references):
        return np.array([y.count(self.letter) / len(y) for y in hypotheses])


def score(function, scale=None):
    return Reward(function, scale)(SOURCES, HYPOTHESES, None)


def test_the_scale_maps_low_to_zero_and_high_to_one():
    scored = score(words, (1.0, 3.0))
    np.testing.assert_array_equal(scored.raw, np.float32([2, 1, 3]))
    np.testing.assert_array_equal(scored.reward, np.float32([0.5, 0, 1]))
    assert scored.raw.dtype == scored.reward.dtype == np.float32
    assert scored.clipped == 0


def test_scores_outside_the_scale_are_clipped_and_counted():
    scored = score(returns([-1.0, 2.5, 9.0]), (0.0, 5.0))
    np.testing.assert_array_equal(scored.reward, np.float32([0, 0.5, 1]))
    np.testing.assert_array_equal(scored.raw, np.float32([-1, 2.5, 9]))
    assert scored.clipped == 2


def test_where_lower_is_better_the_scale_falls():
    scored = score(returns([25.0, 0.0, 30.0]), (25.0, 0.0))  # as MetricX counts errors
    np.testing.assert_array_equal(scored.reward, np.float32([0, 1, 0]))
    assert scored.clipped == 1


def test_without_a_scale_the_raw_score_is_the_reward():
    scored = score(returns([0.0, 0.25, 1.0]))
    np.testing.assert_array_equal(scored.reward, scored.raw)
    assert scored.clipped == 0


@pytest.mark.parametrize("scale", [(0.5, 0.5), (0.0, float("nan")), (float("-inf"), 1.0)])
def test_a_scale_without_width_or_end_is_refused(scale):
    with pytest.raises(UserError, match="scale"):
        Reward(words, scale)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("scale", [None, (0.0, 1.0)])
def test_a_score_that_is_no_number_names_the_first_hypothesis(value, scale):
    with pytest.raises(UserError, match=r"given: the score .* of hypothesis 1 \('drei'\) is not a finite") as e:
        score(returns([0.5, value, value]), scale)
    assert "2 of 3" in str(e.value)


@pytest.mark.parametrize("value", [-0.01, 1.01])
def test_without_a_scale_a_score_outside_zero_and_one_names_the_first_hypothesis(value):
    with pytest.raises(UserError, match=r"hypothesis 2 \('vier fünf sechs'\) is outside \[0, 1\]"):
        score(returns([0, 1, value]))


@pytest.mark.parametrize("values", [[0.5, 0.5], [[0.5], [0.5], [0.5]], 0.5, []])
def test_a_score_too_few_or_too_many_is_refused(values):
    with pytest.raises(UserError, match=r"given: returned shape .* for 3 hypotheses, not \(3,\)"):
        score(returns(values))


@pytest.mark.parametrize("values", [["0.1", "0.2", "0.3"], [1j, 1j, 1j], [True, False, True], [None, 1, 2]])
def test_what_is_not_a_number_is_refused(values):
    with pytest.raises(UserError, match=r"given: returned .*, not numbers"):
        score(returns(values))


def test_any_python_function_will_do():
    np.testing.assert_allclose(score(lambda sources, hypotheses, references: [0.1, 0.2, 1]).raw, [0.1, 0.2, 1])
    np.testing.assert_allclose(score(Share("e")).reward, [2 / 9, 1 / 4, 2 / 15], rtol=1e-6)
    chrf = Reward(SentenceChrF(), SentenceChrF.scale)
    assert chrf(SOURCES, HYPOTHESES, HYPOTHESES).reward.tolist() == [1, 1, 1]
    with pytest.raises(UserError, match="references"):
        chrf(SOURCES, HYPOTHESES, None)


def test_a_function_that_wants_no_references_takes_two_arguments(tmp_path):
    def lengths(sources, hypotheses):
        return np.array([len(y) for y in hypotheses])

    class Letters:
        def __call__(self, sources, hypotheses):
            return lengths(sources, hypotheses)

    expected = lengths(None, HYPOTHESES)
    for function in (lengths, Letters(), lambda x, y: lengths(x, y), partial(lambda extra, x, y: lengths(x, y), 1)):
        np.testing.assert_array_equal(score(function, (0.0, 20.0)).raw, expected)
        np.testing.assert_array_equal(raw_scores(function, SOURCES, HYPOTHESES, HYPOTHESES), expected)
    cached = Cached(lengths, tmp_path / "scores.sqlite")
    np.testing.assert_array_equal(cached(SOURCES, HYPOTHESES, HYPOTHESES), expected)


def test_a_third_argument_gets_the_references_if_it_is_needed_or_named_so():
    def share(sources, hypotheses, references=None):
        return np.array([float(y == z) for y, z in zip(hypotheses, references, strict=True)])

    def weighed(sources, hypotheses, weight=0.5):
        return np.full(len(hypotheses), weight)

    def any_number(*texts):
        return np.array([float(y == z) for y, z in zip(*texts[1:], strict=True)])

    functions = (share, lambda x, y, z: share(x, y, z), any_number)
    assert all(raw_scores(f, SOURCES, HYPOTHESES, HYPOTHESES).tolist() == [1, 1, 1] for f in functions)
    assert raw_scores(weighed, SOURCES, HYPOTHESES, HYPOTHESES).tolist() == [0.5] * 3


def test_other_signatures_are_refused_before_anything_is_scored():
    def alone(hypotheses):
        return np.zeros(len(hypotheses))

    def four(sources, hypotheses, references, extra):
        return np.zeros(len(hypotheses))

    def by_name(sources, hypotheses, *, references):
        return np.zeros(len(hypotheses))

    for function in (alone, four, by_name, lambda: 0):
        with pytest.raises(
            UserError, match=r"takes \(.*\), but is called as \(sources, hypotheses\) or \(sources, hyp"
        ):
            Reward(function)
        with pytest.raises(UserError, match=function.__qualname__.replace("<", ".")[:20]):
            raw_scores(function, SOURCES, HYPOTHESES, None)


def test_no_hypotheses_have_no_scores():
    assert Reward(words, (0.0, 3.0))([], [], None).reward.shape == (0,)


def test_identity_follows_the_source_the_settings_and_the_scale():
    def one(sources, hypotheses, references):
        return np.ones(len(hypotheses))

    def zero(sources, hypotheses, references):
        return np.zeros(len(hypotheses))

    rewards = [
        Reward(one),
        Reward(zero),
        Reward(one, (0.0, 1.0)),
        Reward(one, (0.0, 2.0)),
        Reward(one, (1.0, 0.0)),
        Reward(Share("e")),
        Reward(Share("i")),
        Reward(SentenceChrF(), (0.0, 100.0)),
        Reward(SentenceChrF(word_order=2), (0.0, 100.0)),
    ]
    assert len({reward.identity for reward in rewards}) == len(rewards)
    assert Reward(one).identity == Reward(one).identity
    assert Reward(Share("e")).identity == replace(Reward(Share("i")), function=Share("e")).identity


def test_the_name_is_that_of_the_function_or_class():
    assert Reward(words).name == "words"
    assert Reward(Share("e")).name == "Share"


def test_an_exception_in_a_reward_function_is_told_with_its_place():
    def broken(sources, hypotheses, references):
        return 1 / 0

    with pytest.raises(UserError, match=r"broken: raised ZeroDivisionError: division by zero \(.*test_reward.py, line"):
        Reward(broken)(["a"], ["b"], None)
