"""The experiment that `rest init` writes: what its text is like, and the file itself."""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rest.commands.choices import Choices
from rest.commands.own import Own, beside
from rest.data.corpus import Cleaning
from rest.data.survey import UNEVEN, Pairs
from rest.errors import UserError
from rest.reward.language import scripts

SPLITS = ("train", "dev", "test")  # as TextFiles has them
SIDES = ("source", "target")
NAMES = """AcrossSources BatchSettings BCSettings BLEU ChrF Cleaning Consensus CorpusMean DirectAssessments
EvaluationSettings Experiment GrowSettings HuggingFaceModel import_file ImproveSettings MachineSettings MetricOfGreedy
Mixture MLQEPE MQM PerSourceTop Rankings Reward RewardSettings SamplingOverrides SamplingSettings Schedule
SentenceBLEU SentencePieceSettings TextFiles TrainSettings TransformerSettings Votes"""  # what a file may import


@dataclass(frozen=True)
class Text:
    """Three splits, and what reading them has to do."""

    splits: dict[str, Pairs]  # in the order of SPLITS
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
        usual = Cleaning().max_words or 0
        for name in ("dev", "test"):
            if (longest := int(self.splits[name].longest.max())) > usual:
                row = int(np.argmax(self.splits[name].longest)) + 1
                lines.append(
                    f"look: {name}, line {row} has {longest:,} words, and every row of a batch is made as long"
                )
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
            for name in SPLITS
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


def written(
    text: Text,
    choices: Choices,
    size: str,
    reward: Own,
    start: str | None,
    folder: Path,
    untranslated: Path | None,
) -> str:
    """The file: imports, and an experiment of which every entry says why."""
    more = None if untranslated is None else beside(untranslated, folder)
    parts = [
        *_of_text(text, choices, folder),
        *_of_network(choices, size, start),
        *_of_training(choices, start),
        (reward.why, f"reward={reward.code}"),
        *_of_loop(choices, reward, start, more),
        *_of_report(choices),
    ]
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
        spelt = ", byte_fallback=True" if c.vocabulary.byte_fallback else ""
        pieces = f'SentencePieceSettings(vocabulary_size={c.vocabulary.vocabulary_size}, start="eos"{spelt})'
        why = f"About 5 times the square root of {c.train.words:,} words; room for {c.characters:,} characters."
        sizes = f"width={s.width}, heads={s.heads}, feed_forward={s.feed_forward}"
        layers = f"encoder_layers={s.layers}, decoder_layers={s.layers}, dropout={c.dropout}"
        products = '    products="bfloat16",\n' if c.machine.rounds else ""
        shape = 'norm_first=True, positions="fairseq", output_bias=False, zero_start=False'
        network = f"model=TransformerSettings(\n    {sizes},\n    {layers},\n    {shape},\n{products})"
        parts = [
            (why, f"tokenizer={pieces}"),
            (
                f"Size {size}, for {len(c.train):,} pairs{_on(c)}; the less text, the more dropout. Norms first bear a "
                f"higher rate; with EOS as the start M2M100's shape, as which it is exported.{_rounding(c)}",
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


def _rate(choices: Choices, start: str | None) -> float:
    """The highest one of behavioural cloning, of which Improve takes a part."""
    return choices.size.rate if start is None else 1e-4


def _of_training(choices: Choices, start: str | None) -> Parts:
    """Behavioural cloning."""
    steps = choices.bc_steps if start is None else max(100, choices.bc_steps // 10)
    warmup = choices.warmup if start is None else min(choices.warmup, 100, steps // 4)
    falls = f'{_rate(choices, start):g}, {warmup}, "inverse_sqrt", zero_at={steps}, cooldown_steps={steps // 2}'
    why = f"About {round(steps / choices.epoch)} epochs at most, the rate falling to zero in the second half; it stops "
    how = f"max_steps={steps}, evaluate_every={max(20, steps // 20)}, patience=6, average=4"
    code = f"    train=TrainSettings(\n        {how},\n        schedule=Schedule({falls}),\n    ),"
    return [
        (
            f"{why}once the dev loss has not fallen for six looks.",
            f"bc=BCSettings(\n    label_smoothing=0.1,\n{code}\n)",
        )
    ]


def _of_loop(choices: Choices, reward: Own, start: str | None, untranslated: str | None) -> Parts:
    """The two steps, and what chooses."""
    c, n, steps = choices, choices.size.samples, choices.improve_steps
    sources = f"sources={c.grow_sources}, " if c.grow_sources else ""
    drawn = f"N = {n}: {n * (c.grow_sources or c.offered):,} samples"
    drawn += ", as many as this machine draws in reasonable time" if sources else ""
    grow = f"    {sources}samples_per_source={n}, beams=4, sampling=SamplingOverrides(temperature=0.5),"
    if untranslated:
        drawn += f" of {c.untranslated:,} lines that nobody has translated"
        grow += f"\n    text={untranslated}, training_text=False,"
        human, rate, looks = "all", _rate(c, start) / 5, 8
        rule = f"The best one of a source beside all pairs, for about {round(steps / c.passing_steps)} epochs of both."
    else:
        first, then = c.best
        human, rate, looks = "always", _rate(c, start) / 10, 5
        rule = f"First the best {first} of a source, then the best {then}: "
        rule += "not fewer, since a learned reward errs most at its top." if reward.learned else "a rising threshold."
        rule += f" About {c.passing_steps:,} updates go once through what passes first."
    falls = f'{rate:.2g}, 20, "linear", {steps}'
    how = f"max_steps={steps}, evaluate_every={steps // looks}, patience={looks}, average=3"
    train = f"    train=TrainSettings(\n        {how}, schedule=Schedule({falls})\n    ),"
    fields = f'    rule=PerSourceTop({c.best}),\n    human_pairs="{human}",\n    unfiltered=False,'
    return [
        (
            f"{drawn}, and the best four of beam search. At 0.5, since at 0.8 many samples are wrong.",
            f"grow=GrowSettings(\n{grow}\n)",
        ),
        (rule, f"improve=ImproveSettings(\n{fields}\n    label_smoothing=0.1,\n{train}\n)"),
        (
            "By what is shipped: greedy outputs beside dev's references. BLEU too, since chrF likes what is too long.",
            f"choose=MetricOfGreedy(CorpusMean(){', sources=500' if len(c.dev) > 500 else ''})",
        ),
    ]


def _of_report(choices: Choices) -> Parts:
    """Where they differ from the defaults."""
    given, why = [], []
    if choices.bleu_tokenizer != "13a":
        given.append(f'bleu_tokenizer="{choices.bleu_tokenizer}"')
        why.append("The target's script has no spaces, which BLEU must know.")
    if choices.size.width <= 64:
        given.append("kl_sources=100, bc_temperatures=(), ceiling_samples=0")
        why.append("A small run: without the controls that take longer than training does.")
    parts = [(" ".join(why), f"evaluation=EvaluationSettings({', '.join(given)})")] if given else []
    if choices.machine.accelerators:
        parts.append(
            ("An accelerator is busy with some thousand hypotheses at a time.", "machine=MachineSettings(2048, 2048)")
        )
    return parts
