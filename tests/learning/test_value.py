"""The value function: one number before each token, that of the prefix and of nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest.data.batches import Examples
from rest.learning.value import Value


@pytest.fixture(scope="module")
def examples(lively, corpus):
    sources = corpus.dev.sources[:5]
    return Examples(lively.encode_sources(sources), lively.encode_references(corpus.dev.references[:5]))


@pytest.fixture(scope="module")
def critic(lively):
    value = Value.start(lively)
    kernel = jax.random.normal(jax.random.key(3), value.parameters["head"]["kernel"].shape)
    return value.with_parameters({**value.parameters, "head": {**value.parameters["head"], "kernel": kernel}})


def test_it_starts_at_zero_from_the_policy_s_parameters_and_shares_none(lively, examples, batch):
    value = Value.start(lively)
    assert all(not v.any() for v in value.of(examples, batch, lively.tokenizer.pad_id))
    ours, theirs = (jax.tree.leaves(tree) for tree in (value.parameters["body"], lively.parameters))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.unsafe_buffer_pointer() != jnp.asarray(b).unsafe_buffer_pointer()


def test_one_value_a_token_whatever_shares_the_row(critic, lively, examples, batch):
    pad = lively.tokenizer.pad_id
    together = critic.of(examples, batch, pad)
    assert [len(v) for v in together] == [len(y) for y in examples.targets]
    for k in range(len(examples)):
        alone = critic.of(Examples([examples.sources[k]], [examples.targets[k]]), batch, pad)[0]
        np.testing.assert_allclose(together[k], alone, atol=1e-5)


def test_a_value_sees_the_tokens_before_and_not_its_own(critic, lively, examples, batch):
    pad = lively.tokenizer.pad_id
    before = critic.of(examples, batch, pad)[0]
    changed = np.array(examples.targets[0])
    changed[3] = changed[3] + 1
    after = critic.of(Examples([examples.sources[0]], [changed]), batch, pad)[0]
    np.testing.assert_allclose(before[:4], after[:4], atol=1e-5)
    assert np.abs(before[4:] - after[4:]).max() > 1e-3
