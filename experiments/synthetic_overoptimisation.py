"""A reward that is wrong in a known way, what ReST makes of it, and three cures, on a made-up language pair.

Shows    `variants`. `biased`: people who favour long translations teach the reward to do so too; over Improve steps the
         reward rises while exact quality ("gold") falls. `guarded`: the reward of what is longer than a translation
         may be is 0. `cautious`: five heads, the mean less one standard deviation. `refreshed`: before each Grow step
         the same people rate samples of the latest policy too; `corrected`: people without the bias do. `fair`: people
         without the bias from the start. `negatives`: corrupted translations among what the biased people rated.
         `limits`, of Spearman's rho of a reward that fair people taught with gold, on BC's samples, which is
         `reward_gold_spearman` of BC's row in study.json: rated sources, raters, their noise, steps of training.
Command  rest study experiments/synthetic_overoptimisation.py:variants --out runs/overoptimisation --seeds 0 --every
         rest study experiments/synthetic_overoptimisation.py:limits --out runs/limits --seeds 0
         one alone: rest run experiments/synthetic_overoptimisation.py:variants.biased --out runs/biased
Hardware 2 CPU cores: `biased` took 4 minutes of processor time after BC; `quick` has two smaller Grow steps
Expect   Gold of samples falls with `biased`, `cautious` and `refreshed`; the others hold it. Greedy outputs lose in
         all. experiments/LOG.md has the numbers, results/synthetic_overoptimisation.png the curves.
"""

from dataclasses import replace
from pathlib import Path

from rest import BeamSettings, EvaluationSettings, Experiment, GrowSettings, Guards, ImproveSettings
from rest import PerSourcePercentile, Refresh, RewardOfSamples, RewardSettings
from rest import SamplingOverrides, Schedule, SimulatedRater
from rest import SyntheticCorpus, SyntheticLanguage, TrainSettings, import_file

demo: Experiment = import_file(Path(__file__).with_name("synthetic.py")).experiment

biased = replace(
    demo,
    corpus=SyntheticCorpus(
        SyntheticLanguage(train=6000, dev=240, test=150, nouns=20, verbs=10, adjectives=8, adverbs=4)
    ),
    reward=RewardSettings(
        rater=SimulatedRater(length_bias=0.6),
        sources=600,
        samples_per_source=3,
        train=TrainSettings(max_steps=60, evaluate_every=30, schedule=Schedule(1e-4, 20)),
    ),
    grow_steps=3,
    grow=GrowSettings(
        sources=200,
        samples_per_source=8,
        sampling=SamplingOverrides(temperature=1.0),
        human_pairs=False,
        sources_per_shard=200,
    ),
    improve=ImproveSettings(
        rule=PerSourcePercentile((75.0,)),
        unfiltered=False,
        train=TrainSettings(max_steps=40, evaluate_every=20, schedule=Schedule(6e-4, 10)),
    ),
    choose=RewardOfSamples(1, sources=120),
    evaluation=EvaluationSettings(
        samples_per_source=2,
        beam=BeamSettings(beams=2),
        kl_sources=50,
        shown=6,
    ),
)
experiment = biased
variants = {
    "biased": biased,
    "guarded": replace(biased, reward=replace(biased.reward, guards=Guards(max_length_ratio=1.0, length_slack=0))),
    "corrected": replace(biased, refresh=Refresh(samples_per_source=3, rater=SimulatedRater())),
    "refreshed": replace(biased, refresh=Refresh()),
    "cautious": replace(biased, reward=replace(biased.reward, heads=5, caution=1.0)),
    "negatives": replace(biased, reward=replace(biased.reward, negatives=0.25)),
    "fair": replace(biased, reward=replace(biased.reward, rater=SimulatedRater())),
}
quick = replace(variants["corrected"], grow_steps=2, grow=replace(biased.grow, sources=100))


def limited(sources: int = 1200, raters: int = 1, noise: float = 0.25, steps: int = 0) -> Experiment:
    """BC and a reward alone; after 0 steps the reward is the ridge regression that its head starts from."""
    reward = RewardSettings(
        rater=SimulatedRater(noise=noise, raters=raters),
        sources=sources,
        samples_per_source=3,
        attacked=0,
        train=TrainSettings(max_steps=steps, evaluate_every=50, schedule=Schedule(3e-4, 20)),
    )
    return replace(biased, grow_steps=0, reward=reward, evaluation=replace(biased.evaluation, samples_per_source=4))


limits = {
    "150-sources": limited(sources=150),
    "600-sources": limited(sources=600),
    "1200-sources": limited(),
    "5-raters": limited(raters=5),
    "no-noise": limited(noise=0.0),
    "150-steps": limited(steps=150),
    "no-noise-150-steps": limited(noise=0.0, steps=150),
}
