"""How a learned reward reads a source and a hypothesis: as ids for a batch, and as what its heads read of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from rest.data.batches import Batch, BatchSettings, Examples
from rest.data.segments import Segments
from rest.data.tokenizer import Tokenizer, each_once, source_ids, target_ids
from rest.model.families.xlmr import XLMR, XLMRSettings
from rest.model.layers import TransformerSettings, split_key
from rest.model.transformer import Transformer
from rest.policy.policy import Policy, hidden_states, transformer
from rest.reward.learned.encoder import Apart, Encoder, Joint, MixedLayers, View

LIKELIHOODS = 3  # mean log p, mean p and lowest log p of a hypothesis' tokens
SEGMENT = "segment"  # the column of tokens that says which row of an encoder's table of segments they have


class LayerMixture(nnx.Module):
    """The weights of layers, softmax of numbers that start equal, and a factor; COMET's layer-wise attention."""

    def __init__(self, layers: int) -> None:
        self.weights = nnx.Param(jnp.zeros(layers))
        self.gamma = nnx.Param(jnp.ones(1))

    def __call__(self, states: Sequence[Float[Array, "B T D"]]) -> Float[Array, "B T D"]:
        """Float32, of what each layer gives."""
        shares = self.gamma[...] * nnx.softmax(self.weights[...])
        mixed = shares[0] * states[0].astype(jnp.float32)
        for share, state in zip(shares[1:], states[1:], strict=True):
            mixed = mixed + share * state.astype(jnp.float32)
        return mixed


def mixture(settings: XLMRSettings, view: View) -> LayerMixture | None:
    """What mixes the layers, where they are mixed."""
    return LayerMixture(settings.layers + 1) if isinstance(view.layers, MixedLayers) else None


def beside(body: Transformer, batch: Batch, key: Array | None) -> Float[Array, "B Q F"]:
    """The decoder reads the hypothesis beside the encoded source: its mean state, and the likelihoods."""
    states, segments, pairs = hidden_states(body, batch, key), batch.targets, batch.sequences
    log_probs = body.scores(states, batch.target).log_probs
    columns = jnp.concatenate(
        [states.astype(jnp.float32), log_probs[..., None], jnp.exp(log_probs)[..., None]], axis=-1
    )
    return jnp.concatenate([segments.means(columns, pairs), segments.lowest(log_probs, pairs)[..., None]], axis=-1)


def encoded(body: XLMR, mix: LayerMixture | None, view: View, batch: Batch, key: Array | None) -> Float[Array, "B Q F"]:
    """What an encoder finds of each pair: its texts in one row, the batch's target, or each by itself."""
    pairs, keys = batch.sequences, split_key(key, 2)

    def pooled(ids: Array, positions: Array, mask: Array, tokens: Segments, key: Array | None) -> Array:
        column = batch.token_columns.get(SEGMENT)
        states = body.packed(ids, positions, mask, key, None if column is None else column.astype(jnp.int32))
        return view.pooling(body, states[-1] if mix is None else mix(states), tokens, positions, pairs)

    target_mask = batch.target_mask(causal=False)
    h = pooled(batch.target, batch.target_positions, target_mask, batch.targets, keys[0])
    if isinstance(view.reading, Joint):
        return h
    tokens = Segments(batch.source_segments)
    s = pooled(batch.source, batch.source_positions, batch.source_mask(), tokens, keys[1])
    of_pair = jnp.where(batch.targets.own(pairs), batch.target_sources[..., None], 0).max(1)  # several may share one
    s = jnp.take_along_axis(s, jnp.maximum(of_pair - 1, 0)[..., None], axis=1)
    return jnp.concatenate([s, h, jnp.abs(s - h), s * h], axis=-1)


def width(settings: TransformerSettings | XLMRSettings, view: View) -> int:
    """How many numbers a body finds of a pair."""
    if isinstance(settings, TransformerSettings):
        return settings.width + LIKELIHOODS
    return settings.width * (4 if isinstance(view.reading, Apart) else 1)


@dataclass(frozen=True)
class ReadBeside:
    """Source and hypothesis apart, as a policy reads them."""

    tokenizer: Tokenizer
    settings: TransformerSettings
    view: ClassVar[View] = View()

    def body(self, rngs: nnx.Rngs) -> Transformer:
        return transformer(self.settings, self.tokenizer, rngs)

    def examples(self, sources: Sequence[str], hypotheses: Sequence[str], batch: BatchSettings) -> Examples:
        """Cut to what a row of a batch holds."""
        x, y = source_ids(self.tokenizer, sources), target_ids(self.tokenizer, hypotheses)
        return Examples([ids[: batch.source_tokens] for ids in x], [ids[: batch.target_tokens] for ids in y])


@dataclass(frozen=True)
class ReadJointly:
    """Hypothesis, then source in one row, as the encoder was given two texts; the row is the batch's target."""

    tokenizer: Tokenizer
    settings: XLMRSettings
    view: View = View()

    def body(self, rngs: nnx.Rngs) -> XLMR:
        return XLMR(self.settings, rngs=rngs)

    def examples(self, sources: Sequence[str], hypotheses: Sequence[str], batch: BatchSettings) -> Examples:
        """Cut to what a row of a batch holds and the table of positions has; the end of the source goes first."""
        longest = min(batch.target_tokens, self.settings.max_tokens)
        sides = (each_once(self.tokenizer.encode, texts) for texts in (hypotheses, sources))
        joined = [self.settings.pair(y[: longest - 3], x, self.tokenizer.eos_id) for y, x in zip(*sides, strict=True)]
        rows = [np.asarray(ids[:longest], np.int32) for ids, _ in joined]
        examples = Examples([row[:0] for row in rows], rows)
        if not self.settings.two_segments:
            return examples
        return dataclasses.replace(
            examples, token_columns={SEGMENT: [np.asarray(segments[:longest], np.float32) for _, segments in joined]}
        )


@dataclass(frozen=True)
class ReadApart:
    """Source and hypothesis each as the encoder was given one text, behind the prefix."""

    tokenizer: Tokenizer
    settings: XLMRSettings
    view: View

    def body(self, rngs: nnx.Rngs) -> XLMR:
        return XLMR(self.settings, rngs=rngs)

    def examples(self, sources: Sequence[str], hypotheses: Sequence[str], batch: BatchSettings) -> Examples:
        """Cut to what a row of a batch holds and the table of positions has."""
        x = self._ids(sources, batch.source_tokens)
        return Examples(x, self._ids(hypotheses, batch.target_tokens))

    def _ids(self, texts: Sequence[str], room: int) -> list[np.ndarray]:
        assert isinstance(self.view.reading, Apart)
        eos, prefix = self.tokenizer.eos_id, self.view.reading.prefix
        rows = each_once(self.tokenizer.encode, [prefix + text for text in texts])
        return [np.asarray(self.settings.single(ids, eos)[:room], np.int32) for ids in rows]


Reader = ReadBeside | ReadJointly | ReadApart


def reader_of(start: Policy | Encoder) -> Reader:
    """How what starts like this reads."""
    view = start.view if isinstance(start, Encoder) else View()
    return reader(start.tokenizer, start.settings, view)


def reader(tokenizer: Tokenizer, settings: TransformerSettings | XLMRSettings, view: View) -> Reader:
    """How a body of these sizes reads."""
    if isinstance(settings, TransformerSettings):
        return ReadBeside(tokenizer, settings)
    kind = ReadApart if isinstance(view.reading, Apart) else ReadJointly
    return kind(tokenizer, settings, view)
