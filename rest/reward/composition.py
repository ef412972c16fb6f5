"""Several rewards as one, each on its own scale in [0, 1] before they meet; and scores that are kept on disk."""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rest.errors import UserError
from rest.reward.guards import Guards
from rest.reward.reward import (
    Groups,
    Reward,
    RewardFunction,
    WithoutReferences,
    compares,
    identify,
    name_of,
    with_references,
)

Texts = Sequence[str]


@dataclass(frozen=True)
class _Joined:
    """Rewards that score the same hypotheses."""

    rewards: tuple[Reward, ...]

    def __post_init__(self) -> None:
        if not self.rewards:
            raise UserError(f"{type(self).__name__} needs at least one reward")

    @property
    def identity(self) -> dict[str, Any]:
        return {"joined by": type(self).__name__, "rewards": [reward.settings for reward in self.rewards]}

    @property
    def compares(self) -> bool:
        """Whether one of them compares the samples of a source."""
        return any(reward.compares for reward in self.rewards)

    def fitted(self, fit: Callable[[Guards], Guards]) -> Any:
        """With the guards of its rewards fitted."""
        return replace(self, rewards=tuple(reward.fitted(fit) for reward in self.rewards))

    def _each(self, sources: Texts, hypotheses: Texts, references: Texts | None, groups: Groups | None) -> np.ndarray:
        """float32 [rewards, n] in [0, 1]"""
        return np.stack([reward(sources, hypotheses, references, groups).reward for reward in self.rewards])


@dataclass(frozen=True)
class WeightedMean(_Joined):
    """The mean, by default with equal weights."""

    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = self.weights
        if weights is not None and (len(weights) != len(self.rewards) or min(weights) < 0 or not sum(weights)):
            raise UserError(f"weights {weights}: one for each of {len(self.rewards)} rewards, not below 0, not all 0")

    @property
    def identity(self) -> dict[str, Any]:
        return {**super().identity, "weights": self.weights and list(self.weights)}

    def __call__(
        self, sources: Texts, hypotheses: Texts, references: Texts | None, groups: Groups | None = None
    ) -> np.ndarray:
        each = self._each(sources, hypotheses, references, groups)
        return np.average(each, axis=0, weights=self.weights).astype(np.float32)


@dataclass(frozen=True)
class Minimum(_Joined):
    """The lowest: a hypothesis must please every reward."""

    def __call__(
        self, sources: Texts, hypotheses: Texts, references: Texts | None, groups: Groups | None = None
    ) -> np.ndarray:
        return self._each(sources, hypotheses, references, groups).min(0)


@dataclass(frozen=True)
class Conservative(_Joined):
    """The mean less `caution` standard deviations: what rewards disagree on counts less (Coste et al. 2024)."""

    caution: float = 1.0

    @property
    def identity(self) -> dict[str, Any]:
        return {**super().identity, "caution": self.caution}

    def __call__(
        self, sources: Texts, hypotheses: Texts, references: Texts | None, groups: Groups | None = None
    ) -> np.ndarray:
        each = self._each(sources, hypotheses, references, groups)
        return np.clip(each.mean(0) - self.caution * each.std(0), 0, 1)


@dataclass(frozen=True)
class RankMean(_Joined):
    """The mean of ranks: rewards of unlike distributions weigh the same.

    The rank of a reward is its share of a fixed set of hypotheses that score lower (`on` takes them), so that a score
    does not depend on what is scored beside it.
    """

    quantiles: tuple[tuple[float, ...], ...] = ()
    """Of each reward on that set, ascending."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.quantiles) != len(self.rewards):
            raise UserError("RankMean needs the quantiles of each of its rewards; make it with RankMean.on")

    @classmethod
    def on(
        cls,
        rewards: tuple[Reward, ...],
        sources: Texts,
        hypotheses: Texts,
        references: Texts | None,
        groups: Groups | None = None,
        points: int = 101,
    ) -> RankMean:
        """Ranks among these hypotheses."""
        at = np.linspace(0, 1, points)
        found = (np.quantile(reward(sources, hypotheses, references, groups).reward, at) for reward in rewards)
        return cls(rewards, tuple(tuple(float(q) for q in values) for values in found))

    @property
    def identity(self) -> dict[str, Any]:
        return {**super().identity, "quantiles": [list(values) for values in self.quantiles]}

    def __call__(
        self, sources: Texts, hypotheses: Texts, references: Texts | None, groups: Groups | None = None
    ) -> np.ndarray:
        each = self._each(sources, hypotheses, references, groups)
        ranks = [_rank(values, np.asarray(knots)) for values, knots in zip(each, self.quantiles, strict=True)]
        return np.stack(ranks).mean(0).astype(np.float32)


@dataclass(frozen=True)
class Shortlist:
    """The mean of a cheap reward and a dear one, which reads no more than the texts of a source that the first likes.

    Lists of hypotheses are pruned like this before quality estimation reranks them (Fernandes et al. 2022,
    "Quality-Aware Decoding for Neural Machine Translation"). The dear one gives 0 to what it does not read, so that
    nothing comes above what is on the list by being left out.
    """

    cheap: Reward
    dear: Reward
    best: int = 8
    """So many different texts of each source."""
    weight: float = 0.5
    """Of the dear one."""
    compares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.dear.compares:
            raise UserError(
                f"Shortlist: {self.dear.name} compares the samples of a source, and would see those on the list alone: "
                "let it make the list"
            )
        if self.best < 1 or not 0 < self.weight < 1:
            raise UserError(f"Shortlist: best {self.best} must be at least 1, weight {self.weight} between 0 and 1")

    @property
    def identity(self) -> dict[str, Any]:
        rewards = {"cheap": self.cheap.settings, "dear": self.dear.settings}
        return {"shortlist": self.best, "weight": self.weight, **rewards}

    def fitted(self, fit: Callable[[Guards], Guards]) -> Shortlist:
        """With the guards of both fitted."""
        return replace(self, cheap=self.cheap.fitted(fit), dear=self.dear.fitted(fit))

    def __call__(self, sources: Texts, hypotheses: Texts, references: Texts | None, groups: Groups) -> np.ndarray:
        """Float32 [n] in [0, 1]."""
        cheap = self.cheap(sources, hypotheses, references, groups).reward
        lists: dict[int, dict[str, int]] = {
            int(group): {} for group in groups.ids
        }  # text -> the row that stands for it
        for row in sorted(np.flatnonzero(groups.peers).tolist(), key=lambda row: (-cheap[row], hypotheses[row])):
            texts = lists[int(groups.ids[row])]
            if len(texts) < self.best:
                texts.setdefault(hypotheses[row], row)

        def stands_for(row: int) -> int | None:
            texts = lists[int(groups.ids[row])]
            if groups.peers[row] or hypotheses[row] in texts:
                return texts.get(hypotheses[row])
            # what is no sample is read where it would be on the list, and takes no sample's place
            listed = len(texts) < self.best or cheap[row] >= min(cheap[other] for other in texts.values())
            return row if listed else None

        where = [stands_for(row) for row in range(len(hypotheses))]
        rows = sorted({row for row in where if row is not None})
        x, y = ([side[row] for row in rows] for side in (sources, hypotheses))
        wanted = None if references is None else [references[row] for row in rows]
        dear = dict(zip(rows, self.dear(x, y, wanted).reward, strict=True))
        read = np.array([0.0 if row is None else dear[row] for row in where], np.float32)
        return ((1 - self.weight) * cheap + self.weight * read).astype(np.float32)


def _rank(values: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Share of the quantiles below each value, half of those equal to it; float64 [n] in [0, 1]."""
    below, upto = (np.searchsorted(quantiles, values, side=side) for side in ("left", "right"))
    return (below + upto) / (2 * len(quantiles))


@dataclass(frozen=True)
class Cached:
    """A reward function whose scores are kept in an SQLite file; many processes may share it.

    A score is found by the hash of the function's identity, source, hypothesis and reference, so a function that
    changes finds none of its old ones. One that compares samples depends on more than that, and is refused. What is not
    a finite number is not kept.
    """

    function: RewardFunction | WithoutReferences
    path: Path

    def __post_init__(self) -> None:
        if compares(self.function):
            raise UserError(
                f"Cached keeps the score of a text by itself, but {name_of(self.function)} compares the samples of a "
                "source: leave it out of the cache, and cache what it is joined with"
            )

    @property
    def identity(self) -> Any:
        return identify(self.function)  # what is kept is what would be computed

    @property
    def scale(self) -> tuple[float, float]:
        """Of the function; AttributeError where it has none, as of the function itself."""
        function: Any = self.function
        return function.scale

    def __call__(self, sources: Texts, hypotheses: Texts, references: Texts | None) -> np.ndarray:
        own = json.dumps(self.identity, sort_keys=True).encode()
        given: Sequence[str | None] = [None] * len(sources) if references is None else references
        keys = [
            hashlib.sha256(own + json.dumps(row, ensure_ascii=True).encode()).digest()
            for row in zip(sources, hypotheses, given, strict=True)
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as store:
                store.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, score REAL) WITHOUT ROWID")
                known = _look_up(store, keys)
                first = {key: row for row, key in reversed(list(enumerate(keys))) if key not in known}
                rows = sorted(first.values())
                if rows:
                    x, y = ([side[row] for row in rows] for side in (sources, hypotheses))
                    wanted = None if references is None else [references[row] for row in rows]
                    scores = np.asarray(with_references(self.function)(x, y, wanted), np.float32)
                    new = {keys[row]: float(score) for row, score in zip(rows, scores, strict=True)}
                    kept = [(key, score) for key, score in new.items() if math.isfinite(score)]  # may be mended
                    with store:
                        store.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", kept)
                    known |= new
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self.path}: not a cache of scores that can be used: {error}") from error
        return np.asarray([known[key] for key in keys], np.float32)


def _look_up(store: sqlite3.Connection, keys: list[bytes]) -> dict[bytes, float]:
    """The scores that are known."""
    found: dict[bytes, float] = {}
    unique = list(dict.fromkeys(keys))
    for at in range(0, len(unique), 500):  # SQLite limits the parameters of a statement
        part = unique[at : at + 500]
        marks = ",".join("?" * len(part))
        found.update(store.execute(f"SELECT key, score FROM scores WHERE score IS NOT NULL AND key IN ({marks})", part))
    return found
