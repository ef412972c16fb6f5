"""`rest init`: looks at a text, splits dev and test off, and writes an experiment for it that says why."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from rest.commands.choices import SIZES, Choices, Machine, size_for
from rest.commands.doctor import BFLOAT16, cpu_flags
from rest.commands.flags import parsed
from rest.commands.own import reward_of, start_of
from rest.commands.written import SPLITS, Text, written
from rest.data.corpus import Cleaning
from rest.data.lines import decode_line, read_lines
from rest.data.survey import Pairs, split_off
from rest.errors import UserError, check_seed

LEAST = 100  # pairs, below which nothing is learned
CLEANING = Cleaning()


@dataclass(frozen=True)
class Flags:
    """Looks at your text, splits dev and test off where they are not given, and writes DIR/experiment.py: a short file
    that says why each number was chosen. `rest run DIR` runs it."""

    folder: tyro.conf.Positional[Path]
    """The folder to make."""
    source: Path
    """Sentences to translate, one a line: UTF-8, gzip where named .gz."""
    target: Path
    """Their translations, line by line."""
    dev_source: Path | None = None
    """Text that decides when training stops and what is kept; none: split off."""
    dev_target: Path | None = None
    """Its translations."""
    test_source: Path | None = None
    """Text that is only reported on; none: split off."""
    test_target: Path | None = None
    """Its translations."""
    text: Path | None = None
    """Sentences that nobody has translated, one a line: what is drawn for them is learned beside all pairs."""
    ratings: Path | None = None
    """Learn the reward from a file of human ratings: a table, MQM, MLQE-PE, votes or rankings."""
    reward: str = "consensus"
    """Without ratings: what the samples of a source agree on, or a function of yours, as module:function or
    FILE.py:function."""
    start: str | None = None
    """Fine-tune a published model, a folder or a name on the Hugging Face hub, instead of training a network."""
    size: str | None = None
    """tiny, small, base or paper; none: by the text and the machine."""
    seed: int = 0
    """Of what is split off."""

    def given(self) -> dict[str, tuple[Path, Path]]:
        """The files of dev and of test; UserError where one of two is given."""
        found = {}
        for split in ("dev", "test"):
            source, target = getattr(self, f"{split}_source"), getattr(self, f"{split}_target")
            if (source is None) != (target is None):
                raise UserError(f"--{split}-source and --{split}-target belong together, and one of them is not given")
            if source is not None:
                found[split] = source, target
        return found


def init(arguments: Sequence[str]) -> None:
    """Writes the experiment and says what was seen."""
    flags = parsed(Flags, "init", arguments)
    folder = flags.folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists already and is not an empty folder; name a new one")
    check_seed(flags.seed, "--seed")
    if flags.size is not None and flags.size not in SIZES:
        raise UserError(f"--size {flags.size}: no such size; there are {', '.join(SIZES)}")
    if flags.ratings is not None and flags.reward != "consensus":
        raise UserError("--ratings and --reward: an experiment has one reward, so give one of them")
    text = read(flags)
    machine = _machine()
    size = flags.size or size_for(text.learned, machine)
    more = 0 if flags.text is None else _untranslated(flags.text)
    dev, test, rated = text.splits["dev"], text.splits["test"], flags.ratings is not None
    choices = Choices(text.learned, dev, test, machine, SIZES[size], more, rated)
    reward = reward_of(flags.ratings, flags.reward, choices, folder)
    lines = written(text, choices, size, reward, flags.start and start_of(flags.start, folder), folder, flags.text)
    folder.mkdir(parents=True, exist_ok=True)
    text.write(folder)
    (folder / "experiment.py").write_text(lines, encoding="utf-8")
    print(*text.seen(), sep="\n")
    print(f"{folder / 'experiment.py'}: size {size}. Read it, then: rest run {shlex.quote(str(folder))}")


def read(flags: Flags) -> Text:
    """The three splits, what is not given being split off; UserError for text that a run would refuse."""
    given = flags.given()
    splits = {name: _measured(*files) for name, files in given.items()}
    whole = Pairs.read(flags.source, flags.target, CLEANING)
    usable = len(whole) - int(whole.empty.sum())
    if usable < LEAST:
        raise UserError(f"{flags.source}: only {usable} pairs that are not empty; a policy needs at least {LEAST}")
    missing = [name for name in ("dev", "test") if name not in given]
    if not missing:
        return Text({"train": whole, **splits}, {"train": (flags.source, flags.target), **given}, usable)
    taken = Pairs.joined(list(splits.values())) if splits else None
    each = min(1000, max(20, usable // 12))
    rows, drawn = split_off(whole, dict.fromkeys(missing, each), taken, CLEANING.max_words or 100, flags.seed)
    splits |= {"train": whole.take(rows), **{name: whole.take(which) for name, which in drawn.items()}}
    return Text({name: splits[name] for name in SPLITS}, given, usable)


def _measured(source: Path, target: Path) -> Pairs:
    """Dev or test, of which no line may be left out."""
    pairs = Pairs.read(source, target, CLEANING)
    if not len(pairs):
        raise UserError(f"{source}: has no line")
    if pairs.empty.any():
        row = int(np.argmax(pairs.empty))
        path = target if pairs.source_words[row] else source
        raise UserError(f"{path}, line {row + 1}: is empty, and of dev and test nothing may be left out; mend the line")
    return pairs


def _untranslated(path: Path) -> int:
    """How many lines with text there are; UserError where none."""
    found = sum(bool(decode_line(raw, path, n).strip()) for n, raw in enumerate(read_lines(path), start=1))
    if not found:
        raise UserError(f"{path}: has no line with text")
    return found


def _machine() -> Machine:
    import jax

    accelerators = 0 if jax.default_backend() == "cpu" else jax.device_count()
    return Machine(os.cpu_count() or 1, accelerators, has_bfloat16=bool(BFLOAT16 & cpu_flags()))
