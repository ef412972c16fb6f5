"""Exactly right of N samples, beside every choice of N of them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from rest.data.corpus import Split
from rest.evaluation.exact import majority_at, pass_at, right
from rest.evaluation.outputs import Outputs

TEXTS = [["a", "b", "a", "c", "b"], ["d", "d", "d", "d", "e"], ["f", "g", "h", "i", "j"]]
RIGHT = np.array([[text in "ae" for text in row] for row in TEXTS])


def brute(value, n: int) -> list[float]:
    return [float(np.mean([value(s, list(c)) for c in combinations(range(5), n)])) for s in range(len(TEXTS))]


def majority(source: int, chosen: list[int]) -> float:
    among = [TEXTS[source][k] for k in chosen]
    most = [text for text in set(among) if among.count(text) == max(map(among.count, among))]
    return float(np.mean([text in "ae" for text in most]))


@pytest.mark.parametrize("n", range(1, 6))
def test_both_are_the_mean_over_every_choice_of_n(n: int) -> None:
    one = brute(lambda s, chosen: RIGHT[s, chosen].any(), n)
    np.testing.assert_allclose(pass_at(RIGHT)[:, n - 1], one, atol=1e-12)
    found = majority_at(TEXTS, RIGHT, orders=4000)[:, n - 1]
    np.testing.assert_allclose(found, brute(majority, n), atol=0.03)


def test_right_is_perfect_gold_or_else_a_reference() -> None:
    split = Split("test", np.arange(3), ["x", "y", "z"], ["a", "e", "k"], [["b", "e", "j"]])
    by_reference = right(Outputs(split, TEXTS, {}))
    assert by_reference is not None
    assert by_reference.tolist() == [
        [text in among for text in row] for row, among in zip(TEXTS, ("ab", "e", "kj"), strict=True)
    ]
    gold = np.array([[1.0, 0.99], [0.5, 1.0]], np.float32)
    by_gold = right(Outputs(split, [["a", "b"], ["c", "d"]], {"gold": gold}))
    assert by_gold is not None and by_gold.tolist() == [[True, False], [False, True]]
    assert right(Outputs(Split("test", np.arange(1), ["x"], None), [["a"]], {})) is None
