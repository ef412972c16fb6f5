"""The value of every target prefix: what reward a policy can still expect after the tokens before it.

An encoder-decoder with one linear output instead of the vocabulary. It starts from a policy's parameters and shares
none of them: what it learns does not move the policy.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from rest.data.batches import Batch, BatchSettings, Examples, gather_tokens, minibatches
from rest.learning.checkpoint import identity_of
from rest.learning.mesh import data_mesh, divide
from rest.model.transformer import Linear, Transformer
from rest.policy.policy import Policy, hidden_states


class ValueNetwork(nnx.Module):
    """A transformer and a scalar head, which starts at 0."""

    def __init__(self, body: Transformer, *, rngs: nnx.Rngs) -> None:
        self.body = body
        self.head = Linear(body.settings.width, 1, rngs=rngs)
        self.head.kernel[...] = jnp.zeros_like(self.head.kernel[...])

    def __call__(self, batch: Batch, key: Array | None) -> Float[Array, "B T"]:
        """The value before each token of packed pairs is drawn: of the source and the tokens that precede it."""
        states = hidden_states(self.body, batch, key)
        return self.head(states.astype(jnp.float32))[..., 0]


@partial(jax.jit, static_argnames=("graph",))
def _values(graph: Any, parameters: Any, batch: Batch) -> Array:
    return nnx.merge(graph, parameters)(batch, None)


@dataclass(frozen=True)
class Value:
    """A value function; `graph` and the parameters make the network."""

    graph: Any
    parameters: Any

    @classmethod
    def start(cls, policy: Policy) -> Value:
        """A copy of the policy's body under a head that says 0."""
        body = nnx.merge(policy.graph, jax.tree.map(jnp.copy, policy.parameters))
        graph, state = nnx.split(ValueNetwork(body, rngs=nnx.Rngs(jax.random.key(0))))
        return cls(graph, nnx.to_pure_dict(state))

    def with_parameters(self, parameters: Any) -> Value:
        return dataclasses.replace(self, parameters=parameters)

    @cached_property
    def identity(self) -> str:
        """Hash of the parameters."""
        return identity_of(self.parameters, "")

    def of(self, examples: Examples, batch: BatchSettings, pad_id: int) -> list[np.ndarray]:
        """The value before each target token, float32 [tokens], of every pair."""
        mesh = data_mesh()
        parts = [
            jax.tree.map(lambda leaf: leaf[0], part) for part in minibatches(examples, batch, pad_id=pad_id, seed=0)
        ]
        values = [np.asarray(_values(self.graph, self.parameters, divide(part, mesh))) for part in parts]
        return gather_tokens(zip(parts, values, strict=True), len(examples))
