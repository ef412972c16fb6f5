"""R slots that decode rows (source, sample), each at its own position: what the accelerator does of sampling.

All shapes are fixed. Every step gives empty slots to rows that wait, decodes one token in each slot, draws it, and
hands out the rows that end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rest.model.attention import BLOCKED
from rest.model.layers import KeysAndValues
from rest.model.network import Network

BLOCK = 64  # entries of the vocabulary that are searched together


@partial(jax.tree_util.register_dataclass, data_fields=["temperature"], meta_fields=["top_k", "top_p", "epsilon"])
@dataclass(frozen=True)
class SamplingDistribution:
    """What tokens are drawn from: the softmax at a temperature, cut to the likeliest. Temperatures share a program."""

    temperature: Any  # float, or what stands for it while a program is traced
    top_k: int = 0
    top_p: float = 1.0
    epsilon: float = 0.0


class _Draw(NamedTuple):
    token: Array  # int32 [R]
    log_prob: Array  # float32 [R]
    behaviour_log_prob: Array  # float32 [R]


def draw_tokens(logits: Float[Array, "R V"], uniform: Float[Array, " R"], distribution: SamplingDistribution) -> _Draw:
    """One token a row by inverse CDF: find the block of 64 entries, then the entry. V is a multiple of 64."""
    rows = logits.shape[0]
    total = jax.nn.logsumexp(logits, axis=-1)
    cold = _truncate(logits / distribution.temperature, distribution)
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


def _truncate(logits: Float[Array, "R V"], distribution: SamplingDistribution) -> Float[Array, "R V"]:
    """Block what is less likely than epsilon (Hewitt et al. 2022, Freitag et al. 2023), but never the likeliest; of the
    rest all but the top k, and then all but the smallest set that holds probability top_p (Holtzman et al. 2020)."""
    top_k, top_p, epsilon = distribution.top_k, distribution.top_p, distribution.epsilon
    if epsilon > 0:
        likely = jax.nn.softmax(logits, axis=-1) >= epsilon
        logits = jnp.where(likely | (logits == logits.max(-1, keepdims=True)), logits, BLOCKED)
    if top_k:
        threshold = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits >= threshold, logits, BLOCKED)
    if top_p < 1:
        descending = -jnp.sort(-logits, axis=-1)
        probabilities = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        smallest = jnp.where(before < top_p, descending, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits >= smallest, logits, BLOCKED)
    return logits


class Slots(NamedTuple):
    """R rows that are being decoded, each at its own position; a row that ends makes room for the next."""

    step: Array  # int32, steps done
    cache: list[KeysAndValues]  # [R, H, C, K] a layer: a ring; step t writes slot t modulo C
    cross: list[KeysAndValues]  # [R, H, S, K] a layer, of the row's source
    lengths: Array  # int32 [R], tokens of the source
    row: Array  # int32 [R], number of the row; -1 where the slot is empty
    keys: Array  # uint32 [R, 2]
    position: Array  # int32 [R], tokens drawn so far; below 0 while ids are given that nobody draws
    tokens: Array  # int32 [R, T], these tokens
    log_probs: Array  # float32 [R, T]
    behaviour: Array  # float32 [R, T]


class Queue(NamedTuple):
    """Q rows that wait for a slot, of B sources that are encoded."""

    cross: list[KeysAndValues]  # [B, H, S, K] a layer
    lengths: Array  # int32 [B], tokens of the source
    source: Array  # int32 [Q], the row's source in the block
    row: Array  # int32 [Q], number of the row; -1 past the end
    keys: Array  # uint32 [Q, 2]


class Ended(NamedTuple):
    """The rows that have ended, in the order of their ends."""

    rows: Array  # int32, how many
    row: Array  # int32 [M]
    length: Array  # int32 [M]
    tokens: Array  # int32 [M, T]
    log_probs: Array  # float32 [M, T]
    behaviour: Array  # float32 [M, T]


@jax.jit
def encode(network: Network, sources: Int[Array, "B S"], lengths: Int[Array, " B"]) -> list[KeysAndValues]:
    """Keys and values of the sources, for every decoder layer."""
    module = network.module
    positions = jnp.broadcast_to(jnp.arange(sources.shape[1])[None], sources.shape)
    return module.cross_keys(module.encode(sources, positions, (positions < lengths[:, None])[:, None]))


def _begin(slots: Slots, queue: Queue, head: Array, position: int) -> tuple[Slots, Array]:
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
        position=put(slots.position, jnp.full(most, position, jnp.int32)),
    )
    return filled, head + (slot < size).sum()


@partial(jax.jit, static_argnames=("eos",), donate_argnames=("slots",))
def advance(
    network: Network, distribution: SamplingDistribution, eos: int, slots: Slots, queue: Queue, going: Int[Array, ""]
) -> tuple[Slots, Ended]:
    """Decode until every row of the queue has begun, and then until no more than `going` rows are left.

    A row that fills the ring before it ends is handed out as it is.
    """
    module = network.module
    (size, steps), ring = slots.tokens.shape, slots.cache[0].keys.shape[2]
    waiting = (queue.row >= 0).sum()
    slot = jnp.arange(size)
    prompt, before = jnp.asarray(module.prompt, jnp.int32), len(module.prompt) - 1

    def unfinished(state: tuple[Slots, Ended, Array]) -> Array:
        slots, _, head = state
        return (head < waiting) | ((slots.row >= 0).sum() > going)

    def step(state: tuple[Slots, Ended, Array]) -> tuple[Slots, Ended, Array]:
        slots, ended, head = state
        slots, head = _begin(slots, queue, head, -before)
        row, position = slots.row, slots.position
        active = row >= 0
        given = prompt[jnp.clip(position + before, 0, before)]
        last = jnp.where(position > 0, slots.tokens[slot, jnp.maximum(position - 1, 0)], given)
        mask = jnp.arange(slots.cross[0].keys.shape[2])[None] < slots.lengths[:, None]
        logits, cache = module.decode_step(last, position + before, slots.step % ring, slots.cache, slots.cross, mask)
        fold = jax.vmap(lambda k, t: jax.random.uniform(jax.random.fold_in(jax.random.wrap_key_data(k), t)))
        drawn = draw_tokens(logits, fold(slots.keys, position), distribution)
        here = jnp.arange(steps)[None] == position[:, None]

        def put(column: Array, values: Array) -> Array:
            return jnp.where(here, values[:, None], column)

        done = active & (position >= 0) & ((drawn.token == eos) | (position + before == ring - 1))
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
        return slots, Ended(ended.rows + done.sum(), *kept), head

    most = size + queue.row.shape[0]
    nothing = Ended(
        jnp.int32(0),
        jnp.full(most, -1, jnp.int32),
        jnp.zeros(most, jnp.int32),
        jnp.zeros((most, steps), jnp.int32),
        jnp.zeros((most, steps)),
        jnp.zeros((most, steps)),
    )
    slots, ended, _ = jax.lax.while_loop(unfinished, step, (slots, nothing, jnp.int32(0)))
    return slots, ended


@partial(jax.jit, static_argnames=("size", "ring", "longest"))
def empty_slots(network: Network, cross: list[KeysAndValues], size: int, ring: int, longest: int) -> Slots:
    """Empty slots with room for the sources of `cross`, `ring` ids of state and `longest` of output."""
    return Slots(
        jnp.int32(0),
        network.module.empty_cache(size, ring),
        jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape[1:]), leaf.dtype), cross),
        jnp.zeros(size, jnp.int32),
        jnp.full(size, -1, jnp.int32),
        jnp.zeros((size, 2), jnp.uint32),
        jnp.zeros(size, jnp.int32),
        jnp.zeros((size, longest), jnp.int32),
        jnp.zeros((size, longest)),
        jnp.zeros((size, longest)),
    )


@partial(jax.jit, static_argnames=("width", "ring"))
def widen(slots: Slots, width: int, ring: int) -> Slots:
    """The same slots with room for sources of `width` tokens and a larger ring."""
    old = slots.cache[0].keys.shape[2]
    step = slots.step - 1 - (slots.step - 1 - jnp.arange(ring)) % ring  # whose keys a slot of the larger ring holds

    def wider(leaf: Array) -> Array:
        return jnp.pad(leaf, ((0, 0), (0, 0), (0, width - leaf.shape[2]), (0, 0)))

    return slots._replace(
        cross=jax.tree.map(wider, slots.cross),
        cache=jax.tree.map(lambda leaf: leaf[:, :, step % old], slots.cache),
    )


def row_keys(root: Array, source_ids: np.ndarray, samples: np.ndarray) -> Array:
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
