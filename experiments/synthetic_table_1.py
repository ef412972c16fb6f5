"""The paper's table 1 on a made-up language pair: ReST beside tuned PPO, RLOO and GRPO that draw as many samples.

Shows    `table`: BC that has converged, BC trained on, ReST with G = 1 and 2, PPO, RLOO and GRPO with as many samples
         as one Grow step draws, and PPO with as many as two do. `trials`: seven of ReST and ten of PPO and its kin, of
         which dev chose what is compared. `sweep`: what the KL coefficient does to PPO. `hacking`: PPO against a reward
         of people who favour long translations, free, held by the divergence, by LoRA or by a frozen encoder.
Command  rest study experiments/synthetic_table_1.py:trials --out runs/trials --seeds 100
         rest study experiments/synthetic_table_1.py:table --out runs/table-1 --seeds 0 1 2 --every
         rest study experiments/synthetic_table_1.py:sweep --out runs/sweep --seeds 0
         rest study experiments/synthetic_table_1.py:hacking --out runs/hacking --seeds 0
         one of them alone: rest run experiments/synthetic_table_1.py:table.rloo --out runs/rloo
Hardware 2 CPU cores
Expect   experiments/LOG.md has what was measured. Trials are compared by the reward on dev, `dev_reward` of the stages
         in study.json.
"""

from dataclasses import replace

from rest import GOLD, GRPO, RLOO, BatchSettings, BCSettings, BeamSettings, CriticSettings, EvaluationSettings
from rest import Experiment, FixedCoefficient, GrowSettings, ImproveSettings, InReward, LoRA, Noise, PerSourceTop
from rest import PPOSettings, RewardOfSamples, RewardSettings, RolloutSettings, SamplingSettings, Schedule
from rest import SentencePieceSettings, SimulatedRater, SyntheticCorpus, SyntheticLanguage, Trainable, TrainSettings
from rest import TransformerSettings

# The small task: as much as two busy cores compare in minutes. Translators are often literal, as in the demo.
# One Grow step draws 8,000 samples, as do 50 rollouts of 160.
base = Experiment(
    corpus=SyntheticCorpus(
        SyntheticLanguage(
            train=3000,
            dev=120,
            test=300,
            nouns=12,
            verbs=6,
            adjectives=4,
            adverbs=2,
            ambiguous=0.6,
            noise=Noise(literal=0.6),
        )
    ),
    tokenizer=SentencePieceSettings(vocabulary_size=512),
    model=TransformerSettings(width=64, heads=2, feed_forward=128, encoder_layers=1, decoder_layers=1, dropout=0.1),
    batch=BatchSettings(batch_tokens=1024, source_tokens=80, target_tokens=64),
    sampling=SamplingSettings(temperature=0.8, max_target_tokens=48),
    bc=BCSettings(
        train=TrainSettings(
            max_steps=1500, evaluate_every=150, patience=3, average=3, schedule=Schedule(4e-3, 100, "linear", 1500)
        )
    ),
    reward=RewardSettings(
        rater=SimulatedRater(),
        sources=800,
        samples_per_source=4,
        train=TrainSettings(max_steps=200, evaluate_every=50, patience=2, average=2, schedule=Schedule(5e-4, 10)),
    ),
    grow=GrowSettings(sources=500, samples_per_source=16, sources_per_shard=512),
    improve=ImproveSettings(
        rule=PerSourceTop((4, 1)),
        unfiltered=False,
        train=TrainSettings(max_steps=80, evaluate_every=20, patience=9, average=2, schedule=Schedule(1e-3, 10)),
        value=TrainSettings(max_steps=800, evaluate_every=80, patience=3, schedule=Schedule(1e-3, 20)),
    ),
    choose=RewardOfSamples(3),
    evaluation=EvaluationSettings(
        samples_per_source=4,
        beam=BeamSettings(beams=4),
        kl_sources=300,
        shown=6,
    ),
)


def improving(learning_rate: float, steps: int, best: tuple[int, ...] = (4, 1), **changes) -> Experiment:
    """ReST with one Improve step for each number of a source's best samples."""
    train = replace(
        base.improve.train, max_steps=steps, evaluate_every=steps // 4, schedule=Schedule(learning_rate, 10)
    )
    return replace(base, improve=replace(base.improve, rule=PerSourceTop(best), train=train, **changes))


def online(learning_rate: float, coefficient: float, rollouts: int = 50, **changes) -> Experiment:
    """PPO alone."""
    rollout, schedule = RolloutSettings(40, 4), Schedule(learning_rate)
    divergence = InReward(coefficient=FixedCoefficient(coefficient))
    ppo = PPOSettings(rollouts, 10, rollout, divergence=divergence, schedule=schedule, average=2, **changes)
    return replace(base, grow_steps=0, ppo=ppo)


def group_based(published: PPOSettings, learning_rate: float, **changes) -> Experiment:
    """RLOO or GRPO as published, with as many samples as `online`."""
    rollout, schedule = RolloutSettings(40, 4), Schedule(learning_rate)
    ppo = replace(published, rollouts=50, rollout=rollout, schedule=schedule, average=2, **changes)
    return replace(base, grow_steps=0, ppo=ppo)


# Trials, on a seed of their own: rates, steps, what passes; rates, the KL coefficient, epochs
trials = {
    "rest-5e-4-80": improving(5e-4, 80),
    "rest-1e-3-80": improving(1e-3, 80),
    "rest-2e-3-80": improving(2e-3, 80),
    "rest-1e-3-160": improving(1e-3, 160),
    "rest-2e-3-160": improving(2e-3, 160),
    "rest-1e-3-160-samples": improving(1e-3, 160, human_pairs="never"),
    "rest-1e-3-160-GOLD": improving(1e-3, 160, loss=GOLD()),
    "ppo-3e-4-0.05-pretraining": online(3e-4, 0.05, pretraining=0.1),
    "ppo-1e-3-0.05-pretraining": online(1e-3, 0.05, pretraining=0.1),
    "ppo-1e-3-0.01": online(1e-3, 0.01),
    "ppo-3e-4-0.01-4-epochs": online(3e-4, 0.01, epochs=4),
    "ppo-3e-4-0.01-4-epochs-critic-1e-3": online(3e-4, 0.01, epochs=4, critic=CriticSettings(schedule=Schedule(1e-3))),
    "rloo-3e-4": group_based(RLOO, 3e-4),
    "rloo-1e-3": group_based(RLOO, 1e-3),
    "rloo-3e-3": group_based(RLOO, 3e-3),
    "grpo-3e-4-4-epochs": group_based(GRPO, 3e-4, epochs=4),
    "grpo-1e-3-4-epochs": group_based(GRPO, 1e-3, epochs=4),
}

# What is compared: the best of each by the reward on dev, seed 100
rest, ppo = trials["rest-1e-3-160-GOLD"], trials["ppo-3e-4-0.01-4-epochs-critic-1e-3"]
table = {
    "rest_and_ppo": replace(rest, improve=replace(rest.improve, unfiltered=True), ppo=ppo.ppo, grow_steps=2),
    "longer": replace(ppo, ppo=replace(ppo.ppo, rollouts=100)),
    "rloo": trials["rloo-3e-4"],
    "grpo": trials["grpo-3e-4-4-epochs"],
}
experiment = table["rest_and_ppo"]

# The PPO that is compared, with another KL coefficient
sweep = {f"kl-{weight:g}": online(3e-4, weight, epochs=4) for weight in (0.0, 0.001, 0.01, 0.1, 1.0)}

# People who add 0.6 for each standard deviation of relative length
biased = replace(base.reward, rater=SimulatedRater(length_bias=0.6))
frozen = Trainable(freeze_encoder=True, freeze_embeddings=True)
hacking = {
    "free": replace(online(3e-4, 0.0, epochs=4), reward=biased),
    "kl-0.1": replace(online(3e-4, 0.1, epochs=4), reward=biased),
    "LoRA": replace(online(3e-4, 0.0, epochs=4, trainable=Trainable(lora=LoRA(rank=4))), reward=biased),
    "frozen": replace(online(3e-4, 0.0, epochs=4, trainable=frozen), reward=biased),
}
