"""Functions of networks over batches against plain loops, and that each is compiled once."""

import io
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from rest import journal
from rest.data.batches import Batch, BatchSettings, Examples, bucket
from rest.learning.apply import apply, per_row, per_sequence, per_token
from rest.model.network import Network

VOCABULARY, PAD = 40, 0
BATCH = BatchSettings(batch_tokens=32, source_tokens=16, target_tokens=16)


class Table(nnx.Module):
    """A number for each id."""

    def __init__(self, seed: int) -> None:
        self.numbers = nnx.Param(jax.random.normal(jax.random.key(seed), (VOCABULARY,)))


ONE, OTHER = (Network.of(None, Table(seed)) for seed in (0, 1))
NUMBERS, OTHERS = (np.asarray(network.parameters["numbers"]) for network in (ONE, OTHER))


def made(pairs: int = 11, longest: int = 9, seed: int = 0) -> Examples:
    """Pairs of several lengths, so that rows are packed."""
    random = np.random.default_rng(seed)
    sides = [[random.integers(1, VOCABULARY, n) for n in random.integers(1, longest, pairs)] for _ in range(2)]
    return Examples(*sides)


traced = []  # a line for each time that one of the functions below is traced


@dataclass(frozen=True)
class Scaled:
    """The number of each target token, times a factor."""

    factor: float = 1.0

    def __call__(self, table: Table, batch: Batch) -> jax.Array:
        traced.append(self)
        return self.factor * table.numbers[...][batch.target]


def difference(one: Table, other: Table, batch: Batch) -> jax.Array:
    """Of two networks' numbers of each target token."""
    return one.numbers[...][batch.target] - other.numbers[...][batch.target]


def sums(table: Table, batch: Batch) -> jax.Array:
    """[B, Q, 2]: the sum of a pair's target, and its length."""
    found = batch.targets.sums(table.numbers[...][batch.target], batch.sequences)
    return jnp.stack([found, batch.targets.lengths(batch.sequences)], -1)


def row_sums(table: Table, ids: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask, table.numbers[...][ids], 0).sum(1)


def close(found, wanted) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("same_shapes", [False, True])
def test_per_token_is_a_loop_over_pairs(same_shapes):
    examples = made()
    found = per_token(Scaled(2.0), ONE, examples, BATCH, pad_id=PAD, same_shapes=same_shapes)
    close(found, [2 * NUMBERS[target] for target in examples.targets])


def test_functions_of_two_networks_are_given_both_in_order():
    examples = made()
    found = per_token(difference, (ONE, OTHER), examples, BATCH, pad_id=PAD)
    close(found, [NUMBERS[target] - OTHERS[target] for target in examples.targets])


@pytest.mark.parametrize("pairs", [1, 11])
def test_per_sequence_is_a_loop_over_pairs_with_whatever_a_pair_has(pairs):
    examples = made(pairs)
    found = per_sequence(sums, ONE, examples, BATCH, pad_id=PAD)
    assert found.shape == (pairs, 2)
    close(found, [[NUMBERS[target].sum(), len(target)] for target in examples.targets])


def test_a_bar_is_shown_where_it_is_asked_for(monkeypatch):
    examples, seen = made(), io.StringIO()
    monkeypatch.setattr(journal, "console", Console(file=seen, force_terminal=True, width=100))
    for shown in ("", "the first look"):
        per_sequence(sums, ONE, examples, BATCH, pad_id=PAD, shown=shown)
        assert ("the first look" in seen.getvalue()) == bool(shown)


def test_per_row_is_a_loop_over_rows():
    random = np.random.default_rng(0)
    rows = [random.integers(0, VOCABULARY, n).tolist() for n in [3, 0, 40, 17, 1, 16, 40]]
    found = per_row(row_sums, ONE, rows, 96, pad_id=PAD)
    assert found.dtype == np.float32
    close(found, [NUMBERS[row].sum() for row in rows])
    assert per_row(row_sums, ONE, [], 96, pad_id=PAD).shape == (0,)


def test_a_tree_comes_back_as_numpy():
    def both(table: Table, x: jax.Array) -> dict[str, jax.Array]:
        return {"numbers": table.numbers[...], "twice": 2 * x}

    found = apply(both, ONE, np.arange(4.0))
    assert all(type(leaf) is np.ndarray for leaf in found.values())
    close([found["numbers"], found["twice"]], [NUMBERS, 2 * np.arange(4.0)])


def test_a_function_is_compiled_once_for_equal_functions_and_whatever_the_parameters():
    def compilations(factor: float, network: Network, examples: Examples, same_shapes: bool) -> int:
        before = len(traced)
        found = per_token(Scaled(factor), network, examples, BATCH, pad_id=PAD, same_shapes=same_shapes)
        numbers = np.asarray(network.parameters["numbers"])
        close(found, [factor * numbers[target] for target in examples.targets])
        return len(traced) - before

    few, more = made(5, seed=1), made(60, longest=5, seed=2)
    assert compilations(3.0, ONE, few, True) == 1
    assert compilations(3.0, ONE, few, True) == 0  # another object, but equal
    assert compilations(3.0, OTHER, few, True) == 0  # other parameters
    assert compilations(3.0, ONE, more, True) == 0  # however many pairs there are
    assert compilations(4.0, ONE, few, True) == 1  # another function


def test_rows_of_like_lengths_share_their_programs():
    shapes = []

    def seen(table: Table, ids: jax.Array, mask: jax.Array) -> jax.Array:
        shapes.append(ids.shape)
        return row_sums(table, ids, mask)

    rows = [[1] * n for n in range(1, 40)]
    per_row(seen, ONE, rows, 96, pad_id=PAD)
    assert sorted(shapes) == sorted({(96 // width, width) for width in {bucket(n) for n in range(1, 40)}})
