"""Training a learned reward: hypotheses are rated, and the network is fitted to the ratings, later to more of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from rest import processes
from rest.data.batches import BatchSettings, Examples
from rest.data.corpus import Gold, Split
from rest.errors import UserError
from rest.folder import seed_for
from rest.journal import say
from rest.learning.mesh import MachineSettings
from rest.learning.train import shuffled, train
from rest.model.families.huggingface import HuggingFaceModel
from rest.model.layers import TransformerSettings
from rest.policy.policy import Policy
from rest.policy.sampler import SamplingSettings, sample
from rest.ratings.rated import Rated
from rest.ratings.record import mix, split
from rest.reward.attacks import ENOUGH, attack, negatives
from rest.reward.learned.calibration import Affine, Isotonic
from rest.reward.learned.choice import AcrossSources, Choice, WithinAndAcross, WithinSources, can_rank
from rest.reward.learned.encoder import Encoder, HuggingFaceEncoder
from rest.reward.learned.network import LearnedReward, RewardObjective
from rest.reward.learned.probe import probe
from rest.reward.learned.settings import Refresh, RewardSettings, TranslationModel
from rest.reward.reward import Calibration, RewardFunction, name_of
from rest.statistics.correlation import pearson, ranked_right, spearman


def human_ratings(settings: RewardSettings, added: tuple[Any, ...] = ()) -> Rated:
    """The train and dev documents of the rating files, with the files that each refreshing added."""
    if not settings.split.dev_share:
        raise UserError("reward.split.dev_share 0: some ratings must be held out, to say when training stops")
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
    if added:  # what the reward before has learned the source of is not new to it: documents are divided anew
        before = split(mix([ratings for files in loaded[:-1] for ratings in files]), settings.split)
        learned = {*before.train.sources}
        step = {pair: min(g, len(added)) if pair[0] in learned else g for pair, g in step.items()}
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
    machine: MachineSettings | None = None,
) -> Rated:
    """Sample from the policy at the temperatures of ratings, and have the samples (and human pairs) rated.

    A sample is a function of (seed, temperature, source, its number among those of the temperature).
    """
    drawn: list[list[str]] = [[] for _ in text.sources]
    for temperature, count in settings.samples_at.items():
        at, own = dataclasses.replace(sampling, temperature=temperature), seed_for(seed, f"rate at {temperature}")
        found = sample(policy, text.sources, text.ids, count, at, seed=own, machine=machine)
        drawn = [before + new for before, new in zip(drawn, found.texts, strict=True)]
    n = settings.samples_per_source
    sources = [x for x in text.sources for _ in range(n)]
    hypotheses = [y for texts in drawn for y in texts]
    groups = np.repeat(text.ids, n)
    references = None if text.references is None else [x for x in text.references for _ in range(n)]
    if settings.rate_references and text.references is not None:
        sources += text.sources
        hypotheses += text.references
        groups = np.concatenate([groups, text.ids])
        references = (references or []) + text.references
    with processes.alone():
        given = settings.rater.rate(sources, hypotheses, references, gold, seed_for(seed, "raters"))
    ratings = processes.agreed(np.asarray(given, np.float32))
    human = np.arange(len(sources)) >= n * len(text)
    return Rated(sources, hypotheses, np.asarray(ratings, np.float32), groups, references=references, human=human)


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
    machine: MachineSettings | None = None,
) -> Rated:
    """Ratings of samples of the latest policy, as they come before Grow step g."""
    rng = np.random.default_rng(seed_for(seed, "refresh sources", g))
    chosen = np.sort(rng.permutation(len(text))[: refresh.sources or len(text)])
    asked = dataclasses.replace(
        settings,
        rater=settings.rater if refresh.rater is None else refresh.rater,
        samples_per_source=refresh.samples_per_source,
        temperatures=(refresh.temperature,),
        rate_references=False,
    )
    rated = rate(policy, text.take(chosen), gold, asked, sampling, seed_for(seed, "refresh", g), machine)
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
    batch: BatchSettings,
    *,
    folder: Path,
    seed: int,
    machine: MachineSettings | None = None,
    gold: Gold | None = None,
    before: Mapping[str, RewardFunction] | None = None,
) -> Fitted:
    """Learn the ratings, stopping at the best agreement (`settings.choose`) with those of sources held out.

    The network starts from the policy, or as `settings.start` says; a `TranslationModel` is to be given as the policy.
    The calibration is fitted to these ratings too. `gold` is only looked at to report the agreement with it. `before`
    are rewards that were fitted to fewer ratings: all are compared on the held-out ratings that came last.
    """
    _check_ratings(rated)
    of_people = len(rated.ratings)
    rated = dataclasses.replace(rated, held_out=_held_out(rated, settings.dev_share, seed))
    if settings.negatives:
        rated += negatives(rated, rated.parts[0], settings.negatives, seed_for(seed, "negatives"))
    start = started(settings.start, policy, seed)
    reward = LearnedReward.new(start, batch, settings.heads, policy if settings.likelihood else None)
    reward = dataclasses.replace(reward, caution=settings.caution)
    training, held_out = _examples(reward, rated, ranked=settings.loss.ranking > 0)
    pad_id, own = start.tokenizer.pad_id, seed_for(seed, "reward batches")
    batches, _ = shuffled(training, batch, pad_id=pad_id, seed=own, machine=machine)
    rows = rated.parts[1]
    ratings, groups = rated.ratings[rows], rated.groups[rows]
    if isinstance(settings.calibration, Affine | Isotonic):
        settings.calibration.check(ratings)  # now and not after the training
    choice = _choice(settings.choose, ratings, groups)
    reward, ridge = probe(reward, training, held_out, settings.ridge, lambda scores: choice(scores, ratings, groups))

    def agreement(reward: LearnedReward) -> dict[str, float]:
        predicted = reward.predict(held_out).mean(1)
        numbers = {
            "pearson": pearson(predicted, ratings),
            "ranked_right": ranked_right(predicted, ratings, groups),
            "rmse": float(np.sqrt(np.mean(np.square(predicted - ratings)))),
        }
        return {"score": choice(predicted, ratings, groups), **numbers}

    trained = train(
        reward,
        RewardObjective(settings.loss),
        batches,
        settings.train,
        evaluate=agreement,
        folder=folder,
        seed=seed_for(seed, "reward dropout"),
        description="reward",
        machine=machine,
    )
    reward = trained.best
    predicted = reward.joined(reward.predict(held_out))
    scaled = ~rated.is_reference[rows] if getattr(settings.calibration, "of_samples", False) else slice(None)
    calibration = settings.calibration.fit(predicted[scaled], ratings[scaled])
    report: dict[str, Any] = {"rated": of_people, "held_out": len(rows), **_agreement(predicted, rated, rows, gold)}
    report |= {"range": list(calibration.ends), "ridge": ridge}
    report |= {"steps": trained.steps, "best_step": trained.best_step}
    report |= {"stopped": trained.stopped, "chosen_by": name_of(choice)}
    if settings.negatives:
        report["negatives"] = len(rated.ratings) - of_people
    shown = {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in report.items() if k != "range"}
    say("reward: " + ", ".join(f"{k} {v}" for k, v in shown.items()))
    if before:
        fresh = rows[rated.steps[rows] == rated.steps.max()]
        if len(fresh):
            report["fresh"] = _compared({**before, "newest": reward}, rated, fresh, gold)
    if settings.attacked:
        report |= _attacked(reward, rated, rows, settings, seed)
    return Fitted(reward, calibration, report)


def _agreement(predicted: np.ndarray, rated: Rated, rows: np.ndarray, gold: Gold | None) -> dict[str, Any]:
    """How far scores of these rows agree with their ratings, and with gold where it is known."""
    ratings, groups = rated.ratings[rows], rated.groups[rows]
    found = {
        "pearson_ratings": pearson(predicted, ratings),
        "spearman_ratings": spearman(predicted, ratings),
        "ranked_right": ranked_right(predicted, ratings, groups),
    }
    if gold is not None:
        exact = gold(*_texts(rated, rows))
        found["pearson_gold"] = pearson(predicted, exact)
        found["spearman_gold"] = spearman(predicted, exact)
        found["rater_pearson_gold"] = pearson(ratings, exact)
    return found


def _choice(choose: Choice, ratings: np.ndarray, groups: np.ndarray) -> Choice:
    """What tells the best checkpoint: as set, or Pearson's correlation where there is no pair to rank."""
    if not isinstance(choose, WithinSources | WithinAndAcross) or can_rank(ratings, groups):
        return choose
    say("reward: no held-out source has two rows of different ratings: Pearson's correlation chooses the checkpoint")
    return AcrossSources()


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
    examples = dataclasses.replace(examples, columns=columns, groups=group if ranked else None)
    learned, held_out = rated.parts
    return examples.take(learned), examples.take(held_out)


def _texts(rated: Rated, rows: np.ndarray) -> tuple[list[str], list[str]]:
    """Sources and hypotheses of these rows."""
    return [rated.sources[r] for r in rows], [rated.hypotheses[r] for r in rows]


def started(start: Any, policy: Policy, seed: int) -> Policy | Encoder:
    """What the setting `start` says, with the policy's tokenizer where it brings none."""
    match start:
        case None | TranslationModel():  # who calls `fit` has cloned it, and gives it as the policy
            return policy
        case TransformerSettings():
            return Policy.new(start, policy.tokenizer, seed_for(seed, "reward start"))
        case HuggingFaceModel():
            return Policy.start(start)
        case HuggingFaceEncoder():
            return start.read()
    raise UserError(
        f"reward.start: {start!r} is none of TranslationModel, TransformerSettings, HuggingFaceModel, "
        f"HuggingFaceEncoder or None"
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
        found[name] = {"spearman_ratings": spearman(scores, rated.ratings[rows])}
        if exact is not None:
            found[name]["spearman_gold"] = spearman(scores, exact)
        say(f"reward: {name} on {len(rows)} new ratings: " + ", ".join(f"{k} {v:.3f}" for k, v in found[name].items()))
    return found


def _attacked(
    reward: RewardFunction, rated: Rated, rows: np.ndarray, settings: RewardSettings, seed: int
) -> dict[str, Any]:
    """How often corrupted translations score above good ones of the rows' sources, and which attacks to warn of."""
    sources, honest = (texts[: settings.attacked] for texts in rated.honest(rows))
    if len(sources) < 2:
        return {}
    results = attack(reward, sources, honest, seed_for(seed, "attacks"), shown=1)
    warnings = [
        f"{r.attack}: scores above the honest translation in {r.higher:.0%} of {r.cases} cases"
        for r in results
        if r.cases >= ENOUGH and r.higher > settings.attack_warning
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
