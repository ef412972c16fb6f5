"""The experiment that `rest init` writes: what its text is like, its reward and its start, and the file itself."""

from __future__ import annotations

import json
import os
import re
import shlex
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rest.commands.choices import Choices
from rest.commands.reward import named_reward
from rest.data.corpus import Cleaning
from rest.data.lines import decode_line, read_lines
from rest.data.survey import UNEVEN, Pairs
from rest.errors import UserError
from rest.model.families.hub import NAME
from rest.ratings.files import MLQEPE, MQM, DirectAssessments, Rankings, Votes
from rest.reward.language import scripts
from rest.reward.reward import Reward, with_references

SIDES = ("source", "target")
NAMES = """AcrossSources BatchSettings BCSettings BLEU ChrF Cleaning Consensus CorpusChrF DirectAssessments
EvaluationSettings Experiment GrowSettings HuggingFaceModel import_file ImproveSettings MachineSettings MetricOfGreedy
Mixture MLQEPE MQM PerSourceTop Rankings Reward RewardSettings SamplingSettings Schedule SentenceBLEU
SentencePieceSettings TextFiles TrainSettings TransformerSettings Votes"""  # what a file may import


@dataclass(frozen=True)
class Text:
    """Three splits, and what reading them has to do."""

    splits: dict[str, Pairs]  # train, dev and test
    files: dict[str, tuple[Path, Path]]  # of those that stay where they are; the others will be in DIR/text
    usable: int  # pairs of --source and --target that are not empty

    @cached_property
    def measured(self) -> set[str]:
        """Sources of dev and test."""
        return {*self.splits["dev"].sources, *self.splits["test"].sources}

    @property
    def max_words(self) -> int:
        """As cleaning has it, or as the longest line of dev and test needs, which may not be left out."""
        longest = max(int(self.splits[name].longest.max()) for name in ("dev", "test"))
        return max(Cleaning().max_words or 0, longest)

    @cached_property
    def dropped(self) -> dict[str, np.ndarray]:
        """Why pairs of the training text are left out, bool [n] for each reason, the first that holds."""
        train = self.splits["train"]
        reasons = {
            "have an empty side": train.empty,
            f"are longer than {self.max_words} words": train.longest > self.max_words,
            "have a source that is in dev or test": train.among(self.measured),
            f"differ in length {UNEVEN:g} times as much as is usual": train.uneven & self.filters_uneven,
            "repeat another pair": train.repeated & self.filters_repeated,
        }
        left = np.ones(len(train), np.bool_)
        for reason, rows in reasons.items():
            reasons[reason] = rows & left
            left &= ~rows
        return reasons

    @property
    def filters_uneven(self) -> bool:
        """Where they are more than a few, of which some may be right."""
        return bool(self.splits["train"].uneven.mean() > 0.002)

    @property
    def filters_repeated(self) -> bool:
        return bool(self.splits["train"].repeated.mean() > 0.01)

    @cached_property
    def learned(self) -> Pairs:
        """The training pairs that are kept; UserError where almost none is."""
        kept = ~np.logical_or.reduce(list(self.dropped.values()))
        if kept.sum() < 50:
            why = ", ".join(f"{int(rows.sum())} {reason}" for reason, rows in self.dropped.items() if rows.any())
            raise UserError(f"only {int(kept.sum())} of {len(kept)} training pairs are left: {why}")
        return self.splits["train"].take(kept)

    def seen(self) -> list[str]:
        """What the text is like, a line each."""
        lines = [f"{name}: {self._counted(pairs)}" for name, pairs in self.splits.items()]
        for reason, rows in self.dropped.items():
            if rows.any():
                lines.append(f"left out of train: {int(rows.sum()):,} pairs that {reason}")
        for side, texts in (("source", self.learned.sources), ("target", self.learned.targets)):
            counts = scripts("".join(texts[:2000]))
            letters = ", ".join(f"{name.capitalize()} {n / counts.total():.0%}" for name, n in counts.most_common(2))
            lines.append(f"{side}: letters {letters or 'none'}")
        copied = float(np.mean([x == y for x, y in zip(self.learned.sources, self.learned.targets, strict=True)]))
        if copied > 0.01:
            lines.append(f"look: {copied:.1%} of the targets are their source, which teaches to copy")
        both = int(self.splits["test"].among(set(self.splits["dev"].sources)).sum())
        if both:
            lines.append(f"look: {both:,} sources of test are in dev too, so that test is not quite unseen")
        return lines

    def _counted(self, pairs: Pairs) -> str:
        middle, longest = (int(q(pairs.target_words)) for q in (np.median, np.max))
        return f"{len(pairs):,} pairs; targets of {middle} words (median), {longest} at most"

    def write(self, folder: Path) -> None:
        """What was split off, and the rest of its text, into folder/text."""
        for name, pairs in self.splits.items():
            if name not in self.files:
                (folder / "text").mkdir(exist_ok=True)
                for side, lines in zip(SIDES, (pairs.sources, pairs.targets), strict=True):
                    text = "".join(f"{line}\n" for line in lines)
                    (folder / "text" / f"{name}.{side}").write_bytes(text.encode())

    def places(self, folder: Path) -> list[str]:
        """The six files as code."""
        return [
            beside(path, folder)
            for name in self.splits
            for path in self.files.get(name, [folder / "text" / f"{name}.{side}" for side in SIDES])
        ]

    @property
    def cleaning(self) -> str:
        """Cleaning(...) as code; what is its default is left out, and "" where all is."""
        given = []
        if self.max_words != Cleaning().max_words:
            given.append(f"max_words={self.max_words}")
        if self.filters_uneven:
            middle = float(np.nanmedian(self.splits["train"].ratios))
            given.append(f"min_length_ratio={middle / UNEVEN:.2f}, max_length_ratio={middle * UNEVEN:.2f}")
        if self.filters_repeated:
            given.append("drop_duplicates=True")
        return f"Cleaning({', '.join(given)})" if given else ""


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
    code = (
        f"RewardSettings(\n    ratings=({kind.__name__}({beside(path, folder)}{fields}),){choose},\n"
        f"    train=TrainSettings(\n        max_steps={steps}, evaluate_every={steps // 10}, patience=4, "
        "schedule=Schedule(2e-4, 20)\n    ),\n)"
    )
    return Own(code, why, learned=True)


def _kind(path: Path) -> tuple[Callable[..., Any], dict[str, str]]:
    """The reader of a file of ratings and what it must be told, by the file's first line."""
    first = next(read_lines(path), None)
    line = "" if first is None else decode_line(first, path, 1)
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
    function = with_references(found() if call else found)
    some = choices.dev.take(np.arange(min(100, len(choices.dev))))
    wrong = [*some.targets[1:], some.targets[0]]
    scores = [np.asarray(function(some.sources, side, some.targets), float) for side in (some.targets, wrong)]
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


def written(text: Text, choices: Choices, size: str, reward: Own, start: str | None, folder: Path) -> str:
    """The file: imports, and an experiment of which every entry says why."""
    parts = [*_of_text(text, choices, folder), *_of_network(choices, size, start), *_of_loop(choices, reward, start)]
    body = "\n".join(_entry(why, code) for why, code in parts)
    top = f"{reward.top}\n" if reward.top.startswith("own") else ""
    names = {*re.findall(r"\b[A-Za-z]\w+\b", re.sub(r"#.*", "", body + top)), "Experiment"} & {*NAMES.split()}
    imports = textwrap.wrap(", ".join(sorted(names, key=str.lower)), 120 - len("from rest import "))
    here, out = shlex.quote(str(folder)), shlex.quote(str(folder / "run"))
    lines = [
        '"""Made by `rest init`. Each number says what it was chosen by; change what you know better.',
        "",
        f"    rest run {here}    # the whole loop, in {out}; the same command goes on where it stopped",
        f"    rest translate {out} < sources    # with the last policy",
        '"""',
        "",
        "from pathlib import Path",
        "",
        *([reward.top, ""] if reward.top.startswith("from") else []),
        *(f"from rest import {each.rstrip(',')}" for each in imports),
        "",
        "here = Path(__file__).resolve().parent",
        *([top.strip()] if top else []),
        "",
        "experiment = Experiment(",
        body,
        ")",
    ]
    return "\n".join(lines) + "\n"


def _entry(why: str, code: str) -> str:
    """A keyword of the experiment under its reason."""
    comment = textwrap.wrap(why, 114) if why else []
    return textwrap.indent("\n".join([*(f"# {line}" for line in comment), f"{code},"]), "    ")


Parts = list[tuple[str, str]]


def _of_text(text: Text, choices: Choices, folder: Path) -> Parts:
    """Corpus, cleaning and tokenizer."""
    counts = ", ".join(f"{len(pairs):,} {name}" for name, pairs in text.splits.items())
    drawn = [name for name in ("dev", "test") if name not in text.files]
    split = f"; {' and '.join(drawn)} drawn at random from pairs that are in your text once" if drawn else ""
    places = text.places(folder)
    between = ", " if max(map(len, places)) < 55 else ",\n    "
    lines = "".join(f"    {a}{between}{b},\n" for a, b in zip(places[::2], places[1::2], strict=True))
    parts = [(f"Pairs: {counts}{split}.", f"corpus=TextFiles(\n{lines})")]
    left = [f"{int(rows.sum()):,} that {reason}" for reason, rows in text.dropped.items() if rows.any()]
    if text.cleaning:
        parts.append((f"Left out of train: {'; '.join(left) or 'none'}.", f"cleaning={text.cleaning}"))
    elif left:
        parts[0] = (f"{parts[0][0]} Not learned from: {'; '.join(left)}.", parts[0][1])
    return parts


def _of_network(choices: Choices, size: str, start: str | None) -> Parts:
    """Tokenizer, network, and the shapes of batches and samples."""
    c, s = choices, choices.size
    if start is None:
        pieces = f"SentencePieceSettings(vocabulary_size={c.vocabulary.vocabulary_size}"
        pieces += ", byte_fallback=True)" if c.vocabulary.byte_fallback else ")"
        why = f"About 5 times the square root of {c.train.words:,} words; room for {c.characters:,} characters."
        sizes = f"width={s.width}, heads={s.heads}, feed_forward={s.feed_forward}"
        layers = f"encoder_layers={s.layers}, decoder_layers={s.layers}, dropout={c.dropout}"
        products = '    products="bfloat16",\n' if c.machine.rounds else ""
        network = f"model=TransformerSettings(\n    {sizes},\n    {layers},\n{products})"
        parts = [
            (why, f"tokenizer={pieces}"),
            (
                f"Size {size}, for {len(c.train):,} pairs{_on(c)}; the less text, the more dropout.{_rounding(c)}",
                network,
            ),
        ]
    else:
        told = "One for many languages (NLLB, M2M100, mBART-50) needs source_language and target_language here."
        parts = [(f"A published model with its tokenizer. {told}", f"model={start}")]
    rows = f"batch_tokens={c.batch_tokens}, source_tokens={c.row(0)}, target_tokens={c.row(1)}"
    longest = f"max_target_tokens={c.longest_sample}"
    return [
        *parts,
        (f"A row holds the longest sentence of dev and test; an epoch is about {c.epoch:,} updates.",
         f"batch=BatchSettings({rows})"),
        ("Longer than 99.5 % of the references, or as long as a row.",
         f"sampling=SamplingSettings(temperature=0.8, {longest})"),
    ]  # fmt: skip


def _rounding(choices: Choices) -> str:
    return " These cores multiply bfloat16 faster than float32." if choices.machine.rounds else ""


def _on(choices: Choices) -> str:
    machine = choices.machine
    return f" on {machine.accelerators} accelerators" if machine.accelerators else f" on {machine.cores} CPU cores"


def _of_loop(choices: Choices, reward: Own, start: str | None) -> Parts:
    """Behavioural cloning, reward, the two steps, and what chooses and reports."""
    c, n = choices, choices.size.samples
    rate, warmup = (c.size.rate, c.warmup) if start is None else (1e-4, min(c.warmup, 100))
    steps = c.bc_steps if start is None else max(100, c.bc_steps // 10)
    every = min(c.evaluate_every, max(20, steps // 5))
    schedule = f'Schedule({rate:g}, {warmup}, "inverse_sqrt")'
    own = c.improve_steps
    keep = (n // 2, n // 4) if reward.learned else (n // 4, 1)
    sources = f"sources={c.grow_sources}, " if c.grow_sources else ""
    drawn = n * (c.grow_sources or len(c.train))
    rule = f"First the best {keep[0]} of {n}, then the best {keep[1]}: " + (
        "not fewer, since a learned reward errs most at its top." if reward.learned else "a rising threshold."
    )
    parts = [
        (f"About {round(steps / c.epoch)} epochs at most; it stops once the dev loss has not fallen for three looks.",
         f"bc=BCSettings(\n    train=TrainSettings(\n        max_steps={steps}, evaluate_every={every}, patience=3, "
         f"average=4, schedule={schedule}\n    )\n)"),
        (reward.why, f"reward={reward.code}"),
        (f"N = {n}: {drawn:,} samples{', as many as this machine draws in reasonable time' if sources else ''}.",
         f"grow=GrowSettings({sources}samples_per_source={n})"),
        (f"{rule} About {c.passing_steps:,} updates go once through what passes first.",
         f'improve=ImproveSettings(\n    rule=PerSourceTop({keep}),\n    human_pairs="always",\n    unfiltered=False,\n'
         f"    train=TrainSettings(\n        max_steps={own}, evaluate_every={own // 5}, patience=3, average=3, "
         f"schedule=Schedule({rate / 6:.1g}, 20)\n    ),\n)"),
        ("By what is shipped: greedy outputs beside dev's references.",
         f"choose=MetricOfGreedy(CorpusChrF(){', sources=500' if len(c.dev) > 500 else ''})"),
    ]  # fmt: skip
    return [*parts, *_of_report(choices)]


def _of_report(choices: Choices) -> Parts:
    """Where they differ from the defaults."""
    given, why = [], []
    if choices.bleu_tokenizer != "13a":
        given.append(f'bleu_tokenizer="{choices.bleu_tokenizer}"')
        why.append("The target's script has no spaces, which BLEU must know.")
    if choices.size.width <= 64:
        given.append("samples_per_source=2, kl_sources=100, bc_temperatures=(), ceiling_samples=0")
        why.append("A small run: without the controls that take longer than training does.")
    parts = [(" ".join(why), f"evaluation=EvaluationSettings({', '.join(given)})")] if given else []
    if choices.machine.accelerators:
        parts.append(
            ("An accelerator is busy with some thousand hypotheses at a time.", "machine=MachineSettings(2048, 2048)")
        )
    return parts
