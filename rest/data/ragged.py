"""Rows of different lengths in few flat arrays: millions of them without an object for each."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, overload

import numpy as np
import pyarrow as pa

BLOCK = 1 << 16  # rows that `of` holds as objects


class Ragged(Sequence[np.ndarray]):
    """n rows of numbers. What is read from a memory-mapped file stays there until a row is asked for.

    `parts` are (offsets int [k + 1], numbers), rows one after another; row i of a part is what lies between offsets i
    and i + 1. `rows` are which of them these are and in what order, int [n], and `longest` is where a row is cut.
    """

    def __init__(
        self,
        parts: Sequence[tuple[np.ndarray, np.ndarray]],
        rows: np.ndarray | None = None,
        longest: int | None = None,
    ) -> None:
        self._parts, self._rows, self._longest = list(parts), rows, longest
        self._edges = np.cumsum([0, *(len(offsets) - 1 for offsets, _ in self._parts)]).tolist()

    @classmethod
    def of(cls, rows: Iterable[Sequence[int] | np.ndarray], kind: Any = np.int32) -> Ragged:
        """Copies of rows, which may come one at a time."""
        parts, rows = [], iter(rows)
        while block := list(islice(rows, BLOCK)):
            offsets = np.cumsum([0, *map(len, block)])
            parts.append((offsets, np.concatenate([np.asarray(row, kind) for row in block])))
        return cls(parts)

    @classmethod
    def of_column(cls, column: pa.ChunkedArray) -> Ragged:
        """A list column of Arrow without a copy; a row that is null has no numbers."""
        return cls([(chunk.offsets.to_numpy(), chunk.values.to_numpy()) for chunk in column.chunks])

    def __len__(self) -> int:
        return self._edges[-1] if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, row: int | np.integer) -> np.ndarray: ...
    @overload
    def __getitem__(self, row: slice) -> Ragged: ...
    def __getitem__(self, row: int | np.integer | slice) -> np.ndarray | Ragged:
        if isinstance(row, slice):
            rows = range(*row.indices(len(self)))
            return self if rows == range(len(self)) else self.take(np.arange(rows.start, rows.stop, rows.step))
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        at = int(row) % len(self) if self._rows is None else int(self._rows[row])
        part = bisect_right(self._edges, at) - 1
        offsets, numbers = self._parts[part]
        at -= self._edges[part]
        return numbers[offsets[at] : offsets[at + 1]][: self._longest]

    def take(self, rows: np.ndarray) -> Ragged:
        """These rows (int [k]) in their order; the same may come again."""
        return Ragged(self._parts, rows if self._rows is None else self._rows[rows], self._longest)

    def cut(self, longest: int) -> Ragged:
        """Each row as far as so many numbers."""
        return Ragged(self._parts, self._rows, longest if self._longest is None else min(longest, self._longest))

    def followed_by(self, other: Ragged) -> Ragged:
        """These rows, then the others, which are cut where these are."""
        own = np.arange(len(self)) if self._rows is None else self._rows
        others = np.arange(len(other)) if other._rows is None else other._rows
        return Ragged([*self._parts, *other._parts], np.concatenate([own, self._edges[-1] + others]), self._longest)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Numbers of each row, int32 [n]."""
        lengths = np.zeros(self._edges[-1], np.int32)
        for start, (offsets, _) in zip(self._edges, self._parts, strict=False):
            np.subtract(offsets[1:], offsets[:-1], out=lengths[start : start + len(offsets) - 1], casting="same_kind")
        if self._longest is not None:
            np.minimum(lengths, self._longest, out=lengths)
        return lengths if self._rows is None else lengths[self._rows]


def lengths_of(rows: Sequence[Any]) -> np.ndarray:
    """Numbers of each row, int32 [n]."""
    return rows.lengths if isinstance(rows, Ragged) else np.fromiter(map(len, rows), np.int32, len(rows))
