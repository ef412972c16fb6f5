"""ReST on a made-up language pair: the demo.

Shows    Behavioural cloning copies its references, whose translators err and are often literal: what most of them
         write is then wrong, and training for longer does not help. Grow and Improve with a reward learned from one
         noisy rater go beyond them, in exact quality ("gold"), which no part of the training sees, of samples and of
         greedy and beam outputs. `ablations`: one thing at a time as it was before. `own_reward`: the reward starts
         from a small translation model of its own, and not from the policy.
Command  rest run experiments/synthetic.py --out runs/demo
         rest study experiments/synthetic.py --out runs/demo-seeds --seeds 0 1 2
         rest study experiments/synthetic.py:ablations --out runs/ablations --seeds 0
Hardware 2 CPU cores: six to eight minutes, without installation
Expect   experiments/LOG.md has what was measured.
"""

from dataclasses import replace

from rest import BatchSettings, BCSettings, BeamSettings, EvaluationSettings, Experiment
from rest import GrowSettings, ImproveSettings, MachineSettings, Noise, PerSourcePercentile, PerSourceTop
from rest import PPOSettings, RewardOfSamples, RewardSettings, RolloutSettings, SamplingOverrides, SamplingSettings
from rest import Schedule, SentencePieceSettings, SimulatedRater, SyntheticCorpus, SyntheticLanguage, TrainSettings
from rest import TransformerSettings, TranslationModel, WithinSources

experiment = Experiment(
    corpus=SyntheticCorpus(
        SyntheticLanguage(
            train=6000,
            dev=240,
            test=600,
            nouns=20,
            verbs=10,
            adjectives=8,
            adverbs=4,
            ambiguous=0.6,
            noise=Noise(literal=0.6),
        )
    ),
    tokenizer=SentencePieceSettings(vocabulary_size=512),
    model=TransformerSettings(width=128, heads=4, feed_forward=256, encoder_layers=2, decoder_layers=2, dropout=0.1),
    batch=BatchSettings(batch_tokens=1024, source_tokens=80, target_tokens=64),
    sampling=SamplingSettings(temperature=0.8, max_target_tokens=48),
    bc=BCSettings(
        train=TrainSettings(
            max_steps=900, evaluate_every=100, patience=3, average=3, schedule=Schedule(4e-3, 150, "linear", 900)
        )
    ),
    reward=RewardSettings(
        rater=SimulatedRater(),
        sources=1500,
        samples_per_source=4,
        train=TrainSettings(
            max_steps=200, evaluate_every=50, patience=4, average=2, schedule=Schedule(6e-4, 20, "linear", 200)
        ),
    ),
    grow=GrowSettings(sources=1500, samples_per_source=32, sources_per_shard=512),
    improve=ImproveSettings(
        rule=PerSourceTop((4, 1)),
        unfiltered=False,
        train=TrainSettings(max_steps=160, evaluate_every=40, patience=3, average=3, schedule=Schedule(1e-3, 20)),
    ),
    choose=RewardOfSamples(2),
    evaluation=EvaluationSettings(
        samples_per_source=4,
        beam=BeamSettings(beams=4),
        kl_sources=200,
    ),
)


def improving(**changes) -> Experiment:
    """With other settings of Improve."""
    return replace(experiment, improve=replace(experiment.improve, **changes))


# The same with one thing at a time as it was before: which of them matters
_train, _reward = experiment.improve.train, experiment.reward
ablations = {
    "final": experiment,
    "label_smoothing": improving(label_smoothing=0.1),
    "no_averaging": improving(train=replace(_train, average=1)),
    "constant_rate": improving(learning_rate_factor=1.0),
    "percentiles": improving(rule=PerSourcePercentile((87.5, 96.9))),
    "one_step": improving(rule=PerSourceTop((1,)), train=replace(_train, max_steps=320)),
    "no_human_pairs": improving(human_pairs="never"),
    "8_samples": replace(improving(rule=PerSourceTop((2, 1))), grow=replace(experiment.grow, samples_per_source=8)),
    "cool": replace(experiment, grow=replace(experiment.grow, sampling=SamplingOverrides(temperature=0.5))),
    "epsilon": replace(experiment, grow=replace(experiment.grow, sampling=SamplingOverrides(1.0, epsilon=0.02))),
    "beams": replace(experiment, grow=replace(experiment.grow, beams=4)),
    "rated_at_1": replace(experiment, reward=replace(_reward, temperatures=(1.0,))),
    "chosen_within": replace(experiment, reward=replace(_reward, choose=WithinSources())),
    "reward_rate": replace(
        experiment, reward=replace(_reward, train=replace(_reward.train, patience=2, schedule=Schedule(2e-4, 20)))
    ),
    "bc_smoothing": replace(experiment, bc=replace(experiment.bc, label_smoothing=0.1)),
}

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
        rule=PerSourceTop((2, 1)),
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
    choose=RewardOfSamples(2),
    evaluation=EvaluationSettings(
        samples_per_source=4,
        beam=BeamSettings(beams=2),
        kl_sources=8,
        shown=4,
    ),
)
