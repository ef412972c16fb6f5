"""Losses of rankings and ratings: one number a sequence in, a `Loss` out. They know no network."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rest.learning.losses import Loss


@dataclass(frozen=True)
class BradleyTerry:
    """Pairwise ranking, −log σ(r_better − r_worse − margin) (Ouyang et al. 2022, eq. 1), divided by groups.

    All pairs of a group of K ranked answers count, each 1/C(K, 2), so that a group weighs one however large it is.
    """

    margin: float = 0.0
    """Times the difference of the ratings: how far apart scores should be (Touvron et al. 2023, §3.2.2)."""
    centring: float = 0.0
    """Weight of (r_better + r_worse)², which keeps scores around zero (Eisenstein et al. 2023)."""

    def pairs(
        self,
        better: Float[Array, "*P"],
        worse: Float[Array, "*P"],
        difference: Float[Array, "*P"],
    ) -> Float[Array, "*P"]:
        """The loss of each pair; `difference` of their ratings, above 0."""
        # softplus and not log(sigmoid): no overflow where a pair is far on the wrong side
        ranking = jax.nn.softplus(-(better - worse - self.margin * difference))
        return ranking + self.centring * jnp.square(better + worse)

    def __call__(
        self,
        predicted: Float[Array, "B Q"],
        rating: Float[Array, "B Q"],
        group: Float[Array, "B Q"],
        mask: Bool[Array, "B Q"],
    ) -> Loss:
        """Pairs are those of one group in one row whose ratings differ; a group without such a pair has no weight."""
        together = (group[:, :, None] == group[:, None, :]) & mask[:, :, None] & mask[:, None, :]
        difference = rating[:, :, None] - rating[:, None, :]
        ordered = together & (difference > 0)
        better, worse = jnp.broadcast_arrays(predicted[:, :, None], predicted[:, None, :])
        losses = self.pairs(better, worse, difference)
        # each of a group's pairs is listed once, at its better sequence [B, Q, Q]
        size = together.sum(-1).astype(jnp.float32)
        share = jnp.where(ordered, 2.0 / jnp.maximum(size * (size - 1.0), 1.0)[:, :, None], 0.0)
        right = (predicted[:, :, None] > predicted[:, None, :]) * share
        weight = share.sum()
        return Loss((losses * share).sum(), weight, {"ranked_right": right.sum()})
