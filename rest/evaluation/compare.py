"""Two policies on the same text: which metrics differ, and whether the reward was gained at the others' expense.

A policy is trained on its reward, so a rising reward alone says little. The alarm is that the reward rose while a
metric that it was not trained on fell, both beyond their paired intervals (over-optimisation: Gao et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rest.errors import UserError
from rest.evaluation.outputs import Outputs
from rest.folder import open_stage, read_json, seed_for
from rest.journal import say
from rest.statistics.intervals import LEAST_SOURCES, corpus_metrics
from rest.statistics.paired import PairedTest, joint_corpus, joint_means

ROWS = 10  # shown beside an alarm
ERRORS = ("ter",)  # metrics of which less is better
TRAINED_ON = ("reward", "reward_greedy", "reward_beam")  # all others are evidence beside it


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation kept of one policy."""

    samples: Outputs
    greedy: Outputs
    beam: Outputs | None = None
    """None of an evaluation that kept no beam outputs."""

    @classmethod
    def read(cls, folder: Path) -> Evaluated:
        beam = folder / "beam.parquet"
        samples, greedy = (Outputs.read(folder / f"{name}.parquet") for name in ("samples", "greedy"))
        return cls(samples, greedy, Outputs.read(beam) if beam.exists() else None)


def compare_stages(evaluation: Path, new: str, old: str, seed: int) -> None:
    """Compares two evaluations in a run's folder `evaluation`, in <new>-against-<old>, and says an alarm.

    Nothing is done where one of them is not there.
    """
    ours, theirs = evaluation / new, evaluation / old
    if not (ours.exists() and theirs.exists()):
        return
    settings = {side: read_json(path / "stage.json")["settings"] for side, path in (("new", ours), ("old", theirs))}
    with open_stage(evaluation / f"{new}-against-{old}", settings) as stage:
        if not stage.finished:
            tokenize = settings["new"]["evaluation"]["bleu_tokenizer"]
            result = paired_tests(Evaluated.read(ours), Evaluated.read(theirs), seed_for(seed, "compare"), tokenize)
            stage.finish(result | {"new": new, "old": old})
        if fell := stage.result["fell"]:
            say(f"{new}: warning: against {old} the reward rose while these got worse: {', '.join(fell)}")


def paired_tests(new: Evaluated, old: Evaluated, seed: int, tokenize: str = "13a") -> dict[str, Any]:
    """`tests`: those of `joint_tests`. `fell`: the alarm, [] for none. `rows`: what the alarm is about."""
    tests = joint_tests([(new, old)], seed, tokenize)
    fell = fallen(tests, len(new.samples.split))
    return {
        "tests": {name: test.record() for name, test in tests.items()},
        "fell": fell,
        "rows": exploited(new.greedy, old.greedy) if fell else [],
    }


def joint_tests(
    pairs: Sequence[tuple[Evaluated, Evaluated]], seed: int, tokenize: str = "13a"
) -> dict[str, PairedTest]:
    """New minus old of every metric, the mean over pairs, such as seeds, of policies on the same text.

    Reward, gold and judge are those of samples, BLEU, chrF and TER those of greedy outputs; other names say what of.
    """
    first = pairs[0][0].samples.split
    if any(policy.samples.split.ids.tolist() != first.ids.tolist() for pair in pairs for policy in pair):
        raise UserError("the policies were evaluated on different text, so they cannot be compared")
    samples, greedy = ([(getattr(x, of), getattr(y, of)) for x, y in pairs] for of in ("samples", "greedy"))
    beam = [(x.beam, y.beam) for x, y in pairs if x.beam is not None and y.beam is not None]
    tests = _scores(samples, "", seed) | _scores(greedy, "_greedy", seed) | _texts(greedy, "", seed, tokenize)
    if len(beam) == len(pairs):
        tests |= _scores(beam, "_beam", seed) | _texts(beam, "_beam", seed, tokenize)
    return tests


def _scores(pairs: Sequence[tuple[Outputs, Outputs]], of: str, seed: int) -> dict[str, PairedTest]:
    """Means of reward, gold and the judge, where all have them."""
    both = [name for name in ("reward", "gold", "judge") if all(name in side.scores for pair in pairs for side in pair)]
    scores = {name: [(x.scores[name], y.scores[name]) for x, y in pairs] for name in both}
    return {f"{name}{of}": joint_means(each, seed) for name, each in scores.items()}


def _texts(pairs: Sequence[tuple[Outputs, Outputs]], of: str, seed: int, tokenize: str) -> dict[str, PairedTest]:
    """Corpus metrics of one output per source; TER, which takes longest, of greedy outputs alone."""
    split = pairs[0][0].split
    if split.references is None:
        return {}
    references = [split.references, *split.more_references]
    texts = [([row[0] for row in x.texts], [row[0] for row in y.texts]) for x, y in pairs]
    metrics = {name: metric for name, metric in corpus_metrics(tokenize).items() if not of or name not in ERRORS}
    return {f"{name}{of}": joint_corpus(metric, texts, references, seed) for name, metric in metrics.items()}


def fallen(tests: dict[str, PairedTest], sources: int = LEAST_SOURCES) -> list[str]:
    """The metrics that got worse while the reward rose, all beyond their intervals; none where it did not rise.

    And none of a few sources, which tell nothing from chance.
    """
    if sources < LEAST_SOURCES or "reward" not in tests or tests["reward"].lo <= 0:
        return []
    worse = {name: test.lo > 0 if name in ERRORS else test.hi < 0 for name, test in tests.items()}
    return [name for name, is_worse in worse.items() if is_worse and name not in TRAINED_ON]


def exploited(new: Outputs, old: Outputs, rows: int = ROWS) -> list[dict[str, Any]]:
    """The sources whose greedy output gained most reward and lost most of the other metrics: gain times loss."""
    others = [name for name in ("gold", "chrf") if name in new.scores and name in old.scores]
    if not others or "reward" not in new.scores or "reward" not in old.scores:
        return []
    scale = {"gold": 1.0, "chrf": 100.0}
    gain = (new.scores["reward"] - old.scores["reward"])[:, 0].astype(np.float64)
    loss = np.mean([(old.scores[name] - new.scores[name])[:, 0] / scale[name] for name in others], axis=0)
    worth = np.where((gain > 0) & (loss > 0), gain * loss, 0.0)
    chosen = [int(k) for k in np.argsort(-worth, kind="stable")[:rows] if worth[k] > 0]
    references = new.split.references
    return [
        {
            "source_id": int(new.split.ids[k]),
            "source": new.split.sources[k],
            "reference": None if references is None else references[k],
            "old": old.texts[k][0],
            "new": new.texts[k][0],
            **{name: [float(side.scores[name][k, 0]) for side in (old, new)] for name in ("reward", *others)},
        }
        for k in chosen
    ]
