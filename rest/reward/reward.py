"""The reward R(x, y): any function of sources and hypotheses, mapped to [0, 1]."""

from __future__ import annotations

import hashlib
import json
import math
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from rest.errors import UserError
from rest.stage import describe


@runtime_checkable
class RewardFunction(Protocol):
    """Scores of n hypotheses, float32 [n]. They may not depend on batch size or order. Any Python function will do."""

    def __call__(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None, /
    ) -> np.ndarray: ...


@dataclass(frozen=True)
class Scored:
    """n scores before and after the scale."""

    raw: np.ndarray  # float32 [n]
    reward: np.ndarray  # float32 [n] in [0, 1]
    clipped: int  # scores outside the scale


@dataclass(frozen=True)
class Reward:
    """A reward function and the scale that maps its scores to [0, 1]."""

    function: RewardFunction
    scale: tuple[float, float] | None = None
    """Raw scores that become 0 and 1; what falls outside is clipped and counted. None: scores must be in [0, 1]."""

    def __post_init__(self) -> None:
        if self.scale is not None:
            low, high = self.scale
            if not (math.isfinite(low) and math.isfinite(high)) or low == high:
                raise UserError(f"reward {self.name}: its scale ({low}, {high}) must be two different numbers")

    @property
    def name(self) -> str:
        function: Any = self.function
        return getattr(function, "__qualname__", type(function).__qualname__)

    @property
    def settings(self) -> dict[str, Any]:
        """What the scores depend on: the function (its own identity if it has one, else its source and settings)."""
        own = getattr(self.function, "identity", None) or describe(self.function)
        return {"function": own, "scale": describe(self.scale)}

    @property
    def identity(self) -> str:
        """Hash of the settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()

    def __call__(self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None) -> Scored:
        """Score hypotheses; a score that cannot be used is an error that names the first hypothesis it is given to."""
        n = len(hypotheses)
        try:
            raw = np.asarray(self.function(sources, hypotheses, references))
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
        raw = raw.astype(np.float32)
        self._refuse(~np.isfinite(raw), raw, hypotheses, "is not a finite number")
        if self.scale is None:
            outside = (raw < 0) | (raw > 1)
            self._refuse(outside, raw, hypotheses, "is outside [0, 1] and the reward has no scale")
            return Scored(raw, raw, 0)
        low, high = self.scale
        scaled = (raw - np.float32(low)) / np.float32(high - low)
        reward = np.clip(scaled, 0, 1).astype(np.float32)
        return Scored(raw, reward, int((scaled != reward).sum()))

    def _refuse(self, bad: np.ndarray, raw: np.ndarray, hypotheses: Sequence[str], why: str) -> None:
        if bad.any():
            first = int(bad.argmax())
            raise UserError(
                f"reward {self.name}: the score {raw[first]} of hypothesis {first} "
                f"({hypotheses[first][:60]!r}) {why}; {int(bad.sum())} of {len(raw)} are so"
            )


def raw_scores(
    function: RewardFunction, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
) -> np.ndarray:
    """A function's scores, float32 [n], refused with the same words as a Reward's where they cannot be used."""
    return Reward(function, (0.0, 1.0))(sources, hypotheses, references).raw  # any scale: raw scores know none
