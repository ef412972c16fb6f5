"""Intervals against the closed form, invariants of resampling, corpus metrics against sacreBLEU itself."""

from __future__ import annotations

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rest.errors import UserError
from rest.statistics.intervals import bootstrap_ci, corpus_scores, distinct_per_source, length_ratio

REFERENCES = ["the cat sat on the mat .", "a dog runs in the park .", "two birds sing in a tree ."] * 10
HYPOTHESES = ["the cat sat on a mat .", "a dog runs through the park .", "two birds are in the tree ."] * 10
values = arrays.arrays(np.float64, arrays.array_shapes(min_dims=1, max_dims=2, max_side=12), elements=st.floats(0, 1))


def test_interval_of_a_normal_mean_is_the_closed_form() -> None:
    sources = np.random.default_rng(1).normal(5.0, 2.0, size=2000)
    half = 1.96 * sources.std() / np.sqrt(len(sources))
    lo, hi = bootstrap_ci(sources, seed=0, resamples=4000)
    assert lo == pytest.approx(sources.mean() - half, abs=0.12 * half)
    assert hi == pytest.approx(sources.mean() + half, abs=0.12 * half)


def test_intervals_cover_the_mean_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    covered = [
        lo <= 0.5 <= hi
        for seed in range(200)
        for lo, hi in [bootstrap_ci(rng.uniform(size=60), seed, resamples=400, level=0.9)]
    ]
    assert 0.82 <= np.mean(covered) <= 0.96


def test_samples_of_a_source_stay_together() -> None:
    sources = np.random.default_rng(3).uniform(size=100)
    repeated = np.repeat(sources[:, None], 8, axis=1)
    assert bootstrap_ci(repeated, seed=4) == pytest.approx(bootstrap_ci(sources, seed=4))
    apart = bootstrap_ci(repeated.ravel(), seed=4)  # what treating samples as independent would claim
    assert np.ptp(apart) < 0.5 * np.ptp(bootstrap_ci(repeated, seed=4))


@given(values, st.integers(0, 99))
def test_interval_lies_within_the_sources_and_around_their_mean(x: np.ndarray, seed: int) -> None:
    lo, hi = bootstrap_ci(x, seed, resamples=200)
    means = x if x.ndim == 1 else x.mean(axis=1)
    assert means.min() - 1e-9 <= lo <= hi <= means.max() + 1e-9
    assert bootstrap_ci(x, seed, resamples=200) == (lo, hi)
    assert bootstrap_ci(x + 1, seed, resamples=200) == pytest.approx((lo + 1, hi + 1))


def test_many_sources_are_resampled_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = np.random.default_rng(0).uniform(size=50)
    whole = bootstrap_ci(sources, seed=1, resamples=101)
    monkeypatch.setattr("rest.statistics.intervals.DRAWS_AT_ONCE", 500)
    assert bootstrap_ci(sources, seed=1, resamples=101) == whole


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.array([]), "shape"),
        (np.zeros((2, 0)), "shape"),
        (np.zeros((2, 2, 2)), "shape"),
        (np.array([0.1, np.nan]), "nan"),
        (np.array([[0.1], [np.inf]]), r"\[1, 0\] is inf"),
    ],
)
def test_what_has_no_interval_is_refused(x: np.ndarray, said: str) -> None:
    with pytest.raises(UserError, match=said):
        bootstrap_ci(x, seed=0)


def test_corpus_scores_are_sacrebleus() -> None:
    scores = corpus_scores(HYPOTHESES, REFERENCES, resamples=200)
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score)
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score)
    assert scores["ter"] == pytest.approx(sacrebleu.corpus_ter(HYPOTHESES, [REFERENCES]).score)
    assert "tok:13a" in str(scores["bleu_signature"]) and "tok:tercom" in str(scores["ter_signature"])
    assert "nc:6" in str(scores["chrf_signature"])
    for name in ("bleu", "chrf", "ter"):
        lo, hi = scores[f"{name}_ci95"]
        assert lo < scores[name] < hi
    assert corpus_scores(HYPOTHESES, REFERENCES, resamples=200) == scores


def test_resamples_without_a_right_character_have_an_interval_too() -> None:
    found = corpus_scores(["a", "xyz", "xyz"], ["a", "qrw", "qrw"], names=("chrf",))
    assert found["chrf"] > 0 and found["chrf_ci95"][0] < found["chrf"] < found["chrf_ci95"][1]


def test_corpus_scores_without_intervals_and_with_another_tokeniser() -> None:
    scores = corpus_scores(["你好 世界"], ["你好 世界"], resamples=0, tokenize="zh")
    assert set(scores) == {"bleu", "bleu_signature", "chrf", "chrf_signature", "ter", "ter_signature"}
    assert scores["chrf"] == pytest.approx(100)
    assert "tok:zh" in str(scores["bleu_signature"])
    assert "bs:" not in str(scores["bleu_signature"])


def test_corpus_scores_of_several_references_are_sacrebleus() -> None:
    more = [["a cat sat on a mat .", "a dog runs through the park .", "birds are in the tree ."] * 10]
    scores = corpus_scores(HYPOTHESES, REFERENCES, resamples=1, more_references=more, names=("bleu", "chrf"))
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES, *more]).score)
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES, *more]).score)
    assert "nrefs:2" in str(scores["bleu_signature"]) and set(scores) == {
        "bleu", "bleu_signature", "chrf", "chrf_signature",
    }  # fmt: skip
    with pytest.raises(UserError, match="got 30 and 1"):
        corpus_scores(HYPOTHESES, REFERENCES, more_references=[["one"]])


def test_length_ratio_counts_all_words() -> None:
    assert length_ratio(["a b", ""], ["a b c", "d"]) == pytest.approx(0.5)
    assert length_ratio(["我有猫", "猫"], ["我有两只猫。", "two cats"]) == pytest.approx(
        4 / 8
    )  # by character in Chinese
    with pytest.raises(UserError, match="empty"):
        length_ratio(["a"], [" "])


@pytest.mark.parametrize("measure", [corpus_scores, length_ratio])
def test_lines_must_match(measure: object) -> None:
    with pytest.raises(UserError, match="got 1 and 2"):
        measure(["a"], ["a", "b"])
    with pytest.raises(UserError, match="got 0 and 0"):
        measure([], [])


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=8), min_size=1))
def test_distinct_counts_per_source(samples: list[list[str]]) -> None:
    distinct = distinct_per_source(samples)
    assert 1 <= distinct <= 3
    assert distinct_per_source([group * 2 for group in samples]) == distinct


def test_distinct_needs_samples() -> None:
    assert distinct_per_source([["a", "b"], ["a", "a"]]) == 1.5
    with pytest.raises(UserError, match="source 1"):
        distinct_per_source([["a"], []])
    with pytest.raises(UserError, match="no sources"):
        distinct_per_source([])
