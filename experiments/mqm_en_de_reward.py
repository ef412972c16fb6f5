"""A reward learned from real human judgements of English-German translations, beside trivial rewards.

Shows    How far a small reward that reads no reference agrees with people on documents it has not seen: professional
         translators' error annotations (MQM) of newstest2020, and direct assessments (MLQE-PE) of Wikipedia. Each set
         is standardised before they are mixed. `experiment` learns by regression, `pairwise` by ranking the
         translations of a source, `both` by both. The policy that the reward starts from, whose mean log-probability it
         also reads, is trained on little text.
Command  rest bc experiments/mqm_en_de_reward.py --out runs/mqm-regression --corpus.directory DIRECTORY \
             --reward.ratings.0.directory DIRECTORY
         cp -r runs/mqm-regression runs/mqm-pairwise        (the same policy)
         rest reward train experiments/mqm_en_de_reward.py --out runs/mqm-regression (and the two flags)
         rest reward train experiments/mqm_en_de_reward.py:pairwise --out runs/mqm-pairwise (and the two flags)
         rest reward evaluate runs/mqm-regression --against runs/mqm-pairwise --policy runs/mqm-regression \
             --part unseen mqm --path DIRECTORY/mqm/mqm_newstest2020_ende.tsv.gz --reference-system Human-A.0
Data     DIRECTORY holds wmt-newstest-de-en/{train,valid}.{de,en}.gz, ted-de-en and tatoeba-de-en of the same layout,
         mqm/mqm_newstest2020_ende.tsv.gz (Freitag et al. 2021) and mlqe-pe/en-de.{train,dev}.tsv.gz (Fomicheva et al.
         2020).
Hardware 2 CPU cores: `quick` takes 4 minutes for the policy, 3 for regression, 4.5 for ranking; the full one 50 minutes
         for the policy on one core, 6 for regression; ranking up to 15, beside other work.
Expect   On unseen documents of newstest2020 Pearson 0.27 [0.20, 0.35], beside 0.21 of chrF with the reference, 0.17 of
         the length of the source and 0.00 of the policy's log-probability; 0.25 on MLQE-PE's dev set. Within sources
         (acc-eq) `pairwise` has 0.529 [0.494, 0.558], regression 0.493, chrF 0.481. qe_reward.py starts from an encoder
         trained on a hundred languages instead, and agrees with people better. experiments/LOG.md has all.
"""

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from tyro import MISSING

from rest import MLQEPE, MQM, BatchOverrides, BatchSettings, BCSettings, Cleaning, Corpus, Experiment, RatingLoss
from rest import Ratings, RewardSettings, Schedule, SentencePieceSettings, Split, SplitSettings, TextFiles
from rest import TrainSettings, TransformerSettings, WithinSources, mix


@dataclass(frozen=True)
class EnglishGerman:
    """News, talks and everyday sentences, English to German; newstest2018 is dev and test."""

    directory: Path
    """Where wmt-newstest-de-en, ted-de-en and tatoeba-de-en are."""

    def load(self, cleaning: Cleaning) -> Corpus:
        """The first 500 sentences of newstest2018 are dev and test alike: no policy is compared here."""
        valid = [self.directory / "wmt-newstest-de-en" / f"valid.{side}.gz" for side in ("en", "de")]
        names = ("wmt-newstest-de-en", "ted-de-en", "tatoeba-de-en")
        train = [[self.directory / name / f"train.{side}.gz" for side in ("en", "de")] for name in names]
        read = [TextFiles(*files, *valid, *valid, max_dev=500, max_test=500).load(cleaning) for files in train]
        sources = list(chain.from_iterable(corpus.train.sources for corpus in read))
        references = list(chain.from_iterable(corpus.train.references or [] for corpus in read))
        joined = Split("train", np.arange(len(sources)), sources, references)
        counts = {name: corpus.counts["train"] for name, corpus in zip(names, read, strict=True)}
        return Corpus(joined, read[0].dev, read[0].test, counts | {"dev": read[0].counts["dev"]})


@dataclass(frozen=True)
class Judgements:
    """MQM of newstest2020 and direct assessments of MLQE-PE."""

    directory: Path
    """Where mqm and mlqe-pe are."""

    def load(self) -> Ratings:
        """Each set standardised. The first human translation is the others' reference, and so is not among them."""
        mqm = MQM(self.directory / "mqm" / "mqm_newstest2020_ende.tsv.gz", "en-de", reference_system="Human-A.0")
        assessed = (MLQEPE(self.directory / "mlqe-pe" / f"en-de.{part}.tsv.gz", "en-de") for part in ("train", "dev"))
        return mix([mqm.load(), *(file.load() for file in assessed)])


wide = BatchOverrides(batch_tokens=2048, source_tokens=512, target_tokens=512)  # room for the translations of a source

experiment = Experiment(
    corpus=EnglishGerman(MISSING),
    tokenizer=SentencePieceSettings(vocabulary_size=4096),
    model=TransformerSettings(width=128, heads=4, feed_forward=384, encoder_layers=3, decoder_layers=3, dropout=0.1),
    batch=BatchSettings(batch_tokens=2048, source_tokens=160, target_tokens=160),
    bc=BCSettings(
        train=TrainSettings(
            max_steps=4000,
            evaluate_every=250,
            patience=3,
            average=4,
            schedule=Schedule(2.5e-3, 500, "inverse_sqrt"),
        )
    ),
    reward=RewardSettings(
        ratings=(Judgements(MISSING),),
        split=SplitSettings(test_share=0.2, test_sets=("en-de.dev",)),  # ten documents of news at least
        likelihood=True,
        train=TrainSettings(max_steps=600, evaluate_every=50, patience=4, schedule=Schedule(2e-4, 50)),
    ),
)
pairwise = replace(
    experiment, reward=replace(experiment.reward, loss=RatingLoss(0.0, 1.0), batch=wide, choose=WithinSources())
)
both = replace(experiment, reward=replace(experiment.reward, loss=RatingLoss(1.0, 1.0), batch=wide))

quick = replace(
    experiment,
    model=TransformerSettings(width=64, heads=4, feed_forward=128, encoder_layers=2, decoder_layers=2, dropout=0.1),
    batch=replace(experiment.batch, batch_tokens=1024),
    bc=BCSettings(
        train=TrainSettings(max_steps=1000, evaluate_every=250, average=2, schedule=Schedule(5e-3, 200, "inverse_sqrt"))
    ),
    reward=replace(
        experiment.reward,
        split=SplitSettings(),
        batch=BatchOverrides(batch_tokens=2048),
        train=replace(experiment.reward.train, max_steps=150, evaluate_every=50),
    ),
)
quick_pairwise = replace(
    quick, reward=replace(quick.reward, loss=RatingLoss(0.0, 1.0), batch=wide, choose=WithinSources())
)
quick_both = replace(quick, reward=replace(quick.reward, loss=RatingLoss(1.0, 1.0), batch=wide))
