"""What turns gradients into updates, and the learning rate against steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import optax

from rest.errors import UserError

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

    def __call__(self) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity(),
            optax.scale_by_factored_rms(decay_rate=self.decay),
            optax.clip_by_block_rms(self.clip_rms),
        )


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
    """The step at which a linear decay reaches zero."""

    def __post_init__(self) -> None:
        if (self.decay == "linear") != (self.zero_at > self.warmup_steps):
            raise UserError(
                f"schedule: zero_at {self.zero_at} is for decay 'linear', and then above warmup_steps "
                f"{self.warmup_steps}; decay is {self.decay!r}"
            )

    def __call__(self, step: int) -> float:
        """The rate of update number `step`, from 1."""
        if step < self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        if self.decay == "inverse_sqrt":
            return self.learning_rate * math.sqrt(max(1, self.warmup_steps) / step)
        if self.decay == "linear":
            return self.learning_rate * max(0.0, (self.zero_at - step) / (self.zero_at - self.warmup_steps))
        return self.learning_rate
