"""One Grow step: x ~ D, y ~ π(·|x), N samples a source; D_g = samples ∪ D, every row scored by R (Algorithm 1)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rest.data.corpus import Split
from rest.data.shards import shard_name, shard_rows, write_shard
from rest.data.store import ScoredDataset, write_manifest
from rest.errors import UserError
from rest.journal import Journal, progress, say
from rest.policy.policy import Policy
from rest.policy.sampler import Hypotheses, SamplingSettings, sample
from rest.reward.guards import Guards
from rest.reward.reward import Reward
from rest.stage import Stage, seed_for


@dataclass(frozen=True)
class GrowSettings:
    """What one Grow step draws."""

    sources: int = 0
    """Sources a Grow step, drawn anew for each; 0: all of the training text."""
    samples_per_source: int = 8
    """N."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    sources_per_shard: int = 1024
    """A shard is the unit of resuming and of reproducibility."""
    human_pairs: bool = True
    """Join the sources' human pairs to the samples: D_g = samples ∪ D."""
    guards: Guards = field(default_factory=Guards)

    def __post_init__(self) -> None:
        if self.sources < 0 or self.samples_per_source < 1 or self.sources_per_shard < 1:
            raise UserError(
                f"sources {self.sources} must not be below 0, samples_per_source {self.samples_per_source} and "
                f"sources_per_shard {self.sources_per_shard} must be at least 1"
            )


def grow_sources(train: Split, settings: GrowSettings, g: int, seed: int) -> Split:
    """The sources of Grow step g, in the order of the corpus."""
    if not settings.sources or settings.sources >= len(train):
        return train
    rng = np.random.default_rng(seed_for(seed, "grow sources", g))
    return train.take(np.sort(rng.choice(len(train), settings.sources, replace=False)))


def grow(
    stage: Stage, policy: Policy, train: Split, reward: Reward, settings: GrowSettings, *, g: int, seed: int
) -> dict[str, Any]:
    """Sample, score and write the shards that are missing, then the manifest. Returns what to report."""
    folder, sources = stage.folder, grow_sources(train, settings, g, seed)
    count = -(-len(sources) // settings.sources_per_shard)
    began, drawn, tokens, work, total = time.perf_counter(), 0, 0, 0, 0.0
    with Journal(folder / "journal", count) as journal, progress(f"grow {g}", len(sources)) as bar:
        for shard in range(count):
            rows = slice(shard * settings.sources_per_shard, (shard + 1) * settings.sources_per_shard)
            part = sources.take(rows)
            if shard_rows(folder / shard_name(shard, count)) == _rows(part, settings):
                continue
            hypotheses = sample(
                policy,
                part.sources,
                part.ids,
                settings.samples_per_source,
                settings.sampling,
                seed=seed_for(seed, "grow"),
                grow_step=g,
            )
            columns = score(policy, part, hypotheses, reward, settings)
            write_shard(folder, shard, count, columns)
            samples = columns["sample_index"] >= 0
            drawn += int(samples.sum())
            total += float(columns["reward"][samples].sum())
            tokens += sum(len(y) for of_source in hypotheses.tokens for y in of_source)
            work += hypotheses.decoder_steps
            seconds = time.perf_counter() - began
            numbers = {
                "samples_per_second": drawn / seconds,
                "tokens_per_second": tokens / seconds,
                "mean_reward": total / drawn,
                "useful_steps": tokens / work,
            }
            journal.record(shard + 1, numbers)
            bar.update(min(len(sources), rows.stop), f"{drawn / seconds:.0f} samples/s, reward {total / drawn:.3f}")
    identities = {
        "policy": policy.identity,
        "reward": reward.identity,
        "tokenizer": policy.tokenizer.identity,
    }
    manifest = write_manifest(folder, settings=stage.settings, identities=identities, seed=seed, scale=reward.scale)
    statistics = manifest.reward
    say(
        f"grow {g}: {len(sources)} sources x {settings.samples_per_source} samples, mean reward of samples "
        f"{statistics['samples']['mean']:.4f}"
        + (f", of human pairs {statistics['references']['mean']:.4f}" if statistics["references"]["rows"] else "")
    )
    return {
        "rows": manifest.rows,
        "samples": len(sources) * settings.samples_per_source,
        "reward": statistics,
    }


def _rows(part: Split, settings: GrowSettings) -> int:
    human = settings.human_pairs and part.references is not None
    return len(part) * (settings.samples_per_source + human)


def score(
    policy: Policy, part: Split, hypotheses: Hypotheses, reward: Reward, settings: GrowSettings
) -> dict[str, Any]:
    """The columns of one shard: each source's human pair, then its samples."""
    human = settings.human_pairs and part.references is not None
    n = settings.samples_per_source
    reference_ids = policy.encode_references(part.references) if human and part.references else []
    rows: dict[str, list[Any]] = {
        name: [] for name in ("source_id", "sample_index", "source", "hypothesis", "reference", "tokens")
    }
    log_probs: list[np.ndarray | None] = []
    behaviour: list[np.ndarray | None] = []
    finish: list[str] = []
    for i, source in enumerate(part.sources):
        texts, tokens = list(hypotheses.texts[i]), list(hypotheses.tokens[i])
        finish += ["eos"] * human + ["eos" if ended else "length" for ended in hypotheses.finished[i]]
        log_probs += [None] * human + list(hypotheses.log_probs[i])
        behaviour += [None] * human + list(hypotheses.behaviour_log_probs[i])
        if human and part.references is not None:
            texts, tokens = [part.references[i], *texts], [reference_ids[i], *tokens]
        rows["source_id"] += [int(part.ids[i])] * len(texts)
        rows["sample_index"] += [-1] * human + list(range(n))
        rows["source"] += [source] * len(texts)
        rows["reference"] += ["" if part.references is None else part.references[i]] * len(texts)
        rows["hypothesis"] += texts
        rows["tokens"] += tokens
    references = None if part.references is None else rows["reference"]
    scored = reward(rows["source"], rows["hypothesis"], references)
    index = np.asarray(rows["sample_index"], np.int32)
    return {
        "source_id": np.asarray(rows["source_id"], np.int64),
        "sample_index": index,
        "origin": ["reference" if k < 0 else "sample" for k in index],
        "source": rows["source"],
        "hypothesis": rows["hypothesis"],
        "tokens": rows["tokens"],
        "log_probs": log_probs,
        "behaviour_log_probs": behaviour,
        "finish": finish,
        "raw_score": scored.raw,
        "reward": scored.reward,
        "flags": settings.guards.flags(rows["source"], rows["hypothesis"]),
    }


def open_dataset(folder: Path) -> ScoredDataset:
    """A complete Grow step's dataset."""
    if not folder.exists():
        raise UserError(f"{folder}: no such grow step; make it with `rest grow`")
    return ScoredDataset.open(folder)
