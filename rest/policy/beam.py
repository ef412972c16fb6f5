"""Greedy decoding and beam search with a length penalty: the best hypothesis of each source, or the n best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from rest import processes
from rest.data.batches import bucket, pad
from rest.errors import UserError, refuse_below
from rest.learning.mesh import MachineSettings
from rest.model.attention import BLOCKED
from rest.model.network import Network
from rest.policy.policy import Policy
from rest.policy.sampler import Hypotheses, Place, SamplingSettings, placed

ONE_WIDTH = 8  # batches
FEWER = 4  # times as few sources in a batch of those whose search takes long


@dataclass(frozen=True)
class BeamSettings:
    """Beam search; one beam is greedy decoding, whatever the penalty."""

    beams: int = 4
    length_penalty: float = 1.0
    """A hypothesis of n tokens scores log-probability / n^length_penalty (Wu et al. 2016 without the offset)."""
    max_target_tokens: int | None = None
    """Longest output, EOS included; None: as long as samples may be."""
    exhaustive: bool = False
    """A search ends when the best that goes on could not be among the ended ones any more: at its present length, as in
    `transformers` by default; or, exhaustive, at the longest ("never" there), which takes several times as long."""

    def __post_init__(self) -> None:
        refuse_below("", self, {"beams": 1, "max_target_tokens": 1})
        if not math.isfinite(self.length_penalty):
            raise UserError(f"length_penalty must be a number, not {self.length_penalty}")


def longest(settings: BeamSettings) -> int:
    """The most tokens of an output."""
    return SamplingSettings().max_target_tokens if settings.max_target_tokens is None else settings.max_target_tokens


class _Texts(NamedTuple):
    tokens: Array  # int32 [B, K, T]
    log_probs: Array  # float32 [B, K, T], of each token

    def take(self, places: Int[Array, "B N"]) -> _Texts:
        """N of each source's."""
        return jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, places[:, :, None], 1), self)

    def and_(self, other: _Texts) -> _Texts:
        """Each source's own and then the other's."""
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), self, other)


class _Found(NamedTuple):
    texts: _Texts
    scores: Array  # float32 [B, K]
    going: Array  # bool [B]: whether more steps could find a better one
    steps: Array  # that were taken

    def of(self, sources: np.ndarray) -> _Found:
        """What was found for some sources."""
        texts = _Texts(*(column[sources] for column in self.texts))
        return _Found(texts, self.scores[sources], self.going[sources], self.steps)


class _Beams(NamedTuple):
    step: Array
    searched: Array  # bool [B]: nothing that still comes counts
    cache: Any  # keys and values [B·K, H, T, head width] a layer
    going: _Texts
    scores: Array  # float32 [B, K], log-probability of those that go on
    ended: _Texts  # the best that have ended
    ended_scores: Array  # float32 [B, K], penalised


@partial(jax.jit, static_argnames=("settings", "eos", "steps"))
def _search(
    network: Network,
    settings: BeamSettings,
    eos: int,
    steps: int,
    sources: Int[Array, "B S"],
    lengths: Int[Array, " B"],
) -> _Found:
    """The K best hypotheses of each source within so many steps.

    Those that have ended come first, from best to worst, and then those that were cut. What is found for a source does
    not depend on those beside it.
    """
    module = network.module
    batch, beams = sources.shape[0], settings.beams
    # without a penalty a greedy hypothesis that has ended stays ahead of all that could still come
    length_penalty = settings.length_penalty if beams > 1 else 0.0
    positions = jnp.broadcast_to(jnp.arange(sources.shape[1])[None], sources.shape)
    mask = positions < lengths[:, None]
    cross = module.cross_keys(module.encode(sources, positions, mask[:, None]))

    def decode(ids: Array, t: Array, cache: Any) -> tuple[Array, Any]:
        return module.decode_step(ids, jnp.full(batch * beams, t), t, cache, cross, mask)

    *forced, _ = module.prompt  # what is given before the id that the first choice follows
    before = len(forced)
    cache = module.empty_cache(batch * beams, before + steps)
    for t, token in enumerate(forced):
        _, cache = decode(jnp.full(batch * beams, token), jnp.int32(t), cache)

    def penalised(scores: Array, length: Array) -> Array:
        return scores / length.astype(jnp.float32) ** length_penalty

    def step(s: _Beams) -> _Beams:
        t = s.step
        last = jnp.where(t == 0, module.prompt[-1], s.going.tokens[:, :, jnp.maximum(t - 1, 0)])
        logits, cache = decode(last.reshape(-1), before + t, s.cache)
        log_probs = jax.nn.log_softmax(logits, axis=-1).reshape(batch, beams, -1)
        size = log_probs.shape[-1]
        candidates = (s.scores[:, :, None] + log_probs).reshape(batch, -1)
        # an end counts among the best `beams`; of twice as many, enough are left to go on
        scores, flat = jax.lax.top_k(candidates, 2 * beams)
        parent, token = flat // size, (flat % size).astype(jnp.int32)
        own = jnp.take_along_axis(log_probs.reshape(batch, -1), flat, 1)
        texts = s.going.take(parent)
        texts = _Texts(texts.tokens.at[:, :, t].set(token), texts.log_probs.at[:, :, t].set(own))
        ends = token == eos
        counts = ends & (jnp.arange(2 * beams) < beams)[None] & (scores > BLOCKED / 2) & ~s.searched[:, None]
        ended = jnp.where(counts, penalised(scores, t + 1), BLOCKED)
        ended_scores, best = jax.lax.top_k(jnp.concatenate([s.ended_scores, ended], 1), beams)
        going, keep = jax.lax.top_k(jnp.where(ends, BLOCKED, scores), beams)
        rows = (jnp.arange(batch)[:, None] * beams + jnp.take_along_axis(parent, keep, 1)).reshape(-1)
        # scores only fall, and a longer hypothesis is divided by more
        length = 1 if length_penalty <= 0 else longest(settings) if settings.exhaustive else t + 1
        reach = penalised(going[:, 0], jnp.asarray(length))
        return _Beams(
            t + 1,
            s.searched | (reach <= ended_scores[:, -1]),
            cache if beams == 1 else jax.tree.map(lambda leaf: leaf[rows], cache),
            texts.take(keep),
            going,
            s.ended.and_(texts).take(best),
            ended_scores,
        )

    def unfinished(s: _Beams) -> Array:
        return (s.step < steps) & ~s.searched.all()

    nothing = _Texts(
        jnp.full((batch, beams, steps), module.pad_id, jnp.int32), jnp.zeros((batch, beams, steps), jnp.float32)
    )
    start = _Beams(
        jnp.int32(0),
        lengths == 0,
        cache,
        nothing,
        jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, BLOCKED)[None], (batch, beams)),
        nothing,
        jnp.full((batch, beams), BLOCKED),
    )
    end = jax.lax.while_loop(unfinished, step, start)
    # places left by those that have ended are for what has not, which the search then followed to the longest length
    cut = jnp.where(end.scores > BLOCKED / 2, penalised(end.scores, end.step), BLOCKED)
    scores = jnp.concatenate([end.ended_scores, cut], 1)
    ends = (end.ended_scores > BLOCKED / 2).sum(1, keepdims=True)
    place = jnp.arange(beams)[None]
    best = jnp.where(place < ends, place, beams + place - ends)
    texts = end.ended.and_(end.going).take(best)
    return _Found(texts, jnp.take_along_axis(scores, best, 1), ~end.searched, end.step)


def translate(
    policy: Policy, sources: Sequence[str], settings: BeamSettings, machine: MachineSettings | None = None
) -> list[str]:
    """The best hypothesis of each source."""

    def work(own: slice) -> list[np.ndarray]:
        ids: list[np.ndarray] = [np.empty(0, np.int32)] * len(sources[own])
        for chosen, found in _searched(policy, sources[own], settings, machine):
            for i, row in zip(chosen, found.texts.tokens[:, 0], strict=True):
                ids[i] = row
        processes.done["decoded"] += len(ids)
        return ids

    return policy.tokenizer.decode([ids for found in processes.divided(len(sources), work) for ids in found])


def n_best(
    policy: Policy,
    sources: Sequence[str],
    settings: BeamSettings,
    *,
    machine: MachineSettings | None = None,
    place: Place | None = None,
    ended: Callable[[int], None] = lambda rows: None,
) -> Hypotheses:
    """The `settings.beams` best hypotheses of each source, different sequences of tokens, the one of `translate` first.

    Those that ended come before those that were cut, each from best to worst. `place` and `ended` as in `sample`.
    UserError where the policy knows fewer hypotheses.
    """
    beams, eos, steps = settings.beams, policy.tokenizer.eos_id, 0
    tokens: list[list[np.ndarray]] = [[] for _ in sources]
    log_probs: list[list[np.ndarray]] = [[] for _ in sources]
    with placed(policy, place) as here:
        for chosen, found in _searched(here, sources, settings, machine):
            if found.scores.min() < BLOCKED / 2:
                raise UserError(f"beams {beams}: some source has fewer hypotheses, so small is the vocabulary")
            steps += found.scores.size * int(found.steps)
            for i, ids, own in zip(chosen, *found.texts, strict=True):
                ends = ids == eos
                lengths = np.where(ends.any(1), ends.argmax(1) + 1, ids.shape[1])
                tokens[i] = [row[:length].copy() for row, length in zip(ids, lengths, strict=True)]
                log_probs[i] = [row[:length].copy() for row, length in zip(own, lengths, strict=True)]
            ended(len(chosen) * beams)
    last = np.asarray([y[-1] for of_source in tokens for y in of_source], np.int32)
    finished = (last == eos).reshape(len(sources), beams)
    return Hypotheses(tokens, log_probs, [[None] * beams for _ in sources], finished, steps, policy.tokenizer)


def _searched(
    policy: Policy, sources: Sequence[str], settings: BeamSettings, machine: MachineSettings | None
) -> Iterator[tuple[list[int], _Found]]:
    """The places of some sources and what is found for them, as NumPy arrays; like lengths together.

    A search is first given steps for one and a half times the source's tokens, since every step reads the room that is
    there for all of them. The few that need more are searched again, a quarter as many at once.
    Compiling for another width takes longer than a few batches do, so some share the width of their longest source.
    """
    encoded, steps = policy.encode_sources(sources), longest(settings)
    tokenizer, rows = policy.tokenizer, max(1, (machine or MachineSettings()).beam_rows // settings.beams)
    left = list(range(len(encoded)))
    for first in (True, False):
        order, left = sorted(left, key=lambda i: len(encoded[i])), []
        size = rows if first else max(1, rows // FEWER)
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        for k, chosen in enumerate(batches):
            last = batches[k - k % ONE_WIDTH :][:ONE_WIDTH][-1][-1]
            width = bucket(len(encoded[last]))
            room = min(steps, bucket(width + width // 2)) if first else steps
            ids = [encoded[i] for i in chosen] + [np.empty(0, np.int32)] * (size - len(chosen))
            lengths = np.asarray([len(row) for row in ids], np.int32)
            padded = pad(ids, width, tokenizer.pad_id)
            found = jax.device_get(_search(policy.network, settings, tokenizer.eos_id, room, padded, lengths))
            more = found.going[: len(chosen)] & (room < steps)
            left += [chosen[i] for i in np.flatnonzero(more)]
            if not more.all():
                done = np.flatnonzero(~more)
                yield [chosen[i] for i in done], found.of(done)
