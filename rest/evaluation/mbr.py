"""Minimum Bayes risk: the sample that is most like all the others (Kumar and Byrne 2004; Eikema and Aziz 2020).

Every sample is a candidate, or the few that the reward likes best are (Fernandes et al. 2022), and all samples are
pseudo-references, whatever candidates are left: they stand for the policy. chrF can compare with one aggregate of all
pseudo-references, whose n-gram counts are their mean (Vamvas and Sennrich 2024, arXiv 2402.04251): linear in their
number, and no longer exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from rest.data.corpus import Split
from rest.errors import UserError
from rest.evaluation.outputs import Chooser, draw, flat_scores
from rest.learning.mesh import MachineSettings
from rest.policy.policy import Policy
from rest.policy.sampler import SamplingSettings
from rest.reward.reference_based import SentenceBLEU, SentenceChrF
from rest.reward.reward import with_references

CHRF_ORDER, CHRF_BETA = 6, 2


@runtime_checkable
class Utility(Protocol):
    """How well candidates stand for pseudo-references."""

    def __call__(
        self, source: str, candidates: Sequence[str], references: Sequence[str], weights: np.ndarray
    ) -> np.ndarray:
        """float64 [candidates]: the mean utility against `references`, weighted by `weights` [references]."""
        ...


@dataclass(frozen=True)
class ChrF:
    """sacreBLEU's sentence chrF of character n-grams, counted once a text and compared as matrices."""

    aggregate: bool = False
    """Against one aggregate of the pseudo-references instead of each."""

    def __call__(
        self, source: str, candidates: Sequence[str], references: Sequence[str], weights: np.ndarray
    ) -> np.ndarray:
        share = weights / weights.sum()
        counts = [_counts([*candidates, *references], n) for n in range(1, CHRF_ORDER + 1)]
        own = [found[: len(candidates)] for found in counts]
        theirs = [found[len(candidates) :] for found in counts]
        if self.aggregate:
            return _chrf(own, [(share @ found)[None] for found in theirs])[:, 0]
        return _chrf(own, theirs) @ share


def _counts(texts: Sequence[str], n: int) -> np.ndarray:
    """float64 [texts, different n-grams]: how often each text has each n-gram of characters, white space left out."""
    lines = ["".join(text.split()) for text in texts]
    grams = [Counter(line[k : k + n] for k in range(len(line) - n + 1)) for line in lines]
    place = {gram: k for k, gram in enumerate(dict.fromkeys(gram for found in grams for gram in found))}
    out = np.zeros((len(texts), len(place)))
    for row, found in zip(out, grams, strict=True):
        row[[place[gram] for gram in found]] = list(found.values())
    return out


def _chrf(own: list[np.ndarray], theirs: list[np.ndarray]) -> np.ndarray:
    """float64 [candidates, references] in 0..100, from counts [candidates | references, n-grams] for each n."""
    shape = len(own[0]), len(theirs[0])
    precision, recall, orders = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for a, b in zip(own, theirs, strict=True):
        match = np.stack([np.minimum(row[None], b).sum(1) for row in a])
        ours, refs = a.sum(1)[:, None], b.sum(1)[None]
        both = (ours > 0) & (refs > 0)  # an order that either text is too short for does not count
        precision += np.where(both, match / np.where(ours > 0, ours, 1), 0)
        recall += np.where(both, match / np.where(refs > 0, refs, 1), 0)
        orders += both
    p, r = precision / np.maximum(orders, 1), recall / np.maximum(orders, 1)
    below = CHRF_BETA**2 * p + r
    return 100 * (1 + CHRF_BETA**2) * p * r / np.where(below > 0, below, 1)


@dataclass(frozen=True)
class Pairwise:
    """Any function (sources, hypotheses, references) -> float32 [n] as a utility; each pair is scored once."""

    function: Any = SentenceBLEU()

    def __call__(
        self, source: str, candidates: Sequence[str], references: Sequence[str], weights: np.ndarray
    ) -> np.ndarray:
        own = [y for y in candidates for _ in references]
        scores = with_references(self.function)([source] * len(own), own, list(references) * len(candidates))
        return np.asarray(scores, np.float64).reshape(len(candidates), -1) @ weights / weights.sum()


def choose(utility: Utility, source: str, samples: Sequence[str], allowed: Sequence[str] | None = None) -> str:
    """The sample with the highest mean utility against all samples, of equal ones the first drawn.

    Equal samples are one candidate, and a pseudo-reference as often as they were drawn. `allowed`: the candidates.
    """
    drawn = Counter(samples)
    candidates = list(drawn) if allowed is None else [text for text in drawn if text in set(allowed)]
    expected = utility(source, candidates, list(drawn), np.array(list(drawn.values()), np.float64))
    return candidates[int(np.argmax(expected))]


@dataclass(frozen=True)
class MBR:
    """Decoding: of n samples the one that is most like all of them."""

    n: int = 16
    """Samples per source."""
    utility: Any = ChrF()
    """A Utility: ChrF(), ChrF(aggregate=True), Pairwise(SentenceBLEU()), Pairwise(a function of yours)."""
    prune_to: int = 0
    """Only the samples with the highest rewards are candidates, so many of them; 0: all."""
    sampling: SamplingSettings = SamplingSettings()

    def __post_init__(self) -> None:
        if self.n < 1 or self.prune_to < 0:
            raise UserError(f"n {self.n} must be at least 1 and prune_to {self.prune_to} not below 0")

    def __call__(
        self,
        policy: Policy,
        split: Split,
        reward: Chooser | None,
        seed: int,
        machine: MachineSettings | None = None,
    ) -> list[str]:
        """One hypothesis per source."""
        drawn = draw(policy, split, self.n, self.sampling, seed, machine)
        allowed: list[list[str] | None] = [None] * len(drawn)
        if self.prune_to:
            if reward is None:
                raise UserError("prune_to keeps what has the highest rewards, and there is no reward")
            ranks = np.argsort(-flat_scores(reward, split, drawn), axis=1, kind="stable")[:, : self.prune_to]
            allowed = [[texts[k] for k in best] for texts, best in zip(drawn, ranks, strict=True)]
        rows = zip(split.sources, drawn, allowed, strict=True)
        return [choose(self.utility, source, texts, few) for source, texts, few in rows]


UTILITIES: dict[str, Utility] = {
    "chrf": ChrF(),
    "chrf-aggregate": ChrF(aggregate=True),
    "chrf++": Pairwise(SentenceChrF(word_order=2)),
    "bleu": Pairwise(SentenceBLEU()),
}
