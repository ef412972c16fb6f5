"""A network that reads a row of ids and gives one number: what published rewards have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rest.data.tokenizer import Tokenizer
from rest.errors import UserError
from rest.learning.apply import per_row
from rest.model.network import Network


def _scores(network: Any, ids: Int[Array, "B S"], mask: Bool[Array, "B S"]) -> Float[Array, " B"]:
    return network(ids, mask)


@dataclass(frozen=True)
class Scorer:
    """A network with its tokenizer; its module maps (ids, mask) to float32 [B]."""

    network: Network
    """Its settings are all that scores depend on besides parameters and tokenizer; they print all they hold."""
    tokenizer: Tokenizer

    @cached_property
    def identity(self) -> str:
        """Hash of the settings, the parameters and the tokenizer."""
        return self.network.identity(repr((self.network.settings, self.tokenizer.identity)))

    def __call__(self, rows: Sequence[Sequence[int]], batch_tokens: int) -> np.ndarray:
        """Scores of rows of ids, float32 [n], computed `batch_tokens` positions at once."""
        return per_row(_scores, self.network, rows, batch_tokens, pad_id=self.tokenizer.pad_id)


def refuse_unequal(sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None) -> None:
    """UserError unless there are as many of each."""
    if len(sources) != len(hypotheses) or (references is not None and len(references) != len(hypotheses)):
        count = "no" if references is None else len(references)
        raise UserError(
            "sources, hypotheses and references must be as many, but there are "
            f"{len(sources)}, {len(hypotheses)} and {count}."
        )
