"""The paper's table 1 on Multi30k, German to English, as small as two CPU cores compare in an hour or two.

Shows    BC that has converged, BC trained on, ReST with G = 1 (I = 0 and I = 4) and G = 2 (I = 3), PPO with as many
         samples as ReST draws in two Grow steps and with 1.5 times as many. BC and the reward are those of
         multi30k_de_en.py; Grow, Improve and PPO are smaller.
Command  python scripts/compare_online.py --file experiments/multi30k_table_1.py --out runs/multi30k-table-1 \
             --seeds 0 --corpus DIRECTORY
         python scripts/compare_improve.py experiments/multi30k_table_1.py --out runs/multi30k-improve \
             --corpus DIRECTORY --parts losses rules --losses NLL GOLD "BVMPO, V-trace" \
             --rules PerSourcePercentile PerSourceInterpolation --results improve_multi30k
         one of them alone: rest run experiments/multi30k_table_1.py --out runs/both --corpus.directory DIRECTORY
Data     As multi30k_de_en.py. BC and the reward may be copied from its run: DIR/table/0-experiment/bc and reward.
Hardware 2 CPU cores, from the run's BC and reward: the table took an hour and 40 minutes on one core beside other
         programs; compare_improve.py has not been run on it.
Expect   ReST and PPO level in reward at 32,000 samples; experiments/LOG.md has what was measured.
"""

from dataclasses import replace
from pathlib import Path

from rest.baselines.ppo import PPOSettings
from rest.baselines.rollout import RolloutSettings
from rest.experiment import Experiment, import_file
from rest.learning.divergence import Fixed
from rest.learning.losses import GOLD
from rest.learning.train import Schedule, TrainSettings
from rest.thresholds import PerSourcePercentile

full: Experiment = import_file(Path(__file__).with_name("multi30k_de_en.py")).experiment

# One Grow step draws 16,000 samples, G = 2 draws 32,000, as do 50 rollouts of 640.
train = TrainSettings(max_steps=120, evaluate_every=40, patience=9, schedule=Schedule(4e-4, 10))
base = replace(
    full,
    grow=replace(full.grow, sources=2000),
    improve=replace(full.improve, rule=PerSourcePercentile((50.0, 75.0, 87.5)), train=train, loss=GOLD()),
    evaluation=replace(full.evaluation, dev_sources=500, kl_sources=250),
)
ppo = PPOSettings(
    rollouts=50,
    evaluate_every=10,
    epochs=2,
    rollout=RolloutSettings(160, 4, replace(full.grow.sampling, temperature=1.0), coefficient=Fixed(0.02)),
    schedule=Schedule(2e-4),
)
experiment = replace(base, ppo=ppo)
deep = replace(
    base,
    grow_steps=1,
    improve=replace(base.improve, rule=PerSourcePercentile((50.0, 62.5, 75.0, 87.5)), unfiltered=False),
)
longer = replace(base, grow_steps=0, ppo=replace(ppo, rollouts=75))
