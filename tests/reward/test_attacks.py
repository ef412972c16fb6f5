"""Attacks: what each perturbation does, what is counted, and the negatives made of them."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest.errors import UserError
from rest.ratings.record import RatingRow, from_rows
from rest.reward.attacks import (
    ATTACKS,
    WORST,
    Attack,
    Case,
    added,
    attack,
    best_rated,
    doubled,
    empty,
    gibberish,
    shuffled,
    source_copied,
    stuttering,
    synthetic_negatives,
    truncated,
    unrelated,
    upper_case,
    without_punctuation,
)

CASE = Case("Ein Satz.", "One short sentence, said well.", "It rains.")
CHINESE = Case("A good day", "今天天气很好", "你好")


def apply(perturb, case=CASE, seed=0):
    return perturb(case, np.random.default_rng(seed))


def test_what_each_leaves():
    assert apply(doubled) == "One short sentence, said well. One short sentence, said well."
    assert apply(truncated) == "One short sentence,"
    assert apply(source_copied) == "Ein Satz."
    assert apply(empty) == ""
    assert apply(added) == "One short sentence, said well. It rains."
    assert apply(unrelated) == "It rains."
    assert apply(upper_case) == "ONE SHORT SENTENCE, SAID WELL."
    assert apply(without_punctuation) == "One short sentence said well"


@given(st.integers(0, 200))
def test_random_ones_keep_their_material(seed):
    text = apply(shuffled, seed=seed)
    assert Counter(text.split()) == Counter(CASE.honest.split())
    assert Counter(apply(gibberish, seed=seed)) == Counter(CASE.honest)
    assert [len(w) for w in apply(gibberish, seed=seed).split()] == [len(w) for w in CASE.honest.split()]
    extra = Counter(apply(stuttering, seed=seed).split()) - Counter(CASE.honest.split())
    assert 1 <= len(extra) <= 3
    assert set(extra.values()) == {5}


def test_text_without_spaces_is_spoilt_by_characters():
    assert apply(truncated, CHINESE) == "今天天"
    assert Counter(apply(shuffled, CHINESE)) == Counter(CHINESE.honest)
    assert " " not in apply(stuttering, CHINESE)


@given(st.text(), st.text(), st.text(), st.integers(0, 9))
def test_any_text_can_be_spoilt(source, honest, other, seed):
    for each in ATTACKS:
        case = Case(source, honest or "x", other)
        assert apply(each.perturb, case, seed) == apply(each.perturb, case, seed)


SOURCES = [f"quelle {k}" for k in range(6)]
HONEST = [f"Good text, number {k}." for k in range(6)]


def longer(sources, hypotheses, references):
    """A bad reward: characters."""
    return np.array([len(y) for y in hypotheses])


def test_shares_ties_and_changes_are_counted():
    found = {result.attack: result for result in attack(longer, SOURCES, HONEST, 0)}
    assert list(found) == [each.name for each in ATTACKS]
    twice, upper, gone = found["said twice"], found["upper case"], found["empty"]
    assert (twice.cases, twice.higher, twice.ties, twice.mean_change) == (6, 1.0, 0.0, 21.0)
    assert (upper.higher, upper.ties, upper.mean_change) == (0.0, 1.0, 0.0)
    assert (gone.higher, gone.mean_change, gone.examples) == (0.0, -20.0, ())
    assert len(twice.examples) == 3
    example = twice.examples[0]
    assert (example.source, example.attacked, example.attacked_score) == (SOURCES[0], f"{HONEST[0]} {HONEST[0]}", 41.0)
    assert twice.higher_ci95 == (1.0, 1.0)
    assert twice.record()["examples"][0]["honest"] == HONEST[0]


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(UserError, match="is not a finite number"):
        attack(lambda sources, hypotheses, references: np.full(len(hypotheses), np.nan), SOURCES, HONEST, 0)


def test_cases_that_stay_as_they_were_are_left_out():
    plain = [*HONEST[:5], "no marks"]
    found = {result.attack: result for result in attack(longer, SOURCES, plain, 0)}
    assert found["no punctuation"].cases == 5
    same = Attack("same", lambda case, rng: case.honest, 0.0)
    assert attack(longer, SOURCES, HONEST, 0, attacks=[same]) == []


def test_references_follow_their_rows():
    seen = []

    def spy(sources, hypotheses, references):
        seen.append(list(zip(sources, references, strict=True)))
        return np.zeros(len(hypotheses))

    references = [f"reference {k}" for k in range(6)]
    attack(spy, SOURCES, [*HONEST[:5], "no marks"], 0, references)
    pairs = set(zip(SOURCES, references, strict=True))
    assert all(set(call) <= pairs for call in seen)
    assert min(map(len, seen)) == 5


def test_the_other_text_is_always_of_another_source():
    (each,) = (a for a in ATTACKS if a.perturb is unrelated)
    for seed in range(20):
        texts = each.cases(SOURCES, HONEST, seed)
        assert sorted(texts) == sorted(HONEST)
        assert all(text != honest for text, honest in zip(texts, HONEST, strict=True))


def test_a_seed_gives_the_same_texts_again():
    for each in ATTACKS:
        assert each.cases(SOURCES, HONEST, 1) == each.cases(SOURCES, HONEST, 1)
    assert ATTACKS[0].cases(SOURCES, HONEST, 1) != ATTACKS[0].cases(SOURCES, HONEST, 2)


def test_negatives_carry_the_scores_they_deserve():
    negatives = synthetic_negatives(SOURCES, HONEST, 0)
    by_name = {each.name: -each.penalty for each in ATTACKS}
    assert [by_name[name] for name in negatives.systems] == negatives.scores.tolist()
    assert set(negatives.sets) == {"synthetic"}
    assert len(set(negatives.groups.tolist())) == 6
    assert negatives.scores.min() == -WORST
    assert all(0 < each.penalty <= WORST for each in ATTACKS)
    assert not {*zip(negatives.sources, negatives.hypotheses, strict=True)} & {*zip(SOURCES, HONEST, strict=True)}


def test_the_best_rated_translation_of_each_source():
    rows = [("b", "x", 1), ("a", "y", 2), ("b", "z", 3), ("b", "w", 3)]
    ratings = from_rows(RatingRow(s, h, float(v), s, None, "", "", "", "", "") for s, h, v in rows)
    assert best_rated(ratings).hypotheses == ["y", "z"]


@pytest.mark.parametrize("run", [lambda s, h: attack(longer, s, h, 0), lambda s, h: synthetic_negatives(s, h, 0)])
def test_one_text_or_uneven_lists_are_refused(run):
    with pytest.raises(UserError, match="got 1 for 1"):
        run(["a"], ["b"])
    with pytest.raises(UserError, match="got 1 for 2"):
        run(["a", "b"], ["b"])
