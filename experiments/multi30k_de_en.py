"""ReST on Multi30k, German to English: short real sentences, a reward learned from a metric's ratings.

Shows    The whole loop on real text. Nobody has rated it, so sentence chrF against the reference rates samples of the
         behavioural-cloning policy for sources that Grow does not use; the reward that is learned from these ratings
         sees no reference. BLEU and chrF on the test set are what it was not trained on.
Command  rest run experiments/multi30k_de_en.py:quick --out runs/multi30k-quick --corpus.directory DIRECTORY
         rest run experiments/multi30k_de_en.py --out runs/multi30k --corpus.directory DIRECTORY
Data     DIRECTORY holds train, val and test_2016_flickr, each as .de.gz and .en.gz (Elliott et al. 2016, task 1).
Hardware 2 CPU cores: `quick` takes 23 minutes, the full one took two and a half hours to the end of its
         first Grow step (`--grow-steps 1`), some of it paused or beside other programs; the second has not been run.
Expect   experiments/LOG.md has what was measured. `quick` stops behavioural cloning at a step limit, before its dev
         loss stops falling: look at bc_continued beside it.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from tyro import MISSING

from rest import BatchSettings, BCSettings, Cleaning, Corpus, EvaluationSettings, Experiment, GrowSettings
from rest import ImproveSettings, MetricRater, PerSourcePercentile, RewardSettings, SamplingSettings, Schedule
from rest import SentenceChrF, SentencePieceSettings, TextFiles, TrainSettings, TransformerSettings, TranslationModel


@dataclass(frozen=True)
class Multi30k:
    """The files of Multi30k's task 1."""

    directory: Path
    """Where train.de.gz and the others are."""

    def load(self, cleaning: Cleaning) -> Corpus:
        """Train, val and test_2016_flickr."""
        names = [f"{split}.{side}.gz" for split in ("train", "val", "test_2016_flickr") for side in ("de", "en")]
        return TextFiles(*(self.directory / name for name in names)).load(cleaning)


experiment = Experiment(
    corpus=Multi30k(MISSING),
    tokenizer=SentencePieceSettings(vocabulary_size=4096),
    model=TransformerSettings(width=128, heads=4, feed_forward=384, encoder_layers=3, decoder_layers=3, dropout=0.1),
    batch=BatchSettings(batch_tokens=2048, source_tokens=64, target_tokens=64),
    sampling=SamplingSettings(temperature=0.8, max_target_tokens=56),
    bc=BCSettings(
        train=TrainSettings(
            max_steps=8000,
            evaluate_every=250,
            patience=3,
            average=4,
            schedule=Schedule(2.5e-3, 500, "inverse_sqrt"),
        )
    ),
    reward=RewardSettings(
        rater=MetricRater(SentenceChrF()),
        sources=5000,
        samples_per_source=4,
        rate_references=False,
        train=TrainSettings(max_steps=600, evaluate_every=50, patience=3, schedule=Schedule(2e-4, 50)),
    ),
    grow_steps=2,
    grow=GrowSettings(sources=12_000, samples_per_source=8),
    improve=ImproveSettings(
        rule=PerSourcePercentile((50.0, 70.0, 85.0)),
        train=TrainSettings(max_steps=250, evaluate_every=50, patience=3, schedule=Schedule(4e-4, 20)),
    ),
    evaluation=EvaluationSettings(samples_per_source=4, dev_samples_per_source=2),
)

quick = replace(
    experiment,
    bc=replace(experiment.bc, train=replace(experiment.bc.train, max_steps=1000)),
    reward=replace(
        experiment.reward,
        sources=3000,
        samples_per_source=3,
        train=replace(experiment.reward.train, max_steps=150),
    ),
    grow_steps=1,
    grow=replace(experiment.grow, sources=8000),
    improve=replace(
        experiment.improve,
        rule=PerSourcePercentile((50.0, 80.0)),
        train=replace(experiment.improve.train, max_steps=120, evaluate_every=40),
        value=TrainSettings(max_steps=300, evaluate_every=50, patience=3, schedule=Schedule(3e-4, 50)),
    ),
    evaluation=replace(experiment.evaluation, dev_sources=500),
)

# A reward that costs a fraction of the policy: it starts from a small translation model of its own.
small_reward = replace(
    quick,
    reward=replace(
        quick.reward,
        start=TranslationModel(
            train=TrainSettings(
                max_steps=1500, evaluate_every=250, patience=3, average=3, schedule=Schedule(5e-3, 300, "inverse_sqrt")
            )
        ),
    ),
)
