"""Training a learned reward: hypotheses are rated, and the network is fitted to the ratings, later to more of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Bool
from scipy import stats

from rest.data.batches import BatchSettings, Examples, training_batches
from rest.data.corpus import Split
from rest.data.ratings import SplitSettings, mix, split
from rest.errors import UserError
from rest.journal import say
from rest.learning.train import Schedule, TrainSettings, train
from rest.model.huggingface import HuggingFaceModel
from rest.model.transformer import TransformerSettings
from rest.policy.policy import Policy
from rest.policy.sampler import SamplingSettings, sample
from rest.reward.attacks import attack
from rest.reward.calibration import Span
from rest.reward.encoder import Encoder, HuggingFaceEncoder
from rest.reward.guards import Guards
from rest.reward.learned import LearnedReward, RatingLoss, RewardObjective
from rest.reward.rated import Rated, negatives
from rest.reward.reward import Calibration, RewardFunction
from rest.stage import seed_for

Gold = Callable[[list[str], list[str]], np.ndarray]


@runtime_checkable
class Rater(Protocol):
    """Whoever judges hypotheses: people, people simulated from the exact quality, a metric. Float32 [n]."""

    def rate(
        self,
        sources: list[str],
        hypotheses: list[str],
        references: list[str] | None,
        gold: Gold | None,
        seed: int,
    ) -> np.ndarray: ...


@dataclass(frozen=True)
class Cloned:
    """A translation model of the reward's own, cloned from human pairs before ratings teach it.

    It has the policy's tokenizer. Much smaller than the policy, it scores in a fraction of the time that the policy
    samples in: InstructGPT's policies of 175B parameters learn from a reward of 6B (Ouyang et al. 2022, appendix C.2).
    """

    model: TransformerSettings = field(
        default_factory=lambda: TransformerSettings(
            width=64, heads=2, feed_forward=128, encoder_layers=2, decoder_layers=1, dropout=0.1
        )
    )
    train: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            max_steps=20_000,
            evaluate_every=500,
            patience=3,
            schedule=Schedule(5e-3, 500, "inverse_sqrt"),
        )
    )


@dataclass(frozen=True)
class RewardSettings:
    """What is rated, by whom, and how the network is fitted."""

    rater: Any = None  # a Rater
    """Rates samples of the behavioural-cloning policy."""
    ratings: tuple[Any, ...] = ()  # each with load() -> Ratings
    """Files of human ratings instead: MQM, DirectAssessments, MLQEPE, Votes, Rankings. Several are standardised."""
    split: SplitSettings = field(default_factory=SplitSettings)
    """How the documents of human ratings are divided: dev decides when to stop, test is not looked at."""
    sources: int = 2000
    """Training sources set aside for ratings; Grow does not use them."""
    samples_per_source: int = 4
    """Samples of the behavioural-cloning policy that are rated."""
    rate_references: bool = True
    """Rate the human pairs of these sources too (not with a rater that compares with them)."""
    temperature: float = 1.0
    """Of the rated samples; warmer than Grow, so that the reward has seen bad translations."""
    dev_share: float = 0.15
    """Share of the rated sources that decides when to stop."""
    start: Any = None  # Cloned, TransformerSettings, HuggingFaceModel or HuggingFaceEncoder
    """What the network starts from: the policy, a translation model of its own, random parameters of these sizes, or a
    published model or encoder."""
    likelihood: bool = False
    """The head also reads how likely the policy (or the model of its own) finds the hypothesis, whatever training does,
    and the lengths."""
    ridge: float = 0.01
    """Penalty of the regression that the head starts from, relative to the number of ratings."""
    loss: RatingLoss = field(default_factory=RatingLoss)
    """Regression of the ratings, ranking of the hypotheses of a source, or both."""
    heads: int = 1
    """Several are an ensemble, whose spread tells what they are unsure of."""
    caution: float = 0.0
    """The reward is the mean of the heads less this many standard deviations of them."""
    calibration: Any = field(default_factory=Span)  # fit(scores, ratings) -> Calibration
    """What maps scores to [0, 1], fitted on the held-out ratings: Span, Affine or Isotonic."""
    guards: Guards | None = None
    """The reward of what they flag is 0."""
    negatives: float = 0.0
    """Share of the training rows that are translations spoilt on purpose, with the ratings they deserve; 0: none."""
    attacked: int = 300
    """After training, spoil the best rated translation of so many held-out sources at most; 0: none."""
    attack_warning: float = 0.2
    """Warn of an attack that raises the score of more than this share of the translations."""
    batch: BatchSettings = field(default_factory=lambda: BatchSettings(4096))
    train: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            max_steps=3000, evaluate_every=100, patience=4, schedule=Schedule(5e-4, 100)
        )
    )

    def __post_init__(self) -> None:
        if (self.rater is None) == (not self.ratings):
            raise UserError("reward: name either a rater, who rates samples, or files of ratings")
        if self.heads < 1 or self.caution < 0:
            raise UserError(f"reward: heads {self.heads} must be at least 1, and caution {self.caution} not below 0")
        if not 0 <= self.negatives < 1:
            raise UserError(f"reward: negatives must be a share from 0 to below 1, not {self.negatives}")
        if self.attacked < 0 or not 0 <= self.attack_warning <= 1:
            raise UserError(
                f"reward: attacked {self.attacked} must not be below 0, and attack_warning {self.attack_warning} "
                "must be a share from 0 to 1"
            )


@dataclass(frozen=True)
class Refresh:
    """Between Grow steps, ratings of the latest policy are added to those before, and the reward is fitted anew.

    Gulcehre et al. 2023 name it as a cure of a reward that is exploited, and did not try it.
    """

    sources: int = 0
    """How many of the sources set aside for ratings, drawn anew for each Grow step; 0: all."""
    samples_per_source: int = 2
    """Samples of the latest policy that are rated."""
    temperature: float = 0.8
    """Of these samples; Grow's, since it is Grow's samples that the reward is asked about."""
    rater: Any = None  # a Rater
    """Rates the new samples; none: the rater of the reward does."""
    ratings: tuple[Any, ...] = ()  # each a tuple of files
    """Where the reward is learned from files: those that are added before Grow 2, before Grow 3, and so on."""

    def __post_init__(self) -> None:
        if self.sources < 0 or self.samples_per_source < 1 or self.temperature <= 0:
            raise UserError(
                f"refresh: sources {self.sources} must not be below 0, samples_per_source {self.samples_per_source} "
                f"at least 1 and temperature {self.temperature} above 0"
            )


def human_ratings(settings: RewardSettings, added: tuple[Any, ...] = ()) -> Rated:
    """The train and dev documents of the rating files, with the files that each refreshing added."""
    loaded = [[file.load() for file in files] for files in (settings.ratings, *added)]
    parts = split(mix([ratings for files in loaded for ratings in files]), settings.split)
    rows = [parts.train, parts.dev]
    sources = [x for part in rows for x in part.sources]
    hypotheses = [y for part in rows for y in part.hypotheses]
    step = {
        pair: g
        for g in range(len(loaded), 0, -1)  # the first that had a pair counts
        for ratings in loaded[g - 1]
        for pair in zip(ratings.sources, ratings.hypotheses, strict=True)
    }
    return Rated(
        sources,
        hypotheses,
        np.concatenate([part.scores for part in rows]).astype(np.float32),
        np.concatenate([part.groups for part in rows]),
        np.repeat([False, True], [len(part) for part in rows]),
        np.asarray([step[pair] for pair in zip(sources, hypotheses, strict=True)], np.int64) if added else None,
    )


def rate(
    policy: Policy,
    text: Split,
    gold: Gold | None,
    settings: RewardSettings,
    sampling: SamplingSettings,
    seed: int,
) -> Rated:
    """Sample from the policy for every source, and have the samples (and human pairs) rated."""
    n = settings.samples_per_source
    law = dataclasses.replace(sampling, temperature=settings.temperature)
    drawn = sample(policy, text.sources, text.ids, n, law, seed=seed_for(seed, "rate"))
    sources = [x for x in text.sources for _ in range(n)]
    hypotheses = [y for texts in drawn.texts for y in texts]
    groups = np.repeat(text.ids, n)
    references = None if text.references is None else [x for x in text.references for _ in range(n)]
    if settings.rate_references and text.references is not None:
        sources += text.sources
        hypotheses += text.references
        groups = np.concatenate([groups, text.ids])
        references = (references or []) + text.references
    ratings = settings.rater.rate(sources, hypotheses, references, gold, seed_for(seed, "raters"))
    return Rated(sources, hypotheses, np.asarray(ratings, np.float32), groups)


def rate_again(
    policy: Policy,
    text: Split,
    gold: Gold | None,
    settings: RewardSettings,
    refresh: Refresh,
    sampling: SamplingSettings,
    *,
    g: int,
    seed: int,
) -> Rated:
    """Ratings of samples of the latest policy, as they come before Grow step g."""
    rng = np.random.default_rng(seed_for(seed, "refresh sources", g))
    chosen = np.sort(rng.permutation(len(text))[: refresh.sources or len(text)])
    asked = dataclasses.replace(
        settings,
        rater=settings.rater if refresh.rater is None else refresh.rater,
        samples_per_source=refresh.samples_per_source,
        temperature=refresh.temperature,
        rate_references=False,
    )
    rated = rate(policy, text.take(chosen), gold, asked, sampling, seed_for(seed, "refresh", g))
    return dataclasses.replace(rated, grow=np.full(len(rated.ratings), g))


@dataclass(frozen=True)
class Fitted:
    """A reward network, its calibration, and how well it agrees with what it did not see in training."""

    reward: LearnedReward
    calibration: Calibration
    report: dict[str, Any]


def fit(
    policy: Policy,
    rated: Rated,
    settings: RewardSettings,
    *,
    folder: Path,
    seed: int,
    gold: Gold | None = None,
    before: Mapping[str, RewardFunction] | None = None,
) -> Fitted:
    """Learn the ratings, stopping at the best agreement with those of sources held out.

    The network starts from the policy, or as `settings.start` says; of a `Cloned` one, that is the policy to give. The
    calibration is fitted to these too. `gold` is only looked at to report the agreement with it. `before` are
    rewards that were fitted to fewer ratings: all are compared on the held-out ratings that came last.
    """
    _check_ratings(rated)
    of_people = len(rated.ratings)
    rated = dataclasses.replace(rated, held_out=_held_out(rated, settings.dev_share, seed))
    if settings.negatives:
        rated += negatives(rated, rated.parts[0], settings.negatives, seed_for(seed, "negatives"))
    base = _start(settings.start, policy, seed)
    reward = LearnedReward.new(base, settings.batch, settings.heads, policy if settings.likelihood else None)
    reward = dataclasses.replace(reward, caution=settings.caution)
    training, held_out = _examples(reward, rated, ranked=settings.loss.ranking > 0)
    reward = reward.probe(training, settings.ridge)
    batches, _ = training_batches(
        training,
        settings.batch,
        pad_id=base.tokenizer.pad_id,
        seed=seed_for(seed, "reward batches"),
        process=(jax.process_index(), jax.process_count()),
    )
    rows = rated.parts[1]
    ratings, groups = rated.ratings[rows], rated.groups[rows]

    def agreement(parameters: Any) -> dict[str, float]:
        predicted = reward.predict(parameters, held_out).mean(1)
        numbers = {
            "pearson": correlation(predicted, ratings),
            "ranked_right": ranked_right(predicted, ratings, groups),
            "rmse": float(np.sqrt(np.mean(np.square(predicted - ratings)))),
        }
        return {"score": numbers["pearson" if settings.loss.regression else "ranked_right"], **numbers}

    trained = train(
        RewardObjective(reward.graph, settings.loss),
        reward.parameters,
        batches,
        settings.train,
        evaluate=agreement,
        folder=folder,
        seed=seed_for(seed, "reward dropout"),
        description="reward",
    )
    reward = dataclasses.replace(reward, parameters=trained.parameters)
    predicted = reward.joined(reward.predict(reward.parameters, held_out))
    calibration = settings.calibration.fit(predicted, ratings)
    report: dict[str, Any] = {
        "rated": of_people,
        "held_out": len(rows),
        "pearson_ratings": correlation(predicted, ratings),
        "spearman_ratings": rank_correlation(predicted, ratings),
        "ranked_right": ranked_right(predicted, ratings, groups),
        "range": list(calibration.ends),
        "steps": trained.steps,
        "best_step": trained.best_step,
        "stopped": trained.stopped,
    }
    if settings.negatives:
        report["negatives"] = len(rated.ratings) - of_people
    if gold is not None:
        exact = gold(*_texts(rated, rows))
        report["pearson_gold"] = correlation(predicted, exact)
        report["spearman_gold"] = rank_correlation(predicted, exact)
        report["rater_pearson_gold"] = correlation(ratings, exact)
    shown = {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in report.items() if k != "range"}
    say("reward: " + ", ".join(f"{k} {v}" for k, v in shown.items()))
    if before:
        fresh = rows[rated.steps[rows] == rated.steps.max()]
        if len(fresh):
            report["fresh"] = _compared({**before, "newest": reward}, rated, fresh, gold)
    if settings.attacked:
        report |= _attacked(reward, rated, rated.best(rows)[: settings.attacked], settings, seed)
    return Fitted(reward, calibration, report)


def _held_out(rated: Rated, share: float, seed: int) -> Bool[np.ndarray, " n"]:
    """What decides when to stop: the rows that the ratings name, or those of a share of the sources."""
    sources, dev = np.unique(rated.groups), rated.held_out
    if dev is None:
        order = np.random.default_rng(seed_for(seed, "reward dev")).permutation(len(sources))
        dev = np.isin(rated.groups, sources[order[: max(2, round(share * len(sources)))]])
    if dev.all():
        raise UserError(f"reward.sources: {len(sources)} rated sources are too few to hold some out")
    return dev


def _examples(reward: LearnedReward, rated: Rated, *, ranked: bool) -> tuple[Examples, Examples]:
    """What is learned from and what is held out, as the network reads them. Where it ranks, groups share rows."""
    examples = reward.examples(rated.sources, rated.hypotheses)
    group = np.unique(rated.groups, return_inverse=True)[1]  # small numbers, which float32 holds
    columns = {"rating": rated.ratings, "group": group.astype(np.float32), **examples.columns}

    def those(rows: np.ndarray) -> Examples:
        sources, targets = [examples.sources[r] for r in rows], [examples.targets[r] for r in rows]
        own = {name: values[rows] for name, values in columns.items()}
        return Examples(sources, targets, own, group[rows] if ranked else None)

    learned, held_out = rated.parts
    return those(learned), those(held_out)


def _texts(rated: Rated, rows: np.ndarray) -> tuple[list[str], list[str]]:
    """Sources and hypotheses of these rows."""
    return [rated.sources[r] for r in rows], [rated.hypotheses[r] for r in rows]


def _start(start: Any, policy: Policy, seed: int) -> Policy | Encoder:
    """What the setting `start` says, with the policy's tokenizer where it brings none."""
    match start:
        case None | Cloned():  # who calls `fit` has cloned it, and gives it as the policy
            return policy
        case TransformerSettings():
            return Policy.new(start, policy.tokenizer, seed_for(seed, "reward start"))
        case HuggingFaceModel():
            return Policy.start(start)
        case HuggingFaceEncoder():
            return start.read()
    raise UserError(
        f"reward.start: {start!r} is none of Cloned, TransformerSettings, HuggingFaceModel, HuggingFaceEncoder or None"
    )


def _compared(
    rewards: Mapping[str, RewardFunction], rated: Rated, rows: np.ndarray, gold: Gold | None
) -> dict[str, Any]:
    """Agreement of several rewards with the same ratings, and with gold where it is known."""
    sources, hypotheses = _texts(rated, rows)
    exact = None if gold is None else gold(sources, hypotheses)
    found: dict[str, Any] = {"held_out": len(rows)}
    for name, reward in rewards.items():
        scores = reward(sources, hypotheses, None)
        found[name] = {"spearman_ratings": rank_correlation(scores, rated.ratings[rows])}
        if exact is not None:
            found[name]["spearman_gold"] = rank_correlation(scores, exact)
        say(f"reward: {name} on {len(rows)} new ratings: " + ", ".join(f"{k} {v:.3f}" for k, v in found[name].items()))
    return found


def _attacked(
    reward: RewardFunction, rated: Rated, rows: np.ndarray, settings: RewardSettings, seed: int
) -> dict[str, Any]:
    """How often spoilt translations score above those of the rows, and which of the attacks to be warned of."""
    if len(rows) < 2:
        return {}
    results = attack(reward, *_texts(rated, rows), seed_for(seed, "attacks"), shown=1)
    warnings = [
        f"{r.attack}: scores above the honest translation in {r.higher:.0%} of {r.cases} cases"
        for r in results
        if r.higher > settings.attack_warning
    ]
    for line in warnings:
        say(f"reward: warning: {line}")
    return {"attacks": [r.record() for r in results], "attack_warnings": warnings}


def _check_ratings(rated: Rated) -> None:
    """UserError for ratings that nothing can be learned from."""
    ratings = rated.ratings
    bad = ~np.isfinite(ratings)
    if bad.any():
        row = int(bad.argmax())
        raise UserError(
            f"reward.rater: the rating of hypothesis {row} ({rated.hypotheses[row][:60]!r}) is {ratings[row]}"
        )
    if np.ptp(ratings) == 0:
        raise UserError(f"reward.rater: all {len(ratings)} ratings are {ratings[0]}: nothing can be learned")


def ranked_right(scores: np.ndarray, ratings: np.ndarray, groups: np.ndarray) -> float:
    """Share of the pairs of one group with different ratings that the scores order alike; ties count half."""
    right = pairs = 0.0
    order = np.argsort(groups, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        above = np.sign(ratings[rows][:, None] - ratings[rows]) > 0
        agree = np.sign(scores[rows][:, None] - scores[rows])[above]
        right, pairs = right + float((agree + 1).sum()) / 2, pairs + float(above.sum())
    return right / pairs if pairs else 0.5


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r; 0 where one side does not vary."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(stats.pearsonr(a.astype(np.float64), b.astype(np.float64)).statistic)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rho, ties at their mean rank; 0 where one side does not vary."""
    return correlation(stats.rankdata(a), stats.rankdata(b))
