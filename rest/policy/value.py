"""The value of every target prefix: what reward a policy can still expect after the tokens before it.

An encoder-decoder with one linear output instead of the vocabulary. It starts from the parameters of a policy, or of a
learned reward, and what it learns does not move them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from rest.data.batches import Batch, BatchSettings, Examples
from rest.folder import check_seal, seal
from rest.learning.apply import per_token
from rest.learning.losses import Loss, SquaredError
from rest.learning.mesh import MachineSettings
from rest.model.flops import forward_flops
from rest.model.layers import Linear
from rest.model.network import Network
from rest.model.transformer import Transformer
from rest.policy.policy import Policy, hidden_states, transformer


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

    def arithmetic(self, rows: int, source: int, target: int) -> tuple[int, str]:
        """FLOPs of the products of a forward pass, which has no logits; their type."""
        settings = self.body.settings
        return forward_flops(settings, 0, rows, source, target), settings.factors


def _values(network: ValueNetwork, batch: Batch) -> Float[Array, "B T"]:
    return network(batch, None)


@dataclass(frozen=True)
class ValueObjective:
    """Regression of the reward of the whole sequence at every token: the Monte-Carlo return of its prefix."""

    def __call__(
        self, network: ValueNetwork, batch: Batch, key: Array | None, dual_variables: Mapping[str, Any]
    ) -> Loss:
        wanted = batch.targets.spread(batch.columns["reward"])
        return SquaredError()(network(batch, key), wanted, batch.targets.mask)


@dataclass(frozen=True)
class Value:
    """A value function of packed pairs."""

    network: Network
    pad_id: int

    @classmethod
    def start(cls, policy: Policy, mean: float = 0.0) -> Value:
        """From the policy's parameters."""
        return cls.on(policy.network, policy.tokenizer.pad_id, mean)

    @classmethod
    def on(cls, body: Network, pad_id: int, mean: float = 0.0) -> Value:
        """A transformer, which is shared, under a head that says the same number of every prefix."""
        network = body.inside(body.settings, lambda module: ValueNetwork(module, rngs=nnx.Rngs(0)))
        head = network.parameters["head"]
        return cls(network.with_part("head", {**head, "bias": jnp.full_like(head["bias"], mean)}), pad_id)

    def with_network(self, network: Network) -> Value:
        return dataclasses.replace(self, network=network)

    @cached_property
    def identity(self) -> str:
        """Hash of the parameters."""
        return self.network.identity("")

    def of(self, examples: Examples, batch: BatchSettings) -> list[np.ndarray]:
        """The value before each target token, float32 [tokens], of every pair."""
        return per_token(_values, self.network, examples, batch, pad_id=self.pad_id, same_shapes=True)

    def save(self, folder: Path) -> None:
        self.network.save(folder)
        seal(folder)

    @classmethod
    def load(cls, folder: Path, policy: Policy, machine: MachineSettings | None = None) -> Value:
        """Read what `save` wrote; the body is built as that of the policy."""
        check_seal(folder)
        settings, tokenizer = policy.settings, policy.tokenizer

        def build(rngs: nnx.Rngs) -> ValueNetwork:
            return ValueNetwork(transformer(settings, tokenizer, rngs), rngs=rngs)

        return cls(Network.load(folder, settings, build, machine), tokenizer.pad_id)
