"""The numbers a comparison stands on: means with intervals over sources, and corpus metrics beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from sacrebleu.metrics import BLEU, CHRF, TER

from rest.errors import UserError
from rest.statistics.words import count_words

LEAST_SOURCES = 6  # below it even the same sign everywhere may be chance, at 95%: 2 / 2^5 = 6%
DRAWS_AT_ONCE = 4_000_000  # source indices held in memory while resampling, about 50 MB with what they pick


def bootstrap_ci(values: np.ndarray, seed: int, resamples: int = 2000, level: float = 0.95) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of `values`, float [sources] or [sources, samples].

    Sources are resampled, and the samples of one source stay together: they share its difficulty, so treating
    them as independent would make the interval too narrow. One source alone gives an interval without width.
    Efron and Tibshirani 1993, chapter 13. Raises UserError for no values or values that are not finite.
    """
    return percentile_interval(_resampled_means(per_source(values, "values"), seed, resamples), level)


class PairedDifference(NamedTuple):
    """Mean of a minus mean of b, its interval, and the two-sided p of no difference."""

    difference: float
    lo: float
    hi: float
    p: float


def difference_of(observed: float, resampled: np.ndarray, level: float = 0.95) -> PairedDifference:
    """The paired difference of any statistic, from its values [resamples] on resamples drawn for both sides at once.

    p is twice the share of resampled differences at or beyond zero (Koehn 2004), so it falls below 1 - level about
    where the interval leaves zero out, and is never below 2 / (resamples + 1).
    """
    lo, hi = percentile_interval(resampled, level)
    beyond = min((resampled <= 0).sum(), (resampled >= 0).sum())
    return PairedDifference(observed, lo, hi, min(1.0, 2.0 * (beyond + 1) / (len(resampled) + 1)))


class _ChrF(CHRF):
    """sacreBLEU's, whose bootstrap cannot average resamples that score 0 with others: they are of another type."""

    def _compute_f_score(self, statistics: Any) -> Any:
        score = super()._compute_f_score(statistics)
        return np.float32(0) if not score and isinstance(statistics, np.ndarray) else score


@cache
def corpus_metrics(tokenize: str = "13a") -> Mapping[str, BLEU | CHRF | TER]:
    """sacreBLEU's metrics by the name of their number; TER is an error rate, the lower the better."""
    as_it_is = tokenize == "none"  # of text that is tokenized on purpose, about which sacreBLEU need not warn
    return {"bleu": BLEU(tokenize=tokenize, force=as_it_is), "chrf": _ChrF(), "ter": TER()}


def corpus_scores(
    hypotheses: Sequence[str],
    references: Sequence[str],
    resamples: int = 1000,
    tokenize: str = "13a",
    more_references: Sequence[Sequence[str]] = (),
    names: Sequence[str] = ("bleu", "chrf", "ter"),
) -> dict[str, float | str | list[float]]:
    """Corpus BLEU, chrF (in [0, 100]) and TER (from 0) of one hypothesis per source, by sacreBLEU.

    Keys: bleu, bleu_signature and so on, and, if `resamples` is above 1, bleu_ci95: [lo, hi], sacreBLEU's bootstrap
    over sentences with the seed that the signature names. `tokenize` is sacreBLEU's name of a tokeniser: 13a, zh,
    ja-mecab, ... `more_references` are further lists with a reference per source. UserError for no lines or unequal
    counts.
    """
    for lines in (references, *more_references):
        _same_lines(hypotheses, lines)
    streams = [list(references), *(list(lines) for lines in more_references)]
    scores: dict[str, float | str | list[float]] = {}
    for name in names:
        metric = corpus_metrics(tokenize)[name]
        score = metric.corpus_score(list(hypotheses), streams, n_bootstrap=max(1, resamples))
        scores[name] = score.score
        scores[f"{name}_signature"] = str(metric.get_signature())
        if resamples > 1:
            # the unrounded numbers of sacreBLEU's own "(μ = 30.1 ± 1.2)"
            scores[f"{name}_ci95"] = [float(score._mean - score._ci), float(score._mean + score._ci)]
    return scores


def length_ratio(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Words of all hypotheses over words of all references; a Chinese character is a word. UserError if none."""
    _same_lines(hypotheses, references)
    wanted = sum(map(count_words, references))
    if wanted == 0:
        raise UserError(f"the length ratio needs words in the references, and all {len(references)} are empty")
    return sum(map(count_words, hypotheses)) / wanted


def distinct_per_source(samples: Sequence[Sequence[str]]) -> float:
    """The mean number of different hypotheses among one source's samples, in [1, N]; UserError if none."""
    for index, group in enumerate(samples):
        if len(group) == 0:
            raise UserError(f"source {index} has no samples to count")
    if len(samples) == 0:
        raise UserError("there are no sources whose samples could be counted")
    return float(np.mean([len(set(group)) for group in samples]))


def per_source(values: np.ndarray, name: str) -> np.ndarray:
    """float64 [sources]: the mean of each source's samples, which must be finite."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim not in (1, 2) or values.size == 0:
        raise UserError(f"{name} must be [sources] or [sources, samples] and not empty, got shape {values.shape}")
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise UserError(f"{name} at {bad[0].tolist()} is {values[tuple(bad[0])]}, which has no mean")
    return values if values.ndim == 1 else values.mean(axis=1)


def _resampled_means(values: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """float64 [resamples]: means of `values` [sources], as many drawn with replacement as there are."""
    rng = np.random.default_rng(seed)
    sources = len(values)
    at_once = max(1, DRAWS_AT_ONCE // sources)
    blocks = [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
    return np.concatenate([values[rng.integers(sources, size=(block, sources))].mean(axis=1) for block in blocks])


def resampled_curves(values: np.ndarray, seed: int, resamples: int = 1000) -> np.ndarray:
    """float64 [resamples, K]: means of `values` [sources, K] over sources drawn with replacement, whole rows at once.

    The same seed and number of sources draw the same rows, so that curves of two policies compare pair by pair.
    """
    rng = np.random.default_rng(seed)
    sources = len(values)
    at_once = max(1, DRAWS_AT_ONCE // sources)
    blocks = [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
    share = np.full(sources, 1 / sources)
    return np.concatenate([rng.multinomial(sources, share, size=block) @ values / sources for block in blocks])


def percentile_interval(resampled: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of resampled values."""
    lo, hi = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(lo), float(hi)


def _same_lines(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Refuses lists of lines that cannot be compared line by line."""
    if len(hypotheses) != len(references) or len(references) == 0:
        raise UserError(
            f"a corpus metric needs as many hypotheses as references and at least one, "
            f"got {len(hypotheses)} and {len(references)}"
        )
