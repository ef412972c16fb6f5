"""What turns gradients into updates, and the learning rate against steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, UInt32

from rest.errors import UserError, refuse_below, refuse_shares

Optimizer = Callable[[], optax.GradientTransformation]
"""Makes the direction that is multiplied with the learning rate and subtracted: `Adam()`, `Adafactor()`, or any
function that returns an optax transformation, such as `optax.scale_by_lion`."""

LearningRate = Callable[[int], Any]
"""The learning rate of update number 1, 2, ...: `Schedule()`, or any schedule of optax, such as
`optax.cosine_decay_schedule(1e-3, 1000)`."""


@dataclass(frozen=True)
class Adam:
    """AdamW (Loshchilov & Hutter 2019) after clipping by the global norm."""

    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-9
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    """Gradients longer than this are scaled down to it; 0 leaves them."""

    def __post_init__(self) -> None:
        refuse_shares("optimizer.", self, "beta1", "beta2")
        refuse_below("optimizer.", self, {"epsilon": 0, "weight_decay": 0, "clip_norm": 0})

    def __call__(self) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity(),
            optax.scale_by_adam(self.beta1, self.beta2, self.epsilon),
            optax.add_decayed_weights(self.weight_decay) if self.weight_decay else optax.identity(),
        )


@dataclass(frozen=True)
class Adafactor:
    """Adafactor without its own learning rate (Shazeer & Stern 2018): the second moment in factors."""

    decay: float = 0.8
    """Exponent of the moment's decay (section 7.2)."""
    clip_rms: float = 1.0
    """An update of a parameter whose root mean square is above this is scaled down to it (section 6)."""
    clip_norm: float = 1.0
    """Gradients longer than this are scaled down to it; 0 leaves them."""

    def __post_init__(self) -> None:
        refuse_below("optimizer.", self, {"decay": 0, "clip_rms": 0, "clip_norm": 0})

    def __call__(self) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity(),
            optax.scale_by_factored_rms(decay_rate=self.decay),
            optax.clip_by_block_rms(self.clip_rms),
        )


def initial_state(optimizer: Optimizer, parameters: Any) -> Any:
    """Before the first update: moments are float32, whatever type the parameters have."""
    if all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(parameters)):
        return optimizer().init(parameters)
    # compiled, so that no float32 copy of the parameters is made of which only the shapes are read
    return jax.jit(lambda p: optimizer().init(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), p)))(parameters)


def updates_of(optimizer: Optimizer, gradients: Any, state: Any, parameters: Any) -> tuple[Any, Any]:
    """What the optimizer makes of gradients, and its next state: moments stay float32.

    Adafactor gives its moments the type of the parameters that it is shown; in bfloat16 they would stand still.
    """
    return optimizer().update(gradients, state, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), parameters))


def stepped(parameters: Any, updates: Any, learning_rate: jax.Array, key: jax.Array) -> Any:
    """Parameters after an update; those of bfloat16 are rounded up or down at random, so that the mean is exact.

    To the nearest, most updates would be lost: numbers of bfloat16 lie 1/256 to 1/128 of themselves apart (Zamirai et
    al. 2020, "Revisiting BFloat16 Training").
    """
    leaves, form = jax.tree.flatten(jax.tree.map(lambda p, u: p - learning_rate * u, parameters, updates))
    types = [leaf.dtype for leaf in jax.tree.leaves(parameters)]
    moved = [
        leaf if kind == leaf.dtype else rounded(leaf, jax.random.fold_in(key, n))
        for n, (leaf, kind) in enumerate(zip(leaves, types, strict=True))
    ]
    return jax.tree.unflatten(form, moved)


def rounded(x: Float[Array, "*D"], key: jax.Array) -> Float[Array, "*D"]:
    """bfloat16 of float32: the next one below or above, each as probable as it is near."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    below = noise(x.shape, key) >> 16  # what is cut off carries this often
    return jax.lax.bitcast_convert_type(((bits + below) >> 16).astype(jnp.uint16), jnp.bfloat16)


def noise(shape: tuple[int, ...], key: jax.Array) -> UInt32[Array, "*D"]:
    """Random bits, each number a hash of where it stands and of the key, whatever devices the numbers lie on.

    `jax.random.bits` would hold sixteen bytes of each number at once; this becomes part of the sum that it is added to.
    The hash is lowbias32 with its later constants (Wellons 2018, "Prospecting for Hash Functions"), once a half of the
    key.
    """
    bits = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        bits = bits * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    for half in jax.random.key_data(key):
        bits = bits + half
        bits = (bits ^ (bits >> 16)) * jnp.uint32(0x21F0AAAD)
        bits = (bits ^ (bits >> 15)) * jnp.uint32(0x735A2D97)
        bits = bits ^ (bits >> 15)
    return bits


@dataclass(frozen=True)
class Stretch:
    """So many updates with a learning rate of their own."""

    steps: int
    schedule: Any  # a LearningRate
    """Of update number 1, 2, ... of the stretch."""
    rate_factor: float = 1.0
    """Times the schedule's rate."""


@dataclass(frozen=True)
class InTurn:
    """The learning rates of trainings that went on from each other, in one: stretch by stretch; the last goes on."""

    stretches: tuple[Stretch, ...]

    def __call__(self, step: int) -> Any:
        """The rate of update number `step`, from 1."""
        *before, last = self.stretches
        for stretch in before:
            if step <= stretch.steps:
                return stretch.schedule(step) * stretch.rate_factor
            step -= stretch.steps
        return last.schedule(step) * last.rate_factor


@dataclass(frozen=True)
class Schedule:
    """A linear rise from zero, then a constant rate, or one that falls with the square root of the steps or to zero."""

    learning_rate: float = 1e-3
    """At the end of warm-up."""
    warmup_steps: int = 0
    """Steps of linear rise from zero."""
    decay: Literal["constant", "inverse_sqrt", "linear"] = "constant"
    """After warm-up."""
    zero_at: int = 0
    """The step at which a linear decay or a cooldown reaches zero."""
    cooldown_steps: int = 0
    """The last steps before `zero_at`, in which another rate falls linearly from what it was (Hägele et al. 2024)."""

    def __post_init__(self) -> None:
        refuse_below("schedule.", self, {"learning_rate": 0, "warmup_steps": 0, "zero_at": 0, "cooldown_steps": 0})
        if self.decay == "linear" and self.cooldown_steps:
            raise UserError(f"schedule: a linear decay needs no cooldown_steps, which are {self.cooldown_steps}")
        falls = self.decay == "linear" or self.cooldown_steps > 0
        if falls != (self.zero_at > self.warmup_steps + self.cooldown_steps):
            raise UserError(
                f"schedule: zero_at {self.zero_at} is for decay 'linear' or cooldown_steps, and then above "
                f"warmup_steps {self.warmup_steps} + {self.cooldown_steps}; decay is {self.decay!r}"
            )

    def __call__(self, step: int) -> float:
        """The rate of update number `step`, from 1."""
        if step < self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        if self.decay == "linear":
            return self.learning_rate * max(0.0, (self.zero_at - step) / (self.zero_at - self.warmup_steps))
        cooling = self.zero_at - self.cooldown_steps
        if self.cooldown_steps and step > cooling:
            return self(cooling) * max(0.0, (self.zero_at - step) / self.cooldown_steps)
        if self.decay == "inverse_sqrt":
            return self.learning_rate * math.sqrt(max(1, self.warmup_steps) / step)
        return self.learning_rate
