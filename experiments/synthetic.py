"""ReST on a made-up language pair: the demo.

Shows    Behavioural cloning copies its noisy references; Grow and Improve with a reward learned from one noisy rater
         go beyond them, in that reward and in exact quality ("gold"), which no part of the training sees.
         `own_reward`: the reward starts from a small translation model of its own, and not from the policy.
Command  rest run experiments/synthetic.py --out runs/demo
Hardware 2 CPU cores: about 9 minutes, without installation
Expect   experiments/LOG.md has what was measured.
"""

from dataclasses import replace

from rest import BatchSettings, BCSettings, BeamSettings, EvaluationSettings, Experiment, GlobalPercentile
from rest import GrowSettings, ImproveSettings, MachineSettings, PerSourcePercentile, PPOSettings, RewardSettings
from rest import RolloutSettings, SamplingSettings, Schedule, SentencePieceSettings, SimulatedRater, SyntheticCorpus
from rest import SyntheticLanguage, TrainSettings, TransformerSettings, TranslationModel

experiment = Experiment(
    corpus=SyntheticCorpus(
        SyntheticLanguage(train=6000, dev=240, test=600, nouns=20, verbs=10, adjectives=8, adverbs=4)
    ),
    tokenizer=SentencePieceSettings(vocabulary_size=512),
    model=TransformerSettings(width=128, heads=4, feed_forward=256, encoder_layers=2, decoder_layers=2, dropout=0.1),
    batch=BatchSettings(batch_tokens=1024, source_tokens=80, target_tokens=64),
    sampling=SamplingSettings(temperature=0.8, max_target_tokens=48),
    bc=BCSettings(
        train=TrainSettings(
            max_steps=800,
            evaluate_every=100,
            patience=3,
            average=3,
            schedule=Schedule(3e-3, 200, "inverse_sqrt"),
        )
    ),
    reward=RewardSettings(
        rater=SimulatedRater(),
        sources=1500,
        samples_per_source=3,
        train=TrainSettings(max_steps=100, evaluate_every=50, patience=2, schedule=Schedule(1e-4, 20)),
    ),
    grow_steps=2,
    grow=GrowSettings(sources=2000, samples_per_source=8, sources_per_shard=512),
    improve=ImproveSettings(
        rule=PerSourcePercentile((50.0, 80.0)),
        train=TrainSettings(max_steps=80, evaluate_every=40, patience=3, schedule=Schedule(6e-4, 20)),
    ),
    evaluation=EvaluationSettings(
        samples_per_source=4,
        beam=BeamSettings(beams=4),
        dev_samples_per_source=2,
        kl_sources=200,
    ),
)

# A reward that starts from a translation model of its own, smaller than the policy and trained for longer.
own_reward = replace(
    experiment,
    reward=replace(
        experiment.reward,
        start=TranslationModel(
            train=TrainSettings(
                max_steps=3000, evaluate_every=200, patience=3, average=3, schedule=Schedule(5e-3, 200, "inverse_sqrt")
            )
        ),
    ),
)

# PPO beside BC, small: `rest run experiments/synthetic.py:ppo --out runs/ppo`, some minutes on 2 cores.
# It goes beyond BC and BC continued in reward and gold of samples; not of greedy outputs (results/synthetic-ppo.json).
ppo = Experiment(
    corpus=SyntheticCorpus(SyntheticLanguage(train=3000, dev=100, test=200, nouns=6, verbs=4, adjectives=3, adverbs=2)),
    tokenizer=SentencePieceSettings(256),
    model=TransformerSettings(width=32, heads=2, feed_forward=64, encoder_layers=1, decoder_layers=1),
    batch=BatchSettings(batch_tokens=512, source_tokens=64, target_tokens=64),
    sampling=SamplingSettings(max_target_tokens=32),
    machine=MachineSettings(rows=96),
    bc=BCSettings(
        train=TrainSettings(
            max_steps=2000, evaluate_every=250, patience=3, average=2, schedule=Schedule(5e-3, 100, "inverse_sqrt")
        )
    ),
    reward=RewardSettings(
        rater=SimulatedRater(),
        sources=500,
        samples_per_source=3,
        train=TrainSettings(max_steps=100, evaluate_every=50, schedule=Schedule(1e-3, 20)),
    ),
    grow_steps=0,
    grow=GrowSettings(sources=64, samples_per_source=3, sources_per_shard=16),
    improve=ImproveSettings(
        rule=GlobalPercentile((50.0, 75.0)),
        train=TrainSettings(max_steps=20, evaluate_every=10, schedule=Schedule(5e-3, 5)),
    ),
    ppo=PPOSettings(
        rollouts=30,
        evaluate_every=10,
        rollout=RolloutSettings(32, 4, temperature=0.9),
        schedule=Schedule(1e-3),
        pretraining=0.1,
        pretraining_pairs=32,
    ),
    evaluation=EvaluationSettings(
        samples_per_source=4,
        beam=BeamSettings(beams=2),
        dev_samples_per_source=2,
        kl_sources=8,
        shown=4,
    ),
)
