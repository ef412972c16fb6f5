"""ReST and its kin on the made-up language pair of synthetic.py, one setting or two apart.

Shows    What Improve filters, where it starts and what it minimises, and nothing else, makes the published methods.
Command  rest run experiments/synthetic_presets.py:raft --out runs/raft
Hardware 2 CPU cores: about as long as synthetic.py; `small` is for scripts/compare_improve.py
Expect   scripts/compare_improve.py compares them; experiments/LOG.md has what was measured.
"""

from dataclasses import replace
from pathlib import Path

from rest.data.corpus import SyntheticCorpus
from rest.data.synthetic import SyntheticLanguage
from rest.experiment import Experiment, import_file
from rest.learning.losses import GOLD, VMPO, AdvantageWeighted, Anchored, OfflineActorCritic, RewardWeighted, VTrace
from rest.learning.preferences import CPO, DPO, RRHF
from rest.learning.train import Schedule, TrainSettings
from rest.model.lora import LoRA, Trainable
from rest.model.transformer import TransformerSettings
from rest.thresholds import Capped, Fixed, GlobalPercentile, PerSourceInterpolation, PerSourceTop

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

# As much as two busy cores compare in minutes
small = replace(
    base,
    corpus=SyntheticCorpus(
        SyntheticLanguage(train=2000, dev=120, test=250, nouns=12, verbs=6, adjectives=4, adverbs=2)
    ),
    model=TransformerSettings(width=64, heads=2, feed_forward=128, encoder_layers=1, decoder_layers=1, dropout=0.1),
    bc=replace(
        base.bc,
        train=TrainSettings(
            max_steps=3000, evaluate_every=100, patience=3, average=3, schedule=Schedule(4e-3, 100, "inverse_sqrt")
        ),
    ),
    reward=replace(
        base.reward,
        sources=500,
        train=TrainSettings(max_steps=60, evaluate_every=30, patience=2, schedule=Schedule(2e-4, 10)),
    ),
    grow=replace(base.grow, sources=500, samples_per_source=8),
    improve=replace(
        base.improve,
        train=TrainSettings(max_steps=40, evaluate_every=20, patience=9, schedule=Schedule(6e-4, 5)),
        value=TrainSettings(max_steps=800, evaluate_every=80, patience=3, schedule=Schedule(1e-3, 20)),
    ),
    evaluation=replace(base.evaluation, dev_samples_per_source=2, kl_sources=150),
)
