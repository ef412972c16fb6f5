"""What can be counted on hypotheses without knowing what is right: copies, repetitions, variety."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sacrebleu.metrics import BLEU

from rest.errors import UserError
from rest.statistics.words import words


def copy_rate(sources: Sequence[str], hypotheses: Sequence[str]) -> float:
    """The share of hypotheses, in [0, 1], that are their source again, but for case and white space."""
    pairs = zip(sources, hypotheses, strict=True)
    return float(np.mean([x.casefold().split() == y.casefold().split() != [] for x, y in pairs]))


def empty_rate(hypotheses: Sequence[str]) -> float:
    """The share of hypotheses, in [0, 1], that say nothing."""
    return float(np.mean([not text.strip() for text in hypotheses]))


def repeated_ngrams(hypotheses: Sequence[str], n: int = 3) -> float:
    """The share, in [0, 1], of the n-grams of all hypotheses that their own hypothesis has said before."""
    grams = [_ngrams(text, n) for text in hypotheses]
    total = sum(map(len, grams))
    return 1 - sum(len(set(found)) for found in grams) / total if total else 0.0


def distinct_ngrams(samples: Sequence[Sequence[str]], n: int) -> float:
    """distinct-n (Li et al. 2016): different n-grams over all n-grams of one source's samples, the mean over sources.

    In [0, 1]; sources whose samples are all shorter than n words do not count; 0 where none counts.
    """
    shares = []
    for group in samples:
        found = [gram for text in group for gram in _ngrams(text, n)]
        if found:
            shares.append(len(set(found)) / len(found))
    return float(np.mean(shares)) if shares else 0.0


def self_bleu(samples: Sequence[Sequence[str]]) -> float:
    """Self-BLEU (Zhu et al. 2018): BLEU of a sample with the source's other samples as references, the mean, 0..100.

    100 where all samples are equal. UserError with fewer than two samples per source.
    """
    metric, known = BLEU(effective_order=True), dict[tuple[str, tuple[str, ...]], float]()
    scores = []
    for index, group in enumerate(samples):
        if len(group) < 2:
            raise UserError(f"self-BLEU compares samples with each other, and source {index} has {len(group)}")
        for k, text in enumerate(group):
            key = (text, tuple(sorted([*group[:k], *group[k + 1 :]])))
            if key not in known:
                known[key] = metric.sentence_score(text, list(key[1])).score
            scores.append(known[key])
    return float(np.mean(scores))


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    found = words(text)
    return [tuple(found[k : k + n]) for k in range(len(found) - n + 1)]
