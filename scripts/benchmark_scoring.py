"""Scoring with the learned reward: ours beside the same network in PyTorch, the same hypotheses, two threads each.

    bash scripts/setup_benchmark_environment.sh
    python scripts/benchmark_scoring.py --policy runs/multi30k/bc --sources train.de --out results.json

The reward starts from the policy, or from `--reward`, with a head fitted to noise, so that every feature counts; its
body is exported as a Marian folder, which PyTorch reads. Both score samples of the policy, PyTorch in batches of like
lengths, ours packed into rows, both keeping the memory that they free; each at the best of several batch sizes, in
turn, and the median ratio of the rounds counts. Tokenising is timed apart and is the same for both. Then a small Grow
is timed with the reward: the share of scoring in it.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from benchmark_improve import KEEPING

from rest.allocator import keep_freed_memory
from rest.data.batches import BatchSettings
from rest.data.tokenizer import MarianTokenizer
from rest.model.huggingface import write_marian
from rest.policy.policy import Policy
from rest.policy.sampler import SamplingSettings, sample
from rest.reward.learned import LearnedReward

ROOT = Path(__file__).resolve().parent.parent


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


def network(folder: Path) -> Policy:
    """The policy of a stage, or of a folder of its own."""
    return Policy.load(folder / "policy" if (folder / "policy").is_dir() else folder)


def described(policy: Policy) -> str:
    sizes = policy.settings
    layers = f"{sizes.encoder_layers} + {sizes.decoder_layers} layers, width {sizes.width}"
    return f"{layers}, vocabulary {policy.tokenizer.vocabulary_size}"


def evenly(path: Path, count: int) -> list[str]:
    """So many lines of a file at equal distances."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
        lines = [line.strip() for line in file if line.strip()]
    return [lines[int(i)] for i in np.linspace(0, len(lines) - 1, min(count, len(lines)))]


def peer(folder: Path, threads: int) -> Callable[..., dict[str, Any]]:
    """A PyTorch process that is asked by JSON lines."""
    python = ROOT / ".venv-benchmark" / "bin" / "python"
    if not python.exists():
        raise SystemExit("make .venv-benchmark first: bash scripts/setup_benchmark_environment.sh")
    command = [str(python), str(ROOT / "scripts" / "benchmark_scoring_peer.py"), str(folder), str(threads)]
    environment = {**os.environ, **KEEPING, "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(**request: Any) -> dict[str, Any]:
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        if not (line := process.stdout.readline()):
            raise SystemExit(f"PyTorch has ended with {process.wait()}")
        return json.loads(line)

    return ask


def main() -> None:
    keep_freed_memory()
    flags = tyro.cli(Flags, description=__doc__)
    policy, texts = network(flags.policy), evenly(flags.sources, flags.texts)
    base = policy if flags.reward is None else network(flags.reward)
    # a small Grow: sample, then score
    law = SamplingSettings(temperature=0.8, max_target_tokens=flags.max_target_tokens)
    batch = BatchSettings(4096, flags.row_tokens, flags.row_tokens)
    longest = min(flags.row_tokens, batch.source_tokens)
    for reader in (policy, base):
        texts = [x for x, ids in zip(texts, reader.encode_sources(texts), strict=True) if len(ids) <= longest]
    n = flags.samples_per_source

    def draw() -> tuple[float, list[str]]:
        began = time.perf_counter()
        drawn = sample(policy, texts, np.arange(len(texts)), n, law, seed=0)
        return time.perf_counter() - began, [y for of_source in drawn.texts for y in of_source]

    _, hypotheses = draw()  # compiles
    sources = [x for x in texts for _ in range(n)]
    reward = LearnedReward.new(base, batch)
    examples = reward.examples(sources, hypotheses)
    noise = np.random.default_rng(0).normal(size=len(sources)).astype(np.float32)
    columns = {"rating": noise, "group": np.zeros(len(sources), np.float32)}
    reward = reward.probe(replace(examples, columns=columns), 0.01)
    head = {name: np.asarray(values)[..., 0] for name, values in reward.parameters["head"].items()}
    with tempfile.TemporaryDirectory() as scratch:
        write_marian(Path(scratch), base.settings, base.tokenizer, base.parameters)
        exported = MarianTokenizer.load(Path(scratch))
        ask = peer(Path(scratch), flags.threads)
        eos = exported.eos_id
        rows = {
            "sources": [[*ids, eos] for ids in exported.encode(sources)],
            "targets": [[*ids, eos] for ids in exported.encode_targets(hypotheses)],
        }
        known = {**rows, "kernel": head["kernel"].tolist(), "bias": float(head["bias"])}

        def ours(tokens: int) -> tuple[float, np.ndarray]:
            scorer = replace(reward, batch=replace(batch, batch_tokens=tokens))
            began = time.perf_counter()
            scores = scorer.predict(scorer.parameters, scorer.shared(examples, sources))[:, 0]
            return time.perf_counter() - began, scores

        def theirs(tokens: int) -> tuple[float, np.ndarray]:
            answer = ask(**known, batch_tokens=tokens)
            return answer["seconds"], np.asarray(answer["scores"])

        best = {}
        for name, system in (("rest", ours), ("PyTorch", theirs)):
            system(flags.batch_tokens[0])
            tried = {}
            for tokens in flags.batch_tokens:
                system(tokens)  # the first call compiles
                tried[tokens] = system(tokens)[0]
            best[name] = min(tried, key=lambda tokens: tried[tokens])
        rounds = []
        for _ in range(flags.rounds):
            (mine, scores), (other, expected) = ours(best["rest"]), theirs(best["PyTorch"])
            began = time.perf_counter()
            reward.examples(sources, hypotheses)
            rounds.append(
                {"rest": mine, "PyTorch": other, "tokenising": time.perf_counter() - began, "sampling": draw()[0]}
            )
    record = {
        "policy": described(policy),
        "reward": described(base),
        "machine": {"cores": os.cpu_count(), "threads": flags.threads},
        "hypotheses": len(hypotheses),
        "mean_tokens": float(np.mean([len(y) for y in examples.targets])),
        "batch_tokens": best,
        "greatest_difference_of_scores": float(np.abs(scores - expected).max()),
        "spread_of_scores": float(np.std(scores)),
        "seconds_of_rounds": rounds,
        "rest_is_faster_by": float(np.median([r["PyTorch"] / r["rest"] for r in rounds])),
        "share_of_scoring_in_grow": float(
            np.median([(r["rest"] + r["tokenising"]) / (r["rest"] + r["tokenising"] + r["sampling"]) for r in rounds])
        ),
        "samples_per_source": n,
    }
    print(json.dumps(record, indent=1))
    if flags.out is not None:
        flags.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
