"""A reward that starts from an encoder trained on a hundred languages, learned from people's judgements.

Shows    What a pretrained start is worth beside the reward from scratch of mqm_en_de_reward.py, on the same judgements
         and the same documents held out: English-German MQM of newstest2020 and MLQE-PE. `probe` fits the head alone to
         what the encoder finds as it is, in minutes; `apart` then trains both, each text read by itself; `joint` reads
         source and hypothesis in one row; `ranked` learns the order of a source's translations too. `guarded` has
         corrupted translations among the ratings, so that it can be trained against.
Command  rest bc experiments/qe_reward.py:probe --out runs/qe --corpus.directory DIRECTORY \
             --reward.ratings.0.directory DIRECTORY --reward.start.folder intfloat/multilingual-e5-small
         rest reward train experiments/qe_reward.py:probe --out runs/qe (and the three flags)
         rest reward evaluate runs/qe --against runs/mqm-regression --policy runs/mqm-regression \
             --part unseen mqm --path DIRECTORY/mqm/mqm_newstest2020_ende.tsv.gz --reference-system Human-A.0
Data     As mqm_en_de_reward.py; and an encoder, a folder or a name on the hub.
Hardware `probe` takes eight minutes of one CPU core with an encoder of 12 layers x 384, `quick` twenty, `apart` and
         `guarded` an hour and a quarter more.
Expect   On unseen documents of newstest2020 `apart` has Pearson 0.39 [0.28, 0.47] and ranks 56 % of a source's pairs
         as people do, `guarded` 0.33 [0.23, 0.41] and 53 %, the one from scratch 0.27 [0.20, 0.35] and 49 %, chrF with
         the reference 0.21 and 48 %; on MLQE-PE's dev set 0.34, 0.33 and 0.25. `guarded` prefers an empty translation
         in no case, `apart` in 81 %. experiments/LOG.md has all.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tyro import MISSING

from rest import AcrossSources, Apart, BatchOverrides, BCSettings, ByDepth, Experiment, HuggingFaceEncoder, RatingLoss
from rest import Ratings, RewardSettings, Schedule, SplitSettings, Trainable, TrainSettings, import_file

scratch = import_file(Path(__file__).with_name("mqm_en_de_reward.py"))

STEPS = 800
ENCODER = "intfloat/multilingual-e5-small"

apart = Experiment(
    corpus=scratch.experiment.corpus,
    tokenizer=scratch.experiment.tokenizer,
    model=scratch.quick.model,  # the policy is none of this reward's parts
    batch=scratch.quick.batch,
    bc=BCSettings(train=TrainSettings(max_steps=20, evaluate_every=20, schedule=Schedule(5e-3, 10))),
    reward=RewardSettings(
        ratings=scratch.experiment.reward.ratings,
        split=scratch.experiment.reward.split,
        start=HuggingFaceEncoder(ENCODER, reading=Apart("query: "), depth=9, products="bfloat16"),
        batch=BatchOverrides(batch_tokens=2048, source_tokens=256, target_tokens=256),
        choose=AcrossSources(),
        train=TrainSettings(
            max_steps=STEPS,
            evaluate_every=100,
            patience=4,
            average=3,
            schedule=Schedule(4e-5, 50, "linear", STEPS),  # as much as what the head starts from bears
            optimizer=ByDepth(body=1.0, decay=0.9),
            trainable=Trainable(freeze_embeddings=True),
        ),
    ),
)
probe = replace(apart, reward=replace(apart.reward, train=replace(apart.reward.train, max_steps=0)))
joint = replace(
    apart,
    reward=replace(
        apart.reward,
        start=HuggingFaceEncoder(ENCODER, depth=9, products="bfloat16"),
        batch=BatchOverrides(batch_tokens=4096, source_tokens=256, target_tokens=256),  # of a row with both texts
    ),
)
guarded = replace(apart, reward=replace(apart.reward, negatives=0.1))
ranked = replace(apart, reward=replace(apart.reward, loss=RatingLoss(1.0, 1.0)))
experiment = apart


@dataclass(frozen=True)
class Some(scratch.Judgements):
    """The same judgements of evenly spaced sources."""

    sources: int = 1500
    """How many."""

    def load(self) -> Ratings:
        ratings = super().load()
        groups = np.unique(ratings.groups)
        kept = groups[np.unique(np.linspace(0, len(groups) - 1, self.sources).astype(int))]
        return ratings.take(np.isin(ratings.groups, kept))


# the upper three layers train, for less than an epoch
quick = replace(
    apart,
    reward=replace(
        apart.reward,
        ratings=(Some(MISSING),),
        split=SplitSettings(),
        batch=BatchOverrides(batch_tokens=1536, source_tokens=192, target_tokens=192),
        attacked=50,
        train=replace(
            apart.reward.train,
            max_steps=100,
            evaluate_every=50,
            average=1,
            schedule=Schedule(4e-5, 10, "linear", 100),
            trainable=Trainable(freeze_embeddings=True, freeze_layers=6),
        ),
    ),
)
