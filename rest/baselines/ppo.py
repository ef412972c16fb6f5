"""Proximal policy optimization (Schulman et al. 2017) against a reward (Ziegler et al. 2019, Ouyang et al. 2022).

The online baseline that ReST is compared with. RLOO (Ahmadian et al. 2024) and GRPO (Shao et al. 2024) are the same
loop with another `advantage`. What it writes to metrics.jsonl and TensorBoard, a line a rollout, is in `METRICS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32

from rest.baselines.rollout import (
    Rollout,
    RolloutSettings,
    by_hypothesis,
    roll_out,
    side_by_side,
    sources_of,
    token_rewards,
)
from rest.data.batches import Batch, BatchSettings, Examples, minibatches
from rest.data.corpus import Split
from rest.data.segments import Segments
from rest.data.shards import write_shard
from rest.data.store import write_manifest
from rest.errors import UserError
from rest.folder import describe, seed_for
from rest.journal import Journal, progress, say
from rest.learning.checkpoint import Checkpoints, State
from rest.learning.lora import Trainable
from rest.learning.losses import Loss
from rest.learning.mesh import MachineSettings, refuse_several_processes
from rest.learning.optimizers import Adam, Schedule
from rest.learning.returns import GAE, Group, LeaveOneOut, whiten
from rest.learning.surrogate import ClippedSurrogate, ClippedValue
from rest.learning.train import Learner, resume, state_of
from rest.model.transformer import Transformer
from rest.policy.policy import Policy, hidden_states
from rest.policy.value import Value, ValueNetwork
from rest.reward.reward import Reward

METRICS = {
    "objective/reward": "mean reward of the rollout's hypotheses, before anything is taken off",
    "objective/kl": "divergence to the anchor by `rollout.estimator`, summed over tokens, nats a hypothesis",
    "objective/coefficient": "the KL coefficient in this rollout",
    "objective/penalised_reward": "mean of what a hypothesis' tokens are paid in all, before whitening",
    "ppo/policy_loss": "the clipped surrogate, mean over updates",
    "ppo/clip_fraction": "share of tokens whose ratio is held by the clip",
    "ppo/approx_kl": "divergence of the policy that drew from the one updated (K3), nats a token, mean over updates",
    "ppo/ratio": "mean ratio of the two policies",
    "ppo/entropy": "entropy of the next token, nats",
    "ppo/pretraining_nll": "negative log-likelihood of human pairs, nats a token; only with `pretraining`",
    "ppo/gradient_norm": "of the policy, before clipping",
    "ppo/updates": "updates of the policy in this rollout; fewer when `target_kl` ends it",
    "ppo/value_loss": "the critic's loss, mean over updates",
    "ppo/value_clip_fraction": "share of tokens whose value is held by the clip",
    "ppo/explained_variance": "1 - variance of (return - value) / variance of returns, before the updates",
    "ppo/critic_gradient_norm": "of the critic, before clipping",
    "ppo/advantage_deviation": "standard deviation of the advantages before whitening",
    "ppo/sampler_gap": "largest difference of the sampler's log-probabilities from the update's; 0 but for rounding",
    "length/mean": "tokens of a hypothesis, EOS included",
    "length/cut": "share of hypotheses without EOS",
    "learning_rate": "of the policy, mean over updates",
    "dev/score": "mean reward on dev, by which the policy is chosen; a line of its own",
}


@dataclass(frozen=True)
class CriticSettings:
    """How the value function learns; it is a network of its own, started from BC."""

    loss: ClippedValue = field(default_factory=ClippedValue)
    schedule: Any = field(default_factory=lambda: Schedule(3e-4))
    optimizer: Any = field(default_factory=Adam)
    warmup_rollouts: int = 2
    """In the first so many rollouts only the critic learns."""


@dataclass(frozen=True)
class PPOSettings:
    """PPO, RLOO or GRPO; which one, `advantage` says."""

    rollouts: int = 0
    """How long to train; 0: no PPO in this experiment."""
    evaluate_every: int = 10
    """Rollouts between evaluations on dev; a checkpoint is written at each."""
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    advantage: GAE | LeaveOneOut | Group = field(default_factory=GAE)
    whiten_advantages: Literal["bessel", "population", "no"] = "bessel"
    """Give the advantages of a rollout mean 0 and variance 1, and by which variance."""
    surrogate: ClippedSurrogate = field(default_factory=ClippedSurrogate)
    epochs: int = 2
    """How often a rollout is gone through."""
    target_kl: float = 0.0
    """A rollout's updates of the policy end when one has a ppo/approx_kl above this; 0: never."""
    pretraining: float = 0.0
    """γ of PPO-ptx: the weight of the log-likelihood of human pairs (Ouyang et al. 2022, eq. 2), a token."""
    pretraining_pairs: int = 64
    """Human pairs joined to a rollout, where `pretraining` is not 0."""
    schedule: Any = field(default_factory=lambda: Schedule(1e-4))
    optimizer: Any = field(default_factory=Adam)
    trainable: Trainable = field(default_factory=Trainable)
    """What of the policy trains; what does not is shared with the anchor."""
    critic: CriticSettings = field(default_factory=CriticSettings)

    def __post_init__(self) -> None:
        for name, least in {"rollouts": 0, "evaluate_every": 1, "epochs": 1}.items():
            if getattr(self, name) < least:
                raise UserError(f"ppo.{name} must be at least {least}, not {getattr(self, name)}")
        if not isinstance(self.advantage, GAE) and self.rollout.samples_per_source < 2:
            raise UserError(
                f"ppo.rollout.samples_per_source {self.rollout.samples_per_source}: "
                f"{type(self.advantage).__name__} compares the samples of a source, so it needs two"
            )

    @property
    def has_critic(self) -> bool:
        return isinstance(self.advantage, GAE)


@dataclass(frozen=True)
class PolicyUpdate:
    """What an update of the policy minimises. No dropout: ratios compare the network that drew with itself."""

    surrogate: ClippedSurrogate
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
        loss = self.surrogate(
            scores.log_probs,
            batch.token_columns["log_probs"],
            batch.token_columns["advantages"],
            scores.entropies,
            Segments(jnp.where(of_human, 0, batch.target_segments)),
            batch.real & ~human,
        )
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


@dataclass
class _Training:
    """What rollouts change: the networks, the KL coefficient, and the evaluations so far."""

    actor: Learner[Policy]
    critic: Learner[Value] | None
    coefficient: float
    history: list[tuple[int, float]] = field(default_factory=list)  # (rollout, score on dev)

    @classmethod
    def start(cls, policy: Policy, settings: PPOSettings, seed: int, machine: MachineSettings) -> _Training:
        updating = PolicyUpdate(settings.surrogate, settings.rollout.temperature, settings.pretraining)
        actor = Learner.begin(
            policy,
            updating,
            settings.optimizer,
            settings.schedule,
            settings.trainable,
            seed=seed_for(seed, "ppo additions"),
            machine=machine,
        )
        critic, how = None, settings.critic
        if settings.has_critic:
            value, regression = Value.start(policy), CriticUpdate(how.loss)
            critic = Learner.begin(
                value, regression, how.optimizer, how.schedule, Trainable(), seed=seed, machine=machine
            )
        return cls(actor, critic, settings.rollout.coefficient.start)

    @property
    def learners(self) -> dict[str, Learner[Any]]:
        return {"policy": self.actor} | ({} if self.critic is None else {"critic": self.critic})

    def state(self) -> State:
        """What a checkpoint keeps."""
        return state_of(self.learners, {"history": self.history, "coefficient": self.coefficient})

    def go_on(self, saved: State) -> None:
        """Go on from what a checkpoint kept."""
        self.history, self.coefficient = saved.progress["history"], saved.progress["coefficient"]
        resume(self.learners, saved)


def ppo(
    policy: Policy,
    text: Split,
    human: Examples | None,
    reward: Reward,
    settings: PPOSettings,
    batch: BatchSettings,
    *,
    max_target_tokens: int,
    evaluate: Callable[[Policy], Mapping[str, float]],
    folder: Path,
    seed: int,
    machine: MachineSettings | None = None,
) -> tuple[Policy, dict[str, Any]]:
    """Train a policy on the rewards of its own samples for `text`; what scores best on dev is kept.

    A hypothesis has at most `max_target_tokens`. The policy given is the anchor and candidate 0. `human` are the pairs
    of PPO-ptx, None without. A call on the same folder goes on from the last evaluation with the same results.
    """
    refuse_several_processes("ppo")
    machine = machine or MachineSettings()
    anchor, paid, pad_id = policy, settings.rollout, policy.tokenizer.pad_id
    n = paid.sources * paid.samples_per_source
    drawn = partial(roll_out, max_target_tokens=max_target_tokens, seed=seed, machine=machine)
    training = _Training.start(policy, settings, seed, machine)
    actor, critic = training.actor, training.critic
    (folder / "rollouts").mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints")
    kept = checkpoints.steps()
    number = kept[-1] if kept else 0
    if kept:
        training.go_on(checkpoints.restore(number, training.state()))
    say(
        f"ppo: {settings.rollouts} rollouts of {n} hypotheses for {len(text)} sources, "
        f"advantage {settings.advantage}, divergence {paid.estimator}, coefficient {paid.coefficient}"
    )

    with (
        closing(checkpoints),
        Journal(folder, number if kept else -1) as journal,
        progress("ppo", settings.rollouts) as bar,
    ):

        def look() -> None:
            values = evaluate(actor.now)
            score = float(values["score"])
            if not math.isfinite(score):
                raise UserError(f"ppo: the evaluation after rollout {number} gave the score {score}")
            training.history.append((number, score))
            journal.record(number, {f"dev/{name}": x for name, x in values.items()})
            checkpoints.save(number, training.state(), score)
            say(f"ppo: rollout {number}, " + ", ".join(f"{name} {x:.4g}" for name, x in values.items()))

        if not training.history:
            look()
        while number < settings.rollouts:
            number += 1
            part = sources_of(text, paid.sources, number, seed)
            rollout = drawn(actor.now, anchor, part, reward, paid, batch, number=number)
            if paid.keep_every and (number - 1) % paid.keep_every == 0:
                write_shard(folder / "rollouts", *_shard(settings, number), rollout.columns)
            foreseen = None if critic is None else critic.now.of(rollout.examples, batch)
            learned, metrics = learn_from(rollout, foreseen, settings, training.coefficient)
            learned = join(learned, human, settings, np.random.default_rng(seed_for(seed, "ppo human pairs", number)))
            metrics |= {"objective/coefficient": training.coefficient}
            metrics |= run_epochs(actor, critic, learned, settings, batch, pad_id=pad_id, number=number, seed=seed)
            training.coefficient = paid.coefficient.after(training.coefficient, metrics["objective/kl"], n)
            journal.record(number, metrics)
            bar.update(number, f"reward {metrics['objective/reward']:.3f}, kl {metrics['objective/kl']:.2f}")
            if number % settings.evaluate_every == 0 or number == settings.rollouts:
                look()

        best = max(training.history, key=lambda entry: (entry[1], entry[0]))[0]
        chosen = actor.having(checkpoints.parameters(best, training.state().parameters)["policy"])
    if paid.keep_every and settings.rollouts:
        identities = {"policy": anchor.identity, "reward": reward.identity, "tokenizer": policy.tokenizer.identity}
        write_manifest(
            folder / "rollouts", settings=describe(settings), identities=identities, seed=seed, scale=reward.range
        )
    return chosen, {
        "best_step": best,
        "gradient_steps": actor.steps,
        "critic_steps": 0 if critic is None else critic.steps,
        "samples": settings.rollouts * n,
        "dev_reward": training.history,
        "coefficient": training.coefficient,
        "estimator": describe(paid.estimator),
        "started_policy_won": best == 0,
    }


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
) -> dict[str, float]:
    """Go through a rollout `epochs` times, updating the critic and the policy; means over the updates."""
    key = jax.random.fold_in(jax.random.key(seed_for(seed, "ppo")), number)
    of_policy, of_critic = list[dict[str, float]](), list[dict[str, float]]()

    def update(who: str, learner: Learner[Any], part: Batch) -> dict[str, float]:
        metrics = {name: float(x) for name, x in learner.update(part, key).items()}
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
                moves = not settings.target_kl or of_policy[-1]["approx_kl"] <= settings.target_kl
    return {"ppo/updates": float(len(of_policy))} | means_of(of_policy, POLICY) | means_of(of_critic, CRITIC)


def learn_from(
    rollout: Rollout, values: list[np.ndarray] | None, settings: PPOSettings, coefficient: float
) -> tuple[Examples, dict[str, float]]:
    """The rollout as pairs with what the updates need of each token, and what there is to report."""
    mask, paid = jnp.asarray(rollout.mask), settings.rollout
    divergences = rollout.divergences
    scores = np.asarray(rollout.columns["reward"], np.float32)
    tokens = token_rewards(scores, rollout.finished, rollout.lengths, divergences, paid, coefficient)
    old = np.zeros(rollout.mask.shape, np.float32) if values is None else side_by_side(values, rollout.mask)
    rewards = whiten(jnp.asarray(tokens), mask, shift_mean=False) if paid.whiten_rewards else jnp.asarray(tokens)
    estimate = settings.advantage(rewards, jnp.asarray(old), mask, paid.samples_per_source)
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
    if settings.whiten_advantages != "no":
        advantages = np.asarray(whiten(estimate.advantages, mask, settings.whiten_advantages))
    columns = {
        "log_probs": rollout.log_probs,
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


def _shard(settings: PPOSettings, number: int) -> tuple[int, int]:
    """Which shard of how many holds a rollout."""
    every = settings.rollout.keep_every
    return (number - 1) // every, -(-settings.rollouts // every)
