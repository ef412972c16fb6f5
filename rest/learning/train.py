"""The one update loop: every network of the system, policy or reward, is trained here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rest.data.batches import Batch
from rest.errors import UserError
from rest.journal import Journal, progress, say
from rest.learning.checkpoint import Checkpoints, State
from rest.learning.losses import Loss
from rest.learning.mesh import data_mesh, divide, replicate
from rest.model.lora import Trainable
from rest.model.transformer import rematerialised


@runtime_checkable
class Objective(Protocol):
    """A network joined to a loss. Hashable, so that equal objectives share one compiled update."""

    def __call__(self, parameters: Any, batch: Batch, key: jax.Array) -> Loss: ...


@runtime_checkable
class Batches(Protocol):
    """An iterator whose position can be saved."""

    def __next__(self) -> Batch: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Adam:
    """AdamW (Loshchilov & Hutter 2019) after clipping by the global norm."""

    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-9
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    """Gradients longer than this are scaled down to it; 0 leaves them."""

    def direction(self) -> optax.GradientTransformation:
        """The update before the learning rate."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity(),
            optax.scale_by_adam(self.beta1, self.beta2, self.epsilon),
            optax.add_decayed_weights(self.weight_decay) if self.weight_decay else optax.identity(),
        )


@dataclass(frozen=True)
class Schedule:
    """The learning rate against steps."""

    learning_rate: float = 1e-3
    """At the end of warm-up."""
    warmup_steps: int = 0
    """Steps of linear rise from zero."""
    decay: Literal["constant", "inverse_sqrt"] = "constant"
    """After warm-up."""

    def __call__(self, step: int) -> float:
        """The rate of update number `step`, from 1."""
        if step < self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        if self.decay == "inverse_sqrt":
            return self.learning_rate * math.sqrt(max(1, self.warmup_steps) / step)
        return self.learning_rate


@dataclass(frozen=True)
class TrainSettings:
    """How long to train and when to look."""

    max_steps: int = 10_000
    """Updates at most."""
    evaluate_every: int = 500
    """Updates between evaluations; a checkpoint is written at each."""
    patience: int = 3
    """Stop after so many evaluations in a row without a new best."""
    accumulate: int = 1
    """Micro-batches an update."""
    remat: bool = False
    """Keep only what goes from layer to layer, and compute the rest again in the backward pass: less memory, slower.
    On CPU, where XLA orders operations for speed, it saves a tenth of the memory at most."""
    average: int = 1
    """Average the parameters of so many last evaluations at the end; kept only if that scores better."""
    schedule: Schedule = field(default_factory=Schedule)
    adam: Adam = field(default_factory=Adam)
    trainable: Trainable = field(default_factory=Trainable)

    def __post_init__(self) -> None:
        for name, least in {"max_steps": 0, "evaluate_every": 1, "patience": 1, "accumulate": 1, "average": 1}.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, not {getattr(self, name)}")


@dataclass(frozen=True)
class Trained:
    """The best parameters and how they were found."""

    parameters: Any
    best_step: int  # 0: the parameters that training started from
    score: float
    steps: int  # updates done
    stopped: Literal["converged", "step limit"]
    history: list[tuple[int, float]]  # (step, score) of every evaluation


@partial(jax.jit, static_argnames=("objective", "adam", "trainable"), donate_argnames=("trained", "optimizer"))
def update(
    objective: Objective,
    adam: Adam,
    trainable: Trainable,
    trained: Any,
    frozen: Any,
    optimizer: Any,
    batches: Batch,
    learning_rate: jax.Array,
    key: jax.Array,
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """One update from the micro-batches stacked along the first axis."""

    def summed(trained: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Loss]:
        loss = objective(trainable.join(trained, frozen), batch, key)
        return loss.sum, loss

    def gradient(i: int | jax.Array) -> tuple[Any, Loss]:
        micro = jax.tree.map(lambda leaf: leaf[i], batches)
        (_, loss), gradients = jax.value_and_grad(summed, has_aux=True)(trained, micro, jax.random.fold_in(key, i))
        return gradients, loss

    count = jax.tree.leaves(batches)[0].shape[0]
    gradients, loss = jax.lax.fori_loop(
        1, count, lambda i, total: jax.tree.map(jnp.add, total, gradient(i)), gradient(0)
    )
    weight = jnp.maximum(loss.weight, 1.0)
    gradients = jax.tree.map(lambda g: g / weight, gradients)
    updates, optimizer = adam.direction().update(gradients, optimizer, trained)
    trained = jax.tree.map(lambda p, u: p - learning_rate * u, trained, updates)
    metrics = {"loss": loss.sum / weight, **{name: value / weight for name, value in loss.metrics.items()}}
    return trained, optimizer, {**metrics, "gradient_norm": optax.tree.norm(gradients)}


@dataclass
class Learner:
    """A network that is being trained, and by what."""

    objective: Objective
    adam: Adam
    schedule: Schedule
    trainable: Trainable
    trained: Any  # what updates change
    frozen: Any  # what they do not, shared with whoever gave the parameters
    optimizer: Any
    steps: int = 0  # updates done

    @classmethod
    def start(
        cls,
        objective: Objective,
        parameters: Any,
        adam: Adam,
        schedule: Schedule,
        trainable: Trainable,
        seed: int,
    ) -> Learner:
        """Before the first update, on every device. The parameters given stay as they are."""
        mesh = data_mesh()
        trained, frozen = trainable.split(parameters, seed)
        trained, frozen = replicate(jax.tree.map(jnp.copy, trained), mesh), replicate(frozen, mesh)
        optimizer = replicate(adam.direction().init(trained), mesh)
        return cls(objective, adam, schedule, trainable, trained, frozen, optimizer)

    @property
    def parameters(self) -> Any:
        return self.joined(self.trained)

    def joined(self, trained: Any) -> Any:
        """All parameters, with others in place of those that are trained."""
        return self.trainable.join(trained, self.frozen)

    def update(self, batches: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """One update from micro-batches that are divided over the devices, and what there is to report of it."""
        self.steps += 1
        rate = jnp.float32(self.schedule(self.steps))
        self.trained, self.optimizer, metrics = update(
            self.objective,
            self.adam,
            self.trainable,
            self.trained,
            self.frozen,
            self.optimizer,
            batches,
            rate,
            key,
        )
        return {**metrics, "learning_rate": rate}


def train(
    objective: Objective,
    parameters: Any,
    batches: Batches,
    settings: TrainSettings,
    *,
    evaluate: Callable[[Any], Mapping[str, float]],
    folder: Path,
    seed: int,
    description: str,
) -> Trained:
    """Update until `max_steps`, or until `evaluate(parameters)["score"]` (higher is better) stops rising.

    Only what `settings.trainable` names has gradients, optimizer state and checkpoints; `evaluate` and the result have
    all parameters. The starting parameters are candidate 0. Progress is checkpointed in `folder`/checkpoints at every
    evaluation, and a call on the same folder goes on from there with the same results.
    """
    mesh, root = data_mesh(), jax.random.key(seed)
    if settings.remat:
        objective = rematerialised(objective, parameters)
    learner = Learner.start(objective, parameters, settings.adam, settings.schedule, settings.trainable, seed)
    history: list[tuple[int, float]] = []
    checkpoints = Checkpoints(folder / "checkpoints", keep_latest=settings.average)
    kept = checkpoints.steps()
    if kept:
        saved = checkpoints.restore(kept[-1], State(learner.trained, learner.optimizer, {}))
        learner.trained, learner.optimizer, learner.steps = saved.parameters, saved.optimizer, kept[-1]
        batches.set_state(saved.progress["data"])
        history = [(int(at), float(score)) for at, score in saved.progress["history"]]

    with (
        closing(checkpoints),
        Journal(folder, kept[-1] if kept else -1) as journal,
        progress(description, settings.max_steps) as bar,
    ):

        def look() -> None:
            values, step = evaluate(learner.parameters), learner.steps
            score = float(values["score"])
            if not math.isfinite(score):
                raise UserError(f"{description}: the evaluation at step {step} gave the score {score}")
            history.append((step, score))
            journal.record(step, {f"dev/{name}": value for name, value in values.items()})
            position = {"history": history, "data": batches.get_state()}
            checkpoints.save(step, State(learner.trained, learner.optimizer, position), score)
            say(f"{description}: step {step}, " + ", ".join(f"{n} {v:.4g}" for n, v in values.items()))

        def settle(step: int, micro: list[Batch], metrics: dict[str, jax.Array]) -> None:
            loss = float(metrics["loss"])
            if not math.isfinite(loss):
                raise UserError(
                    f"{description}: the loss of step {step} is {loss} in the batch with rows {_rows(micro)}; "
                    f"the last checkpoint, of step {history[-1][0]}, is kept"
                )
            bar.update(step, f"loss {loss:.3f}, dev {history[-1][1]:.4g}")
            if step % 10 == 0:
                journal.record(step, metrics)

        waiting: tuple[int, list[Batch], dict[str, jax.Array]] | None = None
        if not history:
            look()
        while learner.steps < settings.max_steps and not _stalled(history, settings.patience):
            micro = [next(batches) for _ in range(settings.accumulate)]
            stacked = divide(jax.tree.map(lambda *leaves: np.stack(leaves), *micro), mesh, axis=1)
            metrics = learner.update(stacked, jax.random.fold_in(root, learner.steps + 1))
            if waiting:  # the device has the next update already
                settle(*waiting)
            waiting = learner.steps, micro, metrics
            if learner.steps % settings.evaluate_every == 0 or learner.steps == settings.max_steps:
                settle(*waiting)
                waiting = None
                look()

        best_step, score = max(history, key=lambda entry: (entry[1], entry[0]))
        best = checkpoints.parameters(best_step, learner.trained)
        if settings.average > 1 and len(checkpoints.steps()) > 1:
            last = checkpoints.steps()[-settings.average :]
            mean = _mean([checkpoints.parameters(at, learner.trained) for at in last])
            averaged = float(evaluate(learner.joined(mean))["score"])
            say(f"{description}: average of steps {last} scores {averaged:.4g}, the best step {score:.4g}")
            if averaged > score:
                best, score, best_step = mean, averaged, learner.steps
    stopped: Literal["converged", "step limit"] = "converged" if _stalled(history, settings.patience) else "step limit"
    return Trained(learner.joined(best), best_step, score, learner.steps, stopped, history)


def _stalled(history: list[tuple[int, float]], patience: int) -> bool:
    """Whether the last `patience` evaluations brought no new best."""
    scores = [score for _, score in history]
    return len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])


def _mean(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


def _rows(batches: list[Batch]) -> list[int]:
    """Rows of the dataset in these batches, for messages."""
    return sorted({int(row) for batch in batches for row in np.ravel(batch.sequence_ids) if row >= 0})
