"""ReST on news, German to English: WMT's test sets of ten years as a small training set, and sources nobody translated.

Shows    What ReST adds to a policy cloned from 24,749 pairs of news, by the consensus of its samples (`small`), which
         needs neither ratings nor references; and in `sources` whether German text without translations adds to it:
         `untranslated` draws for it too, `as_many` for as many sources of both as `own` has. `rewards` is `own` beside
         the reward learned from people's judgements, both joined, and PPO with as many samples, for a judge to score.
Command  rest run experiments/wmt_de_en.py:quick --out runs/wmt-quick --corpus.directory DIRECTORY
         rest study experiments/wmt_de_en.py:sources --out runs/wmt-sources --seeds 0 --corpus.directory DIRECTORY \
             --variants own
         and with --grow.text german.gz: --variants untranslated as_many
         rest study experiments/wmt_de_en.py:rewards --out runs/wmt-rewards --seeds 0 --corpus.directory DIRECTORY \
             --evaluation.judge.function.folder runs/judge --variants consensus
         and with --reward.function.folder runs/into-english: --variants learned ppo; for `both` that folder is given to
         --reward.function.rewards.1.function.folder
         rest study experiments/wmt_de_en.py:preferences --out runs/wmt-preferences --seeds 0 \
             --corpus.directory DIRECTORY --variants consensus bleu
         and with --grow.text german.gz: --variants untranslated
         rest best-of-n experiments/wmt_de_en.py:small --out runs/wmt --samples 200 --corpus.directory DIRECTORY
Launch   sbatch scripts/launch/slurm.sbatch experiments/wmt_de_en.py:base --out runs/wmt --corpus.directory DIRECTORY
         scripts/launch/gke-jobset.yaml with args: [run, "experiments/wmt_de_en.py:base", --out, /runs/wmt,
         --corpus.directory, DIRECTORY, --distributed]
Data     DIRECTORY has train and valid, each as .de.gz and .en.gz: news-test2008 to newstest2015 and newstest2017 for
         training; of newstest2018 the first 1,000 sentences are dev and the others test. german.gz is any German text,
         a sentence a line: `cat TATOEBA/train.de.gz TED/train.de.gz > german.gz`. runs/into-english and runs/judge are
         made by experiments/into_english_reward.py.
Hardware `small` and `quick`: 2 CPU cores; `base`: a GPU. `rest plan` with the same flags says how long it takes.
Expect   `small`: BC has 10 BLEU greedy and 11.3 with beams after 83 minutes of a core. `preferences`: over BC continued
         `bleu` has .2 BLEU greedy and none with beams; `consensus` .4 BLEU and .9 chrF greedy, .2 and .5 with beams,
         and TER worse by 2: outputs are 6 % longer. That was with --improve.control-rate-factor 1, BC continued at
         CPO's rates, at which it hardly moves. With --grow.sources 4000 and its rates ten times that: `consensus` .3
         and .6 greedy, .2 and .2 with beams, TER worse by .9; `untranslated` no more, and .2 chrF less with beams.
         experiments/LOG.md, 2026-11-30. The others have not run. `quick` stops behavioural cloning before its dev loss
         stops falling.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from tyro import MISSING

from rest import BatchSettings, Cleaning, EvaluationSettings, Experiment, MachineSettings, Reward
from rest import SavedReward, Schedule, SentenceBLEU, SentencePieceSettings, TransformerSettings, import_file

# Of about as much text
talks, pairs = (import_file(Path(__file__).with_name(f"iwslt14_{name}.py")) for name in ("de_en", "preferences"))


@dataclass(frozen=True)
class OfPeople(SavedReward):
    """What into_english_reward.py has learned."""


small: Experiment = replace(
    talks.small,
    corpus=talks.TrainAndValid(MISSING, dev=1000),
    cleaning=Cleaning(max_words=120),
    tokenizer=SentencePieceSettings(vocabulary_size=4096),
    batch=BatchSettings(batch_tokens=2560, source_tokens=256, target_tokens=256),
    evaluation=EvaluationSettings(samples_per_source=4),
)
experiment = small
base = replace(
    small,
    model=TransformerSettings(width=512, heads=8, feed_forward=1024, encoder_layers=4, decoder_layers=4, dropout=0.3),
    bc=replace(small.bc, train=replace(small.bc.train, schedule=Schedule(7e-4, 2000, "inverse_sqrt"))),
    improve=replace(small.improve, train=replace(small.improve.train, schedule=Schedule(1e-4, 20))),
    machine=MachineSettings(rows=4096, beam_rows=4096),
)

# Text that nobody has translated
mono = replace(small, grow=talks.WithText(**(vars(small.grow) | {"text": MISSING})))
sources = {
    "own": small,
    "untranslated": mono,
    "as_many": replace(mono, grow=replace(mono.grow, sources=24_000)),
}

# The best text of a source against the worst, by agreement or by BLEU with D's own translations, 12,000 sources of D;
# and by agreement, of as many of D and the text that nobody has translated
of_own = pairs.best_against_worst(replace(small, grow=replace(small.grow, sources=12_000)))
preferences = {
    "consensus": of_own,
    "bleu": replace(of_own, reward=Reward(SentenceBLEU(), (0.0, 100.0))),
    "untranslated": replace(of_own, grow=replace(mono.grow, sources=12_000)),
}

# As in iwslt14_de_en.py
learned = OfPeople(MISSING)
judged = replace(small, evaluation=replace(small.evaluation, judge=Reward(learned)))
some = replace(judged, grow=replace(small.grow, sources=4000))
rewards = talks.by_reward(some, learned)

quick = talks.quickly(small)
