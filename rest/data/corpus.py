"""Corpora: parallel text as columns, split into train, dev and test."""

from __future__ import annotations

import gzip
import unicodedata
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rest.data.synthetic import SyntheticLanguage
from rest.errors import UserError
from rest.statistics.words import count_words

Gold = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""Exact quality where a task knows it: (sources, hypotheses) -> float32 [n] in [0, 1]."""


@dataclass(frozen=True)
class Split:
    """One split as columns, all of the same length n."""

    name: str  # "train", "dev" or "test"
    ids: np.ndarray  # int64 [n], unique in the split and stable: the position in the input before cleaning
    sources: list[str]
    references: list[str] | None  # None: source text without human translations
    more_references: list[list[str]] = field(default_factory=list)  # further references of a test set, each a list [n]

    def __len__(self) -> int:
        return len(self.sources)

    def take(self, rows: np.ndarray | slice | list[int]) -> Split:
        """The rows of this split, in the given order."""
        rows = np.arange(len(self))[rows]
        references = None if self.references is None else [self.references[r] for r in rows]
        more = [[lines[r] for r in rows] for lines in self.more_references]
        return Split(self.name, self.ids[rows], [self.sources[r] for r in rows], references, more)


@dataclass(frozen=True)
class Corpus:
    """Train, dev and test, what cleaning dropped, and the task's exact quality where it knows one."""

    train: Split
    dev: Split
    test: Split
    counts: dict[str, dict[str, int]]  # {"train": {"read": 29000, "empty": 0, "too_long": 3, ...}, ...}
    gold: Gold | None = None


COUNTS = ("read", "kept", "empty", "too_long", "ratio", "duplicate", "in_test")


@dataclass(frozen=True)
class Cleaning:
    """What is done to every line, and which training pairs are dropped.

    A dropped pair is counted once, under the first reason found. An empty or over-long line in dev or test is
    always refused: leaving it out would change what is measured.
    """

    unicode_form: Literal["NFC", "NFKC", "none"] = "NFC"  # Unicode normalisation of every line
    collapse_white_space: bool = True  # a run of white space becomes one space, and none is left at the ends
    # a line with more words, on either side, is over-long; a Chinese or Japanese character is a word
    max_words: int | None = 100
    bad_train_lines: Literal["drop", "refuse"] = "drop"  # what becomes of empty and over-long training lines
    min_length_ratio: float | None = None  # drop training pairs with fewer source words per reference word
    max_length_ratio: float | None = None  # drop training pairs with more source words per reference word
    drop_train_in_test: bool = True  # drop training pairs whose source is also in dev or test
    drop_duplicates: bool = False  # keep only the first of equal training pairs

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
        """One line, cleaned; doing it twice changes nothing more."""
        if self.unicode_form != "none":
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


@dataclass(frozen=True)
class TextFiles:
    r"""One sentence a line, sources and references in files of their own: UTF-8, gzip where named .gz.

    Lines end at \n alone (a \r before it is dropped), so Unicode line separators stay inside a sentence.
    """

    train_source: Path  # training sources
    train_reference: Path | None  # their translations, line by line; None: source text without translations
    dev_source: Path  # dev sources
    dev_reference: Path | None  # their translations
    test_source: Path  # test sources
    test_reference: Path | None  # their translations
    max_train: int | None = None  # take only the first lines; the line counts must agree to the end of the files
    max_dev: int | None = None  # the same for dev
    max_test: int | None = None  # the same for test
    more_test_references: tuple[
        Path, ...
    ] = ()  # further translations of the test sources, which BLEU, chrF and TER use

    def __post_init__(self) -> None:
        for name in ("max_train", "max_dev", "max_test"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise UserError(f"{name} must be at least 1, not {limit}")
        if self.more_test_references and self.test_reference is None:
            raise UserError("more_test_references come beside test_reference, which is not given")

    def load(self, cleaning: Cleaning) -> Corpus:
        """Read and clean the files. A missing, damaged or mismatched file is a UserError."""
        more = []
        for path in self.more_test_references:  # no line of a test set is ever dropped, so these are in step
            further, _ = _clean(_text_rows("test", self.test_source, path, self.max_test), cleaning, set())
            more.append(further.references or [])
        corpus = _corpus(
            _text_rows("train", self.train_source, self.train_reference, self.max_train),
            _text_rows("dev", self.dev_source, self.dev_reference, self.max_dev),
            _text_rows("test", self.test_source, self.test_reference, self.max_test),
            cleaning,
        )
        return replace(corpus, test=replace(corpus.test, more_references=more))


@dataclass(frozen=True)
class TabSeparated:
    """One pair a line, in columns separated by tabs, without quoting: UTF-8, gzip where named .gz."""

    train: Path  # training pairs
    dev: Path  # dev pairs
    test: Path  # test pairs
    source_column: int = 0  # the sources' column, counted from 0
    reference_column: int | None = 1  # the references' column; None: source text without translations
    header: bool = False  # the first line names the columns and is skipped

    def __post_init__(self) -> None:
        for name in ("source_column", "reference_column"):
            column = getattr(self, name)
            if column is not None and column < 0:
                raise UserError(f"{name} counts from 0, so it cannot be {column}")

    def load(self, cleaning: Cleaning) -> Corpus:
        """Read and clean the three files. A missing or damaged file or a missing column is a UserError."""
        return _corpus(
            self._rows("train", self.train),
            self._rows("dev", self.dev),
            self._rows("test", self.test),
            cleaning,
        )

    def _rows(self, split: str, path: Path) -> _Rows:
        source = f"{path}, column {self.source_column}"
        reference = None if self.reference_column is None else f"{path}, column {self.reference_column}"
        return _Rows(split, self._pairs(path), source, reference, first_line=2 if self.header else 1)

    def _pairs(self, path: Path) -> Iterator[tuple[str, str | None]]:
        needed = 1 + max(self.source_column, self.reference_column or 0)
        for number, raw in enumerate(read_lines(path), start=1):
            if self.header and number == 1:
                continue
            columns = decode_line(raw, path, number).split("\t")
            if len(columns) < needed:
                raise UserError(f"{path}, line {number}: {needed} columns are needed, but it has {len(columns)}")
            reference = None if self.reference_column is None else columns[self.reference_column]
            yield columns[self.source_column], reference


@dataclass(frozen=True)
class TensorflowDataset:
    """A translation dataset of TensorFlow Datasets (tfds), prepared on first use; needs no TensorFlow.

    Ids are positions in the prepared split, which tfds shuffles in the same way every time.
    """

    name: str  # the builder and its configuration: wmt19_translate/zh-en
    source_language: str  # the feature to translate from: zh
    reference_language: str | None  # the feature with the translations: en; None: source text without them
    data_dir: Path | None = None  # where prepared datasets lie; None: tfds' own default
    train_split: str = "train"  # as tfds writes splits: train, train[:10%], train+validation
    dev_split: str = "validation"  # split to use as dev
    test_split: str = "test"  # split to use as test

    def load(self, cleaning: Cleaning) -> Corpus:
        """Prepare where needed, read and clean. An unknown name, split or language is a UserError."""
        builder = self._builder()
        return _corpus(
            self._rows("train", builder, self.train_split),
            self._rows("dev", builder, self.dev_split),
            self._rows("test", builder, self.test_split),
            cleaning,
        )

    def _builder(self) -> Any:
        """The tfds.core.DatasetBuilder, its data prepared."""
        import tensorflow_datasets as tfds
        import tensorflow_datasets.translate  # registers the translation builders
        from tensorflow_datasets.core.download.util import DownloadError

        try:
            builder = tfds.builder(self.name, data_dir=self.data_dir)
        except (ValueError, AssertionError) as error:  # unknown builder, configuration or version
            raise UserError(f"tfds has no dataset named {self.name!r}: {_one_line(error)}") from error
        features = builder.info.features.items()
        texts = [feature for feature, kind in features if isinstance(kind, tfds.features.Text)]
        for language in (self.source_language, self.reference_language):
            if language is not None and language not in texts:
                raise UserError(f"the dataset {self.name!r} has no text feature {language!r}, it has {texts}")
        try:
            builder.download_and_prepare(file_format="array_record")  # read back as parquet, rows go missing
        except (OSError, AssertionError, DownloadError) as error:  # no network, space or manual download
            raise UserError(f"the dataset {self.name!r} cannot be prepared: {_one_line(error)}") from error
        form = builder.info.file_format.value
        if form != "array_record":
            raise UserError(f"{builder.data_dir} is already prepared as {form}, where array_record is needed")
        return builder

    def _rows(self, split: str, builder: Any, tfds_split: str) -> _Rows:
        place = f"{self.name}, split {tfds_split}, feature "
        try:
            data = builder.as_data_source(split=tfds_split)
        except ValueError as error:
            raise UserError(f"{self.name} has no split {tfds_split!r}: {_one_line(error)}") from error
        reference = None if self.reference_language is None else place + self.reference_language
        return _Rows(split, self._pairs(data, place), place + self.source_language, reference)

    def _pairs(self, data: Any, place: str) -> Iterator[tuple[str, str | None]]:
        chunk = 1000  # rows read at once: several times as fast as one by one
        rows = (range(start, min(start + chunk, len(data))) for start in range(0, len(data), chunk))
        examples = (example for some in rows for example in data.__getitems__(some))
        for number, example in enumerate(examples, start=1):
            source = decode_line(example[self.source_language], place + self.source_language, number)
            if self.reference_language is None:
                yield source, None
            else:
                raw = example[self.reference_language]
                yield source, decode_line(raw, place + self.reference_language, number)


@dataclass(frozen=True)
class SyntheticCorpus:
    """Sentences of a made-up language, with the exact quality of any translation as `gold`."""

    language: SyntheticLanguage  # the language, its noise and the sizes of its splits

    def load(self, cleaning: Cleaning) -> Corpus:
        """Write the sentences; they go through the same cleaning as real text."""
        train, dev, test = self._rows("train"), self._rows("dev"), self._rows("test")
        return _corpus(train, dev, test, cleaning, self.language.gold)

    def _rows(self, split: str) -> _Rows:
        sources, references = self.language.sentences(split)
        pairs = zip(sources, references, strict=True)
        return _Rows(split, pairs, f"synthetic {split} sources", f"synthetic {split} references")


TEXT_IDS = 1 << 40  # ids of source text begin here, past those of any training text


def source_text(path: Path, cleaning: Cleaning, corpus: Corpus) -> tuple[Split, dict[str, int]]:
    """Source sentences without translations, one a line, cleaned as training text is, and the counts."""
    measured = {*corpus.dev.sources, *corpus.test.sources} if cleaning.drop_train_in_test else set()
    split, counts = _clean(_text_rows("train", path, None, None), cleaning, measured)
    return Split("text", split.ids + TEXT_IDS, split.sources, None), counts


@dataclass(frozen=True)
class _Rows:
    """A split as it comes in, to be read once, and what to call its two sides in an error."""

    split: str
    pairs: Iterable[tuple[str, str | None]]
    source: str
    reference: str | None  # None: there are no references
    first_line: int = 1  # the line of the first pair


def _corpus(
    train: _Rows,
    dev: _Rows,
    test: _Rows,
    cleaning: Cleaning,
    gold: Gold | None = None,
) -> Corpus:
    """Dev and test come first: their mistakes show before the long read, and train may not repeat them."""
    dev_split, dev_counts = _clean(dev, cleaning, set())
    test_split, test_counts = _clean(test, cleaning, set())
    measured = {*dev_split.sources, *test_split.sources} if cleaning.drop_train_in_test else set()
    train_split, train_counts = _clean(train, cleaning, measured)
    counts = {"train": train_counts, "dev": dev_counts, "test": test_counts}
    return Corpus(train_split, dev_split, test_split, counts, gold)


def _clean(rows: _Rows, cleaning: Cleaning, measured: set[str]) -> tuple[Split, dict[str, int]]:
    """The rows that are kept, and how many were read, kept and dropped; `measured`: sources not for train."""
    training = rows.split == "train"
    refuses = not training or cleaning.bad_train_lines == "refuse"
    counts = dict.fromkeys(COUNTS, 0)
    ids, sources = array("q"), []
    references: list[str] | None = None if rows.reference is None else []
    seen: set[tuple[str, str | None]] = set()
    for row, (source, reference) in enumerate(rows.pairs):
        counts["read"] += 1
        source = cleaning.line(source)
        source_words = reference_words = count_words(source)
        if reference is not None:
            reference = cleaning.line(reference)
            reference_words = count_words(reference)
        reason: str | None = cleaning.fault(source_words) or cleaning.fault(reference_words)
        if reason is not None and refuses:
            raise _refusal(rows, row, source_words, reference_words, cleaning)
        if training and reason is None:
            if reference is not None and cleaning.ratio_is_off(source_words, reference_words):
                reason = "ratio"
            elif source in measured:
                reason = "in_test"
            elif cleaning.drop_duplicates:
                reason = "duplicate" if (source, reference) in seen else None
                seen.add((source, reference))
        if reason is not None:
            counts[reason] += 1
            continue
        ids.append(row)
        sources.append(source)
        if references is not None and reference is not None:
            references.append(reference)
    counts["kept"] = len(sources)
    if not sources:
        dropped = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(f"{rows.source}: no {rows.split} sentence is left ({dropped})")
    return Split(rows.split, np.array(ids, np.int64), sources, references), counts


def _refusal(rows: _Rows, row: int, source_words: int, reference_words: int, cleaning: Cleaning) -> UserError:
    """Names the side and the line that is empty or over-long."""
    in_source = cleaning.fault(source_words) is not None
    side, words = (rows.source, source_words) if in_source else (rows.reference, reference_words)
    fault = f"has {words} words, more than max_words = {cleaning.max_words}" if words else "is empty"
    return UserError(f"{side}, line {row + rows.first_line}: the line {fault}")


def _text_rows(split: str, source: Path, reference: Path | None, limit: int | None) -> _Rows:
    pairs = _text_pairs(source, reference, limit)
    return _Rows(split, pairs, str(source), None if reference is None else str(reference))


def _text_pairs(source: Path, reference: Path | None, limit: int | None) -> Iterator[tuple[str, str | None]]:
    if reference is None:
        for number, raw in enumerate(islice(read_lines(source), limit), start=1):
            yield decode_line(raw, source, number), None
        return
    in_source = in_reference = 0
    for left, right in zip_longest(read_lines(source), read_lines(reference)):
        in_source += left is not None
        in_reference += right is not None
        if left is not None and right is not None and (limit is None or in_source <= limit):
            yield decode_line(left, source, in_source), decode_line(right, reference, in_reference)
    if in_source != in_reference:
        raise UserError(f"{source} has {in_source} lines, but {reference} has {in_reference}")


def read_lines(path: Path) -> Iterator[bytes]:
    r"""The lines of a plain or gzip file without their ends, \n or \r\n."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for line in file:
                yield line.removesuffix(b"\n").removesuffix(b"\r")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged or no gzip file: {_one_line(error)}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def decode_line(raw: bytes, place: Path | str, number: int) -> str:
    """The text of line `number` of `place`, counted from 1."""
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")  # editors may put a byte order mark first
    except UnicodeDecodeError as error:
        wrong = raw[error.start]
        raise UserError(f"{place}, line {number}: byte {error.start + 1} is 0x{wrong:02x}, no UTF-8") from error


def _one_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
