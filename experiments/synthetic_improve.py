"""Which loss, which threshold rule and which published method an Improve should follow, on one small task.

Shows    `losses`: each does three Improve steps on the same D_1, from the same BC. `rules`: each does four with NLL on
         that D_1. `methods`: ReST and its kin, all drawing 8,000 samples. BC trained on for as many steps as a run's
         Improve steps took is beside each, where the numbers in the LOG have one control, of 40 and of 120 steps.
Command  rest study experiments/synthetic_improve.py:losses --out runs/losses --seeds 0 1 2 --every
         rest study experiments/synthetic_improve.py:rules --out runs/rules --seeds 0 --every
         rest study experiments/synthetic_improve.py:methods --out runs/methods --seeds 0
         some of them: ... --variants NLL GOLD; one alone: rest run experiments/synthetic_improve.py:methods.raft ...
Hardware 2 CPU cores
Expect   experiments/LOG.md has what was measured.
"""

from dataclasses import replace
from pathlib import Path

from rest import CPO, DPO, GOLD, NLL, RRHF, VMPO, AdvantageWeighted, Anchored, BeamSettings, Capped, EvaluationSettings
from rest import Experiment, Fixed, GlobalPercentile, OfflineActorCritic, PerSourceInterpolation, PerSourcePercentile
from rest import PerSourceTop, PolicyLoss, RewardOfSamples, RewardWeighted, Rule, VTrace, import_file

# The task of table 1, whose `base` is written out there; each D_g has 4,000 samples.
task: Experiment = replace(
    import_file(Path(__file__).with_name("synthetic_table_1.py")).base,
    grow_steps=1,
    choose=RewardOfSamples(2),
    evaluation=EvaluationSettings(samples_per_source=4, beam=BeamSettings(beams=4), kl_sources=150),
)


def on_d_1(of: Experiment, rule: Rule, loss: PolicyLoss | None = None) -> Experiment:
    """The Improve steps of a rule on D_1, by default with the experiment's loss, without beam search."""
    improve = replace(of.improve, rule=rule, loss=loss or of.improve.loss, unfiltered=False)
    evaluation = replace(of.evaluation, beam=BeamSettings(beams=1))
    return replace(of, grow_steps=1, improve=improve, evaluation=evaluation)


def losses_on(of: Experiment) -> dict[str, Experiment]:
    """Every loss with its three steps: what filters learns from the best, what weighs or compares from worse too."""
    best, everything, pairs = PerSourcePercentile((50.0, 75.0, 87.5)), Fixed((0.0, 1e-6, 2e-6)), PerSourceTop((3, 2, 1))
    return {
        "NLL": on_d_1(of, best, NLL()),
        "GOLD": on_d_1(of, best, GOLD()),
        "RewardWeighted": on_d_1(of, everything, RewardWeighted()),
        "AdvantageWeighted": on_d_1(of, everything, AdvantageWeighted()),
        "OfflineActorCritic": on_d_1(of, everything, OfflineActorCritic()),
        "VMPO": on_d_1(of, everything, VMPO()),
        "BVMPO": on_d_1(of, everything, Anchored(VMPO())),  # but for V-trace
        "BVMPO-V-trace": on_d_1(of, everything, Anchored(VMPO(correction=VTrace()))),
        "DPO": on_d_1(of, pairs, DPO()),
        "CPO": on_d_1(of, pairs, CPO()),
        "RRHF": on_d_1(of, pairs, RRHF()),
    }


def rules_on(of: Experiment) -> dict[str, Experiment]:
    """Every rule with four steps."""
    percentiles = GlobalPercentile((50.0, 65.0, 80.0, 90.0))
    return {
        "Fixed": on_d_1(of, Fixed((0.6, 0.7, 0.8, 0.9))),
        "GlobalPercentile": on_d_1(of, percentiles),
        "PerSourcePercentile": on_d_1(of, PerSourcePercentile((50.0, 62.5, 75.0, 87.5))),
        "PerSourceInterpolation": on_d_1(of, PerSourceInterpolation((0.2, 0.4, 0.6, 0.8))),
        "PerSourceTop": on_d_1(of, PerSourceTop((4, 3, 2, 1))),
        "Capped": on_d_1(of, Capped(percentiles, cap=2)),
    }


def method(grow_steps: int, **improve) -> Experiment:
    """A published method, which draws 8 samples of 1,000 sources in all of its Grow steps together."""
    grow = replace(task.grow, sources=1000 // grow_steps)
    return replace(task, grow_steps=grow_steps, grow=grow, improve=replace(task.improve, **improve))


losses = losses_on(task)
rules = rules_on(task)
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
