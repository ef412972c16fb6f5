"""The whole loop in seconds, for tests: an experiment file like those in experiments/."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rest.baselines.bc import BCSettings
from rest.baselines.rollout import RolloutSettings
from rest.baselines.settings import CriticSettings, PPOSettings
from rest.data.batches import BatchSettings
from rest.data.corpus import SyntheticCorpus
from rest.data.files import TextFiles
from rest.data.synthetic import SyntheticLanguage
from rest.data.tokenizer import SentencePieceSettings
from rest.evaluation.chooser import RewardOfSamples
from rest.evaluation.evaluate import EvaluationSettings
from rest.experiment import Experiment
from rest.grow import GrowSettings
from rest.improve import ImproveSettings
from rest.learning.losses import GOLD, NLL, VMPO, Anchored, VTrace
from rest.learning.mesh import MachineSettings
from rest.learning.optimizers import Schedule
from rest.learning.train import TrainSettings
from rest.model.layers import TransformerSettings
from rest.policy.beam import BeamSettings
from rest.policy.sampler import SamplingSettings
from rest.reward.learned.settings import Refresh, RewardSettings
from rest.reward.raters import SimulatedRater
from rest.reward.reward import Reward
from rest.thresholds import Fixed, GlobalPercentile


def training(steps: int, every: int) -> TrainSettings:
    return TrainSettings(max_steps=steps, evaluate_every=every, schedule=Schedule(5e-3, 5))


experiment = Experiment(
    corpus=SyntheticCorpus(SyntheticLanguage(train=240, dev=16, test=16)),
    tokenizer=SentencePieceSettings(256),
    model=TransformerSettings(width=32, heads=2, feed_forward=64, encoder_layers=1, decoder_layers=1),
    batch=BatchSettings(batch_tokens=512, source_tokens=64, target_tokens=64),
    sampling=SamplingSettings(max_target_tokens=32),
    machine=MachineSettings(rows=96),
    bc=BCSettings(train=replace(training(60, 20), average=2)),
    reward=RewardSettings(
        rater=SimulatedRater(),
        sources=60,
        samples_per_source=2,
        ridge=(0.01,),  # one reward for all tests, under which Improve goes on from its start
        train=training(10, 5),
    ),
    grow=GrowSettings(sources=64, samples_per_source=3, sources_per_shard=16),
    improve=ImproveSettings(rule=GlobalPercentile((50.0, 75.0)), train=training(20, 10)),
    choose=RewardOfSamples(2),
    evaluation=EvaluationSettings(
        samples_per_source=2,
        beam=BeamSettings(beams=2),
        kl_sources=8,
        shown=4,
        bc_temperatures=(),
        ceiling_samples=0,
    ),
)


def words_in_common(sources: list[str], hypotheses: list[str], references: list[str] | None) -> np.ndarray:
    """A given reward: share of the reference's words that the hypothesis has."""
    assert references is not None
    pairs = [(set(y.split()), set(r.split())) for y, r in zip(hypotheses, references, strict=True)]
    return np.array([len(y & r) / len(r) for y, r in pairs], np.float32)


@dataclass(frozen=True)
class Constant:
    """A reward that gives every hypothesis the same score; for what a wrong reward does."""

    score: float = 0.5
    """What it gives."""
    rows: int = 0
    """So many scores too many."""

    def __call__(self, sources: list[str], hypotheses: list[str], references: list[str] | None) -> np.ndarray:
        return np.full(len(hypotheses) + self.rows, self.score, np.float32)


given = replace(experiment, reward=Reward(words_in_common))
constant = replace(experiment, reward=Reward(Constant()))
# The text of the tests has longer sentences.
text = replace(
    given,
    batch=BatchSettings(batch_tokens=768, source_tokens=96, target_tokens=96),
    corpus=TextFiles(*[Path("to be given by flags")] * 6),
)
ppo = replace(
    experiment,
    grow_steps=0,
    ppo=PPOSettings(
        rollouts=4,
        evaluate_every=2,
        rollout=RolloutSettings(16, 2, temperature=0.9, keep_every=3),
        schedule=Schedule(1e-3),
        pretraining=0.1,
        pretraining_pairs=8,
        critic=CriticSettings(warmup_rollouts=1),
    ),
)
nothing_passes = replace(given, improve=replace(given.improve, rule=Fixed((0.0, 1.0)), unfiltered=False))
refreshed = replace(
    experiment, grow_steps=2, refresh=Refresh(sources=40), improve=replace(experiment.improve, unfiltered=False)
)
# V-MPO with a behavioural prior and V-trace asks for everything: the log-probabilities of BC, of the anchor and of what
# drew the tokens, a value, dual variables.
bvmpo = replace(
    experiment,
    improve=replace(
        experiment.improve,
        loss=Anchored(VMPO(correction=VTrace())),
        train=training(4, 4),
        value=training(4, 2),
    ),
)
# A group of variants, which have BC and the Grow step in common.
losses = {
    name: replace(given, improve=replace(given.improve, loss=loss, rule=GlobalPercentile((50.0,)), unfiltered=False))
    for name, loss in {"NLL": NLL(), "GOLD": GOLD()}.items()
}
