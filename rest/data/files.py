"""Parallel text in files: a sentence a line, columns, and what fairseq's preparation scripts leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path

from rest.data.corpus import Cleaning, Corpus, Pair, Rows, Split, clean, load, not_for_train
from rest.data.lines import decode_line, read_lines
from rest.errors import UserError


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
        return load(self.rows, cleaning)

    def rows(self, split: str) -> Rows:
        """A split as it is before cleaning."""
        source, reference = (getattr(self, f"{split}_{side}") for side in ("source", "reference"))
        limit = getattr(self, f"max_{split}")
        more = self.more_test_references if split == "test" else ()
        return text_rows(split, source, () if reference is None else (reference, *more), limit)


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
        return load(self.rows, cleaning)

    def rows(self, split: str) -> Rows:
        """A split as it is before cleaning."""
        path = getattr(self, split)
        source = f"{path}, column {self.source_column}"
        reference = None if self.reference_column is None else f"{path}, column {self.reference_column}"
        return Rows(split, self._pairs(path), source, reference, first_line=2 if self.header else 1)

    def _pairs(self, path: Path) -> Iterator[Pair]:
        needed = 1 + max(self.source_column, self.reference_column or 0)
        for number, raw in enumerate(read_lines(path), start=1):
            if self.header and number == 1:
                continue
            columns = decode_line(raw, path, number).split("\t")
            if len(columns) < needed:
                raise UserError(f"{path}, line {number}: {needed} columns are needed, but it has {len(columns)}")
            reference = None if self.reference_column is None else columns[self.reference_column]
            yield Pair(columns[self.source_column], reference)


@dataclass(frozen=True)
class FairseqText:
    """What a preparation script of fairseq leaves: train, valid and test, each with a file for each language.

    examples/translation/prepare-iwslt14.sh writes them twice: with the marks of subwords (`@@ `) into
    iwslt14.tokenized.de-en/, without them into its tmp/. Either folder is read, and the marks are undone. The text
    stays tokenized, lowercased and escaped the Moses way, as published scores of IWSLT14 take it: score it with
    bleu_tokenizer="none", and beside it with detokenizer=Detokenizer("en").
    """

    folder: Path  # the folder with train.de, train.en, valid.de, ...
    source_language: str = "de"  # ending of the files to translate from
    reference_language: str = "en"  # ending of the files with their translations
    max_train: int | None = None  # take only the first training lines

    def load(self, cleaning: Cleaning) -> Corpus:
        """Read and clean the files. A missing, damaged or mismatched file is a UserError."""
        return load(self.rows, cleaning)

    def rows(self, split: str) -> Rows:
        """A split as it is before cleaning."""
        stem = "valid" if split == "dev" else split
        source, reference = (self.folder / f"{stem}.{end}" for end in (self.source_language, self.reference_language))
        rows = text_rows(split, source, (reference,), self.max_train if split == "train" else None)
        whole = (Pair(without_marks(pair.source), without_marks(pair.reference or "")) for pair in rows.pairs)
        return replace(rows, pairs=whole)


def without_marks(line: str) -> str:
    """Words whole again: what subword-nmt parted with @@ joined, as fairseq's --remove-bpe does."""
    return (line + " ").replace("@@ ", "").removesuffix(" ")


TEXT_IDS = 1 << 40  # ids of source text begin here, past those of any training text


def source_text(path: Path, cleaning: Cleaning, corpus: Corpus) -> tuple[Split, dict[str, int]]:
    """Source sentences without translations, one a line, cleaned as training text is, and the counts."""
    measured = not_for_train(cleaning, corpus.dev, corpus.test)
    split, counts = clean(text_rows("train", path, (), None), cleaning, measured)
    return Split("text", split.ids + TEXT_IDS, split.sources, None), counts


def text_rows(split: str, source: Path, references: Sequence[Path], limit: int | None) -> Rows:
    """Files line by line; `references` may be none."""
    names = [str(path) for path in references]
    pairs = _text_pairs(source, references, limit)
    return Rows(split, pairs, str(source), names[0] if names else None, tuple(names[1:]))


def _text_pairs(source: Path, references: Sequence[Path], limit: int | None) -> Iterator[Pair]:
    if not references:
        for number, raw in enumerate(islice(read_lines(source), limit), start=1):
            yield Pair(decode_line(raw, source, number))
        return
    paths = (source, *references)
    counts = [0] * len(paths)
    for number, raws in enumerate(zip_longest(*map(read_lines, paths)), start=1):
        for side, raw in enumerate(raws):
            counts[side] += raw is not None
        if None not in raws and (limit is None or number <= limit):
            texts = [decode_line(raw, path, number) for raw, path in zip(raws, paths, strict=True)]
            yield Pair(texts[0], texts[1], tuple(texts[2:]))
    for path, count in zip(references, counts[1:], strict=True):
        if count != counts[0]:
            raise UserError(f"{source} has {counts[0]} lines, but {path} has {count}")
