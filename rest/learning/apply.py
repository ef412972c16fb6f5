"""A function of networks over batches: divided over the devices on the way in, numpy on the way out.

Everything that asks a network something, and does not train it, goes through here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import numpy as np

from rest import processes
from rest.data.batches import (
    Batch,
    BatchSettings,
    Examples,
    Ids,
    Packed,
    evaluation_batches,
    gather_tokens,
    minibatches,
    padded_batches,
)
from rest.journal import progress
from rest.learning.mesh import DATA, divide, mesh_of

Networks = Any
"""A `rest.model.network.Network`, which may be an argument of a compiled function and has a `module`; or some."""


@partial(jax.jit, static_argnames=("function",))
def _apply(function: Callable[..., Any], networks: tuple[Any, ...], inputs: tuple[Any, ...]) -> Any:
    return function(*(network.module for network in networks), *inputs)


def apply(function: Callable[..., Any], networks: Networks, *inputs: Any) -> Any:
    """`function(module, ..., *inputs)` with the rows of the inputs divided over the devices that the networks lie on; a
    tree of numpy arrays.

    The function is compiled once if it is the same object, or equal (a frozen dataclass), each time.
    """
    each = networks if isinstance(networks, tuple) else (networks,)
    return jax.tree.map(np.asarray, _apply(function, each, divide(inputs, mesh_of(each))))


def asked(
    networks: Networks, examples: Examples, settings: BatchSettings, *, pad_id: int, same_shapes: bool = False
) -> Packed:
    """All examples once, in batches for `apply`; with `same_shapes` always of the same, whatever the examples."""
    batches = partial(minibatches, seed=0) if same_shapes else evaluation_batches
    return batches(examples, settings, pad_id=pad_id, devices=mesh_of(networks).shape[DATA])


def per_token(
    function: Callable[..., Any],
    networks: Networks,
    examples: Examples,
    settings: BatchSettings,
    *,
    pad_id: int,
    same_shapes: bool = False,
) -> list[np.ndarray]:
    """`function(module, ..., batch) -> [B, T]` of each target token: n arrays of [tokens].

    With `same_shapes` one compiled program serves whatever the examples are, such as those of every rollout.
    """
    batches = asked(networks, examples, settings, pad_id=pad_id, same_shapes=same_shapes)

    def work(chosen: slice) -> tuple[np.ndarray, list[np.ndarray]]:
        pairs = list[np.ndarray]()

        def applied() -> Iterator[tuple[Batch, np.ndarray]]:
            for batch in batches.part(chosen):
                pairs.append(batch.sequence_ids[batch.real])
                yield batch, apply(function, networks, batch)

        values = gather_tokens(applied(), len(examples))
        scored = np.concatenate([*pairs, np.empty(0, np.int32)])
        processes.done["scored"] += len(scored)
        return scored, [values[pair] for pair in scored]

    out: list[np.ndarray] = [np.empty(0, np.float32)] * len(examples)
    for scored, values in processes.divided(len(batches), work):
        for pair, value in zip(scored, values, strict=True):
            out[pair] = value
    return out


def per_sequence(
    function: Callable[..., Any],
    networks: Networks,
    examples: Examples,
    settings: BatchSettings,
    *,
    pad_id: int,
    shown: str = "",
) -> np.ndarray:
    """`function(module, ..., batch) -> [B, Q, ...]` of each pair: [n, ...], for at least one example.

    A progress bar is `shown` as this, where it is not empty.
    """
    batches = asked(networks, examples, settings, pad_id=pad_id)

    def work(chosen: slice) -> list[tuple[np.ndarray, np.ndarray]]:
        found, part = list[tuple[np.ndarray, np.ndarray]](), batches.part(chosen)
        with progress(shown, chosen.stop - chosen.start) if shown else nullcontext() as bar:
            for done, batch in enumerate(part, start=1):
                found.append((batch.sequence_ids[batch.real], apply(function, networks, batch)[batch.real]))
                processes.done["scored"] += len(found[-1][0])
                if bar is not None:
                    bar.update(done)
        return found

    parts = [part for found in processes.divided(len(batches), work) for part in found]
    rows, values = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return values[np.argsort(rows)]


def per_row(
    function: Callable[..., Any], networks: Networks, rows: Sequence[Ids], batch_tokens: int, *, pad_id: int
) -> np.ndarray:
    """`function(module, ..., ids [B, S], mask [B, S]) -> [B, ...]` of rows of ids: float32 [n, ...]; [0] of none.

    Of all rows in this process: what calls it remembers texts, and each of several processes others.
    """
    out, devices = np.zeros(len(rows), np.float32), mesh_of(networks).shape[DATA]
    for part, ids, mask in padded_batches(rows, batch_tokens, pad_id=pad_id, devices=devices):
        found = apply(function, networks, ids, mask)[: len(part)]
        if found.ndim > out.ndim:  # what a row is given is only known now
            out = np.zeros((len(rows), *found.shape[1:]), np.float32)
        out[part] = found
    return out
