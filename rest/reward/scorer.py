"""A network that reads a row of ids and gives one number: what published rewards have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rest.data.batches import padded_batches
from rest.data.tokenizer import Tokenizer
from rest.errors import UserError
from rest.learning.checkpoint import identity_of
from rest.learning.mesh import data_mesh, divide


@partial(jax.jit, static_argnames=("graph",))
def _scores(graph: Any, parameters: Any, ids: Int[Array, "B S"], mask: Bool[Array, "B S"]) -> Float[Array, " B"]:
    return nnx.merge(graph, parameters)(ids, mask)


@dataclass(frozen=True)
class Scorer:
    """A network with its tokenizer. `graph` and `parameters` make a module: (ids, mask) -> float32 [B]."""

    settings: Any
    """What scores depend on besides parameters and tokenizer, as dataclasses that print all they hold."""
    graph: Any
    parameters: Any
    tokenizer: Tokenizer

    @cached_property
    def identity(self) -> str:
        """Hash of the settings, the parameters and the tokenizer."""
        return identity_of(self.parameters, repr((self.settings, self.tokenizer.identity)))

    def __call__(self, rows: Sequence[Sequence[int]], batch_tokens: int) -> np.ndarray:
        """Scores of rows of ids, float32 [n], computed `batch_tokens` positions at once."""
        out, mesh = np.zeros(len(rows), np.float32), data_mesh()
        batches = padded_batches(rows, batch_tokens, pad_id=self.tokenizer.pad_id, devices=len(mesh.local_devices))
        for part, ids, mask in batches:
            scores = _scores(self.graph, self.parameters, *divide((ids, mask), mesh))
            out[part] = np.asarray(scores)[: len(part)]
        return out


def refuse_unequal(sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None) -> None:
    """UserError unless there are as many of each."""
    if len(sources) != len(hypotheses) or (references is not None and len(references) != len(hypotheses)):
        count = "no" if references is None else len(references)
        raise UserError(
            "sources, hypotheses and references must be as many, but there are "
            f"{len(sources)}, {len(hypotheses)} and {count}."
        )
