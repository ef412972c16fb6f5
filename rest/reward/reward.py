"""The reward R(x, y): any function of sources and hypotheses, mapped to [0, 1]."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np

from rest import processes
from rest.errors import UserError
from rest.identity import describe
from rest.reward.guards import Guards


class Groups(NamedTuple):
    """Which of n hypotheses are of one source, for a reward that compares the samples of a source with each other."""

    ids: np.ndarray  # int64 [n]: rows of one source have one number, whether they stand together or not
    peers: np.ndarray  # bool [n]: a sample, which other rows of its source are compared with; False: a human's, say

    @classmethod
    def of_samples(cls, sources: int, n: int) -> Groups:
        """Of n samples for each source, source by source."""
        return cls(np.repeat(np.arange(sources, dtype=np.int64), n), np.ones(sources * n, bool))


@runtime_checkable
class RewardFunction(Protocol):
    """Scores of n hypotheses, float32 [n]. They may not depend on batch size or order. Any Python function will do.

    One that does not want the references takes two arguments (`with_references`). One whose scores depend on the
    other samples of a source says so by an attribute, `compares = True`, and takes a fourth argument, the Groups.
    """

    def __call__(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None, /
    ) -> np.ndarray: ...


WithoutReferences = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""(sources, hypotheses) -> float32 [n]: a reward function that does not want the references."""


@runtime_checkable
class Joins(Protocol):
    """A reward function of other rewards, whose guards may have something to learn."""

    def fitted(self, fit: Callable[[Guards], Guards]) -> Any:
        """With their guards fitted."""
        ...


def name_of(function: Any) -> str:
    """What a function, or the class of an object that can be called, is named."""
    return getattr(function, "__qualname__", type(function).__qualname__)


def compares(function: Any) -> bool:
    """Whether a function's scores depend on the other samples of a source, so that it is called with Groups."""
    return bool(getattr(function, "compares", False))


@dataclass(frozen=True)
class _Comparing:
    """A function that compares samples, which says what is amiss where it is given none to compare."""

    function: Any
    compares: ClassVar[bool] = True

    def __call__(
        self,
        sources: Sequence[str],
        hypotheses: Sequence[str],
        references: Sequence[str] | None,
        groups: Groups | None = None,
    ) -> np.ndarray:
        if groups is None:
            raise UserError(
                f"reward {name_of(self.function)}: compares the samples of a source with each other and cannot score "
                "texts by themselves; give it the Groups of the rows, or choose another reward here"
            )
        return self.function(sources, hypotheses, references, groups)


def with_references(function: RewardFunction | WithoutReferences) -> RewardFunction:
    """The function as one of three arguments, whether it has two or three; UserError for one that has others.

    A third argument that may be left out gets the references only if it is named `references`. A function that
    `compares` takes the Groups as a fourth.
    """
    called: Any = function
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # something in C that does not say
        return called
    parameters = list(signature.parameters.values())
    needed = [p for p in parameters[2:3] if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    wants_references = needed or any(p.name == "references" or p.kind is p.VAR_POSITIONAL for p in parameters[:3])
    ways = "(sources, hypotheses) or (sources, hypotheses, references)"
    given = ["sources", "hypotheses", *(["references"] if wants_references else [])]
    if compares(called):
        ways, given = "(sources, hypotheses, references, groups), since it compares", [*"xyzg"]
    try:
        signature.bind(*given)
    except TypeError as error:
        raise UserError(f"reward {name_of(function)}: takes {signature}, but is called as {ways}") from error
    if compares(called):
        return called if isinstance(called, _Comparing) else _Comparing(called)
    if wants_references:
        return called

    def of_three(sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None) -> np.ndarray:
        return called(sources, hypotheses)

    of_three.__qualname__ = name_of(function)  # for messages
    return of_three


def identify(function: Any) -> Any:
    """What the scores of a function depend on: its own `identity` if it has one, else its source and settings."""
    return getattr(function, "identity", None) or describe(function)


@dataclass(frozen=True)
class Scored:
    """n scores before and after the scale."""

    raw: np.ndarray  # float32 [n]
    reward: np.ndarray  # float32 [n] in [0, 1]
    clipped: int  # scores outside the scale


@dataclass(frozen=True)
class Calibration:
    """A rising line of straight pieces from raw scores to [0, 1], flat beyond its ends."""

    scores: tuple[float, ...]  # ascending
    rewards: tuple[float, ...]  # not falling, in [0, 1]

    def __post_init__(self) -> None:
        x, y = np.asarray(self.scores), np.asarray(self.rewards)
        rising = len(x) == len(y) > 1 and np.isfinite(x).all() and (np.diff(x) > 0).all() and (np.diff(y) >= 0).all()
        if not rising or y[0] < 0 or y[-1] > 1:
            raise UserError(f"calibration: {self.scores} must rise and {self.rewards} not fall, within [0, 1]")

    @property
    def ends(self) -> tuple[float, float]:
        return self.scores[0], self.scores[-1]

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        return np.interp(raw.astype(np.float64), self.scores, self.rewards).astype(np.float32)


@dataclass(frozen=True)
class Reward:
    """A reward function, what maps its scores to [0, 1], and what it may not be trusted on."""

    function: Any  # RewardFunction | WithoutReferences; the settings of a union would be no flags
    scale: Any = None  # (low, high), Calibration or None; as a flag a union of these would be words without a name
    """Raw scores that become 0 and 1; what falls outside is clipped and counted. None: scores must be in [0, 1]."""
    guards: Guards | None = None
    """The reward of what they flag is 0, whatever the score."""

    def __post_init__(self) -> None:
        with_references(self.function)  # which refuses another signature before anything is scored
        if isinstance(self.scale, tuple):
            low, high = self.scale
            if not (math.isfinite(low) and math.isfinite(high)) or low == high:
                raise UserError(f"reward {self.name}: its scale ({low}, {high}) must be two different numbers")

    @property
    def range(self) -> tuple[float, float] | None:
        """Raw scores beyond which nothing is told apart."""
        return self.scale.ends if isinstance(self.scale, Calibration) else self.scale

    @property
    def name(self) -> str:
        return name_of(self.function)

    @property
    def compares(self) -> bool:
        """Whether the function compares the samples of a source with each other, and needs the Groups."""
        return compares(self.function)

    def fitted(self, fit: Callable[[Guards], Guards]) -> Reward:
        """With guards that have learned what they ask for, its own and those of rewards that it joins."""
        function = self.function.fitted(fit) if isinstance(self.function, Joins) else self.function
        return replace(self, function=function, guards=None if self.guards is None else fit(self.guards))

    @property
    def settings(self) -> dict[str, Any]:
        """What the scores depend on: the function (its own identity if it has one, else its source and settings)."""
        guarded = {} if self.guards is None else {"guards": self.guards.settings}
        return {"function": identify(self.function), "scale": describe(self.scale), **guarded}

    @property
    def identity(self) -> str:
        """Hash of the settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()

    def __call__(
        self,
        sources: Sequence[str],
        hypotheses: Sequence[str],
        references: Sequence[str] | None,
        groups: Groups | None = None,
    ) -> Scored:
        """Score hypotheses; a score that cannot be used is an error that names the first hypothesis it is given to.

        `groups` may always be given, and must be where the reward `compares`.
        """
        which = np.arange(len(hypotheses))
        if self.compares and groups is not None:  # those of a source together
            which = np.unique(groups.ids, return_inverse=True)[1]

        def work(own: slice) -> dict[str, np.ndarray]:
            rows = np.flatnonzero((which >= own.start) & (which < own.stop))
            chosen = rows.tolist()
            x, y = [sources[r] for r in chosen], [hypotheses[r] for r in chosen]
            some = None if groups is None else Groups(groups.ids[rows], groups.peers[rows])
            processes.done["rewarded"] += len(rows)
            z = None if references is None else [references[r] for r in chosen]
            return {"rows": rows, "raw": self._raw(x, y, z, some)}

        parts = processes.divided(int(which.max(initial=-1)) + 1, work)
        raw = np.zeros(len(hypotheses), np.float32)
        for part in parts:
            raw[part["rows"]] = part["raw"]
        self._refuse(~np.isfinite(raw), raw, hypotheses, "is not a finite number")
        if self.scale is None:
            outside = (raw < 0) | (raw > 1)
            self._refuse(outside, raw, hypotheses, "is outside [0, 1] and the reward has no scale")
            return Scored(raw, self._guarded(raw, sources, hypotheses), 0)
        if isinstance(self.scale, Calibration):
            low, high = self.scale.ends
            clipped = int(((raw < low) | (raw > high)).sum())
            return Scored(raw, self._guarded(self.scale(raw), sources, hypotheses), clipped)
        low, high = self.scale
        scaled = (raw - np.float32(low)) / np.float32(high - low)
        reward = np.clip(scaled, 0, 1).astype(np.float32)
        return Scored(raw, self._guarded(reward, sources, hypotheses), int((scaled != reward).sum()))

    def _raw(
        self,
        sources: Sequence[str],
        hypotheses: Sequence[str],
        references: Sequence[str] | None,
        groups: Groups | None,
    ) -> np.ndarray:
        """The function's own scores, float32 [n]; UserError where it gives something else."""
        n, function = len(hypotheses), with_references(self.function)
        further = [groups] if self.compares else []
        try:
            raw = np.asarray(function(sources, hypotheses, references, *further))
        except UserError:
            raise
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {error} ({frame.filename}, line {frame.lineno})"
            raise UserError(f"reward {self.name}: raised {what}") from error
        if raw.shape != (n,):
            raise UserError(f"reward {self.name}: returned shape {raw.shape} for {n} hypotheses, not ({n},)")
        if not np.issubdtype(raw.dtype, np.number) or np.issubdtype(raw.dtype, np.complexfloating):
            raise UserError(f"reward {self.name}: returned {raw.dtype}, not numbers")
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused
            return raw.astype(np.float32)

    def _guarded(self, reward: np.ndarray, sources: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        if self.guards is None:
            return reward
        flagged = np.asarray([bool(flags) for flags in self.guards.flags(sources, hypotheses)], bool)
        return np.where(flagged, np.float32(0), reward)

    def _refuse(self, bad: np.ndarray, raw: np.ndarray, hypotheses: Sequence[str], why: str) -> None:
        if bad.any():
            first = int(bad.argmax())
            raise UserError(
                f"reward {self.name}: the score {raw[first]} of hypothesis {first} "
                f"({hypotheses[first][:60]!r}) {why}; {int(bad.sum())} of {len(raw)} are so"
            )


def raw_scores(
    function: RewardFunction | WithoutReferences,
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[str] | None,
) -> np.ndarray:
    """A function's scores, float32 [n], refused with the same words as a Reward's where they cannot be used."""
    return Reward(function, (0.0, 1.0))(sources, hypotheses, references).raw  # any scale: raw scores know none
