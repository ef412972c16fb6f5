"""N samples a source from a policy.

R slots decode rows (source, sample), each at its own position, and a row that ends makes room for the next: the slots
stay busy. A source is encoded once, and each of its samples takes a copy of its cross-attention keys. A token is drawn
by inverting the cumulative distribution, one uniform number a token, whose key is folded from (seed, grow step, source
id, sample index, position): a hypothesis does not depend on what it is drawn beside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from rest.data.batches import pad
from rest.data.tokenizer import Tokenizer
from rest.errors import UserError
from rest.model.transformer import BLOCKED, Keys
from rest.policy.policy import Policy

T = TypeVar("T")

BLOCK = 64  # entries of the vocabulary that are searched together


@dataclass(frozen=True)
class SamplingSettings:
    """The law that hypotheses are drawn from, and how many are drawn at once."""

    temperature: float = 0.8
    top_k: int = 0
    """Only the k likeliest tokens; 0: the whole vocabulary."""
    top_p: float = 1.0
    """Only the likeliest tokens that together hold this probability."""
    max_target_tokens: int = 64
    """Longest hypothesis, EOS included; a longer one is cut (finish = length)."""
    rows: int = 128
    """Slots: hypotheses decoded at the same time."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"temperature must be above 0, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.top_k < 0 or self.max_target_tokens < 1 or self.rows < 1:
            raise UserError(
                f"top_k {self.top_k} must not be below 0, max_target_tokens {self.max_target_tokens} and rows "
                f"{self.rows} must be at least 1"
            )


@dataclass(frozen=True)
class Hypotheses:
    """n sources x N samples, in the order of the sources."""

    tokens: list[list[np.ndarray]]  # [n][N] int32; ends in EOS when finished is true
    log_probs: list[list[np.ndarray]]  # [n][N] float32, of the policy at temperature 1, nats
    behaviour_log_probs: list[list[np.ndarray]]  # [n][N] float32, of the law sampled from
    finished: np.ndarray  # bool [n, N]: ended by EOS
    decoder_steps: int  # slots x steps that were computed
    tokenizer: Tokenizer

    @cached_property
    def texts(self) -> list[list[str]]:
        """[n][N]"""
        flat = iter(self.tokenizer.decode([y for samples in self.tokens for y in samples]))
        return [[next(flat) for _ in samples] for samples in self.tokens]

    @property
    def useful_steps(self) -> float:
        """Share of the decoder's work that went into tokens of hypotheses."""
        tokens = sum(len(y) for samples in self.tokens for y in samples)
        return tokens / max(1, self.decoder_steps)


class _Draw(NamedTuple):
    token: Array  # int32 [R]
    log_prob: Array  # float32 [R]
    behaviour_log_prob: Array  # float32 [R]


def draw(
    logits: Float[Array, "R V"], uniform: Float[Array, " R"], temperature: float, top_k: int, top_p: float
) -> _Draw:
    """One token a row by inverse CDF: find the block of 64 entries, then the entry. V is a multiple of 64."""
    rows = logits.shape[0]
    total = jax.nn.logsumexp(logits, axis=-1)
    cold = _truncate(logits / temperature, top_k, top_p)
    weights = jnp.exp(cold - cold.max(-1, keepdims=True)).reshape(rows, -1, BLOCK)
    blocks = jnp.cumsum(weights.sum(-1), axis=-1)
    mass = blocks[:, -1]
    point = uniform * mass
    block = (blocks <= point[:, None]).sum(-1)
    # the last block and entry with any mass: rounding must not push the point past the end
    last = weights.shape[1] - 1 - jnp.argmax(weights.sum(-1)[:, ::-1] > 0, axis=-1)
    block = jnp.minimum(block, last)
    before = jnp.where(block > 0, jnp.take_along_axis(blocks, jnp.maximum(block - 1, 0)[:, None], 1)[:, 0], 0.0)
    inside = jnp.take_along_axis(weights, block[:, None, None], 1)[:, 0]
    entries = jnp.cumsum(inside, axis=-1)
    entry = (entries <= (point - before)[:, None]).sum(-1)
    entry = jnp.minimum(entry, BLOCK - 1 - jnp.argmax(inside[:, ::-1] > 0, axis=-1))
    # an entry without mass can be hit when the point falls on a boundary: take the next one that has mass
    reachable = (inside > 0) & (jnp.arange(BLOCK)[None] >= entry[:, None])
    entry = jnp.argmax(reachable, axis=-1)
    token = (block * BLOCK + entry).astype(jnp.int32)
    chosen = jnp.take_along_axis(inside, entry[:, None], 1)[:, 0]
    log_prob = jnp.take_along_axis(logits, token[:, None], 1)[:, 0] - total
    return _Draw(token, log_prob, jnp.log(chosen) - jnp.log(mass))


def _truncate(logits: Float[Array, "R V"], top_k: int, top_p: float) -> Float[Array, "R V"]:
    """Block all but the top k, then all but the smallest set that holds probability top_p (Holtzman et al. 2020)."""
    if top_k:
        threshold = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits >= threshold, logits, BLOCKED)
    if top_p < 1:
        descending = -jnp.sort(-logits, axis=-1)
        probabilities = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        smallest = jnp.where(before < top_p, descending, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits >= smallest, logits, BLOCKED)
    return logits


class _Slots(NamedTuple):
    """R rows that are being decoded, each at its own position; a row that ends makes room for the next."""

    step: Array  # int32, steps done
    cache: list[Keys]  # [R, H, T, K] a layer: a ring, step t writes slot t modulo T
    cross: list[Keys]  # [R, H, S, K] a layer, of the row's source
    lengths: Array  # int32 [R], tokens of the source
    row: Array  # int32 [R], number of the row; -1 where the slot is empty
    keys: Array  # uint32 [R, 2]
    position: Array  # int32 [R], tokens drawn so far
    tokens: Array  # int32 [R, T], these tokens
    log_probs: Array  # float32 [R, T]
    behaviour: Array  # float32 [R, T]


class _Queue(NamedTuple):
    """Q rows that wait for a slot, of B sources that are encoded."""

    cross: list[Keys]  # [B, H, S, K] a layer
    lengths: Array  # int32 [B], tokens of the source
    source: Array  # int32 [Q], the row's source in the block
    row: Array  # int32 [Q], number of the row; -1 past the end
    keys: Array  # uint32 [Q, 2]


class _Ended(NamedTuple):
    """The rows that have ended, in the order of their ends."""

    rows: Array  # int32, how many
    row: Array  # int32 [M]
    length: Array  # int32 [M]
    tokens: Array  # int32 [M, T]
    log_probs: Array  # float32 [M, T]
    behaviour: Array  # float32 [M, T]


@partial(jax.jit, static_argnames=("graph",))
def _encode(graph: Any, parameters: Any, sources: Int[Array, "B S"], lengths: Int[Array, " B"]) -> list[Keys]:
    network = nnx.merge(graph, parameters)
    positions = jnp.broadcast_to(jnp.arange(sources.shape[1])[None], sources.shape)
    return network.cross_keys(network.encode(sources, positions, (positions < lengths[:, None])[:, None]))


def _begin(slots: _Slots, queue: _Queue, head: Array) -> tuple[_Slots, Array]:
    """Give empty slots to the next rows of the queue, to an eighth of the slots at most. Returns the new head."""
    size = slots.row.shape[0]
    most = -(-size // 8)
    slot = jnp.nonzero(slots.row < 0, size=most, fill_value=size)[0]
    place = head + jnp.arange(most)
    # what is past the end of the queue goes to a slot out of range, which takes nothing
    slot = jnp.where(place < (queue.row >= 0).sum(), slot, size)
    place = jnp.minimum(place, queue.row.shape[0] - 1)
    source = queue.source[place]

    def put(old: Array, new: Array) -> Array:
        return old.at[slot].set(new, mode="drop")

    filled = slots._replace(
        cross=jax.tree.map(lambda old, new: put(old, new[source]), slots.cross, queue.cross),
        lengths=put(slots.lengths, queue.lengths[source]),
        row=put(slots.row, queue.row[place]),
        keys=put(slots.keys, queue.keys[place]),
        position=put(slots.position, jnp.zeros(most, jnp.int32)),
    )
    return filled, head + (slot < size).sum()


@partial(jax.jit, static_argnames=("graph", "settings", "eos"), donate_argnames=("slots",))
def _advance(
    graph: Any, parameters: Any, settings: SamplingSettings, eos: int, slots: _Slots, queue: _Queue, drain: Array
) -> tuple[_Slots, _Ended]:
    """Decode until every row of the queue has begun or, to drain, until every row has ended."""
    network = nnx.merge(graph, parameters)
    size, steps = slots.tokens.shape
    waiting = (queue.row >= 0).sum()
    slot = jnp.arange(size)

    def unfinished(state: tuple[_Slots, _Ended, Array]) -> Array:
        slots, _, head = state
        return (head < waiting) | (drain & (slots.row >= 0).any())

    def step(state: tuple[_Slots, _Ended, Array]) -> tuple[_Slots, _Ended, Array]:
        slots, ended, head = state
        slots, head = _begin(slots, queue, head)
        row, position = slots.row, slots.position
        active = row >= 0
        last = jnp.where(position > 0, slots.tokens[slot, jnp.maximum(position - 1, 0)], network.pad_id)
        mask = jnp.arange(slots.cross[0].keys.shape[2])[None] < slots.lengths[:, None]
        logits, cache = network.decode_step(last, position, slots.step % steps, slots.cache, slots.cross, mask)
        fold = jax.vmap(lambda k, t: jax.random.uniform(jax.random.fold_in(jax.random.wrap_key_data(k), t)))
        drawn = draw(logits, fold(slots.keys, position), settings.temperature, settings.top_k, settings.top_p)
        here = jnp.arange(steps)[None] == position[:, None]

        def put(column: Array, values: Array) -> Array:
            return jnp.where(here, values[:, None], column)

        done = active & ((drawn.token == eos) | (position == steps - 1))
        slots = slots._replace(
            step=slots.step + 1,
            cache=cache,
            row=jnp.where(done, -1, row),
            position=jnp.where(done | ~active, 0, position + 1),
            tokens=put(slots.tokens, drawn.token),
            log_probs=put(slots.log_probs, drawn.log_prob),
            behaviour=put(slots.behaviour, drawn.behaviour_log_prob),
        )
        at = jnp.where(done, ended.rows + jnp.cumsum(done) - 1, ended.row.shape[0])
        values = row, position + 1, slots.tokens, slots.log_probs, slots.behaviour
        kept = (old.at[at].set(new, mode="drop") for old, new in zip(ended[1:], values, strict=True))
        return slots, _Ended(ended.rows + done.sum(), *kept), head

    most = size + queue.row.shape[0]
    nothing = _Ended(
        jnp.int32(0),
        jnp.full(most, -1, jnp.int32),
        jnp.zeros(most, jnp.int32),
        jnp.zeros((most, steps), jnp.int32),
        jnp.zeros((most, steps)),
        jnp.zeros((most, steps)),
    )
    slots, ended, _ = jax.lax.while_loop(unfinished, step, (slots, nothing, jnp.int32(0)))
    return slots, ended


def sample(
    policy: Policy,
    sources: Sequence[str],
    source_ids: np.ndarray,
    samples_per_source: int,
    settings: SamplingSettings,
    *,
    seed: int,
    grow_step: int = 0,
    device: jax.Device | None = None,
    ended: Callable[[int], None] = lambda rows: None,
) -> Hypotheses:
    """Draw `samples_per_source` hypotheses for every source.

    On `device`, by default on all of this process, a share of the sources each. `ended` is told, in the thread
    that samples, how many more hypotheses are whole; what it raises ends the sampling.
    """
    n, devices = len(sources), jax.local_devices() if device is None else [device]
    encoded = policy.encode_sources(sources)
    order = np.argsort([len(x) for x in encoded], kind="stable")
    root = jax.random.key_data(jax.random.fold_in(jax.random.key(seed), grow_step))
    drawn = _Rows.empty(n * samples_per_source)

    def work(number: int) -> int:
        with jax.default_device(devices[number]):
            own = order[number :: len(devices)]
            here = policy.on(devices[number])
            return _draw_all(here, encoded, source_ids, own, samples_per_source, settings, root, drawn, ended)

    with ThreadPoolExecutor(len(devices)) as threads:
        steps = sum(threads.map(work, range(len(devices))))

    def by_source(rows: list[T]) -> list[list[T]]:
        return [rows[i * samples_per_source : (i + 1) * samples_per_source] for i in range(n)]

    last = np.asarray([tokens[-1] for tokens in drawn.tokens], np.int32)
    return Hypotheses(
        by_source(drawn.tokens),
        by_source(drawn.log_probs),
        by_source(drawn.behaviour),
        (last == policy.tokenizer.eos_id).reshape(n, samples_per_source),
        steps * settings.rows,
        policy.tokenizer,
    )


class _Rows(NamedTuple):
    """Whole hypotheses by the number of their row, source by source."""

    tokens: list[np.ndarray]
    log_probs: list[np.ndarray]
    behaviour: list[np.ndarray]

    @classmethod
    def empty(cls, rows: int) -> _Rows:
        return cls(*([np.empty(0)] * rows for _ in cls._fields))

    def put(self, ended: _Ended) -> int:
        """Store the rows that have ended. Returns how many."""
        count, rows, lengths, *columns = (np.asarray(part) for part in ended)
        for at in range(int(count)):
            for kept, column in zip(self, columns, strict=True):
                kept[int(rows[at])] = column[at, : lengths[at]].copy()
        return int(count)


def _draw_all(
    policy: Policy,
    encoded: Sequence[np.ndarray],
    source_ids: np.ndarray,
    order: np.ndarray,
    samples_per_source: int,
    settings: SamplingSettings,
    root: Array,
    drawn: _Rows,
    ended: Callable[[int], None],
) -> int:
    """Draw for the sources `order`, from short to long, into `drawn`. Returns the steps done.

    A program is compiled for each width of sources: 16, 32, 64 and so on.
    """
    graph, parameters, eos = policy.graph, policy.parameters, policy.tokenizer.eos_id
    size = settings.rows
    per_block = max(1, size // 4)
    slots: _Slots | None = None
    waiting: _Ended | None = None  # its rows are fetched while the next are decoded
    for start in range(0, len(order), per_block):
        block = order[start : start + per_block]
        lengths = np.zeros(per_block, np.int32)
        lengths[: len(block)] = [len(encoded[i]) for i in block]
        width = 1 << max(4, int(lengths.max() - 1).bit_length())
        rows = [encoded[i] for i in block] + [np.empty(0, np.int32)] * (per_block - len(block))
        sources = pad(rows, width, policy.tokenizer.pad_id)
        cross = _encode(graph, parameters, sources, lengths)
        slots = _empty_slots(graph, parameters, settings, cross) if slots is None else _widen(slots, width)
        total = len(block) * samples_per_source
        for first in range(0, total, size):
            piece = np.arange(first, min(first + size, total))
            source = np.resize(piece // samples_per_source, size).astype(np.int32)
            sample_index = np.resize(piece % samples_per_source, size)
            row = np.full(size, -1, np.int32)
            row[: len(piece)] = (block[source] * samples_per_source + sample_index)[: len(piece)]
            keys = _row_keys(root, source_ids[block[source]], sample_index)
            queue = _Queue(cross, jnp.asarray(lengths), jnp.asarray(source), jnp.asarray(row), keys)
            last = start + per_block >= len(order) and first + size >= total
            slots, now = _advance(graph, parameters, settings, eos, slots, queue, jnp.asarray(last))
            if waiting is not None:
                ended(drawn.put(waiting))
            waiting = now
    if slots is None or waiting is None:
        return 0
    ended(drawn.put(waiting))
    return int(slots.step)


@partial(jax.jit, static_argnames=("graph", "settings"))
def _empty_slots(graph: Any, parameters: Any, settings: SamplingSettings, cross: list[Keys]) -> _Slots:
    """R empty slots with room for the sources of `cross`."""
    size, steps = settings.rows, settings.max_target_tokens
    return _Slots(
        jnp.int32(0),
        nnx.merge(graph, parameters).empty_cache(size, steps),
        jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape[1:]), leaf.dtype), cross),
        jnp.zeros(size, jnp.int32),
        jnp.full(size, -1, jnp.int32),
        jnp.zeros((size, 2), jnp.uint32),
        jnp.zeros(size, jnp.int32),
        jnp.zeros((size, steps), jnp.int32),
        jnp.zeros((size, steps)),
        jnp.zeros((size, steps)),
    )


def _widen(slots: _Slots, width: int) -> _Slots:
    """The same slots with room for sources of `width` tokens."""

    def wider(leaf: Array) -> Array:
        return jnp.pad(leaf, ((0, 0), (0, 0), (0, width - leaf.shape[2]), (0, 0)))

    return slots._replace(cross=jax.tree.map(wider, slots.cross))


def _row_keys(root: Array, source_ids: np.ndarray, samples: np.ndarray) -> Array:
    """Keys uint32 [R, 2] of rows, folded from (seed, grow step) = `root`, source id and sample index."""
    high, low = (source_ids >> 32).astype(np.uint32), (source_ids & 0xFFFFFFFF).astype(np.uint32)
    return _fold(root, high, low, samples.astype(np.uint32))


@jax.jit
def _fold(root: Array, high: Array, low: Array, sample: Array) -> Array:
    def fold(*parts: Array) -> Array:
        key = jax.random.wrap_key_data(root)
        for part in parts:
            key = jax.random.fold_in(key, part)
        return jax.random.key_data(key)

    return jax.vmap(fold)(high, low, sample)
