"""From a rollout to updates of the policy and the critic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32

from rest.baselines.rollout import Rollout, by_hypothesis, side_by_side, token_rewards
from rest.baselines.settings import PPOSettings
from rest.data.batches import Batch, BatchSettings, Examples, minibatches
from rest.data.segments import Segments
from rest.errors import UserError
from rest.folder import seed_for
from rest.learning.divergence import InLoss, InReward
from rest.learning.learner import Learner
from rest.learning.losses import Loss
from rest.learning.pace import Pace
from rest.learning.returns import whiten
from rest.learning.surrogate import ClippedSurrogate, ClippedValue, Reinforce
from rest.model.transformer import Transformer
from rest.policy.policy import Policy, hidden_states
from rest.policy.value import Value, ValueNetwork


@dataclass(frozen=True)
class PolicyUpdate:
    """What an update of the policy minimises. No dropout: ratios compare the network that drew with itself."""

    surrogate: ClippedSurrogate | Reinforce
    divergence: InLoss | None
    """What of the divergence to the anchor is added, where it is not in the reward."""
    temperature: float
    pretraining: float

    def __call__(
        self, network: Transformer, batch: Batch, key: Array | None, dual_variables: Mapping[str, Any]
    ) -> Loss:
        states = hidden_states(network, batch, None)
        scores = network.scores(states, batch.target, temperature=self.temperature, entropy=True)
        assert scores.entropies is not None
        human = batch.columns["human"] > 0
        of_human = batch.targets.spread(human) & batch.targets.mask
        drawn, sequences = Segments(jnp.where(of_human, 0, batch.target_segments)), batch.real & ~human
        columns = batch.token_columns
        loss = self.surrogate(
            scores.log_probs, columns["log_probs"], columns["advantages"], scores.entropies, drawn, sequences
        )
        if self.divergence is not None:
            d = jnp.where(drawn.mask, scores.log_probs - columns["anchor_log_probs"], 0.0)
            kl = self.surrogate.weights(drawn, sequences)[0] * self.divergence.estimator(d)
            loss = loss._replace(sum=loss.sum + self.divergence.coefficient.weight * kl.sum())
        if not self.pretraining:
            return loss
        plain = network.scores(states, batch.target).log_probs
        mean = -jnp.where(of_human, plain, 0.0).sum() / jnp.maximum(of_human.sum(), 1)
        nll = loss.weight * mean  # divided by the surrogate's weight later
        return Loss(loss.sum + self.pretraining * nll, loss.weight, loss.metrics | {"pretraining_nll": nll})


@dataclass(frozen=True)
class CriticUpdate:
    """What an update of the critic minimises."""

    loss: ClippedValue

    def __call__(
        self, network: ValueNetwork, batch: Batch, key: Array | None, dual_variables: Mapping[str, Any]
    ) -> Loss:
        human = batch.targets.spread(batch.columns["human"]) > 0
        values, columns = network(batch, None), batch.token_columns
        return self.loss(values, columns["values"], columns["returns"], batch.targets.mask & ~human)


def run_epochs(
    actor: Learner[Policy],
    critic: Learner[Value] | None,
    learned: Examples,
    settings: PPOSettings,
    batch: BatchSettings,
    *,
    pad_id: int,
    number: int,
    seed: int,
    pace: Pace,
) -> dict[str, float]:
    """Go through a rollout `epochs` times, updating the critic and the policy; means over the updates."""
    key = jax.random.fold_in(jax.random.key(seed_for(seed, "ppo")), number)
    of_policy, of_critic = list[dict[str, float]](), list[dict[str, float]]()

    def update(who: str, learner: Learner[Any], part: Batch) -> dict[str, float]:
        own = jax.random.fold_in(key, learner.steps)  # by which parameters of bfloat16 are rounded, anew in each update
        metrics = {name: float(x) for name, x in learner.update(part, own).items()}
        if not math.isfinite(metrics["loss"]):
            last = (number - 1) // settings.evaluate_every * settings.evaluate_every
            raise UserError(
                f"ppo: the {who}'s loss in rollout {number} is {metrics['loss']}; "
                f"the last checkpoint, of rollout {last}, is kept"
            )
        return metrics

    moves = critic is None or number > settings.critic.warmup_rollouts
    for epoch in range(settings.epochs):
        shuffle = seed_for(seed, "ppo batches", number, epoch)
        for part in minibatches(learned, batch, pad_id=pad_id, seed=shuffle):
            if critic is not None:  # also when the policy has stopped: its targets stay what they are
                of_critic.append(update("critic", critic, part))
            if moves:
                of_policy.append(update("policy", actor, part))
                pace.update(part)
                moves = not settings.target_kl or of_policy[-1]["approx_kl"] <= settings.target_kl
    return {"ppo/updates": float(len(of_policy))} | means_of(of_policy, POLICY) | means_of(of_critic, CRITIC)


def learn_from(
    rollout: Rollout, values: list[np.ndarray] | None, settings: PPOSettings, coefficient: float
) -> tuple[Examples, dict[str, float]]:
    """The rollout as pairs with what the updates need of each token, and what there is to report."""
    mask, paid, divergences = jnp.asarray(rollout.mask), settings.rollout, rollout.divergences
    scores = np.asarray(rollout.columns["reward"], np.float32)
    taken_off = coefficient if isinstance(settings.divergence, InReward) else 0.0
    tokens = token_rewards(scores, rollout.finished, rollout.lengths, divergences, paid, taken_off)
    old = np.zeros(rollout.mask.shape, np.float32) if values is None else side_by_side(values, rollout.mask)
    estimate = settings.advantage(jnp.asarray(tokens), jnp.asarray(old), mask, paid.samples_per_source)
    advantages = np.asarray(estimate.advantages)
    metrics = {
        "objective/reward": float(scores.mean(dtype=np.float64)),
        "objective/kl": float(divergences.sum(1).mean(dtype=np.float64)),
        "objective/penalised_reward": float(tokens.sum(1).mean(dtype=np.float64)),
        "ppo/advantage_deviation": float(advantages[rollout.mask].std()),
        "ppo/sampler_gap": rollout.sampler_gap,
        "length/mean": float(rollout.lengths.mean()),
        "length/cut": float(1 - rollout.finished.mean()),
    }
    if values is not None:
        returns = np.asarray(estimate.returns)
        metrics["ppo/explained_variance"] = explained_variance(old, returns, rollout.mask)
    if settings.advantage.whitening:
        advantages = np.asarray(whiten(estimate.advantages, mask, settings.advantage.whitening))
    columns = {
        "log_probs": rollout.log_probs,
        "anchor_log_probs": rollout.anchor_log_probs,
        "advantages": advantages,
        "values": old,
        "returns": np.asarray(estimate.returns),
    }
    return replace(
        rollout.examples,
        columns={"human": np.zeros(len(rollout.examples), np.float32)},
        token_columns={name: by_hypothesis(x, rollout.lengths) for name, x in columns.items()},
    ), metrics


def explained_variance(
    values: Float32[np.ndarray, "n T"], returns: Float32[np.ndarray, "n T"], mask: Bool[np.ndarray, "n T"]
) -> float:
    """How much of the returns the critic foresaw: 1 all, 0 no more than their mean, below 0 less than that."""
    return float(1 - (returns - values)[mask].var() / max(returns[mask].var(), 1e-12))


def join(learned: Examples, human: Examples | None, settings: PPOSettings, random: np.random.Generator) -> Examples:
    """The rollout's pairs and, for PPO-ptx, as many human ones as `pretraining_pairs`."""
    if human is None:
        return learned
    chosen = random.choice(len(human), min(settings.pretraining_pairs, len(human)), replace=False)
    nothing = [np.zeros(len(human.targets[k]), np.float32) for k in chosen]
    return Examples(
        [*learned.sources, *(human.sources[k] for k in chosen)],
        [*learned.targets, *(human.targets[k] for k in chosen)],
        {"human": np.repeat(np.asarray([0, 1], np.float32), (len(learned), len(chosen)))},
        token_columns={name: [*rows, *nothing] for name, rows in learned.token_columns.items()},
    )


POLICY = {name: f"ppo/{name}" for name in ("policy_loss", "clip_fraction", "approx_kl", "ratio", "entropy")}
POLICY |= {name: f"ppo/{name}" for name in ("pretraining_nll", "gradient_norm")}
POLICY["learning_rate"] = "learning_rate"
CRITIC = {
    "loss": "ppo/value_loss",
    "clip_fraction": "ppo/value_clip_fraction",
    "gradient_norm": "ppo/critic_gradient_norm",
}


def means_of(updates: list[dict[str, float]], names: Mapping[str, str]) -> dict[str, float]:
    """Means over a rollout's updates, under the names of the journal."""
    return {
        shown: float(np.mean([seen[name] for seen in updates]))
        for name, shown in names.items()
        if updates and name in updates[0]
    }
