"""Which loss, which threshold rule, how many Grow steps and which published method, on one small task.

Shows    `losses`: each does three Improve steps on the same D_1, 32 samples for each of 500 sources, from the same BC.
         `trials`: the same at three rates, of which dev chose. `rules`: each does four with NLL on that D_1. `grows`:
         one, two and three Grow steps that draw as many samples in all. `methods`: ReST and its kin, likewise. BC
         trained on for as many steps and at the same rates is beside each.
Command  rest study experiments/synthetic_improve.py:trials --out runs/losses --seeds 100
         rest study experiments/synthetic_improve.py:losses --out runs/losses --seeds 0 1 2 --every
         rest study experiments/synthetic_improve.py:rules --out runs/rules --seeds 0 --every
         rest study experiments/synthetic_improve.py:grows --out runs/grows --seeds 0 1 2
         rest study experiments/synthetic_improve.py:methods --out runs/methods --seeds 0
         some of them: ... --variants NLL GOLD; one alone: rest run experiments/synthetic_improve.py:methods.raft ...
Hardware 2 CPU cores
Expect   experiments/LOG.md has what was measured. Trials are compared by the reward on dev, `dev_reward` of the stages
         in study.json.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rest import CPO, DPO, GOLD, NLL, RRHF, VMPO, AdvantageWeighted, Anchored, BeamSettings, Capped, EvaluationSettings
from rest import Experiment, Fixed, GlobalPercentile, OfflineActorCritic, PerSourceInterpolation, PerSourcePercentile
from rest import PerSourceTop, PolicyLoss, RewardOfSamples, RewardWeighted, Rule, Schedule, VTrace, import_file

# The task of table 1, whose `base` is written out there; each D_g has 16,000 samples.
_base: Experiment = import_file(Path(__file__).with_name("synthetic_table_1.py")).base
task = replace(
    _base,
    grow=replace(_base.grow, samples_per_source=32),
    choose=RewardOfSamples(2),
    evaluation=EvaluationSettings(samples_per_source=4, beam=BeamSettings(beams=4), kl_sources=150),
)


def on_d_1(of: Experiment, rule: Rule, loss: PolicyLoss | None = None, rate: float | None = None) -> Experiment:
    """The Improve steps of a rule on D_1, by default with the experiment's loss and rate, without beam search."""
    train = of.improve.train if rate is None else replace(of.improve.train, schedule=Schedule(rate, 10))
    improve = replace(of.improve, rule=rule, loss=loss or of.improve.loss, train=train, unfiltered=False)
    evaluation = replace(of.evaluation, beam=BeamSettings(beams=1))
    return replace(of, grow_steps=1, improve=improve, evaluation=evaluation)


# What filters learns from the best; what weighs or compares, from worse samples too
best, everything, pairs = PerSourceTop((8, 4, 2)), Fixed((0.0, 1e-6, 2e-6)), PerSourceTop((3, 2, 1))
of_losses: dict[str, tuple[PolicyLoss, Rule]] = {
    "NLL": (NLL(), best),
    "GOLD": (GOLD(), best),
    "RewardWeighted": (RewardWeighted(), everything),
    "AdvantageWeighted": (AdvantageWeighted(), everything),
    "OfflineActorCritic": (OfflineActorCritic(), everything),
    "VMPO": (VMPO(), everything),
    "BVMPO": (Anchored(VMPO()), everything),  # but for V-trace
    "BVMPO-V-trace": (Anchored(VMPO(correction=VTrace())), everything),
    "DPO": (DPO(), pairs),
    "CPO": (CPO(), pairs),
    "RRHF": (RRHF(), pairs),
}


def losses_on(of: Experiment, rates: Mapping[str, float] | None = None) -> dict[str, Experiment]:
    """Every loss with its three steps, at these rates or the experiment's."""
    chosen = rates or {}
    return {name: on_d_1(of, rule, loss, chosen.get(name)) for name, (loss, rule) in of_losses.items()}


def rules_on(of: Experiment) -> dict[str, Experiment]:
    """Every rule with four steps."""
    percentiles = GlobalPercentile((50.0, 65.0, 80.0, 90.0))
    return {
        "Fixed": on_d_1(of, Fixed((0.6, 0.7, 0.8, 0.9))),
        "GlobalPercentile": on_d_1(of, percentiles),
        "PerSourcePercentile": on_d_1(of, PerSourcePercentile((50.0, 62.5, 75.0, 87.5))),
        "PerSourceInterpolation": on_d_1(of, PerSourceInterpolation((0.2, 0.4, 0.6, 0.8))),
        "PerSourceTop": on_d_1(of, PerSourceTop((16, 8, 4, 2))),
        "Capped": on_d_1(of, Capped(percentiles, cap=2)),
    }


def drawing(grow_steps: int, samples_per_source: int) -> Experiment:
    """So many Grow steps, each with two Improve steps."""
    grow = replace(task.grow, samples_per_source=samples_per_source)
    return replace(task, grow_steps=grow_steps, grow=grow, improve=replace(task.improve, rule=PerSourceTop((4, 1))))


def method(grow_steps: int, **improve) -> Experiment:
    """A published method, which draws 32 samples of 500 sources in all of its Grow steps together."""
    grow = replace(task.grow, samples_per_source=32 // grow_steps)
    return replace(task, grow_steps=grow_steps, grow=grow, improve=replace(task.improve, **improve))


trials = {
    f"{name}-{rate:g}": on_d_1(task, rule, loss, rate)
    for name, (loss, rule) in of_losses.items()
    for rate in (3e-4, 1e-3, 3e-3)
}
# the best of its three by the reward on dev, seed 100; else the rate of the task, 1e-3
losses = losses_on(task, {"NLL": 3e-3, "GOLD": 3e-3, "VMPO": 3e-4, "DPO": 3e-4})
rules = rules_on(task)
grows = {"one": drawing(1, 48), "two": drawing(2, 24), "three": drawing(3, 16)}
methods = {
    "rest": method(2, rule=Fixed((0.7, 0.8, 0.9))),
    "rest_interpolated": method(2, rule=PerSourceInterpolation((0.3, 0.6, 0.9))),
    "rest_em": method(3, rule=Capped(Fixed((0.8,)), cap=10), start="bc", human_pairs="never"),
    "raft": method(4, rule=PerSourceTop((1,)), human_pairs="never"),
    "filtered_bc": method(1, rule=GlobalPercentile((80.0,)), start="bc"),
    "reward_weighted": method(1, rule=Fixed((0.0,)), loss=RewardWeighted()),
    "best_of_n": method(1, rule=PerSourceTop((1,)), start="bc", human_pairs="never"),
    "iterated_cpo": method(3, rule=PerSourceTop((1,)), loss=CPO()),
}
experiment = losses["NLL"]
