"""What parallel text is like before anything is chosen for it: counts, lengths, repetitions, and dev and test text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rest.data.corpus import Cleaning
from rest.data.lines import decode_line, read_lines
from rest.errors import UserError
from rest.statistics.words import count_words

UNEVEN = 3.0  # a pair whose ratio of lengths is so many times the median, or its inverse, is hardly a translation


@dataclass(frozen=True)
class Pairs:
    """The lines of two files, cleaned, and their lengths; n pairs."""

    sources: list[str]
    targets: list[str]
    source_words: np.ndarray  # int64 [n]; a Chinese or Japanese character is a word
    target_words: np.ndarray  # int64 [n]

    @classmethod
    def of(cls, sources: Sequence[str], targets: Sequence[str], cleaning: Cleaning) -> Pairs:
        left, right = [cleaning.line(text) for text in sources], [cleaning.line(text) for text in targets]
        return cls(left, right, _words(left), _words(right))

    @classmethod
    def read(cls, source: Path, target: Path, cleaning: Cleaning) -> Pairs:
        """Two files, gzip where named .gz; UserError for a missing, damaged or mismatched one, or no UTF-8."""
        left, right = (
            [decode_line(raw, path, number) for number, raw in enumerate(read_lines(path), start=1)]
            for path in (source, target)
        )
        if len(left) != len(right):
            raise UserError(f"{source} has {len(left)} lines, but {target} has {len(right)}")
        return cls.of(left, right, cleaning)

    @classmethod
    def joined(cls, parts: Sequence[Pairs]) -> Pairs:
        """One after another."""
        return cls(
            [text for part in parts for text in part.sources],
            [text for part in parts for text in part.targets],
            np.concatenate([part.source_words for part in parts]),
            np.concatenate([part.target_words for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.sources)

    def take(self, rows: np.ndarray) -> Pairs:
        """The rows (indices or bool [n]) in the given order."""
        rows = np.arange(len(self))[rows]
        sources, targets = [self.sources[row] for row in rows], [self.targets[row] for row in rows]
        return Pairs(sources, targets, self.source_words[rows], self.target_words[rows])

    @property
    def words(self) -> int:
        """Of both sides."""
        return int(self.source_words.sum() + self.target_words.sum())

    @property
    def empty(self) -> np.ndarray:
        """bool [n]: pairs of which a side has no word."""
        return np.minimum(self.source_words, self.target_words) == 0

    @property
    def longest(self) -> np.ndarray:
        """Words of the longer side, int64 [n]."""
        return np.maximum(self.source_words, self.target_words)

    @property
    def ratios(self) -> np.ndarray:
        """Source words per target word, float64 [n]; NaN for empty pairs."""
        return np.where(self.empty, np.nan, self.source_words / np.maximum(self.target_words, 1))

    @property
    def uneven(self) -> np.ndarray:
        """bool [n]: pairs whose ratio is far from the median of all."""
        if self.empty.all():
            return np.zeros(len(self), np.bool_)
        relative = self.ratios / np.nanmedian(self.ratios)
        return (relative > UNEVEN) | (relative < 1 / UNEVEN)

    @property
    def repeated(self) -> np.ndarray:
        """bool [n]: pairs that were there before."""
        seen: set[tuple[str, str]] = set()
        found = np.zeros(len(self), np.bool_)
        for row, pair in enumerate(zip(self.sources, self.targets, strict=True)):
            found[row] = pair in seen
            seen.add(pair)
        return found

    def among(self, sources: Collection[str]) -> np.ndarray:
        """bool [n]: pairs whose source is one of these."""
        return np.array([source in sources for source in self.sources], np.bool_)


def _words(texts: Sequence[str]) -> np.ndarray:
    return np.array([count_words(text) for text in texts], np.int64)


def split_off(
    pairs: Pairs, sizes: Mapping[str, int], taken: Pairs | None, max_words: int, seed: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rows for training, and of each split so many drawn at random, int64.

    Drawn are only pairs whose source and target are in the text once and not in `taken`, so that splits never overlap.
    """
    sources, targets = Counter(pairs.sources), Counter(pairs.targets)
    for side, texts in ((sources, taken.sources), (targets, taken.targets)) if taken is not None else ():
        side.update(texts)
    once = np.array([sources[x] == targets[y] == 1 for x, y in zip(pairs.sources, pairs.targets, strict=True)], bool)
    fit = np.flatnonzero(once & ~pairs.empty & ~pairs.uneven & (pairs.longest <= max_words))
    wanted = sum(sizes.values())
    if len(fit) < 2 * wanted:
        raise UserError(
            f"only {len(fit)} of {len(pairs)} pairs have a source and a target that are there once: too few to split "
            f"{wanted} off for {' and '.join(sizes)}; name files with --dev-source, --dev-target and so on"
        )
    drawn = np.random.default_rng(seed).permutation(fit)
    ends = np.cumsum([0, *sizes.values()])
    found = {name: np.sort(drawn[a:b]) for name, a, b in zip(sizes, ends[:-1], ends[1:], strict=True)}
    return np.setdiff1d(np.arange(len(pairs)), drawn[:wanted]), found
