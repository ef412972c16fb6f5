"""The paper's table 1 on Multi30k, German to English, as small as two CPU cores compare in an hour or two.

Shows    `table`: BC that has converged, BC trained on, ReST with G = 1 (I = 0 and I = 4) and G = 2 (I = 3), PPO with
         as many samples as ReST draws in two Grow steps and with 1.5 times as many. BC and the reward are those of
         multi30k_de_en.py; Grow, Improve and PPO are smaller.
Command  rest study experiments/multi30k_table_1.py:table --out runs/multi30k-table-1 --seeds 0 --every \
             --corpus.directory DIRECTORY
         one of them alone: rest run experiments/multi30k_table_1.py:table.deep --out runs/deep --corpus.directory ...
Data     As multi30k_de_en.py. BC and the reward may be copied from its run, bc and reward, to OUT/VARIANT/0.
Hardware 2 CPU cores, from the run's BC and reward: the table took an hour and 40 minutes on one core beside other
         programs.
Expect   ReST and PPO level in reward at 32,000 samples; experiments/LOG.md has what was measured.
"""

from dataclasses import replace
from pathlib import Path

from rest import Experiment, FixedCoefficient, GrowSettings, InReward, PerSourcePercentile, PPOSettings, RewardOfSamples
from rest import RolloutSettings, Schedule, TrainSettings, import_file

full: Experiment = import_file(Path(__file__).with_name("multi30k_de_en.py")).experiment

# One Grow step draws 16,000 samples, G = 2 draws 32,000, as do 50 rollouts of 640.
train = TrainSettings(max_steps=120, evaluate_every=40, patience=9, average=3, schedule=Schedule(4e-4, 10))
base = replace(
    full,
    grow=GrowSettings(sources=2000, samples_per_source=16),
    grow_steps=2,
    improve=replace(
        full.improve, rule=PerSourcePercentile((50.0, 75.0, 87.5)), train=train, label_smoothing=0.0, unfiltered=True
    ),
    choose=RewardOfSamples(4, sources=500),
    evaluation=replace(full.evaluation, kl_sources=250),
)
deeper = replace(base.improve, rule=PerSourcePercentile((50.0, 62.5, 75.0, 87.5)), unfiltered=False)
ppo = PPOSettings(
    rollouts=50,
    evaluate_every=10,
    epochs=2,
    rollout=RolloutSettings(160, 4),
    divergence=InReward(coefficient=FixedCoefficient(0.02)),
    schedule=Schedule(2e-4),
)
table = {
    "rest_and_ppo": replace(base, ppo=ppo),
    "deep": replace(base, grow_steps=1, improve=deeper),
    "longer": replace(base, grow_steps=0, ppo=replace(ppo, rollouts=75)),
}
experiment = table["rest_and_ppo"]
