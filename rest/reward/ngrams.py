"""n-grams of several texts at once: how often each text has each of them, and how many any two texts share.

They are numbered by sorting, not by hashing, so that two are never taken for one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Counts(NamedTuple):
    """How often each text has each n-gram of one length: entries above 0, ordered by n-gram."""

    total: np.ndarray  # int64 [texts]: n-grams of each text
    text: np.ndarray  # int64 [entries]
    gram: np.ndarray  # int64 [entries], from 0
    times: np.ndarray  # int64 [entries]

    def shared(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """float64 [rows, columns]: n-grams that two of the texts share, the sum of the lower of their counts.

        min(a, b) is the number of k with a >= k and b >= k: with a column for every n-gram and k it is one product.
        """
        same = rows[:, None] == columns
        if not len(self.gram):
            return np.zeros(same.shape)
        mutual = np.bincount(self.gram)[self.gram] > 1  # the others are shared by a text and itself alone
        text, gram, times = self.text[mutual], self.gram[mutual], self.times[mutual]
        starts = np.flatnonzero(np.diff(gram, prepend=-1))
        most = np.maximum.reduceat(times, starts) if len(starts) else times  # columns of each n-gram
        first = np.repeat(np.cumsum(most) - most, np.diff(starts, append=len(gram)))  # the first column of each entry
        k = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        has = np.zeros((len(self.total), most.sum()), np.float32)
        has[np.repeat(text, times), np.repeat(first, times) + k] = 1
        found = has[rows] @ has[columns].T  # whole numbers, exact in float32 up to 2^24
        return np.where(same, self.total[rows, None], found).astype(np.float64)


class Symbols(NamedTuple):
    """What n-grams are made of: the characters or words of all texts, one text after the other, as numbers."""

    symbols: np.ndarray  # int64 [all]
    lengths: np.ndarray  # int64 [texts]

    @classmethod
    def characters(cls, texts: Sequence[str]) -> Symbols:
        """White space left out, as chrF does."""
        lines = ["".join(text.split()) for text in texts]
        points = np.frombuffer("".join(lines).encode("utf-32-le", "surrogatepass"), np.uint32)
        return cls(points.astype(np.int64), np.array([len(line) for line in lines], np.int64))

    @classmethod
    def words(cls, texts: Sequence[Sequence[str]]) -> Symbols:
        numbers: dict[str, int] = {}
        flat = [numbers.setdefault(word, len(numbers)) for words in texts for word in words]
        return cls(np.array(flat, np.int64), np.array([len(words) for words in texts], np.int64))

    def counts(self, order: int) -> Iterator[Counts]:
        """Of n-grams of 1, 2, ... `order` symbols."""
        size, symbols = len(self.symbols), self.symbols
        bits = size.bit_length()
        kinds = int(symbols.max(initial=0)) + 1
        if kinds.bit_length() + 2 * bits > 63:  # a key would not fit: number the symbols from 0
            kinds_found, symbols = np.unique(symbols, return_inverse=True)
            kinds = len(kinds_found)
        owner = np.repeat(np.arange(len(self.lengths)), self.lengths)
        room = np.repeat(np.cumsum(self.lengths), self.lengths) - np.arange(size)  # symbols up to the end of its text
        at, gram = np.arange(size), np.zeros(size, np.int64)
        for n in range(1, order + 1):
            at = at[room[at] >= n]
            # An n-gram is one of n - 1 symbols and a symbol. With its place below, equal ones are sorted by text.
            key = np.sort((gram[at] * kinds + symbols[at + n - 1]) << bits | at)
            at, key = key & ((1 << bits) - 1), key >> bits
            new = np.diff(key, prepend=-1) != 0
            number = np.cumsum(new) - 1
            gram[at] = number
            text = owner[at]
            starts = np.flatnonzero(new | (np.diff(text, prepend=-1) != 0))
            total = np.maximum(self.lengths - n + 1, 0)
            yield Counts(total, text[starts], number[starts], np.diff(starts, append=len(at)))
