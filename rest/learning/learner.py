"""What is being trained and what one update does to it, for `train` and for PPO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from rest import processes
from rest.data.batches import Batch, Share
from rest.errors import UserError
from rest.learning.checkpoint import State
from rest.learning.lora import DUAL_VARIABLES, Trainable
from rest.learning.losses import Loss
from rest.learning.mesh import (
    MachineSettings,
    everywhere,
    global_batch,
    held_rows,
    own,
    place,
    row_groups,
    shardings,
    training_mesh,
)
from rest.learning.optimizers import LearningRate, Optimizer, initial_state, stepped, updates_of


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


def check_decay(name: str, decay: float) -> None:
    """UserError unless a moving average can have this decay."""
    if not 0 <= decay < 1:
        raise UserError(f"{name} must be at least 0 and below 1, not {decay}")


def updated(
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
    gradients, loss = gradient(0)
    if count > 1:  # else the gradient would be compiled twice
        gradients, loss = jax.lax.fori_loop(
            1, count, lambda i, total: jax.tree.map(jnp.add, total, gradient(i)), (gradients, loss)
        )
    weight = jnp.maximum(loss.weight, 1.0)
    gradients = jax.tree.map(lambda g: g / weight, gradients)
    updates, state = updates_of(optimizer, gradients, state, trained)
    trained = stepped(trained, updates, learning_rate, jax.random.fold_in(key, count))
    metrics = {"loss": loss.sum / weight, **{name: value / weight for name, value in loss.metrics.items()}}
    return trained, state, {**metrics, "gradient_norm": optax.tree.norm(gradients)}


STATIC, DONATED = ("objective", "optimizer", "trainable"), ("trained", "state")


@partial(jax.jit, donate_argnames=("average",))
def moved(average: Any, trained: Any, decay: jax.Array) -> Any:
    """A moving average after one more update."""
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, trained)


def parted(parameters: Any) -> tuple[Any, Any]:
    """The dual variables, and the parameters of the network."""
    return parameters.get(DUAL_VARIABLES, {}), {
        name: part for name, part in parameters.items() if name != DUAL_VARIABLES
    }


@dataclass
class Learner(Generic[T]):
    """What is being trained, and by what."""

    start: T  # as it was given; its parameters are left alone
    objective: Objective
    optimizer: Optimizer
    trainable: Trainable
    rate: Callable[[int], Any]  # not fetched from the device, which may still be at work
    network: Any  # without parameters
    machine: MachineSettings
    update_jitted: Any  # `updated`, whose results stay where they were
    trained: Any  # what updates change
    frozen: Any  # what they do not, shared with whoever gave it
    state: Any  # the optimizer's
    ema: float = 0.0
    average: Any = None  # of `trained`, moving with `ema`; None where that is 0
    steps: int = 0  # updates done
    compiled: bool = False

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
        mesh = training_mesh(machine)
        duals = {name: jnp.float32(value) for name, value in (dual_variables or {}).items()}
        beside = {DUAL_VARIABLES: duals} if duals else {}
        trained, frozen = trainable.split({**start.network.parameters, **beside}, seed)
        if ema and any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(trained)):
            raise UserError(f"ema {ema}: an average that moves so little needs parameters of float32, not of bfloat16")
        trained, frozen = place(jax.tree.map(jnp.copy, trained), mesh), place(frozen, mesh)
        jitted, state = _on(mesh, optimizer, trained)
        return cls(
            start,
            objective,
            optimizer,
            trainable,
            lambda step: schedule(step) * rate_factor,
            start.network.on_devices(remat=machine.remat, row_groups=row_groups(mesh)).with_parameters(None),
            machine,
            jitted,
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
        """What it is with other numbers in place of those that are trained, on this process's own devices."""
        _, parameters = parted(self.trainable.join(trained, self.frozen))
        parameters = own(parameters, self.machine)
        return self.start.with_network(self.start.network.with_parameters(parameters))

    def update(self, batch: Batch | Share, key: jax.Array) -> dict[str, jax.Array]:
        """One update from a batch, and what there is to report of it; the device may still be at work."""
        self.steps += 1
        rate = jnp.float32(self.rate(self.steps))
        share, mesh = Share.whole(batch) if isinstance(batch, Batch) else batch, training_mesh(self.machine)
        rows = global_batch(share, mesh, self.machine.micro_batches)
        how = self.objective, self.optimizer, self.trainable, self.network
        given = *how, self.trained, self.frozen, self.state, rows, rate, key
        if processes.several() and not self.compiled:  # together: collectives wait half a minute for others at most
            self.update_jitted.lower(*given).compile()
            processes.wait_for_all()
            self.compiled = True
        self.trained, self.state, metrics = self.update_jitted(*given)
        processes.done["trained"] += len(held_rows(mesh, share.of, self.machine.micro_batches))
        if self.ema:
            self.average = moved(self.average, self.trained, jnp.float32(self.ema))
        return {**metrics, "learning_rate": rate}


def _on(mesh: Any, optimizer: Optimizer, trained: Any) -> tuple[Any, Any]:
    """`updated`, compiled, and the optimizer's first state, both on a mesh."""
    there = shardings(jax.eval_shape(partial(initial_state, optimizer), trained), mesh)
    # Else XLA moves some from update to update, and even on one device an update that follows another is compiled again
    pinned = shardings(trained, mesh), there, everywhere(mesh)
    jitted = jax.jit(updated, static_argnames=STATIC, donate_argnames=DONATED, out_shardings=pinned)
    return jitted, jax.jit(initial_state, static_argnums=0, out_shardings=there)(optimizer, trained)


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
