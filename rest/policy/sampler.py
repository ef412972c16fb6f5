"""N samples per source from a policy.

Rows (source, sample) are decoded in a fixed number of slots (`slots.py`), and a row that ends makes room for the next:
the slots stay busy. A source is encoded once, and each of its samples takes a copy of its cross-attention keys. A
token is drawn by inverting the cumulative distribution, one uniform number a token, whose key is folded from (seed,
grow step, source id, sample index, position): a hypothesis does not depend on what it is drawn beside.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from rest import processes
from rest.data.batches import bucket, pad
from rest.data.tokenizer import Tokenizer
from rest.errors import UserError
from rest.learning.mesh import MachineSettings, at_place, places
from rest.policy.policy import Policy
from rest.policy.slots import Ended, Queue, SamplingDistribution, advance, empty_slots, encode, row_keys, widen

T = TypeVar("T")
Place = Mesh
"""Devices of this process that share one copy of a network: mostly one."""

COLDEST, WARMEST = 1e-4, 1e4  # temperatures
LANES = 2  # samplers a device: while one waits for a small operation or for Python, the other keeps the device busy


def check_temperature(name: str, temperature: float) -> None:
    """UserError unless logits divided by it are numbers that differ from each other."""
    if not COLDEST <= temperature <= WARMEST:
        raise UserError(
            f"{name} must be from {COLDEST:g} to {WARMEST:g}, not {temperature}; what is colder is greedy decoding"
        )


@dataclass(frozen=True)
class SamplingSettings:
    """The distribution that hypotheses are drawn from."""

    temperature: float = 0.8
    top_k: int = 0
    """Only the k likeliest tokens; 0: the whole vocabulary."""
    top_p: float = 1.0
    """Only the likeliest tokens that together hold this probability."""
    epsilon: float = 0.0
    """Only tokens of at least this probability after temperature, and the likeliest; 0: all. Cut before the others."""
    max_target_tokens: int = 64
    """Longest hypothesis, EOS included; a longer one is cut (finish = length)."""

    def __post_init__(self) -> None:
        check_temperature("temperature", self.temperature)
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.epsilon < 1:
            raise UserError(f"epsilon must be at least 0 and below 1, not {self.epsilon}")
        if self.top_k < 0 or self.max_target_tokens < 1:
            raise UserError(
                f"top_k {self.top_k} must not be below 0, and max_target_tokens {self.max_target_tokens} at least 1"
            )


@dataclass(frozen=True)
class SamplingOverrides:
    """What a stage draws from otherwise than the experiment's `sampling`; None: as there."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    epsilon: float | None = None
    max_target_tokens: int | None = None

    def of(self, shared: SamplingSettings) -> SamplingSettings:
        """The experiment's settings with these in their place."""
        return replace(shared, **{name: value for name, value in vars(self).items() if value is not None})


@dataclass(frozen=True)
class Hypotheses:
    """n sources x N samples, in the order of the sources."""

    tokens: list[list[np.ndarray]]  # [n][N] int32; ends in EOS when finished is true
    log_probs: list[list[np.ndarray]]  # [n][N] float32, of the policy at temperature 1, nats
    # [n][N] float32, under the sampling distribution; None where none was sampled from: of beam search
    behaviour_log_probs: Sequence[Sequence[np.ndarray | None]]
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

    def record(self) -> dict[str, Any]:
        """All of it but the tokenizer, as one process tells it to another."""
        flat = [[y for of_source in rows for y in of_source] for rows in (self.tokens, self.log_probs)]
        behaviour = [y for of_source in self.behaviour_log_probs for y in of_source]
        return {"rows": [*flat, behaviour], "finished": self.finished, "steps": self.decoder_steps}

    @classmethod
    def of(cls, records: Sequence[dict[str, Any]], sources: int, tokenizer: Tokenizer) -> Hypotheses:
        """Those of so many sources from records of one part after another."""
        rows = [[y for record in records for y in record["rows"][k]] for k in range(3)]
        n = len(rows[0]) // max(1, sources)
        tokens, log_probs, behaviour = ([flat[k : k + n] for k in range(0, len(flat), n or 1)] for flat in rows)
        steps = sum(record["steps"] for record in records)
        return cls(tokens, log_probs, behaviour, np.concatenate([r["finished"] for r in records]), steps, tokenizer)

    @classmethod
    def beside(cls, parts: Sequence[Hypotheses]) -> Hypotheses:
        """Those of the same sources from several distributions or searches, as N1 + N2 + … a source."""

        def joined(columns: Iterable[Sequence[Sequence[T]]]) -> list[list[T]]:
            return [[y for some in of_source for y in some] for of_source in zip(*columns, strict=True)]

        return cls(
            joined(part.tokens for part in parts),
            joined(part.log_probs for part in parts),
            joined(part.behaviour_log_probs for part in parts),
            np.concatenate([part.finished for part in parts], axis=1),
            sum(part.decoder_steps for part in parts),
            parts[0].tokenizer,
        )


def sample(
    policy: Policy,
    sources: Sequence[str],
    source_ids: np.ndarray,
    samples_per_source: int,
    settings: SamplingSettings,
    *,
    seed: int,
    grow_step: int = 0,
    first_index: int = 0,
    machine: MachineSettings | None = None,
    place: Place | None = None,
    ended: Callable[[int], None] = lambda rows: None,
) -> Hypotheses:
    """Draw `samples_per_source` hypotheses for every source.

    Their sample indices start at `first_index`: with others, they share no randomness. At one `place`, by default at
    all of all processes, a share of the sources each. `ended` is told, in the threads that sample, how many more
    hypotheses are whole; what it raises ends the sampling.
    """
    n = len(sources)
    if processes.several():

        def share(own: slice) -> dict[str, Any]:
            return sample(
                policy,
                sources[own],
                source_ids[own],
                samples_per_source,
                settings,
                seed=seed,
                grow_step=grow_step,
                first_index=first_index,
                machine=machine,
                place=place,
                ended=ended,
            ).record()

        return Hypotheses.of(processes.divided(n, share), n, policy.tokenizer)
    lanes = [each for each in (places(machine) if place is None else [place]) for _ in range(LANES)]
    slots = -(-(machine or MachineSettings()).rows // LANES)
    encoded = policy.encode_sources(sources)
    order = np.argsort([len(x) for x in encoded], kind="stable")
    root = jax.random.key_data(jax.random.fold_in(jax.random.key(seed), grow_step))
    drawn = _Drawn.empty(n * samples_per_source)

    def work(lane: int) -> int:
        rows = (order[lane :: len(lanes), None] * samples_per_source + np.arange(samples_per_source)).ravel()
        with placed(policy, lanes[lane]) as here:
            worker = _Worker(here, encoded, source_ids, samples_per_source, first_index, settings, root, drawn, ended)
            left = worker.run(rows, slots, last=False)
            worker.run(left, -(-slots // 4), last=True)
        return worker.work

    with ThreadPoolExecutor(len(lanes)) as threads:
        steps = sum(threads.map(work, range(len(lanes))))

    def by_source(rows: Sequence[T]) -> list[list[T]]:
        return [list(rows[i * samples_per_source : (i + 1) * samples_per_source]) for i in range(n)]

    processes.done["sampled"] += n * samples_per_source
    last = np.asarray([tokens[-1] for tokens in drawn.tokens], np.int32)
    return Hypotheses(
        by_source(drawn.tokens),
        by_source(drawn.log_probs),
        by_source(drawn.behaviour),
        (last == policy.tokenizer.eos_id).reshape(n, samples_per_source),
        steps,
        policy.tokenizer,
    )


@contextmanager
def placed(policy: Policy, place: Place | None) -> Iterator[Policy]:
    """The policy at one place, where everything is computed in the meantime; None: where it is."""
    if place is None:
        yield policy
        return
    with jax.default_device(place.devices.flat[0]):
        yield policy.with_network(policy.network.with_parameters(at_place(policy.network.parameters, place)))


class Places:
    """The places of this process, each lent to one sampling at a time."""

    def __init__(self, machine: MachineSettings | None = None) -> None:
        self._free = SimpleQueue[Place]()
        self.count = 0
        for place in places(machine):
            self._free.put(place)
            self.count += 1

    @contextmanager
    def lent(self) -> Iterator[Place]:
        """One that is free, for as long as it is used; waits until there is one."""
        place = self._free.get()
        try:
            yield place
        finally:
            self._free.put(place)


class _Drawn(NamedTuple):
    """Whole hypotheses by the number of their row, source by source."""

    tokens: list[np.ndarray]
    log_probs: list[np.ndarray]
    behaviour: list[np.ndarray]

    @classmethod
    def empty(cls, rows: int) -> _Drawn:
        return cls(*([np.empty(0)] * rows for _ in cls._fields))


@dataclass
class _Worker:
    """One lane's part of the sampling."""

    policy: Policy
    encoded: Sequence[np.ndarray]
    source_ids: np.ndarray
    samples_per_source: int
    first_index: int
    settings: SamplingSettings
    root: Array
    drawn: _Drawn
    ended: Callable[[int], None]
    work: int = 0  # slots x steps

    def run(self, rows: np.ndarray, size: int, *, last: bool) -> np.ndarray:
        """Draw the rows, ordered by the length of their sources, in `size` slots. Returns those that are not whole.

        Only the last run draws everything. Before, the cache has room for 1.5 times the source and some more, which
        few rows outgrow, and when three quarters of the slots are empty and nothing waits, the rest is left: these
        rows are drawn again, in fewer slots with room for the longest.
        """
        network, longest = self.policy.network, self.settings.max_target_tokens
        given = len(self.policy.tokenizer.prompt.forced)  # ids before the first that is drawn
        s = self.settings
        distribution = SamplingDistribution(s.temperature, s.top_k, s.top_p, s.epsilon)
        go = partial(advance, network, distribution, self.policy.tokenizer.eos_id)
        slots: Any = None
        queue, left = None, list[int]()
        before: Ended | None = None  # its rows are fetched while the next are decoded
        for queue in self._queues(rows, size, one_width=last):
            width = queue.cross[0].keys.shape[2]
            ring = given + (longest if last else min(longest, -(-width * 3 // 16) * 8 + 8))
            if slots is None:
                slots = empty_slots(network, queue.cross, size, ring, longest)
                where = queue.cross[0].keys.device
                if isinstance(where, jax.Device):
                    # put where the queue is, as slots that come back are: else every program is compiled for both
                    slots = jax.device_put(slots, where)
            elif slots.cross[0].keys.shape[2] < width:
                slots = widen(slots, width, ring)
            slots, now = go(slots, queue, jnp.int32(size))
            left += [] if before is None else self._keep(before)
            before = now
        if queue is None or before is None:
            return np.empty(0, np.int64)
        going = jnp.int32(0 if last else size // 4)
        slots, now = go(slots, queue._replace(row=jnp.full(size, -1, jnp.int32)), going)
        left += self._keep(before) + self._keep(now)
        left += [int(row) for row in np.asarray(slots.row) if row >= 0]
        self.work += size * int(slots.step)
        return np.asarray(
            sorted(left, key=lambda row: (len(self.encoded[row // self.samples_per_source]), row)), np.int64
        )

    def _queues(self, rows: np.ndarray, size: int, *, one_width: bool) -> Iterator[Queue]:
        """The rows, as many at a time as there are slots, beside their sources, which are encoded together.

        A program is compiled for each width of sources: 16, 24, 32, 48, 64 and so on.
        """
        per_block, source_of = max(1, size // 4), rows // self.samples_per_source
        starts = np.flatnonzero(np.diff(source_of, prepend=-1))
        cuts = [*starts[::per_block], len(rows)]
        longest = bucket(max((len(self.encoded[i]) for i in source_of), default=0))
        for begin, end in itertools.pairwise(cuts):
            number = np.cumsum(np.diff(source_of[begin:end], prepend=source_of[begin]) != 0)
            block = source_of[begin:end][np.flatnonzero(np.diff(number, prepend=-1))]
            texts = [self.encoded[i] for i in block] + [np.empty(0, np.int32)] * (per_block - len(block))
            lengths = np.asarray([len(text) for text in texts], np.int32)
            width = longest if one_width else bucket(int(lengths.max()))
            sources = pad(texts, width, self.policy.tokenizer.pad_id)
            cross = encode(self.policy.network, sources, lengths)
            for first in range(begin, end, size):
                row, source = np.full(size, -1, np.int32), np.zeros(size, np.int32)
                part = rows[first : min(first + size, end)]
                row[: len(part)], source[: len(part)] = part, number[first - begin :][: len(part)]
                sample = self.first_index + np.maximum(row, 0) % self.samples_per_source
                keys = row_keys(self.root, self.source_ids[block[source]], sample)
                yield Queue(cross, jnp.asarray(lengths), jnp.asarray(source), jnp.asarray(row), keys)

    def _keep(self, ended: Ended) -> list[int]:
        """Store the rows that are whole, and return the others."""
        count, rows, lengths, *columns = (np.asarray(part) for part in ended)
        longest, eos, left = columns[0].shape[1], self.policy.tokenizer.eos_id, []
        for at in range(int(count)):
            row, length = int(rows[at]), int(lengths[at])
            if length < longest and columns[0][at, length - 1] != eos:
                left.append(row)
                continue
            for kept, column in zip(self.drawn, columns, strict=True):
                kept[row] = column[at, :length].copy()
        self.ended(int(count) - len(left))
        return left
