"""Guards: each flag by example, at its limits, and for any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest.errors import UserError
from rest.reward.guards import Guards

SOURCE = "a small dog chases two cats through the garden ."


def flags(hypothesis: str, source: str = SOURCE, guards: Guards = Guards()) -> str:  # noqa: B008
    (found,) = guards.flags([source], [hypothesis])
    return found


def test_good_hypotheses_have_no_flag():
    assert Guards().flags([SOURCE, "hello"], ["ein kleiner Hund jagt zwei Katzen .", "hallo"]) == ["", ""]
    assert Guards().flags([], []) == []


@pytest.mark.parametrize("hypothesis", ["", " ", "\n\t\u3000"])
def test_nothing_is_empty_and_only_that(hypothesis):
    assert flags(hypothesis) == "empty"
    assert flags(hypothesis, source="") == "empty"


@pytest.mark.parametrize("hypothesis", [SOURCE, SOURCE.upper(), "  " + SOURCE.replace(" ", "  ")])
def test_the_source_itself_is_a_copy(hypothesis):
    assert flags(hypothesis) == "copy"


def test_names_and_numbers_may_be_copied():
    assert flags("2019", source="2019") == ""
    assert flags("2019", source="2019", guards=Guards(min_copy_words=1)) == "copy"
    assert flags("北京", source="北京") == "copy"


@pytest.mark.parametrize(("words", "found"), [(0, "length_ratio"), (1, ""), (28, ""), (29, "length_ratio")])
def test_length_limits(words, found):
    # 10 words: at least 0.4 x 10 - 3 = 1 and at most 2.5 x 10 + 3 = 28; one word fewer than 1 is empty text
    hypothesis = " ".join(f"word{i}" for i in range(words))
    assert flags(hypothesis) == (found if words else "empty")
    assert flags("one", source=SOURCE + " more words") == "length_ratio"


def test_short_sentences_are_given_slack():
    assert flags("als ob es so wäre", source="yes") == ""
    assert flags("als ob es so wäre", source="yes", guards=Guards(length_slack=0)) == "length_ratio"


def test_lengths_in_scripts_without_spaces_are_characters():
    assert flags("一只小狗在花园里追两只猫。") == ""
    assert flags("一只小狗在花园里追两只猫。" * 3) == "length_ratio"
    assert flags("a small dog chases two cats .", source="一只小狗追两只猫。") == ""


@pytest.mark.parametrize(
    ("hypothesis", "found"),
    [
        ("der der der Hund", ""),
        ("der der der der Hund", "repetition"),
        ("der Hund der Hund der Hund", ""),
        ("ja , der Hund der Hund der Hund der Hund", "repetition"),
        ("Hund der Katze Hund den Katze Hund das Katze Hund dem", ""),
        ("好好好好", "repetition"),
    ],
)
def test_repetition_is_an_ngram_said_too_often_in_a_row(hypothesis, found):
    assert flags(hypothesis) == found


def test_long_loops_are_found():
    assert flags("a b c d e f g h " * 4, source=" ".join(map(str, range(32)))) == "repetition"
    assert flags("a b c d e f g h i " * 4, source=" ".join(map(str, range(36)))) == ""


def test_what_the_source_repeats_may_be_repeated():
    assert flags("nein nein nein nein nein", source="no no no no no") == ""
    assert flags("nein nein nein nein nein nein", source="no no no no no") == "repetition"


def test_flags_are_joined_in_their_order():
    assert flags("no " * 40) == "length_ratio,repetition"
    assert flags("no no no", source="no no no", guards=Guards(0.0, 0.5, 0, 1)) == "copy,length_ratio"


@given(source=st.text(), hypothesis=st.text())
def test_any_text_has_flags_from_the_list(source, hypothesis):
    found = flags(hypothesis, source)
    names = ["empty", "copy", "length_ratio", "repetition"]
    assert found == "" or [name for name in names if name in found.split(",")] == found.split(",")
    assert ("empty" in found) == (not hypothesis.strip())


@given(words=st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=6), times=st.integers(4, 9))
def test_any_ngram_said_four_times_is_a_repetition(words, times):
    source = " ".join(f"s{i}" for i in range(len(words) * times))
    assert flags(" ".join(words * times), source) == "repetition"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"min_length_ratio": -1.0}, "they are -1.0 and 2.5"),
        ({"max_length_ratio": 0.1}, "they are 0.4 and 0.1"),
        ({"max_length_ratio": float("nan")}, "they are 0.4 and nan"),
        ({"max_repeats": 0}, "max_repeats must be at least 1, but is 0"),
        ({"length_slack": -1}, "length_slack must be at least 0, but is -1"),
    ],
)
def test_impossible_settings_are_refused(settings, problem):
    with pytest.raises(UserError, match=problem):
        Guards(**settings)
