"""Training batches: pairs of ids packed into rows, shuffled and sharded by Grain.

Several pairs share a row, told apart by segment ids, so that one compiled shape serves every length and little is
padding. Which pairs share a row is planned once; every epoch shuffles the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from rest.data.packing import pack
from rest.data.ragged import Ragged, lengths_of
from rest.data.segments import Segments
from rest.errors import UserError, refuse_below

Ids = Sequence[int] | np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Packed pairs. B rows, S source and T target positions, Q pairs per row at most. Segment 0 is padding."""

    source: Any  # int32 [B, S], each source ends in EOS
    source_segments: Any  # int32 [B, S], 1.. for the pairs of the row
    source_positions: Any  # int32 [B, S], from 0 in each pair
    target_input: Any  # int32 [B, T], the target shifted right: starts with the padding id
    target: Any  # int32 [B, T], labels
    target_segments: Any  # int32 [B, T]
    target_positions: Any  # int32 [B, T]
    target_sources: Any  # int32 [B, T], the source segment that a token's pair belongs to
    sequence_ids: Any  # int32 [B, Q], row of the dataset that each segment comes from; -1: none
    columns: dict[str, Any]  # float32 [B, Q], one number per sequence
    token_columns: dict[str, Any] = field(default_factory=dict)  # float32 [B, T], one number per target token

    @property
    def targets(self) -> Segments:
        """Which pair each target token is of."""
        return Segments(self.target_segments)

    @property
    def sequences(self) -> int:
        """Q."""
        return int(self.sequence_ids.shape[-1])

    @property
    def real(self) -> Any:
        """Which of the Q sequences a row has, bool [B, Q]."""
        return self.sequence_ids >= 0

    def source_mask(self) -> Bool[Array, "B S S"]:
        """What a source token may attend to: its own source."""
        return _together(self.source_segments, self.source_segments)

    def target_mask(self, causal: bool = True) -> Bool[Array, "B T T"]:
        """What a target token may attend to: its own target, and where `causal` nothing after itself."""
        own = _together(self.target_segments, self.target_segments)
        return own & jnp.tril(jnp.ones((own.shape[1],) * 2, bool))[None] if causal else own

    def cross_mask(self) -> Bool[Array, "B T S"]:
        """What of the sources a target token may attend to: the source of its pair."""
        return _together(self.target_sources, self.source_segments)


def _together(queries: Any, keys: Any) -> Bool[Array, "B _ _"]:
    """Which key is real and of the same segment as the query."""
    return (queries[:, :, None] == keys[:, None, :]) & (keys > 0)[:, None]


@dataclass(frozen=True)
class Examples:
    """Tokenised pairs, by row. Targets hold EOS where the hypothesis ended, as stored; nothing adds it later."""

    sources: Sequence[Ids]
    targets: Sequence[Ids]
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)  # float32 [n], one number per pair
    groups: np.ndarray | None = None  # int64 [n]: pairs of one group share a row, as far as they fit into one
    source_of: np.ndarray | None = None  # int64 [n]: where in `sources` each target's is; pairs of one source share it
    # [n] float32 [tokens], one per target token, or [0] for a pair that has none, which is 0 in a batch
    token_columns: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: np.ndarray) -> Examples:
        """The pairs of these rows (int [k]), in their order; the same pair may come again."""
        of_sources = {} if self.source_of is None else {"source_of": self.source_of[rows]}
        return replace(
            self,
            sources=_rows_of(self.sources, rows) if self.source_of is None else self.sources,
            targets=_rows_of(self.targets, rows),
            columns={name: values[rows] for name, values in self.columns.items()},
            groups=None if self.groups is None else self.groups[rows],
            token_columns={name: _rows_of(values, rows) for name, values in self.token_columns.items()},
            **of_sources,
        )

    def followed_by(self, pairs: Examples) -> Examples:
        """These pairs, then others; neither has columns or groups."""
        source_of = None
        if self.source_of is not None or pairs.source_of is not None:
            first, second = (np.arange(len(of)) if of.source_of is None else of.source_of for of in (self, pairs))
            source_of = np.concatenate([first, len(self.sources) + second])
        sources, targets = _joined(self.sources, pairs.sources), _joined(self.targets, pairs.targets)
        return Examples(sources, targets, source_of=source_of)

    def source(self, pair: int | np.integer) -> Ids:
        return self.sources[int(pair if self.source_of is None else self.source_of[pair])]

    @cached_property
    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of each pair's source and target, int32 [n]."""
        sources = lengths_of(self.sources)
        return sources if self.source_of is None else sources[self.source_of], lengths_of(self.targets)


def _joined(first: Sequence[Ids], second: Sequence[Ids]) -> Sequence[Ids]:
    if isinstance(first, Ragged) and isinstance(second, Ragged):
        return first.followed_by(second)
    return [*first, *second]


def _rows_of(values: Sequence[Any], rows: np.ndarray) -> Sequence[Any]:
    return values.take(rows) if isinstance(values, Ragged) else [values[r] for r in rows]


@dataclass(frozen=True)
class BatchSettings:
    """Shape of a training batch."""

    batch_tokens: int = 2048
    """Target positions of a batch, padding included; rows x target_tokens."""
    source_tokens: int = 96
    """Positions of a packed row on the source side; a longer source is an error."""
    target_tokens: int = 96
    """Positions of a packed row on the target side; a longer target is an error."""
    share_sources: bool = False
    """Encode a source once for all its hypotheses in a row; pays where target_tokens is some times source_tokens."""

    def __post_init__(self) -> None:
        refuse_below("batch.", self, {"batch_tokens": 1, "source_tokens": 1, "target_tokens": 1})

    @property
    def rows(self) -> int:
        return max(1, self.batch_tokens // self.target_tokens)


@dataclass(frozen=True)
class BatchOverrides:
    """What a stage has otherwise than the experiment's `batch`; None: as there."""

    batch_tokens: int | None = None
    source_tokens: int | None = None
    target_tokens: int | None = None
    share_sources: bool | None = None

    def of(self, shared: BatchSettings) -> BatchSettings:
        """The experiment's settings with these in their place."""
        return replace(shared, **{name: value for name, value in vars(self).items() if value is not None})


def fitting(examples: Examples, settings: BatchSettings) -> np.ndarray:
    """Which pairs fit into a row on both sides, bool [n]."""
    sources, targets = examples.lengths
    return (sources <= settings.source_tokens) & (targets <= settings.target_tokens)


@dataclass(frozen=True)
class Plan:
    """Which pairs share which row."""

    rows: Ragged  # int32, the pairs of each row, in their order
    max_pairs: int  # Q
    padding: float  # share of target positions that hold no token


def plan_rows(examples: Examples, settings: BatchSettings, seed: int) -> Plan:
    """First-fit-decreasing packing within shuffled windows of 2,048 pairs (packing.py).

    Pairs of a group, or of a source that is shared, keep together. A pair that does not fit into a row is a UserError.
    """
    sources, targets = examples.lengths
    fits = fitting(examples, settings)
    if not fits.all():
        pair = int(fits.argmin())
        raise UserError(
            f"batch: pair {pair} has {sources[pair]} source and {targets[pair]} target tokens, more "
            f"than source_tokens {settings.source_tokens} or target_tokens {settings.target_tokens}"
        )
    room, shared = (settings.source_tokens, settings.target_tokens), examples.source_of is not None
    groups = examples.source_of if examples.groups is None else examples.groups
    rows = pack(sources, targets, room, seed, groups, shared)
    most, max_pairs = int(rows.lengths.max(initial=1)), 16
    while max_pairs < most:  # few programs to compile, whatever the examples
        max_pairs *= 4
    positions = max(1, len(rows) * settings.target_tokens)
    return Plan(rows, max_pairs, 1.0 - float(targets.sum(dtype=np.int64)) / positions)


@dataclass(frozen=True)
class _Assemble:
    """One planned row as arrays without the batch axis."""

    examples: Examples
    settings: BatchSettings
    max_pairs: int
    pad_id: int

    def __call__(self, row: np.ndarray) -> Batch:
        width, height = self.settings.source_tokens, self.settings.target_tokens
        out = {
            "source": np.full(width, self.pad_id, np.int32),
            "source_segments": np.zeros(width, np.int32),
            "source_positions": np.zeros(width, np.int32),
            "target_input": np.full(height, self.pad_id, np.int32),
            "target": np.full(height, self.pad_id, np.int32),
            "target_segments": np.zeros(height, np.int32),
            "target_positions": np.zeros(height, np.int32),
            "target_sources": np.zeros(height, np.int32),
            "sequence_ids": np.full(self.max_pairs, -1, np.int32),
        }
        columns = {name: np.zeros(self.max_pairs, np.float32) for name in self.examples.columns}
        token_columns = {name: np.zeros(height, np.float32) for name in self.examples.token_columns}
        shared = self.examples.source_of
        s = t = sources = 0
        for segment, pair in enumerate(row, start=1):
            target = self.examples.targets[pair]
            n = len(target)
            if shared is None or segment == 1 or shared[pair] != shared[row[segment - 2]]:
                source = self.examples.source(pair)
                m, sources = len(source), sources + 1
                out["source"][s : s + m] = source
                out["source_segments"][s : s + m] = sources
                out["source_positions"][s : s + m] = np.arange(m)
                s += m
            out["target_sources"][t : t + n] = sources
            out["target"][t : t + n] = target
            out["target_input"][t + 1 : t + n] = target[:-1]
            out["target_segments"][t : t + n] = segment
            out["target_positions"][t : t + n] = np.arange(n)
            out["sequence_ids"][segment - 1] = pair
            for name, values in self.examples.columns.items():
                columns[name][segment - 1] = values[pair]
            for name, of_tokens in self.examples.token_columns.items():
                if len(numbers := of_tokens[pair]):
                    token_columns[name][t : t + n] = numbers
            t += n
        return Batch(**out, columns=columns, token_columns=token_columns)


@dataclass(frozen=True)
class Share:
    """Some rows of a batch, as numpy, and which they are: what one of several processes assembles of it."""

    batch: Batch  # k rows
    rows: np.ndarray  # int64 [k], rising
    of: int  # rows of the whole batch

    @classmethod
    def whole(cls, batch: Batch) -> Share:
        return cls(batch, np.arange(len(batch.target)), len(batch.target))


@dataclass(frozen=True)
class _AssembleSome:
    """Some of a batch's planned rows, side by side."""

    assemble: _Assemble
    chosen: np.ndarray | None  # None: all

    def __call__(self, rows: Sequence[np.ndarray]) -> Batch:
        chosen = range(len(rows)) if self.chosen is None else self.chosen
        return jax.tree.map(lambda *parts: np.stack(parts), *[self.assemble(rows[k]) for k in chosen])


def training_batches(
    examples: Examples,
    settings: BatchSettings,
    *,
    pad_id: int,
    seed: int,
    epochs: int | None = None,
    held: np.ndarray | None = None,
) -> tuple[grain.DatasetIterator[Batch], Plan]:
    """An endless (or `epochs` long) iterator over batches, and the plan that it follows.

    The iterator's `get_state` and `set_state` save and restore the position. Of each batch only the rows `held` are
    assembled, rising, by default all: which batch has which rows is the same whatever a process holds.
    """
    plan = plan_rows(examples, settings, seed)
    rows: Any = grain.MapDataset.source(plan.rows)
    planned = (
        rows.seed(seed).shuffle().repeat(epochs).batch(settings.rows, drop_remainder=epochs is None, batch_fn=list)
    )
    batches = planned.map(_AssembleSome(_Assemble(examples, settings, plan.max_pairs, pad_id), held))
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8))), plan


def pad(rows: Sequence[Ids], width: int, pad_id: int) -> np.ndarray:
    """Rows of ids side by side, int32 [len(rows), width]."""
    out = np.full((len(rows), width), pad_id, np.int32)
    for r, row in enumerate(rows):
        out[r, : len(row)] = row
    return out


def bucket(tokens: int) -> int:
    """The least of 16, 24, 32, 48, 64, 96, ... that holds so many tokens: few widths to compile, little padding."""
    power = 1 << max(4, (tokens - 1).bit_length())
    return power * 3 // 4 if 16 < tokens <= power * 3 // 4 else power


def padded_batches(
    rows: Sequence[Ids], batch_tokens: int, *, pad_id: int, devices: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All rows once, like lengths together: (which rows, int64 [n]; ids, int32 [B, S]; mask, bool [B, S]).

    S is the `bucket` of the longest row and B what gives about `batch_tokens` positions, a multiple of `devices`, so
    few shapes are compiled. n is below B in the last batch, which is filled up with empty rows.
    """
    lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        width = bucket(int(lengths[order[start]]))
        height = max(1, batch_tokens // width // devices) * devices
        part = order[start : start + height]
        ids, mask = np.full((height, width), pad_id, np.int32), np.zeros((height, width), bool)
        ids[: len(part)] = pad([rows[i] for i in part], width, pad_id)
        mask[: len(part)] = np.arange(width) < lengths[part, None]
        yield part, ids, mask
        start += height


@dataclass(frozen=True)
class Packed:
    """Batches of planned rows, each assembled when it is asked for."""

    assemble: _Assemble
    rows: list[list[np.ndarray]]  # of each batch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, batch: int) -> Batch:
        return _AssembleSome(self.assemble, None)(self.rows[batch])

    def __iter__(self) -> Iterator[Batch]:
        return self.part(slice(None))

    def part(self, chosen: slice) -> Iterator[Batch]:
        """Some of them."""
        return (self[k] for k in range(*chosen.indices(len(self))))


def evaluation_batches(examples: Examples, settings: BatchSettings, *, pad_id: int, devices: int = 1) -> Packed:
    """All examples once, packed, in fixed batches of rows that the devices divide; the last is filled with empty rows.

    Nothing is left out of an evaluation: where a pair needs it, rows are longer than the settings say, and fewer.
    """
    settings = for_devices(_holding(examples, settings), devices)
    plan = plan_rows(examples, settings, seed=0)
    starts = range(0, len(plan.rows), settings.rows)
    batches = [_filled(list(plan.rows[start : start + settings.rows]), settings) for start in starts]
    return Packed(_Assemble(examples, settings, plan.max_pairs, pad_id), batches)


def for_devices(settings: BatchSettings, devices: int) -> BatchSettings:
    """With as many rows more as make them a multiple of the devices."""
    return replace(settings, batch_tokens=-(-settings.rows // devices) * devices * settings.target_tokens)


def _holding(examples: Examples, settings: BatchSettings) -> BatchSettings:
    """With rows that are long enough for every pair, and fewer by as much as they are longer."""
    if fitting(examples, settings).all():
        return settings
    source, target = (bucket(int(lengths.max())) for lengths in examples.lengths)
    longer = max(source / settings.source_tokens, target / settings.target_tokens)
    source, target = max(source, settings.source_tokens), max(target, settings.target_tokens)
    rows = max(1, int(settings.rows / longer))
    return replace(settings, batch_tokens=rows * target, source_tokens=source, target_tokens=target)


def minibatches(examples: Examples, settings: BatchSettings, *, pad_id: int, seed: int, devices: int = 1) -> Packed:
    """All examples once, packed, in batches of rows that the devices divide.

    Rows are shuffled and shared evenly between batches, and batches filled up with empty rows: whatever the examples,
    the shapes are the same, so that one program serves every rollout.
    """
    settings = for_devices(settings, devices)
    plan = plan_rows(examples, settings, seed)
    order = np.random.default_rng(seed).permutation(len(plan.rows))
    batches = [
        _filled([plan.rows[k] for k in part], settings)
        for part in np.array_split(order, -(-len(order) // settings.rows))
    ]
    return Packed(_Assemble(examples, settings, settings.target_tokens, pad_id), batches)  # no pair is below a token


def _filled(rows: list[np.ndarray], settings: BatchSettings) -> list[np.ndarray]:
    """The rows of a batch, some of them empty."""
    return rows + [np.empty(0, np.int64)] * (settings.rows - len(rows))


def gather_tokens(parts: Iterable[tuple[Batch, np.ndarray]], pairs: int) -> list[np.ndarray]:
    """Values of packed target tokens [B, T] by pair: `pairs` arrays of [tokens]. The way back from packing."""
    out: list[np.ndarray] = [np.empty(0, np.float32)] * pairs
    for batch, values in parts:
        for row, slot in zip(*np.nonzero(batch.real), strict=True):
            out[batch.sequence_ids[row, slot]] = values[row][batch.target_segments[row] == slot + 1]
    return out
