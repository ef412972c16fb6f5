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

    B batch   N samples a source   S source length   T target length   V vocabulary
    D width   H heads   K head width   L layers

Masks are bool, True for a real token. Lengths are explicit, never read off padding. Sizes name their unit:
samples_per_source, max_target_tokens, batch_tokens.

Reading order

    algorithm.py      the method, beside the paper
    grow.py, improve.py, thresholds.py     its two steps, and the rules that choose what passes
    baselines/        behavioural cloning (which is also the start) and PPO
    data/             corpora, tokenizer, the scored dataset (store.py), batches
    policy/, reward/  what samples and what scores
    learning/         losses and the one update loop; model/ has the network
    evaluation/, report/                   what came of it
    experiment.py, stage.py, journal.py, __main__.py   settings, folders, following a run, the `rest` command

Import from these modules; this one holds only the version, so that `import rest` costs nothing.
"""

__version__ = "0.1.0"
