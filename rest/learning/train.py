"""The one update loop: every network of the system, policy or reward, is trained here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from rest import processes
from rest.data.batches import Batch, BatchSettings, Examples, Plan, Share, training_batches
from rest.errors import UserError, refuse_below
from rest.journal import Journal, progress, say
from rest.learning.checkpoint import Checkpoints, State, best_of
from rest.learning.learner import Learner, Objective, T, check_decay
from rest.learning.lora import Trainable
from rest.learning.mesh import (
    MachineSettings,
    held_rows,
    training_mesh,
)
from rest.learning.optimizers import Adam, Schedule
from rest.learning.pace import Pace, Trace


@runtime_checkable
class Batches(Protocol):
    """An iterator whose position can be saved. A batch that is no share of one has all of its rows."""

    def __next__(self) -> Batch | Share: ...
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
    """Stop after so many evaluations in a row without a new best. With a schedule that falls to zero the last
    checkpoints are often the best: give it no fewer than there are evaluations."""
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
        refuse_below("", self, {"max_steps": 0, "evaluate_every": 1, "patience": 1, "average": 1, "rate_factor": 0})
        check_decay("ema", self.ema)

    @property
    def highest_rate(self) -> float:
        """The highest learning rate of all updates; of a schedule that is not ours, of 1,000 of them at most."""
        every = 1 if isinstance(self.schedule, Schedule) else -(-self.max_steps // 1000) or 1
        rates = (float(self.schedule(step)) for step in range(1, self.max_steps + 1, every))
        return self.rate_factor * max(rates, default=0.0)


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


def shuffled(
    examples: Examples,
    batch: BatchSettings,
    *,
    pad_id: int,
    seed: int,
    progress_of: int = 0,
    machine: MachineSettings | None = None,
) -> tuple[Batches, Plan]:
    """Endless batches, of which this process's devices have the rows that they need, and the plan that they follow.

    With `progress_of` updates they have the column `progress`: how much of the training is done.
    """
    machine = machine or MachineSettings()
    held = held_rows(training_mesh(machine), batch.rows, machine.micro_batches)
    batches, plan = training_batches(examples, batch, pad_id=pad_id, seed=seed, held=held)
    whole: Any = WithProgress(batches, progress_of) if progress_of else batches
    return whole if len(held) == batch.rows else _Shares(whole, held, batch.rows), plan


@dataclass
class _Shares:
    """Batches of some rows, with the numbers of these rows."""

    batches: Batches
    rows: np.ndarray
    of: int

    def __next__(self) -> Share:
        batch = next(self.batches)
        assert isinstance(batch, Batch)
        return Share(batch, self.rows, self.of)

    def get_state(self) -> dict[str, Any]:
        return self.batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self.batches.set_state(state)


class WithProgress:
    """Batches whose column `progress` says how much of the training is done, 0 at its start and 1 at its end."""

    def __init__(self, batches: Batches, total: int) -> None:
        self.batches, self.total, self.drawn = batches, total, 0

    def __next__(self) -> Batch:
        batch = next(self.batches)
        assert isinstance(batch, Batch)
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
    root, machine = jax.random.key(seed), machine or MachineSettings()
    learner = Learner.begin(
        start,
        objective,
        settings.optimizer,
        settings.schedule,
        settings.trainable,
        seed=seed,
        machine=machine,
        rate_factor=settings.rate_factor,
        ema=settings.ema,
        dual_variables=dual_variables,
    )
    checkpoints = Checkpoints(folder / "checkpoints", keep_latest=settings.average)
    history = _go_on(learner, batches, checkpoints)
    pace = Pace.of(machine, start.network.module if settings.trainable == Trainable() else None)

    with (
        closing(checkpoints),
        Journal(folder, learner.steps if history else -1) as journal,
        progress(description, settings.max_steps) as bar,
        closing(Trace(folder / "profile", machine.profile)) as trace,
    ):

        def evaluated(trainee: T) -> Mapping[str, float]:
            return processes.agreed(dict(evaluate(trainee)))

        def look() -> None:
            with pace.lost_to("evaluation"):
                values, step = evaluated(learner.now), learner.steps
            score = float(values["score"])
            if not math.isfinite(score):
                raise UserError(f"{description}: the evaluation at step {step} gave the score {score}")
            history.append((step, score))
            journal.record(step, {**{f"dev/{name}": value for name, value in values.items()}, **pace.numbers()})
            position = {"history": history, "data": batches.get_state()}
            with pace.lost_to("checkpoints"):
                checkpoints.save(step, State(learner.kept, learner.memory, position), score)
            say(f"{description}: step {step}, " + ", ".join(f"{n} {v:.4g}" for n, v in values.items()))

        def settle(step: int, batch: Batch | Share, metrics: dict[str, jax.Array]) -> None:
            loss = float(metrics["loss"])
            if not math.isfinite(loss):
                raise UserError(
                    f"{description}: the loss of step {step} is {loss} in the batch with rows {_rows(batch)}; "
                    f"the last checkpoint, of step {history[-1][0]}, is kept"
                )
            pace.update(batch)
            bar.update(step, f"loss {loss:.3f}, dev {history[-1][1]:.4g}")
            if step % 10 == 0:
                journal.record(step, {**metrics, **pace.numbers()})

        def at_work() -> bool:
            loss: Any = None if waiting is None else waiting[2]["loss"]
            return loss is not None and not loss.is_ready()

        waiting: tuple[int, Batch | Share, dict[str, jax.Array]] | None = None
        if not history:
            look()
        while learner.steps < settings.max_steps and not _stalled(history, settings.patience):
            trace.look(pace.updates)
            with pace.lost_to("data", unless=at_work):
                batch = next(batches)
            with pace.lost_to("compiling", once=True):
                metrics = learner.update(batch, jax.random.fold_in(root, learner.steps + 1))
            if waiting:  # the device has the next update already
                settle(*waiting)
            waiting = learner.steps, batch, metrics
            if learner.steps % settings.evaluate_every == 0 or learner.steps == settings.max_steps:
                settle(*waiting)
                waiting = None
                look()

        best, ended, best_step, score = _ends(learner, checkpoints, history, settings.average, evaluated, description)
    stopped: Literal["converged", "step limit"] = "converged" if _stalled(history, settings.patience) else "step limit"
    ends = learner.having(best), learner.having(ended)
    return Trained(ends[0], best_step, score, learner.steps, stopped, history, ends[1])


def _go_on(learner: Learner[Any], batches: Batches, checkpoints: Checkpoints) -> list[tuple[int, float]]:
    """Go on from the last checkpoint, if there is one; the evaluations so far."""
    kept = checkpoints.steps()
    if not kept:
        return []
    saved = checkpoints.restore(kept[-1], State(learner.kept, learner.memory, {}))
    learner.go_on(saved.parameters, saved.optimizer, kept[-1])
    batches.set_state(saved.progress["data"])
    return [(int(at), float(score)) for at, score in saved.progress["history"]]


def _ends(
    learner: Learner[T],
    checkpoints: Checkpoints,
    history: list[tuple[int, float]],
    average: int,
    evaluate: Callable[[T], Mapping[str, float]],
    description: str,
) -> tuple[Any, Any, int, float]:
    """The best parameters and the last, each maybe the mean of the last evaluations; step and score of the best."""
    best_step, score = best_of(history)
    best, last = checkpoints.parameters(best_step, learner.kept), checkpoints.steps()[-average:]
    if average == 1 or len(last) == 1:
        return best, learner.kept, best_step, score
    ended = mean_of([checkpoints.parameters(at, learner.kept) for at in last])
    averaged = float(evaluate(learner.having(ended))["score"])
    say(f"{description}: average of steps {last} scores {averaged:.4g}, the best step {score:.4g}")
    if averaged > score:
        best, score, best_step = ended, averaged, learner.steps
    return best, ended, best_step, score


def _stalled(history: list[tuple[int, float]], patience: int) -> bool:
    """Whether the last `patience` evaluations brought no new best."""
    scores = [score for _, score in history]
    return len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])


def mean_of(trees: list[Any]) -> Any:
    """The mean of parameters, summed in float32 and rounded once to their own type."""

    def mean(*leaves: Any) -> Any:
        total: Any = sum(jnp.asarray(leaf, jnp.float32) for leaf in leaves)
        return (total / len(leaves)).astype(leaves[0].dtype)

    return jax.tree.map(mean, *trees)


def _rows(batch: Batch | Share) -> list[int]:
    """Rows of the dataset in a batch, as far as this process has them, for messages."""
    batch = batch.batch if isinstance(batch, Share) else batch
    return sorted({int(row) for row in np.ravel(batch.sequence_ids) if row >= 0})
