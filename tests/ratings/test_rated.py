"""Rated hypotheses: joined, kept and read again; negatives get what they deserve."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest.errors import UserError
from rest.ratings.rated import Rated
from rest.reward.attacks import negatives

SOURCES = ["a b c d", "a b c d", "e f g", "h i"]
HYPOTHESES = ["one two three four", "one four", "five six seven", "eight nine"]


def rated(**fields):
    columns = {"ratings": np.array([0.9, 0.5, 0.7, 0.2], np.float32), "groups": np.array([3, 3, 5, 8])}
    return Rated(SOURCES, HYPOTHESES, **(columns | fields))


def test_joined_ratings_know_when_they_came():
    later = rated(grow=np.full(4, 2))
    both = rated() + later
    assert both.sources == SOURCES * 2 and both.hypotheses == HYPOTHESES * 2
    assert both.steps.tolist() == [1] * 4 + [2] * 4 and both.groups.tolist() == [3, 3, 5, 8] * 2
    assert both.held_out is None
    held = np.array([True, True, False, False])
    assert (rated(held_out=held) + rated(held_out=~held)).held_out.tolist() == [*held, *~held]


def test_the_best_of_a_source_is_its_first_with_the_highest_rating():
    assert rated().best(np.arange(4)).tolist() == [0, 2, 3]
    assert rated().best(np.array([1, 3])).tolist() == [1, 3]
    assert rated(ratings=np.full(4, 0.5, np.float32)).best(np.arange(4)).tolist() == [0, 2, 3]


def test_a_good_translation_is_the_reference_where_it_is_known():
    references = ["x", "x", "y", "z"]
    rows = np.array([1, 2])
    assert rated().honest(rows) == (["a b c d", "e f g"], ["one four", "five six seven"])
    assert rated(references=references).honest(rows) == (["a b c d", "e f g"], ["x", "y"])
    known = rated(references=references, human=np.array([True, False, False, False]))
    assert (known + known).references == references * 2 and (known + rated()).references is None
    assert (rated() + known).is_reference.tolist() == [False] * 4 + [True] + [False] * 3


def test_what_is_kept_is_read_again_by_anything(tmp_path):
    path = tmp_path / "ratings.parquet"
    known = {"references": list("xxyz"), "human": np.array([False, False, True, False])}
    rated(**known).save(path)
    found = Rated.load(path)
    assert found.references == ["x", "x", "y", "z"] and found.is_reference.tolist() == [False, False, True, False]
    (rated() + rated(grow=np.full(4, 2))).save(path)
    assert pq.read_table(path).column_names == ["source", "hypothesis", "rating", "source_id", "grow", "is_reference"]
    found = Rated.load(path)
    assert found.references is None and not found.is_reference.any()
    assert found.sources == SOURCES * 2 and found.steps.tolist() == [1] * 4 + [2] * 4
    np.testing.assert_array_equal(found.ratings, np.tile(rated().ratings, 2))
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"ratings\.parquet: not the ratings"):
        Rated.load(path)


@given(st.floats(0.05, 0.9), st.integers(0, 5))
def test_negatives_are_the_share_that_was_asked_for(share, seed):
    rows = np.array([0, 1, 2])
    found = negatives(rated(), rows, share, seed)
    available = len(negatives(rated(), rows, 0.999, seed).ratings)
    assert 2 * 8 <= available <= 2 * 10  # the attacks that change each of the two best
    assert len(found.ratings) == min(round(share / (1 - share) * 3), available)
    assert set(found.sources) <= {"a b c d", "e f g"} and set(found.groups.tolist()) <= {3, 5}
    assert found.ratings.min(initial=1) >= np.float32(0.5) and found.ratings.max(initial=0) < np.float32(0.9)
    assert not set(zip(found.sources, found.hypotheses, strict=True)) & set(zip(SOURCES, HYPOTHESES, strict=True))
    of = dict(zip(SOURCES, "xxyz", strict=True))
    known = negatives(rated(references=list("xxyz")), rows, share, seed)
    assert known.references == [of[source] for source in found.sources]


def test_a_negative_loses_the_part_of_its_penalty():
    found = negatives(rated(), np.arange(4), 0.9, 0)
    ratings = {(x, y): r for x, y, r in zip(found.sources, found.hypotheses, found.ratings, strict=True)}
    low = 0.245  # a twentieth of the ratings .2, .5, .7 and .9 is below
    assert ratings["a b c d", ""] == pytest.approx(low)
    assert ratings["a b c d", "ONE TWO THREE FOUR"] == pytest.approx(low + (0.9 - low) * 20 / 25)  # 5 points of 25
    assert ratings["e f g", "five six"] == pytest.approx(low + (0.7 - low) * 10 / 25)  # cut in half: 15 points
    assert max(rating for (source, _), rating in ratings.items() if source == "h i") == np.float32(0.2)  # worse before
