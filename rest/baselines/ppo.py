"""Proximal policy optimization (Schulman et al. 2017) against a reward (Ziegler et al. 2019, Ouyang et al. 2022).

The online baseline that ReST is compared with. RLOO (Ahmadian et al. 2024) and GRPO (Shao et al. 2024) are the same
loop with other settings (settings.py, which also says what a line of metrics.jsonl and TensorBoard has, one a rollout).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rest import processes
from rest.baselines.rollout import Rollout, roll_out, sources_of
from rest.baselines.settings import PPOSettings
from rest.baselines.updates import CriticUpdate, PolicyUpdate, join, learn_from, run_epochs
from rest.data.batches import BatchSettings, Examples
from rest.data.corpus import Split
from rest.data.shards import write_shard
from rest.data.store import write_manifest
from rest.errors import UserError
from rest.folder import seed_for
from rest.identity import describe
from rest.journal import Journal, progress, say
from rest.learning.checkpoint import Checkpoints, State, best_of
from rest.learning.divergence import InLoss
from rest.learning.learner import Learner, resume, state_of
from rest.learning.lora import Trainable
from rest.learning.mesh import MachineSettings
from rest.learning.pace import Pace
from rest.learning.train import mean_of
from rest.policy.policy import Policy
from rest.policy.value import Value
from rest.reward.reward import Reward


@dataclass
class _Training:
    """What rollouts change: the networks, the KL coefficient, and the evaluations so far."""

    actor: Learner[Policy]
    critic: Learner[Value] | None
    coefficient: float
    history: list[tuple[int, float]] = field(default_factory=list)  # (rollout, score on dev)

    @classmethod
    def start(
        cls, policy: Policy, reward: Reward, settings: PPOSettings, seed: int, machine: MachineSettings
    ) -> _Training:
        added = settings.divergence if isinstance(settings.divergence, InLoss) else None
        updating = PolicyUpdate(settings.surrogate, added, settings.rollout.temperature, settings.pretraining)
        actor = Learner.begin(
            policy,
            updating,
            settings.optimizer,
            settings.schedule,
            settings.trainable,
            seed=seed_for(seed, "ppo additions"),
            machine=machine,
            ema=settings.ema,
        )
        critic, how = None, settings.critic
        if settings.has_critic:
            value, regression = how.start(policy, reward), CriticUpdate(how.loss)
            critic = Learner.begin(
                value, regression, how.optimizer, how.schedule, Trainable(), seed=seed, machine=machine
            )
        return cls(actor, critic, settings.divergence.coefficient.start)

    @property
    def learners(self) -> dict[str, Learner[Any]]:
        return {"policy": self.actor} | ({} if self.critic is None else {"critic": self.critic})

    def state(self) -> State:
        """What a checkpoint keeps."""
        return state_of(self.learners, {"history": self.history, "coefficient": self.coefficient})

    def go_on(self, saved: State) -> None:
        """Go on from what a checkpoint kept."""
        self.history = [(int(at), float(score)) for at, score in saved.progress["history"]]
        self.coefficient = saved.progress["coefficient"]
        resume(self.learners, saved)

    def learn(
        self,
        rollout: Rollout,
        human: Examples | None,
        settings: PPOSettings,
        batch: BatchSettings,
        *,
        number: int,
        seed: int,
        pace: Pace,
    ) -> dict[str, float]:
        """Update the networks and the KL coefficient by a rollout; what there is to report of it."""
        foreseen = None if self.critic is None else self.critic.now.of(rollout.examples, batch)
        learned, metrics = learn_from(rollout, foreseen, settings, self.coefficient)
        learned = join(learned, human, settings, np.random.default_rng(seed_for(seed, "ppo human pairs", number)))
        metrics |= {"objective/coefficient": self.coefficient}
        pad_id = self.actor.start.tokenizer.pad_id
        gone_through = partial(run_epochs, pad_id=pad_id, number=number, seed=seed, pace=pace)
        metrics |= gone_through(self.actor, self.critic, learned, settings, batch)
        of_rollout = metrics["objective/kl"], len(rollout.lengths)
        self.coefficient = settings.divergence.coefficient.after(self.coefficient, *of_rollout)
        return metrics

    def best(
        self, checkpoints: Checkpoints, evaluate: Callable[[Policy], Mapping[str, float]], average: int
    ) -> tuple[int, Policy]:
        """The best policy on dev and its rollout; the last one for a mean of the last few that scores better."""
        like = self.state().parameters
        number, score = best_of(self.history)
        last = checkpoints.steps()[-average:]
        if len(last) > 1:
            mean = mean_of([checkpoints.parameters(at, like)["policy"] for at in last])
            averaged = float(processes.agreed(dict(evaluate(self.actor.having(mean))))["score"])
            say(f"ppo: average of rollouts {last} scores {averaged:.4g}, the best rollout {score:.4g}")
            if averaged > score:
                return last[-1], self.actor.having(mean)
        return number, self.actor.having(checkpoints.parameters(number, like)["policy"])


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
    machine = machine or MachineSettings()
    anchor, paid, divergence = policy, settings.rollout, settings.divergence
    n = paid.sources * paid.samples_per_source
    drawn = partial(roll_out, max_target_tokens=max_target_tokens, seed=seed, machine=machine)
    training = _Training.start(policy, reward, settings, seed, machine)
    actor, critic = training.actor, training.critic
    processes.first(lambda: (folder / "rollouts").mkdir(parents=True, exist_ok=True))
    checkpoints = Checkpoints(folder / "checkpoints", keep_latest=settings.average)
    pace = Pace.of(machine, None, ("rollouts", "evaluation", "checkpoints"))
    kept = checkpoints.steps()
    number = kept[-1] if kept else 0
    if kept:
        training.go_on(checkpoints.restore(number, training.state()))
    say(
        f"ppo: {settings.rollouts} rollouts of {n} hypotheses for {len(text)} sources, "
        f"advantage {settings.advantage}, divergence {divergence}"
    )

    with (
        closing(checkpoints),
        Journal(folder, number if kept else -1) as journal,
        progress("ppo", settings.rollouts) as bar,
    ):

        def look() -> None:
            with pace.lost_to("evaluation"):
                values = processes.agreed(dict(evaluate(actor.now)))
            score = float(values["score"])
            if not math.isfinite(score):
                raise UserError(f"ppo: the evaluation after rollout {number} gave the score {score}")
            training.history.append((number, score))
            journal.record(number, {f"dev/{name}": x for name, x in values.items()})
            with pace.lost_to("checkpoints"):
                checkpoints.save(number, training.state(), score)
            say(f"ppo: rollout {number}, " + ", ".join(f"{name} {x:.4g}" for name, x in values.items()))

        if not training.history:
            look()
        while number < settings.rollouts:
            number += 1
            part = sources_of(text, paid.sources, number, seed)
            with pace.lost_to("rollouts"):
                rollout = drawn(actor.raw, anchor, part, reward, paid, divergence.estimator, batch, number=number)
            if paid.keep_every and (number - 1) % paid.keep_every == 0:
                processes.first(partial(write_shard, folder / "rollouts", *_shard(settings, number), rollout.columns))
            metrics = training.learn(rollout, human, settings, batch, number=number, seed=seed, pace=pace)
            journal.record(number, metrics | pace.numbers())
            bar.update(number, f"reward {metrics['objective/reward']:.3f}, kl {metrics['objective/kl']:.2f}")
            if number % settings.evaluate_every == 0 or number == settings.rollouts:
                look()

        best, chosen = training.best(checkpoints, evaluate, settings.average)
    if paid.keep_every and settings.rollouts:
        identities = {"policy": anchor.identity, "reward": reward.identity, "tokenizer": policy.tokenizer.identity}
        known = {"settings": describe(settings), "identities": identities, "seed": seed, "scale": reward.range}
        processes.lead(lambda: write_manifest(folder / "rollouts", **known).rows)
    return chosen, {
        "best_step": best,
        "gradient_steps": actor.steps,
        "critic_steps": 0 if critic is None else critic.steps,
        "samples": settings.rollouts * n,
        "dev_reward": training.history,
        "coefficient": training.coefficient,
        "estimator": describe(divergence.estimator),
        "started_policy_won": best == 0,
    }


def _shard(settings: PPOSettings, number: int) -> tuple[int, int]:
    """Which shard of how many holds a rollout."""
    every = settings.rollout.keep_every
    return (number - 1) // every, -(-settings.rollouts // every)
