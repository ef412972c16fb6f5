"""The synthetic language: determinism, grammar, the noise of references, and the exactness of gold."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest.data.synthetic import LONGEST, SHORTEST, Noise, SyntheticLanguage
from rest.errors import UserError

LANGUAGE = SyntheticLanguage(train=400, dev=150, test=50)
SOURCES, REFERENCES = LANGUAGE.sentences("train")
CLEAN = LANGUAGE.clean(SOURCES)
KINDS = LANGUAGE._lexicon.kinds

rows = st.integers(0, len(SOURCES) - 1)
seeds = st.integers(0, 2**32)


def translation(source: str) -> list[str]:
    return LANGUAGE.clean([source])[0].split()


def word(kind: str, index: int = 0, marked: int = 0) -> str:
    return KINDS[kind][index].forms[marked]


def plain(kind: str, group: int | None = None) -> int:
    """Index of an entry of the kind with one sense, and of the group if given."""
    return next(i for i, e in enumerate(KINDS[kind]) if len(e.senses) == 1 and (group is None or e.group == group))


def ambiguous(kind: str) -> int:
    return next(i for i, e in enumerate(KINDS[kind]) if len(e.senses) == 2)


def score(source: str, words: list[str]) -> float:
    return float(LANGUAGE.gold([source], [" ".join(words)])[0])


# The corpus


def test_the_same_settings_give_the_same_sentences():
    again = SyntheticLanguage(train=400, dev=150, test=50)
    for split in ("train", "dev", "test"):
        assert again.sentences(split) == LANGUAGE.sentences(split)


def test_sentences_of_seed_0_never_change():
    assert (SOURCES[0], CLEAN[0], REFERENCES[0]) == (
        "du goke me mipi du sebe sena",
        "vothaka thibrekom wegromeo vavonit brar",
        "thisheka thibrekom wegromeas vavonit brar brar",
    )


def test_another_seed_is_another_language():
    other = SyntheticLanguage(seed=1, train=50)
    assert not set(other.sentences("train")[0]) & set(SOURCES)
    with pytest.raises(UserError, match="is not in this synthetic language"):
        other.clean(SOURCES[:1])


def test_a_split_does_not_depend_on_sizes():
    smaller = dataclasses.replace(LANGUAGE, train=10, dev=0)
    assert smaller.sentences("train") == (SOURCES[:10], REFERENCES[:10])
    assert smaller.sentences("dev") == ([], [])
    assert smaller.sentences("test") == LANGUAGE.sentences("test")


def test_splits_have_their_sizes_and_share_no_source():
    splits = [LANGUAGE.sentences(split)[0] for split in ("train", "dev", "test")]
    assert [len(split) for split in splits] == [400, 150, 50]
    assert len(set().union(*splits)) == 600


def test_sentences_have_4_to_20_words():
    lengths = {len(source.split()) for source in SOURCES}
    assert min(lengths) == SHORTEST == 4 and max(lengths) == LONGEST == 20


def test_the_languages_share_no_word():
    source_words = {w for source in SOURCES for w in source.split()}
    target_words = {w for text in CLEAN for w in text.split()}
    assert not source_words & target_words
    assert LANGUAGE.gold(SOURCES, SOURCES).max() == 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_train_references_are_noisy_and_vary(seed):
    language = SyntheticLanguage(seed=seed, train=500)
    gold = language.gold(*language.sentences("train"))
    assert 0.75 <= gold.mean() <= 0.85
    assert gold.std() > 0.12
    assert 0.15 < (gold == 1).mean() < 0.4
    assert (gold < 0.6).mean() > 0.1


def test_dev_references_are_noisy_and_test_references_clean():
    assert 0.73 <= LANGUAGE.gold(*LANGUAGE.sentences("dev")).mean() <= 0.87
    sources, references = LANGUAGE.sentences("test")
    assert references == LANGUAGE.clean(sources)
    assert (LANGUAGE.gold(sources, references) == 1).all()


def test_no_reference_is_empty_even_if_every_word_is_dropped():
    dropping = Noise(perfect=0.0, worst=1.0, drop=1.0, double=0.0, sense=0.0, inflection=0.0, swap=0.0)
    language = dataclasses.replace(LANGUAGE, noise=dropping)
    assert all(language.sentences("train")[1])
    assert all(len(text.split()) == 1 for text in language.corrupt(SOURCES, 1.0, seed=0))


def test_literal_translators_know_the_first_sense_only():
    careful = dataclasses.replace(LANGUAGE, noise=Noise(perfect=1.0, literal=1.0))
    sources, references = careful.sentences("train")
    second = {form for entries in KINDS.values() for e in entries for sense in e.senses[1:] for form in sense.forms}
    clean = careful.clean(sources)
    meant = [bool(second & set(text.split())) for text in clean]
    assert 0.1 < np.mean(meant) < 0.9 and not any(second & set(text.split()) for text in references)
    assert [text != right for text, right in zip(references, clean, strict=True)] == meant  # and nothing else errs
    half = dataclasses.replace(careful, noise=Noise(perfect=1.0, literal=0.5))
    wrong = [text != right for text, right in zip(half.sentences("train")[1], clean, strict=True)]
    assert 0.35 < np.sum(wrong) / np.sum(meant) < 0.65


# The grammar


def test_word_order_and_agreement_in_a_plain_clause():
    noun, other = plain("noun", 0), plain("noun", 1)
    adjective, verb = plain("adjective"), plain("verb")
    source = [
        word("determiner", 1),
        word("adjective", adjective),
        word("noun", noun, 1),
        word("negation"),
        word("verb", verb, 1),
        word("determiner"),  # the definite article has no translation
        word("noun", other),
        word("preposition"),
        word("noun", other, 1),
        word("adverb"),
    ]
    gender = KINDS["noun"][noun].senses[0].gender

    def form(kind, index, inflection):
        return KINDS[kind][index].senses[0].forms[inflection]

    assert translation(" ".join(source)) == [
        form("noun", noun, 3),  # plural nominative
        form("adjective", adjective, gender * 2 + 1),
        form("determiner", 1, gender * 2 + 1),
        form("noun", other, 5),  # plural oblique
        form("preposition", 0, 0),
        form("noun", other, 1),  # singular accusative
        form("adverb", 0, 0),
        form("verb", verb, 3),  # past plural, with the subject
        form("negation", 0, 0),
    ]


def test_a_coordinated_subject_is_plural():
    noun, verb = plain("noun"), plain("verb")
    source = f"{word('noun', noun)} {word('coordinator')} {word('noun', noun)} {word('verb', verb)}"
    assert translation(source)[-1] == KINDS["verb"][verb].senses[0].forms[1]


def test_a_relative_clause_is_about_its_noun():
    noun, other, verb = plain("noun", 0), plain("noun", 1), plain("verb")
    source = " ".join(
        [
            word("noun", noun, 1),
            word("relative"),
            word("verb", verb),
            word("noun", other),
            word("verb", verb, 1),
        ]
    )
    head, forms = KINDS["noun"][noun].senses[0], KINDS["verb"][verb].senses[0].forms
    assert translation(source) == [
        head.forms[3],
        KINDS["relative"][0].senses[0].forms[head.gender * 2 + 1],
        KINDS["noun"][other].senses[0].forms[1],
        forms[1],
        forms[3],
    ]


def test_context_decides_between_senses():
    noun, verb, adjective = ambiguous("noun"), ambiguous("verb"), ambiguous("adjective")
    for group in (0, 1):
        decides = plain("verb", group)
        text = f"{word('noun', noun)} {word('verb', decides)}"
        assert translation(text)[0] == KINDS["noun"][noun].senses[group].forms[0]
        living = plain("noun", group)
        text = f"{word('adjective', adjective)} {word('noun', living)} {word('verb', verb)}"
        _, described, done = translation(text)
        gender = KINDS["noun"][living].senses[0].gender
        assert described == KINDS["adjective"][adjective].senses[group].forms[gender * 2]
        assert done == KINDS["verb"][verb].senses[group].forms[0]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("", "word 1 should be a noun, but is missing"),
        ("xyzzy", "word 1 should be a noun, but is 'xyzzy'"),
        (SOURCES[0] + " xyzzy", f"word {len(SOURCES[0].split()) + 1} should be the end, but is 'xyzzy'"),
        (CLEAN[0], "word 1 should be a noun"),
    ],
)
def test_a_source_outside_the_language_is_refused(source, problem):
    with pytest.raises(UserError, match=problem):
        LANGUAGE.gold([source], ["anything"])


# Gold


def test_gold_is_float32_of_n():
    gold = LANGUAGE.gold(SOURCES, CLEAN)
    assert gold.dtype == np.float32 and gold.shape == (len(SOURCES),)
    assert LANGUAGE.gold([], []).shape == (0,)


def test_the_clean_reference_scores_1_and_nothing_0():
    assert (LANGUAGE.gold(SOURCES, CLEAN) == 1).all()
    assert (LANGUAGE.gold(SOURCES, [""] * len(SOURCES)) == 0).all()
    assert (LANGUAGE.gold(SOURCES, [" \t"] * len(SOURCES)) == 0).all()


def test_gold_by_hand():
    noun, verb = plain("noun"), plain("verb")
    first = [word("noun", noun), word("verb", verb), word("adverb")]
    source = " ".join([*first, word("conjunction"), word("noun", noun), word("verb", verb)])
    clean = translation(source)
    assert len(clean) == 6
    dropped = clean[1:]
    assert score(source, dropped) == pytest.approx(0.5 * 10 / 11 + 0.25 * 5 / 6 + 0.25 * 5 / 6)
    inflected = [KINDS["noun"][noun].senses[0].forms[1], *clean[1:]]
    assert score(source, inflected) == pytest.approx(0.5 + 0.25 + 0.25 * 5 / 6)
    swapped = [clean[1], clean[0], *clean[2:]]
    assert score(source, swapped) == pytest.approx(0.5 + 0.25 * 5 / 6 + 0.25 * 5 / 6)
    doubled = [clean[0], *clean]
    assert score(source, doubled) == pytest.approx(0.5 * 12 / 13 + 0.25 * 6 / 7 + 0.25 * 6 / 7)
    replaced = ["xyzzy", *clean[1:]]
    assert score(source, replaced) == pytest.approx(0.5 * 10 / 12 + 0.25 * 5 / 6 + 0.25 * 5 / 6)


def test_two_cases_of_one_noun_cannot_be_exchanged():
    noun, verb = plain("noun"), plain("verb")
    source = f"{word('noun', noun)} {word('verb', verb)} {word('noun', noun)}"
    first, second, last = translation(source)
    assert score(source, [second, first, last]) < 1


def test_the_wrong_sense_is_worse_than_the_wrong_inflection():
    noun, verb = ambiguous("noun"), plain("verb", 0)
    source = f"{word('noun', noun)} {word('verb', verb)}"
    right, wrong = KINDS["noun"][noun].senses
    last = translation(source)[1]
    assert 0 < score(source, [wrong.forms[0], last]) < score(source, [right.forms[1], last]) < 1


@given(row=rows, at=st.integers(0, 30), error=st.sampled_from(["drop", "double", "strange", "swap"]))
def test_every_single_error_lowers_gold(row, at, error):
    words = CLEAN[row].split()
    at %= len(words)
    changed = {
        "drop": words[:at] + words[at + 1 :],
        "double": [*words[: at + 1], *words[at:]],
        "strange": [*words[:at], "xyzzy", *words[at + 1 :]],
        "swap": [*words[:at], *reversed(words[at : at + 2]), *words[at + 2 :]],
    }[error]
    if changed != words:
        assert score(SOURCES[row], changed) < 1


@given(row=rows, at=st.integers(0, 30), which=st.integers(0, 10))
def test_every_other_form_of_a_word_lowers_gold_a_little(row, at, which):
    words, lemma_of = CLEAN[row].split(), LANGUAGE._lexicon.lemma_of
    at %= len(words)
    forms = [form for form, lemma in lemma_of.items() if lemma == lemma_of[words[at]] and form != words[at]]
    if forms:
        changed = [*words[:at], forms[which % len(forms)], *words[at + 1 :]]
        assert score(SOURCES[row], changed) == pytest.approx(1 - 0.25 / len(words))


@given(row=rows, text=st.text(max_size=300))
def test_gold_of_any_text_is_in_0_1_and_1_only_for_the_clean_reference(row, text):
    gold = score(SOURCES[row], [text])
    assert 0 <= gold <= 1
    assert (gold == 1) == (text.split() == CLEAN[row].split())


@given(row=rows, seed=seeds, rate=st.floats(0, 1))
def test_gold_of_corrupted_text_is_1_only_for_the_clean_reference(row, seed, rate):
    (text,) = LANGUAGE.corrupt([SOURCES[row]], rate, seed)
    gold = score(SOURCES[row], [text])
    assert text and 0 <= gold <= 1
    assert (gold == 1) == (text == CLEAN[row])


@given(row=rows, words=st.permutations(CLEAN[3].split() + CLEAN[4].split()))
def test_gold_of_real_words_in_any_order_is_in_0_1(row, words):
    for n in range(len(words)):
        assert 0 <= score(SOURCES[row], words[:n]) <= 1


def test_very_long_text_scores_near_0():
    assert score(SOURCES[0], [CLEAN[0]] * 2_000) < 1e-3
    assert score(SOURCES[0], ["\ud800" * 1_000_000]) == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_more_corruption_is_worse_on_average(seed):
    rates = [0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0]
    means = [LANGUAGE.gold(SOURCES, LANGUAGE.corrupt(SOURCES, rate, seed)).mean() for rate in rates]
    assert means[0] == 1
    assert (np.diff(means) < 0).all()


@pytest.mark.parametrize("kind", ["drop", "double", "sense", "inflection", "swap"])
def test_each_kind_of_error_lowers_gold(kind):
    shares = {name: float(name == kind) for name in Noise().errors()}
    language = dataclasses.replace(LANGUAGE, noise=Noise(**shares))
    few, many = (language.gold(SOURCES, language.corrupt(SOURCES, rate, 0)).mean() for rate in (0.1, 0.5))
    assert many < few < 1


def test_corruption_of_a_row_does_not_depend_on_the_others():
    assert LANGUAGE.corrupt(SOURCES[:20], 0.3, 5)[7:9] == LANGUAGE.corrupt(SOURCES[7:9], 0.3, 5)
    assert LANGUAGE.corrupt(SOURCES[:20], 0.3, 5) != LANGUAGE.corrupt(SOURCES[:20], 0.3, 6)


# Settings


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"train": -1}, "train must be a number of sentences not below 0, but is -1"),
        ({"nouns": 1}, "nouns must be between 2 and 500, but is 1"),
        ({"adverbs": 501}, "adverbs must be between 2 and 500, but is 501"),
        ({"ambiguous": 1.5}, "ambiguous must be between 0 and 1, but is 1.5"),
    ],
)
def test_impossible_settings_are_refused(settings, problem):
    with pytest.raises(UserError, match=problem):
        SyntheticLanguage(**settings)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"literal": -0.1}, "noise.literal must be between 0 and 1, but is -0.1"),
        ({"worst": 1.5}, "noise.worst must be between 0 and 1, but is 1.5"),
        ({"drop": -1.0}, "noise.drop must be a number not below 0, but is -1.0"),
        ({"swap": float("nan")}, "noise.swap must be a number not below 0, but is nan"),
        ({"drop": 0.0, "double": 0.0, "sense": 0.0, "inflection": 0.0, "swap": 0.0}, "one must be above 0"),
    ],
)
def test_impossible_noise_is_refused(settings, problem):
    with pytest.raises(UserError, match=problem):
        Noise(**settings)


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match="split must be train, dev or test, but is 'valid'"):
        LANGUAGE.sentences("valid")


def test_extreme_vocabularies_are_languages_too():
    smallest = SyntheticLanguage(train=20, nouns=2, verbs=2, adjectives=2, adverbs=2, ambiguous=1.0)
    largest = SyntheticLanguage(train=20, nouns=500, verbs=500, adjectives=500, adverbs=500, ambiguous=1.0)
    for language in (smallest, largest):
        sources, _ = language.sentences("train")
        assert (language.gold(sources, language.clean(sources)) == 1).all()
