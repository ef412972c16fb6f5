"""What a policy is worth: reward and metrics it was not trained on, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from rest.data.batches import BatchSettings, Examples
from rest.data.corpus import Gold, Split
from rest.errors import UserError, refuse_below
from rest.evaluation.outputs import Outputs, draw, rewards_of, score
from rest.folder import seed_for
from rest.learning.mesh import MachineSettings
from rest.policy.beam import BeamSettings, translate
from rest.policy.policy import Policy, sequence_log_probs
from rest.policy.sampler import SamplingOverrides, SamplingSettings, check_temperature, sample
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
    kl_sources: int = 500
    """Sources of the estimate of the KL divergence to BC, one draw at temperature 1 each."""
    shown: int = 12
    """Sources whose outputs the report shows side by side."""
    judge: Any = None  # Reward
    """A separate reward, which nothing trains on: samples, greedy and beam outputs are scored by it too. Of it more is
    better too: where it finds what is unwanted, let it give 1 less its score."""
    judge_limit: float = 0.5
    """The share of samples that the judge scores above this is measured too."""
    bleu_tokenizer: Literal["13a", "zh", "char", "intl", "none"] = "13a"
    """How BLEU parts a sentence into words, by sacreBLEU's names: zh for Chinese, char for Japanese or Thai."""
    detokenizer: Any = None  # Callable[[str], str]
    """For text that is tokenized: outputs and references are scored once more as this writes them; see Detokenizer."""
    bc_temperatures: tuple[float, ...] = (0.64, 0.5)
    """A control: BC is sampled at these temperatures too, since a policy that is only sharper has learned nothing."""
    ceiling_samples: int = 16
    """What training can distil: the best of so many samples of BC, by the reward and by MBR; 0: not looked at."""

    def __post_init__(self) -> None:
        least = {"samples_per_source": 1, "kl_sources": 1, "ceiling_samples": 0, "shown": 0}
        refuse_below("evaluation.", self, least)
        for temperature in self.bc_temperatures:
            check_temperature("evaluation.bc_temperatures", temperature)

    @property
    def of_every_policy(self) -> dict[str, Any]:
        """What decides the evaluation of each policy, without the controls beside them."""
        controls = "bc_temperatures", "ceiling_samples"
        return {name: value for name, value in vars(self).items() if name not in controls}


@dataclass(frozen=True)
class Evaluation:
    """Numbers of one policy on one split, the outputs behind them, and those to show."""

    metrics: dict[str, Any]
    samples: Outputs
    greedy: Outputs
    beam: Outputs
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
    one, best = (
        Outputs(split, rows, score(reward, gold, split, rows, chrf=True, among=drawn))
        for rows in ([[y] for y in greedy], [[y] for y in widest])
    )
    metrics: dict[str, Any] = {"reward_samples": settings.samples_per_source}
    for name, outputs in {"": samples, "_greedy": one, "_beam": best}.items():
        if settings.judge is not None and (judged := rewards_of(settings.judge, split, outputs.texts)) is not None:
            outputs.scores["judge"] = judged
        for kind in ("reward", "gold", "judge"):
            metrics |= of_mean(f"{kind}{name}", outputs.scores.get(kind), seed)
    if (judged := samples.scores.get("judge")) is not None:
        metrics |= of_mean("judge_above", (judged > settings.judge_limit).astype(np.float32), seed)
    rewards = {"reward": samples.scores.get("reward")}
    if first is not None:
        rewards["first_reward"] = rewards_of(first, split, drawn)
        metrics |= of_mean("first_reward", rewards["first_reward"], seed)
    if gold is not None:
        for name, values in rewards.items():
            if values is not None:
                metrics[f"{name}_gold_spearman"] = spearman(values.ravel(), samples.scores["gold"].ravel())
    metrics |= of_text(split, greedy, widest, settings.bleu_tokenizer)
    if settings.detokenizer is not None:
        metrics |= detokenized(settings.detokenizer, split, greedy, widest)
    metrics |= went_wrong(split.sources, greedy) | variety(drawn)
    some = split.take(slice(0, settings.kl_sources))
    metrics |= divergences(policy, {"bc": bc, "previous": previous}, some, sampling, batch, seed, machine)
    return Evaluation(metrics, samples, one, best, _shown(one, settings.shown))


def of_mean(name: str, values: np.ndarray | None, seed: int) -> dict[str, Any]:
    """The mean of scores [sources, n] and its interval, as NAME_mean and NAME_ci95; null where there are no rewards."""
    if values is None:
        return {f"{name}_mean": None, f"{name}_ci95": None} if name.startswith("reward") else {}
    ends = list(bootstrap_ci(values, seed_for(seed, "bootstrap")))
    return {f"{name}_mean": float(values.mean(dtype=np.float64)), f"{name}_ci95": ends}


def of_text(split: Split, greedy: list[str], beam: list[str], tokenize: str) -> dict[str, Any]:
    """Metrics of greedy and beam outputs against the references; none where there are no references."""
    if split.references is None:
        return {}
    on_text = partial(
        corpus_scores, references=split.references, more_references=split.more_references, tokenize=tokenize
    )
    of_beam = on_text(beam, names=("bleu", "chrf"))
    more = {f"{name}_beam{end}": of_beam[f"{name}{end}"] for name in ("bleu", "chrf") for end in ("", "_ci95")}
    return {**on_text(greedy), **more, "length_ratio": length_ratio(greedy, split.references)}


def detokenized(detokenize: Callable[[str], str], split: Split, greedy: list[str], beam: list[str]) -> dict[str, Any]:
    """BLEU and chrF of the text as people write it, by sacreBLEU's defaults, under NAME_detokenized."""
    if split.references is None:
        return {}
    first, *more = ([detokenize(y) for y in lines] for lines in (split.references, *split.more_references))
    found: dict[str, Any] = {}
    for of, outputs in {"": greedy, "_beam": beam}.items():
        texts = [detokenize(y) for y in outputs]
        scores = corpus_scores(texts, first, more_references=more, names=("bleu", "chrf"))
        found |= {f"{name}{of}_detokenized{end}": scores[f"{name}{end}"]
                  for name in ("bleu", "chrf") for end in ("", "_ci95", "_signature")}  # fmt: skip
    return found


def went_wrong(sources: list[str], greedy: list[str]) -> dict[str, float]:
    """Shares of greedy outputs, and of their trigrams, that are not what they should be."""
    copies, empty = copy_rate(sources, greedy), empty_rate(greedy)
    return {"copy_rate": copies, "empty_rate": empty, "repeated_trigrams": repeated_ngrams(greedy)}


def variety(samples: list[list[str]]) -> dict[str, float]:
    """How far the samples of a source differ."""
    found = {f"distinct_{n}": distinct_ngrams(samples, n) for n in (1, 2)}
    found["distinct_per_source"] = distinct_per_source(samples)
    return found if len(samples[0]) < 2 else found | {"self_bleu": self_bleu(samples)}


def _shown(greedy: Outputs, rows: int) -> list[dict[str, Any]]:
    split, scores = greedy.split, greedy.scores
    return [
        {
            "source": split.sources[i],
            "reference": None if split.references is None else split.references[i],
            "hypothesis": greedy.texts[i][0],
            "reward": float(scores["reward"][i, 0]) if "reward" in scores else None,
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
) -> dict[str, Any]:
    """Entropy and KL(policy ‖ anchor), nats per sentence, all from the same draws at temperature 1.

    Means of -log π and of log π - log π_anchor: `entropy` and `kl_to_<name>` of every anchor that is given, each with
    its 95 % interval over sources, `<metric>_ci95`.
    """
    whole = SamplingSettings(temperature=1.0, max_target_tokens=sampling.max_target_tokens)
    drawn = sample(policy, split.sources, split.ids, 1, whole, seed=seed_for(seed, "kl"), machine=machine)
    tokens = [y[0] for y in drawn.tokens]
    if max(map(len, tokens)) > batch.target_tokens:
        raise UserError(
            f"batch.target_tokens {batch.target_tokens} is less than max_target_tokens {whole.max_target_tokens}"
        )
    sources = policy.encode_sources(split.sources)  # whole, as they were sampled from
    own = np.asarray([values[0].sum() for values in drawn.log_probs], np.float64)
    drops = {"entropy": -own}
    for name, anchor in anchors.items():
        if anchor is not None:
            drops[f"kl_to_{name}"] = own - sequence_log_probs(anchor, Examples(sources, tokens), batch)
    found: dict[str, Any] = {}
    for name, nats in drops.items():
        found[name] = float(nats.mean())
        found[f"{name}_ci95"] = list(bootstrap_ci(nats, seed_for(seed, "bootstrap")))
    return found
