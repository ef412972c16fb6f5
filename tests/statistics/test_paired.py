"""Paired tests against sacreBLEU's own and SciPy's, and invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sacrebleu.significance import PairedTest as SacreBLEU
from scipy.stats import bootstrap, permutation_test

from rest.errors import UserError
from rest.statistics.intervals import bootstrap_ci, corpus_metrics
from rest.statistics.paired import joint_corpus, joint_means, paired_corpus, paired_means

values = arrays.arrays(np.float64, arrays.array_shapes(min_dims=1, max_dims=2, max_side=12), elements=st.floats(0, 1))
WORDS = "the a cat dog bird sat ran sings on in near park tree mat house".split()


def corrupted(sentences: list[str], share: float, seed: int) -> list[str]:
    """Words replaced at random."""
    rng = np.random.default_rng(seed)
    return [" ".join(w if rng.random() > share else str(rng.choice(WORDS)) for w in s.split()) for s in sentences]


@pytest.fixture(scope="module")
def text() -> tuple[list[str], list[str], list[str]]:
    """References, and two systems of which the first is slightly better."""
    rng = np.random.default_rng(0)
    references = [" ".join(rng.choice(WORDS, size=rng.integers(6, 12))) for _ in range(80)]
    return references, corrupted(references, 0.32, 1), corrupted(references, 0.36, 2)


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
    there = bootstrap(((a - b),), np.mean, method="percentile", n_resamples=4000, rng=7)
    lo, hi = there.confidence_interval
    assert (found.difference, found.lo, found.hi) == pytest.approx(((a - b).mean(), lo, hi), abs=0.03)
    beyond = (there.bootstrap_distribution <= 0).mean(), (there.bootstrap_distribution >= 0).mean()
    assert found.p_bootstrap == pytest.approx(2 * min(beyond), abs=0.03)


@given(values, st.integers(0, 99))
def test_a_policy_does_not_differ_from_itself(x: np.ndarray, seed: int) -> None:
    assert paired_means(x, x, seed, resamples=50) == (0.0, 0.0, 0.0, 1.0, 1.0)


@given(st.integers(0, 99))
def test_swapping_the_sides_turns_the_difference_round(seed: int) -> None:
    a, b = np.random.default_rng(seed).normal(size=(2, 30))
    there, back = paired_means(a, b, seed), paired_means(b, a, seed)
    assert there.difference == pytest.approx(-back.difference)
    assert (there.lo, there.hi) == pytest.approx((-back.hi, -back.lo))
    assert (there.p_bootstrap, there.p_randomisation) == (back.p_bootstrap, back.p_randomisation)


def test_pairing_sees_what_two_intervals_do_not() -> None:
    rng = np.random.default_rng(5)
    difficulty = rng.normal(0, 1, size=300)
    a, b = difficulty + 0.05 + rng.normal(0, 0.1, 300), difficulty + rng.normal(0, 0.1, 300)
    assert bootstrap_ci(a, 0)[0] < bootstrap_ci(b, 0)[1]
    found = paired_means(a, b, seed=0)
    assert 0 < found.lo < found.difference < found.hi
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert 0 < found.p_bootstrap < 0.05
    assert paired_means(a - 0.05, b, seed=0).p_bootstrap > 0.05


def test_p_values_are_as_rare_as_they_say() -> None:
    rng = np.random.default_rng(4)
    found = [paired_means(*rng.normal(size=(2, 30)), seed=k, resamples=200) for k in range(200)]
    for p in np.array([[test.p_bootstrap, test.p_randomisation] for test in found]).T:
        assert 0.01 <= (p <= 0.05).mean() <= 0.12 and 0.35 <= (p <= 0.5).mean() <= 0.65


def test_a_pair_joined_with_itself_is_the_pair(text: tuple[list[str], list[str], list[str]]) -> None:
    references, a, b = text
    bleu = corpus_metrics()["bleu"]
    alone, twice = (joint_corpus(bleu, [(a, b)] * n, [references], seed=0, resamples=100) for n in (1, 2))
    assert twice == pytest.approx(alone) and alone == paired_corpus(bleu, a, b, [references], 0, 100)


def test_what_two_seeds_do_to_the_same_sources_is_not_taken_for_chance_twice() -> None:
    """Against the bootstrap of the mean difference of each source, which is the same thing for means."""
    rng = np.random.default_rng(1)
    effect = rng.normal(0.1, 1, 60)
    pairs = [(base + effect + rng.normal(0, 0.2, 60), base) for base in rng.normal(size=(3, 60))]
    found = joint_means(pairs, seed=0, resamples=4000)
    of_source = np.mean([a - b for a, b in pairs], axis=0)
    there = bootstrap((of_source,), np.mean, method="percentile", n_resamples=4000, rng=7).confidence_interval
    assert (found.difference, found.lo, found.hi) == pytest.approx((of_source.mean(), *there), abs=0.02)
    apart = paired_means(*(np.concatenate(side) for side in zip(*pairs, strict=True)), seed=0, resamples=4000)
    assert found.hi - found.lo > 1.5 * (apart.hi - apart.lo)  # 180 sources that are 60


def test_both_sides_need_the_same_sources() -> None:
    with pytest.raises(UserError, match="got 3 and 4"):
        paired_means(np.zeros(3), np.zeros(4), 0)
    with pytest.raises(UserError, match="got 2 and 1"):
        paired_corpus(corpus_metrics()["chrf"], ["a", "b"], ["a"], [["a", "b"]], 0)
