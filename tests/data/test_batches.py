"""Packing pairs into rows, and rows into batches that can be resumed and shared between processes."""

from dataclasses import replace
from itertools import islice, pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest.data.batches import (
    Batch,
    BatchOverrides,
    BatchSettings,
    Examples,
    bucket,
    evaluation_batches,
    fitting,
    gather_tokens,
    minibatches,
    pad,
    padded_batches,
    plan_rows,
    training_batches,
)
from rest.data.segments import Segments
from rest.errors import UserError

PAD = 0
LENGTHS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 10)), min_size=1, max_size=40)


def made(lengths: list[tuple[int, int]]) -> Examples:
    """Pairs of these lengths; every token of the set is another number."""
    total = 1

    def ids(length: int) -> np.ndarray:
        nonlocal total
        total += length
        return np.arange(total - length, total, dtype=np.int32)

    sources, targets = [ids(m) for m, _ in lengths], [ids(n) for _, n in lengths]
    weights = np.arange(len(lengths), dtype=np.float32) + 0.5
    return Examples(sources, targets, {"weight": weights})


def settings(rows: int = 3) -> BatchSettings:
    return BatchSettings(batch_tokens=rows * 16, source_tokens=16, target_tokens=16)


def many(n: int = 60) -> Examples:
    random = np.random.default_rng(0)
    return made([(int(m), int(t)) for m, t in random.integers(1, 13, (n, 2))])


def epoch(examples: Examples, **changes) -> list[Batch]:
    options = {"pad_id": PAD, "seed": 0, "epochs": 1, **changes}
    return list(training_batches(examples, settings(), **options)[0])


def sequence_ids(batches: list[Batch]) -> list[int]:
    return [int(i) for batch in batches for i in batch.sequence_ids.ravel() if i >= 0]


def same(one: Batch, other: Batch) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def check(batch: Batch, examples: Examples) -> None:
    """Every segment of every row is the pair that `sequence_ids` names, and the rest is padding."""
    for row in range(len(batch.source)):
        pairs = batch.sequence_ids[row]
        for slot, pair in enumerate(pairs):
            source = batch.source_segments[row] == slot + 1
            target = batch.target_segments[row] == slot + 1
            if pair < 0:
                assert not source.any() and not target.any() and batch.columns["weight"][row, slot] == 0
                continue
            assert batch.source[row, source].tolist() == examples.sources[pair].tolist()
            assert batch.target[row, target].tolist() == examples.targets[pair].tolist()
            assert batch.target_input[row, target].tolist() == [PAD, *examples.targets[pair][:-1]]
            assert batch.source_positions[row, source].tolist() == list(range(source.sum()))
            assert batch.target_positions[row, target].tolist() == list(range(target.sum()))
            assert batch.columns["weight"][row, slot] == examples.columns["weight"][pair]
        assert (batch.source[row, batch.source_segments[row] == 0] == PAD).all()
        for part in (batch.target, batch.target_input):
            assert (part[row, batch.target_segments[row] == 0] == PAD).all()


@given(LENGTHS, st.integers(0, 3))
def test_every_row_keeps_within_its_capacity_and_every_pair_has_one_row(lengths, seed):
    examples = made(lengths)
    plan = plan_rows(examples, settings(), seed)
    assert sorted(int(pair) for row in plan.rows for pair in row) == list(range(len(lengths)))
    for row in plan.rows:
        assert sum(lengths[pair][0] for pair in row) <= 16
        assert sum(lengths[pair][1] for pair in row) <= 16
    assert plan.max_pairs == bucket(max(len(row) for row in plan.rows))


@given(LENGTHS)
def test_padding_is_the_share_of_target_positions_without_a_token(lengths):
    examples = made(lengths)
    share = plan_rows(examples, settings(rows=1), 0).padding
    batches = evaluation_batches(examples, settings(rows=1), pad_id=PAD)
    assert share == pytest.approx(np.mean([batch.target_segments == 0 for batch in batches]))


@given(LENGTHS)
def test_an_evaluation_sees_every_pair_once_in_batches_of_one_shape(lengths):
    examples = made(lengths)
    batches = evaluation_batches(examples, settings(), pad_id=PAD)
    assert sorted(sequence_ids(batches)) == list(range(len(lengths)))
    assert {batch.source.shape for batch in batches} == {(3, 16)}
    for batch in batches:
        check(batch, examples)


def test_an_evaluation_has_longer_rows_where_a_pair_needs_them():
    examples = made([(3, 4), (17, 5), (2, 40)])
    batches = evaluation_batches(examples, settings(), pad_id=PAD)
    assert sorted(sequence_ids(batches)) == [0, 1, 2]
    assert {(batch.source.shape, batch.target.shape) for batch in batches} == {((1, 24), (1, 48))}
    for batch in batches:
        check(batch, examples)


@pytest.mark.parametrize("seed", [0, 7])
def test_an_epoch_of_training_sees_every_pair_once_with_its_ids_positions_and_columns(seed):
    examples = many()
    batches = epoch(examples, seed=seed)
    assert sorted(sequence_ids(batches)) == list(range(60))
    for batch in batches:
        check(batch, examples)


def test_every_epoch_shuffles_the_rows_again():
    examples = many()
    two = epoch(examples, epochs=2)
    ids = sequence_ids(two)
    assert sorted(ids[:60]) == sorted(ids[60:]) == list(range(60))
    assert ids[:60] != ids[60:]


def test_without_an_end_every_batch_is_full_and_the_data_comes_round_again():
    batches, plan = training_batches(many(), settings(), pad_id=PAD, seed=0)
    some = list(islice(batches, 2 * len(plan.rows)))
    assert {batch.target.shape for batch in some} == {(3, 16)}
    seen = sequence_ids(some)
    assert all(seen.count(pair) == 6 for pair in range(60))  # 2 batches a row of the plan, 3 rows each


def test_packing_leaves_little_padding_when_there_are_many_short_pairs():
    assert plan_rows(many(400), settings(), 0).padding < 0.2


def test_the_seed_alone_decides_the_order():
    examples = many()
    first, again, other = (epoch(examples, seed=seed) for seed in (1, 1, 2))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert sequence_ids(first) != sequence_ids(other)


def test_what_is_held_of_a_batch_does_not_change_what_it_is():
    held = np.asarray([0, 3])
    whole, some = (
        training_batches(many(), settings(rows=4), pad_id=PAD, seed=0, held=rows)[0] for rows in (None, held)
    )
    for _ in range(9):
        assert same(jax.tree.map(lambda leaf: leaf[held], next(whole)), next(some))
    assert whole.get_state() == some.get_state()


@pytest.mark.parametrize("before", [0, 1, 9])
def test_a_saved_position_goes_on_with_the_same_batches(before):
    def fresh():
        return training_batches(many(), settings(), pad_id=PAD, seed=3)[0]

    batches = fresh()
    list(islice(batches, before))
    state = batches.get_state()
    wanted = list(islice(batches, 12))
    resumed = fresh()
    resumed.set_state(state)
    assert all(same(a, b) for a, b in zip(wanted, islice(resumed, 12), strict=True))


def test_fitting_looks_at_both_sides():
    examples = made([(16, 16), (17, 3), (3, 17)])
    assert fitting(examples, settings()).tolist() == [True, False, False]


@pytest.mark.parametrize("lengths", [(17, 3), (3, 17)])
def test_a_pair_that_is_too_long_is_refused_by_its_number_and_lengths(lengths):
    examples = made([(2, 2), lengths])
    with pytest.raises(UserError, match=rf"pair 1 has {lengths[0]} source and {lengths[1]} target tokens"):
        training_batches(examples, settings(), pad_id=PAD, seed=0)


def test_a_batch_has_at_least_one_row():
    assert BatchSettings(batch_tokens=10, source_tokens=16, target_tokens=16).rows == 1


def test_what_a_stage_has_otherwise_is_put_in_the_place_of_what_is_shared():
    shared = BatchSettings(512, 64, 48, share_sources=True)
    assert BatchOverrides().of(shared) == shared
    assert BatchOverrides(batch_tokens=96, share_sources=False).of(shared) == BatchSettings(96, 64, 48)


def test_pad_puts_rows_side_by_side():
    assert pad([[1, 2], [], [3]], 3, 9).tolist() == [[1, 2, 9], [9, 9, 9], [3, 9, 9]]


def test_a_group_shares_a_row_as_far_as_it_fits():
    lengths = [3, 4, 2, 5, 9, 9, 9, 1]
    groups = np.array([5, 5, 5, 2, 7, 7, 7, 2])
    ids = [list(range(1, n + 1)) for n in lengths]
    plan = plan_rows(Examples(ids, ids, groups=groups), BatchSettings(40, 20, 20), seed=0)
    rows = [set(row.tolist()) for row in plan.rows]
    assert sorted(pair for row in rows for pair in row) == list(range(8))
    assert any({0, 1, 2} <= row for row in rows) and any({3, 7} <= row for row in rows)
    assert any({4, 5} <= row for row in rows) and not any({4, 5, 6} <= row for row in rows)  # 27 outgrow a row of 20


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 10)), min_size=1, max_size=40))
def test_pairs_of_one_source_share_it_within_a_row(drawn):
    sources = made([(m, 1) for m in range(3, 11)]).sources
    source_of = np.array([source for source, _ in drawn])
    targets = made([(1, n) for _, n in drawn]).targets
    examples = Examples(sources, targets, source_of=source_of)
    seen = []
    for batch in evaluation_batches(examples, settings(), pad_id=PAD):
        for row in range(len(batch.source)):
            pairs = [int(pair) for pair in batch.sequence_ids[row] if pair >= 0]
            for slot, pair in enumerate(pairs, start=1):
                own = batch.target_segments[row] == slot
                assert batch.target[row, own].tolist() == targets[pair].tolist()
                (source,) = set(batch.target_sources[row, own].tolist())
                read = batch.source[row, batch.source_segments[row] == source]
                assert read.tolist() == sources[source_of[pair]].tolist()
            runs = 1 + sum(source_of[a] != source_of[b] for a, b in pairwise(pairs)) if pairs else 0
            assert batch.source_segments[row].max() == runs
            seen += pairs
    assert sorted(seen) == list(range(len(targets)))


@pytest.mark.parametrize("devices", [1, 4])
def test_padded_batches_hold_every_row_once_in_few_shapes(devices):
    random = np.random.default_rng(0)
    rows = [random.integers(5, 99, n).tolist() for n in random.integers(0, 700, 60)]
    seen, shapes = [], set()
    for part, ids, mask in padded_batches(rows, 1024, pad_id=3, devices=devices):
        assert len(ids) % devices == 0 and ids.size <= max(1024, devices * ids.shape[1])
        for row, line, real in zip(part, ids, mask, strict=False):
            assert line[real].tolist() == rows[row]
        assert (ids[~mask] == 3).all() and not mask[len(part) :].any()
        seen += part.tolist()
        shapes.add(ids.shape[1])
    assert sorted(seen) == list(range(60))
    assert shapes <= {16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768}
    assert list(padded_batches([], 1024, pad_id=3)) == []


@given(LENGTHS)
def test_numbers_of_tokens_are_packed_with_their_pairs_and_found_again(lengths):
    pairs = made(lengths)
    of_tokens = [y.astype(np.float32) + 0.25 for y in pairs.targets]
    some = [y[: len(y) * (pair % 2)] for pair, y in enumerate(of_tokens)]  # every second pair has none
    examples = Examples(pairs.sources, pairs.targets, token_columns={"number": of_tokens, "some": some})
    batches = evaluation_batches(examples, settings(), pad_id=PAD)
    for batch in batches:
        real = batch.target_segments > 0
        np.testing.assert_array_equal(batch.token_columns["number"], np.where(real, batch.target + 0.25, 0))
        pair = np.take_along_axis(batch.sequence_ids, np.maximum(batch.target_segments - 1, 0), 1)
        has = real & (pair % 2 == 1)
        np.testing.assert_array_equal(batch.token_columns["some"], np.where(has, batch.target + 0.25, 0))
    found = gather_tokens([(batch, batch.token_columns["number"]) for batch in batches], len(examples))
    assert [y.tolist() for y in found] == [y.tolist() for y in of_tokens]


@given(LENGTHS, st.integers(1, 9), st.integers(0, 9))
def test_minibatches_have_every_pair_once_and_one_shape_whatever_the_pairs(lengths, height, seed):
    examples = made(lengths)
    batches = minibatches(examples, settings(height), pad_id=PAD, seed=seed)
    for part in batches:
        check(part, examples)
        assert part.target.shape == (height, 16) and part.sequence_ids.shape == (height, 16)
    assert sorted(sequence_ids(batches)) == list(range(len(examples)))
    rows = [int((batch.sequence_ids >= 0).any(-1).sum()) for batch in batches]
    assert max(rows) - min(rows) <= 1  # no batch is left with the rest


def test_minibatches_differ_from_epoch_to_epoch():
    one, same_again, other = (minibatches(many(), settings(), pad_id=PAD, seed=seed) for seed in (1, 1, 2))
    assert all(same(a, b) for a, b in zip(one, same_again, strict=True))
    assert not all(same(a, b) for a, b in zip(one, other, strict=True))


# The algebra of segments, against a loop over tokens

IDS = np.array([[1, 1, 2, 3, 3, 3, 0, 0], [1, 2, 2, 2, 2, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]])
SEGMENTS, Q = Segments(jnp.asarray(IDS)), 4
NUMBERS = -np.random.default_rng(0).integers(1, 99, (3, 8)).astype(np.float32)


def by_sequence(of, numbers=NUMBERS) -> np.ndarray:
    """`of` the numbers of each sequence, 0 for one that a row does not have."""
    found = [[numbers[row][IDS[row] == q + 1] for q in range(Q)] for row in range(3)]
    nothing = np.zeros_like(numbers[0, 0])
    return np.asarray([[of(part) if len(part) else nothing for part in parts] for parts in found], np.float32)


def test_numbers_of_tokens_become_numbers_of_their_sequences():
    np.testing.assert_array_equal(SEGMENTS.sums(jnp.asarray(NUMBERS), Q), by_sequence(np.sum))
    np.testing.assert_array_equal(SEGMENTS.lowest(jnp.asarray(NUMBERS), Q), by_sequence(np.min))
    np.testing.assert_array_equal(SEGMENTS.lengths(Q), by_sequence(len))
    features = np.stack([NUMBERS, 2 * NUMBERS], -1)
    means = by_sequence(lambda part: part.mean(0), features)
    np.testing.assert_allclose(SEGMENTS.means(jnp.asarray(features), Q), means, rtol=1e-6)


def test_numbers_of_sequences_reach_their_tokens_and_tokens_see_what_comes_later_in_theirs():
    numbers = np.arange(3 * Q).reshape(3, Q)
    mask, own = np.asarray(SEGMENTS.mask), np.asarray(SEGMENTS.own(Q))
    assert (mask == (IDS > 0)).all() and (own.sum(-1) == mask).all()
    spread, flags = SEGMENTS.spread(jnp.asarray(numbers)), SEGMENTS.spread(jnp.asarray(numbers % 2 == 0))
    assert flags.dtype == bool
    for row, token in zip(*np.nonzero(mask), strict=True):
        number = numbers[row, IDS[row, token] - 1]
        assert spread[row, token] == number and flags[row, token] == (number % 2 == 0)
        assert own[row, token, IDS[row, token] - 1]
    for steps in (0, 1, 2, 9):
        later = np.asarray(SEGMENTS.later(jnp.asarray(NUMBERS), steps, end=7.0))
        for row, token in zip(*np.nonzero(mask), strict=True):
            goes_on = token + steps < 8 and IDS[row, token + steps] == IDS[row, token]
            assert later[row, token] == (NUMBERS[row, token + steps] if goes_on else 7.0)


@pytest.mark.parametrize("shared", [False, True])
def test_a_token_of_a_packed_pair_sees_its_own_source_and_what_precedes_it_in_its_target(shared):
    sources, targets = made([(5, 1), (2, 1), (4, 1)]).sources, made([(1, n) for n in (3, 2, 4, 1, 5, 2)]).targets
    source_of = np.array([0, 0, 1, 1, 2, 2])
    examples = Examples(sources if shared else [sources[k] for k in source_of], targets)
    examples = replace(examples, source_of=source_of) if shared else examples
    for batch in evaluation_batches(examples, settings(2), pad_id=PAD):
        # every token is another number, so that a token says which pair it is of
        source_at, target_at = ({int(x): k for k, ids in enumerate(side) for x in ids} for side in (sources, targets))
        own_source = np.vectorize(lambda token, at=source_at: at.get(int(token), -1))(batch.source)
        own_target = np.vectorize(lambda token, at=target_at: at.get(int(token), -1))(batch.target)
        wanted_source = np.where(own_target >= 0, source_of[own_target], -2)
        earlier = np.tril(np.ones((16, 16), bool))
        real = (own_target >= 0)[:, None]
        together = (own_target[:, :, None] == own_target[:, None, :]) & real
        tokens = jax.tree.map(jnp.asarray, batch)
        np.testing.assert_array_equal(tokens.target_mask(), together & earlier)
        np.testing.assert_array_equal(tokens.target_mask(causal=False), together)
        across = wanted_source[:, :, None] == own_source[:, None, :]
        if shared:
            np.testing.assert_array_equal(tokens.cross_mask(), across)
            within = (own_source[:, :, None] == own_source[:, None, :]) & (own_source >= 0)[:, None]
            np.testing.assert_array_equal(tokens.source_mask(), within)
        else:  # each pair has its copy of the source
            seen = np.asarray(tokens.cross_mask())
            assert not (seen & ~across).any()
            lengths = np.array([len(ids) for ids in sources])
            assert (seen.sum(-1) == np.where(own_target >= 0, lengths[wanted_source], 0)).all()
        assert batch.sequences == batch.sequence_ids.shape[1]
        assert batch.real.sum() == len(set(own_target.ravel()) - {-1})
        np.testing.assert_array_equal(batch.targets.ids, batch.target_segments)
