"""Scoring with the learned reward: ours beside the same network in PyTorch, the same hypotheses, two threads each.

    bash scripts/benchmarks/setup_environment.sh
    python scripts/benchmarks/scoring.py --policy runs/multi30k/bc --sources train.de --out results.json

The reward starts from the policy, or from `--reward`, with a head fitted to noise, so that every feature counts; its
body is exported as a Marian folder, which PyTorch reads. Both score samples of the policy, PyTorch in batches of like
lengths, ours packed into rows, both keeping the memory that they free; each at the best of several batch sizes, in
turn, and the median ratio of the rounds counts. Tokenising is timed apart and is the same for both. Then a small Grow
is timed with the reward: the share of scoring in it.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import tyro
from turns import faster_by, fastest, in_turns, peer
from workload import described, evenly, lines, load, machine

from rest.allocator import keep_freed_memory
from rest.data.batches import BatchSettings
from rest.data.tokenizer import MarianTokenizer
from rest.folder import write_json
from rest.model.families.huggingface import write
from rest.policy.policy import Policy
from rest.policy.sampler import SamplingSettings, sample
from rest.reward.learned.network import LearnedReward

OURS, PEER = "rest", "PyTorch"


@dataclass(frozen=True)
class Flags:
    sources: Path
    """Source sentences, one a line (gzip where named .gz)."""
    policy: Path
    """A stage's folder with a policy."""
    reward: Path | None = None
    """A stage's folder with what the reward starts from, such as RUN/bc-reward; None: the policy."""
    out: Path | None = None
    """Write what was measured as JSON."""
    texts: int = 512
    """Sources, taken evenly from the file."""
    samples_per_source: int = 8
    """N."""
    batch_tokens: tuple[int, ...] = (1024, 2048, 4096, 8192)
    """Target positions at once that both may choose from."""
    row_tokens: int = 64
    """Positions of one of our packed rows."""
    rounds: int = 5
    max_target_tokens: int = 56
    threads: int = 2


def fitting(readers: list[Policy], texts: list[str], longest: int) -> list[str]:
    """The texts that all of them read whole."""
    for reader in readers:
        texts = [x for x, ids in zip(texts, reader.encode_sources(texts), strict=True) if len(ids) <= longest]
    return texts


def fitted(base: Policy, batch: BatchSettings, sources: list[str], hypotheses: list[str]) -> LearnedReward:
    """A reward from the base whose head was fitted to noise, so that every feature counts."""
    reward = LearnedReward.new(base, batch)
    noise = np.random.default_rng(0).normal(size=len(sources)).astype(np.float32)
    columns = {"rating": noise, "group": np.zeros(len(sources), np.float32)}
    return reward.probe(replace(reward.examples(sources, hypotheses), columns=columns), 0.01)


class Ours:
    """The reward's own network on examples."""

    def __init__(self, reward: LearnedReward, sources: list[str], hypotheses: list[str]) -> None:
        self.reward = reward
        self.examples = reward.shared(reward.examples(sources, hypotheses), sources)

    def run(self, batch_tokens: int) -> tuple[float, np.ndarray]:
        """Hypotheses a second, and their scores."""
        scorer = replace(self.reward, batch=replace(self.reward.batch, batch_tokens=batch_tokens))
        began = time.perf_counter()
        scores = scorer.predict(self.examples)[:, 0]
        return len(scores) / (time.perf_counter() - began), scores


class Peer:
    """The same network in PyTorch, on ids as the exported model has them."""

    def __init__(
        self, reward: LearnedReward, base: Policy, sources: list[str], hypotheses: list[str], threads: int
    ) -> None:
        head = {name: np.asarray(values)[..., 0] for name, values in reward.network.parameters["head"].items()}
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write(folder, base.network, base.tokenizer)
            exported = MarianTokenizer.load(folder)
            self.known = {
                "sources": [[*ids, exported.eos_id] for ids in exported.encode(sources)],
                "targets": [[*ids, exported.eos_id] for ids in exported.encode_targets(hypotheses)],
                "kernel": head["kernel"].tolist(),
                "bias": float(head["bias"]),
            }
            self.asked = peer("scoring", folder, threads=threads, keeping=True)
            self.asked({**self.known, "sources": [], "targets": [], "batch_tokens": 1})  # it has read the folder

    def run(self, batch_tokens: int) -> tuple[float, np.ndarray]:
        answer = self.asked({**self.known, "batch_tokens": batch_tokens})
        return len(answer["scores"]) / answer["seconds"], np.asarray(answer["scores"])


def main() -> None:
    keep_freed_memory()
    flags = tyro.cli(Flags, description=__doc__)
    policy = load(flags.policy)
    base = policy if flags.reward is None else load(flags.reward)
    settings = SamplingSettings(temperature=0.8, max_target_tokens=flags.max_target_tokens)
    batch = BatchSettings(4096, flags.row_tokens, flags.row_tokens)
    texts = evenly([text for text in lines(flags.sources) if text], flags.texts)
    texts = fitting([policy, base], texts, min(flags.row_tokens, batch.source_tokens))
    n = flags.samples_per_source
    sources = [x for x in texts for _ in range(n)]

    def draw() -> list[str]:
        drawn = sample(policy, texts, np.arange(len(texts)), n, settings, seed=0)
        return [y for of_source in drawn.texts for y in of_source]

    def seconds(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    hypotheses = draw()  # compiles
    reward = fitted(base, batch, sources, hypotheses)
    ours, theirs = Ours(reward, sources, hypotheses), Peer(reward, base, sources, hypotheses, flags.threads)
    best = {
        name: fastest(name, lambda size, system=system: system.run(size)[0], flags.batch_tokens, warm=True)
        for name, system in ((OURS, ours), (PEER, theirs))
    }
    scored = {OURS: partial(ours.run, best[OURS]), PEER: partial(theirs.run, best[PEER])}
    grow = {"tokenising": partial(reward.examples, sources, hypotheses), "sampling": draw}  # what else a Grow does
    timed = {name: partial(seconds, work) for name, work in grow.items()}
    rounds = in_turns({**scored, **timed}, flags.rounds)
    speeds = {name: [speed for speed, _ in rounds[name]] for name in scored}
    took = {name: [len(hypotheses) / speed for speed in speeds[name]] for name in scored}
    took |= {name: rounds[name] for name in timed}
    scoring = np.add(took[OURS], took["tokenising"])
    scores, expected = rounds[OURS][-1][1], rounds[PEER][-1][1]
    record = {
        "policy": described(policy),
        "reward": described(base),
        "machine": {**machine(), "threads": flags.threads},
        "hypotheses": len(hypotheses),
        "mean_tokens": float(np.mean([len(y) for y in ours.examples.targets])),
        "batch_tokens": best,
        "greatest_difference_of_scores": float(np.abs(scores - expected).max()),
        "spread_of_scores": float(np.std(scores)),
        "seconds_of_rounds": took,
        **faster_by(speeds[OURS], speeds[PEER]),
        "share_of_scoring_in_grow": float(np.median(scoring / (scoring + took["sampling"]))),
        "samples_per_source": n,
    }
    print(json.dumps(record, indent=1))
    if flags.out is not None:
        write_json(flags.out, record)


if __name__ == "__main__":
    main()
