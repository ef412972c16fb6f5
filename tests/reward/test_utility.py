"""Utilities of all pairs at once against sacreBLEU pair by pair, and by hand where they are aggregated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import CHRF

from rest.errors import UserError
from rest.reward.composition import Cached
from rest.reward.consensus import Consensus
from rest.reward.ngrams import Symbols
from rest.reward.reference_based import SentenceBLEU, SentenceChrF
from rest.reward.reward import identify
from rest.reward.utility import BLEU, ChrF, Mixture, Pairwise, Utility

text = st.text("ab c,.(é漢𝄞\n\u2009\ud800", max_size=16)
texts = st.lists(text, min_size=1, max_size=5)


@given(texts, texts, st.sampled_from([0, 2]))
def test_chrf_is_that_of_sacrebleu(candidates: list[str], references: list[str], word_order: int) -> None:
    references = [*references, candidates[0]]
    metric = CHRF(word_order=word_order)
    exact = [[metric.sentence_score(y, [r]).score for r in references] for y in candidates]
    found = ChrF(word_order).pairs("x", candidates, references)
    np.testing.assert_allclose(found, exact, atol=1e-9)
    weights = np.arange(1.0, len(references) + 1)
    mean = ChrF(word_order)("x", candidates, references, weights)
    np.testing.assert_allclose(mean, np.array(exact) @ weights / weights.sum(), atol=1e-9)


@given(texts, texts, st.sampled_from(["exp", "floor", "add-k", "none"]), st.sampled_from(["13a", "char"]))
def test_bleu_is_that_of_sacrebleu(candidates: list[str], references: list[str], smooth, tokenize) -> None:
    metric = SentenceBLEU(tokenize, smooth=smooth)
    found = BLEU(metric).pairs("x", candidates, [*references, candidates[0]])
    np.testing.assert_allclose(found, Pairwise(metric).pairs("x", candidates, [*references, candidates[0]]), atol=1e-4)


def test_words_and_case_are_told_apart_as_the_metric_says() -> None:
    candidates, references = ["the cat sat on it , twice", "a b c d a b c d"], ["The Cat sat on it, twice", "a b c d"]
    for metric in (SentenceBLEU(), SentenceBLEU(lowercase=True), SentenceBLEU("none")):
        exact = Pairwise(metric).pairs("x", candidates, references)
        np.testing.assert_allclose(BLEU(metric).pairs("x", candidates, references), exact, rtol=1e-6)
    chrf = Pairwise(SentenceChrF(2)).pairs("x", candidates, references)
    np.testing.assert_allclose(ChrF(2).pairs("x", candidates, references), chrf, rtol=1e-6)


def test_symbols_whose_keys_would_not_fit_are_numbered_first() -> None:
    """Numbers of 61 bits and 7 places, twice, do not fit 63."""
    high = 2**60
    one, two = Symbols(np.array([high, high + 1, high, high, high, high, high]), np.array([3, 4])).counts(2)
    assert one.shared(np.arange(2), np.arange(2)).tolist() == [[3, 2], [2, 4]]
    assert two.times.tolist() == [3, 1, 1]


@pytest.mark.parametrize(
    "utility", [ChrF(), ChrF(2), ChrF(aggregate=True), BLEU(), Mixture((ChrF(), BLEU()), (1.0, 3.0))]
)
def test_what_is_left_out_is_no_reference(utility: Utility) -> None:
    references, weights = ["a b c d e", "a b c", "a b x d e"], np.array([3.0, 1.0, 2.0])
    candidates = ["a b x d e", "a b c", "a b c", "q"]
    found = utility("x", candidates, references, weights, np.array([1.0, 1.0, 0.0, 0.0]))
    for row, less in enumerate(([0, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 0])):
        left = weights - less
        kept = [text for text, weight in zip(references, left, strict=True) if weight > 0]
        assert found[row] == pytest.approx(utility("x", [candidates[row]], kept, left[left > 0])[0])


@given(texts, st.text("ab c", max_size=9))
def test_one_reference_is_its_own_aggregate(candidates: list[str], reference: str) -> None:
    one = np.ones(1)
    exact = ChrF(2)("x", candidates, [reference], one)
    np.testing.assert_allclose(ChrF(2, aggregate=True)("x", candidates, [reference], one), exact)


def test_the_aggregate_by_hand() -> None:
    """References "a" (three times) and "ab": 1-grams a 1, b 1/4; 2-grams ab 1/4. The candidate "ab" has a, b; ab."""
    [found] = ChrF(aggregate=True)("x", ["ab"], ["a", "ab"], np.array([3.0, 1.0]))
    p, r = (1.25 / 2 + 0.25 / 1) / 2, (1.25 / 1.25 + 0.25 / 0.25) / 2
    assert found == pytest.approx(100 * 5 * p * r / (4 * p + r))


def test_a_mixture_is_the_mean_of_utilities_on_their_own_scales() -> None:
    def same(sources, hypotheses, references):
        return np.array([float(y == z) for y, z in zip(hypotheses, references, strict=True)])

    mixture = Mixture((ChrF(), Pairwise(same)), (1.0, 3.0))
    candidates, references = ["a b c", "a b d"], ["a b d", "a x"]
    chrf = ChrF().pairs("x", candidates, references)
    expected = 0.25 * chrf / 100 + 0.75 * np.array([[0, 0], [1, 0]])
    np.testing.assert_allclose(mixture.pairs("x", candidates, references), expected)
    np.testing.assert_allclose(mixture("x", candidates, references, np.ones(2)), expected.mean(1))
    assert mixture.scale == (0, 1)
    with pytest.raises(UserError, match="at least one utility"):
        Mixture(())
    with pytest.raises(UserError, match="one for each of 2 utilities"):
        Mixture((ChrF(), BLEU()), (1.0,))


def test_utilities_are_known_by_their_settings() -> None:
    def one(sources, hypotheses, references):
        return np.ones(len(hypotheses))

    known = [
        ChrF(),
        ChrF(2),
        ChrF(aggregate=True),
        BLEU(),
        BLEU(SentenceBLEU("char")),
        Pairwise(),
        Pairwise(one),
        Mixture((ChrF(), BLEU())),
        Mixture((ChrF(), BLEU()), (1.0, 2.0)),
    ]
    assert len({repr(identify(utility)) for utility in known}) == len(known)
    assert identify(Mixture((ChrF(), BLEU()))) == identify(Mixture((ChrF(), BLEU()), (2.0, 2.0)))


def test_the_scale_of_a_metric_is_that_of_what_it_wraps(tmp_path: Path) -> None:
    cached = Consensus(Pairwise(Cached(SentenceBLEU(), tmp_path / "scores.sqlite"))).reward
    assert cached.scale == Consensus(Pairwise(SentenceBLEU())).reward.scale == (0.0, 100.0)


def test_a_metric_without_a_scale_must_stay_within_zero_and_one() -> None:
    def half(sources: list[str], hypotheses: list[str], references: list[str]) -> np.ndarray:
        return np.full(len(hypotheses), 50.0)

    with pytest.raises(UserError, match=r"Pairwise\(.*half\): gave 50, which is outside \[0, 1\]"):
        Pairwise(half).pairs("x", ["a"], ["b"])
