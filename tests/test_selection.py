"""What rules share: distinct texts of a source, ranks, and the rows that are compared."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rest.selection import Columns, number, rank, to_compare
from rest.thresholds import Fixed


@st.composite
def columns(draw: st.DrawFn) -> Columns:
    """A few sources, rows of a source together or not, texts that repeat, some human pairs."""
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    source_id = rng.integers(-2, 3, n)
    if draw(st.booleans()):
        source_id = np.sort(source_id)
    texts = rng.integers(0, draw(st.sampled_from([1, 4, 10**9])), n)
    reward = np.round(rng.random(n, np.float32), draw(st.sampled_from([1, 6])))
    return Columns(source_id, reward, rng.random(n) < 0.2, lambda: texts)


@given(columns())
def test_of_each_text_the_row_with_the_highest_reward_stands_for_it(c):
    expected: dict[tuple[int, int], int] = {}
    for row in range(len(c.reward)):
        text = int(c.source_id[row]), int(c.texts[row])
        if text not in expected or c.reward[row] > c.reward[expected[text]]:
            expected[text] = row
    assert c.distinct(np.arange(len(c.reward))).tolist() == sorted(expected.values())
    assert not c.is_reference[c.candidates].any() and set(c.candidates.tolist()) <= set(range(len(c.reward)))


def test_texts_are_asked_for_once_and_only_when_needed():
    asked = []
    c = Columns(
        np.zeros(2, np.int64), np.ones(2, np.float32), np.zeros(2, bool), lambda: asked.append(1) or np.arange(2)
    )
    assert c.best.tolist() == [1] and not asked
    assert c.candidates.tolist() == [0, 1] and c.distinct(np.arange(1)).tolist() == [0] and asked == [1]


@given(columns())
def test_ranks_count_what_is_better_or_as_good_and_earlier(c):
    group, count = number(c.source_id)
    assert count == len(np.unique(c.source_id))
    rows = range(len(group))
    better = [sum(group[k] == group[r] and (-c.reward[k], k) < (-c.reward[r], r) for k in rows) for r in rows]
    assert rank(group, c.reward).tolist() == better


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
