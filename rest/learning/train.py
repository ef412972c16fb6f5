"""The one update loop: every network of the system, policy or reward, is trained here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rest.data.batches import Batch, BatchSettings, Examples, Plan, training_batches
from rest.errors import UserError
from rest.journal import Journal, progress, say
from rest.learning.checkpoint import Checkpoints, State
from rest.learning.lora import DUAL_VARIABLES, Trainable
from rest.learning.losses import Loss
from rest.learning.mesh import MachineSettings, data_mesh, divide, replicate
from rest.learning.optimizers import Adam, LearningRate, Optimizer, Schedule


@runtime_checkable
class Objective(Protocol):
    """What an update minimises. Hashable, so that equal objectives share one compiled update.

    `network` is the module. The dual variables are parameters of the loss itself; most have none.
    """

    def __call__(
        self, network: Any, batch: Batch, key: jax.Array | None, dual_variables: Mapping[str, Any]
    ) -> Loss: ...


@runtime_checkable
class Trainee(Protocol):
    """What holds the network that is trained: a policy, a value, a learned reward."""

    @property
    def network(self) -> Any: ...
    def with_network(self, network: Any) -> Any: ...


T = TypeVar("T", bound=Trainee)


@runtime_checkable
class Batches(Protocol):
    """An iterator whose position can be saved."""

    def __next__(self) -> Batch: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class TrainSettings:
    """How long to train and when to look."""

    max_steps: int = 10_000
    """Updates at most."""
    evaluate_every: int = 500
    """Updates between evaluations; a checkpoint is written at each."""
    patience: int = 3
    """Stop after so many evaluations in a row without a new best."""
    average: int = 1
    """Average the parameters of so many last evaluations at the end; kept only if that scores better."""
    ema: float = 0.0
    """Decay, an update, of a moving average of the parameters, which is then what is evaluated and kept; 0: none."""
    schedule: Any = field(default_factory=Schedule)  # a LearningRate
    """The learning rate: Schedule, or any function of the step, such as a schedule of optax."""
    rate_factor: float = 1.0
    """Times the schedule's rate; what makes the rate fall from one Improve step to the next."""
    optimizer: Any = field(default_factory=Adam)  # an Optimizer
    """Adam, Adafactor, or any function that returns an optax transformation."""
    trainable: Trainable = field(default_factory=Trainable)

    def __post_init__(self) -> None:
        for name, least in {"max_steps": 0, "evaluate_every": 1, "patience": 1, "average": 1}.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, not {getattr(self, name)}")
        check_decay("ema", self.ema)

    @property
    def highest_rate(self) -> float:
        """The highest learning rate of all updates; of a schedule that is not ours, of 1,000 of them at most."""
        every = 1 if isinstance(self.schedule, Schedule) else -(-self.max_steps // 1000) or 1
        rates = (float(self.schedule(step)) for step in range(1, self.max_steps + 1, every))
        return self.rate_factor * max(rates, default=0.0)


def check_decay(name: str, decay: float) -> None:
    """UserError unless a moving average can have this decay."""
    if not 0 <= decay < 1:
        raise UserError(f"{name} must be at least 0 and below 1, not {decay}")


@dataclass(frozen=True)
class Trained(Generic[T]):
    """The best of what was trained and how it was found."""

    best: T
    best_step: int  # 0: what training started from
    score: float
    steps: int  # updates done
    stopped: Literal["converged", "step limit"]
    history: list[tuple[int, float]]  # (step, score) of every evaluation
    last: T  # where training ended, whatever it scores: the average, where there is one


@partial(jax.jit, static_argnames=("objective", "optimizer", "trainable"), donate_argnames=("trained", "state"))
def update(
    objective: Objective,
    optimizer: Optimizer,
    trainable: Trainable,
    network: Any,
    trained: Any,
    frozen: Any,
    state: Any,
    batches: Batch,
    learning_rate: jax.Array,
    key: jax.Array,
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """One update from the micro-batches stacked along the first axis; `network` has no parameters of its own."""

    def summed(trained: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Loss]:
        dual_variables, parameters = parted(trainable.join(trained, frozen))
        loss = objective(network.with_parameters(parameters).module, batch, key, dual_variables)
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
    updates, state = optimizer().update(gradients, state, trained)
    trained = jax.tree.map(lambda p, u: p - learning_rate * u, trained, updates)
    metrics = {"loss": loss.sum / weight, **{name: value / weight for name, value in loss.metrics.items()}}
    return trained, state, {**metrics, "gradient_norm": optax.tree.norm(gradients)}


@partial(jax.jit, donate_argnames=("average",))
def moved(average: Any, trained: Any, decay: jax.Array) -> Any:
    """A moving average after one more update."""
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, trained)


def parted(parameters: Any) -> tuple[Any, Any]:
    """The dual variables, and the parameters of the network."""
    return parameters.get(DUAL_VARIABLES, {}), {
        name: part for name, part in parameters.items() if name != DUAL_VARIABLES
    }


def in_parts(batch: Batch, parts: int) -> Batch:
    """The rows of a batch [R, ...] as [parts, R / parts, ...], dealt out like cards."""
    rows = batch.target.shape[0]
    if rows % parts:
        raise UserError(f"machine.micro_batches {parts}: a batch has {rows} rows, which that does not divide")
    return jax.tree.map(lambda leaf: leaf.reshape(rows // parts, parts, *leaf.shape[1:]).swapaxes(0, 1), batch)


@dataclass
class Learner(Generic[T]):
    """What is being trained, and by what."""

    start: T  # as it was given; its parameters are left alone
    objective: Objective
    optimizer: Optimizer
    trainable: Trainable
    rate: Callable[[int], Any]  # not fetched from the device, which may still be at work
    network: Any  # without parameters
    micro_batches: int
    trained: Any  # what updates change
    frozen: Any  # what they do not, shared with whoever gave it
    state: Any  # the optimizer's
    ema: float = 0.0
    average: Any = None  # of `trained`, moving with `ema`; None where that is 0
    steps: int = 0  # updates done

    @classmethod
    def begin(
        cls,
        start: T,
        objective: Objective,
        optimizer: Optimizer,
        schedule: LearningRate,
        trainable: Trainable,
        *,
        seed: int,
        machine: MachineSettings,
        rate_factor: float = 1.0,
        ema: float = 0.0,
        dual_variables: Mapping[str, float] | None = None,
    ) -> Learner[T]:
        """Before the first update, on every device; `dual_variables` where they start."""
        mesh = data_mesh()
        duals = {name: jnp.float32(value) for name, value in (dual_variables or {}).items()}
        beside = {DUAL_VARIABLES: duals} if duals else {}
        trained, frozen = trainable.split({**start.network.parameters, **beside}, seed)
        trained, frozen = replicate(jax.tree.map(jnp.copy, trained), mesh), replicate(frozen, mesh)
        state = replicate(optimizer().init(trained), mesh)
        return cls(
            start,
            objective,
            optimizer,
            trainable,
            lambda step: schedule(step) * rate_factor,
            (start.network.rematerialised() if machine.remat else start.network).with_parameters(None),
            machine.micro_batches,
            trained,
            frozen,
            state,
            ema,
            jax.tree.map(jnp.copy, trained) if ema else None,
        )

    @property
    def now(self) -> T:
        """What it is after the updates so far: their moving average, where there is one."""
        return self.having(self.kept)

    @property
    def raw(self) -> T:
        """What the next update changes, whether there is an average or not."""
        return self.having(self.trained)

    @property
    def kept(self) -> Any:
        """The numbers of `now`: a checkpoint's parameters."""
        return self.average if self.ema else self.trained

    @property
    def memory(self) -> Any:
        """What updates need beside those: a checkpoint's optimizer."""
        return {"optimizer": self.state, "trained": self.trained} if self.ema else self.state

    def go_on(self, kept: Any, memory: Any, steps: int) -> None:
        """Go on from what a checkpoint kept."""
        if self.ema:
            self.average, self.trained, self.state = kept, memory["trained"], memory["optimizer"]
        else:
            self.trained, self.state = kept, memory
        self.steps = steps

    def having(self, trained: Any) -> T:
        """What it is with other numbers in place of those that are trained."""
        _, parameters = parted(self.trainable.join(trained, self.frozen))
        return self.start.with_network(self.start.network.with_parameters(parameters))

    def update(self, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """One update from a batch, and what there is to report of it; the device may still be at work."""
        self.steps += 1
        rate = jnp.float32(self.rate(self.steps))
        self.trained, self.state, metrics = update(
            self.objective,
            self.optimizer,
            self.trainable,
            self.network,
            self.trained,
            self.frozen,
            self.state,
            divide(in_parts(batch, self.micro_batches), data_mesh(), axis=1),
            rate,
            key,
        )
        if self.ema:
            self.average = moved(self.average, self.trained, jnp.float32(self.ema))
        return {**metrics, "learning_rate": rate}


def state_of(learners: Mapping[str, Learner[Any]], progress: dict[str, Any]) -> State:
    """What a checkpoint keeps of learners that are trained together."""
    return State(
        {who: learner.kept for who, learner in learners.items()},
        {who: learner.memory for who, learner in learners.items()},
        progress | {who: learner.steps for who, learner in learners.items()},
    )


def resume(learners: Mapping[str, Learner[Any]], saved: State) -> None:
    """Go on from what a checkpoint kept."""
    for who, learner in learners.items():
        learner.go_on(saved.parameters[who], saved.optimizer[who], saved.progress[who])


def shuffled(
    examples: Examples, batch: BatchSettings, *, pad_id: int, seed: int, progress_of: int = 0
) -> tuple[Batches, Plan]:
    """Endless batches of this process's share of the rows, and the plan that they follow.

    With `progress_of` updates they have the column `progress`: how much of the training is done.
    """
    process = jax.process_index(), jax.process_count()
    batches, plan = training_batches(examples, batch, pad_id=pad_id, seed=seed, process=process)
    return WithProgress(batches, progress_of) if progress_of else batches, plan


class WithProgress:
    """Batches whose column `progress` says how much of the training is done, 0 at its start and 1 at its end."""

    def __init__(self, batches: Batches, total: int) -> None:
        self.batches, self.total, self.drawn = batches, total, 0

    def __next__(self) -> Batch:
        batch = next(self.batches)
        done = np.full(batch.sequence_ids.shape, self.drawn / max(1, self.total - 1), np.float32)
        self.drawn += 1
        return replace(batch, columns={**batch.columns, "progress": done})

    def get_state(self) -> dict[str, Any]:
        return {"drawn": self.drawn, "batches": self.batches.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]
        self.batches.set_state(state["batches"])


def train(
    start: T,
    objective: Objective,
    batches: Batches,
    settings: TrainSettings,
    *,
    evaluate: Callable[[T], Mapping[str, float]],
    folder: Path,
    seed: int,
    description: str,
    machine: MachineSettings | None = None,
    dual_variables: Mapping[str, float] | None = None,
) -> Trained[T]:
    """Update until `max_steps`, or until `evaluate(...)["score"]` (higher is better) stops rising.

    Only what `settings.trainable` names has gradients, optimizer state and checkpoints. What training starts from is
    candidate 0; its parameters stay as they are. `dual_variables` are what the loss starts its own with. Progress is
    checkpointed in `folder`/checkpoints at every evaluation, and a call on the same folder goes on from there with the
    same results.
    """
    root = jax.random.key(seed)
    learner = Learner.begin(
        start,
        objective,
        settings.optimizer,
        settings.schedule,
        settings.trainable,
        seed=seed,
        machine=machine or MachineSettings(),
        rate_factor=settings.rate_factor,
        ema=settings.ema,
        dual_variables=dual_variables,
    )
    history: list[tuple[int, float]] = []
    checkpoints = Checkpoints(folder / "checkpoints", keep_latest=settings.average)
    kept = checkpoints.steps()
    if kept:
        saved = checkpoints.restore(kept[-1], State(learner.kept, learner.memory, {}))
        learner.go_on(saved.parameters, saved.optimizer, kept[-1])
        batches.set_state(saved.progress["data"])
        history = [(int(at), float(score)) for at, score in saved.progress["history"]]

    with (
        closing(checkpoints),
        Journal(folder, kept[-1] if kept else -1) as journal,
        progress(description, settings.max_steps) as bar,
    ):

        def look() -> None:
            values, step = evaluate(learner.now), learner.steps
            score = float(values["score"])
            if not math.isfinite(score):
                raise UserError(f"{description}: the evaluation at step {step} gave the score {score}")
            history.append((step, score))
            journal.record(step, {f"dev/{name}": value for name, value in values.items()})
            position = {"history": history, "data": batches.get_state()}
            checkpoints.save(step, State(learner.kept, learner.memory, position), score)
            say(f"{description}: step {step}, " + ", ".join(f"{n} {v:.4g}" for n, v in values.items()))

        def settle(step: int, batch: Batch, metrics: dict[str, jax.Array]) -> None:
            loss = float(metrics["loss"])
            if not math.isfinite(loss):
                raise UserError(
                    f"{description}: the loss of step {step} is {loss} in the batch with rows {_rows(batch)}; "
                    f"the last checkpoint, of step {history[-1][0]}, is kept"
                )
            bar.update(step, f"loss {loss:.3f}, dev {history[-1][1]:.4g}")
            if step % 10 == 0:
                journal.record(step, metrics)

        waiting: tuple[int, Batch, dict[str, jax.Array]] | None = None
        if not history:
            look()
        while learner.steps < settings.max_steps and not _stalled(history, settings.patience):
            batch = next(batches)
            metrics = learner.update(batch, jax.random.fold_in(root, learner.steps + 1))
            if waiting:  # the device has the next update already
                settle(*waiting)
            waiting = learner.steps, batch, metrics
            if learner.steps % settings.evaluate_every == 0 or learner.steps == settings.max_steps:
                settle(*waiting)
                waiting = None
                look()

        best_step, score = max(history, key=lambda entry: (entry[1], entry[0]))
        best, ended = checkpoints.parameters(best_step, learner.kept), learner.kept
        if settings.average > 1 and len(checkpoints.steps()) > 1:
            last = checkpoints.steps()[-settings.average :]
            ended = mean_of([checkpoints.parameters(at, learner.kept) for at in last])
            averaged = float(evaluate(learner.having(ended))["score"])
            say(f"{description}: average of steps {last} scores {averaged:.4g}, the best step {score:.4g}")
            if averaged > score:
                best, score, best_step = ended, averaged, learner.steps
    stopped: Literal["converged", "step limit"] = "converged" if _stalled(history, settings.patience) else "step limit"
    ends = learner.having(best), learner.having(ended)
    return Trained(ends[0], best_step, score, learner.steps, stopped, history, ends[1])


def _stalled(history: list[tuple[int, float]], patience: int) -> bool:
    """Whether the last `patience` evaluations brought no new best."""
    scores = [score for _, score in history]
    return len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])


def mean_of(trees: list[Any]) -> Any:
    """The mean of parameters."""
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


def _rows(batch: Batch) -> list[int]:
    """Rows of the dataset in a batch, for messages."""
    return sorted({int(row) for row in np.ravel(batch.sequence_ids) if row >= 0})
