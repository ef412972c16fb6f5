"""How far a policy is from an anchor: estimators of the KL divergence, its coefficient over time, and where it enters.

Of a token drawn from π, d = log π - log π_anchor (nats) is known; the estimators are functions of it (Schulman 2020,
"Approximating KL divergence"). Their means are compared in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax.numpy as jnp
from jaxtyping import Array, Float

from rest.errors import UserError


def _clip(x: Array, limit: float) -> Array:
    return jnp.clip(x, -limit, limit) if limit else x


@dataclass(frozen=True)
class K1:
    """d: unbiased, and of either sign. As a loss it has no gradient on average; as a reward it is right."""

    clip: float = 0.0
    """Estimates are held within ± this; 0: not."""

    def __call__(self, d: Float[Array, "*B"]) -> Float[Array, "*B"]:
        return _clip(d, self.clip)


@dataclass(frozen=True)
class K2:
    """d²/2: biased, and its gradient is that of the divergence."""

    clip: float = 0.0
    """Estimates are held within ± this; 0: not."""

    def __call__(self, d: Float[Array, "*B"]) -> Float[Array, "*B"]:
        return _clip(0.5 * jnp.square(d), self.clip)


@dataclass(frozen=True)
class K3:
    """e⁻ᵈ - 1 + d: unbiased, never negative, and of less variance than d where the two are close."""

    clip: float = 0.0
    """Estimates are held within ± this; 0: not."""

    def __call__(self, d: Float[Array, "*B"]) -> Float[Array, "*B"]:
        d = _clip(d, 2 * self.clip)  # or e⁻ᵈ overflows before the estimate is clipped
        return _clip(jnp.expm1(-d) + d, self.clip)


@dataclass(frozen=True)
class Exact:
    """`exact` at each token that was drawn: no noise but that of the prefixes, for a pass over the vocabulary more."""


def exact(log_probs: Float[Array, "*B V"], anchor_log_probs: Float[Array, "*B V"]) -> Float[Array, "*B"]:
    """KL(π ‖ π_anchor) = Σ π (log π - log π_anchor) over the vocabulary; a token that π never draws adds 0."""
    p = jnp.exp(log_probs)
    return jnp.where(p > 0, p * jnp.where(p > 0, log_probs - anchor_log_probs, 0.0), 0.0).sum(-1)


@dataclass(frozen=True)
class FixedCoefficient:
    """The same KL coefficient throughout."""

    weight: float = 0.05

    @property
    def start(self) -> float:
        return self.weight

    def after(self, coefficient: float, divergence: float, sequences: int) -> float:
        """The coefficient after a rollout."""
        return coefficient


@dataclass(frozen=True)
class AdaptiveCoefficient:
    """A KL coefficient that steers the divergence to a target (Ziegler et al. 2019, §2.2)."""

    initial: float = 0.2
    target: float = 6.0
    """Nats per sequence."""
    horizon: int = 10_000
    """Sequences in which the coefficient changes by a factor of e at a constant error of 1 (errors are cut at 0.2)."""

    def __post_init__(self) -> None:
        if not (self.initial > 0 and self.target > 0 and self.horizon > 0):
            raise UserError(
                f"coefficient: initial {self.initial}, target {self.target} and horizon {self.horizon} must be above 0"
            )

    @property
    def start(self) -> float:
        return self.initial

    def after(self, coefficient: float, divergence: float, sequences: int) -> float:
        """The coefficient after a rollout of so many sequences, whose divergence had this mean, summed over tokens."""
        error = min(max(divergence / self.target - 1.0, -0.2), 0.2)
        return coefficient * (1.0 + error * sequences / self.horizon)


@dataclass(frozen=True)
class InReward:
    """The divergence is taken off what each token is paid (Ziegler et al. 2019, eq. 2): it has no gradient."""

    estimator: K1 | K2 | K3 | Exact = field(default_factory=K1)
    """Nats a token: from the token drawn, or exact over the whole vocabulary."""
    coefficient: FixedCoefficient | AdaptiveCoefficient = field(default_factory=FixedCoefficient)
    """How much of the estimate is taken off."""


@dataclass(frozen=True)
class InLoss:
    """The divergence is added to each token's loss, with a gradient of its own (GRPO: Shao et al. 2024, eqs. 3-4)."""

    estimator: K1 | K2 | K3 = field(default_factory=K3)
    """Nats a token, from the token drawn; not K1."""
    coefficient: FixedCoefficient = FixedCoefficient(0.04)
    """How much of the estimate is added."""

    def __post_init__(self) -> None:
        if isinstance(self.estimator, K1):
            raise UserError("divergence: estimator K1 has no gradient on average, so InLoss takes K2 or K3")
