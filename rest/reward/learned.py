"""A learned, reference-free reward: a network that reads source and hypothesis and gives one number.

The network is the policy's own with a linear head in addition, started from the behavioural-cloning policy, as
InstructGPT starts its reward model from the supervised one (Ouyang et al. 2022): the encoder reads the source, the
decoder reads the hypothesis beside it, and the head reads the mean of the decoder's states and how likely the network
finds the hypothesis. The head is first fitted alone by ridge regression, then everything is trained together (linear
probing, then fine-tuning: Kumar et al. 2022), so that training starts from a reward that is useful already.
"""

from __future__ import annotations

import dataclasses
import hashlib
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

LIKELIHOODS = 3  # mean log p, mean p and lowest log p of a hypothesis' tokens


class RewardNetwork(nnx.Module):
    """Encoder-decoder with a linear head beside its output layer."""

    def __init__(self, body: Transformer, *, rngs: nnx.Rngs) -> None:
        self.body = body
        self.head = Linear(body.settings.width + LIKELIHOODS, 1, rngs=rngs)

    def features(self, batch: Batch, key: Array | None) -> Float[Array, "B Q F"]:
        """What the head reads of each packed pair: the mean decoder state, and the likelihoods."""
        states = hidden_states(self.body, batch, key)
        log_probs = self.body.scores(states, batch.target).log_probs
        slots = jnp.arange(1, batch.sequence_ids.shape[1] + 1)
        own = batch.target_segments[:, :, None] == slots[None, None]
        columns = jnp.concatenate(
            [states.astype(jnp.float32), log_probs[..., None], jnp.exp(log_probs)[..., None]], axis=-1
        )
        lengths = jnp.maximum(own.sum(1), 1)[..., None]
        means = jnp.einsum("btq,btf->bqf", own.astype(jnp.float32), columns) / lengths
        lowest = jnp.where(own, log_probs[..., None], 0.0).min(1)[..., None]
        return jnp.concatenate([means, lowest], axis=-1)

    def __call__(self, batch: Batch, key: Array | None) -> Float[Array, "B Q"]:
        """One raw score for each packed pair."""
        return self.head(self.features(batch, key))[..., 0]


@dataclass(frozen=True)
class RewardObjective:
    """Regression of ratings; what `train` updates."""

    graph: Any
    loss: SquaredError = SquaredError()

    def __call__(self, parameters: Any, batch: Batch, key: Array | None) -> Loss:
        predicted = nnx.merge(self.graph, parameters)(batch, key)
        return self.loss(predicted, batch.columns["rating"], batch.sequence_ids >= 0)


@partial(jax.jit, static_argnames=("graph",))
def _features(graph: Any, parameters: Any, batch: Batch) -> Array:
    return nnx.merge(graph, parameters).features(batch, None)


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

    @classmethod
    def new(cls, base: Policy, batch: BatchSettings) -> LearnedReward:
        """The policy's network with a head that is still to be fitted."""
        body = nnx.merge(base.graph, base.parameters)
        graph, state = nnx.split(RewardNetwork(body, rngs=nnx.Rngs(jax.random.key(0))))
        return cls(base, graph, nnx.to_pure_dict(state), batch)

    def probe(self, examples: Examples, ratings: np.ndarray, ridge: float) -> LearnedReward:
        """Fit the head alone to ratings [n] by ridge regression of the standardised features."""
        features = self._map(_features, self.parameters, examples).astype(np.float64)
        mean, spread = features.mean(0), features.std(0) + 1e-6
        z, y = (features - mean) / spread, ratings - ratings.mean(dtype=np.float64)
        weights = np.linalg.solve(z.T @ z + ridge * len(z) * np.eye(z.shape[1]), z.T @ y) / spread
        bias = ratings.mean(dtype=np.float64) - mean @ weights
        head = {"kernel": jnp.asarray(weights[:, None], jnp.float32), "bias": jnp.asarray([bias], jnp.float32)}
        return dataclasses.replace(self, parameters={**self.parameters, "head": head})

    @cached_property
    def identity(self) -> str:
        """Hash of the parameters, the tokenizer, the network's settings and where texts are cut."""
        cut = self.batch.source_tokens, self.batch.target_tokens
        digest = hashlib.sha256(repr((self.base.tokenizer.identity, self.base.settings, cut)).encode())
        for leaf in jax.tree.leaves(self.parameters):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()

    def examples(self, sources: Sequence[str], hypotheses: Sequence[str]) -> Examples:
        """Ids of both sides, cut to what a row of a batch holds."""
        s, t = self.batch.source_tokens, self.batch.target_tokens
        encoded, read = self.base.encode_sources(sources), self.base.encode_references(hypotheses)
        return Examples([x[:s] for x in encoded], [y[:t] for y in read])

    def predict(self, parameters: Any, examples: Examples) -> np.ndarray:
        """Raw scores, float32 [n]."""
        if not len(examples):
            return np.zeros(0, np.float32)
        return self._map(_predict, parameters, examples)

    def _map(self, function: Any, parameters: Any, examples: Examples) -> np.ndarray:
        """A jitted function of packed batches, by pair [n, ...]."""
        parts, mesh = [], data_mesh()
        for part in evaluation_batches(examples, self.batch, pad_id=self.base.tokenizer.pad_id):
            real = part.sequence_ids >= 0
            values = np.asarray(function(self.graph, parameters, divide(part, mesh)))
            parts.append((part.sequence_ids[real], values[real]))
        rows, values = (np.concatenate(column) for column in zip(*parts, strict=True))
        return values[np.argsort(rows)]

    def __call__(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
    ) -> np.ndarray:
        return self.predict(self.parameters, self.examples(sources, hypotheses))

    def save(self, folder: Path, scale: tuple[float, float]) -> None:
        """Write the network as a policy folder with the head beside it, and its scale."""
        self.base.with_parameters(self.parameters["body"]).save(folder)
        np.savez(folder / "head.npz", **self.parameters["head"])
        write_json(folder / "reward.json", {"scale": list(scale), "batch": vars(self.batch)})

    @classmethod
    def load(cls, folder: Path) -> tuple[LearnedReward, tuple[float, float]]:
        """Read what `save` wrote: the reward function and its scale."""
        if not (folder / "reward.json").exists():
            raise UserError(f"{folder}: no learned reward there (it has no reward.json)")
        record = read_json(folder / "reward.json")
        new = cls.new(Policy.load(folder), BatchSettings(**record["batch"]))
        with np.load(folder / "head.npz", allow_pickle=False) as arrays:
            head = {name: jnp.asarray(value) for name, value in arrays.items()}
        low, high = record["scale"]
        return dataclasses.replace(new, parameters={**new.parameters, "head": head}), (low, high)
