"""ReST on WMT20, Chinese to English: the paper's second benchmark, and a trial of it on the news at hand.

Shows    `paper`: the Transformer base, N = 25 and four Improve steps with the thresholds .8 to .99, by a reward learned
         from people's judgements; newstest2019 is dev, newstest2020 test. `table` has PPO beside it with as many
         samples. `small`: 8,000 pairs of news and everyday sentences and the consensus of samples, to see everything
         work; a good system needs far more text. `rewards` compares rewards there.
Command  rest run experiments/wmt20_zh_en.py:small --out runs/zh-en --corpus.directory DIRECTORY
         rest study experiments/wmt20_zh_en.py:rewards --out runs/zh-en-rewards --seeds 0 --corpus.directory DIRECTORY \
             --evaluation.judge.function.folder runs/judge --variants consensus
         and with --reward.function.folder runs/into-english: --variants learned ppo; for `both` that folder is given to
         --reward.function.rewards.1.function.folder
         rest run experiments/wmt20_zh_en.py:paper --out runs/wmt20 --reward.function.folder runs/into-english
         rest best-of-n experiments/wmt20_zh_en.py:paper --out runs/wmt20 --samples 200 (and the flag)
Launch   sbatch scripts/launch/slurm.sbatch experiments/wmt20_zh_en.py:paper --out runs/wmt20 (and the flag); and the
         Grow step by many jobs: scripts/launch/slurm-array.sbatch grow experiments/wmt20_zh_en.py:paper (and the flags)
         scripts/launch/gke-jobset.yaml with args: [run, "experiments/wmt20_zh_en.py:paper", --out, /runs/wmt20,
         --reward.function.folder, /runs/into-english, --distributed]
Data     `paper`: tensorflow-datasets and sacreBLEU fetch what is not there; the corpora of CWMT lie behind an FTP
         server. docs/corpora.md says how the text is cleaned once for all runs. DIRECTORY has train.news,
         train.tatoeba and valid.news, each as .zh.gz and .en.gz; of valid.news the first 800 sentences are dev, the
         others test. runs/into-english and runs/judge are made by experiments/into_english_reward.py.
Hardware `paper`: many GPUs, days (890 million samples); `small` and `quick`: 2 CPU cores. `rest plan` says how long.
Expect   Not run yet at full length.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tyro import MISSING

from rest import WMT, BatchSettings, Cleaning, Combined, Corpus, EvaluationSettings, Experiment, Fixed
from rest import GrowSettings, Guards, Reward, RolloutSettings, SacreBLEU, SavedReward, Schedule, Split
from rest import SentencePieceSettings, TextFiles, TrainSettings, TransformerSettings, import_file

talks = import_file(Path(__file__).with_name("iwslt14_de_en.py"))

DEV = 800  # sentences of newstest2017 that are dev


@dataclass(frozen=True)
class OfPeople(SavedReward):
    """What into_english_reward.py has learned."""


paper: Experiment = replace(
    talks.paper,
    corpus=Combined(
        train=WMT(
            "zh",
            "en",
            train=(
                "newscommentary_v14",
                "wikititles_v1",
                "uncorpus_v1",
                "casia2015",
                "casict2011",
                "casict2015",
                "datum2015",
                "datum2017",
                "neu2017",
            ),
        ),
        dev=SacreBLEU("wmt19", "zh-en"),
        test=SacreBLEU("wmt20", "zh-en"),
    ),
    cleaning=Cleaning(max_words=250, max_length_ratio=4.0, min_length_ratio=0.5, drop_duplicates=True),
    tokenizer=SentencePieceSettings(vocabulary_size=32_000, byte_fallback=True),
    model=TransformerSettings(width=512, heads=8, feed_forward=2048, encoder_layers=6, decoder_layers=6, dropout=0.1),
    batch=BatchSettings(batch_tokens=65_536, source_tokens=512, target_tokens=512),
    bc=replace(
        talks.paper.bc,
        train=TrainSettings(
            max_steps=300_000,
            evaluate_every=5000,
            patience=5,
            average=5,
            schedule=Schedule(7e-4, 4000, "inverse_sqrt"),
        ),
    ),
    reward=Reward(OfPeople(MISSING), guards=Guards()),
    grow_steps=1,
    grow=GrowSettings(samples_per_source=25, sources_per_shard=16_384),
    improve=replace(talks.paper.improve, rule=Fixed((0.8, 0.9, 0.95, 0.99))),
    evaluation=EvaluationSettings(samples_per_source=4),
)
# 890 million samples, as one Grow step
table = {
    "rest": paper,
    "ppo": replace(
        paper,
        grow_steps=0,
        ppo=replace(talks.ppo, rollouts=27_000, evaluate_every=1000, rollout=RolloutSettings(8240, 4)),
    ),
}


@dataclass(frozen=True)
class NewsAndTatoeba:
    """Newstest2018 and everyday sentences as training text; newstest2017 is dev and test."""

    directory: Path
    """Where train.news.zh.gz and the others are."""

    def load(self, cleaning: Cleaning) -> Corpus:
        """Both training texts joined, and valid.news in two parts."""
        news, tatoeba, valid = (
            [self.directory / f"{name}.{side}.gz" for side in ("zh", "en")]
            for name in ("train.news", "train.tatoeba", "valid.news")
        )
        first, second = (TextFiles(*files, *valid, *valid, max_dev=DEV).load(cleaning) for files in (news, tatoeba))
        train = Split(
            "train",
            np.arange(len(first.train) + len(second.train)),
            first.train.sources + second.train.sources,
            (first.train.references or []) + (second.train.references or []),
        )
        test = first.test.take(slice(DEV, None))
        of_train = {name: count + second.counts["train"][name] for name, count in first.counts["train"].items()}
        of_test = first.counts["test"] | {"read": len(test), "kept": len(test)}
        return Corpus(train, first.dev, test, first.counts | {"train": of_train, "test": of_test})


small = replace(
    talks.small,
    corpus=NewsAndTatoeba(MISSING),
    cleaning=Cleaning(max_words=250),
    tokenizer=SentencePieceSettings(vocabulary_size=4096, character_coverage=0.98, byte_fallback=True),
    batch=BatchSettings(batch_tokens=2560, source_tokens=256, target_tokens=256),
    evaluation=EvaluationSettings(samples_per_source=4),
)
experiment = small

# As in iwslt14_de_en.py, for all sources: there are few
learned = OfPeople(MISSING)
judged = replace(small, evaluation=replace(small.evaluation, judge=Reward(learned)))
rewards = talks.by_reward(judged, learned, replace(talks.online, rollouts=400, sources=0))

quick = talks.quickly(small)
