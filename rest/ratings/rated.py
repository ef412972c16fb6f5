"""Rated hypotheses as a reward is learned from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rest.errors import UserError


@dataclass(frozen=True)
class Rated:
    """n rated hypotheses."""

    sources: list[str]
    hypotheses: list[str]
    ratings: np.ndarray  # float32 [n]
    groups: np.ndarray  # int64 [n], the id of the source
    held_out: np.ndarray | None = None  # bool [n], what decides when to stop; None: `fit` holds out some sources
    grow: np.ndarray | None = None  # int64 [n], the Grow step before which a rating came; None: all before the first
    references: list[str] | None = None  # [n], the human translation of the source; None: not known
    human: np.ndarray | None = None  # bool [n], human pairs that were rated themselves; None: no row is one

    @property
    def steps(self) -> np.ndarray:
        """Int64 [n]: `grow`, 1 where nothing else is known."""
        return np.ones(len(self.ratings), np.int64) if self.grow is None else self.grow

    @property
    def is_reference(self) -> np.ndarray:
        """Bool [n]: `human`, False where nothing else is known."""
        return np.zeros(len(self.ratings), bool) if self.human is None else self.human

    @property
    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Int64: the rows to learn from and those held out, ascending."""
        held_out = np.zeros(len(self.ratings), bool) if self.held_out is None else self.held_out
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)

    def __add__(self, other: Rated) -> Rated:
        """Both, this one first."""
        held_out = references = None
        if self.held_out is not None and other.held_out is not None:
            held_out = np.concatenate([self.held_out, other.held_out])
        if self.references is not None and other.references is not None:
            references = self.references + other.references
        return Rated(
            self.sources + other.sources,
            self.hypotheses + other.hypotheses,
            np.concatenate([self.ratings, other.ratings]),
            np.concatenate([self.groups, other.groups]),
            held_out,
            np.concatenate([self.steps, other.steps]),
            references,
            np.concatenate([self.is_reference, other.is_reference]),
        )

    def best(self, rows: np.ndarray) -> np.ndarray:
        """Of the rows (int [k]) the best rated one of each source text, the first if equal; ascending."""
        best: dict[str, int] = {}
        for row in rows[np.argsort(-self.ratings[rows], kind="stable")].tolist():
            best.setdefault(self.sources[row], row)
        return np.sort(np.fromiter(best.values(), np.int64))

    def honest(self, rows: np.ndarray) -> tuple[list[str], list[str]]:
        """The sources of the rows (int [k]), and a good translation of each.

        The reference, not a policy's sample; or the best rated hypothesis where no references are known.
        """
        best = self.best(rows).tolist()
        good = self.hypotheses if self.references is None else self.references
        return [self.sources[row] for row in best], [good[row] for row in best]

    def save(self, path: Path) -> None:
        """Write a Parquet file that anything opens."""
        columns = {"source": self.sources, "hypothesis": self.hypotheses, "rating": self.ratings}
        numbers = {"source_id": self.groups, "grow": self.steps, "is_reference": self.is_reference}
        known = {} if self.references is None else {"reference": self.references}
        pq.write_table(pa.table({**columns, **numbers, **known}), path, compression="zstd")

    @classmethod
    def load(cls, path: Path) -> Rated:
        """Read what `save` wrote."""
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{path}: not the ratings of a reward: {error}") from error
        texts = table["source"].to_pylist(), table["hypothesis"].to_pylist()
        rating, group, grow = (table[name].to_numpy() for name in ("rating", "source_id", "grow"))
        references = table["reference"].to_pylist() if "reference" in table.column_names else None
        return cls(*texts, rating, group, None, grow, references, table["is_reference"].to_numpy())
