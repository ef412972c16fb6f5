"""Losses of a sequence of tokens. Pure: log-probabilities in, (sum, weight, metrics) out.

The update divides the sum by the weight over all micro-batches and devices, so that means are exact. A loss says
which columns it reads beside the log-probabilities; whoever trains with it brings them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rest.data.segments import Segments
from rest.errors import UserError
from rest.learning.returns import v_trace


class Loss(NamedTuple):
    """A loss summed over what it is a mean of, and sums of the same kind to report."""

    sum: Float[Array, ""]
    weight: Float[Array, ""]
    metrics: dict[str, Array]


@dataclass(frozen=True)
class Tokens:
    """What a policy makes of the targets of a batch: B rows of T tokens, of Q sequences at most; nats."""

    log_probs: Float[Array, "B T"]  # of the labels
    mean_log_probs: Float[Array, "B T"]  # over the vocabulary, for label smoothing
    segments: Segments  # which sequence of its row each token is of
    columns: Mapping[str, Any] = field(default_factory=dict)  # float32 [B, Q], one number per sequence
    token_columns: Mapping[str, Any] = field(default_factory=dict)  # float32 [B, T], one number per token

    @property
    def mask(self) -> Bool[Array, "B T"]:
        """True on real tokens."""
        return self.segments.mask

    @property
    def nll(self) -> Float[Array, "B T"]:
        """Negative log-likelihood of each label."""
        return -self.log_probs

    def advantages(self) -> Float[Array, "B T"]:
        """Reward of the sequence minus the value of the prefix that the token was drawn after: undiscounted."""
        return self.segments.spread(self.columns["reward"]) - self.token_columns["value"]

    def loss(self, losses: Float[Array, "B T"], **metrics: Float[Array, "B T"]) -> Loss:
        """A mean over the real tokens; the plain negative log-likelihood is reported with it."""
        total, nll, *others = (jnp.where(self.mask, x, 0.0).sum() for x in (losses, -self.log_probs, *metrics.values()))
        weight = self.mask.sum().astype(jnp.float32)
        return Loss(total, weight, {"nll": nll, **dict(zip(metrics, others, strict=True))})

    def smoothed(self, loss: Loss, label_smoothing: float) -> Loss:
        """Any loss with some of every label's probability spread evenly over the vocabulary (Szegedy et al. 2016).

        (1 - ε) L + ε times the mean cross-entropy with the even distribution, in units of L's own mean: of the
        negative log-likelihood that is the usual label smoothing.
        """
        even = -jnp.where(self.mask, self.mean_log_probs, 0.0).sum() / jnp.maximum(self.mask.sum(), 1)
        return Loss((1 - label_smoothing) * loss.sum + label_smoothing * loss.weight * even, loss.weight, loss.metrics)


def check_smoothing(name: str, share: float) -> None:
    """UserError unless a share of a label's probability can be spread over the vocabulary."""
    if not 0 <= share < 1:
        raise UserError(f"{name} must be at least 0 and below 1, not {share}")


@dataclass(frozen=True)
class PolicyLoss:
    """A loss of a policy's tokens: `loss(tokens, dual_variables)`, any frozen dataclass that says what it needs."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that it reads. One number per sequence: reward; advantage, over the mean of the source's samples;
        progress, the share of the training that is done; sampled, 1 for what a policy drew and 0 for a human pair.
        One number per token, nats: bc_log_probs, and anchor_log_probs of the policy that this training starts from;
        behaviour_log_probs of the distribution that drew the token, 0 in human pairs; value, the reward to expect
        before the token.
        """
        return ()

    @property
    def candidates(self) -> int:
        """Rows of one source that it compares, from the best to the worst; 1: rows stand alone."""
        return 1

    @property
    def of_whole_batch(self) -> bool:
        """Whether what it makes of a row depends on the other rows of a batch, which must not be parted then."""
        return False

    def dual_variables(self) -> dict[str, float]:
        """Parameters of its own, such as Lagrange multipliers, by name: their values where training starts."""
        return {}

    def __call__(self, tokens: Tokens, dual_variables: Mapping[str, Any]) -> Loss:
        raise NotImplementedError


@dataclass(frozen=True)
class NLL(PolicyLoss):
    """Negative log-likelihood per token, divided by tokens.

    This is the L of ReST's equation 2; on rows that pass a threshold it is the paper's best Improve loss.
    """

    def __call__(self, tokens: Tokens, dual_variables: Mapping[str, Any]) -> Loss:
        return tokens.loss(tokens.nll)


@dataclass(frozen=True)
class RewardWeighted(PolicyLoss):
    """Negative log-likelihood times the reward (Peters & Schaal 2007), divided by tokens.

    With rewards of 0 and 1 it is the M-step of ReST-EM (Singh et al. 2023, Algorithm 1).
    """

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward",)

    def __call__(self, tokens: Tokens, dual_variables: Mapping[str, Any]) -> Loss:
        return tokens.loss(tokens.segments.spread(tokens.columns["reward"]) * tokens.nll)


@dataclass(frozen=True)
class AdvantageWeighted(PolicyLoss):
    """Negative log-likelihood times min(exp(A / β), `max_weight`) (AWR: Peng et al. 2019, eq. 9), divided by tokens.

    A is the reward over the mean of the source's samples, so that no value network is needed.
    """

    temperature: float = 0.1
    """β: a reward so much above the source's mean weighs e times as much."""
    max_weight: float = 20.0

    @property
    def needs(self) -> tuple[str, ...]:
        return ("advantage",)

    def __call__(self, tokens: Tokens, dual_variables: Mapping[str, Any]) -> Loss:
        weights = jnp.minimum(jnp.exp(tokens.columns["advantage"] / self.temperature), self.max_weight)
        return tokens.loss(tokens.segments.spread(weights) * tokens.nll)


@dataclass(frozen=True)
class OfflineActorCritic(PolicyLoss):
    """-log π(y_t) (R - V(y_<t)) (Mathieu et al. 2021), divided by tokens; V the value of the data, as in ReST.

    Tokens with a negative advantage are pushed away without a bound: train for few steps, or with an anchor.
    """

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "value")

    def __call__(self, tokens: Tokens, dual_variables: Mapping[str, Any]) -> Loss:
        advantages = tokens.advantages()
        return tokens.loss(-advantages * tokens.log_probs, advantage=advantages)


@dataclass(frozen=True)
class GOLD(PolicyLoss):
    """Generation by off-policy learning from demonstrations (Pang & He 2021, eq. 4), divided by tokens.

    -log π(y_t) · clip(π(y_t), w, 1) · Σ_{j≤k} γʲ max(r_{t+j}, m): the weight has no gradient, and r is what BC thinks
    of the token. As in the authors' code BC is certain of all past the end; there the weight comes from a copy of π a
    few steps old, here from π itself.
    """

    steps: int = 5
    """k: tokens to look ahead. The authors' code sums six terms, 0 to 5."""
    discount: float = 1.0
    """γ."""
    reward: Literal["probability", "log-probability"] = "probability"
    """r is p_BC(y_t), or log p_BC(y_t) - baseline."""
    baseline: float = -10.0
    """Nats; only for the log-probability."""
    least_weight: float = 0.2
    """w."""
    least_reward: float = 0.1
    """m."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ("bc_log_probs",)

    def __call__(self, tokens: Tokens, dual_variables: Mapping[str, Any]) -> Loss:
        weights = jnp.clip(jnp.exp(jax.lax.stop_gradient(tokens.log_probs)), self.least_weight, 1.0)
        returns = jnp.zeros_like(weights)
        for j in range(self.steps + 1):
            expected = tokens.segments.later(tokens.token_columns["bc_log_probs"], j, end=0.0)
            rewards = jnp.exp(expected) if self.reward == "probability" else expected - self.baseline
            returns += self.discount**j * jnp.maximum(rewards, self.least_reward)
        return tokens.loss(weights * returns * tokens.nll, importance=weights, returns=returns)


def kl_of_anchor(log_probs: Float[Array, "B T"], anchor: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """KL(anchor ‖ π) of each token, estimated on a token that the anchor drew: eᵈ - 1 - d, d = log π - log anchor.

    Value and gradient are unbiased there, and it is never negative. Above d = 1 the exponential goes on as a straight
    line: a token that the anchor did not draw, in a human pair, must not outweigh all others.
    """
    d = log_probs - anchor
    power = jnp.where(d < 1, jnp.exp(jnp.minimum(d, 1.0)), jnp.e * d)
    return power - 1 - d


@dataclass(frozen=True)
class VTrace:
    """Advantages of the policy as it is now, from tokens that another law drew (Espeholt et al. 2018, eq. 1).

    Undiscounted. The ratios are π(y_t) / μ(y_t). π is at temperature 1: it is what is trained, and these are its
    advantages. μ is what the token was really drawn from, after temperature and truncation, of the policy that sampled
    this dataset. A human pair was drawn from no distribution that is known: its ratios are 1.
    """

    steps: int = 32
    """Tokens to look ahead before the value stands for the rest."""
    clip_rho: float = 1.0
    """Most that a token may count for itself, in units of its probability under μ."""
    clip_c: float = 1.0
    """Most that it may pass on of what came after it."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "value", "sampled", "behaviour_log_probs")

    def __call__(self, tokens: Tokens) -> Float[Array, "B T"]:
        goes_on = tokens.segments.later(jnp.ones_like(tokens.log_probs), 1, end=0.0)
        rewards = jnp.where(goes_on > 0, 0.0, tokens.segments.spread(tokens.columns["reward"]))
        log_ratios = jax.lax.stop_gradient(tokens.log_probs) - tokens.token_columns["behaviour_log_probs"]
        log_ratios = jnp.where(tokens.segments.spread(tokens.columns["sampled"]) > 0, log_ratios, 0.0)
        values, segments = tokens.token_columns["value"], tokens.segments
        return v_trace(rewards, values, log_ratios, segments, 1.0, self.steps, self.clip_rho, self.clip_c).advantages


@dataclass(frozen=True)
class VMPO(PolicyLoss):
    """V-MPO on stored sequences (Song et al. 2020, eqs. 3-5), divided by tokens.

    The E-step weighs the tokens in the top half of the advantages R - V by exp(A / η); the M-step makes them likelier
    while KL(π_old ‖ π) stays below a bound. η and the weight α of the KL minimise dual losses of their own.
    """

    temperature_bound: float = 0.1
    """ε_η, nats: how far the weights may be from even."""
    divergence_bound: float = 0.01
    """ε_α, nats per token: how far π may go from the policy that training starts from."""
    top: float = 0.5
    """Share of the tokens, those of the highest advantage, that is learned from."""
    temperature: float = 0.1
    """η at the start."""
    weight: float = 1.0
    """α at the start."""
    dual_rate: float = 20.0
    """The logarithms of η and α change so many times faster than a parameter of the network does."""
    correction: VTrace | None = None
    """What corrects A for how far π is from what drew the tokens; none: R - V."""

    @property
    def needs(self) -> tuple[str, ...]:
        corrected = self.correction.needs if self.correction else ()
        return tuple(dict.fromkeys(("reward", "value", "anchor_log_probs", *corrected)))

    @property
    def of_whole_batch(self) -> bool:
        return True  # the top half, and the mean over it, are of all tokens

    def dual_variables(self) -> dict[str, float]:
        return {"temperature": 0.0, "weight": 0.0}

    def __call__(self, tokens: Tokens, dual_variables: Mapping[str, Any]) -> Loss:
        eta = self.temperature * jnp.exp(self.dual_rate * _quiet(dual_variables["temperature"]))
        alpha = self.weight * jnp.exp(self.dual_rate * _quiet(dual_variables["weight"]))
        mask = tokens.mask
        advantages = self.correction(tokens) if self.correction else tokens.advantages()
        count = jnp.maximum(mask.sum(), 1)
        best_first = -jnp.sort(-jnp.where(mask, advantages, -jnp.inf), axis=None)
        chosen = mask & (advantages >= best_first[jnp.maximum((self.top * count).astype(jnp.int32), 1) - 1])

        scaled = jnp.where(chosen, advantages / eta, -jnp.inf)
        psi = jax.lax.stop_gradient(jnp.where(chosen, jnp.exp(scaled - jax.nn.logsumexp(scaled)), 0.0))
        log_mean = jax.nn.logsumexp(scaled) - jnp.log(jnp.maximum(chosen.sum(), 1))
        of_temperature = eta * (self.temperature_bound + log_mean)
        kl = kl_of_anchor(tokens.log_probs, tokens.token_columns["anchor_log_probs"])
        fixed = jax.lax.stop_gradient
        of_kl = fixed(alpha) * kl + alpha * (self.divergence_bound - fixed(kl))
        even = jnp.ones_like(kl)
        return tokens.loss(
            of_temperature * even + of_kl - count * psi * tokens.log_probs,
            temperature=eta * even,
            kl_weight=alpha * even,
            kl_to_anchor=kl,
        )


def _quiet(x: Float[Array, ""]) -> Float[Array, ""]:
    """x with a gradient so small that clipping by the global norm does not see it; Adam divides by its size."""
    return jax.lax.stop_gradient(x) + 1e-4 * (x - jax.lax.stop_gradient(x))


@dataclass(frozen=True)
class Anchored(PolicyLoss):
    """Another loss plus λ KL(π_BC ‖ π), where λ goes from `first` to `last` evenly in its logarithm.

    `Anchored(VMPO(correction=VTrace()))` is ReST's BVMPO: V-MPO with a behavioural prior, λ annealed from 1 to 1e-5,
    and V-trace.
    """

    loss: Any = field(default_factory=VMPO)  # a PolicyLoss divided by tokens
    """What the KL is added to."""
    first: float = 1.0
    """λ at the start of training."""
    last: float = 1e-5
    """λ at its end, after max_steps."""

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.loss.needs, "bc_log_probs", "progress")))

    @property
    def candidates(self) -> int:
        return self.loss.candidates

    @property
    def of_whole_batch(self) -> bool:
        return self.loss.of_whole_batch or self.loss.candidates > 1  # then the KL has the share of the others

    def dual_variables(self) -> dict[str, float]:
        return self.loss.dual_variables()

    def __call__(self, tokens: Tokens, dual_variables: Mapping[str, Any]) -> Loss:
        weights = self.first * (self.last / self.first) ** tokens.segments.spread(tokens.columns["progress"])
        kl = kl_of_anchor(tokens.log_probs, tokens.token_columns["bc_log_probs"])
        added = tokens.loss(weights * kl, kl_to_bc=kl)
        base = self.loss(tokens, dual_variables)
        # the other loss may be divided by pairs and not by tokens: λ stays what a token's KL weighs
        share = base.weight / jnp.maximum(added.weight, 1.0)
        others = {"kl_to_bc": added.metrics["kl_to_bc"] * share}
        return Loss(base.sum + added.sum * share, base.weight, {**base.metrics, **others})


@dataclass(frozen=True)
class SquaredError:
    """Regression of one number per sequence, divided by sequences."""

    def __call__(self, predicted: Float[Array, "B Q"], wanted: Float[Array, "B Q"], mask: Bool[Array, "B Q"]) -> Loss:
        squares = jnp.where(mask, jnp.square(predicted - wanted), 0.0).sum()
        return Loss(squares, mask.sum().astype(jnp.float32), {"squared_error": squares})
