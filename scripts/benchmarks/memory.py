"""Memory of online RL: everything trained, a LoRA that shares its base with the anchor, frozen parts.

    python scripts/benchmarks/memory.py [--width 512 --layers 6] [--out memory.json]

Each line is a process of its own: random weights, four rollouts of RLOO (no critic, so that what is trained shows) or
of PPO, few and short hypotheses, so that parameters and the optimizer weigh more than activations. `arrays` are the
arrays that live between two updates, `peak` the most memory the process had, less what it had before the policy was
made.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from workload import sizes

from rest.baselines.ppo import PPOSettings, ppo
from rest.baselines.rollout import RolloutSettings
from rest.data.batches import BatchSettings
from rest.data.corpus import Cleaning, SyntheticCorpus
from rest.data.synthetic import SyntheticLanguage
from rest.data.tokenizer import SentencePieceSettings
from rest.folder import write_json
from rest.learning.lora import LoRA, Trainable
from rest.learning.mesh import MachineSettings
from rest.learning.returns import GAE, LeaveOneOut
from rest.policy.policy import Policy
from rest.reward.reward import Reward

MEGABYTE = 1024 * 1024
TRAINED = {
    "everything": Trainable(),
    "LoRA of rank 8": Trainable(lora=LoRA(rank=8)),
    "decoder alone": Trainable(freeze_encoder=True, freeze_embeddings=True),
}
ADVANTAGES = {"RLOO": LeaveOneOut(), "PPO": GAE()}


@dataclass(frozen=True)
class Flags:
    width: int = 512
    layers: int = 6
    """Of the encoder, and of the decoder."""
    out: Path | None = None
    """Write what was measured as JSON."""
    line: tuple[str, str] | None = None
    """(What a process that measures one line is started with.)"""


def words(sources: list[str], hypotheses: list[str], references: list[str] | None) -> np.ndarray:
    """A reward: one word in twenty."""
    return np.array([min(1.0, len(y.split()) / 20) for y in hypotheses], np.float32)


def measure(flags: Flags, advantage: str, trained: str) -> dict[str, float]:
    """One line, in megabytes."""
    text = SyntheticCorpus(SyntheticLanguage(train=300, dev=10, test=10)).load(Cleaning()).train
    tokenizer = SentencePieceSettings(512).train((text.sources, text.references or []), seed=0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    policy = Policy.new(sizes(flags.width, flags.layers), tokenizer, 0)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(policy.network)) / MEGABYTE
    given = PPOSettings(
        rollouts=4,
        evaluate_every=4,
        rollout=RolloutSettings(2, 4, keep_every=0),
        advantage=ADVANTAGES[advantage],
        trainable=TRAINED[trained],
    )
    short = text.take(np.argsort([len(x) for x in text.sources])[:50])
    living: list[float] = []

    def look(policy: Policy) -> dict[str, float]:
        buffers = {leaf.addressable_data(0).unsafe_buffer_pointer(): leaf.nbytes for leaf in jax.live_arrays()}
        living.append(sum(buffers.values()) / MEGABYTE)  # several arrays may be the same memory
        return {"score": 0.0}

    with tempfile.TemporaryDirectory() as folder:
        ppo(
            policy, short, None, Reward(words), given, BatchSettings(64, 32, 8), max_target_tokens=8, evaluate=look,
            folder=Path(folder), seed=0, machine=MachineSettings(rows=8),
        )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"policy": size, "arrays": living[-1], "peak": (peak - before) / 1024}


def main() -> None:
    flags = tyro.cli(Flags, description=__doc__)
    if flags.line is not None:
        print(json.dumps(measure(flags, *flags.line)))
        return
    found: dict[str, Any] = {}
    for advantage in ADVANTAGES:
        for trained in TRAINED:
            command = [sys.executable, __file__, "--width", str(flags.width), "--layers", str(flags.layers)]
            line = subprocess.run([*command, "--line", advantage, trained], capture_output=True, text=True, check=True)
            found[f"{advantage}, {trained}"] = json.loads(line.stdout)
            print(f"{advantage}, {trained}: {found[f'{advantage}, {trained}']}", file=sys.stderr)
    table = Table(title=f"{flags.layers} + {flags.layers} layers x {flags.width}: megabytes")
    for head in ("", "the policy alone", "arrays between updates", "peak"):
        table.add_column(head, justify="right" if head else "left")
    for name, row in found.items():
        table.add_row(name, *(f"{row[key]:.0f}" for key in ("policy", "arrays", "peak")))
    Console().print(table)
    if flags.out is not None:
        write_json(flags.out, found)


if __name__ == "__main__":
    main()
