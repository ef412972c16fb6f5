"""N samples a source from a policy.

A source is encoded once and its cross-attention keys are shared by its samples. A token is drawn by inverting the
cumulative distribution, one uniform number a token, whose key is folded from (seed, grow step, source id, sample
index, position): a hypothesis does not depend on the batch that it is drawn in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from rest.data.batches import pad
from rest.errors import UserError
from rest.learning.mesh import data_mesh, divide
from rest.model.transformer import BLOCKED
from rest.policy.policy import Policy

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
    rows: int = 512
    """Hypotheses decoded at the same time."""

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
    texts: list[list[str]]
    finished: np.ndarray  # bool [n, N]: ended by EOS
    decoder_steps: int  # rows x steps that were computed

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


def row_keys(seed: int, step: int, source_ids: np.ndarray, samples: np.ndarray) -> Array:
    """Keys [R] of the rows' draws, folded from (seed, grow step, source id, sample index)."""
    root = jax.random.fold_in(jax.random.key(seed), step)
    high, low = (source_ids >> 32).astype(np.uint32), (source_ids & 0xFFFFFFFF).astype(np.uint32)
    return _fold(root, high, low, samples.astype(np.uint32))


@jax.jit
def _fold(root: Array, high: Array, low: Array, sample: Array) -> Array:
    fold = jax.vmap(lambda *parts: jax.random.key_data(_fold_all(root, parts)))
    return fold(high, low, sample)


def _fold_all(key: Array, parts: tuple[Array, ...]) -> Array:
    for part in parts:
        key = jax.random.fold_in(key, part)
    return key


class _Slots(NamedTuple):
    """The state of decoding R rows."""

    step: Array
    cache: Any
    token: Array  # int32 [R], the last token
    done: Array  # bool [R]
    tokens: Array  # int32 [R, T]
    log_probs: Array  # float32 [R, T]
    behaviour: Array  # float32 [R, T]


@partial(jax.jit, static_argnames=("graph", "settings", "eos"))
def _sample(
    graph: Any,
    parameters: Any,
    settings: SamplingSettings,
    eos: int,
    sources: Int[Array, "B S"],
    lengths: Int[Array, " B"],
    keys: Array,
) -> tuple[Array, Array, Array, Array]:
    """Tokens and both log-probabilities [R, T], and the steps done, of R rows, R / B neighbours a source."""
    network = nnx.merge(graph, parameters)
    rows, steps = keys.shape[0], settings.max_target_tokens
    positions = jnp.broadcast_to(jnp.arange(sources.shape[1])[None], sources.shape)
    mask = positions < lengths[:, None]
    encoded = network.encode(sources, positions, mask[:, None])
    cross = network.cross_keys(encoded)

    def step(slots: _Slots) -> _Slots:
        t = slots.step
        logits, cache = network.decode_step(slots.token, t, slots.cache, cross, mask)
        fold = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(jax.random.wrap_key_data(k), t)))
        drawn = draw(logits, fold(keys), settings.temperature, settings.top_k, settings.top_p)
        token = jnp.where(slots.done, network.pad_id, drawn.token)

        def put(column: Array, values: Array) -> Array:
            return column.at[:, t].set(jnp.where(slots.done, column.dtype.type(0), values))

        return _Slots(
            t + 1,
            cache,
            token,
            slots.done | (token == eos),
            slots.tokens.at[:, t].set(token),
            put(slots.log_probs, drawn.log_prob),
            put(slots.behaviour, drawn.behaviour_log_prob),
        )

    start = _Slots(
        jnp.int32(0),
        network.empty_cache(rows, steps),
        jnp.full(rows, network.pad_id, jnp.int32),
        jnp.repeat(lengths == 0, rows // lengths.shape[0]),
        jnp.full((rows, steps), network.pad_id, jnp.int32),
        jnp.zeros((rows, steps)),
        jnp.zeros((rows, steps)),
    )
    end = jax.lax.while_loop(lambda s: (s.step < steps) & ~s.done.all(), step, start)
    return end.tokens, end.log_probs, end.behaviour, end.step


def sample(
    policy: Policy,
    sources: Sequence[str],
    source_ids: np.ndarray,
    samples_per_source: int,
    settings: SamplingSettings,
    *,
    seed: int,
    grow_step: int = 0,
) -> Hypotheses:
    """Draw `samples_per_source` hypotheses for every source."""
    n, tokenizer = len(sources), policy.tokenizer
    encoded = policy.encode_sources(sources)
    per_batch = max(1, settings.rows // samples_per_source)
    lengths = np.asarray([len(x) for x in encoded], np.int32)
    order = np.argsort(lengths, kind="stable")
    tokens: list[list[np.ndarray]] = [[] for _ in range(n)]
    log_probs: list[list[np.ndarray]] = [[] for _ in range(n)]
    behaviour: list[list[np.ndarray]] = [[] for _ in range(n)]
    finished = np.zeros((n, samples_per_source), bool)
    decoder_steps = 0
    mesh = data_mesh()
    for start in range(0, n, per_batch):
        chosen = order[start : start + per_batch]
        width = -(-int(lengths[chosen].max()) // 16) * 16  # few shapes to compile
        batch = pad([encoded[i] for i in chosen] + [[]] * (per_batch - len(chosen)), width, tokenizer.pad_id)
        sizes = np.zeros(per_batch, np.int32)
        sizes[: len(chosen)] = lengths[chosen]
        ids = np.zeros(per_batch, np.int64)
        ids[: len(chosen)] = source_ids[chosen]
        keys = row_keys(
            seed,
            grow_step,
            np.repeat(ids, samples_per_source),
            np.tile(np.arange(samples_per_source), per_batch),
        )
        out = _sample(
            policy.graph,
            policy.parameters,
            settings,
            tokenizer.eos_id,
            *divide((batch, sizes, np.asarray(keys)), mesh),
        )
        drawn, own, law, steps = (np.asarray(part) for part in out)
        decoder_steps += int(steps) * len(drawn)
        ended = drawn == tokenizer.eos_id
        ends = np.where(ended.any(1), ended.argmax(1) + 1, settings.max_target_tokens)
        for row in range(len(chosen) * samples_per_source):
            source, end = chosen[row // samples_per_source], ends[row]
            tokens[source].append(drawn[row, :end])
            log_probs[source].append(own[row, :end])
            behaviour[source].append(law[row, :end])
            finished[source, row % samples_per_source] = ended[row].any()
    flat = tokenizer.decode([y for samples in tokens for y in samples])
    texts = [flat[i * samples_per_source : (i + 1) * samples_per_source] for i in range(n)]
    return Hypotheses(tokens, log_probs, behaviour, texts, finished, decoder_steps)
