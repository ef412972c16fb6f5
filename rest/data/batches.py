"""Training batches: pairs of ids packed into rows, shuffled and sharded by Grain.

Several pairs share a row, told apart by segment ids, so that one compiled shape serves every length and little is
padding. Which pairs share a row is planned once; every epoch shuffles the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from rest.data.segments import Segments
from rest.errors import UserError

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
    token_columns: Mapping[str, Sequence[np.ndarray]] = field(
        default_factory=dict
    )  # [n] float32 [tokens], one per target token

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: np.ndarray) -> Examples:
        """The pairs of these rows (int [k]), in their order; the same pair may come again."""
        of_sources = {} if self.source_of is None else {"source_of": self.source_of[rows]}
        sources = [self.sources[r] for r in rows] if self.source_of is None else self.sources
        return replace(
            self,
            sources=sources,
            targets=[self.targets[r] for r in rows],
            columns={name: values[rows] for name, values in self.columns.items()},
            groups=None if self.groups is None else self.groups[rows],
            token_columns={name: [values[r] for r in rows] for name, values in self.token_columns.items()},
            **of_sources,
        )

    def source(self, pair: int | np.integer) -> Ids:
        return self.sources[int(pair if self.source_of is None else self.source_of[pair])]


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
    return np.asarray(
        [
            len(examples.source(pair)) <= settings.source_tokens and len(target) <= settings.target_tokens
            for pair, target in enumerate(examples.targets)
        ],
        bool,
    )


@dataclass(frozen=True)
class Plan:
    """Which pairs share which row."""

    rows: list[np.ndarray]  # int64, the pairs of each row, in their order
    max_pairs: int  # Q
    padding: float  # share of target positions that hold no token


def plan_rows(examples: Examples, settings: BatchSettings, seed: int) -> Plan:
    """First-fit-decreasing packing within shuffled windows of 2,048 pairs.

    A window, and not the whole set, is sorted, so that rows stay a random mixture of the corpus. A pair that does
    not fit into a row is a UserError.
    """
    source_lengths = np.fromiter((len(examples.source(pair)) for pair in range(len(examples))), np.int64, len(examples))
    target_lengths = np.fromiter((len(t) for t in examples.targets), np.int64, len(examples))
    fits = fitting(examples, settings)
    if not fits.all():
        pair = int(fits.argmin())
        raise UserError(
            f"batch: pair {pair} has {source_lengths[pair]} source and {target_lengths[pair]} target tokens, more "
            f"than source_tokens {settings.source_tokens} or target_tokens {settings.target_tokens}"
        )
    units = _units(examples, source_lengths, target_lengths, settings)
    shared = examples.source_of is not None  # then the pairs of a unit have one source
    source_sums = np.asarray([source_lengths[unit[:1] if shared else unit].sum() for unit in units], np.int64)
    target_sums = np.asarray([target_lengths[unit].sum() for unit in units], np.int64)
    order = np.random.default_rng(seed).permutation(len(units))
    rows: list[np.ndarray] = []
    for start in range(0, len(order), 2048):
        window = order[start : start + 2048]
        window = window[np.argsort(-np.maximum(source_sums, target_sums)[window], kind="stable")]
        packed = _pack(window, source_sums, target_sums, settings)
        rows.extend(np.concatenate([units[unit] for unit in row]) for row in packed)
    max_pairs = bucket(max((len(row) for row in rows), default=1))  # few programs to compile, whatever the examples
    positions = max(1, len(rows) * settings.target_tokens)
    return Plan(rows, max_pairs, 1.0 - float(target_lengths.sum()) / positions)


def _units(
    examples: Examples, source_lengths: np.ndarray, target_lengths: np.ndarray, settings: BatchSettings
) -> list[np.ndarray]:
    """What must share a row: every pair for itself, or a group's or a source's pairs, cut where they outgrow a row."""
    shared = examples.source_of is not None
    groups = examples.source_of if examples.groups is None else examples.groups
    if groups is None:
        return list(np.arange(len(examples))[:, None])
    order = np.argsort(groups, kind="stable")
    units: list[list[int]] = []
    last, source_room, target_room = None, 0, 0
    for pair in order:
        source_room, target_room = source_room - source_lengths[pair] * (not shared), target_room - target_lengths[pair]
        if groups[pair] != last or min(source_room, target_room) < 0:
            units.append([])
            source_room = settings.source_tokens - source_lengths[pair]
            target_room = settings.target_tokens - target_lengths[pair]
        units[-1].append(int(pair))
        last = groups[pair]
    return [np.asarray(unit, np.int64) for unit in units]


def _pack(
    window: np.ndarray, source_lengths: np.ndarray, target_lengths: np.ndarray, settings: BatchSettings
) -> list[np.ndarray]:
    """Put each unit, longest first, into the first row that has room on both sides."""
    source_room = np.zeros(len(window), np.int64)
    target_room = np.zeros(len(window), np.int64)
    contents: list[list[int]] = []
    for pair in window:
        source, target = source_lengths[pair], target_lengths[pair]
        opened = len(contents)
        fits = (source_room[:opened] >= source) & (target_room[:opened] >= target)
        row = int(fits.argmax()) if fits.any() else opened
        if row == opened:
            contents.append([])
            source_room[row], target_room[row] = settings.source_tokens, settings.target_tokens
        contents[row].append(int(pair))
        source_room[row] -= source
        target_room[row] -= target
    return [np.asarray(row, np.int64) for row in contents]


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
                token_columns[name][t : t + n] = of_tokens[pair]
            t += n
        return Batch(**out, columns=columns, token_columns=token_columns)


def training_batches(
    examples: Examples,
    settings: BatchSettings,
    *,
    pad_id: int,
    seed: int,
    epochs: int | None = None,
    process: tuple[int, int] = (0, 1),
) -> tuple[grain.DatasetIterator[Batch], Plan]:
    """An endless (or `epochs` long) iterator over batches, and the plan that it follows.

    The iterator's `get_state` and `set_state` save and restore the position. `process` is (index, count): each
    process reads its own share of the rows.
    """
    plan = plan_rows(examples, settings, seed)
    index, count = process
    rows: Any = grain.MapDataset.source(plan.rows[index::count])
    assembled = rows.seed(seed).shuffle().repeat(epochs).map(_Assemble(examples, settings, plan.max_pairs, pad_id))
    batches = assembled.batch(settings.rows // count or 1, drop_remainder=epochs is None)
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


def evaluation_batches(examples: Examples, settings: BatchSettings, *, pad_id: int) -> list[Batch]:
    """All examples once, packed, in fixed batches; the last one is filled up with empty rows."""
    plan = plan_rows(examples, settings, seed=0)
    assemble = _Assemble(examples, settings, plan.max_pairs, pad_id)
    batches = []
    empty = np.empty(0, np.int64)
    for start in range(0, len(plan.rows), settings.rows):
        rows = plan.rows[start : start + settings.rows]
        rows += [empty] * (settings.rows - len(rows))
        batches.append(jax.tree.map(lambda *parts: np.stack(parts), *[assemble(row) for row in rows]))
    return batches


def minibatches(examples: Examples, settings: BatchSettings, *, pad_id: int, seed: int) -> list[Batch]:
    """All examples once, packed.

    Rows are shuffled and shared evenly between batches, and batches filled up with empty rows: whatever the examples,
    the shapes are the same, so that one program serves every rollout.
    """
    plan = plan_rows(examples, settings, seed)
    assemble = _Assemble(examples, settings, settings.target_tokens, pad_id)  # no pair is shorter than a token
    empty = np.empty(0, np.int64)
    order = np.random.default_rng(seed).permutation(len(plan.rows))
    batches = []
    for part in np.array_split(order, -(-len(order) // settings.rows)):
        rows = [plan.rows[k] for k in part] + [empty] * (settings.rows - len(part))
        batches.append(jax.tree.map(lambda *leaves: np.stack(leaves), *[assemble(row) for row in rows]))
    return batches


def gather_tokens(parts: Iterable[tuple[Batch, np.ndarray]], pairs: int) -> list[np.ndarray]:
    """Values of packed target tokens [B, T] by pair: `pairs` arrays of [tokens]. The way back from packing."""
    out: list[np.ndarray] = [np.empty(0, np.float32)] * pairs
    for batch, values in parts:
        for row, slot in zip(*np.nonzero(batch.real), strict=True):
            out[batch.sequence_ids[row, slot]] = values[row][batch.target_segments[row] == slot + 1]
    return out
