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
    mesh = data_mesh()
    adam, trainable = settings.adam, settings.trainable
    if settings.remat:
        objective = rematerialised(objective, parameters)
    checkpoints = Checkpoints(folder / "checkpoints", keep_latest=settings.average)
    trained, frozen = trainable.split(parameters, seed)
    frozen = replicate(frozen, mesh)  # shared with whoever gave the parameters, unlike what is trained
    trained = replicate(jax.tree.map(jnp.copy, trained), mesh)
    state = State(trained, replicate(adam.direction().init(trained), mesh), {"history": []})
    kept = checkpoints.steps()
    step = kept[-1] if kept else 0
    if kept:
        state = checkpoints.restore(step, state)
        batches.set_state(state.progress["data"])
    trained, optimizer, history = state.parameters, state.optimizer, state.progress["history"]
    history = [(int(at), float(score)) for at, score in history]
    root = jax.random.key(seed)

    with (
        closing(checkpoints),
        Journal(folder, step if kept else -1) as journal,
        progress(description, settings.max_steps) as bar,
    ):

        def look() -> None:
            values = evaluate(trainable.join(trained, frozen))
            score = float(values["score"])
            if not math.isfinite(score):
                raise UserError(f"{description}: the evaluation at step {step} gave the score {score}")
            history.append((step, score))
            journal.record(step, {f"dev/{name}": value for name, value in values.items()})
            saved = {"history": history, "data": batches.get_state()}
            checkpoints.save(step, State(trained, optimizer, saved), history[-1][1])
            say(f"{description}: step {step}, " + ", ".join(f"{n} {v:.4g}" for n, v in values.items()))

        def settle(at: int, micro: list[Batch], metrics: dict[str, jax.Array]) -> None:
            loss = float(metrics["loss"])
            if not math.isfinite(loss):
                raise UserError(
                    f"{description}: the loss of step {at} is {loss} in the batch with rows {_rows(micro)}; "
                    f"the last checkpoint, of step {history[-1][0]}, is kept"
                )
            bar.update(at, f"loss {loss:.3f}, dev {history[-1][1]:.4g}")
            if at % 10 == 0:
                journal.record(at, {**metrics, "learning_rate": settings.schedule(at)})

        waiting: tuple[int, list[Batch], dict[str, jax.Array]] | None = None
        if not history:
            look()
        while step < settings.max_steps and not _stalled(history, settings.patience):
            micro = [next(batches) for _ in range(settings.accumulate)]
            step += 1
            trained, optimizer, metrics = update(
                objective,
                adam,
                trainable,
                trained,
                frozen,
                optimizer,
                divide(jax.tree.map(lambda *leaves: np.stack(leaves), *micro), mesh, axis=1),
                jnp.float32(settings.schedule(step)),
                jax.random.fold_in(root, step),
            )
            if waiting:  # the device has the next update already
                settle(*waiting)
            waiting = step, micro, metrics
            if step % settings.evaluate_every == 0 or step == settings.max_steps:
                settle(*waiting)
                waiting = None
                look()

        best_step, score = max(history, key=lambda entry: (entry[1], entry[0]))
        best = checkpoints.parameters(best_step, trained)
        if settings.average > 1 and len(checkpoints.steps()) > 1:
            last = checkpoints.steps()[-settings.average :]
            mean = _mean([checkpoints.parameters(at, trained) for at in last])
            averaged = float(evaluate(trainable.join(mean, frozen))["score"])
            say(f"{description}: average of steps {last} scores {averaged:.4g}, the best step {score:.4g}")
            if averaged > score:
                best, score, best_step = mean, averaged, step
    stopped: Literal["converged", "step limit"] = "converged" if _stalled(history, settings.patience) else "step limit"
    return Trained(trainable.join(best, frozen), best_step, score, step, stopped, history)


def _stalled(history: list[tuple[int, float]], patience: int) -> bool:
    """Whether the last `patience` evaluations brought no new best."""
    scores = [score for _, score in history]
    return len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])


def _mean(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


def _rows(batches: list[Batch]) -> list[int]:
    """Rows of the dataset in these batches, for messages."""
    return sorted({int(row) for batch in batches for row in np.ravel(batch.sequence_ids) if row >= 0})
