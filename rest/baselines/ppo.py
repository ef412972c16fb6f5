"""Proximal policy optimization (Schulman et al. 2017) against a reward (Ziegler et al. 2019, Ouyang et al. 2022).

The online baseline that ReST is compared with. RLOO (Ahmadian et al. 2024) and GRPO (Shao et al. 2024) are the same
loop with another `advantage`. What it writes to metrics.jsonl and TensorBoard, a line a rollout, is in `METRICS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float32

from rest.baselines.rollout import Rollout, RolloutSettings, apart, roll_out, side_by_side, sources_of, token_rewards
from rest.data.batches import Batch, BatchSettings, Examples, minibatches
from rest.data.corpus import Split
from rest.data.shards import write_shard
from rest.data.store import write_manifest
from rest.errors import UserError
from rest.journal import Journal, progress, say
from rest.learning.checkpoint import Checkpoints, State
from rest.learning.losses import Loss
from rest.learning.mesh import data_mesh, divide
from rest.learning.returns import GAE, Group, LeaveOneOut, whiten
from rest.learning.surrogate import ClippedSurrogate, ClippedValue
from rest.learning.train import Adam, Learner, Schedule
from rest.learning.value import Value
from rest.model.lora import Trainable
from rest.policy.policy import Policy, hidden_states
from rest.reward.reward import Reward
from rest.stage import describe, seed_for

METRICS = {
    "objective/reward": "mean reward of the rollout's hypotheses, before anything is taken off",
    "objective/kl": "divergence to the anchor by `rollout.estimator`, summed over tokens, nats a hypothesis",
    "objective/coefficient": "weight of the divergence in this rollout",
    "objective/penalised_reward": "mean of what a hypothesis' tokens are paid in all, before whitening",
    "ppo/policy_loss": "the clipped surrogate, mean over updates",
    "ppo/clip_fraction": "share of tokens whose ratio is held by the clip",
    "ppo/approx_kl": "divergence of the policy that drew from the one updated (K3), nats a token, mean over updates",
    "ppo/ratio": "mean ratio of the two policies",
    "ppo/entropy": "entropy of the next token, nats",
    "ppo/pretraining_nll": "negative log-likelihood of human pairs, nats a token; only with `pretraining`",
    "ppo/gradient_norm": "of the policy, before clipping",
    "ppo/updates": "updates of the policy in this rollout; fewer when `stop_at_kl` ends it",
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
    schedule: Schedule = field(default_factory=lambda: Schedule(3e-4))
    adam: Adam = field(default_factory=Adam)
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
    accumulate: int = 1
    """Micro-batches (of batch.batch_tokens) an update."""
    stop_at_kl: float = 0.0
    """A rollout's updates of the policy end when one has a ppo/approx_kl above this; 0: never."""
    pretraining: float = 0.0
    """γ of PPO-ptx: the weight of the log-likelihood of human pairs (Ouyang et al. 2022, eq. 2), a token."""
    pretraining_pairs: int = 64
    """Human pairs joined to a rollout, where `pretraining` is not 0."""
    schedule: Schedule = field(default_factory=lambda: Schedule(1e-4))
    adam: Adam = field(default_factory=Adam)
    trainable: Trainable = field(default_factory=Trainable)
    """What of the policy trains; what does not is shared with the anchor."""
    critic: CriticSettings = field(default_factory=CriticSettings)

    def __post_init__(self) -> None:
        for name, least in {"rollouts": 0, "evaluate_every": 1, "epochs": 1, "accumulate": 1}.items():
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

    graph: Any
    surrogate: ClippedSurrogate
    temperature: float
    pretraining: float

    def __call__(self, parameters: Any, batch: Batch, key: Array) -> Loss:
        network = nnx.merge(self.graph, parameters)
        states = hidden_states(network, batch, None)
        scores = network.scores(states, batch.target, temperature=self.temperature, entropy=True)
        human, segments = batch.columns["human"] > 0, batch.target_segments
        of_human = jnp.take_along_axis(human, jnp.maximum(segments - 1, 0), axis=1) & (segments > 0)
        loss = self.surrogate(
            scores.log_probs,
            batch.token_columns["log_probs"],
            batch.token_columns["advantages"],
            scores.entropies,
            jnp.where(of_human, 0, segments),
            (batch.sequence_ids >= 0) & ~human,
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

    graph: Any
    loss: ClippedValue

    def __call__(self, parameters: Any, batch: Batch, key: Array) -> Loss:
        values = nnx.merge(self.graph, parameters)(batch, None)
        human = jnp.take_along_axis(batch.columns["human"], jnp.maximum(batch.target_segments - 1, 0), axis=1) > 0
        mask = (batch.target_segments > 0) & ~human
        return self.loss(values, batch.token_columns["values"], batch.token_columns["returns"], mask)


@dataclass
class _Training:
    """What rollouts change: the networks, the weight of the divergence, and the evaluations so far."""

    learners: dict[str, Learner]  # the policy, and the critic where there is one
    coefficient: float
    history: list[tuple[int, float]] = field(default_factory=list)  # (rollout, score on dev)

    @classmethod
    def start(cls, policy: Policy, value: Value | None, settings: PPOSettings, seed: int) -> _Training:
        surrogate, temperature = settings.surrogate, settings.rollout.sampling.temperature
        objective = PolicyUpdate(policy.graph, surrogate, temperature, settings.pretraining)
        learners = {
            "policy": Learner.start(
                objective,
                policy.parameters,
                settings.adam,
                settings.schedule,
                settings.trainable,
                seed_for(seed, "ppo additions"),
            )
        }
        if value is not None:
            critic = settings.critic
            judging = CriticUpdate(value.graph, critic.loss)
            learners["critic"] = Learner.start(
                judging, value.parameters, critic.adam, critic.schedule, Trainable(), seed
            )
        return cls(learners, settings.rollout.coefficient.start)

    def state(self) -> State:
        """What a checkpoint keeps."""
        progress = {"history": self.history, "coefficient": self.coefficient}
        return State(
            {who: learner.trained for who, learner in self.learners.items()},
            {who: learner.optimizer for who, learner in self.learners.items()},
            progress | {who: learner.steps for who, learner in self.learners.items()},
        )

    def resume(self, saved: State) -> None:
        """Go on from what a checkpoint kept."""
        self.history, self.coefficient = saved.progress["history"], saved.progress["coefficient"]
        for who, learner in self.learners.items():
            learner.trained, learner.optimizer = saved.parameters[who], saved.optimizer[who]
            learner.steps = saved.progress[who]


def ppo(
    policy: Policy,
    text: Split,
    human: Examples | None,
    reward: Reward,
    settings: PPOSettings,
    batch: BatchSettings,
    *,
    evaluate: Callable[[Any], Mapping[str, float]],
    folder: Path,
    seed: int,
) -> tuple[Policy, dict[str, Any]]:
    """Train a policy on the rewards of its own samples for `text`; what scores best on dev is kept.

    The policy given is the anchor and candidate 0. `human` are the pairs of PPO-ptx, None without. A call on the same
    folder goes on from the last evaluation with the same results.
    """
    if jax.process_count() > 1:
        raise UserError(f"ppo: runs in one process, not {jax.process_count()}")
    anchor, paid, pad_id = policy, settings.rollout, policy.tokenizer.pad_id
    n = paid.sources * paid.samples_per_source
    value = Value.start(policy) if settings.has_critic else None
    training = _Training.start(policy, value, settings, seed)
    actor = training.learners["policy"]
    (folder / "rollouts").mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints")
    kept = checkpoints.steps()
    number = kept[-1] if kept else 0
    if kept:
        training.resume(checkpoints.restore(number, training.state()))
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
            values = evaluate(actor.parameters)
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
            current = policy.with_parameters(actor.parameters)
            rollout = roll_out(current, anchor, part, reward, paid, batch, number=number, seed=seed)
            if paid.keep_every and (number - 1) % paid.keep_every == 0:
                write_shard(folder / "rollouts", *_shard(settings, number), rollout.columns)
            foreseen = None
            if value is not None:
                critic = value.with_parameters(training.learners["critic"].parameters)
                foreseen = critic.of(rollout.examples, batch, pad_id)
            learned, metrics = learn_from(rollout, foreseen, settings, training.coefficient)
            learned = join(learned, human, settings, np.random.default_rng(seed_for(seed, "ppo human pairs", number)))
            metrics |= {"objective/coefficient": training.coefficient}
            metrics |= run_epochs(training.learners, learned, settings, batch, pad_id=pad_id, number=number, seed=seed)
            training.coefficient = paid.coefficient.after(training.coefficient, metrics["objective/kl"], n)
            journal.record(number, metrics)
            bar.update(number, f"reward {metrics['objective/reward']:.3f}, kl {metrics['objective/kl']:.2f}")
            if number % settings.evaluate_every == 0 or number == settings.rollouts:
                look()

        best = max(training.history, key=lambda entry: (entry[1], entry[0]))[0]
        chosen = actor.joined(checkpoints.parameters(best, training.state().parameters)["policy"])
    if paid.keep_every and settings.rollouts:
        identities = {"policy": anchor.identity, "reward": reward.identity, "tokenizer": policy.tokenizer.identity}
        write_manifest(
            folder / "rollouts", settings=describe(settings), identities=identities, seed=seed, scale=reward.range
        )
    return policy.with_parameters(chosen), {
        "best_step": best,
        "gradient_steps": actor.steps,
        "critic_steps": training.learners["critic"].steps if settings.has_critic else 0,
        "samples": settings.rollouts * n,
        "dev_reward": training.history,
        "coefficient": training.coefficient,
        "estimator": describe(paid.estimator),
        "started_policy_won": best == 0,
    }


def run_epochs(
    learners: Mapping[str, Learner],
    learned: Examples,
    settings: PPOSettings,
    batch: BatchSettings,
    *,
    pad_id: int,
    number: int,
    seed: int,
) -> dict[str, float]:
    """Go through a rollout `epochs` times, updating the critic and the policy; means over the updates."""
    mesh, key = data_mesh(), jax.random.fold_in(jax.random.key(seed_for(seed, "ppo")), number)
    updates: dict[str, list[dict[str, float]]] = {"policy": [], "critic": []}

    def update(who: str, batches: Batch) -> dict[str, float]:
        metrics = {name: float(x) for name, x in learners[who].update(batches, key).items()}
        if not math.isfinite(metrics["loss"]):
            last = (number - 1) // settings.evaluate_every * settings.evaluate_every
            raise UserError(
                f"ppo: the {who}'s loss in rollout {number} is {metrics['loss']}; "
                f"the last checkpoint, of rollout {last}, is kept"
            )
        updates[who].append(metrics)
        return metrics

    moves = not settings.has_critic or number > settings.critic.warmup_rollouts
    for epoch in range(settings.epochs):
        shuffle = seed_for(seed, "ppo batches", number, epoch)
        for batches in minibatches(learned, batch, pad_id=pad_id, seed=shuffle, accumulate=settings.accumulate):
            shared = divide(batches, mesh, axis=1)
            if settings.has_critic:  # also when the policy has stopped: its targets stay what they are
                update("critic", shared)
            if moves:
                divergence = update("policy", shared)["approx_kl"]
                moves = not settings.stop_at_kl or divergence <= settings.stop_at_kl
    of_policy, of_critic = updates.values()
    return {"ppo/updates": float(len(of_policy))} | named(of_policy, POLICY) | named(of_critic, CRITIC)


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
        token_columns={name: apart(x, rollout.lengths) for name, x in columns.items()},
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


def named(updates: list[dict[str, float]], names: Mapping[str, str]) -> dict[str, float]:
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
