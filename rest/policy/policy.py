"""A policy π(y|x): a network, its parameters and its tokenizer, with an identity."""

from __future__ import annotations

import dataclasses
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
from jaxtyping import Array

from rest.data.batches import Batch, BatchSettings, Examples, evaluation_batches, gather_tokens
from rest.data.tokenizer import Tokenizer, load_tokenizer
from rest.errors import UserError
from rest.learning.checkpoint import identity_of, load_parameters, save_parameters
from rest.learning.losses import Loss, PolicyLoss, Tokens
from rest.learning.mesh import data_mesh, divide
from rest.model.huggingface import HuggingFaceModel
from rest.model.transformer import Scores, Transformer, TransformerSettings
from rest.stage import read_json, write_json


@dataclass(frozen=True)
class Policy:
    """Parameters are a pure dict of arrays; `graph` and they make the network."""

    settings: TransformerSettings
    tokenizer: Tokenizer
    graph: Any  # nnx.GraphDef, hashable
    parameters: Any

    @classmethod
    def new(cls, settings: TransformerSettings, tokenizer: Tokenizer, seed: int) -> Policy:
        """Random parameters."""
        graph, state = nnx.split(build(settings, tokenizer, seed))
        return cls(settings, tokenizer, graph, nnx.to_pure_dict(state))

    def with_parameters(self, parameters: Any) -> Policy:
        return dataclasses.replace(self, parameters=parameters)

    def on(self, device: jax.Device) -> Policy:
        """The same policy with its parameters on one device of this process."""
        local = jax.tree.map(
            lambda leaf: jax.device_put(jnp.asarray(leaf).addressable_data(0), device), self.parameters
        )
        return self.with_parameters(local)

    @cached_property
    def identity(self) -> str:
        """Hash of the network's settings, its parameters and the tokenizer."""
        settings = json.dumps(dataclasses.asdict(self.settings), sort_keys=True)
        return identity_of(self.parameters, settings + self.tokenizer.identity)

    def encode_sources(self, sources: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each source, ending in EOS."""
        return self._ended(self.tokenizer.encode(sources))

    def encode_references(self, references: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text in the target language, ending in EOS: a human translation has ended."""
        return self._ended(self.tokenizer.encode_targets(references))

    def _ended(self, rows: list[list[int]]) -> list[np.ndarray]:
        return [np.asarray([*ids, self.tokenizer.eos_id], np.int32) for ids in rows]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(folder / "tokenizer")
        save_parameters(folder / "parameters", self.parameters)
        write_json(folder / "policy.json", dataclasses.asdict(self.settings))

    @classmethod
    def start(cls, model: HuggingFaceModel) -> Policy:
        """A published model."""
        settings, tokenizer, parameters = model.read()
        return cls.new(settings, tokenizer, seed=0).with_parameters(parameters)

    @classmethod
    def load(cls, folder: Path) -> Policy:
        """Read what `save` wrote."""
        if not (folder / "policy.json").exists():
            raise UserError(f"{folder}: no policy there (it has no policy.json)")
        # policies from before zero_start was a setting were trained to start from padding's embedding
        settings = TransformerSettings(**{"zero_start": False, **read_json(folder / "policy.json")})
        empty = cls.new(settings, load_tokenizer(folder / "tokenizer"), seed=0)
        return empty.with_parameters(load_parameters(folder / "parameters", empty.parameters))


def build(settings: TransformerSettings, tokenizer: Tokenizer, seed: int) -> Transformer:
    """A network with random parameters."""
    rngs = nnx.Rngs(jax.random.key(seed))
    return Transformer(settings, tokenizer.vocabulary_size, pad_id=tokenizer.pad_id, rngs=rngs)


def hidden_states(network: Transformer, batch: Batch, key: Array | None) -> Array:
    """Decoder states [B, T, D] of packed pairs: a token sees its own pair, and of the target what precedes it."""
    source, target = batch.source_segments, batch.target_segments
    encoder_key, decoder_key = (None, None) if key is None else jax.random.split(key)
    pair = (source[:, :, None] == source[:, None, :]) & (source > 0)[:, None]
    encoded = network.encode(batch.source, batch.source_positions, pair, encoder_key)
    own = (target[:, :, None] == target[:, None, :]) & (target > 0)[:, None]
    own &= jnp.tril(jnp.ones((target.shape[1],) * 2, bool))[None]
    across = (batch.target_sources[:, :, None] == source[:, None, :]) & (source > 0)[:, None]
    return network.decode(batch.target_input, batch.target_positions, own, encoded, across, decoder_key)


@dataclass(frozen=True)
class PolicyObjective:
    """A policy network joined to a loss; what `train` updates. The loss's own parameters go under "duals"."""

    graph: Any
    loss: PolicyLoss

    def __call__(self, parameters: Any, batch: Batch, key: Array | None) -> Loss:
        network = nnx.merge(self.graph, {name: part for name, part in parameters.items() if name != "duals"})
        scores: Scores = network.scores(hidden_states(network, batch, key), batch.target)
        tokens = Tokens(
            scores.log_probs, scores.mean_log_probs, batch.target_segments, batch.columns, batch.token_columns
        )
        return self.loss(tokens, parameters.get("duals", {}))


@partial(jax.jit, static_argnames=("graph",))
def _token_log_probs(graph: Any, parameters: Any, batch: Batch) -> Array:
    """Log-probability a token [B, T], nats."""
    network = nnx.merge(graph, parameters)
    scores: Scores = network.scores(hidden_states(network, batch, None), batch.target)
    return scores.log_probs


@partial(jax.jit, static_argnames=("graph",))
def _log_probs(graph: Any, parameters: Any, batch: Batch) -> Array:
    """Log-probability a sequence [B, Q], nats."""
    log_probs = _token_log_probs(graph, parameters, batch)
    slots = jnp.arange(1, batch.sequence_ids.shape[1] + 1)
    own = batch.target_segments[:, :, None] == slots[None, None]
    return jnp.where(own, log_probs[:, :, None], 0.0).sum(1)


def token_log_probs(policy: Policy, examples: Examples, batch: BatchSettings) -> list[np.ndarray]:
    """log π of each token of every pair, float32 [tokens], nats at temperature 1, teacher-forced."""
    mesh = data_mesh()
    parts = [
        (part, np.asarray(_token_log_probs(policy.graph, policy.parameters, divide(part, mesh))))
        for part in evaluation_batches(examples, batch, pad_id=policy.tokenizer.pad_id)
    ]
    return gather_tokens(parts, len(examples))


def sequence_log_probs(policy: Policy, examples: Examples, batch: BatchSettings) -> np.ndarray:
    """log π(y|x) of every pair, float32 [n], nats, teacher-forced."""
    out = np.zeros(len(examples), np.float32)
    mesh = data_mesh()
    for part in evaluation_batches(examples, batch, pad_id=policy.tokenizer.pad_id):
        values = np.asarray(_log_probs(policy.graph, policy.parameters, divide(part, mesh)))
        real = part.sequence_ids >= 0
        out[part.sequence_ids[real]] = values[real]
    return out
