"""Consensus against brute force with sacreBLEU, whoever the peers are and in whatever order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import CHRF

from rest.errors import UserError
from rest.reward.composition import Cached, Conservative, Minimum, RankMean, WeightedMean
from rest.reward.consensus import Consensus
from rest.reward.embedding import EmbeddingCosine
from rest.reward.reference_based import SentenceChrF
from rest.reward.reward import Groups, Reward
from rest.reward.utility import BLEU, ChrF, Mixture, Pairwise, Utility

CHRF_ALONE = ChrF()
short = st.sampled_from(["a b", "a b c", "ab", "c a", "a,b", ""]) | st.text("ab c", max_size=9)


@st.composite
def rows(draw, most: int = 3):
    """(source ids, hypotheses, peers) with at least two samples a source, and up to one that is none."""
    out = []
    for source in range(draw(st.integers(1, most))):
        samples = draw(st.lists(short, min_size=2, max_size=5))
        others = draw(st.lists(short, max_size=1))
        out += [(source, text, True) for text in samples] + [(source, text, False) for text in others]
    return draw(st.permutations(out))


def score(given, utility: Utility = CHRF_ALONE) -> np.ndarray:
    ids, hypotheses, peers = (list(column) for column in zip(*given, strict=True))
    sources = [f"source {k}" for k in ids]
    return Consensus(utility)(sources, hypotheses, None, Groups(np.array(ids), np.array(peers)))


@given(rows())
def test_it_is_the_mean_over_the_other_samples(given) -> None:
    metric = CHRF()
    exact = [
        np.mean(
            [
                metric.sentence_score(text, [other]).score
                for k, (source_of, other, peer) in enumerate(given)
                if source_of == source and peer and k != row
            ]
        )
        for row, (source, text, _) in enumerate(given)
    ]
    found = score(given)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, atol=1e-4)
    np.testing.assert_allclose(score(given, Pairwise(SentenceChrF())), exact, atol=1e-4)


UTILITIES = [ChrF(2), ChrF(aggregate=True), BLEU(), Mixture((ChrF(), BLEU())), EmbeddingCosine(lambda texts: np.array(
    [[text.count("a"), text.count("b"), len(text) + 1] for text in texts], np.float32))]  # fmt: skip


@given(rows(), st.randoms(), st.sampled_from(UTILITIES))
def test_neither_order_nor_what_is_scored_beside_changes_a_bit(given, random, utility: Utility) -> None:
    whole = score(given, utility)
    places = list(range(len(given)))
    random.shuffle(places)
    assert score([given[place] for place in places], utility).tolist() == whole[places].tolist()
    for source in {source for source, _, _ in given}:
        part = [place for place, row in enumerate(given) if row[0] == source]
        assert score([given[place] for place in part], utility).tolist() == whole[part].tolist()


@given(rows(most=1), short)
def test_a_human_translation_is_nobodys_peer(given, human: str) -> None:
    samples = [row for row in given if row[2]]
    before = score(samples)
    after = score([*samples, (0, human, False)])
    assert after[:-1].tolist() == before.tolist()


def test_by_hand() -> None:
    """Of a, a and b the one a is the other's equal; the human a is equal to two of three."""
    found = score([(0, "a", True), (0, "a", True), (0, "b", True), (0, "a", False)])
    np.testing.assert_allclose(found, [50, 50, 0, 200 / 3], rtol=1e-6)


def test_a_source_without_others_is_named() -> None:
    for lone in ([(0, "a", True)], [(0, "a", False)], [(0, "a", True), (0, "b", False)]):
        with pytest.raises(UserError, match="'source 0' has too few samples"):
            score([*lone, (1, "a", True), (1, "b", True)])
    with pytest.raises(UserError, match="2 hypotheses need as many sources, ids and peers, not 2, 1 and 1"):
        Consensus()(["x", "x"], ["a", "b"], None, Groups(np.zeros(1, int), np.ones(1, bool)))
    assert Consensus()([], [], None, Groups.of_samples(0, 2)).shape == (0,)


def test_as_a_reward_it_has_the_scale_of_its_utility() -> None:
    sources, hypotheses, groups = ["x"] * 3, ["a b", "a b", "c"], Groups.of_samples(1, 3)
    np.testing.assert_allclose(Consensus().reward(sources, hypotheses, None, groups).reward, [0.5, 0.5, 0])
    mixed = Consensus(Mixture((ChrF(), BLEU()))).reward
    np.testing.assert_allclose(mixed(sources, hypotheses, None, groups).reward, [0.5, 0.5, 0])
    assert Consensus().reward.compares and Consensus().reward.scale == (0, 100)
    utilities = (ChrF(), ChrF(2), BLEU(), Pairwise(SentenceChrF()), mixed.function.utility)
    assert len({Consensus(utility).reward.identity for utility in utilities}) == 5
    with pytest.raises(UserError, match="Consensus: compares the samples of a source with each other and cannot"):
        Consensus().reward(sources, hypotheses, None)


def lengths(sources, hypotheses):
    """A reward of each text by itself."""
    return np.array([len(y) / 10 for y in hypotheses])


def test_rewards_that_compare_may_be_joined_with_others(tmp_path) -> None:
    parts = (Consensus().reward, Reward(Cached(lengths, tmp_path / "scores.sqlite")))
    rows = ["x"] * 3, ["a b", "a b", "c"], None, Groups.of_samples(1, 3)
    one, two = [0.5, 0.5, 0], [0.3, 0.3, 0.1]
    expected = {
        WeightedMean(parts, (1.0, 3.0)): np.average([one, two], axis=0, weights=[1, 3]),
        Minimum(parts): np.minimum(one, two),
        Conservative(parts): np.mean([one, two], 0) - np.std([one, two], 0),
        RankMean.on(parts, *rows, points=3): [2 / 3, 2 / 3, 1 / 6],
    }
    for function, values in expected.items():
        joined = Reward(function)
        assert joined.compares
        np.testing.assert_allclose(joined(*rows).reward, np.clip(values, 0, 1), atol=1e-6)
        with pytest.raises(UserError, match=f"{type(function).__name__}: compares the samples"):
            joined(*rows[:3])
    alone = Reward(Minimum(parts[1:]))
    assert not alone.compares
    np.testing.assert_allclose(alone(*rows[:3]).reward, two)


def test_a_cache_of_what_compares_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="Consensus compares the samples of a source: leave it out of the cache"):
        Cached(Consensus(), tmp_path / "scores.sqlite")


@dataclass(frozen=True)
class Rarity:
    """A reward of a user's that compares: the share of its source's samples that a text does not equal."""

    compares = True

    def __call__(self, sources, hypotheses, references, groups):
        texts = list(zip(groups.ids.tolist(), hypotheses, strict=True))
        return np.array([1 - texts.count(text) / groups.ids.tolist().count(text[0]) for text in texts])


def test_any_function_may_compare() -> None:
    found = Reward(Rarity())(
        ["x", "z", "x", "x"], ["a", "a", "b", "a"], None, Groups(np.array([0, 1, 0, 0]), np.ones(4))
    )
    np.testing.assert_allclose(found.reward, [1 / 3, 0, 2 / 3, 1 / 3], rtol=1e-6)

    class TooFew:
        compares = True

        def __call__(self, sources, hypotheses, groups):
            return np.zeros(len(hypotheses))

    with pytest.raises(UserError, match=r"called as \(sources, hypotheses, references, groups\), since it compares"):
        Reward(TooFew())
