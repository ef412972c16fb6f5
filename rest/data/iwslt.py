"""IWSLT14 as it is distributed: de-en.tgz with train.tags.de-en.* and IWSLT14.TED*.de-en.*.xml, read in the archive.

What is a sentence follows fairseq's examples/translation/prepare-iwslt14.sh: of train.tags, lines of tags are left out,
but titles and descriptions are kept without theirs; of the XML, the lines of `<seg id="...">`, in which ’ becomes '.
Entities such as &amp; stay as they are written, there as here: files are read line by line and never parsed as XML.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rest.data.corpus import Cleaning, Corpus, Pair, Rows, clean, load, not_for_train
from rest.data.lines import decode_line, one_line, read_lines, without_end
from rest.errors import UserError

TEST = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
EVERY = 23  # fairseq: every 23rd training pair that is left is dev

_LEFT_OUT = re.compile(r"\s*<(url|keywords|speaker|reviewer|translator|doc)\b|\s*</doc>")
_TALK = re.compile(r"\s*<talkid>\s*(.*?)\s*</talkid>")
_TITLE = re.compile(r"</?(title|description)>")
_SEG = re.compile(r'<seg id="([0-9]+)">\s*(.*?)\s*</seg>')
_DOC = re.compile(r'<doc\b[^>]*\bdocid="([^"]*)"')
_TAG = re.compile(r"\s*</?([A-Za-z]\w*)")
_FRAME = "mteval srcset refset tstset doc url keywords speaker talkid title description reviewer translator seg".split()
_FRAME_TAG = re.compile(rf"</?(?:{'|'.join(_FRAME)})\b[^<>]*>")


class Sentence(NamedTuple):
    """One side of a pair, and where it is."""

    text: str
    document: str | None  # the talk
    line: int  # in its file, counted from 1
    segment: str = ""  # the seg's id in its document


@dataclass(frozen=True)
class IWSLT14:
    """IWSLT14 from the official archive: raw text, cased and not tokenized, with the talk of each sentence.

    To come near to fairseq's training text: Cleaning(lowercase=True, max_words=175, min_length_ratio=1 / 1.5,
    max_length_ratio=1.5). fairseq counts Moses' tokens, so a few other pairs are dropped. Scores on this text are
    detokenized ones, not those that are published for its tokenized form, which FairseqText reads.
    """

    archive: Path  # de-en.tgz, or the folder that it was unpacked to
    source_language: str = "de"  # the side to translate from
    pair: str = "de-en"  # as the files in the archive are named
    dev: tuple[str, ...] = ()  # dev sets by name: TED.dev2010; none: every 23rd training pair, as in fairseq's script
    test: tuple[str, ...] = TEST  # test sets by name, joined in this order

    def __post_init__(self) -> None:
        if self.pair.count("-") != 1:
            raise UserError(f"pair must be two languages such as de-en, not {self.pair!r}")
        if self.source_language not in self.pair.split("-"):
            raise UserError(f"source_language {self.source_language!r} is not in the pair {self.pair!r}")
        if not self.test:
            raise UserError(f"test: name at least one set, such as {TEST[2]}")
        if both := [name for name in self.dev if name in self.test]:
            left = [name for name in self.test if name not in self.dev]
            raise UserError(f"dev and test both name {both[0]}, and dev would choose on test; for test say {left}")

    def load(self, cleaning: Cleaning) -> Corpus:
        """Read and clean. A damaged archive, a stray tag or sides that differ in length are UserErrors."""
        if self.dev:
            return load(self.rows, cleaning)
        test, test_counts = clean(self.rows("test"), cleaning)
        pairs, counts = clean(self.rows("train"), cleaning, not_for_train(cleaning, test))
        held_out = np.arange(1, len(pairs) + 1) % EVERY == 0
        if not held_out.any():
            raise UserError(f"{self.archive}: {len(pairs)} training pairs are too few to take every {EVERY}rd as dev")
        dev = pairs.take(np.flatnonzero(held_out))
        measured = not_for_train(cleaning, dev)
        kept = [k for k in np.flatnonzero(~held_out).tolist() if pairs.sources[k] not in measured]
        repeated = len(pairs) - len(dev) - len(kept)
        counts |= {"read": counts["read"] - len(dev), "kept": len(kept), "in_test": counts["in_test"] + repeated}
        dev_counts = dict.fromkeys(counts, 0) | {"read": len(dev), "kept": len(dev)}
        return Corpus(
            pairs.take(kept), replace(dev, name="dev"), test, {"train": counts, "dev": dev_counts, "test": test_counts}
        )

    def rows(self, split: str) -> Rows:
        """A split as it is before cleaning; dev needs named sets, since every 23rd pair is counted after cleaning."""
        if split == "train":
            return self._rows(split, [f"train.tags.{self.pair}.{{}}"], training_sentences)
        sets: tuple[str, ...] = getattr(self, split)
        if not sets:
            raise UserError("dev: name dev sets, such as TED.dev2010: without, load takes every 23rd training pair")
        return self._rows(split, [f"IWSLT14.{name}.{self.pair}.{{}}.xml" for name in sets], xml_sentences)

    def _rows(self, split: str, files: list[str], read: Callable[[Iterator[bytes], str], Iterator[Sentence]]) -> Rows:
        first, second = self.pair.split("-")
        languages = (first, second) if self.source_language == first else (second, first)
        sources, references = ([f"{self.pair}/{file.format(language)}" for file in files] for language in languages)
        both = zip(sources, references, strict=True)
        pairs = (pair for source, reference in both for pair in self._pairs(source, reference, read))
        return Rows(split, pairs, f"{self.archive}, {', '.join(sources)}", f"{self.archive}, {', '.join(references)}")

    def _pairs(
        self, source: str, reference: str, read: Callable[[Iterator[bytes], str], Iterator[Sentence]]
    ) -> Iterator[Pair]:
        places = [f"{self.archive}, {name}" for name in (source, reference)]
        sides = (read(file_lines(self.archive, name), at) for name, at in zip((source, reference), places, strict=True))
        counts, alone = [0, 0], 0  # alone: the line of the first sentence that the other side has nothing for
        for left, right in zip_longest(*sides):
            counts[0] += left is not None
            counts[1] += right is not None
            if left is None or right is None:
                alone = alone or (left or right).line
                continue  # both are counted to the end
            at = tuple(f"{place}, line {side.line}" for place, side in zip(places, (left, right), strict=True))
            if (left.document, left.segment) != (right.document, right.segment):
                raise UserError(f"{at[0]}: the sentence is {_name(left)}, but at {at[1]} it is {_name(right)}")
            yield Pair(left.text, right.text, (), left.document, at)
        if alone:
            longer = places[counts[1] > counts[0]]
            said = f"{places[0]} has {counts[0]} sentences, but {places[1]} has {counts[1]}"
            raise UserError(f"{said}: from line {alone} of {longer} on there is nothing beside them")


def _name(sentence: Sentence) -> str:
    return f"{f'segment {sentence.segment} ' * bool(sentence.segment)}of talk {sentence.document}"


def training_sentences(lines: Iterator[bytes], place: str) -> Iterator[Sentence]:
    """The sentences of a train.tags file, titles and descriptions among them."""
    talk = None
    for number, raw in enumerate(lines, start=1):
        text = decode_line(raw, place, number)
        if found := _TALK.match(text):
            talk = found[1]
        elif not _LEFT_OUT.match(text):
            yield Sentence(_TITLE.sub("", text), talk, number)


def xml_sentences(lines: Iterator[bytes], place: str) -> Iterator[Sentence]:
    """The segments of a dev or test set. A tag that the format has not, or not there, is a UserError."""
    document: str | None = None
    for number, raw in enumerate(lines, start=1):
        text = decode_line(raw, place, number)
        tag = _TAG.match(text)
        if "<seg" in text:
            found = _SEG.fullmatch(text.strip())
            if found is None or _FRAME_TAG.search(found[2]):
                raise UserError(f'{place}, line {number}: the line is not one <seg id="...">, its text and </seg>')
            if document is None:
                raise UserError(f"{place}, line {number}: the segment is in no <doc>")
            yield Sentence(found[2].replace("’", "'"), document, number, found[1])
        elif tag is not None and tag[1] not in _FRAME:
            raise UserError(f"{place}, line {number}: the tag {tag[0].strip()}> is none of this format")
        elif tag is not None and tag[1] == "doc":
            opens = _DOC.search(text)
            if (document is None) != (opens is not None):
                raise UserError(f"{place}, line {number}: {text.strip()} does not follow what was opened before")
            document = opens[1] if opens is not None else None
    if document is not None:
        raise UserError(f"{place} ends inside the document {document}")


def file_lines(archive: Path, name: str) -> Iterator[bytes]:
    """The lines of a file in a tar archive, or in the folder that the archive was unpacked to."""
    if archive.is_dir():
        inside = archive / name if (archive / name).exists() else archive / name.partition("/")[2]
        yield from read_lines(inside)
        return
    try:
        with tarfile.open(archive, "r|*") as tar:  # a stream: what lies before is skipped, nothing is kept
            for member in tar:
                if member.name.removeprefix("./") == name and (file := tar.extractfile(member)) is not None:
                    yield from map(without_end, file)
                    return
    except FileNotFoundError as error:
        raise UserError(f"{archive} does not exist") from error
    except (EOFError, tarfile.TarError, zlib.error, OSError) as error:
        raise UserError(f"{archive} is damaged or cut short, or no archive: {one_line(error)}") from error
    raise UserError(f"{archive} has no {name}; it may be cut short")
