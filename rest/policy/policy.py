"""A policy π(y|x): a network and its tokenizer, with an identity."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from rest.data.batches import Batch, BatchSettings, Examples
from rest.data.ragged import Ragged
from rest.data.tokenizer import Tokenizer, load_tokenizer, source_ids, target_ids
from rest.errors import UserError
from rest.folder import StageName, asked_for, check_seal, read_json, seal, write_json
from rest.learning.apply import per_sequence, per_token
from rest.learning.losses import Loss, PolicyLoss, Tokens
from rest.learning.mesh import MachineSettings
from rest.model.families.huggingface import HuggingFaceModel
from rest.model.layers import TransformerSettings
from rest.model.network import Network
from rest.model.transformer import Transformer


@dataclass(frozen=True)
class Policy:
    """A network that translates, and the tokenizer that it was made for."""

    network: Network
    tokenizer: Tokenizer

    @classmethod
    def new(cls, settings: TransformerSettings, tokenizer: Tokenizer, seed: int) -> Policy:
        """Random parameters."""
        return cls(Network.new(settings, lambda rngs: transformer(settings, tokenizer, rngs), seed), tokenizer)

    @classmethod
    def start(cls, model: HuggingFaceModel) -> Policy:
        """A published model."""
        return cls(*model.read())

    @property
    def settings(self) -> TransformerSettings:
        return self.network.settings

    def with_network(self, network: Network) -> Policy:
        return dataclasses.replace(self, network=network)

    def towards(self, other: Policy, share: float) -> Policy:
        """The policy between this one, share 0, and another, share 1, in weights."""
        return self.with_network(self.network.towards(other.network, share))

    @cached_property
    def identity(self) -> str:
        """Hash of the network's settings, its parameters and the tokenizer."""
        settings = json.dumps(dataclasses.asdict(self.settings), sort_keys=True)
        return self.network.identity(settings + self.tokenizer.identity)

    def encode_sources(self, sources: Sequence[str]) -> Ragged:
        """Token ids of each source, ending in EOS. UserError for one that has more than there are learned positions."""
        found, settings = source_ids(self.tokenizer, sources), self.network.settings
        if settings.positions == "learned" and (longest := found.lengths.max(initial=0)) > settings.max_positions:
            text = sources[int(found.lengths.argmax())]
            raise UserError(
                f"a source has {longest} tokens, the network learned {settings.max_positions} positions: {text[:60]!r}"
            )
        return found

    def encode_references(self, references: Sequence[str]) -> Ragged:
        """Token ids of each text in the target language, ending in EOS: a human translation has ended."""
        return target_ids(self.tokenizer, references)

    def save(self, folder: Path) -> None:
        self.network.save(folder)
        self.tokenizer.save(folder / "tokenizer")
        write_json(folder / "policy.json", dataclasses.asdict(self.settings))
        seal(folder)

    @classmethod
    def load(cls, folder: Path, machine: MachineSettings | None = None) -> Policy:
        """Read what `save` wrote."""
        if not (folder / "policy.json").exists():
            raise UserError(f"{folder}: no policy there (it has no policy.json)")
        check_seal(folder)
        settings, tokenizer = (
            TransformerSettings(**read_json(folder / "policy.json")),
            load_tokenizer(folder / "tokenizer"),
        )
        network = Network.load(folder, settings, lambda rngs: transformer(settings, tokenizer, rngs), machine)
        return cls(network, tokenizer)


def last_policy(folder: Path | str) -> Policy:
    """The policy of a stage's folder, or the last one of a run's."""
    return Policy.load(last_stage(Path(folder)) / "policy")


def last_stage(folder: Path) -> Path:
    """The folder of a stage with a policy: this one or, of a run's, the last stage that its settings ask for."""
    asked = asked_for(folder)
    found = [stage for path in folder.glob("improve-*-*") if (stage := StageName.parse(path.name)) and asked(stage)]
    steps = sorted((stage for stage in found if stage.on_the_way), key=lambda stage: stage.order)
    for candidate in [folder, *(folder / stage.folder for stage in reversed(steps)), folder / "bc"]:
        if (candidate / "policy").is_dir():
            return candidate
    raise UserError(f"{folder}: no policy there, neither a stage's nor a run's")


def transformer(settings: TransformerSettings, tokenizer: Tokenizer, rngs: nnx.Rngs) -> Transformer:
    """The network of a policy with this tokenizer."""
    prompt = tokenizer.prompt.decoder
    return Transformer(settings, tokenizer.vocabulary_size, pad_id=tokenizer.pad_id, prompt=prompt, rngs=rngs)


def hidden_states(network: Transformer, batch: Batch, key: Array | None) -> Float[Array, "B T D"]:
    """Decoder states of packed pairs: a token sees its own pair, and of the target the prompt and what precedes it."""
    encoder_key, decoder_key = (None, None) if key is None else jax.random.split(key)
    encoded = network.encode(batch.source, batch.source_positions, batch.source_mask(), encoder_key)
    *forced, last = network.prompt
    inputs = jnp.where(batch.target_positions == 0, last, batch.target_input)
    if not forced:
        return network.decode(
            inputs, batch.target_positions, batch.target_mask(), encoded, batch.cross_mask(), decoder_key
        )
    ids, positions, segments, sources = _with_prompts(forced, inputs, batch)
    own = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None]
    mask = own & (positions[:, None, :] <= positions[:, :, None])
    source_mask = (sources[:, :, None] == batch.source_segments[:, None, :]) & (sources > 0)[:, :, None]
    return network.decode(ids, positions, mask, encoded, source_mask, decoder_key)[:, : inputs.shape[1]]


def _with_prompts(forced: Sequence[int], inputs: Int[Array, "B T"], batch: Batch) -> tuple[Array, ...]:
    """Ids, positions, segments and sources of packed targets, each with `forced` ids before it.

    Masks say who comes before whom, so these stand behind the row, where they have no labels: int32 [B, T + Q·forced].
    """
    count, sequences = len(forced), jnp.arange(1, batch.sequences + 1)
    here = batch.target_segments[:, :, None] == sequences[None, None]
    sources = jnp.where(here, batch.target_sources[:, :, None], 0).max(1)  # of each sequence; 0: there is none
    segments = jnp.where(sources > 0, sequences[None], 0)

    def behind(row: Array, prompts: Array) -> Array:
        return jnp.concatenate([row, jnp.broadcast_to(prompts, (len(row), batch.sequences * count))], 1)

    return (
        behind(inputs, jnp.tile(jnp.asarray(forced, jnp.int32), batch.sequences)[None]),
        behind(batch.target_positions + count, jnp.tile(jnp.arange(count), batch.sequences)[None]),
        behind(batch.target_segments, jnp.repeat(segments, count, axis=1)),
        behind(batch.target_sources, jnp.repeat(sources, count, axis=1)),
    )


@dataclass(frozen=True)
class PolicyObjective:
    """A loss of what a policy makes of its targets; what `train` updates it by."""

    loss: PolicyLoss
    label_smoothing: float = 0.0
    """Share of each label's probability that is spread evenly over the vocabulary, whatever the loss."""

    def __call__(
        self, network: Transformer, batch: Batch, key: Array | None, dual_variables: Mapping[str, Any]
    ) -> Loss:
        scores = network.scores(hidden_states(network, batch, key), batch.target)
        tokens = Tokens(scores.log_probs, scores.mean_log_probs, batch.targets, batch.columns, batch.token_columns)
        loss = self.loss(tokens, dual_variables)
        return tokens.smoothed(loss, self.label_smoothing) if self.label_smoothing else loss


@dataclass(frozen=True)
class LogProbs:
    """log π of each target token at a temperature, teacher-forced, nats."""

    temperature: float = 1.0

    def __call__(self, network: Transformer, batch: Batch) -> Float[Array, "B T"]:
        states = hidden_states(network, batch, None)
        return network.scores(states, batch.target, temperature=self.temperature).log_probs


def _of_sequences(network: Transformer, batch: Batch) -> Float[Array, "B Q"]:
    return batch.targets.sums(LogProbs()(network, batch), batch.sequences)


def token_log_probs(
    policy: Policy, examples: Examples, batch: BatchSettings, *, temperature: float = 1.0, same_shapes: bool = False
) -> list[np.ndarray]:
    """log π of each target token of every pair, float32 [tokens], nats at a temperature, teacher-forced.

    With `same_shapes` one compiled program serves whatever the examples are.
    """
    function, pad_id = LogProbs(temperature), policy.tokenizer.pad_id
    return per_token(function, policy.network, examples, batch, pad_id=pad_id, same_shapes=same_shapes)


def sequence_log_probs(policy: Policy, examples: Examples, batch: BatchSettings) -> np.ndarray:
    """log π(y|x) of every pair, float32 [n], nats, teacher-forced."""
    if not len(examples):
        return np.zeros(0, np.float32)
    return per_sequence(_of_sequences, policy.network, examples, batch, pad_id=policy.tokenizer.pad_id)
