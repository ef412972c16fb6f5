"""ReST and its kin on the made-up language pair of synthetic.py, one setting or two apart.

Shows    What Improve filters, where it starts and what it minimises, and nothing else, makes the published methods.
Command  rest run experiments/synthetic_presets.py:raft --out runs/raft
         rest study experiments/synthetic_presets.py --out runs/presets --variants rest raft gold --seeds 0 1 2
Hardware 2 CPU cores: about as long as synthetic.py
Expect   synthetic_improve.py compares them on a smaller task; experiments/LOG.md has what was measured.
"""

from dataclasses import replace
from pathlib import Path

from rest import CPO, DPO, GOLD, GRPO, RLOO, RRHF, VMPO, AdvantageWeighted, Anchored, Capped, CriticSettings
from rest import Experiment, Fixed, FixedCoefficient, FromReward, GlobalPercentile, InReward, LoRA, OfflineActorCritic
from rest import PerSourceInterpolation, PerSourceTop, PPOSettings, RewardWeighted, RolloutSettings, SamplingOverrides
from rest import Trainable, VTrace, import_file

base: Experiment = import_file(Path(__file__).with_name("synthetic.py")).experiment


def improving(grow_steps: int = 1, **changes) -> Experiment:
    """The experiment with some settings of Improve changed."""
    return replace(base, grow_steps=grow_steps, improve=replace(base.improve, **changes))


def sampling(experiment: Experiment, samples_per_source: int, **changes) -> Experiment:
    """The experiment with some settings of Grow changed."""
    return replace(experiment, grow=replace(experiment.grow, samples_per_source=samples_per_source, **changes))


def online(ppo: PPOSettings, sources: int, samples_per_source: int) -> Experiment:
    """Online RL alone, from BC."""
    rollout = RolloutSettings(sources, samples_per_source)
    return replace(base, grow_steps=0, ppo=replace(ppo, rollouts=60, rollout=rollout))


# Methods
rest = improving(grow_steps=2, rule=Fixed((0.7, 0.8, 0.9)))
rest_interpolated = improving(grow_steps=2, rule=PerSourceInterpolation((0.3, 0.6, 0.9)))
# ReST-EM fine-tunes the base model anew at each iteration, on 10 at most of 32 samples that are right (T .7, top 40)
rest_em = improving(3, rule=Capped(Fixed((0.8,)), cap=10), start="bc", human_pairs="never", grow_rate_factor=1.0)
rest_em = sampling(rest_em, 32, sampling=SamplingOverrides(temperature=0.7, top_k=40))
# RAFT goes on from where it was, on the best of 32 samples, at one rate
raft = sampling(improving(4, rule=PerSourceTop((1,)), human_pairs="never", grow_rate_factor=1.0), 32)
filtered_bc = improving(rule=GlobalPercentile((80.0,)), start="bc")
reward_weighted = improving(rule=Fixed((0.0,)), loss=RewardWeighted())
best_of_n = improving(rule=PerSourceTop((1,)), start="bc", human_pairs="never")
iterated_cpo = improving(grow_steps=3, rule=PerSourceTop((1,)), loss=CPO())
ppo = online(PPOSettings(divergence=InReward(coefficient=FixedCoefficient(0.01))), 64, 4)
rloo = online(RLOO, 64, 4)
grpo = online(GRPO, 32, 8)
# InstructGPT's PPO: the critic starts from the reward model, and what is kept is a moving average
instructgpt = online(replace(ppo.ppo, critic=CriticSettings(start=FromReward()), ema=0.992), 64, 4)
experiment = rest

# Losses of the paper's comparison, and others
advantage_weighted = improving(rule=Fixed((0.0,)), loss=AdvantageWeighted())
gold = improving(loss=GOLD())
vmpo = improving(rule=Fixed((0.0,)), loss=VMPO())
# V-MPO with a behavioural prior, λ from 1 to 1e-5, and V-trace on what each token was really drawn from
bvmpo = improving(rule=Fixed((0.0,)), loss=Anchored(VMPO(correction=VTrace())))
oac = improving(rule=Fixed((0.0,)), loss=OfflineActorCritic())
dpo = improving(rule=PerSourceTop((1,)), loss=DPO())
rrhf = improving(rule=PerSourceTop((1,)), loss=RRHF())

# What is trained
low_rank = improving(train=replace(base.improve.train, trainable=Trainable(lora=LoRA(rank=8))))
