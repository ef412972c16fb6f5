"""What `rest init` chooses for a text and a machine: numbers, each from something that was counted."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rest.data.survey import Pairs
from rest.data.tokenizer import SentencePieceSettings
from rest.reward.language import scripts

SHOWN = 20_000  # sentences of each side that pieces and scripts are counted on
CHARACTERS = {"CJK": "zh", "HIRAGANA": "char", "KATAKANA": "char", "THAI": "char", "LAO": "char", "KHMER": "char",
              "MYANMAR": "char"}  # scripts without spaces, and sacreBLEU's tokenizer for them  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """What will run it."""

    cores: int
    accelerators: int  # 0: the CPU alone
    has_bfloat16: bool = False  # whether its cores multiply bfloat16 faster than float32

    @property
    def rounds(self) -> bool:
        """Whether products of bfloat16 are the faster ones where numbers are float32."""
        return self.has_bfloat16 and not self.accelerators


@dataclass(frozen=True)
class Size:
    """A network, and how long it may take."""

    width: int
    heads: int
    feed_forward: int
    layers: int
    rate: float  # the highest learning rate of behavioural cloning
    samples: int  # N
    epochs: int  # of behavioural cloning at most
    drawn: int  # samples of a Grow step on CPU at most


SIZES = {  # of the rates those of tiny and small were tried
    "tiny": Size(64, 2, 128, 2, 8e-3, 8, 20, 20_000),
    "small": Size(128, 4, 384, 3, 5e-3, 16, 25, 500_000),
    "base": Size(256, 4, 1024, 3, 3e-3, 16, 25, 500_000),
    "paper": Size(512, 8, 2048, 6, 1e-3, 32, 25, 500_000),  # the Transformer of Vaswani et al. 2017
}


def size_for(pairs: Pairs, machine: Machine) -> str:
    """The largest network that the text can teach and the machine can train in hours."""
    enough = {"paper": 30_000_000, "base": 5_000_000, "small": 50_000}
    if machine.accelerators:
        enough = {"paper": 3_000_000, "base": 300_000, "small": 50_000}
    return next((name for name, words in enough.items() if pairs.words >= words), "tiny")


def rounded(number: int | float, least: int, most: int, unit: int = 10) -> int:
    """A multiple of the unit near the number, within limits."""
    return int(min(most, max(least, unit * round(number / unit))))


@dataclass(frozen=True)
class Choices:
    """The numbers of an experiment, from what its splits hold."""

    train: Pairs  # those that will be learned from
    dev: Pairs
    test: Pairs
    machine: Machine
    size: Size
    untranslated: int = 0  # further sources
    rated: bool = False  # whether the reward is learned from ratings

    @property
    def best(self) -> tuple[int, ...]:
        """How many of a source's samples the Improve steps learn from."""
        n = self.size.samples
        return (1,) if self.untranslated else (n // 2, n // 4) if self.rated else (n // 4, 1)

    @cached_property
    def bleu_tokenizer(self) -> str:
        """By the scripts of the target side: sacreBLEU's 13a, zh or char."""
        counts = scripts("".join(self.train.targets[:2000]))
        unspaced = {name: counts[name] for name in CHARACTERS if counts[name]}
        if 3 * sum(unspaced.values()) < counts.total():
            return "13a"
        # Japanese has Chinese characters too, Chinese no kana
        return "zh" if counts["CJK"] and 20 * (counts["HIRAGANA"] + counts["KATAKANA"]) < counts["CJK"] else "char"

    @cached_property
    def some(self) -> Pairs:
        """Pairs from the whole text, at most so many as are counted."""
        return self.train.take(np.arange(0, len(self.train), -(-len(self.train) // SHOWN)))

    @cached_property
    def characters(self) -> int:
        """How many characters make up 99.95 % of the text, each of which is to be a piece."""
        counts = Counter("".join(self.some.sources))
        counts.update("".join(self.some.targets))
        shares = np.cumsum([count for _, count in counts.most_common()])
        return int(np.searchsorted(shares, 0.9995 * shares[-1])) + 1

    @cached_property
    def vocabulary(self) -> SentencePieceSettings:
        """Grows with the square root of the text, as words do, and holds all characters."""
        bytes_too = self.characters > 1000  # so many that new ones will come, which are spelt then
        pieces = 2 ** round(math.log2(5 * math.sqrt(max(1, self.train.words))))
        least = 64 * math.ceil((1.5 * self.characters + 256 * bytes_too) / 64)
        return SentencePieceSettings(max(256, min(32_768, pieces), least), byte_fallback=bytes_too)

    @cached_property
    def pieces(self) -> tuple[np.ndarray, np.ndarray]:
        """Lengths of some of the training text, sources and targets, then of all of dev and test; EOS included."""
        tokenizer = self.vocabulary.train((self.some.sources, self.some.targets), 0)
        sources = [*self.some.sources, *self.dev.sources, *self.test.sources]
        targets = [*self.some.targets, *self.dev.targets, *self.test.targets]
        left, right = ([len(ids) + 1 for ids in tokenizer.encode(side)] for side in (sources, targets))
        return np.array(left), np.array(right)

    def row(self, side: int) -> int:
        """Positions of a row: the longest of dev and test, which must fit, nearly all of training, and a margin."""
        lengths, trained = self.pieces[side], len(self.some)
        longest = max(np.quantile(lengths[:trained], 0.999), lengths[trained:].max(initial=0))
        return max(64, 16 * math.ceil(1.15 * longest / 16))

    @cached_property
    def longest_sample(self) -> int:
        """Tokens that a sample may have: somewhat more than nearly all references."""
        usual = np.quantile(self.pieces[1][: len(self.some)], 0.995)
        return min(self.row(1), 8 * math.ceil(1.25 * usual / 8))

    @cached_property
    def batch_tokens(self) -> int:
        """Some hundred updates an epoch, as far as the machine likes such batches: full rows on every device."""
        devices = max(1, self.machine.accelerators)
        most = 8192 * devices if self.machine.accelerators else 2048
        wanted = min(most, max(512, self.target_tokens / 100))
        return self.row(1) * devices * max(1, round(wanted / self.row(1) / devices))

    @property
    def target_tokens(self) -> float:
        """Of all training text."""
        return float(self.pieces[1][: len(self.some)].mean()) * len(self.train)

    @cached_property
    def epoch(self) -> int:
        """Updates in which behavioural cloning sees the text once; rows are nine tenths full."""
        return max(1, round(self.target_tokens / 0.9 / self.batch_tokens))

    @property
    def dropout(self) -> float:
        """Little text is soon known by heart."""
        return 0.3 if len(self.train) < 2000 else 0.2 if len(self.train) < 12_000 else 0.1

    @property
    def bc_steps(self) -> int:
        return rounded(self.size.epochs * self.epoch, 1000, 20_000)

    @property
    def warmup(self) -> int:
        return 4000 if self.size.width >= 512 and self.bc_steps >= 12_000 else rounded(self.bc_steps / 12, 20, 500)

    @property
    def offered(self) -> int:
        """Sources that Grow could draw for: those that nobody has translated, where there are any."""
        return self.untranslated or len(self.train)

    @property
    def grow_sources(self) -> int:
        """0: all."""
        affordable = self.size.drawn * (20 if self.machine.accelerators else 1) // self.size.samples
        return 0 if affordable >= self.offered else affordable

    @property
    def passing_steps(self) -> int:
        """Updates in which the first Improve step sees all once: the best samples of a source and its human pair, or
        the best one of sources that nobody has translated and all pairs."""
        sources = self.grow_sources or self.offered
        pairs = len(self.train) if self.untranslated else sources
        return max(1, round(self.epoch * (pairs + sources * self.best[0]) / len(self.train)))

    @property
    def improve_steps(self) -> int:
        if self.untranslated:  # they are learned as text is, which takes some epochs
            return rounded(6 * self.passing_steps, 200, 10_000)
        return rounded(self.passing_steps, 50, 1000 if self.machine.accelerators else 500)
