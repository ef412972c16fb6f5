"""A reward that another run has learned, for a run that does not train it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rest.data.corpus import Cleaning, cleaning_of
from rest.errors import UserError
from rest.identity import describe
from rest.reward.learned.network import LearnedReward
from rest.reward.reward import Calibration


def network_folder(folder: Path) -> Path | None:
    """Where a learned reward is saved: in its own folder, its stage's or a run's; None where there is none."""
    for candidate in (folder, folder / "network", folder / "reward" / "network"):
        if (candidate / "reward.json").is_file():
            return candidate
    return None


@dataclass(frozen=True)
class SavedReward:
    """The learned reward in the folder of a run, as a reward function or as the judge of another run.

    It reads texts as that run cleaned its own, and gives the rewards in [0, 1] that it gives there, but for that run's
    guards: this run has its own (`Reward(SavedReward(folder), guards=Guards())`).
    """

    folder: Path
    """Of the run, or of its stage: runs/mine, runs/mine/reward-2."""
    sources: Any = None  # Callable[[str], str]
    """What is done to sources first, such as Detokenizer("de") to tokenized ones."""
    hypotheses: Any = None  # Callable[[str], str]
    """The same of hypotheses."""
    raw: bool = False
    """Give the scores behind the rewards, for a scale of your own: a reward tells nothing apart that is worse than all
    that its run had rated."""

    @cached_property
    def _read(self) -> tuple[LearnedReward, Calibration, Cleaning]:
        """Read on first use."""
        if (network := network_folder(self.folder)) is None:
            raise UserError(f"{self.folder}: no learned reward there; `rest reward train` makes one")
        return *LearnedReward.load(network), cleaning_of(self.folder)

    @property
    def network_identity(self) -> str:
        """Of what was learned, whatever is done to texts and scores."""
        return self._read[0].identity

    @property
    def identity(self) -> str:
        """What decides the scores, but not where the folder is."""
        network, calibration, cleaning = self._read
        own = calibration, cleaning, self.sources, self.hypotheses, self.raw
        return f"{network.identity} {describe(own)}"

    def __call__(self, sources: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        """Float32 [n]."""
        network, calibration, cleaning = self._read
        x = _written(sources, self.sources, cleaning)
        scores = network(x, _written(hypotheses, self.hypotheses, cleaning), None)
        return scores if self.raw else calibration(scores)


def _written(texts: Sequence[str], change: Callable[[str], str] | None, cleaning: Cleaning) -> list[str]:
    return [cleaning.line(text if change is None else change(text)) for text in texts]
