"""Human ratings of translations as columns: one kind of record, whoever rated and however.

What reads them is in files.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from scipy import sparse

from rest.errors import UserError


@dataclass(frozen=True, eq=False)
class Ratings:
    """n rated hypotheses as columns. A higher score is a better translation; "" stands for what is not known."""

    sources: list[str]
    hypotheses: list[str]
    scores: np.ndarray  # float64 [n]
    groups: np.ndarray  # int64 [n]; rows of a group translate the same source and may be compared with each other
    references: list[str | None]
    systems: list[str]  # what wrote the hypothesis
    documents: list[str]
    raters: list[str]  # "": the mean of several
    sets: list[str]  # where the rating is from; scores of different sets are not on one scale
    language_pairs: list[str]

    def __len__(self) -> int:
        return len(self.sources)

    def take(self, rows: np.ndarray | slice | list[int]) -> Ratings:
        """The rows (indices or bool [n]) in the given order; groups keep their numbers."""
        rows = np.arange(len(self))[rows]
        columns = (getattr(self, field.name) for field in dataclasses.fields(self))
        taken: Iterable[Any] = (x[rows] if isinstance(x, np.ndarray) else [x[r] for r in rows] for x in columns)
        return Ratings(*taken)

    def cleaned(self, line: Callable[[str], str]) -> Ratings:
        """With every text as `line` writes it."""
        sources, hypotheses = ([line(text) for text in side] for side in (self.sources, self.hypotheses))
        references = [None if text is None else line(text) for text in self.references]
        return dataclasses.replace(self, sources=sources, hypotheses=hypotheses, references=references)

    def with_scores(self, scores: np.ndarray) -> Ratings:
        return dataclasses.replace(self, scores=scores)

    @property
    def all_references(self) -> list[str] | None:
        """The references, or None where a row has none."""
        known = [reference for reference in self.references if reference is not None]
        return known if len(known) == len(self) else None

    @property
    def kinds(self) -> list[tuple[str, str]]:
        """Each row's set and language pair: rows of one kind have scores on one scale."""
        return list(zip(self.sets, self.language_pairs, strict=True))


class RatingRow(NamedTuple):
    """One rating on its way into the columns; `group` is any key."""

    source: str
    hypothesis: str
    score: float
    group: Hashable
    reference: str | None
    system: str
    document: str
    rater: str
    set_name: str
    language_pair: str


def from_rows(rows: Iterable[RatingRow]) -> Ratings:
    """At least one row as columns; groups are numbered in the order of their first rows."""
    sources, hypotheses, scores, groups, *others = (list(column) for column in zip(*rows, strict=True))
    return Ratings(sources, hypotheses, np.array(scores, np.float64), _numbered(groups), *others)


def _numbered(keys: Iterable[Hashable]) -> np.ndarray:
    """int64 [n]: equal keys have equal numbers, from 0 in the order in which they come."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


# Operations on ratings


def standardise(ratings: Ratings, keys: Sequence[Hashable]) -> Ratings:
    """Scores to mean 0 and standard deviation 1 (z) among the rows with the same key; 0 where they do not vary."""
    numbers, scores = _numbered(keys), ratings.scores
    rows = np.bincount(numbers)
    centred = scores - (np.bincount(numbers, scores) / rows)[numbers]
    spread = np.sqrt(np.bincount(numbers, centred**2) / rows)[numbers]
    return ratings.with_scores(np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-9))


def mix(sets: Sequence[Ratings]) -> Ratings:
    """Ratings of several sets as one; each set and language pair is standardised, unless there is only one."""
    if len(sets) == 1:
        return sets[0]
    columns: list[list[Any]] = [
        [getattr(ratings, field.name) for ratings in sets] for field in dataclasses.fields(Ratings)
    ]
    merged: Iterable[Any] = (np.concatenate(x) if isinstance(x[0], np.ndarray) else list(chain(*x)) for x in columns)
    joined = Ratings(*merged)
    file = np.repeat(np.arange(len(sets)), [len(ratings) for ratings in sets]).tolist()
    groups = _numbered(zip(file, joined.groups.tolist(), strict=True))
    return standardise(dataclasses.replace(joined, groups=groups), list(zip(file, joined.kinds, strict=True)))


def by_kind(ratings: Ratings) -> list[Ratings]:
    """The ratings of each set and language pair, in the order of their first rows."""
    kinds = ratings.kinds
    return [ratings.take(np.array([kind == each for kind in kinds])) for each in dict.fromkeys(kinds)]


def average_raters(ratings: Ratings) -> Ratings:
    """One row for each rated hypothesis of a group and system: the mean of its raters' scores, at its first row."""
    numbers = _numbered(zip(ratings.groups.tolist(), ratings.systems, ratings.hypotheses, strict=True))
    means = np.bincount(numbers, ratings.scores) / np.bincount(numbers)
    first = np.unique(numbers, return_index=True)[1]
    # rounded, so that equal means are equal numbers: ties count when people are compared with metrics
    averaged = ratings.take(first).with_scores(np.round(means, 6))
    return dataclasses.replace(averaged, raters=[""] * len(averaged))


def pairs_within(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of rows of one group, each once: two int64 [pairs], the first of a pair before the second."""
    order = np.argsort(groups, kind="stable")
    sizes = np.unique(groups, return_counts=True)[1]
    starts = np.cumsum(sizes) - sizes
    left, right = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for size in np.unique(sizes[sizes > 1]):
        i, j = np.triu_indices(size, 1)
        begins = starts[sizes == size][:, None]
        left.append((begins + i).ravel())
        right.append((begins + j).ravel())
    return order[np.concatenate(left)], order[np.concatenate(right)]


# Splitting


@dataclass(frozen=True)
class SplitSettings:
    """How ratings are divided into train, dev and test."""

    seed: int = 0  # decides which documents go where
    dev_share: float = 0.1  # share of the rows, reached or passed by the last document
    test_share: float = 0.1  # the same for test
    test_sets: tuple[str, ...] = ()  # sets that are for test as a whole, with all that shares a document with them

    def __post_init__(self) -> None:
        if min(self.dev_share, self.test_share) < 0 or self.dev_share + self.test_share >= 1:
            raise UserError(
                f"dev_share {self.dev_share} and test_share {self.test_share} must not be below 0, "
                "and must leave something to train on"
            )


class RatingSplits(NamedTuple):
    train: Ratings
    dev: Ratings
    test: Ratings


def split(ratings: Ratings, settings: SplitSettings) -> RatingSplits:
    """Whole documents to each part, and no source in two; a row without a document goes by its source.

    Documents that share a source, or have the same name in several sets, stay together. The order of the rows does not
    matter. UserError where a part that was asked for stays empty, and for a set that is not there.
    """
    for name in settings.test_sets:
        if name not in ratings.sets:
            raise UserError(f"test_sets: {name!r} is none of {', '.join(sorted(set(ratings.sets)))}")
    units = _units(ratings)
    names: dict[int, str] = {}
    for unit, source in zip(units.tolist(), ratings.sources, strict=True):
        names[unit] = min(source, names.get(unit, source))
    order = sorted(names, key=lambda unit: names[unit])
    rows = np.bincount(units)
    wanted = [("test", settings.test_share * len(ratings)), ("dev", settings.dev_share * len(ratings))]
    part_of = np.zeros(len(rows), np.int64)  # 0: train
    shuffled = iter(np.random.default_rng(settings.seed).permutation(order).tolist())
    for part, (_, share) in enumerate(wanted, start=1):
        taken = 0
        while taken < share and (unit := next(shuffled, None)) is not None:
            part_of[unit], taken = part, taken + rows[unit]
    part_of[units[np.isin(ratings.sets, settings.test_sets)]] = 1
    test, dev, train = (ratings.take(part_of[units] == part) for part in (1, 2, 0))
    for name, rated, share in (("train", train, 1.0), ("dev", dev, wanted[1][1]), ("test", test, wanted[0][1])):
        if share and not len(rated):
            raise UserError(f"{len(order)} documents (those that share a source are one) leave none for {name}")
    return RatingSplits(train, dev, test)


def source_keys(sources: Iterable[str]) -> np.ndarray:
    """The different sources as hashes, uint64, ascending: what was trained on can be known without keeping its text."""
    digests = {hashlib.sha256(source.encode()).digest()[:8] for source in sources}
    return np.sort(np.frombuffer(b"".join(digests), np.uint64))


def seen_rows(sources: Sequence[str], known: np.ndarray) -> Bool[np.ndarray, "n"]:
    """Which of n sources are among the `known` keys."""
    digests = b"".join(hashlib.sha256(source.encode()).digest()[:8] for source in sources)
    return np.isin(np.frombuffer(digests, np.uint64), known)


def unseen(ratings: Ratings, seen: Bool[np.ndarray, "n"]) -> Ratings:
    """The rows of documents of which no row was seen. UserError where none is left."""
    units = _units(ratings)
    left = ratings.take(~np.isin(units, units[seen]))
    if not len(left):
        raise UserError(f"the reward was trained on sources of all {len(set(units.tolist()))} documents")
    return left


def _units(ratings: Ratings) -> np.ndarray:
    """int64 [n]: what may not be divided, the connected components of sources and documents."""
    sources = _numbered(ratings.sources)
    # a row without a document is joined to its own source alone
    named = zip(ratings.documents, ratings.sources, strict=True)
    documents = _numbered(document or ("", source) for document, source in named)
    size = int(sources.max()) + 1 + int(documents.max()) + 1
    edges = sparse.coo_array((np.ones(len(ratings)), (sources, sources.max() + 1 + documents)), (size, size))
    return sparse.csgraph.connected_components(edges, directed=False)[1][sources].astype(np.int64)
