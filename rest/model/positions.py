"""Where a token stands: what is added to its embedding, or a bias of attention for each distance."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

FIRST = 2  # position of the first token in fairseq, which comes after that of padding


def sinusoids(positions: Int[Array, "..."], width: int, *, reached: bool = False) -> Float[Array, "... D"]:
    """Sines in the first half, cosines in the second, as Marian orders them.

    Rates fall from 1 towards 1/10000, which fairseq's last one has reached and Marian's has not.
    """
    half = width // 2
    rates = jnp.exp(jnp.arange(half, dtype=jnp.float32) * (-math.log(10000.0) / (half - reached)))
    angles = positions[..., None].astype(jnp.float32) * rates.reshape((1,) * positions.ndim + (half,))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class RelativePositions(nnx.Module):
    """A bias of self-attention for each head and distance, shared by the layers of a side (Raffel et al. 2020)."""

    def __init__(self, heads: int, buckets: int, furthest: int, *, causal: bool, rngs: nnx.Rngs) -> None:
        self.buckets, self.furthest, self.causal = buckets, furthest, causal
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (buckets, heads)) * buckets**-0.5)

    def __call__(self, ahead: Int[Array, "B T M"]) -> Float[Array, "B H T M"]:
        """`ahead` says how far a key is ahead of the query; behind is negative."""
        buckets = self.buckets if self.causal else self.buckets // 2
        bucket = jnp.asarray(distance_buckets(buckets, self.furthest))[jnp.clip(jnp.abs(ahead), 0, self.furthest)]
        # what is ahead has the other half of the buckets, or, where it is never seen, none of its own
        bucket = jnp.where(ahead > 0, 0, bucket) if self.causal else bucket + jnp.where(ahead > 0, buckets, 0)
        return jnp.moveaxis(self.weight[...][bucket], -1, 1)


def ahead(positions: Int[Array, "B T"]) -> Int[Array, "B T T"]:
    """How far a key is ahead of a query."""
    return positions[:, None, :] - positions[:, :, None]


def distance_buckets(buckets: int, furthest: int) -> np.ndarray:
    """The bucket of each distance from 0 to `furthest`: half have one distance each, the others grow with it."""
    exact = buckets // 2
    distances = np.arange(furthest + 1)
    far = np.log(np.maximum(distances, exact).astype(np.float32) / exact) / math.log(furthest / exact)
    far = np.minimum(exact + (far * (buckets - exact)).astype(np.int32), buckets - 1)
    return np.where(distances < exact, distances, far).astype(np.int32)
