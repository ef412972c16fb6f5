"""Counts against hand-worked numbers, and their bounds."""

from __future__ import annotations

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from rest.errors import UserError
from rest.statistics.text_metrics import copy_rate, distinct_ngrams, empty_rate, repeated_ngrams, self_bleu

texts = st.lists(st.text("ab 你", max_size=12), min_size=2, max_size=5)


def test_rates_by_hand() -> None:
    assert copy_rate(["Ein Hund", "zwei", "", "drei"], ["ein  hund", "two", "", "drei"]) == 0.5  # empty is no copy
    assert empty_rate(["", " \t", "a", "b"]) == 0.5
    assert repeated_ngrams(["a b c a b c"], n=3) == pytest.approx(1 / 4)  # abc bca cab abc
    assert repeated_ngrams(["a b c", "a b c"], n=3) == 0  # each by itself
    assert repeated_ngrams(["你好你好"], n=2) == pytest.approx(1 / 3)
    assert repeated_ngrams(["a b"], n=3) == 0
    assert distinct_ngrams([["a b", "a c"], ["d", ""]], 1) == pytest.approx((3 / 4 + 1) / 2)
    assert distinct_ngrams([["a b", "a b"], ["d", ""]], 2) == pytest.approx(1 / 2)
    assert distinct_ngrams([["a"]], 2) == 0


def test_self_bleu_is_sacrebleus_against_the_other_samples() -> None:
    group = ["the cat sat on the mat", "the cat sat on a mat", "one dog"]
    expected = [
        sacrebleu.sentence_bleu(text, [other for other in group if other != text], use_effective_order=True).score
        for text in group
    ]
    assert self_bleu([group]) == pytest.approx(sum(expected) / 3)
    assert self_bleu([["the cat sat on the mat"] * 3] * 2) == pytest.approx(100)
    with pytest.raises(UserError, match="source 1 has 1"):
        self_bleu([["a", "b"], ["a"]])


@given(texts)
def test_shares_are_shares_and_repeating_everything_lowers_variety(group: list[str]) -> None:
    for n in (1, 2):
        assert 0 <= repeated_ngrams(group, n) < 1 and 0 <= distinct_ngrams([group], n) <= 1
        assert distinct_ngrams([group * 2], n) == pytest.approx(distinct_ngrams([group], n) / 2)
