"""Guards: each flag by example, at its limits, and for any text."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest.__main__ import main
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
    thai = "เด็กผู้หญิงคนหนึ่งกำลังวิ่งเล่นกับสุนัขตัวเล็กในสวนสาธารณะ"
    english = "a girl is running and playing with a small dog in the park"
    assert flags(thai, source=english) == flags(english, source=thai) == ""


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


# What is learned from D

GERMAN = [f"Der kleine Hund Nummer {n} schläft heute nicht in seinem warmen Haus ." for n in "abcdefghi"] + [
    "Ein Vogel fliegt leise über grüne Wälder ."
]
ENGLISH = [f"The little dog number {n} does not sleep in its warm house today ." for n in "abcdefghi"] + [
    "A bird flies quietly over green woods ."
]
LEARNED = Guards(learn_share=0.01)


@pytest.fixture(scope="module")
def german():
    """Guards of English to German."""
    return LEARNED.fit(ENGLISH, GERMAN)


def test_limits_of_length_are_quantiles_of_d_beyond_the_slack():
    # ratios of (length + 2) / 10 and (length - 2) / 10 of references of 1 to 101 words: 1 % and 99 % are the second
    # lowest and the second highest
    sources, references = ["a b c d e f g h i j"] * 101, ["w " * n for n in range(1, 102)]
    fitted = Guards(learn_share=0.01, length_slack=2).fit(sources, references)
    assert fitted.min_length_ratio == pytest.approx((2 + 2) / 10)
    assert fitted.max_length_ratio == pytest.approx((100 - 2) / 10)
    flagged = ["length_ratio" in flags.split(",") for flags in fitted.flags(sources, references)]
    assert [n for n, wrong in enumerate(flagged, start=1) if wrong] == [1, 101]


def test_the_language_of_the_source_and_one_of_neither_side_are_told(german):
    sources = ["Das Haus des Hundes ist heute nicht warm .", "What would I have liked to see there ?"]
    strange = ["The house of the dog is not warm today .", "Qu'est-ce que j'aurais voulu y voir, quoi ?"]
    assert german.flags(sources, strange) == ["language", "language"]
    assert german.flags(["The dog does not sleep ."], ["Der Hund schläft heute nicht ."]) == [""]
    assert german.flags(["The dog ."], ["The dog"]) == [""]  # too short to be told
    assert german.flags(ENGLISH, GERMAN) == [""] * 9 + ["language"]  # the share that may be outside


def test_letters_of_another_script_are_strange(german):
    assert german.scripts == ("LATIN",)
    assert "script" in german.flags(["The dog does not sleep ."], ["Собака сегодня не спит ."])[0].split(",")
    assert german.flags(["The dog ."], ["犬 Hund"]) == [""]  # most letters are Latin
    assert german.flags(["1984 !"], ["1984 !?"]) == [""]  # no letters, no script
    both = LEARNED.fit(ENGLISH, [f"{text} 一二三四五六七八九十" for text in GERMAN])
    assert both.scripts == ("CJK", "LATIN")


@given(text=st.text(max_size=60))
def test_flags_of_any_text_are_names_in_their_order(german, text):
    names = ["empty", "copy", "length_ratio", "repetition", "script", "language"]
    found = [name for name in german.flags([SOURCE], [text])[0].split(",") if name]
    assert found == [name for name in names if name in found]


def test_what_was_learned_is_known_by_its_content(german):
    assert LEARNED.fit(ENGLISH, GERMAN).settings == german.settings
    assert LEARNED.fit(GERMAN, ENGLISH).settings != german.settings
    assert len(json.dumps(german.settings)) < 1000
    assert Guards().fit(ENGLISH, GERMAN) == Guards()  # nothing is learned unless it is asked for
    with pytest.raises(UserError, match="no references to learn limits from"):
        LEARNED.fit(ENGLISH, None)


def test_a_share_that_is_none_is_refused_by_the_command(tmp_path, capsys):
    tiny = str(Path(__file__).resolve().parent.parent / "tiny.py")
    with pytest.raises(SystemExit):
        main(["run", tiny, "--out", str(tmp_path), "--grow.guards.learn-share", "0.7"])
    assert "learn_share must be from 0 to below 0.5, but is 0.7." in capsys.readouterr().err
