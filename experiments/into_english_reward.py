"""A reward for translation into English, learned from people's judgements, and a judge that nothing trains on.

Shows    How far a reward that starts from an encoder of a hundred languages agrees with people on documents that it
         has not seen, as the paper had Metric X: direct assessments into English and MQM of Chinese-English
         (`experiment`), and whether MQM of English-German adds to it (`transfer`). `judge` is another one, for
         `evaluation.judge` of other experiments: it learns from the other half of the documents, with another seed, and
         reads source and translation in one row where the reward reads each by itself. Both start from the same
         pretrained encoder, so what that does not see, neither sees. `probe` and `probe_judge` fit the head alone.
Command  rest bc experiments/into_english_reward.py --out runs/into-english --corpus.directory DIRECTORY/NEWS \
             --reward.ratings.0.directory DIRECTORY --reward.start.folder intfloat/multilingual-e5-small
         rest reward train experiments/into_english_reward.py --out runs/into-english (and the three flags)
         both again with experiments/into_english_reward.py:judge --out runs/judge, or with :quick and :quick_judge
         rest reward evaluate runs/into-english --against runs/judge --part unseen \
             mqm --path DIRECTORY/mqm/mqm_newstest2020_zhen.tsv.gz --language-pair zh-en
         rest reward attack runs/into-english --part unseen mqm --path DIRECTORY/mqm/mqm_newstest2020_zhen.tsv.gz
Launch   sbatch scripts/launch/slurm.sbatch has `rest run`; a reward needs one GPU:
         srun --gres=gpu:1 rest reward train experiments/into_english_reward.py --out runs/into-english (and the flags)
         scripts/launch/gke-jobset.yaml with args: [reward, train, experiments/into_english_reward.py, --out,
         /runs/into-english, ...], after the same with args: [bc, ...]
Data     DIRECTORY holds da-to-english/da_newstest{2015,2017}.tsv.gz (WMT metrics tasks), mqm/mqm_ted_zhen.tsv.gz and
         mqm_newstest2020_, mqm_newstest2021_ and mqm_generalmt2023_ of the same ending (Freitag et al. 2021),
         for `transfer` mqm_newstest2020_ende and mqm_newstest2021_ende; NEWS is what wmt_de_en.py reads.
Hardware `probe` and `probe_judge`: seven and fifteen minutes of one CPU core with an encoder of 12 layers x 384; the
         others take an hour or more there, minutes of a GPU.
Expect   `probe`: Pearson 0.52 with dev ratings, 54 % of a source's pairs ranked right; it prefers another source's
         translation in 20 % of cases, one without punctuation in 38 %. The judge's head alone had 0.24 and 52 % before
         corrupted translations were rated as they are now. The others have not run at full length.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np
from tyro import MISSING

from rest import MQM, Apart, BatchOverrides, BCSettings, Cleaning, Detokenizer, DirectAssessments, Experiment
from rest import HuggingFaceEncoder, Joint, Quantile, Ratings, RewardSettings, Schedule, SplitSettings
from rest import TrainSettings, import_file, mix

news, mqm = (import_file(Path(__file__).with_name(f"{name}.py")) for name in ("wmt_de_en", "qe_reward"))


@dataclass(frozen=True)
class IntoEnglish:
    """Direct assessments of WMT 2015 and 2017, and MQM of Chinese-English; every set is standardised."""

    directory: Path
    """Where da-to-english and mqm are."""
    half: int = 0
    """0 or 1: which half of the documents. What has no document goes by its source; a source of both is in neither."""
    sets: tuple[str, ...] = ("ted_zhen", "newstest2020_zhen", "newstest2021_zhen", "generalmt2023_zhen")
    """Of MQM."""
    sources: int = 0
    """So many sources, evenly spaced; 0: all."""

    def load(self) -> Ratings:
        """Read the files."""
        ratings = mix([self.assessed("2015"), self.assessed("2017"), *map(self.mqm, self.sets)])
        halves = [crc32((name or x).encode()) % 2 for name, x in zip(ratings.documents, ratings.sources, strict=True)]
        of_other = {x for half, x in zip(halves, ratings.sources, strict=True) if half != self.half}
        mine = [half == self.half and x not in of_other for half, x in zip(halves, ratings.sources, strict=True)]
        ratings = ratings.take(np.array(mine))
        groups = np.unique(ratings.groups)
        if self.sources:
            groups = groups[np.unique(np.linspace(0, len(groups) - 1, self.sources).astype(int))]
        return ratings.take(np.isin(ratings.groups, groups))

    def assessed(self, year: str) -> Ratings:
        """German-English, and of 2017 Chinese-English; translations of 2017 were published tokenized and escaped."""
        path = self.directory / "da-to-english" / f"da_newstest{year}.tsv.gz"
        table = DirectAssessments(
            path, hypothesis="translation", score="human_z", language_pairs="lp", drop_empty_sources=True
        )
        found = table.load()
        return found if year == "2015" else replace(found, hypotheses=list(map(Detokenizer("en"), found.hypotheses)))

    def mqm(self, name: str) -> Ratings:
        """Without `ref` of the talks: it is what was said, of which the Chinese is a free translation."""
        exclude = ("ref",) if name == "ted_zhen" else ()
        pair = "zh-en" if name.endswith("zhen") else "en-de"
        path = self.directory / "mqm" / f"mqm_{name}.tsv.gz"
        return MQM(path, pair, exclude_systems=exclude, drop_ambiguous=True).load()


SMALL = HuggingFaceEncoder("intfloat/multilingual-e5-small", depth=9, products="bfloat16")

experiment = Experiment(
    corpus=news.small.corpus,
    cleaning=Cleaning(max_words=120, lowercase=True),  # as many of the judged texts are, and IWSLT14
    tokenizer=news.quick.tokenizer,
    model=news.quick.model,  # the policy is none of this reward's parts
    batch=news.quick.batch,
    bc=BCSettings(train=TrainSettings(max_steps=20, evaluate_every=20, schedule=Schedule(5e-3, 10))),
    reward=RewardSettings(
        ratings=(IntoEnglish(MISSING),),
        split=SplitSettings(test_share=0.2),
        start=replace(SMALL, reading=Apart("query: ")),
        batch=BatchOverrides(batch_tokens=4096, source_tokens=320, target_tokens=320),
        calibration=Quantile(),  # so that the paper's thresholds are shares
        negatives=0.1,
        train=mqm.apart.reward.train,
    ),
)
with_german = (*IntoEnglish(MISSING).sets, "newstest2020_ende", "newstest2021_ende")
transfer = replace(experiment, reward=replace(experiment.reward, ratings=(IntoEnglish(MISSING, sets=with_german),)))
judge = replace(
    experiment,
    seed=1,
    reward=replace(
        experiment.reward,
        ratings=(IntoEnglish(MISSING, half=1),),
        start=replace(SMALL, reading=Joint()),
    ),
)


def probing(full: Experiment) -> Experiment:
    """Its head alone."""
    return replace(full, reward=replace(full.reward, train=replace(full.reward.train, max_steps=0)))


probe, probe_judge = probing(experiment), probing(judge)


def quickly(full: Experiment, sources: int = 1500) -> Experiment:
    """Of fewer sources, the upper three layers, for less than an epoch."""
    shape = BatchOverrides(batch_tokens=1920, source_tokens=320, target_tokens=320)
    ratings = tuple(replace(each, sources=sources) for each in full.reward.ratings)
    return replace(
        full, reward=replace(full.reward, ratings=ratings, batch=shape, attacked=50, train=mqm.quick.reward.train)
    )


quick = quickly(experiment)
quick_judge = quickly(judge)
