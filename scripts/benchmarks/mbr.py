"""Decoding by minimum Bayes risk: ours beside the package mbrs, the same samples, the choices compared.

    bash scripts/benchmarks/setup_environment.sh mbrs
    python scripts/benchmarks/mbr.py --text train.en --out results.json

The samples of a source are drawn from `--policy`, whose sources `--text` then has; or else they are a sentence of
`--text` in which words are left out and exchanged. Both choose of all samples by all samples, in turn, and the median
ratio of the rounds counts. Where the choices differ, it is said by how much our expected utility of theirs is lower.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from turns import HERE, faster_by, in_turns, peer, shown
from workload import evenly, lines, load, machine

from rest.evaluation.mbr import choose
from rest.folder import write_json
from rest.policy.sampler import SamplingSettings, sample
from rest.reward.utility import BLEU, ChrF, Utility


@dataclass(frozen=True)
class Case:
    """One utility by both."""

    utility: Utility
    asked: dict[str, Any]
    """Of the peer."""
    samples_per_source: int
    texts: int


def cases(texts: int) -> dict[str, Case]:
    """mbrs has chrF in Rust; chrF++ and BLEU are sacreBLEU's, pair by pair, and have fewer texts."""

    def asked(metric: str, word_order: int = 0, aggregate: bool = False) -> dict[str, Any]:
        return {"metric": metric, "word_order": word_order, "aggregate": aggregate}

    few = max(1, texts // 20)
    return {
        "chrF of 32": Case(ChrF(), asked("chrf"), 32, texts),
        "chrF of 256": Case(ChrF(), asked("chrf"), 256, few),
        "chrF of 256, aggregate": Case(ChrF(aggregate=True), asked("chrf", aggregate=True), 256, few),
        "chrF++ of 32": Case(ChrF(2), asked("chrf", 2), 32, few),
        "BLEU of 32": Case(BLEU(), asked("bleu"), 32, few),
    }


@dataclass(frozen=True)
class Flags:
    text: Path
    """Sentences, one a line (gzip where named .gz)."""
    policy: Path | None = None
    """A stage's folder with a policy to draw samples from."""
    out: Path | None = None
    """Write what was measured as JSON."""
    texts: int = 200
    """Sources, taken evenly from the file; a twentieth of them where the peer takes long."""
    rounds: int = 3
    threads: int = 2
    """Of the peer."""


def disturbed(texts: list[str], n: int) -> list[list[str]]:
    """n samples of each: a word in eight is left out, another exchanged for one of the texts."""
    rng = np.random.default_rng(0)
    words = np.array([word for text in texts for word in text.split()])

    def sample_of(text: str) -> str:
        kept = [word for word in text.split() if rng.random() > 1 / 8]
        return " ".join(word if rng.random() > 1 / 8 else str(rng.choice(words)) for word in kept)

    return [[sample_of(text) for _ in range(n)] for text in texts]


def drawn(texts: list[str], n: int, policy: Path | None) -> list[list[str]]:
    if policy is None:
        return disturbed(texts, n)
    settings = SamplingSettings(temperature=0.8, max_target_tokens=64)
    return sample(load(policy), texts, np.arange(len(texts)), n, settings, seed=0).texts


def ours(utility: Utility, samples: list[list[str]]) -> tuple[float, list[str]]:
    """Seconds, and what is chosen."""
    began = time.perf_counter()
    chosen = [choose(utility, "", texts) for texts in samples]
    return time.perf_counter() - began, chosen


def differences(utility: Utility, samples: list[list[str]], ours: list[str], theirs: list[str]) -> dict[str, Any]:
    """The share of equal choices, and by how much the expected utility of theirs is below that of ours, at most."""
    below = []
    for texts, own, other in zip(samples, ours, theirs, strict=True):
        expected = utility("", [own, other], texts, np.ones(len(texts)))
        below.append(float(expected[0] - expected[1]))
    same = float(np.mean([own == other for own, other in zip(ours, theirs, strict=True)]))
    return {"same_choices": same, "utility_of_theirs_lower_by_at_most": max(below)}


def measure(case: Case, texts: list[str], flags: Flags, ask: Any) -> dict[str, Any]:
    samples = drawn(evenly(texts, case.texts), case.samples_per_source, flags.policy)
    request = {**case.asked, "samples": samples}
    ask({**request, "samples": samples[:1]})  # whatever is loaded once
    found = in_turns({"rest": partial(ours, case.utility, samples), "mbrs": partial(ask, request)}, flags.rounds)
    theirs = [texts[k] for texts, k in zip(samples, found["mbrs"][-1]["chosen"], strict=True)]
    seconds = {"rest": [took for took, _ in found["rest"]], "mbrs": [each["seconds"] for each in found["mbrs"]]}
    per_source = {name: float(np.median(took)) / len(samples) for name, took in seconds.items()}
    speeds = {name: [1 / took for took in rounds] for name, rounds in seconds.items()}
    return {
        "sources": len(samples),
        "seconds_per_source": per_source,
        **faster_by(speeds["rest"], speeds["mbrs"]),
        **differences(case.utility, samples, found["rest"][-1][1], theirs),
    }


def main() -> None:
    flags = tyro.cli(Flags, description=__doc__)
    texts = evenly([text for text in lines(flags.text) if text], flags.texts)
    ask = peer("mbr", HERE, threads=flags.threads, environment=".venv-benchmark-mbrs")
    record: dict[str, Any] = {"machine": {**machine(), "threads": flags.threads}}
    for name, case in cases(flags.texts).items():
        record[name] = found = measure(case, texts, flags, ask)
        print(f"{name}: {shown(found)}, {found['same_choices']:.3f} of the choices the same", flush=True)
    print(json.dumps(record, indent=1))
    if flags.out is not None:
        write_json(flags.out, record)


if __name__ == "__main__":
    main()
