"""Paired tests against sacreBLEU's own and SciPy's, and invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.significance import PairedTest as SacreBLEU
from scipy.stats import permutation_test

from rest.errors import UserError
from rest.evaluation.significance import paired_corpus, paired_means
from rest.evaluation.statistics import corpus_metrics, paired_difference

WORDS = "the a cat dog bird sat ran sings on in near park tree mat house".split()


def spoilt(sentences: list[str], share: float, seed: int) -> list[str]:
    """Words replaced at random."""
    rng = np.random.default_rng(seed)
    return [" ".join(w if rng.random() > share else str(rng.choice(WORDS)) for w in s.split()) for s in sentences]


@pytest.fixture(scope="module")
def text() -> tuple[list[str], list[str], list[str]]:
    """References, and two systems of which the first is slightly better."""
    rng = np.random.default_rng(0)
    references = [" ".join(rng.choice(WORDS, size=rng.integers(6, 12))) for _ in range(80)]
    return references, spoilt(references, 0.32, 1), spoilt(references, 0.36, 2)


@pytest.mark.parametrize("name", ["bleu", "chrf", "ter"])
def test_corpus_tests_agree_with_sacrebleus(name: str, text: tuple[list[str], list[str], list[str]]) -> None:
    references, a, b = text
    found = paired_corpus(corpus_metrics()[name], a, b, [references], seed=0, resamples=1000)
    for kind, p in (("ar", found.p_randomisation), ("bs", found.p_bootstrap / 2)):  # its bootstrap has one side
        test = SacreBLEU([("b", b), ("a", a)], corpus_metrics(), [references], kind, n_samples=1000)
        _, scores = test()
        base, system = next(results for key, results in scores.items() if key.lower().startswith(name[:4]))
        assert found.difference == pytest.approx(system.score - base.score)
        assert p == pytest.approx(system.p_value, abs=0.05)
        assert 0.01 < system.p_value < 0.6  # a case that could come out otherwise
    assert found.lo < found.difference < found.hi


def test_means_agree_with_scipys_permutation_test_and_the_bootstrap() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.25, 1, 40), rng.normal(0, 1, 40)
    found = paired_means(a, b, seed=0, resamples=4000)
    exact = permutation_test(
        (a, b), lambda x, y: x.mean() - y.mean(), permutation_type="samples", n_resamples=4000, rng=1
    )
    assert found.p_randomisation == pytest.approx(exact.pvalue, abs=0.03)
    there = paired_difference(a, b, seed=7, resamples=4000)
    assert (found.difference, found.lo, found.hi) == pytest.approx((there.difference, there.lo, there.hi), abs=0.03)
    assert found.p_bootstrap == pytest.approx(there.p, abs=0.03)


@given(st.integers(0, 20))
def test_a_policy_does_not_differ_from_itself(seed: int) -> None:
    x = np.random.default_rng(seed).uniform(size=(9, 2))
    assert paired_means(x, x, seed, resamples=50) == (0.0, 0.0, 0.0, 1.0, 1.0)


def test_p_values_are_as_rare_as_they_say() -> None:
    rng = np.random.default_rng(4)
    found = [paired_means(*rng.normal(size=(2, 30)), seed=k, resamples=200) for k in range(200)]
    for p in np.array([[test.p_bootstrap, test.p_randomisation] for test in found]).T:
        assert 0.01 <= (p <= 0.05).mean() <= 0.12 and 0.35 <= (p <= 0.5).mean() <= 0.65


def test_both_sides_need_the_same_sources() -> None:
    with pytest.raises(UserError, match="got 3 and 4"):
        paired_means(np.zeros(3), np.zeros(4), 0)
    with pytest.raises(UserError, match="got 2 and 1"):
        paired_corpus(corpus_metrics()["chrf"], ["a", "b"], ["a"], [["a", "b"]], 0)
