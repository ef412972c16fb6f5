"""Softmax attention: by a kernel of cuDNN that keeps no logits, where there is one, and plainly elsewhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rest.learning.mesh import has_cudnn

BLOCKED = -1e9  # logit of what must never be seen or produced; finite, so that 0 x BLOCKED is not NaN
FEWEST_QUERIES = 32  # with fewer, as in a step of decoding, there are few logits to keep


def attend(
    query: Float[Array, "B H T K"],
    keys: Float[Array, "B H M K"],
    values: Float[Array, "B H M K"],
    mask: Bool[Array, "B #T M"],
    bias: Float[Array, "#B H T M"] | None = None,
) -> Float[Array, "B H T K"]:
    """The mean of the values by the softmax of query · key + bias, which is float32, over the keys that may be seen."""
    if has_cudnn() and _kernel_takes(query, keys):
        return _fused(query, keys, values, mask, bias)
    logits = jnp.einsum("bhtk,bhmk->bhtm", query, keys, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    weights = jax.nn.softmax(jnp.where(mask[:, None], logits, BLOCKED), axis=-1).astype(query.dtype)
    return jnp.einsum("bhtm,bhmk->bhtk", weights, values)


def _kernel_takes(query: Array, keys: Array) -> bool:
    """Whether cuDNN's kernel has these shapes and types, forwards and backwards, on every GPU that has the kernel."""
    heads_fit = query.shape[-1] % 8 == 0 and query.shape[-1] <= 128
    even = query.shape[2] % 2 == 0 and keys.shape[2] % 2 == 0
    return query.dtype == keys.dtype == jnp.bfloat16 and heads_fit and even and query.shape[2] >= FEWEST_QUERIES


def _fused(query: Array, keys: Array, values: Array, mask: Array, bias: Array | None) -> Array:
    """The same by cuDNN: logits and softmax are float32 inside, and neither is written to memory."""
    query, keys, values = (x.swapaxes(1, 2) for x in (query, keys, values))
    seen = jnp.broadcast_to(mask[:, None], (mask.shape[0], 1, query.shape[1], keys.shape[1]))
    if bias is not None:
        bias = bias.astype(query.dtype)
    mixed = jax.nn.dot_product_attention(query, keys, values, bias, seen, scale=1.0, implementation="cudnn")
    return mixed.swapaxes(1, 2)
