"""Cosines of embeddings, and centroids in the place of pseudo-references."""

from __future__ import annotations

import numpy as np
import pytest

from rest.errors import UserError
from rest.reward.embedding import Centroids, EmbeddingCosine, SourceCosine
from rest.reward.reward import Reward, identify

LETTERS = "abcd"


def letters(texts) -> np.ndarray:
    """How often each of four letters occurs."""
    return np.array([[text.count(letter) for letter in LETTERS] for text in texts], np.float32)


def lowered(text: str) -> str:
    return text.lower()


def test_cosines_by_hand() -> None:
    found = EmbeddingCosine(letters).pairs("x", ["a", "ab", "zzz"], ["a", "b", "aabb"])
    half = 0.5**0.5
    np.testing.assert_allclose(found, [[1, 0, half], [half, half, 1], [0, 0, 0]], atol=1e-7)


def test_all_texts_may_be_embedded_at_once() -> None:
    asked: list[list[str]] = []

    def watch(texts):
        asked.append(list(texts))
        return letters(texts)

    utility = EmbeddingCosine(watch)
    ready = utility.prepared(["a", "ab", "a", "b"])
    assert asked == [["a", "ab", "b"]]
    np.testing.assert_array_equal(
        ready.pairs("x", ["ab"], ["b", "a"]), EmbeddingCosine(letters).pairs("x", ["ab"], "ba")
    )
    assert len(asked) == 1


def test_centroids_are_found_and_count_the_same() -> None:
    """Two clusters: three references towards a, one at b; each counts a half."""
    utility = EmbeddingCosine(letters, Centroids(2))
    references, weights = ["a", "aaab", "b"], np.array([2.0, 1.0, 1.0])
    units = EmbeddingCosine(letters)._units(references)
    middle = (2 * units[0] + units[1]) / np.linalg.norm(2 * units[0] + units[1])
    found = utility("x", ["b", "a"], references, weights)
    np.testing.assert_allclose(found, [(middle[1] + 1) / 2, middle[0] / 2])
    # without itself b has no cluster, and one of the two a leaves another middle
    left = utility("x", ["b", "a"], references, weights, np.ones(2))
    other = (units[0] + units[1]) / np.linalg.norm(units[0] + units[1])
    np.testing.assert_allclose(left, [middle[1], other[0] / 2])


def test_as_many_centroids_as_references_are_the_references() -> None:
    rng = np.random.default_rng(0)
    references = ["".join(rng.choice(list(LETTERS), 5)) for _ in range(6)]
    references = list(dict.fromkeys("".join(sorted(text)) for text in references))
    candidates = ["abc", *references]
    plain, clustered = EmbeddingCosine(letters), EmbeddingCosine(letters, Centroids(len(references)))
    weights, left_out = np.ones(len(references)), np.array([0.0] + [1.0] * len(references))
    for out in (None, left_out):
        exact = plain("x", candidates, references, weights, out)
        np.testing.assert_allclose(clustered("x", candidates, references, weights, out), exact)


def test_a_hypothesis_beside_its_source_by_hand() -> None:
    asked: list[str] = []

    def watch(texts):
        asked.extend(texts)
        return letters(texts)

    found = Reward(SourceCosine(watch, hypotheses=lowered), (0.5, 1.0))(["a", "a", "ab"], ["A", "AB", "A"], None)
    half = 0.5**0.5
    np.testing.assert_allclose(found.raw, [1, half, half], atol=1e-6)
    np.testing.assert_allclose(found.reward, [1, 2 * half - 1, 2 * half - 1], atol=1e-6)
    assert asked == ["a", "ab", "a", "ab"]  # each text once
    known = [SourceCosine(letters), SourceCosine(letters, lowered), SourceCosine(letters, None, lowered)]
    assert len({repr(identify(each)) for each in known}) == 3
    with pytest.raises(UserError, match=r"lambda.*embeddings of 1 texts"):
        SourceCosine(lambda texts: np.ones(len(texts)))(["a"], ["b"])


def test_what_is_no_embedding_is_refused() -> None:
    for wrong in (lambda texts: np.ones(len(texts)), lambda texts: np.full((len(texts), 2), np.nan)):
        with pytest.raises(UserError, match=r"lambda.*embeddings of 1 texts"):
            EmbeddingCosine(wrong).pairs("x", ["a"], ["b"])
    with pytest.raises(UserError, match="k 0"):
        Centroids(0)


def test_it_is_known_by_encoder_and_centroids() -> None:
    known = [EmbeddingCosine(letters), EmbeddingCosine(test_cosines_by_hand), EmbeddingCosine(letters, Centroids(2))]
    assert len({repr(identify(utility)) for utility in known}) == 3
