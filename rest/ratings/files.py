"""Readers of human ratings: MQM error annotations, direct assessments, votes and rankings."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rest.data.lines import decode_line, read_lines
from rest.errors import UserError
from rest.ratings.record import RatingRow, Ratings, average_raters, from_rows, standardise


@dataclass(frozen=True)
class MQMWeights:
    """Penalty points of one error (Freitag et al. 2021, arXiv 2104.14478). Neutral and no error weigh nothing."""

    major: float = 5.0
    minor: float = 1.0
    minor_punctuation: float = 0.1  # a minor error of the category Fluency/Punctuation
    non_translation: float = 25.0  # the text as a whole is no translation

    def of(self, category: str, severity: str) -> float | None:
        """The weight of an error; None for a severity that is not known."""
        category, severity = category.lower(), severity.lower()
        if category.startswith("non-translation"):
            return self.non_translation
        if severity == "minor" and category == "fluency/punctuation":
            return self.minor_punctuation
        return {"major": self.major, "minor": self.minor, "neutral": 0.0, "no-error": 0.0}.get(severity)


MQM_COLUMNS = ("system", "doc", "seg_id", "rater", "source", "target", "category", "severity")
_SPAN = re.compile("</?v>")  # marks the error within the text


@dataclass(frozen=True)
class MQM:
    """Error annotations as Google publishes them: a tab-separated line for each error that a rater marked.

    A rater's score of a translation is minus the sum of the weights of its lines, and the translation's is the mean
    over its raters: 0 is perfect, -25 the worst that is usual. Repeated lines count as often as they stand.
    """

    path: Path  # columns system, doc, seg_id, rater, source, target, category, severity, named in the first line
    language_pair: str = ""  # what the file does not say: en-de
    reference_system: str | None = None  # the human translations rated under this name become the references
    exclude_systems: tuple[str, ...] = ()  # systems whose rows are left out
    standardise_raters: bool = False  # each rater's scores are standardised before the mean is taken
    drop_ambiguous: bool = False  # leave out translations of which the raters' lines have several texts
    weights: MQMWeights = MQMWeights()

    def load(self) -> Ratings:
        """One row for each rated translation."""
        ratings = self.load_by_rater()
        if self.standardise_raters:
            ratings = standardise(ratings, ratings.raters)
        return average_raters(ratings)

    def load_by_rater(self) -> Ratings:
        """One row for each translation and rater."""
        sources: dict[tuple[str, str], _Variants] = {}  # by document and segment
        rated: dict[tuple[str, str, str], _Rated] = {}  # and by system
        for line, row in _table(self.path, MQM_COLUMNS):
            system, document, segment, rater, source, target, category, severity = row
            if severity == "HOTW-test" or system in self.exclude_systems:  # the former test the raters' attention
                continue
            weight = self.weights.of(category, severity)
            if weight is None:
                raise UserError(
                    f"{self.path}, line {line}: severity is {severity!r}, not Major, Minor, Neutral or No-error"
                )
            sources.setdefault((document, segment), _Variants()).add(source, rater)
            translation = rated.setdefault((document, segment, system), _Rated())
            translation.points[rater] = translation.points.get(rater, 0.0) + weight
            translation.texts.add(target, rater, clean=severity.lower() == "no-error")
        if self.reference_system is not None and all(key[2] != self.reference_system for key in rated):
            raise UserError(f"{self.path}: no system {self.reference_system!r} to take references from")
        return _read(self.path, self._rows(sources, rated))

    def _rows(
        self, sources: dict[tuple[str, str], _Variants], rated: dict[tuple[str, str, str], _Rated]
    ) -> Iterator[RatingRow]:
        name = _set_name(self.path)
        references = {key[:2]: of.texts.chosen() for key, of in rated.items() if key[2] == self.reference_system}
        for (document, segment, system), translation in rated.items():
            if system == self.reference_system or (self.drop_ambiguous and translation.texts.differ):
                continue
            place = document, segment
            source, target = sources[place].chosen(), translation.texts.chosen()
            for rater, points in translation.points.items():
                score = 0.0 - round(points, 6)  # tenths do not add up exactly
                known = references.get(place), system, document, rater, name, self.language_pair
                yield RatingRow(source, target, score, place, *known)


class _Variants:
    """The texts that several lines give for one sentence, without the marks of the errors.

    Raters' corrections got into some of them, least of all where no error was marked (tried on newstest2020).
    """

    def __init__(self) -> None:
        self.raters: dict[str, set[str]] = {}
        self.clean: set[str] = set()

    def add(self, text: str, rater: str, *, clean: bool = False) -> None:
        text = " ".join(_SPAN.sub("", text).split())
        self.raters.setdefault(text, set()).add(rater)
        if clean:
            self.clean.add(text)

    @property
    def differ(self) -> bool:
        return len(self.raters) > 1

    def chosen(self) -> str:
        """Of a line without error if there is one, else of most raters, the shortest if equal."""
        return min(self.clean or self.raters, key=lambda text: (-len(self.raters[text]), len(text), text))


class _Rated:
    """One translation: the penalty points that each rater gave, and its text."""

    def __init__(self) -> None:
        self.points: dict[str, float] = {}
        self.texts = _Variants()


@dataclass(frozen=True)
class DirectAssessments:
    """A table with a score for each translation: tab-separated, not quoted, the columns named in the first line."""

    path: Path  # UTF-8, gzip where named .gz
    source: str = "source"  # name of the sources' column; rows of equal sources are one group
    hypothesis: str = "hypothesis"  # name of the rated translations' column
    score: str = "score"  # name of the scores' column; higher is better
    reference: str | None = None  # name of the references' column
    system: str | None = None  # name of the systems' column
    document: str | None = None  # name of the documents' column
    rater: str | None = None  # name of the raters' column
    language_pairs: str | None = None  # name of the language pairs' column
    language_pair: str = ""  # of all rows, where there is no such column
    standardise_raters: bool = False  # each rater's scores are standardised before the mean is taken
    drop_empty_sources: bool = False  # leave out rows whose source was not published, rather than refuse them

    def load(self) -> Ratings:
        """One row for each rated translation: the mean of its ratings."""
        ratings = _read(self.path, self._rows())
        if self.standardise_raters:
            ratings = standardise(ratings, ratings.raters)
        return average_raters(ratings)

    def _rows(self) -> Iterator[RatingRow]:
        optional = self.reference, self.system, self.document, self.rater, self.language_pairs
        needed = [self.source, self.hypothesis, self.score, *(name for name in optional if name is not None)]
        for line, row in _table(self.path, needed):
            values = iter(row)
            source, hypothesis, score = next(values), next(values), next(values)
            reference, system, document, rater, pair = (None if name is None else next(values) for name in optional)
            if not source.strip():
                if self.drop_empty_sources:
                    continue
                raise UserError(
                    f"{self.path}, line {line}: {self.source} is empty (drop_empty_sources leaves such rows out)"
                )
            number = _number(score, f"{self.path}, line {line}: {self.score}")
            pair = self.language_pair if pair is None else pair
            known = reference or None, system or "", document or "", rater or "", _set_name(self.path), pair
            yield RatingRow(source, hypothesis, number, (source, pair), *known)


@dataclass(frozen=True)
class MLQEPE:
    """The direct assessments of MLQE-PE (Fomicheva et al. 2020, arXiv 2010.04480), one system a language pair."""

    path: Path  # columns original, translation, z_mean and, if it names documents, doc
    language_pair: str = ""  # what the file does not say: en-de

    def load(self) -> Ratings:
        """One row for each translation; the score is the mean of its raters' standardised scores."""
        header = decode_line(next(read_lines(self.path), b""), self.path, 1).split("\t")
        document = "doc" if "doc" in header else None
        columns = DirectAssessments(
            self.path, "original", "translation", "z_mean", document=document, language_pair=self.language_pair
        )
        return columns.load()


@dataclass(frozen=True)
class Votes:
    """Thumbs up or down, a JSON object a line: {"source": …, "hypothesis": …, "vote": true}.

    A vote is true, 1 or "up", or false, 0, -1 or "down"; reference, system, document and rater may be added.
    """

    path: Path
    language_pair: str = ""  # what the file does not say: en-de

    def load(self) -> Ratings:
        """One row for each hypothesis: the share of its votes that are up."""
        return average_raters(_read(self.path, self._rows()))

    def _rows(self) -> Iterator[RatingRow]:
        meaning = {1: 1.0, 0: 0.0, -1: 0.0, "up": 1.0, "down": 0.0}  # True equals 1, False 0
        for place, row in _json_lines(self.path):
            source, hypothesis = _text(row, "source", place), _text(row, "hypothesis", place)
            vote = row.get("vote")
            if not isinstance(vote, bool | int | str) or vote not in meaning:
                raise UserError(f'{place}: vote is {vote!r}, not true, false, 1, 0, -1, "up" or "down"')
            yield RatingRow(source, hypothesis, meaning[vote], source, *_known(row, place, self))


@dataclass(frozen=True)
class Rankings:
    """Ranked answers, a JSON object a line: {"source": …, "answers": ["best", ["second", "just as good"], "worst"]}.

    A list among the answers is a tie. Reference, document and rater may be added.
    """

    path: Path
    language_pair: str = ""  # what the file does not say: en-de

    def load(self) -> Ratings:
        """One row for each answer; its score is the share of the other answers that it beats, a tie being half."""
        return _read(self.path, self._rows())

    def _rows(self) -> Iterator[RatingRow]:
        for group, (place, row) in enumerate(_json_lines(self.path)):
            source, answers = _text(row, "source", place), row.get("answers")
            ranks = (
                [rank if isinstance(rank, list) else [rank] for rank in answers] if isinstance(answers, list) else []
            )
            texts = [text for rank in ranks for text in rank]
            if len(texts) < 2 or not all(isinstance(text, str) for text in texts):
                raise UserError(f"{place}: answers is {answers!r}, not a list of two texts or more, best first")
            if repeated := [text for text, count in Counter(texts).items() if count > 1]:
                raise UserError(f"{place}: answers has {repeated[0]!r} more than once")
            below = len(texts)
            for rank in ranks:
                below -= len(rank)
                score = (below + (len(rank) - 1) / 2) / (len(texts) - 1)
                for text in rank:
                    yield RatingRow(source, text, score, group, *_known(row, place, self))


def _read(path: Path, rows: Iterable[RatingRow]) -> Ratings:
    kept = list(rows)
    if not kept:
        raise UserError(f"{path}: no rating in it, or none is left")
    return from_rows(kept)


def _table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """(line number, the wanted columns) of a tab-separated file without quoting whose first line names its columns."""
    places: list[int] = []
    header: list[str] = []
    for number, raw in enumerate(read_lines(path), start=1):
        row = decode_line(raw, path, number).split("\t")
        if number == 1:
            header = row
            if missing := [column for column in columns if column not in header]:
                there = ", ".join(map(repr, header))
                raise UserError(f"{path}, line 1: no column {missing[0]!r}; the columns, parted by tabs, are {there}")
            places = [header.index(column) for column in columns]
        elif len(row) != len(header):
            raise UserError(f"{path}, line {number}: {len(row)} columns, but the first line names {len(header)}")
        else:
            yield number, [row[place] for place in places]


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("FILE, line N", the object) of every line that is not empty."""
    for number, raw in enumerate(read_lines(path), start=1):
        line, place = decode_line(raw, path, number), f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{place}: not valid JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise UserError(f"{place}: {line[:60]!r} is no JSON object")
        yield place, row


def _text(row: dict[str, Any], field: str, place: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or (field == "source" and not value.strip()):
        raise UserError(f"{place}: {field} is {value!r}, not a text")
    return value


def _known(row: dict[str, Any], place: str, reader: Votes | Rankings) -> tuple[Any, ...]:
    """The fields of a JSON line that may be absent, in the order of RatingRow."""
    optional = ("reference", "system", "document", "rater")
    reference, *others = (_text(row, field, place) if field in row else "" for field in optional)
    return reference or None, *others, _set_name(reader.path), reader.language_pair


def _number(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{place} is {text!r}, not a finite number")
    return value


def _set_name(path: Path) -> str:
    """The file's name without its ending: mqm_ted_ende of mqm_ted_ende.tsv.gz."""
    name = path.name.removesuffix(".gz")
    return name.rpartition(".")[0] or name
