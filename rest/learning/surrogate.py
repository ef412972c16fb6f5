"""Losses of online RL: of the policy, with a clipped ratio (Schulman et al. 2017) or REINFORCE's, and of the value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rest.data.segments import Segments
from rest.errors import UserError
from rest.learning.losses import Loss


@dataclass(frozen=True)
class ClippedSurrogate:
    """-min(r A, clip(r, 1 - ε, 1 + ε) A) per token, with r = π / π_old and A the advantage (eq. 7)."""

    clip: float = 0.2
    """ε."""
    dual_clip: float = 0.0
    """Where A < 0 the loss is at most this times -A (Ye et al. 2020, eq. 5); above 1, or 0: no such limit."""
    entropy_bonus: float = 0.0
    """Weight of the entropy of the next token, nats."""
    average: Literal["tokens", "sequences"] = "tokens"
    """Every token counts alike, or every sequence: the mean of its tokens, then of sequences."""

    def __post_init__(self) -> None:
        if not self.clip > 0 or (self.dual_clip and self.dual_clip <= 1):
            raise UserError(f"surrogate: clip {self.clip} must be above 0, and dual_clip {self.dual_clip} 0 or above 1")

    def __call__(
        self,
        log_probs: Float[Array, "B T"],
        old_log_probs: Float[Array, "B T"],
        advantages: Float[Array, "B T"],
        entropies: Float[Array, "B T"],
        segments: Segments,
        sequences: Bool[Array, "B Q"],
    ) -> Loss:
        """Both log-probabilities are of the same sampling distribution. Divided as `average` says.

        `sequences` says which of a row's Q sequences exist.
        """
        mask = segments.mask
        log_ratios = jnp.where(mask, log_probs - old_log_probs, 0.0)
        ratios = jnp.exp(log_ratios)
        free, held = -advantages * ratios, -advantages * jnp.clip(ratios, 1 - self.clip, 1 + self.clip)
        losses = jnp.maximum(free, held)
        if self.dual_clip:
            losses = jnp.where(advantages < 0, jnp.minimum(losses, -advantages * self.dual_clip), losses)
        weights, weight = self.weights(segments, sequences)
        metrics = {
            "policy_loss": losses,
            "clip_fraction": (held > free).astype(jnp.float32),
            "entropy": entropies,
            **_moved(log_ratios),
        }
        total = jnp.where(mask, weights * (losses - self.entropy_bonus * entropies), 0.0).sum()
        return Loss(
            total, weight, {name: jnp.where(mask, weights * value, 0.0).sum() for name, value in metrics.items()}
        )

    def weights(
        self, segments: Segments, sequences: Bool[Array, "B Q"]
    ) -> tuple[Float[Array, "B T"], Float[Array, ""]]:
        """What each token counts, 0 on padding, and what the sum over tokens is divided by."""
        if self.average == "tokens":
            mask = segments.mask.astype(jnp.float32)
            return mask, mask.sum()
        return _shares(segments, sequences.shape[1]), sequences.sum().astype(jnp.float32)


@dataclass(frozen=True)
class Reinforce:
    """-A log π(y): a sequence is one action, and all its tokens share one A. Divided by sequences.

    REINFORCE (Williams 1992) as RLOO has it (Ahmadian et al. 2024, §3). There is no ratio to the policy that drew, and
    so no clip: what it is differentiated at must be the policy that drew, or nearly.
    """

    def __call__(
        self,
        log_probs: Float[Array, "B T"],
        old_log_probs: Float[Array, "B T"],
        advantages: Float[Array, "B T"],
        entropies: Float[Array, "B T"],
        segments: Segments,
        sequences: Bool[Array, "B Q"],
    ) -> Loss:
        """As `ClippedSurrogate`; `old_log_probs` and `entropies` are only for the metrics, means over the tokens."""
        mask = segments.mask
        losses = jnp.where(mask, -advantages * log_probs, 0.0)
        log_ratios = jnp.where(mask, log_probs - old_log_probs, 0.0)
        shares = _shares(segments, sequences.shape[1])
        means = {"entropy": entropies, **_moved(log_ratios)}
        metrics = {name: jnp.where(mask, shares * value, 0.0).sum() for name, value in means.items()}
        return Loss(losses.sum(), self.weights(segments, sequences)[1], {"policy_loss": losses.sum(), **metrics})

    def weights(
        self, segments: Segments, sequences: Bool[Array, "B Q"]
    ) -> tuple[Float[Array, "B T"], Float[Array, ""]]:
        """What each token counts, 0 on padding, and what the sum over tokens is divided by."""
        return segments.mask.astype(jnp.float32), sequences.sum().astype(jnp.float32)


def _moved(log_ratios: Float[Array, "B T"]) -> dict[str, Float[Array, "B T"]]:
    """How far the policy is from the one that drew, by token."""
    ratios = jnp.exp(log_ratios)
    return {"approx_kl": jnp.expm1(log_ratios) - log_ratios, "ratio": ratios}  # K3 of π_old from π


def _shares(segments: Segments, sequences: int) -> Float[Array, "B T"]:
    """1 / tokens of its sequence at each token, 0 on padding."""
    own, lengths = segments.own(sequences), segments.lengths(sequences)
    return (own.astype(jnp.float32) / jnp.maximum(lengths, 1.0)[:, None]).sum(-1)


@dataclass(frozen=True)
class ClippedValue:
    """½ max((V - R)², (V_old + clip(V - V_old, ± ε) - R)²) per token, divided by tokens."""

    clip: float = 0.2
    """How far a value may move from the old one before its gradient ends; 0: as far as it likes."""

    def __call__(
        self,
        values: Float[Array, "B T"],
        old_values: Float[Array, "B T"],
        returns: Float[Array, "B T"],
        mask: Bool[Array, "B T"],
    ) -> Loss:
        free = jnp.square(values - returns)
        moved = old_values + jnp.clip(values - old_values, -self.clip, self.clip) if self.clip else values
        held = jnp.square(moved - returns)
        total = jnp.where(mask, 0.5 * jnp.maximum(free, held), 0.0).sum()
        metrics = {
            "clip_fraction": jnp.where(mask, held > free, False).sum().astype(jnp.float32),
            "squared_error": jnp.where(mask, free, 0.0).sum(),
        }
        return Loss(total, mask.sum().astype(jnp.float32), metrics)
