"""Losses of a sequence of tokens. Pure: log-probabilities in, (sum, weight, metrics) out.

The update divides the sum by the weight over all micro-batches and devices, so that means are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Loss(NamedTuple):
    """A loss summed over what it is a mean of, and sums of the same kind to report."""

    sum: Float[Array, ""]
    weight: Float[Array, ""]
    metrics: dict[str, Array]


@dataclass(frozen=True)
class NLL:
    """Negative log-likelihood a token with label smoothing (Szegedy et al. 2016), divided by tokens.

    This is the L of ReST's equation 2; on rows that pass a threshold it is the paper's best Improve loss.
    """

    label_smoothing: float = 0.1
    """Probability mass spread evenly over the vocabulary."""

    def __call__(
        self,
        log_probs: Float[Array, "B T"],
        mean_log_probs: Float[Array, "B T"],
        mask: Bool[Array, "B T"],
    ) -> Loss:
        """`log_probs` of the labels, `mean_log_probs` over the vocabulary; nats."""
        smoothed = (1 - self.label_smoothing) * log_probs + self.label_smoothing * mean_log_probs
        weight = mask.sum().astype(jnp.float32)
        total = -jnp.where(mask, smoothed, 0.0).sum()
        return Loss(total, weight, {"nll": -jnp.where(mask, log_probs, 0.0).sum()})


@dataclass(frozen=True)
class SquaredError:
    """Regression of one number a sequence, divided by sequences."""

    def __call__(self, predicted: Float[Array, "B Q"], wanted: Float[Array, "B Q"], mask: Bool[Array, "B Q"]) -> Loss:
        squares = jnp.where(mask, jnp.square(predicted - wanted), 0.0).sum()
        return Loss(squares, mask.sum().astype(jnp.float32), {"squared_error": squares})
