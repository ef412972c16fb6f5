"""A made-up language pair with exact quality: it is learnt in minutes, and every translation can be scored exactly.

The source language puts objects after verbs and adjectives before nouns, as `GRAMMAR` says. The target
language puts the verb last, adjectives, determiners and adpositions after the noun, and has no definite
article. Its nouns carry case and number; adjectives, determiners and the relative word agree with the noun in
gender and number, verbs with the subject in number. Some source words have two senses: a noun's is decided by
the verb of its clause, a verb's by its first subject, an adjective's by its noun.

Every source word has one kind and the grammar is LL(1), so a source has one parse and one clean reference:
nothing but the source is needed to score a hypothesis. Train and dev references are those of human
translators of different carefulness (`Noise`), of whom some may be literal: what most references say is then wrong
wherever a word's second sense is meant, and only who rates translations knows. Test references are clean, so that
BLEU on test means something.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from hashlib import blake2b
from random import Random
from typing import NamedTuple

import numpy as np

from rest.errors import UserError

SPLITS = ("train", "dev", "test")
SHORTEST, LONGEST = 4, 20  # words of a source

# The source language: of each symbol its parts, in order, with the chance that a part is there; "a|b" is a or b.
# What is not a symbol here is a kind of word. One word of look-ahead tells every choice.
GRAMMAR: dict[str, tuple[tuple[str, float], ...]] = {
    "sentence": (("clause", 1), ("further", 0.2)),
    "further": (("conjunction", 1), ("clause", 1)),
    "clause": (
        ("phrase", 1),
        ("negation", 0.1),
        ("verb", 1),
        ("phrase", 0.75),
        ("place", 0.25),
        ("adverb", 0.3),
    ),
    "place": (("preposition", 1), ("simple", 1)),
    "phrase": (("simple", 1), ("joined|described", 0.2)),
    "joined": (("coordinator", 1), ("simple", 1)),
    "described": (("relative", 1), ("verb", 1), ("simple", 0.6)),
    "simple": (("determiner", 0.75), ("adjective", 0.25), ("adjective", 0.1), ("noun", 1)),
}
NOMINAL = ("determiner", "adjective", "noun")  # kinds that begin a phrase

# What the parts of `gold` weigh; powers of two, so that those of a perfect hypothesis sum to 1.0 exactly.
MEANING, ORDER, FORM = 0.5, 0.25, 0.25

# What words are built of: syllables of an onset and a vowel; target stems end in a consonant.
VOWELS = "aeiou"
SOURCE_ONSETS = "ptkbdgmnlrsf"
TARGET_ONSETS = ("v", "z", "sh", "gr", "th", "br", "j", "h", "w", "kl")
TARGET_CODAS = "klmrnsv"

# Endings: source plural and past; target nouns [gender][number * 3 + case], agreement [gender * 2 + number],
# verbs [past * 2 + number].
PLURAL, PAST = ("", "ni"), ("", "ta")
NOUN_ENDINGS = (("a", "am", "ai", "as", "ans", "aim"), ("o", "om", "oi", "os", "ons", "oim"))
AGREEMENT_ENDINGS = ("ea", "eas", "eo", "eos")
VERB_ENDINGS = ("it", "int", "ut", "unt")
NOMINATIVE, ACCUSATIVE, OBLIQUE = 0, 1, 2


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


class Lexeme(NamedTuple):
    """A target word: its forms, in the order of the endings, the first being its name."""

    forms: tuple[str, ...]
    gender: int


class Entry(NamedTuple):
    """A source word and what it may mean."""

    kind: str
    forms: tuple[str, ...]  # a noun's singular and plural, a verb's present and past
    senses: tuple[Lexeme, ...]  # none: not translated; two: the group of another word decides
    group: int  # 0 or 1: nouns lifeless or living, verbs of doing or of minding

    def token(self, inflection: int = 0, decided_by: Entry | None = None) -> Token:
        """Its translation; with two senses, the group of the entry `decided_by` tells which."""
        sense = self.senses[decided_by.group if decided_by is not None and len(self.senses) > 1 else 0]
        return Token(sense.forms[inflection], self, sense, inflection)


class Token(NamedTuple):
    """A word of a clean reference."""

    text: str
    entry: Entry
    lexeme: Lexeme
    inflection: int


class Phrase(NamedTuple):
    """A parsed noun phrase; how it is translated also depends on what follows it."""

    noun: Entry
    plural: bool
    translate: Callable[[Entry, int], list[Token]]  # from the clause's verb and the phrase's case; the noun comes first


class Target(NamedTuple):
    """A clean reference, ready to score hypotheses: bit i of a mask tells if the word is at position i."""

    tokens: list[Token]
    words: list[str]
    lemmas: Counter[str]
    lemma_masks: dict[str, int]
    word_masks: dict[str, int]


class _Lexicon:
    """Both vocabularies, drawn from the seed: all forms are distinct, and the languages share no word."""

    def __init__(self, language: SyntheticLanguage) -> None:
        self._rng = Random(f"{language.seed}/lexicon")
        self._taken: set[str] = set()
        plain = ("",)
        self.kinds = {
            kind: [self._entry(kind, source, target, i, round(ambiguous * count)) for i in range(count)]
            for kind, count, source, target, ambiguous in (
                ("determiner", 4, plain, (AGREEMENT_ENDINGS,), 0),
                ("relative", 1, plain, (AGREEMENT_ENDINGS,), 0),
                ("coordinator", 1, plain, (plain,), 0),
                ("negation", 1, plain, (plain,), 0),
                ("conjunction", 3, plain, (plain,), 0),
                ("preposition", 5, plain, (plain,), 0),
                ("adverb", language.adverbs, plain, (plain,), 0),
                ("adjective", language.adjectives, plain, (AGREEMENT_ENDINGS,), language.ambiguous),
                ("noun", language.nouns, PLURAL, NOUN_ENDINGS, language.ambiguous),
                ("verb", language.verbs, PAST, (VERB_ENDINGS,), language.ambiguous),
            )
        }
        article, *others = self.kinds["determiner"]
        self.kinds["determiner"] = [article._replace(senses=()), *others]
        entries = [entry for kind in self.kinds.values() for entry in kind]
        self.readings = {form: (entry, marked) for entry in entries for marked, form in enumerate(entry.forms)}
        self.lemma_of = {form: sense.forms[0] for entry in entries for sense in entry.senses for form in sense.forms}

    def _entry(
        self,
        kind: str,
        source: tuple[str, ...],
        target: tuple[tuple[str, ...], ...],
        index: int,
        ambiguous: int,
    ) -> Entry:
        syllables = 2 if kind in ("adverb", "adjective", "noun", "verb") else 1
        forms = self._forms(lambda: self._word(SOURCE_ONSETS, syllables), source)
        senses = []
        for _ in range(2 if index < ambiguous else 1):
            gender = int(self._rng.random() * len(target))
            stem = lambda: self._word(TARGET_ONSETS, syllables, TARGET_CODAS)  # noqa: E731
            senses.append(Lexeme(self._forms(stem, target[gender]), gender))
        return Entry(kind, forms, tuple(senses), index % 2)

    def _word(self, onsets: Sequence[str], syllables: int, codas: Sequence[str] = ("",)) -> str:
        parts = [onsets, VOWELS] * syllables + [codas]
        return "".join(self._rng.choices(part)[0] for part in parts)

    def _forms(self, stem: Callable[[], str], endings: tuple[str, ...]) -> tuple[str, ...]:
        for _ in range(10_000):
            drawn = stem()
            forms = tuple(drawn + ending for ending in endings)
            if self._taken.isdisjoint(forms):
                self._taken.update(forms)
                return forms
        raise UserError("nouns, verbs, adjectives and adverbs are too many: there are no more words of two syllables.")


class _Parser:
    """Reads and translates a source; since every word has one kind, one word of look-ahead is enough."""

    def __init__(self, source: str, readings: dict[str, tuple[Entry, int]]) -> None:
        self._source, self._words, self._at = source, source.split(), 0
        self._read = [readings.get(word, (None, 0)) for word in self._words]
        self._kinds = ["" if entry is None else entry.kind for entry, _ in self._read] + [""]

    def sentence(self) -> list[Token]:
        tokens = self._clause()
        if (conjunction := self._take("conjunction")) is not None:
            tokens += [conjunction.token(), *self._clause()]
        if self._at < len(self._words):
            raise self._error("the end")
        return tokens

    def _clause(self) -> list[Token]:
        subject, negation, (verb, past) = self._phrase(), self._take("negation"), self._need("verb")
        object_ = self._phrase() if self._kinds[self._at] in NOMINAL else None
        preposition = self._take("preposition")
        place = None if preposition is None else [*self._simple().translate(verb, OBLIQUE), preposition.token()]
        adverb = self._take("adverb")
        return [
            *subject.translate(verb, NOMINATIVE),
            *(place or []),
            *([] if object_ is None else object_.translate(verb, ACCUSATIVE)),
            *([] if adverb is None else [adverb.token()]),
            verb.token(past * 2 + subject.plural, decided_by=subject.noun),
            *([] if negation is None else [negation.token()]),
        ]

    def _phrase(self) -> Phrase:
        first = self._simple()
        if (coordinator := self._take("coordinator")) is not None:
            return Phrase(first.noun, True, partial(_both, first, coordinator, self._simple()))
        if (relative := self._take("relative")) is not None:
            inner, past = self._need("verb")
            object_ = self._simple().translate(inner, ACCUSATIVE) if self._kinds[self._at] in NOMINAL else []
            last = inner.token(past * 2 + first.plural, decided_by=first.noun)
            return Phrase(first.noun, first.plural, partial(_with_relative, first, relative, [*object_, last]))
        return first

    def _simple(self) -> Phrase:
        determiner, adjectives = self._take("determiner"), list[Entry]()
        while (adjective := self._take("adjective")) is not None:
            adjectives.append(adjective)
        noun, plural = self._need("noun")
        return Phrase(noun, bool(plural), partial(_noun_phrase, determiner, adjectives, noun, plural))

    def _take(self, kind: str) -> Entry | None:
        return self._need(kind)[0] if self._kinds[self._at] == kind else None

    def _need(self, kind: str) -> tuple[Entry, int]:
        entry, marked = self._read[self._at] if self._at < len(self._read) else (None, 0)
        if entry is None or entry.kind != kind:
            raise self._error(f"a {kind}")
        self._at += 1
        return entry, marked

    def _error(self, expected: str) -> UserError:
        found = repr(self._words[self._at][:40]) if self._at < len(self._words) else "missing"
        return UserError(
            f"source {self._source[:200]!r} is not in this synthetic language: "
            f"word {self._at + 1} should be {expected}, but is {found}."
        )


# Translations of phrases, to be governed by a verb and in a case. No closures: where types are checked, each would be
# checked anew for every phrase that is read.


def _both(first: Phrase, coordinator: Entry, second: Phrase, verb: Entry, case: int) -> list[Token]:
    return [*first.translate(verb, case), coordinator.token(), *second.translate(verb, case)]


def _with_relative(first: Phrase, relative: Entry, clause: list[Token], verb: Entry, case: int) -> list[Token]:
    tokens = first.translate(verb, case)
    agreement = tokens[0].lexeme.gender * 2 + first.plural
    return [*tokens, relative.token(agreement), *clause]


def _noun_phrase(
    determiner: Entry | None, adjectives: list[Entry], noun: Entry, plural: int, verb: Entry, case: int
) -> list[Token]:
    head = noun.token(plural * 3 + case, decided_by=verb)
    agreement = head.lexeme.gender * 2 + plural
    determiners = [determiner.token(agreement)] if determiner is not None and determiner.senses else []
    return [head, *(word.token(agreement, decided_by=noun) for word in adjectives), *determiners]


def _literal(token: Token) -> Token:
    """The word in the first of its senses, whatever decides it, in the same inflection."""
    sense = token.entry.senses[0]
    return token._replace(text=sense.forms[token.inflection], lexeme=sense)


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
        for name in ("nouns", "verbs", "adjectives", "adverbs"):
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
    def _lexicon(self) -> _Lexicon:
        return _Lexicon(self)

    @cached_property
    def _target(self) -> Callable[[str], Target]:
        return lru_cache(maxsize=1 << 17)(self._analyse)

    def _analyse(self, source: str) -> Target:
        tokens = _Parser(source, self._lexicon.readings).sentence()
        words, lemmas = [token.text for token in tokens], [token.lexeme.forms[0] for token in tokens]
        lemma_masks = {lemma: sum(1 << i for i, other in enumerate(lemmas) if other == lemma) for lemma in lemmas}
        word_masks = {word: sum(1 << i for i, other in enumerate(words) if other == word) for word in words}
        return Target(tokens, words, Counter(lemmas), lemma_masks, word_masks)

    def _mistranslated(self, source: str, rate: float, rng: Random, literal: bool = False) -> str:
        errors = self.noise.errors()
        tokens = [_literal(token) if literal else token for token in self._target(source).tokens]
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
