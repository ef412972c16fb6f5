"""Hypotheses that were drawn before: those of a scored dataset, to be scored by another reward."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rest.data.ragged import Ragged
from rest.data.store import ScoredDataset
from rest.data.tokenizer import Tokenizer
from rest.policy.sampler import Hypotheses

T = TypeVar("T")


def drawn_before(dataset: ScoredDataset, shard: int, tokenizer: Tokenizer) -> Hypotheses:
    """All hypotheses of one shard but its human pairs, as their policy drew them."""
    names = ["source_id", "origin", "tokens", "log_probs", "behaviour_log_probs", "finish"]
    table = dataset.shard(shard, names)
    table = table.filter(pc.not_equal(table["origin"], "reference"))
    n = len(table) // len(pc.unique(table["source_id"]))

    def by_source(rows: list[T]) -> list[list[T]]:
        return [rows[k : k + n] for k in range(0, len(rows), n)]

    finished = np.asarray(pc.equal(table["finish"], "eos"), np.bool_).reshape(-1, n)
    return Hypotheses(
        by_source([row for row in _rows(table["tokens"]) if row is not None]),
        by_source([row for row in _rows(table["log_probs"]) if row is not None]),
        by_source(_rows(table["behaviour_log_probs"])),
        finished,
        0,
        tokenizer,
    )


def _rows(column: pa.ChunkedArray) -> list[np.ndarray | None]:
    """A list column as one array a row; None where it is null."""
    there = column.is_valid().to_pylist()
    return [row if valid else None for row, valid in zip(Ragged.of_column(column), there, strict=True)]
