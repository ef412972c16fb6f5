"""Losses of rankings and ratings: one number per sequence in, a `Loss` out. They know no network.

What ranks is the rating of a reward model's training pairs, or the reward of what a policy compares of one source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rest.learning.losses import Loss, PolicyLoss, Tokens


class Pairs(NamedTuple):
    """The ordered pairs of Q sequences: [b, i, j] says that i and j are of one group and i is rated above j."""

    ordered: Bool[Array, "B Q Q"]
    difference: Float[Array, "B Q Q"]  # of the ratings
    share: Float[Array, "B Q Q"]  # 1/C(K, 2) for each ordered pair of a group of K, 0 elsewhere


def pairs(rating: Float[Array, "B Q"], group: Float[Array, "B Q"], mask: Bool[Array, "B Q"]) -> Pairs:
    """Pairs are those of one group in one row whose ratings differ."""
    together = (group[:, :, None] == group[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    difference = rating[:, :, None] - rating[:, None, :]
    ordered = together & (difference > 0)
    # each of a group's pairs is listed once, at its better sequence [B, Q, Q]
    size = together.sum(-1).astype(jnp.float32)
    share = jnp.where(ordered, 2.0 / jnp.maximum(size * (size - 1.0), 1.0)[:, :, None], 0.0)
    return Pairs(ordered, difference, share)


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
        found = pairs(rating, group, mask)
        better, worse = jnp.broadcast_arrays(predicted[:, :, None], predicted[:, None, :])
        losses = self.pairs(better, worse, found.difference)
        right = (better > worse) * found.share
        return Loss((losses * found.share).sum(), found.share.sum(), {"ranked_right": right.sum()})


class Compared(NamedTuple):
    """The sequences of a policy's batch, as those of one source are compared."""

    log_probs: Float[Array, "B Q"]  # of whole sequences, nats
    lengths: Float[Array, "B Q"]  # tokens; at least 1
    rewards: Float[Array, "B Q"]
    together: Bool[Array, "B Q Q"]  # two of one group, or one and itself
    pairs: Pairs
    best: Float[Array, "B Q"]  # 1 for the best of a group that has a pair, 0 for the others; shared where bests tie


def compared(tokens: Tokens) -> Compared:
    """Sequences of one `group` (a source, or a part of its rows) by their `reward`."""
    group, reward = tokens.columns["group"], tokens.columns["reward"]
    lengths = tokens.segments.lengths(group.shape[1])
    found = pairs(reward, group, lengths > 0)
    together = (group[:, :, None] == group[:, None, :]) & (lengths > 0)[:, :, None] & (lengths > 0)[:, None, :]
    best = found.ordered.any(2) & ~found.ordered.any(1)
    ties = (together & best[:, None, :]).sum(2)
    log_probs = tokens.segments.sums(tokens.log_probs, group.shape[1])
    shares = jnp.where(best, 1.0 / jnp.maximum(ties, 1), 0.0)
    return Compared(log_probs, jnp.maximum(lengths, 1.0), reward, together, found, shares)


@dataclass(frozen=True)
class DPO(PolicyLoss):
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7) on best and worst of a source, divided by sources.

    -log σ(β (log π(y_w)/π_anchor(y_w) - log π(y_l)/π_anchor(y_l))); the anchor is what this training starts from.
    """

    beta: float = 0.1

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "group", "anchor_log_probs")

    @property
    def candidates(self) -> int:
        return 2

    def __call__(self, tokens: Tokens, dual_variables: Mapping[str, Any]) -> Loss:
        of = compared(tokens)
        anchor = tokens.segments.sums(tokens.token_columns["anchor_log_probs"], of.log_probs.shape[1])
        margins = _margins(self.beta * (of.log_probs - anchor))
        return _of_pairs(jax.nn.softplus(-margins), margins, of, jnp.zeros_like(anchor))


@dataclass(frozen=True)
class CPO(PolicyLoss):
    """Contrastive preference optimisation (Xu et al. 2024, eqs. 3-5) on best and worst, divided by sources.

    -log σ(β (log π(y_w) - log π(y_l))) + `nll` times the negative log-likelihood of the best, per token.
    """

    beta: float = 0.1
    nll: float = 1.0

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "group")

    @property
    def candidates(self) -> int:
        return 2

    def __call__(self, tokens: Tokens, dual_variables: Mapping[str, Any]) -> Loss:
        of = compared(tokens)
        margins = _margins(self.beta * of.log_probs)
        return _of_pairs(jax.nn.softplus(-margins), margins, of, -self.nll * of.log_probs / of.lengths)


@dataclass(frozen=True)
class RRHF(PolicyLoss):
    """Rank responses to align (Yuan et al. 2023, eqs. 2-4), divided by sources.

    With p the log-likelihood per token: Σ max(0, p_worse - p_better) over all pairs, without a margin, and -p of the
    best.
    """

    ranked: int = 4
    """Rows of a source: the best, the worst, and others evenly between them."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "group")

    @property
    def candidates(self) -> int:
        return self.ranked

    def __call__(self, tokens: Tokens, dual_variables: Mapping[str, Any]) -> Loss:
        of = compared(tokens)
        each = of.log_probs / of.lengths
        margins = _margins(each)
        pairs_of_group = jnp.where(of.pairs.ordered, 1.0 / jnp.maximum(of.pairs.share, 1e-9), 0.0)
        return _of_pairs(jax.nn.relu(-margins) * pairs_of_group, margins, of, -each)


@dataclass(frozen=True)
class MinimumRisk(PolicyLoss):
    """Minimum risk training (Shen et al. 2016, eqs. 9-11) on a source's candidates, divided by sources.

    The expected cost Σ q(y) (1 - R(y)), where q is the policy over the candidates alone, q(y) ∝ π(y)^α. Its gradient
    moves likelihood from each candidate that is worse than their mean to those that are better, in proportion to q.
    """

    sharpness: float = 1.0
    """α. Near 0 all candidates count alike, at 1 those that the policy finds likely count most; the paper has 0.005."""
    ranked: int = 8
    """Rows of a source: the best, the worst, and others evenly between them."""
    nll: float = 0.0
    """Times the negative log-likelihood of the best, per token, which keeps the policy near it (Edunov et al. 2018)."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "group")

    @property
    def candidates(self) -> int:
        return self.ranked

    def __call__(self, tokens: Tokens, dual_variables: Mapping[str, Any]) -> Loss:
        of = compared(tokens)
        # each sequence's row has how likely each of its group is [B, Q, Q]; the best one's row stands for the group
        scores = jnp.where(of.together, self.sharpness * of.log_probs[:, None, :], -1e30)
        chosen = jnp.where(of.together, jax.nn.softmax(scores, axis=-1), 0.0)
        risk = (chosen * (1.0 - of.rewards)[:, None, :]).sum(-1)
        total = (of.best * (risk - self.nll * of.log_probs / of.lengths)).sum()
        return Loss(total, of.best.sum(), {"expected_reward": (of.best * (1.0 - risk)).sum()})


def _margins(scores: Float[Array, "B Q"]) -> Float[Array, "B Q Q"]:
    """How far the first of two sequences is above the second."""
    return scores[:, :, None] - scores[:, None, :]


def _of_pairs(
    losses: Float[Array, "B Q Q"],
    margins: Float[Array, "B Q Q"],
    of: Compared,
    of_best: Float[Array, "B Q"],
) -> Loss:
    """The mean over a group's pairs plus what its best adds, summed over groups."""
    share, right = of.pairs.share, (margins > 0) * of.pairs.share
    total = jnp.where(of.pairs.ordered, losses * share, 0.0).sum() + (of_best * of.best).sum()
    margin = jnp.where(of.pairs.ordered, margins * share, 0.0).sum()
    return Loss(total, of.best.sum(), {"ranked_right": right.sum(), "margin": margin})
