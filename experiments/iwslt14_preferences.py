"""ReST on IWSLT14, German to English, where Improve learns the best text of a source against the worst.

Shows    From the policy, the data and the samples of iwslt14_de_en.py:small, by contrastive preference optimisation
         instead of likelihood: `consensus` with the agreement of samples, which needs neither ratings nor references,
         `references` with chrF and BLEU against D's own translations, `bleu` with sentence BLEU alone. `grows` goes on
         from `bleu` with a second Grow; `people` has consensus, the reward learned from people's judgements, both
         joined, and PPO, on 4,000 sources, as iwslt14_de_en.py:rewards. `table` is the paper's table 1 by sentence
         BLEU on 4,000 sources: ReST with G = 1 and 2, and PPO with as many samples as one Grow step.
Command  rest study experiments/iwslt14_preferences.py:rewards --out runs/iwslt14-preferences --seeds 0 1 \
             --corpus.directory DIRECTORY
         the same with :grows and :table, and with :people and the flags of iwslt14_de_en.py:rewards
         rest best-of-n experiments/iwslt14_preferences.py:table.rest --out runs/iwslt14-table/rest/0 --samples 16 \
             --corpus.directory DIRECTORY
Launch   sbatch scripts/launch/slurm.sbatch experiments/iwslt14_preferences.py --out runs/iwslt14 \
             --corpus.directory DIRECTORY
Data     As iwslt14_de_en.py:small.
Hardware 2 CPU cores. `rest plan` with the same flags says how long it takes.
Expect   `table`: over BC continued ReST has .5 BLEU with beams and is not told apart in greedy outputs, from G = 2 dev
         keeps G = 1, and PPO (102,400 samples; ReST's Grow drew 128,000) is level with ReST. The others, with
         --improve.control-rate-factor 1, at which BC continued hardly moves: BC, 55 minutes of a core, has 13.2 and
         13.3 BLEU greedy on TEDX.dev2012. A Grow takes 34 minutes of a core, an Improve 4. Over BC continued, both
         seeds together, `bleu` has .24 more BLEU, .19 more chrF and .91 less TER in greedy outputs, .25 more BLEU with
         beams; of the others chrF is better and TER worse: outputs are longer. `people`: from `learned` dev keeps BC,
         and neither `consensus` nor `both` is better than BC continued.
         experiments/LOG.md, 2026-11-30.
"""

from dataclasses import replace
from pathlib import Path

from rest import CPO, BatchOverrides, Experiment, PerSourceTop, Reward, Schedule, SentenceBLEU, SentenceChrF
from rest import WeightedMean, import_file

talks = import_file(Path(__file__).with_name("iwslt14_de_en.py"))


def best_against_worst(of: Experiment) -> Experiment:
    """An experiment whose Improve learns from both."""
    room = of.batch.source_tokens, 2 * of.batch.target_tokens
    train = replace(
        of.improve.train,
        max_steps=300,
        evaluate_every=50,
        patience=6,  # the rate falls to zero: the last checkpoints count
        schedule=Schedule(3e-5, 20, "linear", 300),
    )
    improve = replace(
        of.improve,
        rule=PerSourceTop((64,)),  # any text may be the best
        human_pairs="never",
        label_smoothing=0.0,  # it would make the worst text likely too
        loss=CPO(),
        control_rate_factor=10.0,  # at CPO's rates likelihood hardly moves
        batch=BatchOverrides(4096, *room, share_sources=True),
        train=train,
    )
    return replace(of, improve=improve)


experiment = best_against_worst(talks.small)
chrf, bleu = Reward(SentenceChrF(), (0.0, 100.0)), Reward(SentenceBLEU(tokenize="none"), (0.0, 100.0))
rewards = {
    "consensus": experiment,
    "references": replace(experiment, reward=Reward(WeightedMean((chrf, bleu)))),
    "bleu": replace(experiment, reward=bleu),
}
grows = {"once": rewards["bleu"], "twice": replace(rewards["bleu"], grow_steps=2)}

# For 4,000 sources each, Grow draws 128,000 samples and the 4-best, PPO as many samples
fewer = replace(experiment, grow=replace(experiment.grow, sources=4000))
online = replace(talks.online, epochs=1, schedule=Schedule(1e-4, 20), average=3)
table = {
    "rest": replace(fewer, reward=bleu, grow_steps=2),
    "ppo": replace(fewer, reward=bleu, grow_steps=0, ppo=online),
}
people = talks.by_reward(replace(fewer, evaluation=talks.judge), talks.learned)
