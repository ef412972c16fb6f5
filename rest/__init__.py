"""Offline Reinforced Self-Training (ReST; Gulcehre et al. 2023, arXiv 2308.08998) in JAX.

    D ── bc ──▶ π₀                   behavioural cloning on human pairs
    for g in 1..G:
        grow      x ~ D, y ~ π(·|x): sample, score every row with R, write D_g = samples ∪ D
        for i in 1..I:
            improve   fine-tune on the rows with R(x, y) > τᵢ, keep the checkpoint with the best dev reward

Words, used in one sense everywhere

    source            a text to translate, x
    reference         its human translation
    hypothesis        a model's translation, y
    policy            the sequence model π(y|x); the behaviour policy is the one that sampled,
                      the anchor the frozen one that a KL divergence is taken to
    grow step g       samples a dataset D_g;  improve step i fine-tunes on what passes its threshold τ
    reward            float32 in [0, 1]; the number before scaling is raw_score
    gold              exact quality, where a task knows it
    log-probability   natural logarithm (nats)

Axes in shapes

    B batch   N samples per source   S source length   T target length   V vocabulary
    D width   H heads   K head width   L layers

Masks are bool, True for a real token. Lengths are explicit, never read off padding. Sizes name their unit:
samples_per_source, max_target_tokens, batch_tokens.

Reading order

    algorithm.py      the method, beside the paper
    grow.py, improve.py, thresholds.py, columns.py   its two steps, the rules that choose what passes, what losses read
    runs.py, stages/  a run and its stages: what each reads, what decides its bytes, how it is made
    baselines/        behavioural cloning (which is also the start) and PPO
    data/             corpora, tokenizer, the scored dataset (store.py), batches
    policy/, reward/, ratings/             what samples, what scores, what people said
    model/            networks;  learning/ losses and the one update loop, which alone knows devices
    evaluation/, statistics/, report/      what came of it
    experiment.py, study.py                settings of a run, and many runs
    folder.py, journal.py, commands/       a stage's folder, following a run, the `rest` command

All that an experiment or a script needs is imported from here: `from rest import Experiment, run, NLL`. A name is
looked for in its module when it is first used, so that `import rest` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_NAMES = {  # what is public, by the module that defines it; no name here is also that of a module or folder of rest/
    "allocator": "keep_freed_memory",
    "errors": "UserError",
    "folder": "StageName",
    "experiment": "Experiment import_file load_experiment",
    "algorithm": "run",
    "runs": "Run",
    "study": "Study",
    # the paper's steps and the baselines
    "grow": "FurtherSamples GrowSettings open_dataset",
    "improve": "ImproveSettings",
    "thresholds": "Capped Fixed GlobalPercentile PerSourceInterpolation PerSourcePercentile PerSourceTop Rule",
    "baselines.bc": "BCSettings",
    "baselines.rollout": "RolloutSettings",
    "baselines.settings": "CriticSettings FromPolicy FromReward GRPO PPOSettings RLOO",
    # text, and what was sampled
    "data.batches": "BatchOverrides BatchSettings",
    "data.corpus": "Cleaning Combined Corpus Split SyntheticCorpus",
    "data.files": "FairseqText TabSeparated TextFiles",
    "data.iwslt": "IWSLT14",
    "data.large": "Shards write_shards",
    "data.testsets": "SacreBLEU",
    "data.tfds": "TensorflowDataset WMT",
    "data.synthetic": "Noise SyntheticLanguage",
    "data.tokenizer": "HuggingFaceSettings SentencePieceSettings Tokenizer",
    "data.store": "ScoredDataset",
    "ratings.files": "DirectAssessments MLQEPE MQM MQMWeights Rankings Votes",
    "ratings.rated": "Rated",
    "ratings.record": "Ratings SplitSettings mix",
    # networks, and how they learn
    "model.layers": "TransformerSettings",
    "model.families.huggingface": "HuggingFaceModel",
    "learning.mesh": "MachineSettings",
    "learning.optimizers": "Adafactor Adam InTurn Schedule Stretch",
    "learning.depth": "ByDepth",
    "learning.train": "TrainSettings",
    "learning.lora": "LoRA Trainable",
    "learning.losses": "AdvantageWeighted Anchored GOLD Loss NLL OfflineActorCritic PolicyLoss RewardWeighted Tokens "
    "VMPO VTrace",
    "learning.preferences": "BradleyTerry CPO DPO MinimumRisk RRHF",
    "learning.surrogate": "ClippedSurrogate ClippedValue Reinforce",
    "learning.returns": "GAE Group LeaveOneOut",
    "learning.divergence": "AdaptiveCoefficient Exact FixedCoefficient InLoss InReward K1 K2 K3",
    # policies and rewards
    "policy.policy": "Policy last_policy",
    "policy.sampler": "SamplingOverrides SamplingSettings sample",
    "policy.beam": "BeamSettings translate",
    "reward.reward": "Groups Reward RewardFunction",
    "reward.composition": "Cached Conservative Minimum RankMean Shortlist WeightedMean",
    "reward.guards": "Guards",
    "reward.raters": "MetricRater SimulatedRater",
    "reward.reference_based": "SentenceBLEU SentenceChrF",
    "reward.consensus": "Consensus",
    "reward.likelihood": "Likelihood PolicyLogProb Reconstruction",
    "reward.utility": "BLEU ChrF Mixture Pairwise Utility",
    "reward.embedding": "Centroids EmbeddingCosine SourceCosine",
    "reward.learned.calibration": "Affine Isotonic MinMax Quantile",
    "reward.learned.choice": "AcrossSources WithinAndAcross WithinSources",
    "reward.learned.encoder": "Apart FirstState HuggingFaceEncoder Joint LastLayer MeanState MixedLayers PooledState",
    "reward.learned.sentences": "NonTranslations SentenceEmbeddings",
    "reward.learned.settings": "Refresh RewardSettings TranslationModel",
    "reward.learned.network": "LearnedReward RatingLoss",
    "reward.learned.saved": "SavedReward",
    "reward.published.cometkiwi": "CometKiwi",
    "reward.published.metricx": "METRICX_23 METRICX_23_QE METRICX_24 METRICX_24_QE MetricX",
    # what came of it
    "statistics.moses": "Detokenizer",
    "evaluation.chooser": "CorpusBLEU CorpusChrF CorpusMean DevLoss MetricOfGreedy RewardOfGreedy RewardOfSamples",
    "evaluation.evaluate": "EvaluationSettings",
    "evaluation.decoding": "DecodingSettings",
    "evaluation.mbr": "ConfidencePruning MBR ModelBased MonteCarlo",
}
_MODULES = {name: f"rest.{module}" for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted([*_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    """A public name, from its module (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'rest' has no attribute {name!r}")
    found = getattr(import_module(_MODULES[name]), name)
    globals()[name] = found  # asked for once
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
