"""The value function: one number before each token, that of the prefix and of nothing else."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest.data.batches import Examples, minibatches
from rest.learning.learner import Learner
from rest.learning.lora import Trainable
from rest.learning.mesh import MachineSettings
from rest.learning.optimizers import Adam, Schedule
from rest.policy.value import Value, ValueObjective


@pytest.fixture(scope="module")
def examples(lively, corpus):
    sources = corpus.dev.sources[:5]
    return Examples(lively.encode_sources(sources), lively.encode_references(corpus.dev.references[:5]))


@pytest.fixture(scope="module")
def critic(lively):
    value = Value.start(lively)
    head = value.network.parameters["head"]
    kernel = jax.random.normal(jax.random.key(3), head["kernel"].shape)
    return value.with_network(value.network.with_part("head", {**head, "kernel": kernel}))


def test_it_starts_at_one_number_from_the_policy_s_parameters_which_are_in_memory_once(lively, examples, batch):
    for mean in (0.0, 0.25):
        value = Value.start(lively, mean)
        assert all((v == mean).all() for v in value.of(examples, batch))
    ours, theirs = value.network.parameters["body"], lively.network.parameters
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.unsafe_buffer_pointer() == jnp.asarray(b).unsafe_buffer_pointer()


def test_what_it_learns_does_not_move_the_policy(lively, examples, batch):
    before = [np.asarray(leaf).copy() for leaf in jax.tree.leaves(lively.network.parameters)]
    rewarded = replace(examples, columns={"reward": np.full(len(examples), 0.75, np.float32)})
    part = minibatches(rewarded, batch, pad_id=lively.tokenizer.pad_id, seed=0)[0]
    learner = Learner.begin(
        Value.start(lively), ValueObjective(), Adam(), Schedule(0.1), Trainable(), seed=0, machine=MachineSettings()
    )
    metrics = learner.update(part, jax.random.key(0))
    assert float(metrics["loss"]) == pytest.approx(0.75**2)  # the mean over tokens, of which each has the reward
    ((moved,), (start,)) = (value.network.parameters["head"]["bias"] for value in (learner.now, learner.start))
    assert (float(moved), float(start)) == (pytest.approx(0.1), 0.0)
    for leaf, was in zip(jax.tree.leaves(lively.network.parameters), before, strict=True):
        np.testing.assert_array_equal(leaf, was)


def test_a_value_is_read_as_it_was_written(critic, lively, tmp_path):
    critic.save(tmp_path / "value")
    again = Value.load(tmp_path / "value", lively)
    assert again.identity == critic.identity != Value.start(lively).identity
    assert jax.tree.structure(again.network) == jax.tree.structure(critic.network) and again.pad_id == critic.pad_id


def test_one_value_a_token_whatever_shares_the_row(critic, examples, batch):
    together = critic.of(examples, batch)
    assert [len(v) for v in together] == [len(y) for y in examples.targets]
    for k in range(len(examples)):
        alone = critic.of(Examples([examples.sources[k]], [examples.targets[k]]), batch)[0]
        np.testing.assert_allclose(together[k], alone, atol=1e-5)


def test_a_value_sees_the_tokens_before_and_not_its_own(critic, examples, batch):
    before = critic.of(examples, batch)[0]
    changed = np.array(examples.targets[0])
    changed[3] = changed[3] + 1
    after = critic.of(Examples([examples.sources[0]], [changed]), batch)[0]
    np.testing.assert_allclose(before[:4], after[:4], atol=1e-5)
    assert np.abs(before[4:] - after[4:]).max() > 1e-3
