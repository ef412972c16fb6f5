"""Greedy decoding and beam search with a length penalty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from rest.data.batches import pad
from rest.learning.mesh import MachineSettings
from rest.model.layers import BLOCKED
from rest.model.network import Network
from rest.policy.policy import Policy
from rest.policy.sampler import SamplingSettings


@dataclass(frozen=True)
class BeamSettings:
    """Beam search; one beam is greedy decoding, whatever the penalty."""

    beams: int = 4
    length_penalty: float = 1.0
    """A hypothesis of n tokens scores log-probability / n^length_penalty (Wu et al. 2016 without the offset)."""
    max_target_tokens: int | None = None
    """Longest output, EOS included; None: as long as samples may be."""


def longest(settings: BeamSettings) -> int:
    """The most tokens of an output."""
    return SamplingSettings().max_target_tokens if settings.max_target_tokens is None else settings.max_target_tokens


class _Beams(NamedTuple):
    step: Array
    cache: Any  # keys and values [B·K, H, T, head width] a layer
    tokens: Array  # int32 [B, K, T] of the beams that go on
    scores: Array  # float32 [B, K], log-probability
    ended_tokens: Array  # int32 [B, K, T] of the best that have ended
    ended_scores: Array  # float32 [B, K], penalised


@partial(jax.jit, static_argnames=("settings", "eos"))
def _search(
    network: Network,
    settings: BeamSettings,
    eos: int,
    sources: Int[Array, "B S"],
    lengths: Int[Array, " B"],
) -> tuple[Array, Array]:
    """The best hypothesis of each source, int32 [B, T], and its score."""
    module = network.module
    batch, beams, steps = sources.shape[0], settings.beams, longest(settings)
    # without a penalty a greedy hypothesis that has ended stays ahead of all that could still come
    length_penalty = settings.length_penalty if beams > 1 else 0.0
    positions = jnp.broadcast_to(jnp.arange(sources.shape[1])[None], sources.shape)
    mask = positions < lengths[:, None]
    cross = module.cross_keys(module.encode(sources, positions, mask[:, None]))

    def penalised(scores: Array, length: Array) -> Array:
        return scores / length.astype(jnp.float32) ** length_penalty

    def step(s: _Beams) -> _Beams:
        t = s.step
        last = jnp.where(t == 0, module.pad_id, s.tokens[:, :, jnp.maximum(t - 1, 0)])
        logits, cache = module.decode_step(last.reshape(-1), jnp.full(batch * beams, t), t, s.cache, cross, mask)
        log_probs = jax.nn.log_softmax(logits, axis=-1).reshape(batch, beams, -1)
        size = log_probs.shape[-1]
        candidates = (s.scores[:, :, None] + log_probs).reshape(batch, -1)
        # an end counts among the best `beams`; of twice as many, enough are left to go on
        scores, flat = jax.lax.top_k(candidates, 2 * beams)
        parent, token = flat // size, (flat % size).astype(jnp.int32)
        tokens = jnp.take_along_axis(s.tokens, parent[:, :, None], 1).at[:, :, t].set(token)
        ends = token == eos
        counts = ends & (jnp.arange(2 * beams) < beams)[None]
        ended = jnp.where(counts, penalised(scores, t + 1), BLOCKED)
        ended_scores, best = jax.lax.top_k(jnp.concatenate([s.ended_scores, ended], 1), beams)
        ended_tokens = jnp.take_along_axis(jnp.concatenate([s.ended_tokens, tokens], 1), best[:, :, None], 1)
        going, keep = jax.lax.top_k(jnp.where(ends, BLOCKED, scores), beams)
        rows = (jnp.arange(batch)[:, None] * beams + jnp.take_along_axis(parent, keep, 1)).reshape(-1)
        return _Beams(
            t + 1,
            jax.tree.map(lambda leaf: leaf[rows], cache),
            jnp.take_along_axis(tokens, keep[:, :, None], 1),
            going,
            ended_tokens,
            ended_scores,
        )

    def unfinished(s: _Beams) -> Array:
        # scores only fall, and a longer hypothesis is divided by more: the most that a going beam can reach
        reach = penalised(s.scores[:, 0], jnp.float32(steps if length_penalty > 0 else 1))
        open_ = (reach > s.ended_scores[:, -1]) & (lengths > 0)
        return (s.step < steps) & open_.any()

    start = _Beams(
        jnp.int32(0),
        module.empty_cache(batch * beams, steps),
        jnp.full((batch, beams, steps), module.pad_id, jnp.int32),
        jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, BLOCKED)[None], (batch, beams)),
        jnp.full((batch, beams, steps), module.pad_id, jnp.int32),
        jnp.full((batch, beams), BLOCKED),
    )
    end = jax.lax.while_loop(unfinished, step, start)
    # what has not ended within max_target_tokens competes as it is
    scores = jnp.concatenate([end.ended_scores, penalised(end.scores, end.step)], 1)
    tokens = jnp.concatenate([end.ended_tokens, end.tokens], 1)
    nothing = (end.ended_scores[:, :1] > BLOCKED / 2) & (jnp.arange(2 * beams) >= beams)[None]
    best = jnp.where(nothing, 2 * BLOCKED, scores).argmax(1)
    return (
        jnp.take_along_axis(tokens, best[:, None, None], 1)[:, 0],
        jnp.take_along_axis(scores, best[:, None], 1)[:, 0],
    )


def translate(
    policy: Policy, sources: Sequence[str], settings: BeamSettings, machine: MachineSettings | None = None
) -> list[str]:
    """The best hypothesis of each source."""
    encoded = policy.encode_sources(sources)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    per_batch = max(1, (machine or MachineSettings()).beam_rows // settings.beams)
    pad_id, eos = policy.tokenizer.pad_id, policy.tokenizer.eos_id
    ids: list[np.ndarray] = [np.empty(0, np.int32)] * len(encoded)
    for start in range(0, len(order), per_batch):
        chosen = order[start : start + per_batch]
        width = -(-max(len(encoded[i]) for i in chosen) // 16) * 16
        rows = [encoded[i] for i in chosen] + [np.empty(0, np.int32)] * (per_batch - len(chosen))
        lengths = np.asarray([len(row) for row in rows], np.int32)
        best, _ = _search(policy.network, settings, eos, pad(rows, width, pad_id), lengths)
        for i, row in zip(chosen, np.asarray(best), strict=False):
            ids[i] = row
    return policy.tokenizer.decode(ids)
