"""The threshold rules: strict, nested, equal to a plain loop."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rest.errors import UserError
from rest.thresholds import (
    Capped,
    Columns,
    Fixed,
    GlobalPercentile,
    PerSourceInterpolation,
    PerSourcePercentile,
    PerSourceTop,
    to_compare,
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
    """A few sources with ties, rows of a source together or not, with and without human pairs."""
    n = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    source_id = rng.integers(-2, 5, n)
    if draw(st.booleans()):
        source_id = np.sort(source_id)[::-1].copy()
    reward = rng.random(n, np.float32)
    if draw(st.booleans()):
        reward = np.round(reward, 1)
    return Columns(source_id, reward, rng.random(n) < draw(st.sampled_from([0.0, 0.2, 1.0])))


def naive(rule: PerSourcePercentile, c: Columns, i: int) -> np.ndarray:
    """One quantile a source, row by row."""
    kept = np.zeros(len(c.reward), np.bool_)
    for row, source in enumerate(c.source_id):
        samples = c.reward[(c.source_id == source) & ~c.is_reference].astype(np.float64)
        tau = np.percentile(samples, rule.percentiles[i - 1]) if len(samples) else -np.inf
        kept[row] = c.reward[row] > np.float32(tau)
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
def test_a_kept_row_exceeds_the_threshold_and_no_other_does(c, rule, i):
    chosen = rule.choose(c, i, "compete")
    tau = -np.inf if chosen.threshold is None else np.float32(chosen.threshold)
    np.testing.assert_array_equal(chosen.mask, c.reward > tau)


@settings(deadline=None)
@given(columns(), st.integers(1, 4))
def test_one_threshold_a_source_equals_a_loop_over_sources(c, i):
    chosen = RULES[2].choose(c, i, "compete")
    np.testing.assert_array_equal(chosen.mask, naive(RULES[2], c, i))
    assert chosen.sources == len(np.unique(c.source_id[chosen.mask]))


@settings(deadline=None)
@given(columns(), st.integers(1, 3))
def test_interpolation_equals_a_loop_over_sources(c, i):
    kept, gamma = np.zeros(len(c.reward), np.bool_), RULES[3].gammas[i - 1]
    for row, source in enumerate(c.source_id):
        samples = c.reward[(c.source_id == source) & ~c.is_reference].astype(np.float64)
        tau = gamma * samples.max() + (1 - gamma) * samples.mean() if len(samples) else -np.inf
        kept[row] = c.reward[row] > np.float32(tau)
    np.testing.assert_array_equal(RULES[3].choose(c, i).mask, kept)


@settings(deadline=None)
@given(columns(), st.integers(1, 3))
def test_the_best_few_of_every_source_are_kept_whatever_ties(c, i):
    mask, k = RULES[4].choose(c, i, "never").mask, RULES[4].counts[i - 1]
    for source in np.unique(c.source_id):
        samples = np.flatnonzero((c.source_id == source) & ~c.is_reference)
        best = sorted(samples, key=lambda row: (-c.reward[row], row))[:k]
        np.testing.assert_array_equal(np.flatnonzero(mask & (c.source_id == source)), sorted(best))


@settings(deadline=None)
@given(columns(), st.integers(1, 3), st.integers(0, 4), st.sampled_from(["compete", "never"]))
def test_a_cap_keeps_each_text_once_and_the_best_few(c, cap, texts, human_pairs):
    text = np.arange(len(c.reward)) % (texts + 1)
    c = Columns(c.source_id, c.reward, c.is_reference, lambda: text)
    inner = Fixed((0.2,))
    chosen = Capped(inner, cap).choose(c, 1, human_pairs)
    passed = inner.choose(c, 1, human_pairs).mask
    assert not (chosen.mask & ~passed).any()
    for source in np.unique(c.source_id):
        rows = np.flatnonzero(passed & (c.source_id == source))
        once = [row for n, row in enumerate(rows) if text[row] not in text[rows[:n]]]
        best = sorted(once, key=lambda row: (-c.reward[row], row))[:cap]
        np.testing.assert_array_equal(np.flatnonzero(chosen.mask & (c.source_id == source)), sorted(best))
    assert chosen.threshold == 0.2 and Capped(inner, cap).at(1) == {"rule": "Fixed", "threshold": 0.2, "cap": cap}


@settings(deadline=None)
@given(columns(), st.integers(2, 4), st.sampled_from(["compete", "never"]))
def test_compared_rows_are_the_best_that_passed_the_worst_and_some_between(c, candidates, human_pairs):
    chosen = Fixed((0.5,)).choose(c, 1, human_pairs)
    mask = to_compare(c, chosen, candidates, human_pairs).mask
    for source in np.unique(c.source_id):
        rows = np.flatnonzero((c.source_id == source) & (~c.is_reference if human_pairs == "never" else True))
        picked = c.reward[mask & (c.source_id == source)]
        passed = c.reward[chosen.mask & (c.source_id == source)]
        if not len(passed) or passed.max() == c.reward[rows].min():
            assert not len(picked)
        else:
            assert picked.max() == passed.max() and picked.min() == c.reward[rows].min()
            assert len(picked) == min(candidates, len(rows)) or len(rows) > candidates >= len(picked) >= 2


def test_evenly_apart_by_hand():
    reward = np.array([0.1, 0.9, 0.5, 0.3, 0.7], np.float32)
    c = Columns(np.full(5, 3), reward, np.zeros(5, np.bool_))
    everything = Fixed((0.6,)).choose(c, 1)
    assert np.flatnonzero(to_compare(c, everything, 2, "compete").mask).tolist() == [0, 1]
    assert np.flatnonzero(to_compare(c, everything, 3, "compete").mask).tolist() == [0, 1, 2]


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
    c = Columns(np.zeros(4, np.int64), np.array([-1.5, -0.0, -2.0, 0.5], np.float32), np.zeros(4, np.bool_))
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


def test_the_best_of_eight_is_kept_and_ties_at_the_top_keep_none():
    rule = PerSourcePercentile((87.5,))
    reward = np.concatenate([np.arange(8) / 8, np.full(8, 0.5)]).astype(np.float32)
    c = Columns(np.repeat([7, 3], 8), reward, np.zeros(16, np.bool_))
    chosen = rule.choose(c, 1)
    assert np.flatnonzero(chosen.mask).tolist() == [7]
    assert (chosen.rows, chosen.sources) == (1, 1)


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
