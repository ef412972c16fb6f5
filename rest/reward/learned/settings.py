"""What a reward is learned from, and how: its settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from rest.data.batches import BatchOverrides
from rest.data.corpus import Gold
from rest.errors import UserError, refuse_below, refuse_shares
from rest.identity import remember
from rest.learning.optimizers import Schedule
from rest.learning.train import TrainSettings
from rest.model.layers import TransformerSettings
from rest.policy.sampler import check_temperature
from rest.ratings.record import SplitSettings
from rest.reward.guards import Guards
from rest.reward.learned.calibration import MinMax
from rest.reward.learned.choice import WithinAndAcross
from rest.reward.learned.network import RatingLoss


@runtime_checkable
class Rater(Protocol):
    """Whoever rates hypotheses: people, people simulated from the exact quality, a metric. Float32 [n]."""

    def rate(
        self,
        sources: list[str],
        hypotheses: list[str],
        references: list[str] | None,
        gold: Gold | None,
        seed: int,
    ) -> np.ndarray: ...


@dataclass(frozen=True)
class TranslationModel:
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
    """Rate the human pairs of these sources too. Not with a rater that compares with them, to which each is perfect:
    but a reward that has seen none scores them too low, and too few of those that compete pass; with such a rater
    better keep them always or never (`improve.human_pairs`)."""
    temperatures: tuple[float, ...] = (0.8, 1.0)
    """The samples of a source are dealt evenly to these: Grow's, about whose samples the reward is asked, and a warmer
    one, so that it has seen bad translations too."""
    dev_share: float = 0.15
    """Share of the rated sources that decides when to stop."""
    start: Any = None  # TranslationModel, TransformerSettings, HuggingFaceModel or HuggingFaceEncoder
    """What the network starts from: the policy, a translation model of its own, random parameters of these sizes, or a
    published model or encoder."""
    likelihood: bool = False
    """The head also reads how likely the policy (or the model of its own) finds the hypothesis, whatever training does,
    and the lengths."""
    ridge: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    """Penalties of the regression that the head starts from, relative to the number of ratings: the one is taken whose
    scores agree best with the ratings held out (`choose`)."""
    loss: RatingLoss = field(default_factory=RatingLoss)
    """Regression of the ratings, ranking of the hypotheses of a source, or both."""
    choose: Any = field(default_factory=WithinAndAcross)  # a Choice
    """Which checkpoint is kept, by held-out ratings: the best WithinAndAcross sources, WithinSources alone (all that
    rules per source ask, but noisy below some thousands of pairs), AcrossSources, or by a function of yours."""
    heads: int = 1
    """Several are an ensemble, whose spread tells what they are unsure of."""
    caution: float = 0.0
    """The reward is the mean of the heads less this many standard deviations of them."""
    calibration: Any = field(default_factory=MinMax)  # fit(scores, ratings) -> Calibration
    """What maps scores to [0, 1], fitted on the held-out ratings: MinMax, Affine, Isotonic or Quantile."""
    guards: Guards | None = None
    """The reward of what they flag is 0."""
    negatives: float = 0.0
    """Share of the training rows that are translations corrupted on purpose, with the ratings they deserve; 0: none."""
    attacked: int = 300
    """After training, corrupt the references of so many held-out sources at most (the best rated translations where it
    is learned from files); 0: none."""
    attack_warning: float = 0.2
    """Warn of an attack that raises the score of more than this share of the translations, if they are 20 or more."""
    batch: BatchOverrides = field(default_factory=BatchOverrides)
    """Batches of another shape than the experiment's."""
    train: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            max_steps=3000, evaluate_every=100, patience=4, schedule=Schedule(5e-4, 100)
        )
    )

    def __post_init__(self) -> None:
        if (self.rater is None) == (not self.ratings):
            raise UserError("reward: name either a rater, who rates samples, or files of ratings")
        if self.rater is not None:
            remember(self.rater)
        distinct = len({*self.temperatures})
        if not self.temperatures or distinct < len(self.temperatures):
            raise UserError(f"reward: temperatures {self.temperatures} must be different numbers")
        for temperature in self.temperatures:
            check_temperature("reward.temperatures", temperature)
        if self.samples_per_source < distinct:
            raise UserError(
                f"reward: samples_per_source {self.samples_per_source} cannot be dealt to "
                f"{distinct} temperatures {self.temperatures}"
            )
        refuse_below("reward.", self, {"sources": 1, "heads": 1, "caution": 0, "attacked": 0})
        if not self.ridge or min(self.ridge) < 0:
            raise UserError(f"reward.ridge: {self.ridge} must be penalties, none of them below 0")
        refuse_shares("reward.", self, "negatives", "dev_share")
        if not 0 <= self.attack_warning <= 1:
            raise UserError(f"reward.attack_warning must be a share from 0 to 1, not {self.attack_warning}")

    @property
    def samples_at(self) -> dict[float, int]:
        """How many samples of each source are drawn at each temperature."""
        each, more = divmod(self.samples_per_source, len(self.temperatures))
        return {temperature: each + (k < more) for k, temperature in enumerate(self.temperatures)}


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
        refuse_below("refresh.", self, {"sources": 0, "samples_per_source": 1})
        check_temperature("refresh.temperature", self.temperature)
