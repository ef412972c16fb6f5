"""Sequences that share a packed row: from numbers of tokens to numbers of sequences and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Segments:
    """Which sequence of its packed row each token is of. B rows of T tokens, of Q sequences at most.

    Numbers of tokens are [B, T], numbers of sequences [B, Q]; sequence q of a row has the segment id q + 1.
    """

    ids: Any  # int32 [B, T], 1.. for the sequences of the row; 0: padding

    @property
    def mask(self) -> Bool[Array, "B T"]:
        """True on real tokens."""
        return self.ids > 0

    def own(self, sequences: int) -> Bool[Array, "B T Q"]:
        """Which tokens are of which of Q sequences."""
        return self.ids[:, :, None] == jnp.arange(1, sequences + 1)[None, None]

    def lengths(self, sequences: int) -> Float[Array, "B Q"]:
        """Tokens of each of Q sequences; 0 where a row has fewer."""
        return self.own(sequences).astype(jnp.float32).sum(1)

    def spread(self, numbers: Shaped[Array, "B Q"]) -> Shaped[Array, "B T"]:
        """A sequence's number at each of its tokens; what padding gets means nothing."""
        return jnp.take_along_axis(numbers, jnp.maximum(self.ids - 1, 0), axis=1)

    def sums(self, numbers: Float[Array, "B T"], sequences: int) -> Float[Array, "B Q"]:
        """The sum over the tokens of each of Q sequences; 0 where a row has fewer."""
        return jnp.where(self.own(sequences), numbers[:, :, None], 0.0).sum(1)

    def means(self, numbers: Float[Array, "B T F"], sequences: int) -> Float[Array, "B Q F"]:
        """The means, float32, over the tokens of each of Q sequences; 0 where a row has fewer."""
        own = self.own(sequences)
        lengths = jnp.maximum(own.sum(1), 1)[..., None]
        return jnp.einsum("btq,btf->bqf", own.astype(jnp.float32), numbers) / lengths

    def lowest(self, numbers: Float[Array, "B T"], sequences: int) -> Float[Array, "B Q"]:
        """The least of 0 and the numbers at the tokens of each of Q sequences, as of log-probabilities."""
        return jnp.where(self.own(sequences), numbers[..., None], 0.0).min(1)

    def later(self, numbers: Float[Array, "B T"], steps: int, end: float) -> Float[Array, "B T"]:
        """The number `steps` tokens later in the same sequence, and `end` past its last token."""
        moved, ids = (jnp.pad(x, ((0, 0), (0, steps)))[:, steps:] for x in (numbers, self.ids))
        return jnp.where(ids == self.ids, moved, end)
