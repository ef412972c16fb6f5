"""Words in scripts with and without spaces."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rest.statistics.words import UNSPACED, count_words, log_length_ratios, words


def test_scripts_that_spell_their_words_have_lengths_like_others() -> None:
    thai = "เด็กผู้หญิงคนหนึ่งกำลังวิ่งเล่นกับสุนัขตัวเล็กในสวนสาธารณะ"  # a girl runs and plays with a small dog in the park
    assert 10 <= count_words(thai) <= 16 and words(thai) == [thai]
    assert count_words("ไป go") == 2


def test_words_are_counted_in_scripts_without_spaces() -> None:
    assert count_words("") == count_words(" \u3000\x85") == 0
    assert count_words("two words") == count_words("zwei Wörter") == 2
    assert count_words("我有2只猫。") == 6  # 我 有 2 只 猫 。
    assert count_words("ひとつ\u3000です") == 5
    assert words("我有 two猫\U00020000") == ["我", "有", "two", "猫", "\U00020000"]


@given(st.text(st.characters(codec="utf-8")))
def test_without_such_characters_words_are_what_white_space_parts(text: str) -> None:
    spaced = "".join(
        c for c in text if not any(lo <= c <= hi for lo, hi in zip(UNSPACED[::3], UNSPACED[2::3], strict=True))
    )
    assert words(spaced) == spaced.split()
    assert "".join(words(text)) == "".join(text.split())


def test_length_ratios_by_hand() -> None:
    found = log_length_ratios(["a b c", "猫"], ["a", "two cats ."])
    np.testing.assert_allclose(found, [np.log(2 / 4), np.log(4 / 2)])
