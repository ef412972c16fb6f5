"""A made-up language pair with exact quality: it is learnt in minutes, and every translation can be scored exactly.

Its words and grammar are those of lexicon.py, and a source has one clean reference: nothing but the source is needed
to score a hypothesis. Train and dev references are those of human translators of different carefulness (`Noise`), of
whom some may be literal: what most references say is then wrong wherever a word's second sense is meant, and only who
rates translations knows. Test references are clean, so that BLEU on test means something.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from random import Random
from typing import NamedTuple

import numpy as np

from rest.data.lexicon import GRAMMAR, Lexicon, Parser, Token, literally
from rest.errors import UserError

SPLITS = ("train", "dev", "test")
WORDS = ("nouns", "verbs", "adjectives", "adverbs")
SHORTEST, LONGEST = 4, 20  # words of a source

# What the parts of `gold` weigh; powers of two, so that those of a perfect hypothesis sum to 1.0 exactly.
MEANING, ORDER, FORM = 0.5, 0.25, 0.25


@dataclass(frozen=True)
class Noise:
    """How human translators err: a sentence draws its error rate, each word then errs with that chance."""

    perfect: float = 0.15  # share of sentences translated without error
    worst: float = 0.8  # highest chance that a word errs; the other sentences' are uniform below it
    drop: float = 0.2  # how often, relative to the other kinds, an error is a dropped word
    double: float = 0.1  # a doubled word
    sense: float = 0.3  # a word in its other sense; where there is one sense, another word of the kind
    inflection: float = 0.3  # a badly inflected word
    swap: float = 0.1  # a word swapped with the next
    literal: float = 0.0  # share of sentences whose translator knows only the first sense of every word

    def __post_init__(self) -> None:
        for name in ("perfect", "worst", "literal"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"noise.{name} must be between 0 and 1, but is {getattr(self, name)}.")
        for kind, share in self.errors().items():
            if not 0 <= share < float("inf"):
                raise UserError(f"noise.{kind} must be a number not below 0, but is {share}.")
        if not any(self.errors().values()):
            raise UserError("noise.drop, double, sense, inflection and swap are all 0, but one must be above 0.")

    def errors(self) -> dict[str, float]:
        """The kinds of error and their relative frequencies."""
        return {kind: getattr(self, kind) for kind in ("drop", "double", "sense", "inflection", "swap")}


class Target(NamedTuple):
    """A clean reference, ready to score hypotheses: bit i of a mask tells if the word is at position i."""

    tokens: list[Token]
    words: list[str]
    lemmas: Counter[str]
    lemma_masks: dict[str, int]
    word_masks: dict[str, int]


def _common_subsequence(items: Sequence[str], masks: dict[str, int], length: int) -> int:
    """Longest common subsequence with the masks' sequence, bit-parallel (Hyyrö 2004): linear in the items."""
    full = (1 << length) - 1
    open_ = full
    for item in items:
        step = open_ & masks.get(item, 0)
        if step:
            open_ = ((open_ + step) | (open_ - step)) & full
    return length - open_.bit_count()


def _quality(target: Target, hypothesis: str, lemma_of: dict[str, str]) -> float:
    words = hypothesis.split()
    if words == target.words:
        return 1.0
    if not words:
        return 0.0
    lemmas = [lemma_of.get(word, "") for word in words]
    left, shared = dict(target.lemmas), 0
    for lemma in lemmas:
        if left.get(lemma, 0):
            left[lemma] -= 1
            shared += 1
    length, longer = len(target.words), max(len(target.words), len(words))
    meaning = 2 * shared / (length + len(words))
    order = _common_subsequence(lemmas, target.lemma_masks, length) / longer
    form = _common_subsequence(words, target.word_masks, length) / longer
    return MEANING * meaning + ORDER * order + FORM * form


def _split_of(source: str) -> str:
    """A source's split follows from its text: splits are disjoint, and independent of each other's sizes."""
    return {0: "dev", 1: "test"}.get(blake2b(source.encode(), digest_size=1).digest()[0] % 8, "train")


@dataclass(frozen=True)
class SyntheticLanguage:
    """A language pair and its corpus; see the module. Equal fields give equal sentences on any machine."""

    seed: int = 0  # draws vocabularies, sentences and errors
    train: int = 12_000  # training sentences, with noisy references
    dev: int = 500  # dev sentences, with noisy references
    test: int = 1_000  # test sentences, with clean references
    nouns: int = 60  # source nouns
    verbs: int = 30  # source verbs
    adjectives: int = 25  # source adjectives
    adverbs: int = 10  # source adverbs
    ambiguous: float = 0.2  # share of the nouns, verbs and adjectives that have two senses
    noise: Noise = Noise()  # how the translators of train and dev err

    def __post_init__(self) -> None:
        for name in SPLITS:
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be a number of sentences not below 0, but is {getattr(self, name)}.")
        for name in WORDS:
            if not 2 <= getattr(self, name) <= 500:
                raise UserError(f"{name} must be between 2 and 500, but is {getattr(self, name)}.")
        if not 0 <= self.ambiguous <= 1:
            raise UserError(f"ambiguous must be between 0 and 1, but is {self.ambiguous}.")

    def sentences(self, split: str) -> tuple[list[str], list[str]]:
        """Distinct sources of "train", "dev" or "test", and their references: noisy, but clean for test."""
        if split not in SPLITS:
            raise UserError(f"split must be train, dev or test, but is {split!r}.")
        size, rng = getattr(self, split), Random(f"{self.seed}/{split}")
        drawn: dict[str, None] = {}
        for _ in range(100 * size + 10_000):
            if len(drawn) == size:
                break
            source = self._sentence(rng)
            if _split_of(source) == split:
                drawn[source] = None
        else:
            raise UserError(f"{split} must be smaller than {size}: only {len(drawn)} distinct sentences were found.")
        sources = list(drawn)
        return sources, self.clean(sources) if split == "test" else self._translated(sources)

    def clean(self, sources: Sequence[str]) -> list[str]:
        """The perfect translation of each source; UserError for a source that is not of the language."""
        return [" ".join(self._target(source).words) for source in sources]

    def gold(self, sources: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        """The exact quality of any hypotheses, float32 [n] in [0, 1].

        Half is meaning: F1 of the target words in their right sense, whatever their inflection. A quarter is
        order: their longest common subsequence with the clean reference; a quarter is form: the same of the
        words as inflected; both over the longer length. So it is 1 exactly where the hypothesis is the clean
        reference word for word, and 0 where it is empty. UserError for a source not of the language.
        """
        lemma_of = self._lexicon.lemma_of
        rows = zip(sources, hypotheses, strict=True)
        return np.array([_quality(self._target(source), text, lemma_of) for source, text in rows], np.float32)

    def corrupt(self, sources: Sequence[str], rate: float, seed: int) -> list[str]:
        """Clean references in which each word errs with chance `rate`, as in `noise`; never empty."""
        return [self._mistranslated(s, rate, Random(f"{self.seed}/corrupt/{seed}/{s}")) for s in sources]

    def _translated(self, sources: list[str]) -> list[str]:
        """What the human translators made of the sources."""
        references = []
        for source in sources:
            rng = Random(f"{self.seed}/translator/{source}")
            rate = 0.0 if rng.random() < self.noise.perfect else self.noise.worst * rng.random()
            literal = Random(f"{self.seed}/literal/{source}").random() < self.noise.literal
            references.append(self._mistranslated(source, rate, rng, literal))
        return references

    @cached_property
    def _lexicon(self) -> Lexicon:
        sizes = {name: getattr(self, name) for name in WORDS}
        return Lexicon(self.seed, sizes, self.ambiguous)

    @cached_property
    def _target(self) -> Callable[[str], Target]:
        return lru_cache(maxsize=1 << 17)(self._analyse)

    def _analyse(self, source: str) -> Target:
        tokens = Parser(source, self._lexicon.readings).sentence()
        words, lemmas = [token.text for token in tokens], [token.lexeme.forms[0] for token in tokens]
        lemma_masks = {lemma: sum(1 << i for i, other in enumerate(lemmas) if other == lemma) for lemma in lemmas}
        word_masks = {word: sum(1 << i for i, other in enumerate(words) if other == word) for word in words}
        return Target(tokens, words, Counter(lemmas), lemma_masks, word_masks)

    def _mistranslated(self, source: str, rate: float, rng: Random, literal: bool = False) -> str:
        errors = self.noise.errors()
        tokens = [literally(token) if literal else token for token in self._target(source).tokens]
        words: list[str] = []
        swapped: list[int] = []
        for token in tokens:
            kind = rng.choices(list(errors), list(errors.values()))[0] if rng.random() < rate else ""
            if kind == "swap":
                swapped.append(len(words))
            if kind == "inflection" and len(token.lexeme.forms) > 1:
                words += rng.choices([form for form in token.lexeme.forms if form != token.text])
            elif kind in ("inflection", "sense"):
                words.append(self._mistaken(token, rng))
            elif kind != "drop":
                words += [token.text] * (2 if kind == "double" else 1)
        for i in swapped:
            if i + 1 < len(words):
                words[i], words[i + 1] = words[i + 1], words[i]
        return " ".join(words or [tokens[0].text])

    def _mistaken(self, token: Token, rng: Random) -> str:
        """The other sense, or if there is one sense another word of the kind; in the same inflection."""
        entry = token.entry
        if len(entry.senses) > 1:
            others = [sense for sense in entry.senses if sense != token.lexeme]
        else:
            kind = self._lexicon.kinds[entry.kind]
            others = [other.senses[0] for other in kind if other.senses and other != entry] or [token.lexeme]
        return rng.choices(others)[0].forms[token.inflection]

    def _sentence(self, rng: Random) -> str:
        """A random source of SHORTEST to LONGEST words."""
        while True:
            words: list[str] = []
            symbols = ["sentence"]
            while symbols:
                symbol = symbols.pop()
                if symbol in GRAMMAR:
                    parts = [part for part, chance in GRAMMAR[symbol] if rng.random() < chance]
                    symbols += [rng.choices(part.split("|"))[0] for part in reversed(parts)]
                else:
                    words += rng.choices(rng.choices(self._lexicon.kinds[symbol])[0].forms)
            if SHORTEST <= len(words) <= LONGEST:
                return " ".join(words)
