"""What a policy is worth: reward and metrics it was not trained on, with intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rest.data.batches import BatchSettings, Examples
from rest.data.corpus import Split
from rest.errors import UserError
from rest.evaluation.statistics import bootstrap_ci, corpus_scores, distinct_per_source, length_ratio
from rest.policy.beam import BeamSettings, translate
from rest.policy.policy import Policy, sequence_log_probs
from rest.policy.sampler import SamplingSettings, sample
from rest.reward.fit import rank_correlation
from rest.reward.reward import Reward
from rest.stage import seed_for

Gold = Callable[[list[str], list[str]], np.ndarray]


@dataclass(frozen=True)
class EvaluationSettings:
    """How policies are compared."""

    samples_per_source: int = 4
    """Samples at Grow's temperature whose mean reward is the policy's."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    beam: BeamSettings = field(default_factory=BeamSettings)
    dev_samples_per_source: int = 4
    """Samples a dev source behind the mean reward that chooses checkpoints."""
    dev_sources: int = 0
    """Dev sources for choosing checkpoints; 0: all."""
    kl_sources: int = 500
    """Sources of the estimate of the KL divergence to BC, one draw at temperature 1 each."""
    shown: int = 12
    """Sources whose outputs the report shows side by side."""

    def __post_init__(self) -> None:
        for name in ("samples_per_source", "dev_samples_per_source", "kl_sources"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")


def mean_reward(
    policy: Policy, dev: Split, reward: Reward, settings: EvaluationSettings, seed: int
) -> Callable[[Any], dict[str, float]]:
    """An evaluation for `train`: the mean reward of samples on dev, the same draws at every call."""
    if settings.dev_sources and settings.dev_sources < len(dev):
        dev = dev.take(slice(0, settings.dev_sources))

    def evaluate(parameters: Any) -> dict[str, float]:
        rewards = _sampled_rewards(
            policy.with_parameters(parameters), dev, reward, settings, settings.dev_samples_per_source, seed
        )[0]
        return {"score": float(rewards.mean(dtype=np.float64))}

    return evaluate


def _sampled_rewards(
    policy: Policy, split: Split, reward: Reward, settings: EvaluationSettings, n: int, seed: int
) -> tuple[np.ndarray, list[list[str]]]:
    """Rewards [sources, n] of samples, and the samples."""
    drawn = sample(policy, split.sources, split.ids, n, settings.sampling, seed=seed_for(seed, f"sample {split.name}"))
    return _score(reward, split, drawn.texts), drawn.texts


def _score(reward: Reward, split: Split, texts: list[list[str]]) -> np.ndarray:
    n = len(texts[0])
    sources, references = _repeat(split, n)
    return reward(sources, [y for row in texts for y in row], references).reward.reshape(-1, n)


def _repeat(split: Split, n: int) -> tuple[list[str], list[str] | None]:
    sources = [x for x in split.sources for _ in range(n)]
    return sources, None if split.references is None else [y for y in split.references for _ in range(n)]


@dataclass(frozen=True)
class Evaluation:
    """Numbers of one policy on one split, and the outputs to show."""

    metrics: dict[str, Any]
    shown: list[dict[str, Any]]  # {"source", "reference", "hypothesis", "reward", "gold"}


def evaluate(
    policy: Policy,
    split: Split,
    reward: Reward,
    settings: EvaluationSettings,
    *,
    bc: Policy,
    batch: BatchSettings,
    gold: Gold | None,
    seed: int,
    first: Reward | None = None,
) -> Evaluation:
    """Samples at Grow's temperature, greedy and beam outputs, and the KL divergence to BC.

    `first` is what a refreshed reward was at first; the same samples are scored by it too.
    """
    n = settings.samples_per_source
    rewards, samples = _sampled_rewards(policy, split, reward, settings, n, seed)
    greedy = translate(policy, split.sources, replace(settings.beam, beams=1))
    beam = translate(policy, split.sources, settings.beam)
    greedy_rewards = _score(reward, split, [[y] for y in greedy])[:, 0]
    beam_rewards = _score(reward, split, [[y] for y in beam])[:, 0]

    def interval(values: np.ndarray) -> list[float]:
        return list(bootstrap_ci(values, seed_for(seed, "bootstrap")))

    metrics: dict[str, Any] = {
        "reward_mean": float(rewards.mean(dtype=np.float64)),
        "reward_ci95": interval(rewards),
        "reward_greedy_mean": float(greedy_rewards.mean(dtype=np.float64)),
        "reward_greedy_ci95": interval(greedy_rewards),
        "reward_beam_mean": float(beam_rewards.mean(dtype=np.float64)),
        "distinct_per_source": distinct_per_source(samples),
        "kl_to_bc": kl_divergence(policy, bc, split, settings, batch, seed),
    }
    first_rewards = None if first is None else _score(first, split, samples)
    if first_rewards is not None:
        metrics["first_reward_mean"] = float(first_rewards.mean(dtype=np.float64))
        metrics["first_reward_ci95"] = interval(first_rewards)
    greedy_gold = None
    if gold is not None:
        sampled = gold(_repeat(split, n)[0], [y for row in samples for y in row]).reshape(-1, n)
        greedy_gold = gold(split.sources, greedy)
        metrics |= {
            "gold_mean": float(sampled.mean(dtype=np.float64)),
            "gold_ci95": interval(sampled),
            "gold_greedy_mean": float(greedy_gold.mean(dtype=np.float64)),
            "gold_greedy_ci95": interval(greedy_gold),
            "reward_gold_spearman": rank_correlation(rewards.ravel(), sampled.ravel()),
        }
        if first_rewards is not None:
            metrics["first_reward_gold_spearman"] = rank_correlation(first_rewards.ravel(), sampled.ravel())
    if split.references is not None:
        of_beam = corpus_scores(beam, split.references, resamples=1)
        metrics |= corpus_scores(greedy, split.references)
        metrics |= {"bleu_beam": of_beam["bleu"], "chrf_beam": of_beam["chrf"]}
        metrics["length_ratio"] = length_ratio(greedy, split.references)
    shown = [
        {
            "source": split.sources[i],
            "reference": None if split.references is None else split.references[i],
            "hypothesis": greedy[i],
            "reward": float(greedy_rewards[i]),
            "gold": None if greedy_gold is None else float(greedy_gold[i]),
        }
        for i in range(min(settings.shown, len(split)))
    ]
    return Evaluation(metrics, shown)


def kl_divergence(
    policy: Policy,
    anchor: Policy,
    split: Split,
    settings: EvaluationSettings,
    batch: BatchSettings,
    seed: int,
) -> float:
    """KL(policy ‖ anchor), nats a sentence: the mean of log π - log π_anchor over draws at temperature 1."""
    split = split.take(slice(0, settings.kl_sources))
    law = replace(settings.sampling, temperature=1.0, top_k=0, top_p=1.0)
    drawn = sample(policy, split.sources, split.ids, 1, law, seed=seed_for(seed, "kl"))
    tokens = [y[0] for y in drawn.tokens]
    if max(map(len, tokens)) > batch.target_tokens:
        raise UserError(
            f"batch.target_tokens {batch.target_tokens} is less than max_target_tokens {law.max_target_tokens}"
        )
    sources = [x[: batch.source_tokens] for x in policy.encode_sources(split.sources)]
    own = np.asarray([values[0].sum() for values in drawn.log_probs], np.float64)
    other = sequence_log_probs(anchor, Examples(sources, tokens), batch)
    return float((own - other).mean())
