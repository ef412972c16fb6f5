"""What the transformer is made of: its sizes and variants, attention, feed-forward layers, norms, dropout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from rest.errors import UserError, refuse_below, refuse_shares
from rest.model.attention import attend
from rest.model.products import Products, rounded_product

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
    output_bias: bool = True
    """Of the output, where there are biases; M2M100 has none there."""
    positions: Literal["sinusoidal", "fairseq", "learned", "relative"] = "sinusoidal"
    """Added to the embedding: sinusoids (Marian), those of fairseq (M2M100) or learned ones (mBART), both from
    position 2 on; or a bias of self-attention that depends on the distance (T5)."""
    max_positions: int = 1024
    """Rows of the table of learned positions, beside the two that are never a token's."""
    relative_buckets: int = 32
    relative_distance: int = 128
    """Where relative positions stop to differ."""
    relative_each_layer: bool = False
    """Every layer has relative positions of its own (umT5), and not only the first, for all."""
    encoder_vocabulary: int | None = None
    """Ids of the source where it has an embedding of its own (some Marian); None: one embedding serves both sides."""
    scale_embedding: bool = True
    """Multiply embeddings by sqrt(width)."""
    embedding_norm: bool = False
    """Normalise the sum of embedding and position (mBART)."""
    scale_attention: bool = True
    """Divide the logits of attention by sqrt(head width)."""
    scale_output: bool = False
    """Divide the last hidden state by sqrt(width) before the output layer (T5 1.0)."""
    tied_output: bool = True
    """The embedding is the output layer too."""
    zero_start: bool = True
    """The decoder starts from a zero embedding (Marian) instead of that of padding (T5)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and matrix products; norms, softmax and log-probabilities are float32."""
    products: Products = "float32"
    """What the factors of linear layers and of the output are rounded to where `dtype` is float32; sums are float32.
    On CPU this, and not `dtype`, makes bfloat16 fast (docs/models.md)."""
    parameter_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the parameters in memory and on disk; what an optimizer keeps of them is float32."""

    def __post_init__(self) -> None:
        sizes = ("width", "heads", "feed_forward", "encoder_layers", "decoder_layers", "head_width", "max_positions")
        refuse_below("model: ", self, dict.fromkeys(sizes, 1))
        refuse_shares("model: ", self, "dropout")
        if self.head_width is None and self.width % (2 * self.heads):
            raise UserError(f"model: width {self.width} must be a multiple of twice the heads, {self.heads}")

    @property
    def factors(self) -> Products:
        """What matrix products multiply."""
        return self.products if self.dtype == "float32" else self.dtype


class KeysAndValues(NamedTuple):
    """Keys and values of one attention layer."""

    keys: Array  # [rows, H, time, K]
    values: Array  # [rows, H, time, K]

    def put(self, new: KeysAndValues, at: Array) -> KeysAndValues:
        """With those of new positions from position `at` on."""
        pairs = zip(self, new, strict=True)
        return KeysAndValues(*(jax.lax.dynamic_update_slice_in_dim(old, x, at, 2) for old, x in pairs))


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

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool = True, products: Products = "float32", rngs: nnx.Rngs
    ) -> None:
        self.products = products
        self.kernel = nnx.Param(nnx.initializers.xavier_uniform()(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: Float[Array, "*B inputs"]) -> Float[Array, "*B outputs"]:
        rows, kernel = x.reshape(-1, x.shape[-1]), self.kernel[...]
        low = self.products == "bfloat16" and x.dtype == jnp.float32
        y = rounded_product(rows, kernel) if low else rows @ kernel.astype(x.dtype)
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
        linear = partial(Linear, bias=settings.biases, products=settings.products, rngs=rngs)
        self.query, self.key, self.value = (linear(width, inner) for _ in range(3))
        self.output = linear(inner, width)

    def split(self, x: Float[Array, "B T HK"]) -> Float[Array, "B H T K"]:
        return x.reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)

    def project(self, x: Float[Array, "B M D"]) -> KeysAndValues:
        """Keys and values of the attended positions."""
        return KeysAndValues(self.split(self.key(x)), self.split(self.value(x)))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        attended: KeysAndValues,
        mask: Bool[Array, "B #T M"],
        bias: Float[Array, "#B H T M"] | None = None,
    ) -> Float[Array, "B T D"]:
        query = self.split(self.query(x)) * self.scale
        mixed = attend(query, attended.keys, attended.values, mask, bias)
        return self.output(mixed.swapaxes(1, 2).reshape(*x.shape[:2], -1))


class FeedForward(nnx.Module):
    """Two linear layers with an activation between them, gated if asked."""

    def __init__(self, settings: TransformerSettings, *, rngs: nnx.Rngs) -> None:
        self.activation = ACTIVATIONS[settings.activation]
        width, inner = settings.width, settings.feed_forward
        linear = partial(Linear, bias=settings.biases, products=settings.products, rngs=rngs)
        self.inner = linear(width, inner)
        self.gate = linear(width, inner) if settings.gated else None
        self.outer = linear(inner, width)

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
