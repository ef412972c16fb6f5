"""Grow step g: D_g, sampled, scored and stored."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rest.data.store import ScoredDataset
from rest.folder import StageFolder, StageName, read_json
from rest.grow import grow, open_dataset
from rest.identity import describe
from rest.journal import say
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
        further = [{"samples_per_source": n, "sampling": drawn} for n, drawn in grow.distributions(e.grow_sampling)[1:]]
        known |= {"grow": describe(grow) | {"sampling": e.grow_sampling, "further": further}}
        if e.grow.beams:
            known["length_penalty"] = e.beam.length_penalty
            known |= {"exhaustive": True} if e.beam.exhaustive else {}
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
            beam=e.beam,
            before=self._drawn_before(folder),
            machine=e.machine,
        )

    def _drawn_before(self, folder: StageFolder) -> ScoredDataset | None:
        """A dataset beside this one that differs in nothing but the reward: in a study, one of another variant."""

        def draws(settings: dict[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in settings.items() if name != "reward"}

        for other in sorted(folder.final.parent.glob(f"{self.path}-*/stage.json")):
            if draws(read_json(other)["settings"]) == draws(folder.settings):
                say(f"grow {self.g}: the samples are those of {other.parent.name}, scored anew")
                return open_dataset(other.parent)
        return None

    def read(self, inputs: Inputs, folder: Path) -> ScoredDataset:
        return open_dataset(folder)
