"""Cosines of what an encoder makes of two texts: of two hypotheses, of one and a centroid, of one and its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rest.errors import UserError
from rest.identity import describe
from rest.reward.reward import identify, name_of
from rest.reward.utility import Utility, equal


@dataclass(frozen=True)
class Centroids:
    """k-means over the embeddings of pseudo-references, begun by k-means++ (Arthur and Vassilvitskii 2007)."""

    k: int = 8
    """Clusters of each source."""
    rounds: int = 10
    """Reassignments, at most."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.k < 1 or self.rounds < 1:
            raise UserError(f"k {self.k} and rounds {self.rounds} must be at least 1")

    def assign(self, vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """int64 [n]: the cluster of each of `vectors` [n, d], from 0; those with weight 0 have no say in them."""
        centers = self._first(vectors, weights)
        assigned = np.full(len(vectors), -1)
        for _ in range(self.rounds):
            nearest = _squares(vectors, centers).argmin(1)
            if (nearest == assigned).all():
                break
            assigned = nearest
            for cluster in np.unique(assigned[weights > 0]):
                rows = assigned == cluster
                centers[cluster] = np.average(vectors[rows], axis=0, weights=weights[rows])
        return assigned

    def _first(self, vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """float64 [at most k, d]: each drawn in proportion to its square distance from those before."""
        rng = np.random.default_rng(self.seed)
        chosen = [rng.choice(len(vectors), p=weights / weights.sum())]
        while len(chosen) < self.k:
            far = weights * _squares(vectors, vectors[chosen]).min(1)
            if far.sum() <= 1e-9:  # nothing is left that is not there already
                break
            chosen.append(rng.choice(len(vectors), p=far / far.sum()))
        return vectors[chosen].copy()


def _squares(vectors: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """float64 [n, centers]: square distances, not below 0."""
    cross = vectors @ centers.T
    return np.maximum((vectors**2).sum(1)[:, None] + (centers**2).sum(1) - 2 * cross, 0)


@dataclass(frozen=True)
class EmbeddingCosine(Utility):
    """The cosine of the embeddings of two texts."""

    embed: Any
    """Any function of n texts that gives float32 [n, d]; each text by itself."""
    centroids: Centroids | None = None
    """Against the centroids of the pseudo-references, which all count the same, instead of each (Deguchi et al. 2024,
    "Centroid-Based Efficient Minimum Bayes Risk Decoding")."""

    @property
    def scale(self) -> tuple[float, float]:
        return 0.0, 1.0

    @property
    def identity(self) -> Any:
        return {
            "cosine of": identify(self.embed),
            "centroids": None if self.centroids is None else vars(self.centroids),
        }

    def prepared(self, texts: Sequence[str]) -> Utility:
        different = list(dict.fromkeys(texts))
        return replace(self, embed=_Known({text: k for k, text in enumerate(different)}, self._vectors(different)))

    def pairs(self, source: str, candidates: Sequence[str], references: Sequence[str]) -> np.ndarray:
        return self._units(candidates) @ self._units(references).T

    def __call__(
        self,
        source: str,
        candidates: Sequence[str],
        references: Sequence[str],
        weights: np.ndarray,
        left_out: np.ndarray | None = None,
    ) -> np.ndarray:
        if self.centroids is None:
            return super().__call__(source, candidates, references, weights, left_out)
        own, theirs = self._units(candidates), self._units(references)
        cluster = self.centroids.assign(theirs, weights)
        member = (np.arange(cluster.max() + 1)[:, None] == cluster) * weights  # [clusters, references]
        cosine, there = own @ _unit(member @ theirs).T, np.tile(member.sum(1) > 0, (len(own), 1))
        if left_out is not None:  # the centroid of a candidate's own cluster without it
            rows, at = np.arange(len(own)), equal(candidates, references)
            home = cluster[at]
            without = (member @ theirs)[home] - left_out[:, None] * theirs[at]
            cosine[rows, home] = (own * _unit(without)).sum(1)
            there[rows, home] = member.sum(1)[home] - left_out > 1e-9
        return (cosine * there).sum(1) / there.sum(1)

    def _units(self, texts: Sequence[str]) -> np.ndarray:
        """float64 [texts, d], of length 1."""
        return _unit(self._vectors(texts))

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        """float64 [texts, d]"""
        return _vectors(self.embed, texts)


@dataclass(frozen=True)
class SourceCosine:
    """The cosine of a hypothesis and its source, by an encoder to which a text is near its translations.

    A reward that knows other text than the policy has seen, and needs no ratings (Schwenk et al. 2021, "CCMatrix",
    judges pairs like this). Use `Reward(SourceCosine(embed), (low, high))`: encoders differ in what is near; for
    multilingual-e5-small (0.7, 1.0) will do, LaBSE uses all of (0, 1).
    """

    embed: Any
    """SentenceEmbeddings, or any function of n texts that gives float32 [n, d]; each text by itself."""
    sources: Any = None  # Callable[[str], str]
    """What is done to sources first, such as Detokenizer("de") to tokenized ones."""
    hypotheses: Any = None
    """The same of hypotheses."""

    @property
    def identity(self) -> Any:
        return {"cosine with the source of": identify(self.embed), "of": describe((self.sources, self.hypotheses))}

    def __call__(self, sources: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        """Float32 [n]. Each text is read once."""
        x, y = _read(self.embed, sources, self.sources), _read(self.embed, hypotheses, self.hypotheses)
        return (x * y).sum(1).astype(np.float32)


def _read(embed: Any, texts: Sequence[str], change: Any) -> np.ndarray:
    """float64 [texts, d], of length 1: of texts that are changed first."""
    row = {text: k for k, text in enumerate(dict.fromkeys(texts))}
    units = _unit(_vectors(embed, [text if change is None else change(text) for text in row]))
    return units[[row[text] for text in texts]]


def _vectors(embed: Any, texts: Sequence[str]) -> np.ndarray:
    """float64 [texts, d]"""
    found = np.asarray(embed(list(texts)), np.float64)
    if found.ndim != 2 or len(found) != len(texts) or not np.isfinite(found).all():
        raise UserError(
            f"{name_of(embed)}: its embeddings of {len(texts)} texts, of shape {found.shape}, are not "
            f"[{len(texts)}, d] finite numbers"
        )
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1; those without length stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


@dataclass(frozen=True)
class _Known:
    """Embeddings that were computed before."""

    row: dict[str, int]
    vectors: np.ndarray  # float64 [texts, d]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return self.vectors[[self.row[text] for text in texts]]
