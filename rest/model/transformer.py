"""The encoder-decoder transformer (Vaswani et al. 2017), laid out as Marian by default.

Post-norm LayerNorm, sinusoidal positions, one embedding for source, target and output, and a bias on the logits
(Junczys-Dowmunt et al. 2018). Settings choose what other families have instead. T5 (Raffel et al. 2020): pre-norm,
RMSNorm, gated feed-forward layers, relative positions, no biases, an output layer of its own. M2M100 (Fan et al. 2020)
and NLLB: pre-norm, sinusoids as in fairseq, no bias on the logits. mBART (Liu et al. 2020): learned positions and a
norm on the embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rest.model.attention import BLOCKED
from rest.model.flops import WithLogits
from rest.model.layers import (
    Attention,
    Block,
    KeysAndValues,
    Norm,
    TransformerSettings,
    attending,
    dropout,
    head_width,
    layer,
    split_key,
)
from rest.model.normaliser import Normaliser, normaliser
from rest.model.positions import FIRST, RelativePositions, ahead, sinusoids


class Scores(NamedTuple):
    """What a loss needs of the output distribution, a token each; nats."""

    log_probs: Array  # float32 [B, T], log-probability of the label
    mean_log_probs: Array  # float32 [B, T], mean over the vocabulary, for label smoothing
    entropies: Array | None = None  # float32 [B, T], of the next token, where asked for


def _table(rows: int, settings: TransformerSettings, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(jax.random.normal(rngs.params(), (rows, settings.width)) * settings.width**-0.5)


def _blocks_of_64(vocabulary_size: int) -> int:
    """The sampler searches blocks of 64."""
    return -(-vocabulary_size // 64) * 64


class Embedding(nnx.Module):
    """What the layers of a side are given of ids: rows of a table, which sides may share, with their positions.

    `pad_id` is None where a source has a vocabulary of its own, in which the target's padding may be a word.
    """

    def __init__(self, settings: TransformerSettings, pad_id: int | None, *, rngs: nnx.Rngs) -> None:
        self.settings, self.pad_id = settings, pad_id
        learned = settings.positions == "learned"
        self.positions = _table(settings.max_positions + FIRST, settings, rngs) if learned else None
        self.norm = Norm(settings) if settings.embedding_norm else None

    def __call__(
        self, ids: Int[Array, "B T"], table: nnx.Param, positions: Int[Array, "#B T"], key: Array | None
    ) -> Float[Array, "B T D"]:
        settings, x = self.settings, table[...][ids].astype(jnp.float32)
        if settings.scale_embedding:
            x = x * settings.width**0.5
        if settings.zero_start and self.pad_id is not None:
            x = jnp.where((ids == self.pad_id)[..., None], 0.0, x)
        if self.positions is not None:
            # a batch may be padded to more positions than the table has; no token is there
            x = x + self.positions[...][jnp.minimum(positions, settings.max_positions - 1) + FIRST]
        elif settings.positions == "fairseq":
            x = x + sinusoids(positions + FIRST, settings.width, reached=True)
        elif settings.positions == "sinusoidal":
            x = x + sinusoids(positions, settings.width)
        if self.norm is not None:
            x = self.norm(x)
        return dropout(x.astype(settings.dtype), settings.dropout, key)


def _keep_as(module: nnx.Module, dtype: str) -> None:
    """Parameters of this type, which are made as float32."""
    if dtype != "float32":
        nnx.update(module, jax.tree.map(lambda leaf: leaf.astype(dtype), nnx.state(module)))


def _relative(settings: TransformerSettings, layers: int, *, causal: bool, rngs: nnx.Rngs) -> Any:
    """Relative positions of a side: one for all its layers, one each, or none."""
    count = 0 if settings.positions != "relative" else layers if settings.relative_each_layer else 1
    sizes = settings.heads, settings.relative_buckets, settings.relative_distance
    return nnx.List([RelativePositions(*sizes, causal=causal, rngs=rngs) for _ in range(count)])


class Transformer(WithLogits, nnx.Module):
    """Encoder-decoder. Masks are bool, True = may be seen; padding is never produced.

    `prompt` is what the decoder is given before it may choose, a start id and maybe others; by default padding.
    """

    def __init__(
        self,
        settings: TransformerSettings,
        vocabulary_size: int,
        *,
        pad_id: int,
        prompt: tuple[int, ...] = (),
        rngs: nnx.Rngs,
    ) -> None:
        self.settings, self.vocabulary_size, self.pad_id = settings, vocabulary_size, pad_id
        self.prompt = prompt or (pad_id,)
        self.remat, self.row_groups = False, 1  # see Network.on_devices
        padded, own = _blocks_of_64(vocabulary_size), settings.encoder_vocabulary
        self.embedding = _table(padded, settings, rngs)
        self.encoder_embedding = None if own is None else _table(_blocks_of_64(own), settings, rngs)
        pads = None if own else pad_id, pad_id
        self.encoder_input, self.decoder_input = (Embedding(settings, pad, rngs=rngs) for pad in pads)
        self.output_bias = nnx.Param(jnp.zeros(padded)) if settings.biases and settings.output_bias else None
        self.encoder = nnx.List([Block(settings, cross=False, rngs=rngs) for _ in range(settings.encoder_layers)])
        self.decoder = nnx.List([Block(settings, cross=True, rngs=rngs) for _ in range(settings.decoder_layers)])
        self.encoder_norm, self.decoder_norm = (Norm(settings) if settings.norm_first else None for _ in range(2))
        self.encoder_positions = _relative(settings, settings.encoder_layers, causal=False, rngs=rngs)
        self.decoder_positions = _relative(settings, settings.decoder_layers, causal=True, rngs=rngs)
        self.output: nnx.Param | None = None if settings.tied_output else _table(padded, settings, rngs)
        _keep_as(self, settings.parameter_dtype)

    def encode(
        self,
        ids: Int[Array, "B S"],
        positions: Int[Array, "#B S"],
        mask: Bool[Array, "B #S S"],
        key: Array | None = None,
    ) -> Float[Array, "B S D"]:
        """Hidden states of the source."""
        embedding_key, *layer_keys = split_key(key, 1 + len(self.encoder))
        table = self.embedding if self.encoder_embedding is None else self.encoder_embedding
        x = self.encoder_input(ids, table, positions, embedding_key)
        biases = _biases(self.encoder_positions, self.encoder, ahead(positions))
        x = _layers(self, self.encoder, x, mask, biases, lambda block: None, layer_keys)
        return x if self.encoder_norm is None else self.encoder_norm(x)

    def decode(
        self,
        ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        mask: Bool[Array, "B T T"],
        encoded: Float[Array, "B S D"],
        source_mask: Bool[Array, "B #T S"],
        key: Array | None = None,
    ) -> Float[Array, "B T D"]:
        """Hidden states of the target, teacher-forced."""
        embedding_key, *layer_keys = split_key(key, 1 + len(self.decoder))
        x = self.decoder_input(ids, self.embedding, positions, embedding_key)
        biases = _biases(self.decoder_positions, self.decoder, ahead(positions))
        x = _layers(
            self, self.decoder, x, mask, biases, lambda block: attending(block.cross, source_mask, encoded), layer_keys
        )
        return x if self.decoder_norm is None else self.decoder_norm(x)

    def cross_keys(self, encoded: Float[Array, "B S D"]) -> list[KeysAndValues]:
        """Keys and values of the source for every decoder layer: once a source, shared by its N samples."""
        return [block.cross.project(encoded) for block in self.decoder]

    def empty_cache(self, rows: int, steps: int) -> list[KeysAndValues]:
        """Room for the keys and values of `steps` target positions."""
        settings = self.settings
        empty = jnp.zeros((rows, settings.heads, steps, head_width(settings)), settings.dtype)
        return [KeysAndValues(empty, empty) for _ in self.decoder]

    def decode_step(
        self,
        ids: Int[Array, " R"],
        positions: Int[Array, " R"],
        slot: Int[Array, ""],
        cache: list[KeysAndValues],
        source: list[KeysAndValues],
        source_mask: Bool[Array, "B S"],
    ) -> tuple[Float[Array, "R V"], list[KeysAndValues]]:
        """Logits of the next token of R = B·N rows, N neighbours a source.

        The cache is a ring of C slots: every row writes this step's keys and values to `slot` (t modulo C at step t)
        and sees as many slots back as its own position tells. So rows may be at different positions, and no row's
        position may reach C.
        """
        sources, visible = source_mask.shape[0], source_mask[:, None]
        ring = cache[0].keys.shape[2]
        back = (slot - jnp.arange(ring)) % ring
        seen = (back[None] <= positions[:, None])[:, None]
        biases = _biases(self.decoder_positions, self.decoder, -back[None, None])
        x = self.decoder_input(ids[:, None], self.embedding, positions[:, None], None)
        new_cache: list[KeysAndValues] = []
        for block, old, of_source, bias in zip(self.decoder, cache, source, biases, strict=True):

            def attend(
                y: Array, a: Attention = block.attention, old: KeysAndValues = old, bias: Array | None = bias
            ) -> Array:
                new_cache.append(old.put(a.project(y), slot))
                return a(y, new_cache[-1], seen, bias)

            def attend_source(y: Array, a: Attention = block.cross, keys: KeysAndValues = of_source) -> Array:
                # the N samples of a source are N queries over one set of keys
                return a(y.reshape(sources, -1, y.shape[-1]), keys, visible).reshape(y.shape)

            x = block(x, attend, attend_source, None)
        x = x if self.decoder_norm is None else self.decoder_norm(x)
        return self.logits(x[:, 0]), new_cache

    def blocked_bias(self) -> Float[Array, " V"]:
        """Output bias with padding, and the ids that only fill the last block of 64, out of reach."""
        ids = jnp.arange(self.embedding.shape[0])
        allowed = (ids < self.vocabulary_size) & (ids != self.pad_id)
        bias = 0.0 if self.output_bias is None else self.output_bias[...].astype(jnp.float32)
        return jnp.where(allowed, bias, BLOCKED)

    def output_layer(self, hidden: Float[Array, "*B D"]) -> tuple[Float[Array, "*B D"], Float[Array, "V D"]]:
        """What is multiplied for the logits: scaled hidden states, and the weights in their dtype."""
        weights = self.embedding if self.output is None else self.output
        if self.settings.scale_output:
            hidden = hidden * self.settings.width**-0.5
        return hidden, weights[...].astype(hidden.dtype)

    def logits(self, hidden: Float[Array, "B D"]) -> Float[Array, "B V"]:
        """float32 logits over the vocabulary, padded to a multiple of 64."""
        return Normaliser(products=self.settings.products).logits(*self.output_layer(hidden), self.blocked_bias())

    def scores(
        self,
        hidden: Float[Array, "B T D"],
        labels: Int[Array, "B T"],
        chunk: int = 512,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
    ) -> Scores:
        """Log-probabilities of the labels at a temperature.

        Only the normaliser needs the logits of all the vocabulary; that of a label and their mean are products with
        one row of the output layer and with the mean of its rows.
        """
        hidden, weights = self.output_layer(hidden)
        bias = self.blocked_bias()
        allowed = (bias > BLOCKED / 2) / (self.vocabulary_size - 1)
        how = Normaliser(temperature, entropy, self.row_groups, self.settings.products)
        return _scores(hidden, weights, bias, allowed, labels, chunk, how)


def _biases(positions: Any, layers: Any, ahead: Int[Array, "B T M"]) -> list[Array | None]:
    """Of the self-attention of each layer, from relative positions of its own, shared ones or none."""
    found = [of_layer(ahead) for of_layer in positions] or [None]
    return found if len(found) == len(layers) else found * len(layers)


def _layers(
    network: Transformer,
    blocks: Any,
    x: Array,
    mask: Array,
    biases: list[Array | None],
    across: Callable[[Any], Callable[[Array], Array] | None],
    keys: list[Array | None],
) -> Array:
    """All layers of one side; `across` gives a block's attention to the other side, if it has any."""
    for block, bias, key in zip(blocks, biases, keys, strict=True):
        x = layer(network, block)(x, attending(block.attention, mask, bias=bias), across(block), key)
    return x


def _scores(
    hidden: Float[Array, "B T D"],
    weights: Float[Array, "V D"],
    bias: Float[Array, " V"],
    allowed: Float[Array, " V"],
    labels: Int[Array, "B T"],
    chunk: int,
    how: Normaliser,
) -> Scores:
    """`allowed` weighs the ids that can be produced evenly, and the others with 0."""
    batch, steps, _ = hidden.shape
    slices = max(1, min(steps, batch * steps // chunk))
    while steps % slices:
        slices -= 1
    cut = hidden.reshape(batch, slices, steps // slices, -1).swapaxes(0, 1)
    slices_first = cut.reshape(slices, batch * steps // slices, -1)
    total, entropies = (
        part.reshape(slices, batch, -1).swapaxes(0, 1).reshape(batch, steps)
        for part in normaliser(slices_first, weights, bias, how)
    )
    states = hidden.astype(jnp.float32)
    label = jnp.einsum("btd,btd->bt", states, weights[labels].astype(jnp.float32)) + bias[labels]
    mean = states @ (allowed @ weights.astype(jnp.float32)) + jnp.where(allowed > 0, bias, 0.0) @ allowed
    label, mean = label / how.temperature, mean / how.temperature
    return Scores(label - total, mean - total, entropies if how.entropy else None)
