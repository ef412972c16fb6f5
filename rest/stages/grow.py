"""Grow step g: D_g, sampled, scored and stored."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rest.data.store import ScoredDataset
from rest.folder import StageFolder, StageName, describe
from rest.grow import grow, open_dataset
from rest.policy.policy import Policy
from rest.reward.reward import Reward
from rest.stages.inputs import Inputs, hash_text


@dataclass(frozen=True)
class Grow:
    """D_g of the policy's samples; any number of processes may make it together."""

    g: int
    policy: Policy
    reward: Reward

    shared: ClassVar[bool] = True

    @property
    def path(self) -> str:
        return StageName("grow", self.g).folder

    def settings(self, inputs: Inputs) -> dict[str, Any]:
        e, text = inputs.experiment, inputs.untranslated
        grow = e.grow if text is None else dataclasses.replace(e.grow, text=Path("text"))  # where it is, is no matter
        known = {"policy": self.policy.identity, "reward": self.reward.settings, "step": self.g}
        known |= {"grow": describe(grow) | {"sampling": e.grow_sampling}}
        if e.grow.training_text:
            known["sources"] = hash_text(inputs.parts.grow)
        return known | ({} if text is None else {"text": hash_text(text)})

    def make(self, inputs: Inputs, folder: StageFolder) -> None:
        e, text = inputs.experiment, inputs.untranslated
        splits = [inputs.parts.grow] * e.grow.training_text + ([] if text is None else [text])
        settings = dataclasses.replace(e.grow, guards=inputs.fitted(e.grow.guards))
        grow(
            folder,
            self.policy,
            splits,
            self.reward,
            settings,
            e.grow_sampling,
            g=self.g,
            seed=e.seed,
            machine=e.machine,
        )

    def read(self, inputs: Inputs, folder: Path) -> ScoredDataset:
        return open_dataset(folder)
