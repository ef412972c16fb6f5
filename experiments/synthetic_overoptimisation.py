"""A reward that is wrong in a known way, what ReST makes of it, and three cures, on a made-up language pair.

Shows    `biased`: people who favour long translations teach the reward to do so too; over Improve steps the reward
         rises while exact quality ("gold") falls. `guarded`: the reward of what is longer than a translation may be
         is 0. `cautious`: five heads, the mean less one standard deviation. `refreshed`: before each Grow step the
         same people rate samples of the latest policy too; `corrected`: people without the bias do. `fair`: people
         without the bias from the start. `negatives`: spoilt translations among what the biased people rated.
Command  python scripts/overoptimisation.py --out runs/overoptimisation
         One variant alone: rest run experiments/synthetic_overoptimisation.py:biased --out runs/biased
Hardware 2 CPU cores: `biased` took 4 minutes of processor time after BC; `quick` has two smaller Grow steps
Expect   Gold falls with `biased`, `cautious` and `refreshed`; the others hold it. experiments/LOG.md has the numbers,
         results/synthetic_overoptimisation.png the curves.
"""

from dataclasses import replace
from pathlib import Path

from rest.data.corpus import SyntheticCorpus
from rest.data.synthetic import SyntheticLanguage
from rest.evaluation.evaluate import EvaluationSettings
from rest.experiment import Experiment, import_file
from rest.grow import GrowSettings
from rest.improve import ImproveSettings
from rest.learning.train import Schedule, TrainSettings
from rest.policy.beam import BeamSettings
from rest.reward.fit import Refresh, RewardSettings
from rest.reward.guards import Guards
from rest.reward.raters import SimulatedRater
from rest.thresholds import PerSourcePercentile

demo: Experiment = import_file(Path(__file__).with_name("synthetic.py")).experiment
batch, sampling = demo.batch, demo.grow.sampling

biased = replace(
    demo,
    corpus=SyntheticCorpus(
        SyntheticLanguage(train=6000, dev=240, test=150, nouns=20, verbs=10, adjectives=8, adverbs=4)
    ),
    reward=RewardSettings(
        rater=SimulatedRater(length_bias=0.6),
        sources=600,
        samples_per_source=3,
        batch=batch,
        train=TrainSettings(max_steps=60, evaluate_every=30, schedule=Schedule(1e-4, 20)),
    ),
    grow_steps=3,
    grow=GrowSettings(
        sources=200,
        samples_per_source=8,
        sampling=replace(sampling, temperature=1.0),
        human_pairs=False,
        sources_per_shard=200,
    ),
    improve=ImproveSettings(
        rule=PerSourcePercentile((75.0,)),
        unfiltered=False,
        train=TrainSettings(max_steps=40, evaluate_every=20, schedule=Schedule(6e-4, 10)),
    ),
    evaluation=EvaluationSettings(
        samples_per_source=2,
        sampling=sampling,
        beam=BeamSettings(beams=2, max_target_tokens=48),
        dev_samples_per_source=1,
        dev_sources=120,
        kl_sources=50,
        shown=6,
    ),
)
experiment = biased
fair = replace(biased, reward=replace(biased.reward, rater=SimulatedRater()))
guarded = replace(biased, reward=replace(biased.reward, guards=Guards(max_length_ratio=1.0, length_slack=0)))
cautious = replace(biased, reward=replace(biased.reward, heads=5, caution=1.0))
negatives = replace(biased, reward=replace(biased.reward, negatives=0.25))
refreshed = replace(biased, refresh=Refresh())
corrected = replace(biased, refresh=Refresh(samples_per_source=3, rater=SimulatedRater()))
quick = replace(corrected, grow_steps=2, grow=replace(biased.grow, sources=100))
