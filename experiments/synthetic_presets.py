"""ReST and its kin on the made-up language pair of synthetic.py, one setting or two apart.

Shows    What Improve filters, where it starts and what it minimises, and nothing else, makes the published methods.
Command  rest run experiments/synthetic_presets.py:raft --out runs/raft
         rest study experiments/synthetic_presets.py --out runs/presets --variants rest raft gold --seeds 0 1 2
Hardware 2 CPU cores: about as long as synthetic.py
Expect   synthetic_improve.py compares them on a smaller task; experiments/LOG.md has what was measured.
"""

from dataclasses import replace
from pathlib import Path

from rest import CPO, DPO, GOLD, RRHF, VMPO, AdvantageWeighted, Anchored, Capped, Experiment, Fixed, GlobalPercentile
from rest import LoRA, OfflineActorCritic, PerSourceInterpolation, PerSourceTop, RewardWeighted, Trainable, VTrace
from rest import import_file

base: Experiment = import_file(Path(__file__).with_name("synthetic.py")).experiment


def improving(grow_steps: int = 1, **changes) -> Experiment:
    """The experiment with some settings of Improve changed."""
    return replace(base, grow_steps=grow_steps, improve=replace(base.improve, **changes))


# Methods
rest = improving(grow_steps=2, rule=Fixed((0.7, 0.8, 0.9)))
rest_interpolated = improving(grow_steps=2, rule=PerSourceInterpolation((0.3, 0.6, 0.9)))
rest_em = improving(grow_steps=3, rule=Capped(Fixed((0.8,)), cap=10), start="bc", human_pairs="never")
raft = improving(grow_steps=4, rule=PerSourceTop((1,)), human_pairs="never")
filtered_bc = improving(rule=GlobalPercentile((80.0,)), start="bc")
reward_weighted = improving(rule=Fixed((0.0,)), loss=RewardWeighted())
best_of_n = improving(rule=PerSourceTop((1,)), start="bc", human_pairs="never")
iterated_cpo = improving(grow_steps=3, rule=PerSourceTop((1,)), loss=CPO())
experiment = rest

# Losses of the paper's comparison, and others
advantage_weighted = improving(rule=Fixed((0.0,)), loss=AdvantageWeighted())
gold = improving(loss=GOLD())
vmpo = improving(rule=Fixed((0.0,)), loss=VMPO())
bvmpo = improving(rule=Fixed((0.0,)), loss=Anchored(VMPO(correction=VTrace())))
oac = improving(rule=Fixed((0.0,)), loss=OfflineActorCritic())
dpo = improving(rule=PerSourceTop((1,)), loss=DPO())
rrhf = improving(rule=PerSourceTop((1,)), loss=RRHF())

# What is trained
low_rank = improving(train=replace(base.improve.train, trainable=Trainable(lora=LoRA(rank=8))))
