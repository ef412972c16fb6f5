"""Corpora: parallel text as columns, split into train, dev and test, and how it is cleaned.

A corpus is settings with `load(cleaning) -> Corpus` and `rows(split) -> Rows`: the text before cleaning, read once and
never held whole.
"""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from rest.data.synthetic import SyntheticLanguage
from rest.errors import UserError
from rest.folder import read_json
from rest.statistics.words import count_words

Gold = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""Exact quality where a task knows it: (sources, hypotheses) -> float32 [n] in [0, 1]."""

NonTranslation = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""Which pairs are no translations of each other: (sources, references) -> bool [n]."""


@dataclass(frozen=True)
class Split:
    """One split as columns, all of the same length n."""

    name: str  # "train", "dev" or "test"
    ids: np.ndarray  # int64 [n], unique in the split and stable: the position in the input before cleaning
    sources: list[str]
    references: list[str] | None  # None: source text without human translations
    more_references: list[list[str]] = field(default_factory=list)  # further references of a test set, each a list [n]
    documents: list[str] | None = None  # the document (a talk, an article) of each row, where the text has them

    def __len__(self) -> int:
        return len(self.sources)

    def take(self, rows: np.ndarray | slice | list[int]) -> Split:
        """The rows of this split, in the given order."""
        rows = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.arange(len(self))[rows]
        references = None if self.references is None else [self.references[r] for r in rows]
        more = [[lines[r] for r in rows] for lines in self.more_references]
        documents = None if self.documents is None else [self.documents[r] for r in rows]
        return Split(self.name, self.ids[rows], [self.sources[r] for r in rows], references, more, documents)


@dataclass(frozen=True)
class Corpus:
    """Train, dev and test, what cleaning dropped, and the task's exact quality where it knows one."""

    train: Split
    dev: Split
    test: Split
    counts: dict[str, dict[str, int]]  # {"train": {"read": 29000, "empty": 0, "too_long": 3, ...}, ...}
    gold: Gold | None = None


COUNTS = ("read", "kept", "empty", "too_long", "ratio", "duplicate", "in_test", "no_translation")


@dataclass(frozen=True)
class Cleaning:
    """What is done to every line, and which training pairs are dropped.

    A dropped pair is counted once, under the first reason found. An empty or over-long line in dev or test is
    always refused: leaving it out would change what is measured.
    """

    unicode_form: Literal["NFC", "NFKC", "none"] = "NFC"  # Unicode normalisation of every line
    lowercase: bool = False  # as IWSLT14 is published
    collapse_white_space: bool = True  # a run of white space becomes one space, and none is left at the ends
    # a line with more words, on either side, is over-long; a Chinese or Japanese character is a word
    max_words: int | None = 100
    bad_train_lines: Literal["drop", "refuse"] = "drop"  # what becomes of empty and over-long training lines
    min_length_ratio: float | None = None  # drop training pairs with fewer source words per reference word
    max_length_ratio: float | None = None  # drop training pairs with more source words per reference word
    drop_train_in_test: bool = True  # drop training pairs whose source is also in dev or test
    drop_duplicates: bool = False  # keep only the first of equal training pairs
    # drop training pairs for which this function of n sources and n references is True: NonTranslations(…)
    non_translations: Any = None

    def __post_init__(self) -> None:
        if self.unicode_form not in ("NFC", "NFKC", "none"):
            raise UserError(f"unicode_form must be NFC, NFKC or none, not {self.unicode_form!r}")
        if self.bad_train_lines not in ("drop", "refuse"):
            raise UserError(f"bad_train_lines must be drop or refuse, not {self.bad_train_lines!r}")
        if self.max_words is not None and self.max_words < 1:
            raise UserError(f"max_words must be at least 1, not {self.max_words}")
        low, high = self.min_length_ratio, self.max_length_ratio
        if low is not None and high is not None and not low <= high:
            raise UserError(f"min_length_ratio {low} is above max_length_ratio {high}")

    def line(self, text: str) -> str:
        """One line, cleaned; doing it twice changes nothing more.

        Byte order marks, which joined files have within, are left out, and a NUL is white space, whatever is set.
        """
        text = text.replace("\ufeff", "").replace("\0", " ")
        if self.unicode_form != "none":
            text = unicodedata.normalize(self.unicode_form, text)
        if self.lowercase:
            text = text.lower()
            if self.unicode_form != "none":  # an accent that lowering parted from its letter
                text = unicodedata.normalize(self.unicode_form, text)
        return " ".join(text.split()) if self.collapse_white_space else text

    def fault(self, words: int) -> Literal["empty", "too_long"] | None:
        """What is wrong with a line of so many words."""
        if words == 0:
            return "empty"
        return "too_long" if self.max_words is not None and words > self.max_words else None

    def ratio_is_off(self, source_words: int, reference_words: int) -> bool:
        """Whether a pair's source words per reference word are outside the limits."""
        ratio = source_words / reference_words
        low, high = self.min_length_ratio, self.max_length_ratio
        return (low is not None and ratio < low) or (high is not None and ratio > high)


def cleaning_of(folder: Path) -> Cleaning:
    """How the text of a run was cleaned, of whose folder, or of a stage's in it; the usual where nothing says so."""
    known = recorded(folder).get("cleaning") or {}
    plain = {each.name for each in fields(Cleaning)} - {"non_translations"}  # a function, which is not in JSON
    return Cleaning(**{name: value for name, value in known.items() if name in plain})


def recorded(folder: Path) -> dict[str, Any]:
    """The settings of a run, of whose folder, or of a stage's in it; {} where nothing says them."""
    records = (place / "experiment.json" for place in (folder, *folder.absolute().parents[:2]))
    found = next((record for record in records if record.is_file()), None)
    return {} if found is None else dict(read_json(found))


@dataclass(frozen=True)
class SyntheticCorpus:
    """Sentences of a made-up language, with the exact quality of any translation as `gold`."""

    language: SyntheticLanguage  # the language, its noise and the sizes of its splits

    def load(self, cleaning: Cleaning) -> Corpus:
        """Write the sentences; they go through the same cleaning as real text."""
        return load(self.rows, cleaning, self.language.gold)

    def rows(self, split: str) -> Rows:
        """A split as it is before cleaning."""
        sources, references = self.language.sentences(split)
        pairs = map(Pair, sources, references)
        return Rows(split, pairs, f"synthetic {split} sources", f"synthetic {split} references")


@dataclass(frozen=True)
class Combined:
    """Splits of different corpora: a training text, and test sets by name."""

    train: Any  # a corpus, whose training text is taken
    dev: Any  # a corpus, whose dev text is taken, or a test set
    test: Any  # a corpus, whose test text is taken, or a test set

    def load(self, cleaning: Cleaning) -> Corpus:
        """Read and clean the three splits."""
        return load(self.rows, cleaning)

    def rows(self, split: str) -> Rows:
        """A split as it is before cleaning."""
        rows: Rows = getattr(self, split).rows(split)
        return rows


class Pair(NamedTuple):
    """One row of a corpus as it is read."""

    source: str
    reference: str | None = None
    more: tuple[str, ...] = ()  # further references
    document: str | None = None
    at: tuple[str, ...] = ()  # where the sides are, as an error names it; (): at the row's line of the places in Rows


@dataclass(frozen=True)
class Rows:
    """A split as it comes in, to be read once, and what to call its sides in an error."""

    split: str
    pairs: Iterable[Pair]
    source: str
    reference: str | None  # None: there are no references
    more: tuple[str, ...] = ()  # further references
    first_line: int = 1  # the line of the first pair

    def at(self, row: int, pair: Pair, side: int) -> str:
        """The place and line of a side of a pair: 0 the source, then the references."""
        if pair.at:
            return pair.at[side]
        return f"{(self.source, self.reference, *self.more)[side]}, line {row + self.first_line}"


def load(rows: Callable[[str], Rows], cleaning: Cleaning, gold: Gold | None = None) -> Corpus:
    """Dev and test come first: their mistakes show before the long read, and train may not repeat them."""
    dev, dev_counts = clean(rows("dev"), cleaning)
    test, test_counts = clean(rows("test"), cleaning)
    train, train_counts = clean(rows("train"), cleaning, not_for_train(cleaning, dev, test))
    return Corpus(train, dev, test, {"train": train_counts, "dev": dev_counts, "test": test_counts}, gold)


def not_for_train(cleaning: Cleaning, *measured: Split) -> frozenset[str]:
    """Sources that train may not have."""
    return frozenset(source for split in measured for source in split.sources if cleaning.drop_train_in_test)


def clean(rows: Rows, cleaning: Cleaning, measured: frozenset[str] = frozenset()) -> tuple[Split, dict[str, int]]:
    """The rows that are kept, in memory, and the counts of COUNTS; `measured`: sources not for train."""
    counts = dict.fromkeys(COUNTS, 0)
    ids, sources, documents = array("q"), [], []
    references: list[list[str]] = [[] for _ in ((rows.reference, *rows.more) if rows.reference is not None else ())]
    for row, pair in cleaned(rows, cleaning, measured, counts):
        ids.append(row)
        sources.append(pair.source)
        documents.append(pair.document)
        for column, text in zip(references, (pair.reference, *pair.more), strict=False):
            column.append(text or "")
    known = documents if any(document is not None for document in documents) else None
    first, more = (references[0], references[1:]) if references else (None, [])
    in_documents = None if known is None else [document or "" for document in known]
    return Split(rows.split, np.array(ids, np.int64), sources, first, more, in_documents), counts


def cleaned(
    rows: Rows, cleaning: Cleaning, measured: frozenset[str], counts: dict[str, int]
) -> Iterator[tuple[int, Pair]]:
    """The rows that are kept, cleaned, each with its position before cleaning; `counts` has all once this has ended.

    Holds no text: of pairs that have been, where duplicates are dropped, 8 bytes each are kept.
    """
    pairs = _without_fault(rows, cleaning, measured, counts)
    if rows.split == "train" and cleaning.drop_duplicates:
        pairs = _first_of_equals(pairs, counts)
    if rows.split == "train" and cleaning.non_translations is not None:
        pairs = _translations(pairs, cleaning.non_translations, counts)
    for found in pairs:
        counts["kept"] += 1
        yield found
    if not counts["kept"]:
        dropped = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(f"{rows.source}: no {rows.split} sentence is left ({dropped})")


def _without_fault(
    rows: Rows, cleaning: Cleaning, measured: frozenset[str], counts: dict[str, int]
) -> Iterator[tuple[int, Pair]]:
    training = rows.split == "train"
    refuses = not training or cleaning.bad_train_lines == "refuse"
    for row, pair in enumerate(rows.pairs):
        counts["read"] += 1
        source = cleaning.line(pair.source)
        reference = None if pair.reference is None else cleaning.line(pair.reference)
        more = tuple(map(cleaning.line, pair.more))
        words = [count_words(text) for text in (source, reference, *more) if text is not None]
        reason: str | None = next(filter(None, map(cleaning.fault, words)), None)
        if reason is not None and refuses:
            raise _refusal(rows, row, pair, words, cleaning)
        if training and reason is None:
            if reference is not None and cleaning.ratio_is_off(words[0], words[1]):
                reason = "ratio"
            elif source in measured:
                reason = "in_test"
        if reason is not None:
            counts[reason] += 1
            continue
        yield row, Pair(source, reference, more, pair.document, pair.at)


def _refusal(rows: Rows, row: int, pair: Pair, words: list[int], cleaning: Cleaning) -> UserError:
    """Names the side and the line that is empty or over-long."""
    side = next(k for k, count in enumerate(words) if cleaning.fault(count) is not None)
    fault = f"has {words[side]} words, more than max_words = {cleaning.max_words}" if words[side] else "is empty"
    return UserError(f"{rows.at(row, pair, side)}: the line {fault}")


def _first_of_equals(pairs: Iterator[tuple[int, Pair]], counts: dict[str, int]) -> Iterator[tuple[int, Pair]]:
    """Pairs of equal text but for the first are counted, and left out."""
    seen = Hashes()
    while block := list(islice(pairs, 1 << 16)):
        texts = (f"{pair.source}\0{pair.reference}".encode("utf-8", "surrogatepass") for _, pair in block)
        hashes = np.frombuffer(b"".join(blake2b(text, digest_size=8).digest() for text in texts), np.uint64)
        for found, is_new in zip(block, seen.add(hashes).tolist(), strict=True):
            if is_new:
                yield found
            else:
                counts["duplicate"] += 1


def _translations(
    pairs: Iterator[tuple[int, Pair]], non_translations: NonTranslation, counts: dict[str, int]
) -> Iterator[tuple[int, Pair]]:
    """Pairs that are no translations of each other are counted, and left out; 65,536 are compared at once."""
    while block := list(islice(pairs, 1 << 16)):
        there = [pair for _, pair in block if pair.reference is not None]
        none = iter(non_translations([pair.source for pair in there], [pair.reference or "" for pair in there]))
        for found in block:
            if found[1].reference is not None and next(none):
                counts["no_translation"] += 1
            else:
                yield found


class Hashes:
    """A set of 64-bit hashes in 8 bytes each: a few sorted arrays, each at least twice as long as the next.

    That two different texts among n share a hash has probability n² / 2⁶⁵, or 3 in 100,000 for 35 million.
    """

    def __init__(self) -> None:
        self._sorted: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(map(len, self._sorted))

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """Adds uint64 [n]; bool [n]: which of them were neither in the set nor earlier in `hashes`."""
        values, first = np.unique(hashes, return_index=True)
        new = np.ones(len(values), bool)
        for known in self._sorted:
            at = np.minimum(np.searchsorted(known, values), len(known) - 1)
            new &= known[at] != values
        added = values[new]
        while self._sorted and len(self._sorted[-1]) < 2 * len(added):
            added = np.sort(np.concatenate([self._sorted.pop(), added]), kind="stable")  # merges two sorted runs
        if len(added):
            self._sorted.append(added)
        result = np.zeros(len(hashes), bool)
        result[first[new]] = True
        return result
