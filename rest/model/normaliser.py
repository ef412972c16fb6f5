"""The logarithm of the normaliser of a softmax over the vocabulary, with a backward pass of its own."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normaliser(
    states: Float[Array, "C N D"],
    weights: Float[Array, "V D"],
    bias: Float[Array, " V"],
    temperature: float,
    entropy: bool,
    groups: int = 1,
) -> tuple[Float[Array, "C N"], Float[Array, "C N"]]:
    """Logarithm of the sum of exponentiated logits, and the entropy of their softmax (0 if not asked for), nats.

    C slices of N states, one after another: [C, N, V] never exists. The backward pass computes a slice's logits anew,
    but neither their maximum nor their sum. Where the states of a slice lie on several devices, one group after the
    other, each device sums the gradient of the weights by itself, and all tell each other the sum of all slices.
    """
    return _forward(states, weights, bias, temperature, entropy, groups)[0]


def _logits(states: Array, weights: Array, bias: Array, temperature: float) -> Array:
    logits = jnp.matmul(states, weights.T, preferred_element_type=jnp.float32) + bias[None]
    return logits if temperature == 1 else logits / temperature


def _forward(
    states: Array, weights: Array, bias: Array, temperature: float, entropy: bool, groups: int
) -> tuple[Any, Any]:
    def of_slice(part: Array) -> tuple[Array, Array]:
        logits = _logits(part, weights, bias, temperature)
        total = jax.nn.logsumexp(logits, axis=-1)
        if not entropy:
            return total, jnp.zeros_like(total)
        return total, total - (jnp.exp(logits - total[:, None]) * logits).sum(-1)

    found = jax.lax.map(of_slice, states)
    return found, (states, weights, bias, *found)


def _backward(
    temperature: float, entropy: bool, groups: int, kept: Any, cotangents: tuple[Array, Array]
) -> tuple[Array, Array, Array]:
    states, weights, bias, totals, entropies = kept

    def of_slice(sums: tuple[Array, Array], part: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        x, total, h, to_total, to_entropy = part
        surprise = _logits(x, weights, bias, temperature) - total[:, None]
        slopes = jnp.exp(surprise)  # the softmax, which is what a normaliser's derivative is
        factor = to_total[:, None] / temperature  # of a row: it scales a product's row instead of [N, V]
        if entropy:
            slopes = slopes * (to_total[:, None] - to_entropy[:, None] * (surprise + h[:, None]))
            factor = jnp.full_like(factor, 1 / temperature)
        slopes = slopes.astype(x.dtype)
        scaled = x * factor.astype(x.dtype)
        if groups == 1:
            to_weights = jnp.matmul(slopes.T, scaled, preferred_element_type=jnp.float32)
        else:
            rows = [part.reshape(groups, -1, part.shape[-1]) for part in (slopes, scaled)]
            to_weights = jnp.einsum("gnv,gnd->gvd", *rows, preferred_element_type=jnp.float32)
        to_states = jnp.matmul(slopes, weights, preferred_element_type=jnp.float32) * factor
        to_bias = factor[:, 0] @ slopes.astype(jnp.float32)
        return (sums[0] + to_weights, sums[1] + to_bias), to_states.astype(x.dtype)

    shape = weights.shape if groups == 1 else (groups, *weights.shape)
    none = jnp.zeros(shape, jnp.float32), jnp.zeros(bias.shape, jnp.float32)
    (to_weights, to_bias), to_states = jax.lax.scan(of_slice, none, (states, totals, entropies, *cotangents))
    to_weights = to_weights if groups == 1 else to_weights.sum(0)
    return to_states, to_weights.astype(weights.dtype), to_bias


normaliser.defvjp(_forward, _backward)
