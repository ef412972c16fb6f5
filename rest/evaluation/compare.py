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
from rest.statistics.intervals import corpus_metrics
from rest.statistics.paired import PairedTest, paired_corpus, paired_means

ROWS = 10  # shown beside an alarm
ERRORS = ("ter",)  # metrics of which less is better


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation kept of one policy."""

    samples: Outputs
    greedy: Outputs

    @classmethod
    def read(cls, folder: Path) -> Evaluated:
        return cls(Outputs.read(folder / "samples.parquet"), Outputs.read(folder / "greedy.parquet"))


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

    Reward and gold are those of samples; BLEU, chrF and TER those of greedy outputs.
    """
    if new.samples.split.ids.tolist() != old.samples.split.ids.tolist():
        raise UserError("the two policies were evaluated on different text, so they cannot be compared")
    tests: dict[str, PairedTest] = {
        name: paired_means(new.samples.scores[name], old.samples.scores[name], seed)
        for name in ("reward", "gold")
        if name in new.samples.scores and name in old.samples.scores
    }
    if new.greedy.split.references is not None:
        ours, theirs = ([row[0] for row in side.greedy.texts] for side in (new, old))
        references = [new.greedy.split.references, *new.greedy.split.more_references]
        for name, metric in corpus_metrics(tokenize).items():
            tests[name] = paired_corpus(metric, ours, theirs, references, seed)
    fell = fallen(tests)
    return {
        "tests": {name: test.record() for name, test in tests.items()},
        "fell": fell,
        "rows": exploited(new.greedy, old.greedy) if fell else [],
    }


def fallen(tests: dict[str, PairedTest]) -> list[str]:
    """The metrics that got worse while the reward rose, all beyond their intervals; none where it did not rise."""
    if tests["reward"].lo <= 0:
        return []
    worse = {name: test.lo > 0 if name in ERRORS else test.hi < 0 for name, test in tests.items()}
    return [name for name, is_worse in worse.items() if is_worse]


def exploited(new: Outputs, old: Outputs, rows: int = ROWS) -> list[dict[str, Any]]:
    """The sources whose greedy output gained most reward and lost most of the other metrics: gain times loss."""
    others = [name for name in ("gold", "chrf") if name in new.scores and name in old.scores]
    if not others:
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
