"""From rewards to what a policy learns from: returns, advantages of tokens and of sequences, whitening.

Rows are sequences of T tokens, padded on the right; `mask` is True on real tokens. What is masked is 0 in every
result, and nothing follows the last real token: its next value is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rest.data.segments import Segments

Variance = Literal["bessel", "population"]
"""The variance of n numbers is their sum of squares about the mean divided by n - 1, or by n."""


class Estimate(NamedTuple):
    """What each token turned out to be worth."""

    advantages: Float[Array, "B T"]  # beyond what the value function expected
    returns: Float[Array, "B T"]  # what the value function should have said


@partial(jax.jit, static_argnames=("discount", "lambda_"))
def gae(
    rewards: Float[Array, "B T"],
    values: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    discount: float,
    lambda_: float,
) -> Estimate:
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16), with γ = `discount` and λ = `lambda_`.

    Aₜ = δₜ + γλ Aₜ₊₁ where δₜ = rₜ + γ Vₜ₊₁ - Vₜ; returns are Aₜ + Vₜ, before any whitening of A.
    """
    rewards, values = jnp.where(mask, rewards, 0.0), jnp.where(mask, values, 0.0)
    following = jnp.pad(values, ((0, 0), (0, 1)))[:, 1:]
    td_errors = jnp.where(mask, rewards + discount * following - values, 0.0)

    def back(advantage: Array, td_error: Array) -> tuple[Array, Array]:
        advantage = td_error + discount * lambda_ * advantage
        return advantage, advantage

    _, advantages = jax.lax.scan(back, jnp.zeros_like(rewards[:, 0]), td_errors.T, reverse=True)
    return Estimate(advantages.T, advantages.T + values)


def v_trace(
    rewards: Float[Array, "B T"],
    values: Float[Array, "B T"],
    log_ratios: Float[Array, "B T"],
    segments: Segments,
    discount: float,
    steps: int,
    clip_rho: float = 1.0,
    clip_c: float = 1.0,
) -> Estimate:
    """Returns of a policy from tokens that another one drew (Espeholt et al. 2018, eq. 1).

    `log_ratios` are log π(token) - log μ(token), nats, μ the distribution sampled from. With ratios of 1 the returns
    are the next `steps` rewards and the value after them: Σ_{k<n} γᵏ rₜ₊ₖ + γⁿ Vₜ₊ₙ (Sutton & Barto 2018, eq. 7.1).
    The advantages are those of the policy gradient there: ρₜ (rₜ + γ vₜ₊₁ - Vₜ). Rows may be packed.
    """

    def later(x: Array, tokens: int) -> Array:
        return segments.later(x, tokens, end=0.0)

    mask = segments.mask
    rewards, values = jnp.where(mask, rewards, 0.0), jnp.where(mask, values, 0.0)
    ratios = jnp.exp(jnp.where(mask, log_ratios, 0.0))
    rho, c = jnp.minimum(ratios, clip_rho), jnp.minimum(ratios, clip_c)
    td_errors = jnp.where(mask, rho * (rewards + discount * later(values, 1) - values), 0.0)
    returns, weight = values, jnp.ones_like(values)
    for k in range(min(steps, rewards.shape[1])):
        returns = returns + weight * later(td_errors, k)
        weight = discount * weight * later(c, k)
    returns = jnp.where(mask, returns, 0.0)
    advantages = rho * (rewards + discount * later(returns, 1) - values)
    return Estimate(jnp.where(mask, advantages, 0.0), returns)


def leave_one_out(rewards: Float[Array, "B N"]) -> Float[Array, "B N"]:
    """A sample's reward less the mean of its source's other samples (RLOO: Ahmadian et al. 2024, §3.3)."""
    n = rewards.shape[1]
    if n < 2:
        raise ValueError("leave-one-out needs two samples per source")
    return (rewards - rewards.mean(1, keepdims=True)) * (n / (n - 1))


def group_advantages(rewards: Float[Array, "B N"], epsilon: float = 1e-6) -> Float[Array, "B N"]:
    """A sample's reward standardised among its source's (GRPO: Shao et al. 2024, §4.1.2), with n - 1 as divisor.

    A source whose samples have all the same reward gives 0.
    """
    if rewards.shape[1] < 2:
        raise ValueError("a group needs two samples per source")
    standard = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + epsilon)
    return jnp.where(rewards.max(1, keepdims=True) > rewards.min(1, keepdims=True), standard, 0.0)


def whiten(
    x: Float[Array, "*B"],
    mask: Bool[Array, "*B"],
    variance: Variance = "bessel",
    *,
    shift_mean: bool = True,
    epsilon: float = 1e-8,
) -> Float[Array, "*B"]:
    """Standard deviation 1 over what is unmasked, and mean 0 unless the mean is kept (`shift_mean` off)."""
    count = mask.sum()
    mean = jnp.where(mask, x, 0.0).sum() / jnp.maximum(count, 1)
    centred = jnp.where(mask, x - mean, 0.0)
    divisor = jnp.maximum(count - (variance == "bessel"), 1)
    white = centred * jax.lax.rsqrt(jnp.square(centred).sum() / divisor + epsilon)
    return white if shift_mean else jnp.where(mask, white + mean, 0.0)


@dataclass(frozen=True)
class GAE:
    """Advantages of tokens from a critic (Schulman et al. 2016)."""

    discount: float = 1.0
    """γ."""
    lambda_: float = 0.95
    """λ."""
    whitening: Variance | None = "bessel"
    """Give the advantages of a rollout mean 0 and variance 1, and by which variance; None: not."""
    whiten_rewards: bool = False
    """Scale the rewards of tokens to variance 1 over a rollout first; the mean is kept."""

    of_sequences: ClassVar[bool] = False

    def __call__(
        self,
        rewards: Float[Array, "B T"],
        values: Float[Array, "B T"],
        mask: Bool[Array, "B T"],
        samples_per_source: int,
    ) -> Estimate:
        """The samples of a source may stand anywhere. Not whitened yet: what the critic learns is not to be."""
        rewards = whiten(rewards, mask, shift_mean=False) if self.whiten_rewards else rewards
        return gae(rewards, values, mask, self.discount, self.lambda_)


@dataclass(frozen=True)
class LeaveOneOut:
    """What a hypothesis is paid in all, less the mean of its source's others; the same at each token (RLOO).

    The hypothesis is one action, and nothing more is done to its advantage.
    """

    of_sequences: ClassVar[bool] = True
    whitening: ClassVar[Variance | None] = None

    def __call__(
        self,
        rewards: Float[Array, "B T"],
        values: Float[Array, "B T"],
        mask: Bool[Array, "B T"],
        samples_per_source: int,
    ) -> Estimate:
        """The samples of a source stand side by side; no value is needed, and returns are 0."""
        return _alike(leave_one_out(rewards.sum(1).reshape(-1, samples_per_source)), rewards, mask)


@dataclass(frozen=True)
class Group:
    """What a hypothesis is paid in all, standardised among its source's; the same at each token (GRPO).

    That is all the standardising there is.
    """

    epsilon: float = 1e-6
    """Added to the standard deviation."""

    of_sequences: ClassVar[bool] = True
    whitening: ClassVar[Variance | None] = None

    def __call__(
        self,
        rewards: Float[Array, "B T"],
        values: Float[Array, "B T"],
        mask: Bool[Array, "B T"],
        samples_per_source: int,
    ) -> Estimate:
        """The samples of a source stand side by side; no value is needed, and returns are 0."""
        return _alike(group_advantages(rewards.sum(1).reshape(-1, samples_per_source), self.epsilon), rewards, mask)


def _alike(advantages: Array, rewards: Array, mask: Array) -> Estimate:
    return Estimate(jnp.where(mask, advantages.reshape(-1, 1), 0.0), jnp.zeros_like(rewards))
