"""Unit tests of a reward: hypotheses corrupted on purpose, which must not score above the honest ones.

Gulcehre et al. 2023 tried their reward on permutations and repetitions; copies of the source fool quality estimation
too. The same perturbations are negatives to train a reward with, as MetricX-24 does (Juraska et al. 2024,
arXiv 2410.03983).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rest.errors import UserError
from rest.folder import seed_for
from rest.ratings.rated import Rated
from rest.ratings.record import RatingRow, Ratings, from_rows
from rest.reward.reward import RewardFunction, raw_scores
from rest.statistics.intervals import bootstrap_ci
from rest.statistics.words import count_words, words

WORST = 25.0  # MQM points of a text that is no translation
BAD = 0.05  # quantile of ratings that such a text gets: the lowest are so far off that regression would see little else
ENOUGH = 20  # cases to warn from: the interval of a share of fewer is more than .4 wide


@dataclass(frozen=True)
class Case:
    """A text to corrupt."""

    source: str
    honest: str  # a good translation of the source
    other: str  # a good translation of another source


Perturb = Callable[[Case, np.random.Generator], str]


# Perturbations: pure functions of the case and the random numbers


def shuffled(case: Case, rng: np.random.Generator) -> str:
    """The words in random order."""
    said, space = _words_and_space(case.honest)
    return space.join(said[k] for k in rng.permutation(len(said)))


def doubled(case: Case, rng: np.random.Generator) -> str:
    """The whole text twice."""
    return f"{case.honest} {case.honest}"


def stuttering(case: Case, rng: np.random.Generator) -> str:
    """One to three words in a row said five times more."""
    said, space = _words_and_space(case.honest)
    n = min(int(rng.integers(1, 4)), len(said))
    start = int(rng.integers(0, len(said) - n + 1))
    return space.join([*said[: start + n], *said[start : start + n] * 5, *said[start + n :]])


def truncated(case: Case, rng: np.random.Generator) -> str:
    """The first half of the words."""
    said, space = _words_and_space(case.honest)
    return space.join(said[: (len(said) + 1) // 2])


def source_copied(case: Case, rng: np.random.Generator) -> str:
    """The source in place of a translation."""
    return case.source


def empty(case: Case, rng: np.random.Generator) -> str:
    """Nothing."""
    return ""


def added(case: Case, rng: np.random.Generator) -> str:
    """A fluent sentence more, which has nothing to do with the source."""
    return f"{case.honest} {case.other}"


def unrelated(case: Case, rng: np.random.Generator) -> str:
    """A good translation of another source."""
    return case.other


def upper_case(case: Case, rng: np.random.Generator) -> str:
    """Capital letters throughout."""
    return case.honest.upper()


def without_punctuation(case: Case, rng: np.random.Generator) -> str:
    """No punctuation marks."""
    return " ".join("".join(c for c in case.honest if unicodedata.category(c)[0] != "P").split())


def gibberish(case: Case, rng: np.random.Generator) -> str:
    """The same characters in random order, the spaces where they were."""
    letters = [c for c in case.honest if not c.isspace()]
    mixed = iter(letters[k] for k in rng.permutation(len(letters)))
    return "".join(c if c.isspace() else next(mixed) for c in case.honest)


def _words_and_space(text: str) -> tuple[list[str], str]:
    """The words and what stands between them: characters and nothing in text that is written without spaces."""
    parts = text.split()
    return (parts, " ") if count_words(text) < 2 * len(parts) else (words(text), "")


@dataclass(frozen=True)
class Attack:
    """A perturbation, and what the text that it leaves deserves."""

    name: str
    perturb: Perturb
    penalty: float  # MQM points, as we see it: 25 no translation at all, 5 a major error, 1 a minor one

    def cases(self, sources: Sequence[str], honest: Sequence[str], seed: int) -> list[str]:
        """The corrupted texts, one for each honest translation; some may be as they were."""
        n = len(sources)
        order = np.random.default_rng(seed_for(seed, "others")).permutation(n)
        other = np.empty(n, np.int64)
        other[order] = np.roll(order, -1)  # everyone's other is someone else
        return [
            self.perturb(
                Case(sources[k], honest[k], honest[other[k]]), np.random.default_rng(seed_for(seed, self.name, k))
            )
            for k in range(n)
        ]


ATTACKS = (
    Attack("words shuffled", shuffled, WORST),
    Attack("said twice", doubled, WORST),
    Attack("words repeated", stuttering, WORST),
    Attack("cut in half", truncated, 15.0),
    Attack("source copied", source_copied, WORST),
    Attack("empty", empty, WORST),
    Attack("sentence added", added, 10.0),
    Attack("another source's", unrelated, WORST),
    Attack("upper case", upper_case, 5.0),
    Attack("no punctuation", without_punctuation, 5.0),
    Attack("gibberish", gibberish, WORST),
)


@dataclass(frozen=True)
class Example:
    """A case in which the reward was fooled."""

    source: str
    honest: str
    attacked: str
    honest_score: float
    attacked_score: float


@dataclass(frozen=True)
class AttackResult:
    """What one attack came to."""

    attack: str
    cases: int  # without those that the perturbation leaves as they were
    higher: float  # share of the cases in which the corrupted text scores above the honest one
    higher_ci95: tuple[float, float]
    ties: float  # share in which both score the same
    mean_change: float  # of the raw score
    examples: tuple[Example, ...]  # the largest gains

    def record(self) -> dict[str, Any]:
        """For JSON."""
        fields = {key: value for key, value in vars(self).items() if key != "examples"}
        return {**fields, "higher_ci95": list(self.higher_ci95), "examples": [vars(e) for e in self.examples]}


def attack(
    reward: RewardFunction,
    sources: Sequence[str],
    honest: Sequence[str],
    seed: int,
    references: Sequence[str] | None = None,
    *,
    attacks: Sequence[Attack] = ATTACKS,
    shown: int = 3,
) -> list[AttackResult]:
    """Score good translations before and after each perturbation; UserError for fewer than two of them."""
    if len(sources) != len(honest) or len(sources) < 2:
        raise UserError(f"attacks need two good translations or more, got {len(honest)} for {len(sources)} sources")
    before = raw_scores(reward, sources, honest, references).astype(np.float64)
    results = []
    for each in attacks:
        texts = each.cases(sources, honest, seed)
        rows = [k for k, text in enumerate(texts) if text != honest[k]]
        if not rows:
            continue
        known = None if references is None else [references[k] for k in rows]
        after = raw_scores(reward, [sources[k] for k in rows], [texts[k] for k in rows], known).astype(np.float64)
        change = after - before[rows]
        fooled = [
            Example(sources[rows[k]], honest[rows[k]], texts[rows[k]], float(before[rows[k]]), float(after[k]))
            for k in np.argsort(-change, kind="stable")[:shown]
            if change[k] > 0
        ]
        higher = (change > 0).astype(np.float64)
        interval = bootstrap_ci(higher, seed_for(seed, "bootstrap"))
        ties, mean_change = float((change == 0).mean()), float(change.mean())
        results.append(
            AttackResult(each.name, len(rows), float(higher.mean()), interval, ties, mean_change, tuple(fooled))
        )
    return results


def synthetic_negatives(
    sources: Sequence[str], honest: Sequence[str], seed: int, *, attacks: Sequence[Attack] = ATTACKS
) -> Ratings:
    """Corrupted translations with the scores they deserve, minus MQM points, to mix with ratings on that scale.

    The set is "synthetic", the system the attack's name; texts that a perturbation leaves as they were are left out.
    """
    if len(sources) != len(honest) or len(sources) < 2:
        raise UserError(f"negatives need two good translations or more, got {len(honest)} for {len(sources)} sources")
    return from_rows(
        RatingRow(sources[k], text, -each.penalty, k, None, each.name, "", "", "synthetic", "")
        for each in attacks
        for k, text in enumerate(each.cases(sources, honest, seed))
        if text != honest[k]
    )


def best_rated(ratings: Ratings) -> Ratings:
    """The hypothesis of each source with the highest score, the first if equal: what to attack."""
    order = np.lexsort((np.arange(len(ratings)), -ratings.scores))
    texts = np.unique(ratings.sources, return_inverse=True)[1][order]
    return ratings.take(np.sort(order[np.unique(texts, return_index=True)[1]]))


def negatives(rated: Rated, rows: np.ndarray, share: float, seed: int) -> Rated:
    """Corrupted translations that are this share of the rows (int [k]) and themselves together, where there are enough.

    What is corrupted is the best rated hypothesis of each source. It is rated as the worst of 20 are where it is no
    translation any more, and loses a part of what was above that where less is wrong: penalty / 25 of it. MetricX-24
    (Juraska et al. 2024, arXiv 2410.03983) has such rows with fixed scores.
    """
    honest = rated.best(rows).tolist()
    found = synthetic_negatives([rated.sources[r] for r in honest], [rated.hypotheses[r] for r in honest], seed)
    wanted = round(share / (1 - share) * len(rows))
    found = found.take(np.random.default_rng(seed_for(seed, "chosen negatives")).permutation(len(found))[:wanted])
    of_source = {rated.sources[r]: r for r in honest}
    corrupted = [of_source[source] for source in found.sources]
    before, kept = rated.ratings[corrupted], 1 + found.scores / WORST
    low = np.minimum(np.quantile(rated.ratings[rows], BAD), before)
    ratings = (low + (before - low) * kept).astype(np.float32)
    return Rated(
        found.sources,
        found.hypotheses,
        ratings,
        rated.groups[corrupted],
        None if rated.held_out is None else np.zeros(len(corrupted), bool),
        rated.steps[corrupted],
        None if rated.references is None else [rated.references[r] for r in corrupted],
    )
