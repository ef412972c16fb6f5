"""Columns that losses read: right, in their places in the batch, and computed once."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from rest.columns import Scorers, baselines, column_name, columns_of, fits_a_row, learn_value, learnable
from rest.data.batches import Examples, evaluation_batches, training_batches
from rest.data.shards import SCHEMA, write_shard
from rest.data.store import ScoredDataset, write_manifest
from rest.improve import ImproveSettings, select
from rest.learning.losses import NLL, VMPO, VTrace
from rest.learning.optimizers import Schedule
from rest.learning.train import TrainSettings, WithProgress
from rest.policy.policy import sequence_log_probs, token_log_probs
from rest.policy.value import Value
from rest.thresholds import PerSourceTop

ALL = ("reward", "advantage", "group", "progress", "sampled")
ALL += ("anchor_log_probs", "bc_log_probs", "behaviour_log_probs", "value")


@pytest.fixture(scope="module")
def scorers(policy):
    return Scorers(policy, Value.start(policy))


@pytest.fixture(scope="module")
def examples(scored, lively, batch, scorers, tmp_path_factory):
    """All rows, with `lively` as the anchor and the untrained policy as BC."""
    return columns_of(scored, np.ones(30, bool), ALL, lively, scorers, batch, tmp_path_factory.mktemp("kept"))


def test_token_log_probs_sum_to_those_of_sequences(examples, lively, batch):
    found = token_log_probs(lively, examples, batch)
    assert [len(values) for values in found] == [len(ids) for ids in examples.targets]
    wanted = sequence_log_probs(lively, examples, batch)
    np.testing.assert_allclose([values.sum() for values in found], wanted, rtol=1e-5, atol=1e-5)


def test_columns_are_those_of_the_networks(examples, scored, lively, policy, batch):
    stored = scored.columns(["reward", "source_id", "is_reference"])
    np.testing.assert_array_equal(examples.columns["reward"], stored["reward"])
    groups = np.unique(stored["source_id"], return_inverse=True)[1]
    np.testing.assert_array_equal(examples.columns["group"], groups)
    np.testing.assert_array_equal(examples.groups, stored["source_id"])
    assert not examples.columns["progress"].any()
    for name, network in (("anchor_log_probs", lively), ("bc_log_probs", policy)):
        for found, wanted in zip(examples.token_columns[name], token_log_probs(network, examples, batch), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    # the sampler's own numbers, stored while the samples were drawn, are the anchor's
    drawn = [row for table in scored.batches(["log_probs"]) for row in table["log_probs"].to_pylist()]
    for found, wanted in zip(examples.token_columns["anchor_log_probs"], drawn, strict=True):
        if wanted is not None:
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    assert all(not values.any() for values in examples.token_columns["value"])  # a value starts at 0


def test_what_drew_the_tokens_is_as_it_was_stored_and_nothing_in_human_pairs(examples, scored):
    human = scored.columns(["is_reference"])["is_reference"]
    np.testing.assert_array_equal(examples.columns["sampled"], ~human)
    stored = [row for table in scored.batches(["behaviour_log_probs"]) for row in table.column(0).to_pylist()]
    for found, wanted in zip(examples.token_columns["behaviour_log_probs"], stored, strict=True):
        np.testing.assert_array_equal(found, [] if wanted is None else np.float32(wanted))
    # the scored samples were drawn at temperature 0.8: this is not what their policy says at temperature 1
    sampled, anchor = (examples.take(np.flatnonzero(~human)).token_columns[f"{who}_log_probs"]
                       for who in ("behaviour", "anchor"))  # fmt: skip
    assert np.abs(np.concatenate(sampled) - np.concatenate(anchor)).max() > 0.1


def test_what_beam_search_found_is_not_for_losses_that_ask_what_drew_it(scored, lively, batch, tmp_path):
    rows = {name: [row for table in scored.batches([name]) for row in table[name].to_pylist()] for name in SCHEMA.names}
    rows["origin"][2], rows["behaviour_log_probs"][2] = "beam", None
    write_shard(tmp_path, 0, 1, rows)
    write_manifest(tmp_path, settings={}, identities={}, seed=0, scale=None)
    dataset, needs = ScoredDataset.open(tmp_path), VTrace().needs
    assert learnable(dataset, NLL().needs).all()
    np.testing.assert_array_equal(learnable(dataset, needs), np.arange(30) != 2)
    everything = partial(columns_of, policy=lively, scorers=Scorers(), batch=batch, cache=tmp_path / "kept")
    assert len(everything(dataset, np.ones(30, bool), ("reward",))) == 30
    with pytest.raises(ValueError, match="rows of beam search"):
        everything(dataset, np.ones(30, bool), ("behaviour_log_probs",))
    # a rule does not see them either: step 0 keeps all others
    bvmpo = ImproveSettings(PerSourceTop((2,)), loss=VMPO(correction=VTrace()), human_pairs="never")
    selection = select(dataset, bvmpo, 0)
    np.testing.assert_array_equal(selection.mask, dataset.columns(["is_sample"])["is_sample"])
    assert selection.rows == 19 and select(dataset, replace(bvmpo, loss=NLL()), 0).rows == 20


def test_sidecars_are_made_once_and_lie_beside_the_rows(examples, scored, lively, policy, scorers, batch, tmp_path):
    names = {column_name("log_probs", of.identity, batch) for of in (lively, policy)}
    assert {*names, column_name("value", scorers.value.identity, batch)} <= set(scored.sidecars.names)
    assert column_name("value", "x", batch) != column_name("value", "x", replace(batch, source_tokens=8))
    before = {path: path.stat().st_mtime_ns for path in scored.folder.rglob("*.parquet")}
    mask = np.arange(30) % 3 == 1
    again = columns_of(scored, mask, ALL, lively, scorers, batch, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in scored.folder.rglob("*.parquet")} == before
    kept = [values for values, keep in zip(examples.token_columns["bc_log_probs"], mask, strict=True) if keep]
    for found, wanted in zip(again.token_columns["bc_log_probs"], kept, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_numbers_of_tokens_stand_at_their_tokens_in_packed_batches(examples, batch, lively):
    for part in evaluation_batches(examples, batch, pad_id=lively.tokenizer.pad_id):
        for row, slot in zip(*np.nonzero(part.sequence_ids >= 0), strict=True):
            own = part.target_segments[row] == slot + 1
            wanted = examples.token_columns["anchor_log_probs"][part.sequence_ids[row, slot]]
            np.testing.assert_array_equal(part.token_columns["anchor_log_probs"][row][own], wanted)


def test_a_loss_that_needs_a_network_is_not_given_zeros_instead(scored, lively, batch, tmp_path):
    with pytest.raises(ValueError, match=r"no network was given for .*value"):
        columns_of(scored, np.ones(30, bool), ("value",), lively, Scorers(), batch, tmp_path)


def test_the_baseline_is_the_mean_of_the_samples_of_the_source():
    source = np.array([4, 4, 4, 9, 7, 7])
    reward = np.array([0.2, 0.6, 1.0, 0.5, 0.1, 0.3], np.float32)
    human = np.array([False, False, True, True, False, False])
    # the human pair of 9 has no samples beside it: the mean of all, (0.2 + 0.6 + 0.1 + 0.3) / 4
    np.testing.assert_allclose(baselines(source, reward, ~human), [0.4, 0.4, 0.4, 0.3, 0.2, 0.2], rtol=1e-6)


def test_groups_that_outgrow_a_row_are_found(batch):
    narrow = replace(batch, source_tokens=6, target_tokens=6)
    examples = Examples([[1, 2]] * 5, [[1] * 4, [1] * 3, [1] * 3, [1] * 3, [1]], groups=np.array([8, 8, 3, 3, 1]))
    np.testing.assert_array_equal(fits_a_row(examples, narrow), [True, True, False])  # 1, 3, 8


def test_progress_goes_from_nothing_to_all_and_is_resumed(examples, batch):
    def fresh():
        return WithProgress(training_batches(examples, batch, pad_id=0, seed=0)[0], total=5)

    batches, seen = fresh(), []
    for _ in range(5):
        seen.append(next(batches).columns["progress"])
        if len(seen) == 2:
            resumed = fresh()
            resumed.set_state(batches.get_state())
    assert [float(column[0, 0]) for column in seen] == [0, 0.25, 0.5, 0.75, 1]
    np.testing.assert_array_equal(next(resumed).columns["progress"], seen[2])


def test_a_value_starts_at_the_mean_reward_and_is_learned_from_the_samples(scored, policy, batch, tmp_path):
    def learn(steps):
        settings = TrainSettings(max_steps=steps, evaluate_every=3, schedule=Schedule(3e-3))
        return learn_value(policy, scored, settings, batch, folder=tmp_path / str(steps), seed=0)

    constant, before = learn(0)
    stored = scored.columns(["reward", "is_reference", "source_id"])
    samples = ~stored["is_reference"]
    every = columns_of(scored, samples, ("reward",), policy, Scorers(), batch, tmp_path / "kept")
    found = constant.of(every, batch)
    assert np.ptp(np.concatenate(found)) < 1e-6
    # one source of ten is held out: the mean is that of the other nine
    means = [
        stored["reward"][samples & (stored["source_id"] != held)].mean() for held in np.unique(stored["source_id"])
    ]
    assert np.isclose(means, found[0][0], atol=1e-6).any()
    assert before["rows"] == 2 and before["spearman"] is None and before["gradient_steps"] == 0

    value, after = learn(6)
    assert after["squared_error"] <= before["squared_error"] and after["gradient_steps"] == 6
    value.save(tmp_path / "network")
    assert Value.load(tmp_path / "network", policy).identity == value.identity != constant.identity
