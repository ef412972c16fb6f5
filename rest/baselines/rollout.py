"""One rollout of online RL: sources, hypotheses from the current policy, rewards, and how far it is from the anchor.

Every log-probability here is under the sampling distribution: the softmax of the logits divided by the sampling
temperature, for the policy, for the policy of a rollout ago and for the anchor alike. All are computed by the same
teacher-forced pass without dropout, which the update differentiates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32

from rest.data.batches import Batch, BatchSettings, Examples
from rest.data.corpus import Split
from rest.errors import UserError
from rest.folder import seed_for
from rest.grow import GrowSettings, scored_columns
from rest.learning.apply import per_token
from rest.learning.divergence import K1, K2, K3, Exact, exact
from rest.learning.mesh import MachineSettings
from rest.model.transformer import Transformer
from rest.policy.policy import Policy, hidden_states, token_log_probs
from rest.policy.sampler import SamplingSettings, check_temperature, sample
from rest.reward.reward import Reward


@dataclass(frozen=True)
class RolloutSettings:
    """What one rollout draws, and what a hypothesis is paid."""

    sources: int = 64
    """Sources a rollout; the text is shuffled anew each time it is used up."""
    samples_per_source: int = 4
    """N."""
    temperature: float = 1.0
    """Of the samples. They are of the whole vocabulary, whatever the experiment's `sampling`: a token that a truncated
    distribution cannot draw any more has no ratio."""
    missing_eos_penalty: float = 0.0
    """Taken off the reward of a hypothesis that was cut."""
    clip_reward: float = 0.0
    """The reward, less the penalty for a missing EOS, is held within ± this; 0: not."""
    keep_every: int = 10
    """Of so many rollouts the first is written to ppo/rollouts; 0: none."""

    def __post_init__(self) -> None:
        if self.sources < 1 or self.samples_per_source < 1 or self.keep_every < 0:
            raise UserError(
                f"rollout: sources {self.sources} and samples_per_source {self.samples_per_source} must be at least 1, "
                f"and keep_every {self.keep_every} not below 0"
            )
        check_temperature("rollout.temperature", self.temperature)
        if self.missing_eos_penalty < 0 or self.clip_reward < 0:
            raise UserError(
                f"rollout: missing_eos_penalty {self.missing_eos_penalty} and clip_reward {self.clip_reward} "
                f"must not be below 0"
            )

    def sampling(self, max_target_tokens: int) -> SamplingSettings:
        """What is drawn from."""
        return SamplingSettings(self.temperature, max_target_tokens=max_target_tokens)


@dataclass(frozen=True)
class Rollout:
    """n = sources x N hypotheses, those of a source side by side."""

    columns: dict[str, Any]  # rows of the scored dataset's schema
    examples: Examples
    lengths: np.ndarray  # int64 [n], tokens
    mask: np.ndarray  # bool [n, T]
    log_probs: np.ndarray  # float32 [n, T], of the policy that drew
    anchor_log_probs: np.ndarray  # float32 [n, T]
    divergences: np.ndarray  # float32 [n, T], to the anchor as estimated; 0 on padding
    sampler_gap: float  # the largest difference to what the sampler says of its own draws, nats a token

    @property
    def finished(self) -> np.ndarray:
        """Which hypotheses end in EOS, bool [n]."""
        return np.asarray(self.columns["finish"]) == "eos"


def side_by_side(rows: list[np.ndarray], mask: Bool[np.ndarray, "n T"]) -> Float32[np.ndarray, "n T"]:
    """One number a token, padded with 0."""
    out = np.zeros(mask.shape, np.float32)
    out[mask] = np.concatenate(rows)
    return out


def by_hypothesis(x: Float32[np.ndarray, "n T"], lengths: np.ndarray) -> list[np.ndarray]:
    """The way back: [n] of [tokens]."""
    return [row[:length] for row, length in zip(x, lengths, strict=True)]


@dataclass(frozen=True)
class _Divergences:
    """KL(policy ‖ anchor) of the next token before every target token, at a temperature."""

    temperature: float

    def __call__(self, policy: Transformer, anchor: Transformer, batch: Batch) -> Float[Array, "B T"]:
        networks = policy, anchor
        states = [hidden_states(network, batch, None).swapaxes(0, 1) for network in networks]  # [T, B, D]

        def at(position: list[Array]) -> Array:  # one at a time: [B, V] is all that exists of the vocabulary
            logits = [network.logits(x) for network, x in zip(networks, position, strict=True)]
            return exact(*(jax.nn.log_softmax(x / self.temperature) for x in logits))

        return jax.lax.map(at, states).swapaxes(0, 1)


def divergences_to(
    policy: Policy, anchor: Policy, examples: Examples, batch: BatchSettings, temperature: float
) -> list[np.ndarray]:
    """KL(policy ‖ anchor) of the next token before every target token, at a temperature, float32 [tokens], nats."""
    networks, pad_id = (policy.network, anchor.network), policy.tokenizer.pad_id
    return per_token(_Divergences(temperature), networks, examples, batch, pad_id=pad_id, same_shapes=True)


def sources_of(text: Split, sources: int, number: int, seed: int) -> Split:
    """The sources of rollout `number`, from 1. They follow from the number, so that no position need be saved."""
    if sources > len(text):
        raise UserError(f"ppo.rollout.sources {sources}: PPO has only {len(text)} sources")
    epoch, part = divmod(number - 1, len(text) // sources)
    order = np.random.default_rng(seed_for(seed, "ppo sources", epoch)).permutation(len(text))
    return text.take(order[part * sources : (part + 1) * sources])


def roll_out(
    policy: Policy,
    anchor: Policy,
    part: Split,
    reward: Reward,
    settings: RolloutSettings,
    estimator: K1 | K2 | K3 | Exact,
    batch: BatchSettings,
    *,
    max_target_tokens: int,
    number: int,
    seed: int,
    machine: MachineSettings | None = None,
) -> Rollout:
    """Draw and score hypotheses of at most `max_target_tokens`, and estimate their divergence to the anchor.

    `number` is folded into the key of every draw: no two rollouts share their randomness.
    """
    n, sampling = settings.samples_per_source, settings.sampling(max_target_tokens)
    if max_target_tokens > batch.target_tokens:
        raise UserError(
            f"batch.target_tokens {batch.target_tokens} is less than sampling.max_target_tokens {max_target_tokens}"
        )
    own = seed_for(seed, "ppo rollouts")
    drawn = sample(policy, part.sources, part.ids, n, sampling, seed=own, grow_step=number, machine=machine)
    columns = scored_columns(policy, part, drawn, reward, GrowSettings(samples_per_source=n, human_pairs=False))
    examples = Examples([ids for ids in policy.encode_sources(part.sources) for _ in range(n)], columns["tokens"])
    lengths = np.asarray([len(y) for y in columns["tokens"]])
    mask = np.arange(max_target_tokens) < lengths[:, None]
    of_policy, of_anchor = (
        side_by_side(token_log_probs(who, examples, batch, temperature=settings.temperature, same_shapes=True), mask)
        for who in (policy, anchor)
    )
    gap = np.abs(of_policy - side_by_side(columns["behaviour_log_probs"], mask)).max()
    if isinstance(estimator, Exact):
        divergences = side_by_side(divergences_to(policy, anchor, examples, batch, settings.temperature), mask)
    else:
        divergences = np.asarray(estimator(jnp.asarray(of_policy - of_anchor)))  # of 0 on padding it is 0
    return Rollout(columns, examples, lengths, mask, of_policy, of_anchor, divergences, float(gap))


def token_rewards(
    rewards: Float32[np.ndarray, " n"],
    finished: Bool[np.ndarray, " n"],
    lengths: np.ndarray,
    divergences: Float32[np.ndarray, "n T"],
    settings: RolloutSettings,
    coefficient: float,
) -> Float32[np.ndarray, "n T"]:
    """What each token is paid: the divergence is taken off everywhere, and a hypothesis' reward is on its last token.

    The last token is EOS where the hypothesis ended; lengths say where it is, not ids.
    """
    paid = rewards - np.float32(settings.missing_eos_penalty) * ~finished
    if settings.clip_reward:
        paid = np.clip(paid, -settings.clip_reward, settings.clip_reward)
    out = -np.float32(coefficient) * divergences
    out[np.arange(len(paid)), lengths - 1] += paid
    assert out.dtype == np.float32  # of integers, rewards below 1 would be nothing
    return out
