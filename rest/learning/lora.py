"""What of a network trains: all of it, all but frozen parts, or low-rank additions to frozen weights (LoRA).

Parameters are split in two: what is trained, for which gradients and optimizer state exist, and what is frozen, which
no update sees and which may be shared with an anchor. Joined again they are plain parameters: an addition is merged
into its weights, so nothing that samples, saves or exports knows of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from rest.errors import UserError

Parameters = dict[Any, Any]  # dicts of dicts of arrays, as nnx.to_pure_dict gives them

DUAL_VARIABLES = "dual_variables"  # where parameters of the loss stand beside those of the network; they always train


LINEAR = ("query", "key", "value", "output", "inner", "gate", "outer")  # the linear layers of a block


@dataclass(frozen=True)
class LoRA:
    """W + alpha/rank · A B with A [in, rank] random and B [rank, out] zero (Hu et al. 2022, §4.1); W is frozen."""

    rank: int = 0
    """0: no LoRA."""
    alpha: float = 16.0
    targets: tuple[str, ...] = ("query", "value")
    """Linear layers by name: query, key, value, output, inner, gate, outer."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise UserError(f"lora.rank must be at least 0, not {self.rank}")
        if unknown := [name for name in self.targets if name not in LINEAR]:
            raise UserError(f"lora.targets: {unknown[0]!r} is none of {', '.join(LINEAR)}")

    def start(self, kernel: jax.Array, key: jax.Array) -> Parameters:
        """The addition to one kernel [in, out], which is zero; float32, whatever the kernel is."""
        inputs, outputs = kernel.shape
        a = jax.random.normal(key, (inputs, self.rank), jnp.float32) * inputs**-0.5
        return {"lora_a": a, "lora_b": jnp.zeros((self.rank, outputs), jnp.float32)}

    def merged(self, kernel: jax.Array, added: Mapping[str, jax.Array]) -> jax.Array:
        """The kernel with its addition, in the kernel's type."""
        return (kernel + (self.alpha / self.rank) * (added["lora_a"] @ added["lora_b"])).astype(kernel.dtype)


@dataclass(frozen=True)
class Trainable:
    """Which parameters training moves; by default all."""

    freeze_embeddings: bool = False
    """Keep the embeddings, which are the output layer too where the two are tied."""
    freeze_encoder: bool = False
    """Keep the whole encoder (but not an embedding that the decoder shares)."""
    freeze_layers: int = 0
    """Keep so many layers of encoder and decoder, from the bottom."""
    lora: LoRA = field(default_factory=LoRA)
    """Train only low-rank additions to what is not frozen."""

    def split(self, parameters: Parameters, seed: int) -> tuple[Parameters, Parameters]:
        """(trained, frozen); together they have every parameter, and `join` gives them back."""
        trained: Parameters = {}
        frozen: Parameters = {}
        for n, (path, leaf) in enumerate(_leaves(parameters)):
            if path[0] == DUAL_VARIABLES:
                _put(trained, path, leaf)
            elif self._freezes(path):
                _put(frozen, path, leaf)
            elif not self.lora.rank:
                _put(trained, path, leaf)
            else:
                _put(frozen, path, leaf)
                if path[-1] == "kernel" and path[-2] in self.lora.targets:
                    key = jax.random.fold_in(jax.random.key(seed), n)
                    _put(trained, path[:-1], self.lora.start(leaf, key))
        if not any(path[0] != DUAL_VARIABLES for path, _ in _leaves(trained)):
            raise UserError(f"trainable: nothing is left to train with {self}")
        return trained, frozen

    def join(self, trained: Parameters, frozen: Parameters) -> Parameters:
        """The parameters of the network, additions merged."""
        if not frozen:
            return trained
        joined: Parameters = {}
        for name in [*frozen, *(name for name in trained if name not in frozen)]:
            if name not in trained or name not in frozen:
                if not str(name).startswith("lora_"):
                    joined[name] = frozen.get(name, trained.get(name))
            else:
                joined[name] = self.join(trained[name], frozen[name])
        if "lora_a" in trained:
            joined["kernel"] = self.lora.merged(frozen["kernel"], trained)
        return joined

    def _freezes(self, path: tuple[Any, ...]) -> bool:
        names = [str(name) for name in path]
        layers = [int(n) for side, n in pairwise(names) if side in ("encoder", "decoder", "layers") and n.isdigit()]
        return (
            (self.freeze_embeddings and any(name.endswith("embedding") for name in names))
            or (self.freeze_encoder and any(name.split("_")[0] == "encoder" for name in names))
            or any(n < self.freeze_layers for n in layers)
        )


def _leaves(tree: Parameters, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """Arrays with the names that lead to them, in JAX's order."""
    found = []
    for name in sorted(tree):
        node = tree[name]
        found += _leaves(node, (*path, name)) if isinstance(node, dict) else [((*path, name), node)]
    return found


def _put(tree: Parameters, path: tuple[Any, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
