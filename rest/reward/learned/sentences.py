"""Embeddings of sentences by a published encoder, and which training pairs are no translations by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rest.data.segments import Segments
from rest.errors import UserError
from rest.learning.apply import per_row
from rest.model.families.xlmr import XLMR
from rest.reward.learned.encoder import Encoder, HuggingFaceEncoder, MeanState, Pooling

REMEMBERED = 100_000  # texts whose embeddings are kept


@dataclass(frozen=True)
class SentenceEmbeddings:
    """Texts as the pooled states of an encoder's last layer; what `EmbeddingCosine` may compare."""

    folder: Path | str
    """Where the encoder's files are, or its name on the hub: intfloat/multilingual-e5-small."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    prefix: str = ""
    """Before each text, as the encoder was trained: "query: " for E5, nothing for LaBSE."""
    pooling: Pooling = MeanState()
    """MeanState() for E5 and MiniLM, PooledState() for LaBSE."""
    batch_tokens: int = 8192
    """Positions that are encoded at once, padding included."""
    max_tokens: int = 256
    """Where a text is cut."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and matrix products."""

    @cached_property
    def encoder(self) -> Encoder:
        """Read on first use."""
        return HuggingFaceEncoder(self.folder, self.revision, pooling=self.pooling, dtype=self.dtype).read()

    @property
    def identity(self) -> str:
        """Hash of the parameters, the tokenizer and the settings that change embeddings."""
        known = self.encoder.tokenizer.identity, self.encoder.settings, self.prefix, self.pooling, self.max_tokens
        return self.encoder.network.identity(repr(known))

    @cached_property
    def _known(self) -> dict[str, np.ndarray]:
        return {}

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "n D"]:
        """Float32, of any length; a text is encoded once, also if it comes again later."""
        known = self._known
        new = [text for text in dict.fromkeys(texts) if text not in known]
        found = dict(zip(new, self._encode(new), strict=True))
        rows = [found[text] if text in found else known[text] for text in texts]
        known |= found
        for text in list(known)[: max(0, len(known) - REMEMBERED)]:
            del known[text]
        return np.stack(rows) if rows else np.zeros((0, self.encoder.settings.width), np.float32)

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, D]"""
        encoder = self.encoder
        tokenizer, room = encoder.tokenizer, self.max_tokens - 2
        ids = tokenizer.encode([self.prefix + text for text in texts])
        rows = [encoder.settings.single(row[:room], tokenizer.eos_id) for row in ids]
        return per_row(_Pooled(self.pooling), encoder.network, rows, self.batch_tokens, pad_id=tokenizer.pad_id)


@dataclass(frozen=True)
class _Pooled:
    pooling: Pooling

    def __call__(self, body: XLMR, ids: Int[Array, "B S"], mask: Bool[Array, "B S"]) -> Float[Array, "B D"]:
        positions = jnp.arange(ids.shape[1])[None]
        states = body(ids, mask)[-1]
        return self.pooling(body, states, Segments(mask.astype(jnp.int32)), positions, 1)[:, 0]


@dataclass(frozen=True)
class NonTranslations:
    """Which pairs are probably no translations of each other, by embeddings that are alike across languages.

    Cosines differ between encoders and kinds of text; their ratio to those of the nearest other sentences does less:
    the margin of Artetxe & Schwenk 2019 ("Margin-based Parallel Corpus Mining with Multilingual Sentence Embeddings",
    equation 2, ratio). Where another sentence lies nearer than a pair's own other side, its margin is below 1.
    """

    embed: Any
    """SentenceEmbeddings, or any function of n texts that gives float32 [n, D]."""
    least_margin: float | None = 0.98
    """A pair with less is none; None: not looked at."""
    least_cosine: float | None = None
    """The same for the plain cosine."""
    neighbours: int = 4
    """The nearest so many of the other side are what a pair's cosine is compared with."""
    among: int = 10_000
    """They are sought among so many evenly spaced sentences of the other side, and the pair's own."""

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.among < self.neighbours:
            raise UserError(f"neighbours {self.neighbours} must be at least 1 and at most among {self.among}")

    def __call__(self, sources: Sequence[str], references: Sequence[str]) -> Bool[np.ndarray, " n"]:
        """True: to be left out."""
        cosines, margins = self.scores(sources, references)
        out = np.zeros(len(sources), bool)
        if self.least_cosine is not None:
            out |= cosines < self.least_cosine
        if self.least_margin is not None:
            out |= margins < self.least_margin
        return out

    def scores(
        self, sources: Sequence[str], references: Sequence[str]
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Cosine and margin of each pair."""
        if len(sources) != len(references):
            raise UserError(f"{len(sources)} sources and {len(references)} references are no pairs")
        if not sources:
            return np.zeros(0, np.float32), np.zeros(0, np.float32)
        x, y = (_units(np.asarray(self.embed(list(texts)), np.float32)) for texts in (sources, references))
        cosines = (x * y).sum(1)
        beside = (self._nearest(x, y, cosines) + self._nearest(y, x, cosines)) / 2
        return cosines, cosines / np.maximum(beside, 1e-6)

    def _nearest(self, own: np.ndarray, others: np.ndarray, cosines: np.ndarray) -> np.ndarray:
        """float32 [n]: the mean cosine of each row of `own` with its nearest `others`, its partner among them."""
        chosen = np.unique(np.linspace(0, len(others) - 1, min(len(others), self.among)).astype(np.int64))
        means = np.zeros(len(own), np.float32)
        for start in range(0, len(own), 1024):
            rows = np.arange(start, min(start + 1024, len(own)))
            found = own[rows] @ others[chosen].T
            found = np.where(chosen[None] == rows[:, None], -np.inf, found)  # the partner comes once, in any case
            found = np.concatenate([found, cosines[rows, None]], axis=1)
            k = min(self.neighbours, len(others))
            means[rows] = np.partition(found, -k, axis=1)[:, -k:].mean(1)
        return means


def _units(vectors: np.ndarray) -> np.ndarray:
    """Of length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
