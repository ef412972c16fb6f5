"""Products of matrices whose factors are rounded to bfloat16, and whose sums are float32, forwards and backwards.

It is what a TPU makes of float32 matrices by default. CPUs with AMX multiply bfloat16 several times as fast as float32,
those with AVX512-BF16 about twice as fast. XLA does so there only where the result is float32: where that is bfloat16
too, it multiplies float32.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Products = Literal["float32", "bfloat16"]


@jax.custom_vjp
def rounded_product(x: Float[Array, "N D"], kernel: Float[Array, "D F"]) -> Float[Array, "N F"]:
    """x · kernel, float32; gradients are of the types of x and kernel."""
    return _forward(x, kernel)[0]


def rounded(*factors: Array) -> tuple[Array, ...]:
    """Factors as they are multiplied, bfloat16."""
    return tuple(factor.astype(jnp.bfloat16) for factor in factors)


def standing(x: Float[Array, "N D"]) -> Float[Array, "D N"]:
    """x transposed in memory, since XLA on CPU multiplies an operand that is only read transposed as float32."""
    return x.reshape(len(x), 1, -1).transpose(2, 1, 0).reshape(-1, len(x))


def _forward(x: Array, kernel: Array) -> tuple[Array, Any]:
    low, weights = rounded(x, kernel)
    return jnp.matmul(low, weights, preferred_element_type=jnp.float32), (low, kernel, x[:0])


def _backward(kept: Any, to_y: Array) -> tuple[Array, Array]:
    x, kernel, like = kept
    low, weights = rounded(to_y, kernel)
    to_x = jnp.matmul(low, weights.T, preferred_element_type=jnp.float32)
    to_kernel = jnp.matmul(standing(x), low, preferred_element_type=jnp.float32)
    return to_x.astype(like.dtype), to_kernel.astype(kernel.dtype)


rounded_product.defvjp(_forward, _backward)
