"""What several processes make together, for tests: `python tests/several.py FOLDER [all | on]`, once in each process.

`all` makes every case on every mesh, for a table; `on` goes on with what others left in the folder.

The tests make the same on one device, and hold both against each other.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rest import processes
from rest.baselines.bc import clone, dev_loss
from rest.baselines.updates import CriticUpdate, PolicyUpdate
from rest.data.batches import BatchSettings, Examples
from rest.data.corpus import Cleaning, Corpus, SyntheticCorpus
from rest.data.synthetic import SyntheticLanguage
from rest.data.tokenizer import SentencePieceSettings
from rest.errors import UserError
from rest.learning.learner import Learner
from rest.learning.lora import Trainable
from rest.learning.losses import NLL, VMPO
from rest.learning.mesh import MachineSettings, training_mesh
from rest.learning.optimizers import Adam, Schedule
from rest.learning.surrogate import ClippedSurrogate, ClippedValue
from rest.learning.train import TrainSettings, shuffled
from rest.model.layers import TransformerSettings
from rest.policy.beam import BeamSettings, translate
from rest.policy.policy import Policy, PolicyObjective, token_log_probs
from rest.policy.sampler import SamplingSettings, sample
from rest.policy.value import Value
from rest.reward.learned.network import LearnedReward, RewardObjective
from rest.reward.reward import Reward

BATCH = BatchSettings(batch_tokens=768, source_tokens=96, target_tokens=96)  # 8 rows
UPDATES = 4
ADAM, SCHEDULE = Adam(epsilon=1e-4), Schedule(1e-2)  # of gradients that are 0 but for rounding, nothing is made
ONE = MachineSettings(rows=8)
MESHES = {  # of four devices
    "data 4": ONE,
    "fsdp 4": MachineSettings(fsdp=4),
    "fsdp 2 x model 2": MachineSettings(fsdp=2, model=2),
    "model 4": MachineSettings(model=4),
}
CASES = {"vmpo": "data 4", "reward": "fsdp 4", "ppo": "model 4"}  # of the tests; BC is trained on fsdp 2 x model 2


class Parts:
    """A policy, its text as examples, and numbers for every loss."""

    def __init__(self) -> None:
        self.corpus: Corpus = SyntheticCorpus(SyntheticLanguage(train=80, dev=9, test=8)).load(Cleaning())
        train = self.corpus.train
        tokenizer = SentencePieceSettings(192).train([train.sources, train.references or []], 0)
        layers = {"encoder_layers": 1, "decoder_layers": 1}
        settings = TransformerSettings(width=32, heads=4, feed_forward=64, dropout=0.1, **layers)
        self.policy = Policy.new(settings, tokenizer, 1)
        random = np.random.default_rng(0)
        targets = self.policy.encode_references(train.references or [])
        numbers = {name: random.random(len(targets), np.float32) for name in ("reward", "rating")}
        numbers["group"] = np.arange(len(targets), dtype=np.float32) // 2
        numbers["human"] = np.zeros(len(targets), np.float32)
        of_tokens = "value", "anchor_log_probs", "log_probs", "advantages", "values", "returns"
        columns = {name: [random.normal(-2, 1, len(y)).astype(np.float32) for y in targets] for name in of_tokens}
        self.examples = Examples(self.policy.encode_sources(train.sources), targets, numbers, token_columns=columns)

    def losses(self, case: str, machine: MachineSettings) -> list[float]:
        """The losses of a few updates."""
        vmpo, surrogate = VMPO(), PolicyUpdate(ClippedSurrogate(), None, 0.9, 0.0)
        start, objective, duals = {
            "nll": lambda: (self.policy, PolicyObjective(NLL()), None),
            "vmpo": lambda: (self.policy, PolicyObjective(vmpo), vmpo.dual_variables()),
            "reward": lambda: (LearnedReward.new(self.policy, BATCH), RewardObjective(), None),
            "ppo": lambda: (self.policy, surrogate, None),
            "critic": lambda: (Value.start(self.policy), CriticUpdate(ClippedValue()), None),
        }[case]()
        learner: Learner[Any] = Learner.begin(
            start, objective, ADAM, SCHEDULE, Trainable(), seed=0, machine=machine, dual_variables=duals
        )
        batches, _ = shuffled(self.examples, BATCH, pad_id=self.policy.tokenizer.pad_id, seed=3, machine=machine)
        return [float(learner.update(next(batches), jax.random.key(k))["loss"]) for k in range(UPDATES)]

    def trained(self, folder: Path, machine: MachineSettings, steps: int) -> list[tuple[int, float]]:
        """The scores of behavioural cloning that is evaluated at every other update, and goes on in the folder."""
        how = TrainSettings(max_steps=steps, evaluate_every=2, schedule=SCHEDULE, optimizer=ADAM)
        score = dev_loss(self.policy, self.corpus.dev, BATCH)
        known: dict[str, Any] = {"evaluate": score, "folder": folder, "seed": 0, "description": "bc"}
        return clone(self.policy, self.corpus.train, 0.0, how, BATCH, machine=machine, **known).history

    def drawn(self, machine: MachineSettings) -> dict[str, Any]:
        """Samples, their log-probabilities and greedy outputs: of each process for a part of the sources."""
        dev, sampling = self.corpus.dev, SamplingSettings(max_target_tokens=8)
        drawn = sample(self.policy, dev.sources, dev.ids, 2, sampling, seed=0, machine=machine)
        return {
            "samples": [[y.tolist() for y in of_source] for of_source in drawn.tokens],
            "log_probs": [float(y.sum()) for of_source in drawn.log_probs for y in of_source],
            "finished": drawn.finished.tolist(),
            "greedy": translate(self.policy, dev.sources, BeamSettings(1, max_target_tokens=8), machine),
        }

    def scored(self) -> dict[str, Any]:
        """Log-probabilities and rewards: of each process a part."""
        dev = self.corpus.dev
        reward = Reward(lambda sources, hypotheses: np.asarray([len(y) for y in hypotheses], np.float32), (0.0, 50.0))
        return {
            "scored": [float(x.sum()) for x in token_log_probs(self.policy, self.examples, BATCH)],
            "rewards": reward(dev.sources, dev.references or [], None).reward.tolist(),
        }


def refused(act: Callable[[], Any]) -> str:
    try:
        act()
    except UserError as error:
        return str(error)
    return "nothing"


def _only_the_last(own: slice) -> int:
    if own.stop == 4:
        raise UserError("a mistake of one")
    return 0


def told_exactly() -> list[bool]:
    """Whether each process gets what each gave."""
    given = {"whole": np.int64(2**40) + np.arange(3), "lists": [np.arange(3), np.arange(0), np.arange(2)], "no": None}
    given["large"] = np.arange(50_000)  # by the devices
    return [
        each["who"] == process
        and each["no"] is None
        and each["whole"].tolist() == [2**40, 2**40 + 1, 2**40 + 2]
        and [row.tolist() for row in each["lists"]] == [[0, 1, 2], [], [0, 1]]
        and np.array_equal(each["large"], given["large"])
        for process, each in enumerate(processes.exchange({**given, "who": processes.index()}))
    ]


def main(out: Path, what: str) -> None:
    if "REST_PROCESSES" in os.environ:
        processes.join()
    parts = Parts()
    if what == "on":
        (out / "on.json").write_text(json.dumps(parts.trained(out / "bc", MESHES["fsdp 4"], 4)))
        return
    if what == "all":
        cases = [(case, mesh) for case in ("nll", "vmpo", "reward", "ppo", "critic") for mesh in MESHES]
    else:
        cases = list(CASES.items())
    meshes = MESHES if jax.device_count() == 4 else dict.fromkeys(MESHES, ONE)
    found: dict[str, Any] = {f"{case}, {mesh}": parts.losses(case, meshes[mesh]) for case, mesh in cases}
    found["trained"] = parts.trained(out / "bc", meshes["fsdp 2 x model 2"], 2)
    processes.done.clear()
    found["drawn"], found["scored"] = parts.drawn(ONE), parts.scored()
    found["work"] = processes.exchange(dict(processes.done))
    if what == "some":
        found["drawn by parts"] = parts.drawn(replace(ONE, model=2))
    found["exact"] = told_exactly()
    found["refused"] = [
        refused(lambda: training_mesh(MachineSettings(fsdp=3))),
        refused(lambda: shuffled(parts.examples, replace(BATCH, batch_tokens=96 * 6), pad_id=0, seed=0)),
        refused(lambda: processes.divided(4, _only_the_last)),
    ]
    processes.first(lambda: (out / "found.json").write_text(json.dumps(found)))
    processes.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(sys.argv[2:] or ["some"]))
