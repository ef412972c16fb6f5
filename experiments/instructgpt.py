"""The whole of InstructGPT on a made-up language pair: cloning, a reward from rankings, PPO-ptx (Ouyang et al. 2022).

Shows    Behavioural cloning on one half of the training text; six answers to each of 1,000 other sources are rated
         by one noisy person, who counts only as a ranking; a reward is learned from the pairs of each source (their
         equation 1); PPO with a KL penalty to the frozen clone and γ times the likelihood of human pairs (their
         equation 2) climbs it. A separate judge that nothing trained on, chrF with the clean reference, tells before
         and after, on the same sources: its mean, and the share of samples above 0.7.
Command  rest run experiments/instructgpt.py --out runs/instructgpt
         without the pretraining mix: ... --ppo.pretraining 0; without the KL penalty: ...:unchained
Hardware 2 CPU cores
Expect   Samples gain a little by the judge, greedy outputs lose: PPO's rate is still too high (experiments/LOG.md).
"""

from dataclasses import replace
from pathlib import Path

from rest import Experiment, FixedCoefficient, InReward, PPOSettings, RatingLoss, Reward, RewardSettings
from rest import RolloutSettings, Schedule, SentenceChrF, SimulatedRater, TrainSettings, import_file

demo: Experiment = import_file(Path(__file__).with_name("synthetic.py")).experiment

experiment = replace(
    demo,
    bc_share=0.5,
    reward=RewardSettings(
        rater=SimulatedRater(),
        sources=1000,
        samples_per_source=6,
        rate_references=False,
        loss=RatingLoss(regression=0.0, ranking=1.0),
        train=TrainSettings(max_steps=150, evaluate_every=50, patience=2, schedule=Schedule(1e-4, 20)),
    ),
    grow_steps=0,
    ppo=PPOSettings(
        rollouts=60,
        evaluate_every=10,
        rollout=RolloutSettings(64, 4),
        divergence=InReward(coefficient=FixedCoefficient(0.02)),
        epochs=4,
        schedule=Schedule(3e-4),
        pretraining=0.1,
        pretraining_pairs=64,
    ),
    evaluation=replace(demo.evaluation, judge=Reward(SentenceChrF(), scale=(0.0, 100.0)), judge_limit=0.7),
)
unchained = replace(
    experiment,
    ppo=replace(experiment.ppo, pretraining=0.0, divergence=InReward(coefficient=FixedCoefficient(0.0))),
)
