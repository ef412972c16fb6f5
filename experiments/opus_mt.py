"""ReST from a published translation model, with nothing cloned first, and back to where the model came from.

Shows    What self-training adds to a model that somebody else has trained, on text of one's own: its samples are
         compared with each other (`experiment`, a consensus by chrF and BLEU, which needs neither ratings nor
         references) or scored by a reward learned from chrF of them (`learned`). Behavioural cloning is skipped: π₀ is
         the model as published. BLEU and chrF of greedy and beam outputs are beside those of π₀, and of π₀ fine-tuned
         on the same pairs for as many updates (bc_continued). `talks` starts from what iwslt14_de_en.py:small cloned
         and exported, and draws for talks that nobody has translated.
Command  rest run experiments/opus_mt.py --out runs/opus --corpus.directory DIRECTORY
         rest export runs/opus --out improved        (for transformers, and for CTranslate2's converter)
         `quick` is the same on less text, for a small model in a folder, such as one that `rest export` made of
         experiments/multi30k_de_en.py:quick.
         rest export runs/iwslt14-small/bc --out exported
         rest run experiments/opus_mt.py:talks --out runs/talks --corpus.directory IWSLT14 --grow.text german.txt
Data     DIRECTORY holds Multi30k as for multi30k_de_en.py; or any pairs of the model's languages, with
         a corpus of your own in a copy of this file. --model.folder names another model, a folder or a name on the
         hub, of any family of docs/models.md (NLLB: with --model.source-language deu_Latn --model.target-language
         eng_Latn).
Hardware A GPU for an OPUS-MT model (75 million parameters). `quick` with a model of 1.5 million takes minutes of 2 CPU
         cores.
Expect   Not run with an OPUS-MT model. A model that has seen much more text than DIRECTORY has may gain nothing: look
         at the intervals, and at bc_continued. `talks` gained nothing: experiments/LOG.md.
"""

from dataclasses import replace
from pathlib import Path

from tyro import MISSING

from rest import BLEU, BatchSettings, BCSettings, ChrF, Consensus, CorpusBLEU, EvaluationSettings, Experiment
from rest import GrowSettings, HuggingFaceModel, ImproveSettings, MetricOfGreedy, MetricRater, Mixture, PerSourceTop
from rest import RewardSettings, SamplingSettings, Schedule, SentenceChrF, TrainSettings, import_file

multi30k, iwslt14 = (import_file(Path(__file__).with_name(f"{name}_de_en.py")) for name in ("multi30k", "iwslt14"))

experiment = Experiment(
    corpus=multi30k.Multi30k(MISSING),
    model=HuggingFaceModel("Helsinki-NLP/opus-mt-de-en"),
    batch=BatchSettings(batch_tokens=4096, source_tokens=128, target_tokens=128),
    sampling=SamplingSettings(temperature=0.8, max_target_tokens=100),
    bc=BCSettings(train=TrainSettings(max_steps=0)),
    reward=Consensus(Mixture((ChrF(), BLEU()))).reward,
    grow=GrowSettings(samples_per_source=16, beams=4),
    improve=ImproveSettings(
        rule=PerSourceTop((4, 1)),
        human_pairs="never",  # what is learned is the model's own
        unfiltered=False,
        train=TrainSettings(max_steps=500, evaluate_every=100, patience=3, average=3, schedule=Schedule(5e-5, 50)),
    ),
    choose=MetricOfGreedy(CorpusBLEU()),
    evaluation=EvaluationSettings(samples_per_source=4, bc_temperatures=()),
)
talks = replace(
    iwslt14.untranslated,
    model=HuggingFaceModel("exported"),
    tokenizer=experiment.tokenizer,  # the model brings its own
    bc=replace(experiment.bc, label_smoothing=iwslt14.small.bc.label_smoothing),
)
learned = replace(
    experiment,
    reward=RewardSettings(
        rater=MetricRater(SentenceChrF()),
        sources=4000,
        samples_per_source=4,
        rate_references=False,  # a metric gives them 1
        train=TrainSettings(max_steps=600, evaluate_every=50, patience=3, schedule=Schedule(5e-5, 50)),
    ),
)

quick = replace(
    experiment,
    batch=BatchSettings(batch_tokens=2048, source_tokens=64, target_tokens=64),
    sampling=replace(experiment.sampling, max_target_tokens=56),
    grow=replace(experiment.grow, sources=1000, samples_per_source=8, beams=0),
    improve=replace(
        experiment.improve,
        train=TrainSettings(max_steps=60, evaluate_every=30, average=2, schedule=Schedule(2e-4, 10)),
    ),
    choose=replace(experiment.choose, sources=200),
    evaluation=replace(experiment.evaluation, samples_per_source=2),
)
