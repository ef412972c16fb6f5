"""Rows of different lengths in flat arrays, against a list of arrays."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest.data import ragged
from rest.data.ragged import Ragged, lengths_of

ROWS = st.lists(st.lists(st.integers(-9, 9), max_size=6), max_size=12)


def same(found: Ragged, wanted: list[list[int]]) -> bool:
    lengths = found.lengths
    assert lengths.dtype == np.int32 and lengths.tolist() == lengths_of(wanted).tolist() == [len(row) for row in wanted]
    return [row.tolist() for row in found] == wanted and len(found) == len(wanted)


@given(ROWS, st.integers(0, 5), st.data())
def test_rows_are_those_of_a_list_however_they_are_taken_and_cut(rows, longest, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged, "BLOCK", 4)
        found = Ragged.of(iter(rows))
    column = pa.chunked_array([pa.array(part, pa.list_(pa.int32())) for part in (rows[:3], rows[3:5], rows[5:])])
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9)) if rows else []
    taken = [rows[row] for row in chosen]
    assert same(found.followed_by(found.take(np.array(chosen, int))), [*rows, *taken])
    cut = [row[:longest] for row in [*taken, *rows]]
    assert same(found.take(np.array(chosen, int)).cut(longest).followed_by(found), cut)
    for each in (found, Ragged.of_column(column), Ragged.of_column(pa.chunked_array([column.combine_chunks()]))):
        assert same(each, rows)
        assert same(each.cut(longest), [row[:longest] for row in rows])
        assert same(each.take(np.array(chosen, int)).cut(longest).cut(9), [row[:longest] for row in taken])
        assert same(each.take(np.array(chosen, int))[1:], taken[1:]) and same(each[::-2], rows[::-2])


def test_a_row_that_is_null_has_no_numbers_and_one_that_is_not_there_is_no_row():
    found = Ragged.of_column(pa.chunked_array([pa.array([[1, 2], None, [3]], pa.list_(pa.float32()))]))
    assert [row.tolist() for row in found] == [[1, 2], [], [3]] and found[-1].tolist() == [3]
    for row in (3, -4):
        with pytest.raises(IndexError, match=f"row {row} of 3"):
            found[row]
