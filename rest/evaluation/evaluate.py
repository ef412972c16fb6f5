"""What a policy is worth: reward and metrics it was not trained on, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from rest.data.batches import BatchSettings, Examples
from rest.data.corpus import Gold, Split
from rest.errors import UserError
from rest.evaluation.outputs import Outputs, draw, score
from rest.folder import seed_for
from rest.learning.mesh import MachineSettings
from rest.policy.beam import BeamSettings, translate
from rest.policy.policy import Policy, sequence_log_probs
from rest.policy.sampler import SamplingOverrides, SamplingSettings, sample
from rest.reward.reward import Reward
from rest.statistics.correlation import spearman
from rest.statistics.intervals import bootstrap_ci, corpus_scores, distinct_per_source, length_ratio
from rest.statistics.text_metrics import copy_rate, distinct_ngrams, empty_rate, repeated_ngrams, self_bleu


@dataclass(frozen=True)
class EvaluationSettings:
    """How policies are compared."""

    samples_per_source: int = 4
    """Samples whose mean reward is the policy's."""
    sampling: SamplingOverrides = field(default_factory=SamplingOverrides)
    """What samples are drawn from otherwise than the experiment's `sampling`."""
    beam: BeamSettings = field(default_factory=BeamSettings)
    dev_samples_per_source: int = 4
    """Samples per dev source behind the mean reward that chooses checkpoints."""
    dev_sources: int = 0
    """Dev sources for choosing checkpoints; 0: all."""
    kl_sources: int = 500
    """Sources of the estimate of the KL divergence to BC, one draw at temperature 1 each."""
    shown: int = 12
    """Sources whose outputs the report shows side by side."""
    judge: Any = None  # Reward
    """A separate reward, which nothing trains on: samples are scored by it before and after."""
    judge_limit: float = 0.5
    """The share of samples that the judge scores above this is measured too."""
    bleu_tokenizer: Literal["13a", "zh", "char", "intl", "none"] = "13a"
    """How BLEU parts a sentence into words, by sacreBLEU's names: zh for Chinese, char for Japanese or Thai."""

    def __post_init__(self) -> None:
        for name in ("samples_per_source", "dev_samples_per_source", "kl_sources"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")


def mean_reward(
    dev: Split,
    reward: Reward,
    settings: EvaluationSettings,
    sampling: SamplingSettings,
    seed: int,
    machine: MachineSettings | None = None,
) -> Callable[[Policy], dict[str, float]]:
    """An evaluation for `train`: the mean reward of a policy's samples on dev, the same draws at every call."""
    if settings.dev_sources and settings.dev_sources < len(dev):
        dev = dev.take(slice(0, settings.dev_sources))

    def evaluate(policy: Policy) -> dict[str, float]:
        drawn = draw(policy, dev, settings.dev_samples_per_source, sampling, seed, machine)
        return {"score": float(score(reward, None, dev, drawn)["reward"].mean(dtype=np.float64))}

    return evaluate


@dataclass(frozen=True)
class Evaluation:
    """Numbers of one policy on one split, the outputs behind them, and those to show."""

    metrics: dict[str, Any]
    samples: Outputs
    greedy: Outputs
    shown: list[dict[str, Any]]  # {"source", "reference", "hypothesis", "reward", "gold"}


def evaluate(
    policy: Policy,
    split: Split,
    reward: Reward,
    settings: EvaluationSettings,
    *,
    sampling: SamplingSettings,
    beam: BeamSettings,
    bc: Policy,
    batch: BatchSettings,
    gold: Gold | None,
    seed: int,
    first: Reward | None = None,
    previous: Policy | None = None,
    machine: MachineSettings | None = None,
) -> Evaluation:
    """Samples, greedy and beam outputs, and the KL divergences to BC and the step before.

    `first` is what a refreshed reward was at first; the same samples are scored by it too.
    """
    drawn = draw(policy, split, settings.samples_per_source, sampling, seed, machine)
    greedy = translate(policy, split.sources, replace(beam, beams=1), machine)
    widest = translate(policy, split.sources, beam, machine)
    samples = Outputs(split, drawn, score(reward, gold, split, drawn))
    one = Outputs(split, [[y] for y in greedy], score(reward, gold, split, [[y] for y in greedy], chrf=True))
    beam_reward = score(reward, None, split, [[y] for y in widest])["reward"]

    def interval(values: np.ndarray) -> list[float]:
        return list(bootstrap_ci(values, seed_for(seed, "bootstrap")))

    def mean(values: np.ndarray) -> float:
        return float(values.mean(dtype=np.float64))

    metrics: dict[str, Any] = {
        "reward_mean": mean(samples.scores["reward"]),
        "reward_ci95": interval(samples.scores["reward"]),
        "reward_greedy_mean": mean(one.scores["reward"]),
        "reward_greedy_ci95": interval(one.scores["reward"]),
        "reward_beam_mean": mean(beam_reward),
    }
    first_rewards = None if first is None else score(first, None, split, drawn)["reward"]
    if first_rewards is not None:
        metrics["first_reward_mean"] = mean(first_rewards)
        metrics["first_reward_ci95"] = interval(first_rewards)
    if settings.judge is not None:
        judged = score(settings.judge, None, split, drawn)["reward"]
        for name, values in {
            "judge": judged,
            "judge_above": (judged > settings.judge_limit).astype(np.float32),
        }.items():
            metrics |= {f"{name}_mean": mean(values), f"{name}_ci95": interval(values)}
    if gold is not None:
        metrics |= {
            "gold_mean": mean(samples.scores["gold"]),
            "gold_ci95": interval(samples.scores["gold"]),
            "gold_greedy_mean": mean(one.scores["gold"]),
            "gold_greedy_ci95": interval(one.scores["gold"]),
            "reward_gold_spearman": spearman(samples.scores["reward"].ravel(), samples.scores["gold"].ravel()),
        }
        if first_rewards is not None:
            metrics["first_reward_gold_spearman"] = spearman(first_rewards.ravel(), samples.scores["gold"].ravel())
    if split.references is not None:
        on_text = partial(
            corpus_scores,
            references=split.references,
            more_references=split.more_references,
            tokenize=settings.bleu_tokenizer,
        )
        of_beam = on_text(widest, resamples=1, names=("bleu", "chrf"))
        metrics |= on_text(greedy)
        metrics |= {"bleu_beam": of_beam["bleu"], "chrf_beam": of_beam["chrf"]}
        metrics["length_ratio"] = length_ratio(greedy, split.references)
    metrics |= _variety(split.sources, greedy, drawn)
    some = split.take(slice(0, settings.kl_sources))
    metrics |= divergences(policy, {"bc": bc, "previous": previous}, some, sampling, batch, seed, machine)
    return Evaluation(metrics, samples, one, _shown(one, settings.shown))


def _variety(sources: list[str], greedy: list[str], samples: list[list[str]]) -> dict[str, float]:
    """What goes wrong in greedy outputs, and how far samples differ."""
    found = {
        "copy_rate": copy_rate(sources, greedy),
        "empty_rate": empty_rate(greedy),
        "repeated_trigrams": repeated_ngrams(greedy),
        "distinct_per_source": distinct_per_source(samples),
        "distinct_1": distinct_ngrams(samples, 1),
        "distinct_2": distinct_ngrams(samples, 2),
    }
    return found if len(samples[0]) < 2 else found | {"self_bleu": self_bleu(samples)}


def _shown(greedy: Outputs, rows: int) -> list[dict[str, Any]]:
    split, scores = greedy.split, greedy.scores
    return [
        {
            "source": split.sources[i],
            "reference": None if split.references is None else split.references[i],
            "hypothesis": greedy.texts[i][0],
            "reward": float(scores["reward"][i, 0]),
            "gold": float(scores["gold"][i, 0]) if "gold" in scores else None,
        }
        for i in range(min(rows, len(split)))
    ]


def divergences(
    policy: Policy,
    anchors: Mapping[str, Policy | None],
    split: Split,
    sampling: SamplingSettings,
    batch: BatchSettings,
    seed: int,
    machine: MachineSettings | None = None,
) -> dict[str, float]:
    """Entropy and KL(policy ‖ anchor), nats per sentence, all from the same draws at temperature 1.

    Means of -log π and of log π - log π_anchor: `entropy` and `kl_to_<name>` of every anchor that is given.
    """
    whole = SamplingSettings(temperature=1.0, max_target_tokens=sampling.max_target_tokens)
    drawn = sample(policy, split.sources, split.ids, 1, whole, seed=seed_for(seed, "kl"), machine=machine)
    tokens = [y[0] for y in drawn.tokens]
    if max(map(len, tokens)) > batch.target_tokens:
        raise UserError(
            f"batch.target_tokens {batch.target_tokens} is less than max_target_tokens {whole.max_target_tokens}"
        )
    sources = [x[: batch.source_tokens] for x in policy.encode_sources(split.sources)]
    own = np.asarray([values[0].sum() for values in drawn.log_probs], np.float64)
    found = {"entropy": float(-own.mean())}
    for name, anchor in anchors.items():
        if anchor is not None:
            other = sequence_log_probs(anchor, Examples(sources, tokens), batch)
            found[f"kl_to_{name}"] = float((own - other).mean())
    return found
