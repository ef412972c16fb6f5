"""The encoder-decoder transformer (Vaswani et al. 2017), laid out as Marian by default.

Post-norm LayerNorm, sinusoidal positions, one embedding for source, target and output, and a bias on the logits
(Junczys-Dowmunt et al. 2018). Settings choose what T5 (Raffel et al. 2020) has instead: pre-norm, RMSNorm, gated
feed-forward layers, relative positions, no biases, an output layer of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rest.errors import UserError
from rest.model.normaliser import normaliser
from rest.model.positions import RelativePositions, ahead, sinusoids

BLOCKED = -1e9  # logit of an id that must never be produced; finite, so that 0 x BLOCKED is not NaN
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": jax.nn.gelu,
}


@dataclass(frozen=True)
class TransformerSettings:
    """Sizes and variants of the network."""

    width: int = 256
    heads: int = 4
    feed_forward: int = 1024
    encoder_layers: int = 3
    decoder_layers: int = 3
    dropout: float = 0.1
    activation: Literal["relu", "silu", "gelu", "gelu_tanh"] = "relu"
    """gelu is exact, gelu_tanh its usual approximation."""
    gated: bool = False
    """Gated feed-forward layer (T5 1.1)."""
    norm: Literal["layer", "rms"] = "layer"
    norm_first: bool = False
    """Normalise the input of a layer (T5) instead of its output (Marian)."""
    norm_epsilon: float | None = None
    """Added to the variance; None: 1e-5 for LayerNorm, 1e-6 for RMSNorm."""
    head_width: int | None = None
    """None: width / heads."""
    biases: bool = True
    """Of linear layers and of the output; T5 has none."""
    positions: Literal["sinusoidal", "relative"] = "sinusoidal"
    """Added to the embedding, or a bias of self-attention that depends on the distance (T5)."""
    relative_buckets: int = 32
    relative_distance: int = 128
    """Where relative positions stop to differ."""
    scale_embedding: bool = True
    """Multiply embeddings by sqrt(width)."""
    scale_attention: bool = True
    """Divide the logits of attention by sqrt(head width)."""
    scale_output: bool = False
    """Divide the last hidden state by sqrt(width) before the output layer (T5 1.0)."""
    tied_output: bool = True
    """The embedding is the output layer too."""
    zero_start: bool = True
    """The decoder starts from a zero embedding (Marian) instead of that of padding (T5)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and matrix products; parameters, softmax and log-probabilities are float32."""

    def __post_init__(self) -> None:
        if self.head_width is None and self.width % (2 * self.heads):
            raise UserError(f"model: width {self.width} must be a multiple of twice the heads, {self.heads}")


class Keys(NamedTuple):
    """Keys and values of one attention layer."""

    keys: Array  # [rows, H, time, K]
    values: Array  # [rows, H, time, K]


class Scores(NamedTuple):
    """What a loss needs of the output distribution, a token each; nats."""

    log_probs: Array  # float32 [B, T], log-probability of the label
    mean_log_probs: Array  # float32 [B, T], mean over the vocabulary, for label smoothing
    entropies: Array | None = None  # float32 [B, T], of the next token, where asked for


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Inverted dropout with 8 random bits an element; the rate is rounded to 1/256."""
    drop = round(rate * 256)
    if key is None or drop == 0:
        return x
    # a word holds the bytes of four elements; the barrier keeps words, not masks, for the backward pass
    words = jax.random.bits(key, (*x.shape[:-1], 1, -(-x.shape[-1] // 4)), jnp.uint32)
    shifts = jnp.arange(0, 32, 8, dtype=jnp.uint32).reshape((1,) * (x.ndim - 1) + (4, 1))
    found = (jax.lax.optimization_barrier(words) >> shifts) & 255
    keep = found.reshape(*x.shape[:-1], -1)[..., : x.shape[-1]] >= drop
    return jnp.where(keep, x * (256.0 / (256 - drop)), 0).astype(x.dtype)


def split_key(key: Array | None, n: int) -> list[Array | None]:
    return [None] * n if key is None else list(jax.random.split(key, n))


class Linear(nnx.Module):
    """y = x W + b, in the dtype of x; b may be left out.

    The product is one of two matrices: with more axes XLA on CPU transposes what W's gradient contracts.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(nnx.initializers.xavier_uniform()(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: Float[Array, "*B inputs"]) -> Float[Array, "*B outputs"]:
        y = x.reshape(-1, x.shape[-1]) @ self.kernel[...].astype(x.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)[None]
        return y.reshape(*x.shape[:-1], -1)


class Norm(nnx.Module):
    """LayerNorm or RMSNorm over the last axis, computed in float32."""

    def __init__(self, settings: TransformerSettings) -> None:
        self.kind = settings.norm
        usual = 1e-5 if self.kind == "layer" else 1e-6
        self.epsilon = usual if settings.norm_epsilon is None else settings.norm_epsilon
        self.scale = nnx.Param(jnp.ones(settings.width))
        self.bias = nnx.Param(jnp.zeros(settings.width)) if self.kind == "layer" else None

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y = x.astype(jnp.float32)
        wide = (1,) * (x.ndim - 1) + (-1,)
        if self.bias is not None:
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        y = y * self.scale[...].reshape(wide)
        if self.bias is not None:
            y = y + self.bias[...].reshape(wide)
        return y.astype(x.dtype)


def head_width(settings: TransformerSettings) -> int:
    return settings.head_width or settings.width // settings.heads


class Attention(nnx.Module):
    """Multi-head attention whose keys and values can be computed once and kept."""

    def __init__(self, settings: TransformerSettings, *, rngs: nnx.Rngs) -> None:
        self.heads, width, inner = settings.heads, settings.width, settings.heads * head_width(settings)
        self.scale = head_width(settings) ** -0.5 if settings.scale_attention else 1.0
        self.query = Linear(width, inner, bias=settings.biases, rngs=rngs)
        self.key = Linear(width, inner, bias=settings.biases, rngs=rngs)
        self.value = Linear(width, inner, bias=settings.biases, rngs=rngs)
        self.output = Linear(inner, width, bias=settings.biases, rngs=rngs)

    def split(self, x: Float[Array, "B T HK"]) -> Float[Array, "B H T K"]:
        return x.reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)

    def project(self, x: Float[Array, "B M D"]) -> Keys:
        """Keys and values of the attended positions."""
        return Keys(self.split(self.key(x)), self.split(self.value(x)))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        attended: Keys,
        mask: Bool[Array, "B #T M"],
        bias: Float[Array, "#B H T M"] | None = None,
    ) -> Float[Array, "B T D"]:
        query = self.split(self.query(x)) * self.scale
        logits = jnp.einsum("bhtk,bhmk->bhtm", query, attended.keys).astype(jnp.float32)
        if bias is not None:
            logits = logits + bias
        weights = jax.nn.softmax(jnp.where(mask[:, None], logits, BLOCKED), axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bhtm,bhmk->bhtk", weights, attended.values)
        return self.output(mixed.swapaxes(1, 2).reshape(*x.shape[:2], -1))


class FeedForward(nnx.Module):
    """Two linear layers with an activation between them, gated if asked."""

    def __init__(self, settings: TransformerSettings, *, rngs: nnx.Rngs) -> None:
        self.activation = ACTIVATIONS[settings.activation]
        width, inner, bias = settings.width, settings.feed_forward, settings.biases
        self.inner = Linear(width, inner, bias=bias, rngs=rngs)
        self.gate = Linear(width, inner, bias=bias, rngs=rngs) if settings.gated else None
        self.outer = Linear(inner, width, bias=bias, rngs=rngs)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        inner = self.activation(self.inner(x))
        return self.outer(inner if self.gate is None else inner * self.gate(x))


def attending(
    attention: Attention, mask: Array, states: Array | None = None, bias: Array | None = None
) -> Callable[[Array], Array]:
    """Attention to `states`, by default to the queries' own."""
    return lambda y: attention(y, attention.project(y if states is None else states), mask, bias)


class Block(nnx.Module):
    """One layer: self-attention, cross-attention in the decoder, feed-forward, each with its residual and norm."""

    def __init__(self, settings: TransformerSettings, *, cross: bool, rngs: nnx.Rngs) -> None:
        self.rate, self.norm_first = settings.dropout, settings.norm_first
        self.attention, self.attention_norm = Attention(settings, rngs=rngs), Norm(settings)
        self.cross: Any = Attention(settings, rngs=rngs) if cross else None
        self.cross_norm = Norm(settings) if cross else None
        self.feed_forward, self.feed_forward_norm = FeedForward(settings, rngs=rngs), Norm(settings)

    def residual(self, x: Array, norm: Norm, layer: Callable[[Array], Array], key: Array | None) -> Array:
        if self.norm_first:
            return x + dropout(layer(norm(x)), self.rate, key)
        return norm(x + dropout(layer(x), self.rate, key))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        attend: Callable[[Array], Array],
        attend_source: Callable[[Array], Array] | None,
        key: Array | None,
    ) -> Float[Array, "B T D"]:
        """`attend` and `attend_source` map the (normalised) input to the attention's output."""
        first, second, third = split_key(key, 3)
        x = self.residual(x, self.attention_norm, attend, first)
        if attend_source is not None and self.cross_norm is not None:
            x = self.residual(x, self.cross_norm, attend_source, second)
        return self.residual(x, self.feed_forward_norm, self.feed_forward, third)


def layer(network: Any, block: Block) -> Callable[..., Array]:
    """The block, whose activations are computed again in the backward pass where the network has `remat`."""
    if not network.remat:
        return block
    return lambda x, attend, attend_source, key: jax.checkpoint(lambda x, key: block(x, attend, attend_source, key))(
        x, key
    )


def rematerialised(objective: Any, parameters: Any) -> Any:
    """The objective, a dataclass with a `graph`, with `remat` in every stack of layers of its network."""
    network = nnx.merge(objective.graph, {name: part for name, part in parameters.items() if name != "duals"})
    for _, node in nnx.iter_graph(network):
        if hasattr(node, "remat"):
            node.remat = True
    return dataclasses.replace(objective, graph=nnx.split(network)[0])


class Transformer(nnx.Module):
    """Encoder-decoder. Masks are bool, True = may be seen; ids `blocked` are never produced."""

    def __init__(self, settings: TransformerSettings, vocabulary_size: int, *, pad_id: int, rngs: nnx.Rngs) -> None:
        self.settings, self.vocabulary_size, self.pad_id = settings, vocabulary_size, pad_id
        self.remat = False
        padded = -(-vocabulary_size // 64) * 64  # the sampler searches blocks of 64
        scale = settings.width**-0.5
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (padded, settings.width)) * scale)
        self.output_bias = nnx.Param(jnp.zeros(padded)) if settings.biases else None
        self.encoder = nnx.List([Block(settings, cross=False, rngs=rngs) for _ in range(settings.encoder_layers)])
        self.decoder = nnx.List([Block(settings, cross=True, rngs=rngs) for _ in range(settings.decoder_layers)])
        self.encoder_norm = Norm(settings) if settings.norm_first else None
        self.decoder_norm = Norm(settings) if settings.norm_first else None
        self.encoder_positions: Any = None
        self.decoder_positions: Any = None
        if settings.positions == "relative":
            sizes = settings.heads, settings.relative_buckets, settings.relative_distance
            self.encoder_positions = nnx.data(RelativePositions(*sizes, causal=False, rngs=rngs))
            self.decoder_positions = nnx.data(RelativePositions(*sizes, causal=True, rngs=rngs))
        self.output: nnx.Param | None = (
            None
            if settings.tied_output
            else nnx.Param(jax.random.normal(rngs.params(), (padded, settings.width)) * scale)
        )

    def embed(self, ids: Int[Array, "B T"], positions: Int[Array, "#B T"], key: Array | None) -> Array:
        settings = self.settings
        x = self.embedding[...][ids]
        if settings.scale_embedding:
            x = x * settings.width**0.5
        if settings.zero_start:
            x = jnp.where((ids == self.pad_id)[..., None], 0.0, x)
        if settings.positions == "sinusoidal":
            x = x + sinusoids(positions, settings.width)
        return dropout(x.astype(self.settings.dtype), self.settings.dropout, key)

    def encode(
        self,
        ids: Int[Array, "B S"],
        positions: Int[Array, "#B S"],
        mask: Bool[Array, "B #S S"],
        key: Array | None = None,
    ) -> Float[Array, "B S D"]:
        """Hidden states of the source."""
        embedding_key, *layer_keys = split_key(key, 1 + len(self.encoder))
        x = self.embed(ids, positions, embedding_key)
        bias = None if self.encoder_positions is None else self.encoder_positions(ahead(positions))
        for block, layer_key in zip(self.encoder, layer_keys, strict=True):
            x = layer(self, block)(x, attending(block.attention, mask, bias=bias), None, layer_key)
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
        x = self.embed(ids, positions, embedding_key)
        bias = None if self.decoder_positions is None else self.decoder_positions(ahead(positions))
        for block, layer_key in zip(self.decoder, layer_keys, strict=True):
            x = layer(self, block)(
                x,
                attending(block.attention, mask, bias=bias),
                attending(block.cross, source_mask, encoded),
                layer_key,
            )
        return x if self.decoder_norm is None else self.decoder_norm(x)

    def cross_keys(self, encoded: Float[Array, "B S D"]) -> list[Keys]:
        """Keys and values of the source for every decoder layer: once a source, shared by its N samples."""
        return [block.cross.project(encoded) for block in self.decoder]

    def empty_cache(self, rows: int, steps: int) -> list[Keys]:
        """Room for the keys and values of `steps` target positions."""
        settings = self.settings
        empty = jnp.zeros((rows, settings.heads, steps, head_width(settings)), settings.dtype)
        return [Keys(empty, empty) for _ in self.decoder]

    def decode_step(
        self,
        ids: Int[Array, " R"],
        positions: Int[Array, " R"],
        slot: Int[Array, ""],
        cache: list[Keys],
        source: list[Keys],
        source_mask: Bool[Array, "B S"],
    ) -> tuple[Float[Array, "R V"], list[Keys]]:
        """Logits of the next token of R = B·N rows, N neighbours a source.

        The cache is a ring of C slots: every row writes this step's keys and values to `slot` (t modulo C at step t)
        and sees as many slots back as its own position tells. So rows may be at different positions, and no row's
        position may reach C.
        """
        sources = source_mask.shape[0]
        ring = cache[0].keys.shape[2]
        back = (slot - jnp.arange(ring)) % ring
        seen = (back[None] <= positions[:, None])[:, None]
        bias = None if self.decoder_positions is None else self.decoder_positions(-back[None, None])
        visible = source_mask[:, None]
        x = self.embed(ids[:, None], positions[:, None], None)
        new_cache = []
        for block, old, of_source in zip(self.decoder, cache, source, strict=True):

            def attend(y: Array, a: Attention = block.attention, old: Keys = old) -> Array:
                new = a.project(y)
                kept = Keys(
                    *(jax.lax.dynamic_update_slice_in_dim(o, n, slot, 2) for o, n in zip(old, new, strict=True))
                )
                new_cache.append(kept)
                return a(y, kept, seen, bias)

            def attend_source(y: Array, a: Attention = block.cross, keys: Keys = of_source) -> Array:
                # the N samples of a source are N queries over one set of keys
                return a(y.reshape(sources, -1, y.shape[-1]), keys, visible).reshape(y.shape)

            x = block(x, attend, attend_source, None)
        if self.decoder_norm is not None:
            x = self.decoder_norm(x)
        return self.logits(x[:, 0]), new_cache

    def blocked_bias(self) -> Float[Array, " V"]:
        """Output bias with padding, and the ids that only fill the last block of 64, out of reach."""
        ids = jnp.arange(self.embedding.shape[0])
        allowed = (ids < self.vocabulary_size) & (ids != self.pad_id)
        return jnp.where(allowed, 0.0 if self.output_bias is None else self.output_bias[...], BLOCKED)

    def output_layer(self, hidden: Float[Array, "*B D"]) -> tuple[Float[Array, "*B D"], Float[Array, "V D"]]:
        """What is multiplied for the logits: scaled hidden states, and the weights in their dtype."""
        weights = self.embedding if self.output is None else self.output
        if self.settings.scale_output:
            hidden = hidden * self.settings.width**-0.5
        return hidden, weights[...].astype(hidden.dtype)

    def logits(self, hidden: Float[Array, "B D"]) -> Float[Array, "B V"]:
        """float32 logits over the vocabulary, padded to a multiple of 64."""
        hidden, weights = self.output_layer(hidden)
        return (hidden @ weights.T).astype(jnp.float32) + self.blocked_bias()[None]

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
        batch, steps, _ = hidden.shape
        hidden, weights = self.output_layer(hidden)
        bias = self.blocked_bias()
        slices = max(1, min(steps, batch * steps // chunk))
        while steps % slices:
            slices -= 1
        cut = hidden.reshape(batch, slices, steps // slices, -1).swapaxes(0, 1)
        slices_first = cut.reshape(slices, batch * steps // slices, -1)
        total, entropies = (
            part.reshape(slices, batch, -1).swapaxes(0, 1).reshape(batch, steps)
            for part in normaliser(slices_first, weights, bias, temperature, entropy)
        )
        states = hidden.astype(jnp.float32)
        label = jnp.einsum("btd,btd->bt", states, weights[labels].astype(jnp.float32)) + bias[labels]
        allowed = (bias > BLOCKED / 2) / (self.vocabulary_size - 1)
        mean = states @ (allowed @ weights.astype(jnp.float32)) + jnp.where(allowed > 0, bias, 0.0) @ allowed
        label, mean = label / temperature, mean / temperature
        return Scores(label - total, mean - total, entropies if entropy else None)
