"""What parallel text is like, counted by hand, and splits that never overlap."""

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest.data.corpus import Cleaning
from rest.data.survey import Pairs, split_off
from rest.errors import UserError

CLEANING = Cleaning()


def pairs_of(*pairs: tuple[str, str]) -> Pairs:
    return Pairs.of([x for x, _ in pairs], [y for _, y in pairs], CLEANING)


def test_counts():
    pairs = pairs_of(("a  b", "x"), ("", "y"), ("a b", "x"), ("我们 爱", "we love"), ("c", " ".join("abcdefg")))
    assert pairs.sources[0] == "a b"
    assert pairs.source_words.tolist() == [2, 0, 2, 3, 1]
    assert pairs.target_words.tolist() == [1, 1, 1, 2, 7]
    assert pairs.words == 8 + 12
    assert pairs.empty.tolist() == [False, True, False, False, False]
    assert pairs.repeated.tolist() == [False, False, True, False, False]
    assert pairs.among({"a b", "z"}).tolist() == [True, False, True, False, False]
    assert pairs.longest.tolist() == [2, 1, 2, 3, 7]
    # ratios 2, -, 2, 1.5 and 1/7; their median is 1.75
    assert pairs.uneven.tolist() == [False, False, False, False, True]


def test_files_are_read_plain_and_packed(tmp_path):
    (tmp_path / "a").write_bytes("\ufeffeins\r\nzwei\u2028drei".encode())
    with gzip.open(tmp_path / "b.gz", "wb") as file:
        file.write(b"one\ntwo\n")
    pairs = Pairs.read(tmp_path / "a", tmp_path / "b.gz", CLEANING)
    assert pairs.sources == ["eins", "zwei drei"] and pairs.targets == ["one", "two"]


def test_files_that_cannot_be_used(tmp_path):
    (tmp_path / "two").write_text("a\nb\n")
    (tmp_path / "one").write_text("a\n")
    (tmp_path / "latin").write_bytes(b"a\n\xe4\n")
    with pytest.raises(UserError, match=r"two has 2 lines, but .*one has 1"):
        Pairs.read(tmp_path / "two", tmp_path / "one", CLEANING)
    marked = tmp_path / "marked"
    marked.write_bytes(b"\xef\xbb\xbfab\xffcd\n")
    with pytest.raises(UserError, match="marked, line 1: byte 6 is 0xff, no UTF-8"):
        Pairs.read(marked, tmp_path / "two", CLEANING)
    with pytest.raises(UserError, match="latin, line 2: byte 1 is 0xe4, no UTF-8"):
        Pairs.read(tmp_path / "latin", tmp_path / "two", CLEANING)
    with pytest.raises(UserError, match="none does not exist"):
        Pairs.read(tmp_path / "none", tmp_path / "two", CLEANING)


@given(st.lists(st.integers(0, 40), min_size=40, max_size=80), st.integers(0, 3), st.data())
def test_what_is_split_off_never_overlaps(numbers, size, data):
    """Texts recur often; dev and test have those that are there once, on either side, and not in what was given."""
    targets = data.draw(st.lists(st.integers(0, 200), min_size=len(numbers), max_size=len(numbers)))
    pairs = pairs_of(*((f"x{x}", f"y{y}") for x, y in zip(numbers, targets, strict=True)))
    given_text = pairs_of(("x1", "z"), ("z", "y2"))
    try:
        train, found = split_off(pairs, {"dev": size, "test": size}, given_text, 100, seed=3)
    except UserError as error:
        assert "too few to split" in str(error)
        return
    rows = np.concatenate([train, *found.values()])
    assert sorted(rows) == list(range(len(pairs)))
    parts = [pairs.take(train), *(pairs.take(each) for each in found.values()), given_text]
    assert [len(part) for part in parts[1:3]] == [size, size]
    for split in parts[1:3]:
        for other in parts:
            if other is not split:
                assert not {*split.sources} & {*other.sources} and not {*split.targets} & {*other.targets}


def test_the_seed_decides_what_is_split_off():
    pairs = pairs_of(*((f"a {n}", f"b {n}") for n in range(60)))
    first, again, other = (split_off(pairs, {"dev": 10}, None, 100, seed)[1]["dev"] for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any()
    assert pairs.take(first).sources == [f"a {n}" for n in first]


def test_long_and_uneven_pairs_are_not_measured_with():
    rows = [(f"a {n}", f"b {n}") for n in range(40)] + [("long " * 101, "lang " * 101), ("q", "w e r t y u i o")]
    _, found = split_off(pairs_of(*rows), {"test": 20}, None, 100, seed=0)
    assert max(found["test"]) < 40


def test_joined():
    both = Pairs.joined([pairs_of(("a b", "c")), pairs_of(("d", "e f g"))])
    assert both.sources == ["a b", "d"] and both.targets == ["c", "e f g"]
    assert both.source_words.tolist() == [2, 1] and both.target_words.tolist() == [1, 3]
