"""The logarithm of the normaliser of a softmax over the vocabulary, with a backward pass of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rest.model.products import Products, rounded, standing


@dataclass(frozen=True)
class Normaliser:
    """How it is computed."""

    temperature: float = 1.0
    entropy: bool = False
    """Whether the entropy is asked for."""
    groups: int = 1
    """Devices that the states of a slice lie on, one group after the other."""
    products: Products = "float32"
    """What the factors of products are rounded to."""

    def factors(self, *matrices: Array) -> tuple[Array, ...]:
        """Matrices as they are multiplied."""
        return rounded(*matrices) if self.products == "bfloat16" else matrices

    def logits(self, states: Array, weights: Array, bias: Array) -> Array:
        """Float32 [N, V], of one slice."""
        states, weights = self.factors(states, weights)
        logits = jnp.matmul(states, weights.T, preferred_element_type=jnp.float32) + bias[None]
        return logits if self.temperature == 1 else logits / self.temperature


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def normaliser(
    states: Float[Array, "C N D"], weights: Float[Array, "V D"], bias: Float[Array, " V"], how: Normaliser
) -> tuple[Float[Array, "C N"], Float[Array, "C N"]]:
    """Logarithm of the sum of exponentiated logits, and the entropy of their softmax (0 if not asked for), nats.

    C slices of N states, one after another: [C, N, V] never exists. The backward pass computes a slice's logits anew,
    but neither their maximum nor their sum. With several groups each device sums the gradient of the weights by itself,
    and all tell each other the sum of all slices.
    """
    return _forward(states, weights, bias, how)[0]


def _forward(states: Array, weights: Array, bias: Array, how: Normaliser) -> tuple[Any, Any]:
    def of_slice(part: Array) -> tuple[Array, Array]:
        logits = how.logits(part, weights, bias)
        total = jax.nn.logsumexp(logits, axis=-1)
        if not how.entropy:
            return total, jnp.zeros_like(total)
        return total, total - (jnp.exp(logits - total[:, None]) * logits).sum(-1)

    found = jax.lax.map(of_slice, states)
    return found, (states, weights, bias, *found)


def _backward(how: Normaliser, kept: Any, cotangents: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    states, weights, bias, totals, entropies = kept
    groups = how.groups

    def of_slice(sums: tuple[Array, Array], part: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        x, total, h, to_total, to_entropy = part
        surprise = how.logits(x, weights, bias) - total[:, None]
        slopes = jnp.exp(surprise)  # the softmax, which is what a normaliser's derivative is
        factor = to_total[:, None] / how.temperature  # of a row: it scales a product's row instead of [N, V]
        if how.entropy:
            slopes = slopes * (to_total[:, None] - to_entropy[:, None] * (surprise + h[:, None]))
            factor = jnp.full_like(factor, 1 / how.temperature)
        scaled = x * factor.astype(x.dtype)
        slopes, scaled, rows = how.factors(slopes.astype(x.dtype), scaled, weights)
        if groups == 1:
            across = standing(slopes) if how.products == "bfloat16" else slopes.T
            to_weights = jnp.matmul(across, scaled, preferred_element_type=jnp.float32)
        else:
            cut = [part.reshape(groups, -1, part.shape[-1]) for part in (slopes, scaled)]
            to_weights = jnp.einsum("gnv,gnd->gvd", *cut, preferred_element_type=jnp.float32)
        to_states = jnp.matmul(slopes, rows, preferred_element_type=jnp.float32) * factor
        to_bias = factor[:, 0] @ slopes.astype(jnp.float32)
        return (sums[0] + to_weights, sums[1] + to_bias), to_states.astype(x.dtype)

    shape = weights.shape if groups == 1 else (groups, *weights.shape)
    none = jnp.zeros(shape, jnp.float32), jnp.zeros(bias.shape, jnp.float32)
    (to_weights, to_bias), to_states = jax.lax.scan(of_slice, none, (states, totals, entropies, *cotangents))
    to_weights = to_weights if groups == 1 else to_weights.sum(0)
    return to_states, to_weights.astype(weights.dtype), to_bias


normaliser.defvjp(_forward, _backward)
