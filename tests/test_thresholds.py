"""The threshold rules: nested, equal to a plain loop over distinct texts, and no source is dropped for repeats."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rest.errors import UserError
from rest.selection import Columns
from rest.thresholds import (
    Capped,
    Fixed,
    GlobalPercentile,
    PerSourceInterpolation,
    PerSourcePercentile,
    PerSourceTop,
    choose,
)

RULES = [
    Fixed((0.2, 0.5, 0.8)),
    GlobalPercentile((10.0, 50.0, 87.5, 100.0)),
    PerSourcePercentile((0.0, 50.0, 87.5, 100.0)),
    PerSourceInterpolation((0.0, 0.4, 0.9)),
    PerSourceTop((5, 2, 1)),
]


@st.composite
def columns(draw: st.DrawFn) -> Columns:
    """A few sources with ties and repeats, rows of a source together or not, with and without human pairs."""
    n = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    source_id = rng.integers(-2, 5, n)
    if draw(st.booleans()):
        source_id = np.sort(source_id)[::-1].copy()
    reward = rng.random(n, np.float32)
    if draw(st.booleans()):
        reward = np.round(reward, 1)
    texts = rng.integers(0, draw(st.sampled_from([2, 5, 10**9])), n)
    if draw(st.booleans()):  # repeats are rewarded alike
        pairs = np.stack([source_id, texts])
        _, first, of = np.unique(pairs, axis=1, return_index=True, return_inverse=True)
        reward = reward[first[of]]
    return Columns(source_id, reward, rng.random(n) < draw(st.sampled_from([0.0, 0.2, 1.0])), lambda: texts)


def of_one(*rewards: float, texts: list[int] | None = None) -> Columns:
    """The samples of one source, all different unless `texts` says otherwise."""
    n = len(rewards)
    numbers = np.arange(n) if texts is None else np.array(texts)
    return Columns(np.full(n, 3), np.array(rewards, np.float32), np.zeros(n, np.bool_), lambda: numbers)


def distinct(c: Columns, source: int) -> list[float]:
    """The rewards of the different texts among a source's samples, row by row."""
    found: dict[int, float] = {}
    for row in np.flatnonzero((c.source_id == source) & ~c.is_reference):
        found[c.texts[row]] = max(float(c.reward[row]), found.get(c.texts[row], -np.inf))
    return list(found.values())


def above(c: Columns, threshold: Callable[[list[float]], float]) -> np.ndarray:
    """What exceeds a threshold of its source's rewards, or equals the best of them, row by row."""
    kept = np.zeros(len(c.reward), np.bool_)
    for row, source in enumerate(c.source_id):
        rewards = distinct(c, source)
        kept[row] = not rewards or c.reward[row] > np.float32(threshold(rewards)) or c.reward[row] >= max(rewards)
    return kept


@settings(deadline=None)
@given(columns(), st.sampled_from(RULES), st.sampled_from(["compete", "always", "never"]))
def test_each_step_keeps_a_subset_of_the_one_before(c, rule, human_pairs):
    before = rule.choose(c, 0, human_pairs).mask
    for i in range(1, rule.steps + 1):
        mask = rule.choose(c, i, human_pairs).mask
        assert not (mask & ~before).any()
        before = mask


@settings(deadline=None)
@given(columns(), st.sampled_from(RULES[:2]), st.integers(1, 3))
def test_a_kept_row_exceeds_the_one_threshold_and_no_other_does(c, rule, i):
    chosen = rule.choose(c, i, "compete")
    tau = -np.inf if chosen.threshold is None else np.float32(chosen.threshold)
    best = np.inf if isinstance(rule, Fixed) else c.reward[~c.is_reference].max(initial=-np.inf)
    np.testing.assert_array_equal(chosen.mask, (c.reward > tau) | (c.reward >= best))


@settings(deadline=None)
@given(columns(), st.integers(1, 4))
def test_one_percentile_a_source_equals_a_loop_over_its_distinct_texts(c, i):
    chosen = RULES[2].choose(c, i, "compete")
    np.testing.assert_array_equal(chosen.mask, above(c, lambda r: np.percentile(r, RULES[2].percentiles[i - 1])))
    assert chosen.sources == len(np.unique(c.source_id[chosen.mask]))


@settings(deadline=None)
@given(columns(), st.integers(1, 3))
def test_interpolation_equals_a_loop_over_distinct_texts(c, i):
    gamma = RULES[3].gammas[i - 1]
    expected = above(c, lambda r: gamma * max(r) + (1 - gamma) * np.mean(r))
    np.testing.assert_array_equal(RULES[3].choose(c, i).mask, expected)


@settings(deadline=None)
@given(columns(), st.integers(1, 3))
def test_the_best_few_texts_of_every_source_are_kept_once_whatever_ties(c, i):
    mask, k = RULES[4].choose(c, i, "never").mask, RULES[4].counts[i - 1]
    for source in np.unique(c.source_id):
        samples = np.flatnonzero((c.source_id == source) & ~c.is_reference)
        best = once(c, sorted(samples, key=lambda row: (-c.reward[row], row)))[:k]
        np.testing.assert_array_equal(np.flatnonzero(mask & (c.source_id == source)), sorted(best))


def once(c: Columns, rows: list[int]) -> list[int]:
    """The first row of each text."""
    return [row for k, row in enumerate(rows) if c.texts[row] not in c.texts[rows[:k]]]


@settings(deadline=None)
@given(columns(), st.sampled_from(RULES[1:]), st.integers(1, 3))
def test_no_source_is_dropped(c, rule, i):
    chosen = rule.choose(c, i, "never")
    sampled = np.unique(c.source_id[~c.is_reference])
    if isinstance(rule, GlobalPercentile):
        assert chosen.rows or not len(sampled)
    else:
        np.testing.assert_array_equal(np.unique(c.source_id[chosen.mask]), sampled)


@settings(deadline=None)
@given(columns(), st.integers(1, 3), st.sampled_from(["compete", "never"]))
def test_a_cap_keeps_each_text_once_and_the_best_few(c, cap, human_pairs):
    inner = Fixed((0.2,))
    chosen = Capped(inner, cap).choose(c, 1, human_pairs)
    passed = inner.choose(c, 1, human_pairs).mask
    for source in np.unique(c.source_id):
        rows = np.flatnonzero(passed & (c.source_id == source))
        best = once(c, sorted(rows, key=lambda row: (-c.reward[row], row)))[:cap]
        np.testing.assert_array_equal(np.flatnonzero(chosen.mask & (c.source_id == source)), sorted(best))
    assert chosen.threshold == 0.2 and Capped(inner, cap).at(1) == {"rule": "Fixed", "threshold": 0.2, "cap": cap}


def test_a_source_whose_texts_are_all_equal_keeps_them():
    c = of_one(*[0.5] * 32, texts=[0] * 32)
    for rule in (GlobalPercentile((100.0,)), PerSourcePercentile((90.0,)), PerSourceInterpolation((1.0,))):
        assert rule.choose(c, 1).mask.all()
    assert np.flatnonzero(PerSourceTop((8,)).choose(c, 1).mask).tolist() == [0]
    assert Capped(PerSourcePercentile((90.0,))).choose(c, 1).rows == 1


def test_two_distinct_texts_of_32_are_parted_by_every_percentile():
    """With every row counted, percentile 80 of 31 good rows and a bad one is the good one, which nothing exceeds."""
    c = of_one(*[0.9] * 31, 0.2, texts=[0] * 31 + [1])
    for percentile in (0.0, 50.0, 80.0, 100.0):
        chosen = PerSourcePercentile((percentile,)).choose(c, 1)
        assert chosen.mask.tolist() == [True] * 31 + [False]
        assert chosen.thresholds["max"] == pytest.approx(0.2 + percentile / 100 * 0.7)
    assert PerSourceInterpolation((0.5,)).choose(c, 1).thresholds["mean"] == pytest.approx(0.5 * 0.9 + 0.5 * 0.55)
    assert np.flatnonzero(PerSourceTop((4,)).choose(c, 1).mask).tolist() == [0, 31]


def test_a_text_has_the_highest_reward_of_its_repeats():
    c = of_one(0.1, 0.6, 0.4, 0.5, texts=[7, 2, 7, 7])
    assert np.flatnonzero(PerSourceTop((2,)).choose(c, 1).mask).tolist() == [1, 3]
    assert PerSourcePercentile((0.0,)).choose(c, 1).thresholds["min"] == 0.5


@pytest.mark.parametrize("rule", [*RULES[2:], Capped()])
def test_texts_that_are_not_known_are_missed(rule):
    c = of_one(0.5, 0.6)
    with pytest.raises(ValueError, match="texts of the hypotheses"):
        rule.choose(Columns(c.source_id, c.reward, c.is_reference), 1)


@settings(deadline=None)
@given(columns(), st.sampled_from([0.0, 10.0, 33.3, 50.0, 90.0, 100.0]))
def test_the_global_percentile_is_numpys_over_the_samples(c, percentile):
    samples = c.reward[~c.is_reference].astype(np.float64)
    tau = GlobalPercentile((percentile,)).choose(c, 1, "compete").threshold
    expected = np.float32(np.percentile(samples, percentile)) if len(samples) else None
    assert tau == expected


@settings(deadline=None)
@given(columns(), st.sampled_from(RULES), st.integers(0, 3))
def test_human_pairs_compete_or_are_always_or_never_kept(c, rule, i):
    compete, always, never = (rule.choose(c, i, how).mask for how in ("compete", "always", "never"))
    np.testing.assert_array_equal(always, compete | c.is_reference)
    np.testing.assert_array_equal(never, compete & ~c.is_reference)


def test_per_source_percentiles_order_negative_values_too():
    c = of_one(-1.5, -0.0, -2.0, 0.5)
    chosen = PerSourcePercentile((0.0, 50.0)).choose(c, 2)
    assert chosen.mask.tolist() == [False, True, False, True]
    assert chosen.thresholds == {"min": -0.75, "mean": -0.75, "max": -0.75}


@pytest.mark.parametrize("tau", [0.7, 0.8, 0.9, 0.95, 0.99, 0.1])
def test_a_reward_equal_to_the_threshold_in_float32_does_not_pass(tau):
    """float32(0.8) is above 0.8, float32(0.7) below 0.7: comparing in float32 treats both as equal."""
    equal = np.float32(tau)
    reward = np.array([np.nextafter(equal, np.float32(0)), equal, np.nextafter(equal, np.float32(1))])
    c = Columns(np.arange(3), reward.astype(np.float32), np.zeros(3, np.bool_))
    assert Fixed((tau,)).choose(c, 1).mask.tolist() == [False, False, True]


def test_the_best_of_eight_is_kept_and_ties_at_the_top_keep_all():
    rule = PerSourcePercentile((87.5,))
    reward = np.concatenate([np.arange(8) / 8, [0.1, 0.1, 0.1, 0.1, 0.5, 0.5, 0.5, 0.5]]).astype(np.float32)
    c = Columns(np.repeat([7, 3], 8), reward, np.zeros(16, np.bool_), lambda: np.arange(16))
    chosen = rule.choose(c, 1)
    assert np.flatnonzero(chosen.mask).tolist() == [7, 12, 13, 14, 15]
    assert (chosen.rows, chosen.sources) == (5, 2)


def test_the_report_of_a_selection():
    c = Columns(
        np.array([4, 4, 9, 9]),
        np.array([0.25, 0.75, 1.0, 0.5], np.float32),
        np.array([False, False, True, False]),
    )
    chosen = Fixed((0.7,)).choose(c, 1)
    expected = {
        "threshold": 0.7,
        "thresholds": None,
        "rows": 2,
        "sources": 2,
        "references": 1,
        "mean_reward": 0.875,
        "warning": None,
    }
    told = {name: value for name, value in vars(chosen).items() if name != "mask"}
    assert json.loads(json.dumps(told)) == expected
    everything = Fixed().choose(c, 0)
    assert everything.mask.all() and everything.threshold is None
    nothing = Fixed((1.0,)).choose(c, 1)
    assert (nothing.rows, nothing.sources, nothing.mean_reward) == (0, 0, None)


def test_a_fixed_threshold_not_above_the_mean_reward_warns():
    c = Columns(np.arange(2), np.array([0.5, 0.75], np.float32), np.zeros(2, np.bool_))
    warning = Fixed((0.625, 0.7)).choose(c, 1).warning
    assert warning == "threshold 0.625 of improve step 1 is not above the dataset's mean reward 0.6250"
    assert Fixed((0.625, 0.7)).choose(c, 2).warning is None


def test_a_risen_threshold_that_lowers_the_mean_warns():
    """The good source has four texts of which one is above 90 %; the bad one's many ties all pass every time."""
    reward = np.array([0.9, 0.91, 0.92, 0.93] + [0.2] * 4, np.float32)
    c = Columns(np.repeat([0, 1], 4), reward, np.zeros(8, np.bool_), lambda: np.arange(8))
    rule = PerSourcePercentile((50.0, 90.0))
    assert rule.choose(c, 2).warning is None
    falls = "improve step 2 keeps rows of mean reward 0.3460, which is lower than 0.4417 of step 1"
    assert choose(rule, c, 2).warning == falls
    assert choose(rule, c, 1).warning.endswith("keeps rows of mean reward 0.4417, which is lower than 0.5575 of step 0")
    capped = choose(Capped(rule, 3), c, 2)
    assert capped.warning is not None and capped.rows == 4
    np.testing.assert_array_equal(choose(rule, c, 2).mask, rule.choose(c, 2).mask)
    assert choose(rule, c, 0).warning is None


@settings(deadline=None)
@given(columns(), st.integers(1, 3), st.sampled_from(["compete", "never"]))
def test_one_threshold_for_all_never_lowers_the_mean(c, i, human_pairs):
    for rule in RULES[:2]:
        assert "lower" not in (choose(rule, c, i, human_pairs).warning or "")


def test_human_pairs_that_are_always_kept_lower_no_mean():
    reward, human = np.array([0.6, 0.7, 0.1], np.float32), np.array([False, False, True])
    c = Columns(np.zeros(3, np.int64), reward, human, lambda: np.arange(3))
    rule = PerSourceTop((2, 1))
    means = [rule.choose(c, i, "always").mean_reward for i in (1, 2)]
    assert means[1] < means[0] and choose(rule, c, 2, "always").warning is None


def test_what_decides_a_step_does_not_depend_on_the_steps_that_follow():
    assert Fixed((0.7, 0.8)).at(1) == Fixed((0.7, 0.8, 0.9)).at(1) == {"rule": "Fixed", "threshold": 0.7}
    assert PerSourcePercentile().at(2) == {"rule": "PerSourcePercentile", "percentile": 75.0}
    assert Fixed().at(0) == GlobalPercentile().at(0) == {"rule": "everything"}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Fixed((0.8, 0.8)), r"thresholds must rise, but 0.8 follows 0.8"),
        (lambda: Fixed((0.5, 1.5)), r"thresholds must lie in \[0, 1\], but 1.5 does not"),
        (lambda: Fixed((float("nan"),)), r"thresholds must lie in \[0, 1\], but nan does not"),
        (lambda: GlobalPercentile((90.0, 50.0)), r"percentiles must rise, but 50.0 follows 90.0"),
        (lambda: PerSourcePercentile((101.0,)), r"percentiles must lie in \[0, 100\], but 101.0 does not"),
        (lambda: PerSourceInterpolation((0.5, 0.5)), r"gammas must rise, but 0.5 follows 0.5"),
        (lambda: PerSourceTop((1, 2)), r"counts must be at least 1 and fall, not \(1, 2\)"),
        (lambda: PerSourceTop((0,)), r"counts must be at least 1 and fall, not \(0,\)"),
        (lambda: Capped(cap=0), r"cap must be at least 1, not 0"),
        (lambda: Fixed((0.5,)).at(2), r"improve step 2 is not in 0..1"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(make, message):
    with pytest.raises(UserError, match=message):
        make()
