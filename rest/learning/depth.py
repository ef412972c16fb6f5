"""Learning rates by depth, for a pretrained network under heads that are new: COMET's `layerwise_decay`,
`encoder_learning_rate` and `nr_frozen_epochs`; discriminative fine-tuning of Howard & Ruder 2018, section 3.2."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rest.errors import UserError
from rest.learning.optimizers import Adam

STACKS = ("layers", "encoder", "decoder")  # what the layers of a body are numbered in


@dataclass(frozen=True)
class ByDepth:
    """An optimizer whose learning rate falls from the heads to the embeddings; heads have the schedule's own."""

    optimizer: Any = field(default_factory=Adam)  # an Optimizer
    """Of all parameters."""
    body: float = 0.1
    """Of the top layer of the body, times the schedule's rate; also of its parts that are no layer, but for embeddings
    and positions."""
    decay: float = 0.95
    """From a layer to the one below it, times; the embeddings are below the lowest."""
    frozen_steps: int = 0
    """So many first updates leave the body as it is."""

    def __post_init__(self) -> None:
        if self.body < 0 or not 0 < self.decay <= 1 or self.frozen_steps < 0:
            raise UserError(
                f"optimizer: body {self.body} and frozen_steps {self.frozen_steps} must not be below 0, and decay "
                f"{self.decay} must be above 0 and at most 1"
            )

    def __call__(self) -> optax.GradientTransformation:
        # gradients of a frozen body are 0 too, so that they are not in the norm that clips those of the heads
        return optax.chain(self._scaled(frozen_only=True), self.optimizer(), self._scaled(frozen_only=False))

    def _scaled(self, *, frozen_only: bool) -> optax.GradientTransformation:
        def scale(updates: Any, state: jax.Array, parameters: Any = None) -> tuple[Any, jax.Array]:
            thawed = (state >= self.frozen_steps).astype(jnp.float32)

            def of(path: tuple[Any, ...], factor: float, update: jax.Array) -> jax.Array:
                if path[0].key != "body":
                    return update
                return update * (thawed if frozen_only else thawed * factor).astype(update.dtype)

            return jax.tree_util.tree_map_with_path(of, self.factors(updates), updates), state + 1

        return optax.GradientTransformation(lambda parameters: jnp.zeros((), jnp.int32), scale)

    def factors(self, parameters: Any) -> Any:
        """The factor of each parameter's rate; 1 of all that is not in the part `body`."""
        layers = 1 + max((layer for _, layer in _layers(parameters)), default=-1)

        def factor(path: tuple[Any, ...], _: Any) -> float:
            names = [part.key for part in path]
            if names[0] != "body":
                return 1.0
            layer = layer_of(names)
            if layer is None:
                lowest = str(names[1]).startswith(("embedding", "positions", "segments"))
                layer = -1 if lowest else layers - 1
            return self.body * self.decay ** (layers - 1 - layer)

        return jax.tree_util.tree_map_with_path(factor, parameters)


def layer_of(names: list[Any]) -> int | None:
    """The number of the layer that a parameter is in, from the bottom; None where it is in none."""
    found = (number for stack, number in pairwise(names) if stack in STACKS and str(number).isdigit())
    return next((int(number) for number in found), None)


def _layers(parameters: Any) -> list[tuple[Any, int]]:
    """The paths that are in a layer, with its number."""
    paths = (path for path, _ in jax.tree_util.tree_flatten_with_path(parameters)[0])
    numbered = ((path, layer_of([part.key for part in path])) for path in paths)
    return [(path, layer) for path, layer in numbered if layer is not None]
