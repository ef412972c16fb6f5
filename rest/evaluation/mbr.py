"""Decoding by minimum Bayes risk (MBR): the sample that is most like all the others.

Every sample is a candidate, or the few that the reward likes best are (Fernandes et al. 2022), and all samples are
pseudo-references, whatever candidates are left: they stand for the policy (Kumar and Byrne 2004; Eikema and Aziz 2020).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from rest.data.corpus import Split
from rest.errors import UserError
from rest.evaluation.outputs import Chooser, draw_hypotheses, flat_scores
from rest.learning.mesh import MachineSettings
from rest.policy.policy import Policy
from rest.policy.sampler import Hypotheses, SamplingSettings
from rest.reward.utility import BLEU, ChrF, Mixture, Utility


@runtime_checkable
class Weighting(Protocol):
    """How much each different sample counts as a pseudo-reference, from n samples and their log-probabilities [n]."""

    def __call__(self, samples: Sequence[str], log_probs: np.ndarray) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class MonteCarlo:
    """As often as it was drawn."""

    def __call__(self, samples: Sequence[str], log_probs: np.ndarray) -> Mapping[str, float]:
        return {text: float(times) for text, times in Counter(samples).items()}


@dataclass(frozen=True)
class ModelBased:
    """As the policy's probability of it, however often it was drawn (Jinnai et al. 2024, arXiv 2311.05263).

    Of a text that was drawn as several sequences of tokens, that of the likeliest one.
    """

    def __call__(self, samples: Sequence[str], log_probs: np.ndarray) -> Mapping[str, float]:
        highest: dict[str, float] = {}
        for text, log_prob in zip(samples, log_probs.tolist(), strict=True):
            highest[text] = max(log_prob, highest.get(text, log_prob))
        most = max(highest.values())
        return {text: float(np.exp(log_prob - most)) for text, log_prob in highest.items()}


def choose(
    utility: Utility,
    source: str,
    samples: Sequence[str],
    allowed: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
) -> str:
    """The sample with the highest mean utility against all samples, of equal ones the first drawn.

    Equal samples are one candidate, and a pseudo-reference as often as they were drawn, or as their `weights` say.
    `allowed`: the candidates.
    """
    weights = Counter(samples) if weights is None else weights
    different = list(dict.fromkeys(samples))
    candidates = different if allowed is None else [text for text in different if text in set(allowed)]
    return candidates[_best(utility(source, candidates, different, np.array([weights[y] for y in different], float)))]


def _best(expected: np.ndarray) -> int:
    """The first of the highest; what differs in the last bits is equal."""
    return int(np.argmax(np.round(expected, 9)))


def diverse(utility: Utility, source: str, samples: Sequence[str], k: int, penalty: float = 0.5) -> list[str]:
    """k different samples of high mean utility against all that are little like each other, or fewer if there are.

    They maximise their mean expected utility less `penalty` times the mean utility between them, one after the other:
    the first is what `choose` chooses (diverse MBR, Jinnai et al. 2024, arXiv 2401.05054, by greedy search).
    """
    drawn = Counter(samples)
    different = list(drawn)
    found = utility.pairs(source, different, different)
    expected = found @ np.array(list(drawn.values()), np.float64) / drawn.total()
    alike = found + found.T
    chosen = [_best(expected)]
    while len(chosen) < min(k, len(different)):
        gain = expected - penalty * alike[:, chosen].mean(1)
        gain[chosen] = -np.inf
        chosen.append(_best(gain))
    return [different[row] for row in chosen]


@dataclass(frozen=True)
class ConfidencePruning:
    """Candidates are compared with more and more samples, and those that can hardly win are left out.

    Cheng and Vlachos 2023, "Faster Minimum Bayes Risk Decoding with Confidence-based Pruning", algorithm 1. It pays
    where a pair takes long; what a utility does to avoid pairs, such as an aggregate, has no effect.
    """

    confidence: float = 0.99
    """A candidate is left out if it is the best in less than 1 - confidence of the resamples; 1: none is."""
    first: int = 8
    """Samples that candidates are compared with first; then twice as many each time, and all at last."""
    resamples: int = 500
    """Bootstrap resamples of the samples so far."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.confidence <= 1 or self.first < 1 or self.resamples < 1:
            raise UserError(
                f"confidence {self.confidence} must be above 0 and at most 1, first {self.first} and resamples "
                f"{self.resamples} at least 1"
            )

    def __call__(self, utility: Utility, source: str, samples: Sequence[str], candidates: Sequence[str]) -> str:
        """The candidate with the highest mean utility, with that confidence."""
        rng = np.random.default_rng(self.seed)
        left, scores = list(candidates), np.zeros((len(candidates), 0))
        column: dict[str, int] = {}  # of scores, of each different sample
        seen = 0
        while seen < len(samples) and len(left) > 1:
            seen = min(len(samples), max(self.first, 2 * seen))
            new = [text for text in dict.fromkeys(samples[:seen]) if text not in column]
            column |= {text: len(column) + k for k, text in enumerate(new)}
            scores = np.concatenate([scores, utility.pairs(source, left, new)], axis=1) if new else scores
            so_far = scores[:, [column[text] for text in samples[:seen]]]
            hopeful = self._hopeful(so_far, rng)
            left, scores, so_far = [left[row] for row in hopeful], scores[hopeful], so_far[hopeful]
        return left[_best(so_far.mean(1))] if len(left) > 1 else left[0]

    def _hopeful(self, scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """int64 [at least 1]: the candidates that may be the best, from scores [candidates, samples]."""
        samples = scores.shape[1]
        times = rng.multinomial(samples, np.full(samples, 1 / samples), self.resamples)
        means = np.round(scores @ times.T / samples, 9)  # [candidates, resamples]
        wins = (means >= means[_best(scores.mean(1))]).mean(1)
        return np.flatnonzero(wins >= 1 - self.confidence)


@dataclass(frozen=True)
class MBR:
    """Decoding: of n samples the one that is most like all of them."""

    n: int = 16
    """Samples per source."""
    utility: Any = ChrF()
    """A Utility: ChrF(), ChrF(aggregate=True), BLEU(), Mixture((ChrF(), BLEU())), Pairwise(a function of yours)."""
    prune_to: int = 0
    """Only the samples with the highest rewards are candidates, so many of them; 0: all."""
    sampling: SamplingSettings = SamplingSettings()
    weights: Any = MonteCarlo()
    """A Weighting: MonteCarlo(), ModelBased()."""
    pruning: ConfidencePruning | None = None
    """What leaves out candidates before they are compared with all samples."""

    def __post_init__(self) -> None:
        if self.n < 1 or self.prune_to < 0:
            raise UserError(f"n {self.n} must be at least 1 and prune_to {self.prune_to} not below 0")
        if self.pruning is not None and self.weights != MonteCarlo():
            raise UserError(f"confidence pruning resamples draws that all count the same, so not with {self.weights}")

    def __call__(
        self,
        policy: Policy,
        split: Split,
        reward: Chooser | None,
        seed: int,
        machine: MachineSettings | None = None,
    ) -> list[str]:
        """One hypothesis per source."""
        return self.chosen(draw_hypotheses(policy, split, self.n, self.sampling, seed, machine), split, reward)

    def chosen(self, hypotheses: Hypotheses, split: Split, reward: Chooser | None) -> list[str]:
        """The same of samples that have been drawn already."""
        drawn = hypotheses.texts
        allowed = drawn
        if self.prune_to:
            if reward is None:
                raise UserError("prune_to keeps what has the highest rewards, and there is no reward")
            ranks = np.argsort(-flat_scores(reward, split, drawn), axis=1, kind="stable")[:, : self.prune_to]
            allowed = [[texts[k] for k in best] for texts, best in zip(drawn, ranks, strict=True)]
        log_probs = [np.array([part.sum(dtype=np.float64) for part in row]) for row in hypotheses.log_probs]
        utility = self.utility.prepared([text for texts in drawn for text in texts])
        rows = zip(split.sources, drawn, allowed, log_probs, strict=True)
        return [self._choose(utility, *row) for row in rows]

    def _choose(
        self, utility: Utility, source: str, texts: list[str], allowed: list[str], log_probs: np.ndarray
    ) -> str:
        if self.pruning is None:
            return choose(utility, source, texts, allowed, self.weights(texts, log_probs))
        return self.pruning(utility, source, texts, [text for text in dict.fromkeys(texts) if text in set(allowed)])


UTILITIES: dict[str, Utility] = {
    "chrf": ChrF(),
    "chrf-aggregate": ChrF(aggregate=True),
    "chrf++": ChrF(word_order=2),
    "bleu": BLEU(),
    "chrf-bleu": Mixture((ChrF(), BLEU())),
}
