"""Two policies on the same text: which metrics differ, and whether the reward was gained at the others' expense.

A policy is trained on its reward, so a rising reward alone says little. The alarm is that the reward rose while a
metric that it was not trained on fell, both beyond their paired intervals (PAPER.md on over-optimisation).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rest.errors import UserError
from rest.evaluation.outputs import Outputs
from rest.folder import open_stage, read_json, seed_for
from rest.journal import say
from rest.statistics.intervals import LEAST_SOURCES, corpus_metrics
from rest.statistics.paired import PairedTest, paired_corpus, paired_means

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
    """`tests`: new minus old of every metric, paired. `fell`: the alarm, [] for none. `rows`: what the alarm is about.

    Reward and gold are those of samples, BLEU, chrF and TER those of greedy outputs; the other names say what of.
    """
    if new.samples.split.ids.tolist() != old.samples.split.ids.tolist():
        raise UserError("the two policies were evaluated on different text, so they cannot be compared")
    tests = _scores(new.samples, old.samples, "", seed)
    tests |= _scores(new.greedy, old.greedy, "_greedy", seed) | _texts(new.greedy, old.greedy, "", seed, tokenize)
    if new.beam is not None and old.beam is not None:
        tests |= _scores(new.beam, old.beam, "_beam", seed) | _texts(new.beam, old.beam, "_beam", seed, tokenize)
    fell = fallen(tests, len(new.samples.split))
    return {
        "tests": {name: test.record() for name, test in tests.items()},
        "fell": fell,
        "rows": exploited(new.greedy, old.greedy) if fell else [],
    }


def _scores(new: Outputs, old: Outputs, of: str, seed: int) -> dict[str, PairedTest]:
    """Means of reward and gold, where both sides have them."""
    both = [name for name in ("reward", "gold") if name in new.scores and name in old.scores]
    return {f"{name}{of}": paired_means(new.scores[name], old.scores[name], seed) for name in both}


def _texts(new: Outputs, old: Outputs, of: str, seed: int, tokenize: str) -> dict[str, PairedTest]:
    """Corpus metrics of one output per source; TER, which takes longest, of greedy outputs alone."""
    if new.split.references is None:
        return {}
    references = [new.split.references, *new.split.more_references]
    ours, theirs = ([row[0] for row in side.texts] for side in (new, old))
    metrics = {name: metric for name, metric in corpus_metrics(tokenize).items() if not of or name not in ERRORS}
    return {f"{name}{of}": paired_corpus(metric, ours, theirs, references, seed) for name, metric in metrics.items()}


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
