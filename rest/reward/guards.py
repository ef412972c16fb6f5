"""Guards: names for hypotheses that no reward should be trusted on, whatever it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rest.errors import UserError
from rest.identity import describe
from rest.reward.language import Languages, scripts
from rest.statistics.words import count_words, words

FIT_PAIRS = 20_000  # pairs of D that limits are learned from, at equal distances where there are more


def _repeats(said: list[str], max_ngram: int) -> int:
    """How often the most repeated n-gram stands directly behind itself: 1 when nothing is repeated."""
    most = 1
    for n in range(1, min(max_ngram, len(said) // 2) + 1):
        run = longest = 0  # words in a row that equal the word n before
        for word, earlier in zip(said[n:], said, strict=False):
            run = run + 1 if word == earlier else 0
            longest = max(longest, run)
        most = max(most, 1 + longest // n)
    return most


@dataclass(frozen=True)
class Guards:
    """What counts as suspicious. Lengths are in words, in Chinese and Japanese in characters."""

    min_length_ratio: float = 0.4  # shortest hypothesis, as a multiple of the source's length
    max_length_ratio: float = 2.5  # longest hypothesis, as a multiple of the source's length
    length_slack: int = 3  # words beyond either limit that are let pass, for short sentences
    max_repeats: int = 3  # times an n-gram may be said in a row, unless the source does so too
    max_ngram: int = 8  # longest n-gram looked for, in words
    min_copy_words: int = 2  # words from which on a copy is one: names and numbers are often left as they are
    learn_share: float | None = None
    """Learn from D the limits of length, the scripts and the language: this share of its pairs may be outside each."""
    scripts: tuple[str, ...] | None = None
    """Half of the letters at least must be of these (LATIN, CYRILLIC, CJK …); None: any will do."""
    languages: Any = None  # Languages
    """What tells the two languages apart, once it is learned."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_length_ratio <= self.max_length_ratio:
            raise UserError(
                "min_length_ratio must lie between 0 and max_length_ratio, but they are "
                f"{self.min_length_ratio} and {self.max_length_ratio}."
            )
        for name, least in (("length_slack", 0), ("max_repeats", 1), ("max_ngram", 1), ("min_copy_words", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, but is {getattr(self, name)}.")

        if self.learn_share is not None and not 0 <= self.learn_share < 0.5:
            raise UserError(f"learn_share must be from 0 to below 0.5, but is {self.learn_share}.")

    @property
    def settings(self) -> dict[str, Any]:
        """What the flags depend on, for JSON: what was learned of the languages is known by its hash."""
        known = None if self.languages is None else self.languages.identity
        return describe(replace(self, languages=None)) | {"languages": known}

    def fit(self, sources: Sequence[str], references: Sequence[str] | None) -> Guards:
        """With what `learn_share` asks for learned from the pairs of D; the limits of length keep their slack."""
        if self.learn_share is None:
            return self
        if references is None or not len(references):
            raise UserError("guards.learn_share: there are no references to learn limits from")
        chosen = np.unique(np.linspace(0, len(references) - 1, min(FIT_PAIRS, len(references))).astype(int))
        sides = [sources[i] for i in chosen], [references[i] for i in chosen]
        asked, said = (np.array([max(1, count_words(text)) for text in side], float) for side in sides)
        low = np.quantile((said + self.length_slack) / asked, self.learn_share)
        high = np.quantile((said - self.length_slack) / asked, 1 - self.learn_share)
        letters = scripts("".join(sides[1]))
        return replace(
            self,
            min_length_ratio=float(low),
            max_length_ratio=float(max(low, high)),
            scripts=tuple(sorted(s for s, n in letters.items() if n >= 0.01 * letters.total())),
            languages=Languages.of(*sides, self.learn_share),
        )

    def flags(self, sources: Sequence[str], hypotheses: Sequence[str]) -> list[str]:
        """For each row the comma-joined names of what is wrong, "" when nothing is.

        In this order: empty (then nothing else), copy (of the source, but for case and spaces), length_ratio,
        repetition, script, language. UserError where nothing was learned that `learn_share` asks for.
        """
        if self.learn_share is not None and self.languages is None:
            raise UserError(
                f"guards.learn_share {self.learn_share}: nothing was learned from D for these guards, as is done for "
                "those of a run's own reward and of rewards that it joins"
            )
        return [self._flags(source, text) for source, text in zip(sources, hypotheses, strict=True)]

    def _flags(self, source: str, hypothesis: str) -> str:
        asked, said = words(source.casefold()), words(hypothesis.casefold())
        if not said:
            return "empty"
        shortest = self.min_length_ratio * count_words(source) - self.length_slack
        longest = self.max_length_ratio * count_words(source) + self.length_slack
        repeats = _repeats(said, self.max_ngram)
        found = {
            "copy": len(said) >= self.min_copy_words and said == asked,
            "length_ratio": not shortest <= count_words(hypothesis) <= longest,
            "repetition": repeats > self.max_repeats and repeats > _repeats(asked, self.max_ngram),
            "script": self.scripts is not None and _strange(hypothesis, self.scripts),
            "language": self.languages is not None and self.languages.is_wrong(hypothesis),
        }
        return ",".join(name for name, wrong in found.items() if wrong)


def _strange(text: str, known: tuple[str, ...]) -> bool:
    """Whether fewer than half of its letters are of the known scripts."""
    letters = scripts(text)
    return 2 * sum(letters[script] for script in known) < letters.total()
