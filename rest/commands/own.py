"""Where a written experiment gets its reward, its start and its files from, as code of that file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rest.commands.choices import Choices
from rest.commands.reward import named_reward
from rest.data.lines import decode_line, read_lines
from rest.errors import UserError
from rest.model.families.hub import NAME
from rest.ratings.files import MLQEPE, MQM, DirectAssessments, Rankings, Votes
from rest.reward.reward import Groups, Reward


def beside(path: Path, folder: Path) -> str:
    """A path as code, relative to the experiment's file."""
    relative = Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    return f"here / {json.dumps(relative, ensure_ascii=False)}"


class Own(NamedTuple):
    """A reward as code, and why."""

    code: str
    why: str
    top: str = ""  # what stands above the experiment
    learned: bool = False


def reward_of(ratings: Path | None, reward: str, choices: Choices, folder: Path) -> Own:
    """The reward of ratings, of the consensus of samples, or a function of the user's."""
    if ratings is not None:
        return _of_ratings(ratings, folder)
    if reward != "consensus":
        return _of_function(reward, choices, folder)
    tokenize = choices.bleu_tokenizer
    bleu = "BLEU()" if tokenize == "13a" else f'BLEU(SentenceBLEU("{tokenize}"))'
    why = "No ratings: a sample is as good as the others of its source agree with it. chrF alone likes long texts."
    return Own(f"Consensus(Mixture((ChrF(), {bleu}))).reward", why)


def _of_ratings(path: Path, folder: Path) -> Own:
    kind, more = _kind(path)
    loaded = kind(path, **more).load()
    counts = np.unique(loaded.groups, return_counts=True)[1]
    ranks = (counts > 1).mean()
    steps = min(2000, max(100, 50 * round(len(loaded) / 500)))
    fields = "".join(f", {name}={value!r}" for name, value in more.items()).replace("'", '"')
    choose = "" if ranks > 0.2 else ", choose=AcrossSources()"
    why = f"Learned from {len(loaded):,} rated translations of {len(counts):,} sources."
    if choose:
        why += " Few sources have several, so it is chosen by how it orders translations of different ones."
    why += " Corrupted ones are added: of honest ones alone it learns to like an empty text."
    code = (
        f"RewardSettings(\n    ratings=({kind.__name__}({beside(path, folder)}{fields}),){choose},\n"
        "    negatives=0.1,\n    train=TrainSettings(\n"
        f"        max_steps={steps}, evaluate_every={steps // 10}, patience=4, "
        "schedule=Schedule(2e-4, 20)\n    ),\n)"
    )
    return Own(code, why, learned=True)


def _kind(path: Path) -> tuple[Callable[..., Any], dict[str, str]]:
    """The reader of a file of ratings and what it must be told, by the file's first line."""
    first = next(read_lines(path), None)
    if first is None:
        raise UserError(f"{path}: is empty, and should hold ratings")
    line = decode_line(first, path, 1)
    if line.lstrip().startswith("{"):
        return (Rankings if '"answers"' in line else Votes), {}
    columns = line.split("\t")
    if {"severity", "category", "seg_id"} <= {*columns}:
        return MQM, {}
    if {"original", "translation", "z_mean"} <= {*columns}:
        return MLQEPE, {}
    names = {
        "source": ("source", "src", "original"),
        "hypothesis": ("hypothesis", "translation", "mt", "target", "tgt", "hyp"),
        "score": ("score", "rating", "z_mean", "mean", "da"),
    }
    found = {field: next((name for name in known if name in columns), None) for field, known in names.items()}
    if missing := [field for field, name in found.items() if name is None]:
        raise UserError(
            f"{path}, line 1: neither JSON nor columns with a {missing[0]}, but {line[:80]!r}; a table of ratings "
            "begins with the names source, hypothesis and score, parted by tabs"
        )
    return DirectAssessments, {field: name for field, name in found.items() if name is not None and name != field}


def _of_function(name: str, choices: Choices, folder: Path) -> Own:
    """A function of the user's, with a scale from what it gives to references and to wrong ones."""
    found = named_reward(name)
    module, _, attribute = name.rpartition(":")
    call = "()" if isinstance(found, type) else ""
    file = Path(module if module.endswith(".py") else module.replace(".", "/") + ".py")
    if file.is_file():  # beside the user, where Python does not look for modules of the `rest` command
        top = f"own = import_file({beside(file, folder)}).{attribute}"
    else:
        top = f"from {module} import {attribute} as own"
    if isinstance(found, Reward):
        return Own("own", f"{name} is a Reward, and has a scale.", top)
    some = choices.dev.take(np.repeat(np.arange(min(100, len(choices.dev))), 2))  # twice: to be compared
    wrong, groups = [*some.targets[2:], *some.targets[:2]], Groups.of_samples(len(some.sources) // 2, 2)
    anything = Reward(found() if call else found, scale=(-1e30, 1e30))  # which checks what the function gives
    scored = partial(anything, some.sources)
    scores = [scored(side, some.targets, groups).raw for side in (some.targets, wrong)]
    if choices.untranslated:  # for which there are no references
        scored(some.targets, None, groups)
    low, high = float(np.min(scores)), float(np.max(scores))
    if low >= 0 and high <= 1:
        return Own(f"Reward(own{call})", f"{name} gave {low:.3g} to {high:.3g} to dev, which needs no scale.", top)
    if not low < high:
        raise UserError(f"--reward {name}: gives {low:g} to every translation of dev, so it can choose none")
    why = f"What {name} gave dev's references, right and wrong ones, at least and at most becomes 0 and 1."
    return Own(f"Reward(own{call}, scale=({float(f'{low:.4g}')}, {float(f'{high:.4g}')}))", why, top)


def start_of(name: str, folder: Path) -> str:
    """HuggingFaceModel(...) as code; UserError for what can be neither a folder of one nor a name on the hub."""
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise UserError(f"--start {name}: has no config.json, so it is no folder of a published model")
        return f"HuggingFaceModel({beside(Path(name), folder)})"
    if not re.fullmatch(NAME, name):
        raise UserError(f"--start {name}: no such folder, and no name on the hub, such as Helsinki-NLP/opus-mt-de-en")
    return f'HuggingFaceModel("{name}")'
