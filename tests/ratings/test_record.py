"""Ratings as columns: standardising, mixing, averaging, pairs, and splits that share no source."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest.errors import UserError
from rest.ratings.record import (
    RatingRow,
    SplitSettings,
    average_raters,
    by_kind,
    from_rows,
    mix,
    pairs_within,
    seen_rows,
    source_keys,
    split,
    standardise,
    unseen,
)


def row(source="s", hypothesis="h", score=0.0, group="g", document="", rater="", set_name="set", system=""):
    return RatingRow(source, hypothesis, score, group, None, system, document, rater, set_name, "de-en")


def documents(names, per=2):
    """`per` sources in each document."""
    return from_rows(
        row(f"{name} {k}", f"h{k}", float(k), (name, k), name) for name in names for k in range(per)
    )  # fmt: skip


def test_rows_become_columns_and_groups_are_numbered():
    ratings = from_rows([row(group="b"), row(group="a"), row(group="b", score=2)])
    assert ratings.groups.tolist() == [0, 1, 0]
    assert ratings.scores.tolist() == [0, 0, 2]
    assert len(ratings) == 3
    taken = ratings.take([2, 0])
    assert (taken.scores.tolist(), taken.groups.tolist()) == ([2, 0], [0, 0])
    assert ratings.take(np.array([False, True, False])).groups.tolist() == [1]


def test_references_are_all_or_none():
    ratings = from_rows([row()._replace(reference="r"), row()])
    assert ratings.all_references is None
    assert ratings.take([0]).all_references == ["r"]


def test_z_by_rater_is_hand_worked():
    ratings = from_rows(row(rater=rater, score=score) for rater, score in zip("aabbc", [1, 3, 10, 30, 7], strict=True))
    assert standardise(ratings, ratings.raters).scores.tolist() == [-1, 1, -1, 1, 0]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(-100, 100)), min_size=1, max_size=20))
def test_standardised_scores_have_mean_zero_and_deviation_one_or_zero(rows):
    ratings = from_rows(row(rater=rater, score=score) for rater, score in rows)
    z = standardise(ratings, ratings.raters).scores
    for rater in set(ratings.raters):
        own = z[np.array(ratings.raters) == rater]
        assert own.mean() == pytest.approx(0, abs=1e-5)
        assert own.std() == pytest.approx(1, abs=1e-5) or not own.any()


def test_sets_are_standardised_before_they_are_mixed_and_keep_their_groups_apart():
    stars = from_rows([row(score=1), row(score=5)])
    percent = from_rows([row(score=0, set_name="other"), row(score=100, set_name="other")])
    mixed = mix([stars, percent])
    assert mixed.scores.tolist() == [-1, 1, -1, 1]
    assert mixed.groups.tolist() == [0, 0, 1, 1]
    assert [part.sets for part in by_kind(mixed)] == [["set"] * 2, ["other"] * 2]
    assert mix([stars]) is stars


def test_raters_are_averaged_for_each_hypothesis_and_system():
    rows = [
        row(hypothesis="x", rater="1", score=-0.1),
        row(hypothesis="y", rater="1", score=1),
        row(hypothesis="x", rater="2", score=-0.2),
        row(hypothesis="x", rater="1", score=4, system="B"),
    ]
    averaged = average_raters(from_rows(rows))
    assert averaged.hypotheses == ["x", "y", "x"]
    assert averaged.scores.tolist() == [-0.15, 1, 4]
    assert averaged.raters == ["", "", ""]


@given(st.lists(st.integers(0, 4), max_size=15))
def test_pairs_within_groups_are_all_pairs_once(groups):
    left, right = pairs_within(np.array(groups, np.int64))
    found = sorted(zip(left.tolist(), right.tolist(), strict=True))
    n = len(groups)
    assert found == [(i, j) for i in range(n) for j in range(i + 1, n) if groups[i] == groups[j]]


# Splits


@given(st.integers(0, 50), st.lists(st.sampled_from("abcdefghijklm"), min_size=12, max_size=40))
def test_no_source_and_no_document_is_in_two_parts(seed, names):
    rows = [row(f"s{k % 30}", "h", k, k, name) for k, name in enumerate(names)]
    rows += [row(f"alone {k}", "h", k, f"alone {k}") for k in range(20)]
    ratings = from_rows(rows)
    parts = split(ratings, SplitSettings(seed, 0.1, 0.2))
    assert sum(map(len, parts)) == len(ratings)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not set(parts[one].sources) & set(parts[other].sources)
        assert not set(parts[one].documents) & set(parts[other].documents) - {""}


def test_a_split_follows_from_the_seed_and_not_from_the_order_of_the_rows():
    ratings = documents([f"doc{k}" for k in range(20)])
    parts = split(ratings, SplitSettings(3))
    assert [len(part) for part in parts] == [32, 4, 4]
    turned = split(ratings.take(np.arange(len(ratings))[::-1]), SplitSettings(3))
    assert [set(part.sources) for part in parts] == [set(part.sources) for part in turned]
    assert set(split(ratings, SplitSettings(4)).test.sources) != set(parts.test.sources)


def test_documents_that_share_a_source_stay_together():
    rows = [
        row("thank you", document="a"),
        row("thank you", document="b"),
        row("x", document="b"),
        row("y", document="c"),
    ]
    parts = split(from_rows(rows), SplitSettings(0, 0.0, 0.3))
    assert sorted(sorted(set(part.documents)) for part in (parts.train, parts.test)) == [["a", "b"], ["c"]]
    assert len(parts.dev) == 0


def test_a_whole_set_is_for_test_and_the_others_stay_where_they_were():
    ratings = documents([f"doc{k}" for k in range(20)])
    added = from_rows([row("new", document="doc3", set_name="dev"), row("newer", document="mine", set_name="dev")])
    both = mix([ratings, added])
    before, after = (split(both, SplitSettings(3, test_sets=sets)) for sets in ((), ("dev",)))
    assert set(after.test.sources) == {*before.test.sources, "new", "newer", "doc3 0", "doc3 1"}
    assert set(after.dev.sources) == set(before.dev.sources) - set(after.test.sources)
    assert sum(map(len, after)) == len(both)
    with pytest.raises(UserError, match="test_sets: 'devv' is none of dev, set"):
        split(both, SplitSettings(test_sets=("devv",)))


def test_too_few_documents_are_refused():
    with pytest.raises(UserError, match=r"2 documents .* leave none for train"):
        split(documents("ab"), SplitSettings())


@pytest.mark.parametrize(("dev", "test"), [(-0.1, 0.1), (0.1, -0.1), (0.5, 0.5)])
def test_shares_must_leave_something(dev, test):
    with pytest.raises(UserError, match="share"):
        SplitSettings(0, dev, test)


def test_whole_documents_are_unseen_and_only_those():
    rows = documents(["a", "b", "c"])
    ratings = from_rows([*(row(s, d, 0.0, s, d) for s, d in zip(rows.sources, rows.documents, strict=True)), row("x")])

    def after(*sources):
        return unseen(ratings, seen_rows(ratings.sources, source_keys(sources)))

    left = after("a 1", "elsewhere")
    assert left.sources == ["b 0", "b 1", "c 0", "c 1", "x"]
    assert after("x").sources == rows.sources  # a row without a document is its own
    assert len(after()) == 7
    with pytest.raises(UserError, match="sources of all 4 documents"):
        after("a 0", "b 0", "c 1", "x")


@given(st.lists(st.text()))
def test_keys_of_sources_are_their_set(sources):
    keys = source_keys(sources)
    assert keys.dtype == np.uint64 and len(keys) == len(set(sources))
    np.testing.assert_array_equal(keys, source_keys(sorted(set(sources))))
