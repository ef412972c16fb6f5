"""A function of networks over batches: divided over the devices on the way in, numpy on the way out.

Everything that asks a network something, and does not train it, goes through here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from rest.data.batches import (
    BatchSettings,
    Examples,
    Ids,
    evaluation_batches,
    gather_tokens,
    minibatches,
    padded_batches,
)
from rest.learning.mesh import data_mesh, divide

Networks = Any
"""A `rest.model.network.Network`, which may be an argument of a compiled function and has a `module`; or some."""


@partial(jax.jit, static_argnames=("function",))
def _apply(function: Callable[..., Any], networks: tuple[Any, ...], inputs: tuple[Any, ...]) -> Any:
    return function(*(network.module for network in networks), *inputs)


def apply(function: Callable[..., Any], networks: Networks, *inputs: Any) -> Any:
    """`function(module, ..., *inputs)` with the rows of the inputs divided over the devices; a tree of numpy arrays.

    The function is compiled once if it is the same object, or equal (a frozen dataclass), each time.
    """
    each = networks if isinstance(networks, tuple) else (networks,)
    return jax.tree.map(np.asarray, _apply(function, each, divide(inputs, data_mesh())))


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
    batches_of = partial(minibatches, seed=0) if same_shapes else evaluation_batches
    batches = batches_of(examples, _for_devices(settings), pad_id=pad_id)
    return gather_tokens(((batch, apply(function, networks, batch)) for batch in batches), len(examples))


def per_sequence(
    function: Callable[..., Any], networks: Networks, examples: Examples, settings: BatchSettings, *, pad_id: int
) -> np.ndarray:
    """`function(module, ..., batch) -> [B, Q, ...]` of each pair: [n, ...], for at least one example."""
    rows, found = [], []
    for batch in evaluation_batches(examples, _for_devices(settings), pad_id=pad_id):
        real = batch.sequence_ids >= 0
        rows.append(batch.sequence_ids[real])
        found.append(apply(function, networks, batch)[real])
    return np.concatenate(found)[np.argsort(np.concatenate(rows))]


def _for_devices(settings: BatchSettings) -> BatchSettings:
    """With as many rows more as make them a multiple of the devices; what is not filled is empty rows."""
    devices = len(data_mesh().local_devices)
    return replace(settings, batch_tokens=-(-settings.rows // devices) * devices * settings.target_tokens)


def per_row(
    function: Callable[..., Any], networks: Networks, rows: Sequence[Ids], batch_tokens: int, *, pad_id: int
) -> np.ndarray:
    """`function(module, ..., ids [B, S], mask [B, S]) -> [B, ...]` of rows of ids: float32 [n, ...]; [0] of none."""
    out, devices = np.zeros(len(rows), np.float32), len(data_mesh().local_devices)
    for part, ids, mask in padded_batches(rows, batch_tokens, pad_id=pad_id, devices=devices):
        found = apply(function, networks, ids, mask)[: len(part)]
        if found.ndim > out.ndim:  # what a row is given is only known now
            out = np.zeros((len(rows), *found.shape[1:]), np.float32)
        out[part] = found
    return out
