"""The words and the grammar of the made-up language pair, and how a source is read and translated.

The source language puts objects after verbs and adjectives before nouns, as `GRAMMAR` says. The target
language puts the verb last, adjectives, determiners and adpositions after the noun, and has no definite
article. Its nouns carry case and number; adjectives, determiners and the relative word agree with the noun in
gender and number, verbs with the subject in number. Some source words have two senses: a noun's is decided by
the verb of its clause, a verb's by its first subject, an adjective's by its noun.

Every source word has one kind and the grammar is LL(1), so a source has one parse and one clean reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import NamedTuple

from rest.errors import UserError

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


class Lexicon:
    """Both vocabularies, drawn from the seed: all forms are distinct, and the languages share no word."""

    def __init__(self, seed: int, sizes: Mapping[str, int], ambiguous: float) -> None:
        """`sizes` of nouns, verbs, adjectives and adverbs, of which a share has two senses."""
        self._rng = Random(f"{seed}/lexicon")
        self._taken: set[str] = set()
        plain = ("",)
        self.kinds = {
            kind: [self._entry(kind, source, target, i, round(share * count)) for i in range(count)]
            for kind, count, source, target, share in (
                ("determiner", 4, plain, (AGREEMENT_ENDINGS,), 0),
                ("relative", 1, plain, (AGREEMENT_ENDINGS,), 0),
                ("coordinator", 1, plain, (plain,), 0),
                ("negation", 1, plain, (plain,), 0),
                ("conjunction", 3, plain, (plain,), 0),
                ("preposition", 5, plain, (plain,), 0),
                ("adverb", sizes["adverbs"], plain, (plain,), 0),
                ("adjective", sizes["adjectives"], plain, (AGREEMENT_ENDINGS,), ambiguous),
                ("noun", sizes["nouns"], PLURAL, NOUN_ENDINGS, ambiguous),
                ("verb", sizes["verbs"], PAST, (VERB_ENDINGS,), ambiguous),
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


class Parser:
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


def literally(token: Token) -> Token:
    """The word in the first of its senses, whatever decides it, in the same inflection."""
    sense = token.entry.senses[0]
    return token._replace(text=sense.forms[token.inflection], lexeme=sense)
