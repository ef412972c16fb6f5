"""A learned, reference-free reward: a network that reads source and hypothesis and gives one number.

The network is the policy's encoder-decoder with a scalar head in the place of the output layer, started from the
behavioural-cloning policy, as InstructGPT starts its reward model from the supervised one (Ouyang et al. 2022): the
encoder reads the source, the decoder reads the hypothesis beside it, and the head reads the mean of its states.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from rest.data.batches import Batch, BatchSettings, Examples, evaluation_batches
from rest.errors import UserError
from rest.learning.losses import Loss, SquaredError
from rest.learning.mesh import data_mesh, divide
from rest.model.transformer import Linear, Transformer
from rest.policy.policy import Policy, hidden_states
from rest.stage import read_json, write_json


class RewardNetwork(nnx.Module):
    """Encoder-decoder with a scalar head."""

    def __init__(self, body: Transformer, *, causal: bool, rngs: nnx.Rngs) -> None:
        self.body, self.causal = body, causal
        width = body.settings.width
        self.inner = Linear(width, width, rngs=rngs)
        self.outer = Linear(width, 1, rngs=rngs)

    def __call__(self, batch: Batch, key: Array | None) -> Float[Array, "B Q"]:
        """One raw score for each packed pair."""
        states = hidden_states(self.body, batch, key, causal=self.causal).astype(jnp.float32)
        slots = jnp.arange(1, batch.sequence_ids.shape[1] + 1)
        own = (batch.target_segments[:, :, None] == slots[None, None]).astype(jnp.float32)
        means = jnp.einsum("btq,btd->bqd", own, states) / jnp.maximum(own.sum(1), 1.0)[..., None]
        return self.outer(jnp.tanh(self.inner(means)))[..., 0]


@dataclass(frozen=True)
class RewardObjective:
    """Regression of ratings; what `train` updates."""

    graph: Any
    loss: SquaredError = SquaredError()

    def __call__(self, parameters: Any, batch: Batch, key: Array | None) -> Loss:
        predicted = nnx.merge(self.graph, parameters)(batch, key)
        return self.loss(predicted, batch.columns["rating"], batch.sequence_ids >= 0)


@partial(jax.jit, static_argnames=("graph",))
def _predict(graph: Any, parameters: Any, batch: Batch) -> Array:
    return nnx.merge(graph, parameters)(batch, None)


@dataclass(frozen=True)
class LearnedReward:
    """A trained reward network; a reward function that needs no references."""

    base: Policy
    """Whose tokenizer and sizes the network has; its parameters are not used."""
    graph: Any
    parameters: Any
    batch: BatchSettings
    causal: bool

    @classmethod
    def new(cls, base: Policy, batch: BatchSettings, *, causal: bool, seed: int, bias: float) -> LearnedReward:
        """The policy's network with a new head whose scores start at `bias`."""
        rngs = nnx.Rngs(jax.random.key(seed))
        network = RewardNetwork(nnx.merge(base.graph, base.parameters), causal=causal, rngs=rngs)
        network.outer.bias[...] = jnp.full(1, bias)
        graph, state = nnx.split(network)
        return cls(base, graph, nnx.to_pure_dict(state), batch, causal)

    @cached_property
    def identity(self) -> str:
        """Hash of the parameters and the tokenizer."""
        digest = hashlib.sha256(json.dumps([self.base.tokenizer.identity, self.causal]).encode())
        for leaf in jax.tree.leaves(self.parameters):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()

    def examples(self, sources: Sequence[str], hypotheses: Sequence[str]) -> Examples:
        """Ids of both sides, cut to what a row of a batch holds."""
        s, t = self.batch.source_tokens, self.batch.target_tokens
        encode = self.base.encode_sources
        return Examples([x[:s] for x in encode(sources)], [y[:t] for y in encode(hypotheses)])

    def predict(self, parameters: Any, examples: Examples) -> np.ndarray:
        """Raw scores, float32 [n]."""
        out, mesh = np.zeros(len(examples), np.float32), data_mesh()
        for part in evaluation_batches(examples, self.batch, pad_id=self.base.tokenizer.pad_id):
            values = np.asarray(_predict(self.graph, parameters, divide(part, mesh)))
            real = part.sequence_ids >= 0
            out[part.sequence_ids[real]] = values[real]
        return out

    def __call__(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
    ) -> np.ndarray:
        return self.predict(self.parameters, self.examples(sources, hypotheses))

    def save(self, folder: Path, scale: tuple[float, float]) -> None:
        """Write the network as a policy folder with the head beside it, and its scale."""
        self.base.with_parameters(self.parameters["body"]).save(folder)
        head = {name: self.parameters[name] for name in ("inner", "outer")}
        np.savez(folder / "head.npz", **{f"{a}.{b}": v for a, part in head.items() for b, v in part.items()})
        write_json(
            folder / "reward.json",
            {"scale": list(scale), "causal": self.causal, "batch": vars(self.batch)},
        )

    @classmethod
    def load(cls, folder: Path) -> tuple[LearnedReward, tuple[float, float]]:
        """Read what `save` wrote: the reward function and its scale."""
        if not (folder / "reward.json").exists():
            raise UserError(f"{folder}: no learned reward there (it has no reward.json)")
        record = read_json(folder / "reward.json")
        base = Policy.load(folder)
        new = cls.new(base, BatchSettings(**record["batch"]), causal=record["causal"], seed=0, bias=0.0)
        head: dict[str, dict[str, Any]] = {}
        with np.load(folder / "head.npz", allow_pickle=False) as arrays:
            for name, value in arrays.items():
                part, leaf = name.split(".")
                head.setdefault(part, {})[leaf] = jnp.asarray(value)
        low, high = record["scale"]
        parameters = {**new.parameters, "body": base.parameters, **head}
        return cls(base, new.graph, parameters, new.batch, new.causal), (low, high)
