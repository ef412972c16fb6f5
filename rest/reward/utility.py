"""Utilities: how well a text stands for others, which consensus and decoding by minimum Bayes risk (MBR) maximise.

The expected utility of a candidate is its mean utility against pseudo-references, which are samples of the policy
(Kumar and Byrne 2004; Eikema and Aziz 2020).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rest.errors import UserError
from rest.reward.ngrams import Counts, Symbols
from rest.reward.reference_based import SentenceBLEU
from rest.reward.reward import identify, name_of, with_references

CHRF_ORDER, CHRF_BETA, BLEU_ORDER = 6, 2, 4
PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


class Utility(ABC):
    """How well candidates stand for pseudo-references. One of your own gives `pairs`; the rest follows from them."""

    @property
    def scale(self) -> tuple[float, float]:
        """The lowest utility and the highest."""
        return 0.0, 100.0

    @property
    def identity(self) -> Any:
        """What the numbers depend on; None where class and fields say it."""
        return None

    def prepared(self, texts: Sequence[str]) -> Utility:
        """The same for these texts, having computed at once what it needs of each."""
        return self

    @abstractmethod
    def pairs(self, source: str, candidates: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """float64 [candidates, references]: the utility of each candidate if each reference is the truth."""

    def __call__(
        self,
        source: str,
        candidates: Sequence[str],
        references: Sequence[str],
        weights: np.ndarray,
        left_out: np.ndarray | None = None,
    ) -> np.ndarray:
        """float64 [candidates]: the mean utility against `references`, weighted by `weights` [references].

        Where a sample is not its own pseudo-reference, `left_out` [candidates] says how much of the weight of the
        reference that equals a candidate does not count for it. References differ from each other then.
        """
        found = self.pairs(source, candidates, references)
        if left_out is None:
            return found @ weights / weights.sum()
        own = found[np.arange(len(candidates)), equal(candidates, references)]
        return (found @ weights - left_out * own) / (weights.sum() - left_out)


def equal(candidates: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """int64 [candidates]: the reference that equals each, 0 where none does."""
    place = {text: k for k, text in enumerate(references)}
    return np.array([place.get(text, 0) for text in candidates], np.int64)


def _distinct(candidates: Sequence[str], references: Sequence[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Different texts, and the numbers among them of candidates and references."""
    number = {text: k for k, text in enumerate(dict.fromkeys([*candidates, *references]))}
    rows, columns = (np.array([number[text] for text in texts], np.int64) for texts in (candidates, references))
    return list(number), rows, columns


@dataclass(frozen=True)
class ChrF(Utility):
    """sacreBLEU's sentence chrF (Popović 2015), and chrF++, of all pairs at once."""

    word_order: int = 0
    """Longest word n-gram that counts too: 0 is chrF, 2 is chrF++."""
    aggregate: bool = False
    """Against one aggregate of the pseudo-references, whose n-gram counts are their mean, instead of each: linear in
    their number, and no longer exact (DeNero et al. 2009; Vamvas and Sennrich 2024, arXiv 2402.04251)."""

    def pairs(self, source: str, candidates: Sequence[str], references: Sequence[str]) -> np.ndarray:
        texts, rows, columns = _distinct(candidates, references)
        score = _FScore(len(rows), len(columns))
        for counts in self._counts(texts):
            score.add(counts.shared(rows, columns), counts.total[rows, None], counts.total[columns][None])
        return score.value()

    def __call__(
        self,
        source: str,
        candidates: Sequence[str],
        references: Sequence[str],
        weights: np.ndarray,
        left_out: np.ndarray | None = None,
    ) -> np.ndarray:
        if not self.aggregate:
            return super().__call__(source, candidates, references, weights, left_out)
        n = len(candidates)
        out = np.zeros(n) if left_out is None else left_out
        weight = np.concatenate([np.zeros(n), weights])  # of [candidates, references]
        left = weights.sum() - out
        score = _FScore(n, 1)
        for counts in self._counts([*candidates, *references]):
            summed = np.bincount(counts.gram, weight[counts.text] * counts.times)
            text, gram, times = (part[counts.text < n] for part in (counts.text, counts.gram, counts.times))
            match = np.minimum(times, (summed[gram] - out[text] * times) / left[text])
            theirs = (weight @ counts.total - out * counts.total[:n]) / left
            score.add(np.bincount(text, match, minlength=n)[:, None], counts.total[:n, None], theirs[:, None])
        return score.value()[:, 0]

    def _counts(self, texts: Sequence[str]) -> Iterator[Counts]:
        yield from Symbols.characters(texts).counts(CHRF_ORDER)
        if self.word_order:
            yield from Symbols.words([_chrf_words(text) for text in texts]).counts(self.word_order)


def _chrf_words(text: str) -> list[str]:
    """Words, with one punctuation mark at their end, or else at their beginning, apart."""
    out: list[str] = []
    for word in text.split():
        cut = len(word) - 1 if word[-1] in PUNCTUATION else 1 if word[0] in PUNCTUATION else 0
        out += [part for part in (word[:cut], word[cut:]) if part]
    return out


class _FScore:
    """The F-score of mean precision and mean recall, over the orders that both texts are long enough for."""

    def __init__(self, rows: int, columns: int) -> None:
        self.precision, self.recall, self.orders = np.zeros((3, rows, columns))

    def add(self, match: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> None:
        """n-grams of one order: shared [rows, columns], of the rows [rows, 1], of the columns [1 or rows, columns]."""
        both = (ours > 0) & (theirs > 0)
        self.precision += np.where(both, match / np.where(ours > 0, ours, 1), 0)
        self.recall += np.where(both, match / np.where(theirs > 0, theirs, 1), 0)
        self.orders += both

    def value(self) -> np.ndarray:
        """float64 [rows, columns] in 0..100"""
        p, r = (part / np.maximum(self.orders, 1) for part in (self.precision, self.recall))
        below = CHRF_BETA**2 * p + r
        return 100 * (1 + CHRF_BETA**2) * p * r / np.where(below > 0, below, 1)


@dataclass(frozen=True)
class BLEU(Utility):
    """sacreBLEU's sentence BLEU, over the orders that a candidate is long enough for, of all pairs at once."""

    metric: SentenceBLEU = SentenceBLEU()
    """Tokenizer, case and smoothing."""

    def pairs(self, source: str, candidates: Sequence[str], references: Sequence[str]) -> np.ndarray:
        texts, rows, columns = _distinct(candidates, references)
        symbols = Symbols.words(self.metric.words(texts))
        counts = list(symbols.counts(BLEU_ORDER))
        ours, theirs = symbols.lengths[rows, None], symbols.lengths[columns][None]
        correct = [found.shared(rows, columns) for found in counts]
        total = [found.total[rows, None].astype(np.float64) for found in counts]
        brevity = np.where(ours < theirs, np.exp(1 - theirs / np.maximum(ours, 1)), 1.0)
        return np.where(correct[0] > 0, brevity * self._precision(correct, total), 0)

    def _precision(self, correct: list[np.ndarray], total: list[np.ndarray]) -> np.ndarray:
        """float64 [candidates, references] in 0..100: the geometric mean over orders, smoothed."""
        logs, halved, orders = np.zeros_like(correct[0]), np.zeros_like(correct[0]), np.zeros_like(total[0])
        for n, (match, grams) in enumerate(zip(correct, total, strict=True)):
            if self.metric.smooth == "add-k" and n > 0:
                match, grams = match + 1, grams + 1
            halved += match == 0
            nothing = np.zeros_like(match)  # in the place of no match
            instead = {"exp": 0.5**halved, "floor": nothing + 0.1}.get(self.metric.smooth, nothing)
            share = np.where(match > 0, match, instead) / np.maximum(grams, 1)
            logs += np.where(grams > 0, np.log(np.maximum(share, 1e-300)), 0)
            orders += grams > 0
        return 100 * np.exp(logs / np.maximum(orders, 1))


@dataclass(frozen=True)
class Pairwise(Utility):
    """Any reward function that compares with references, as a utility; each pair is scored once."""

    function: Any = SentenceBLEU()
    """(sources, hypotheses, references) -> float32 [n]; within its `scale`, (low, high), if it has one, else within
    0 and 1."""

    @property
    def scale(self) -> tuple[float, float]:
        return getattr(self.function, "scale", (0.0, 1.0))

    @property
    def identity(self) -> Any:
        return {"pairs of": identify(self.function)}

    def pairs(self, source: str, candidates: Sequence[str], references: Sequence[str]) -> np.ndarray:
        own = [y for y in candidates for _ in references]
        scores = with_references(self.function)([source] * len(own), own, list(references) * len(candidates))
        values = np.asarray(scores, np.float64)
        beyond = values[(values < 0) | (values > 1)]
        if len(beyond) and not hasattr(self.function, "scale"):
            raise UserError(
                f"Pairwise({name_of(self.function)}): gave {beyond[0]:g}, which is outside [0, 1]; give the function a "
                "`scale`, (low, high)"
            )
        return values.reshape(len(candidates), len(references))


@dataclass(frozen=True)
class Mixture(Utility):
    """The mean of several utilities, each mapped from its own scale to [0, 1] first.

    chrF alone likes long texts; with BLEU, which does not, there is less to gain from length.
    """

    utilities: tuple[Utility, ...]
    weights: tuple[float, ...] | None = None
    """Of each; None: equal ones."""

    def __post_init__(self) -> None:
        given = self.weights
        if not self.utilities:
            raise UserError("Mixture needs at least one utility")
        if given is not None and (len(given) != len(self.utilities) or min(given) < 0 or not sum(given)):
            raise UserError(f"weights {given}: one for each of {len(self.utilities)} utilities, not below 0, not all 0")

    @property
    def scale(self) -> tuple[float, float]:
        return 0.0, 1.0

    @property
    def identity(self) -> Any:
        return {"mixture of": [identify(utility) for utility in self.utilities], "weights": self._shares().tolist()}

    def prepared(self, texts: Sequence[str]) -> Utility:
        return replace(self, utilities=tuple(utility.prepared(texts) for utility in self.utilities))

    def pairs(self, source: str, candidates: Sequence[str], references: Sequence[str]) -> np.ndarray:
        return self._mean([utility.pairs(source, candidates, references) for utility in self.utilities])

    def __call__(
        self,
        source: str,
        candidates: Sequence[str],
        references: Sequence[str],
        weights: np.ndarray,
        left_out: np.ndarray | None = None,
    ) -> np.ndarray:
        given = source, candidates, references, weights, left_out
        return self._mean([utility(*given) for utility in self.utilities])

    def _shares(self) -> np.ndarray:
        weights = np.ones(len(self.utilities)) if self.weights is None else np.asarray(self.weights, np.float64)
        return weights / weights.sum()

    def _mean(self, found: list[np.ndarray]) -> np.ndarray:
        ends = [utility.scale for utility in self.utilities]
        scaled = [(values - low) / (high - low) for values, (low, high) in zip(found, ends, strict=True)]
        return sum(share * values for share, values in zip(self._shares(), scaled, strict=True))
