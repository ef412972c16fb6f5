"""The paper's table 1 on a made-up language pair: ReST beside a tuned PPO that draws as many samples.

Shows    BC that has converged, BC trained on, ReST with G = 1 (I = 0 and I = 4) and G = 2 (I = 3), PPO with as many
         samples as ReST draws in two Grow steps and with 1.5 times as many; what the weight of the divergence does to
         PPO; and PPO against a reward of people who favour long translations, free, held by the divergence, by LoRA
         or by a frozen encoder.
Command  python scripts/compare_online.py --out runs/table-1 [--parts trials table sweep hacking] [--seeds 0 1 2]
         one of them alone: rest run experiments/synthetic_table_1.py --out runs/rest-and-ppo
Hardware 2 CPU cores
Expect   experiments/LOG.md has what was measured.
"""

from dataclasses import replace
from pathlib import Path

from rest.baselines.ppo import CriticSettings, PPOSettings
from rest.baselines.rollout import RolloutSettings
from rest.experiment import Experiment, import_file
from rest.learning.divergence import Fixed
from rest.learning.losses import GOLD
from rest.learning.returns import LeaveOneOut
from rest.learning.train import Schedule, TrainSettings
from rest.model.lora import LoRA, Trainable
from rest.policy.beam import BeamSettings
from rest.reward.raters import SimulatedRater
from rest.thresholds import PerSourcePercentile

small: Experiment = import_file(Path(__file__).with_name("synthetic_presets.py")).small
sampling = small.grow.sampling

# One Grow step draws 4,000 samples, G = 2 draws 8,000, as do 50 rollouts of 160.
base = replace(
    small,
    grow_steps=2,
    evaluation=replace(
        small.evaluation,
        beam=BeamSettings(beams=2, max_target_tokens=48),
        dev_samples_per_source=3,
        kl_sources=250,
        shown=6,
    ),
)


def improving(learning_rate: float, steps: int, percentiles: tuple[float, ...], **changes) -> Experiment:
    """ReST with one Improve step for each percentile of a source's samples."""
    train = TrainSettings(
        max_steps=steps, evaluate_every=max(20, steps // 4), patience=9, schedule=Schedule(learning_rate, 10)
    )
    return replace(base, improve=replace(base.improve, rule=PerSourcePercentile(percentiles), train=train, **changes))


def online(
    learning_rate: float, coefficient: float, rollouts: int = 50, temperature: float = 1.0, **changes
) -> Experiment:
    """PPO alone."""
    rollout = RolloutSettings(40, 4, replace(sampling, temperature=temperature), coefficient=Fixed(coefficient))
    ppo = PPOSettings(
        rollouts=rollouts, evaluate_every=10, rollout=rollout, schedule=Schedule(learning_rate), **changes
    )
    return replace(base, grow_steps=0, ppo=ppo)


# Eight trials each, on a seed of their own, judged by the reward on dev
rest_trials = {
    "rate 6e-4, 40 steps, above 50 75 87.5 %": improving(6e-4, 40, (50.0, 75.0, 87.5)),
    "rate 1.2e-3, 40 steps, above 50 75 87.5 %": improving(1.2e-3, 40, (50.0, 75.0, 87.5)),
    "rate 6e-4, 120 steps, above 50 75 87.5 %": improving(6e-4, 120, (50.0, 75.0, 87.5)),
    "rate 1.2e-3, 120 steps, above 50 75 87.5 %": improving(1.2e-3, 120, (50.0, 75.0, 87.5)),
    "rate 1.2e-3, 120 steps, above 75 80 87.5 %": improving(1.2e-3, 120, (75.0, 80.0, 87.5)),
    "rate 1.2e-3, 120 steps, above 75 80 87.5 %, samples only": improving(
        1.2e-3, 120, (75.0, 80.0, 87.5), human_pairs="never"
    ),
    "rate 6e-4, 120 steps, above 50 75 87.5 %, GOLD": improving(6e-4, 120, (50.0, 75.0, 87.5), loss=GOLD()),
    "rate 3e-4, 240 steps, above 50 75 87.5 %": improving(3e-4, 240, (50.0, 75.0, 87.5)),
}
ppo_trials = {
    "rate 3e-4, weight 0.05, human pairs 0.1": online(3e-4, 0.05, pretraining=0.1),
    "rate 1e-3, weight 0.05, human pairs 0.1": online(1e-3, 0.05, pretraining=0.1),
    "rate 1e-3, weight 0.01": online(1e-3, 0.01),
    "rate 1e-3, weight 0.01, 4 epochs": online(1e-3, 0.01, epochs=4),
    "rate 3e-4, weight 0.01, 4 epochs": online(3e-4, 0.01, epochs=4),
    "rate 3e-4, weight 0.01, 4 epochs, RLOO": online(3e-4, 0.01, epochs=4, advantage=LeaveOneOut()),
    "rate 3e-4, weight 0.01, 8 epochs, RLOO": online(3e-4, 0.01, epochs=8, advantage=LeaveOneOut()),
    "rate 3e-4, weight 0.01, 4 epochs, critic's rate 1e-3": online(
        3e-4, 0.01, epochs=4, critic=CriticSettings(schedule=Schedule(1e-3))
    ),
}

# What is compared: the best of each eight, and the best NLL and RLOO
rest_settings = rest_trials["rate 6e-4, 120 steps, above 50 75 87.5 %, GOLD"]
ppo_settings = ppo_trials["rate 3e-4, weight 0.01, 4 epochs"]
experiment = replace(rest_settings, ppo=ppo_settings.ppo)
deep = replace(
    rest_settings,
    grow_steps=1,
    improve=replace(rest_settings.improve, rule=PerSourcePercentile((50.0, 62.5, 75.0, 87.5)), unfiltered=False),
)
longer = replace(ppo_settings, ppo=replace(ppo_settings.ppo, rollouts=75))
nll = rest_trials["rate 3e-4, 240 steps, above 50 75 87.5 %"]
rloo = ppo_trials["rate 3e-4, weight 0.01, 4 epochs, RLOO"]


def weighted(coefficient: float, **changes) -> Experiment:
    """The PPO that is compared, with another weight of the divergence."""
    rollout = replace(ppo_settings.ppo.rollout, coefficient=Fixed(coefficient))
    return replace(ppo_settings, ppo=replace(ppo_settings.ppo, rollout=rollout, **changes))


sweep = {weight: weighted(weight) for weight in (0.0, 0.001, 0.01, 0.1, 1.0)}

# People who add 0.6 for each standard deviation of relative length
biased = SimulatedRater(length_bias=0.6)
hacking = {
    name: replace(each, reward=replace(base.reward, rater=biased))
    for name, each in {
        "free": weighted(0.0),
        "divergence 0.1": weighted(0.1),
        "LoRA": weighted(0.0, trainable=Trainable(lora=LoRA(rank=4))),
        "frozen encoder and embeddings": weighted(
            0.0, trainable=Trainable(freeze_encoder=True, freeze_embeddings=True)
        ),
    }.items()
}
