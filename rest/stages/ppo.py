"""Online RL from BC, for comparison."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rest.baselines.bc import human_pairs
from rest.baselines.ppo import ppo
from rest.data.corpus import Split
from rest.folder import StageFolder, StageName
from rest.grow import grow_sources
from rest.policy.policy import Policy
from rest.reward.reward import Reward
from rest.stages.inputs import Inputs, finish_policy, hash_text


@dataclass(frozen=True)
class PPO:
    """PPO on the sources that Grow has, with the same reward."""

    bc: Policy
    reward: Reward
    path: str = StageName("ppo").folder

    shared: ClassVar[bool] = False

    def settings(self, inputs: Inputs) -> dict[str, Any]:
        e = inputs.experiment
        known = {"policy": self.bc.identity, "reward": self.reward.settings, "ppo": e.ppo, "batch": e.batch}
        known |= {"max_target_tokens": e.sampling.max_target_tokens, "choose": inputs.choose}
        return known | {"text": hash_text(_sources(inputs)), **inputs.share}

    def make(self, inputs: Inputs, folder: StageFolder) -> None:
        e, pairs = inputs.experiment, inputs.parts.bc
        policy, result = ppo(
            self.bc,
            _sources(inputs),
            human_pairs(self.bc, pairs) if e.ppo.pretraining else None,
            self.reward,
            e.ppo,
            e.batch,
            max_target_tokens=e.sampling.max_target_tokens,
            evaluate=inputs.on_dev(self.reward),
            folder=folder.path,
            seed=e.seed,
            machine=e.machine,
        )
        finish_policy(folder, policy, result | {"sources": _overlap(inputs), "chosen_by": e.choose.name})

    def read(self, inputs: Inputs, folder: Path) -> Policy:
        return inputs.policy(folder / "policy")


def _sources(inputs: Inputs) -> Split:
    """What PPO draws for."""
    e = inputs.experiment
    return grow_sources([inputs.parts.grow], e.ppo.sources, 1, e.seed)[0]


def _overlap(inputs: Inputs) -> dict[str, int]:
    """How many sources BC, the ratings and PPO have, and how many two of them share."""
    parts = inputs.parts
    ids = {"bc": parts.bc.ids, "ratings": parts.rated.ids, "ppo": _sources(inputs).ids}
    shared = {f"{a} and {b}": len(np.intersect1d(ids[a], ids[b])) for a, b in itertools.combinations(ids, 2)}
    return {name: len(rows) for name, rows in ids.items()} | shared
