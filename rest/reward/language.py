"""What the text of one side of a corpus looks like: its scripts, and its language by character n-grams.

The two sides of D are told apart by naive Bayes on character n-grams (Dunning 1994, Statistical identification of
language), so no list of languages is needed, and nothing but D.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

ORDERS = (1, 2, 3)  # characters of an n-gram
KEPT = 5000  # n-grams of each side that are counted, the most frequent; all others are one
MIN_LETTERS = 12  # below, a text is too short to be told


@lru_cache(maxsize=65536)
def script(character: str) -> str:
    """The script of a letter, the first word of its Unicode name: LATIN, CYRILLIC, CJK …; "" of anything else."""
    return unicodedata.name(character, "").split(" ")[0] if character.isalpha() else ""


def scripts(text: str) -> Counter[str]:
    """How many letters of each script."""
    found = Counter(script(character) for character in text)
    del found[""]
    return found


def ngrams(text: str) -> Iterator[str]:
    """Of the letters of each word, with a blank on either side; case does not matter."""
    words = "".join(c if c.isalpha() else " " for c in text.casefold()).split()
    padded = f" {' '.join(words)} " if words else ""
    for n in ORDERS:
        yield from (padded[i : i + n] for i in range(len(padded) - n + 1))


@dataclass(frozen=True, eq=False)
class Languages:
    """The two languages of a corpus."""

    log_probs: dict[str, tuple[float, float]]
    """Of an n-gram in the source and in the target language, nats; "" stands for all others."""
    least: float
    """Target text is seldom less likely than this under its own language, nats an n-gram."""

    @classmethod
    def of(cls, sources: Iterable[str], references: Sequence[str], share: float) -> Languages:
        """Of D's two sides; this share of the references, those less like the others, falls below `least`."""
        counts = [Counter(gram for text in texts for gram in ngrams(text)) for texts in (sources, references)]
        kept = sorted({gram for count in counts for gram, _ in count.most_common(KEPT)})
        rows = []
        for count in counts:
            known = np.array([count[gram] for gram in kept], np.float64)
            others = max(0.0, count.total() - known.sum())
            rows.append(np.log((np.append(known, others) + 1) / (count.total() + len(kept) + 1)))
        table = {gram: (float(a), float(b)) for gram, a, b in zip([*kept, ""], *rows, strict=True)}
        free = cls(table, -math.inf)
        long = [text for text in references if enough(text)]
        own = [free.likelihoods(text)[1] for text in long]
        return cls(table, float(np.quantile(own, share)) if own else -math.inf)

    @property
    def identity(self) -> str:
        """Hash of the table."""
        return hashlib.sha256(repr((sorted(self.log_probs.items()), self.least)).encode()).hexdigest()

    def likelihoods(self, text: str) -> tuple[float, float]:
        """Mean log-probability of an n-gram of the text in the source and in the target language."""
        unknown = self.log_probs[""]
        found = [self.log_probs.get(gram, unknown) for gram in ngrams(text)]
        return (sum(a for a, _ in found) / len(found), sum(b for _, b in found) / len(found)) if found else (0.0, 0.0)

    def is_wrong(self, text: str) -> bool:
        """Whether a text that is long enough is rather in the source language, or in neither."""
        if not enough(text):
            return False
        source, target = self.likelihoods(text)
        return source > target or target < self.least


def enough(text: str) -> bool:
    return sum(map(str.isalpha, text)) >= MIN_LETTERS
