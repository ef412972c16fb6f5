"""The losses against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest.learning.losses import NLL, SquaredError

LOG_PROBS = jnp.asarray([[-1.0, -2.0, -50.0], [-0.5, -9.0, -9.0]])
MEANS = jnp.asarray([[-3.0, -4.0, -60.0], [-5.0, -8.0, -8.0]])
MASK = jnp.asarray([[True, True, False], [True, False, False]])


def test_negative_log_likelihood_sums_over_the_real_tokens():
    loss = NLL(label_smoothing=0.0)(LOG_PROBS, MEANS, MASK)
    assert float(loss.sum) == 3.5  # 1 + 2 + 0.5
    assert float(loss.weight) == 3.0  # tokens
    assert float(loss.metrics["nll"]) == 3.5


def test_label_smoothing_mixes_in_the_mean_over_the_vocabulary():
    loss = NLL(label_smoothing=0.1)(LOG_PROBS, MEANS, MASK)
    # 0.9 x (1 + 2 + 0.5) + 0.1 x (3 + 4 + 5)
    assert float(loss.sum) == pytest.approx(4.35)
    assert float(loss.metrics["nll"]) == 3.5  # reported without smoothing


@given(st.floats(0, 1), st.integers(2, 9), st.integers(0, 99))
def test_label_smoothing_is_the_cross_entropy_with_the_smoothed_label(smoothing, vocabulary, seed):
    random = np.random.default_rng(seed)
    logits = random.standard_normal((2, 3, vocabulary)) * 3
    labels, mask = random.integers(0, vocabulary, (2, 3)), random.random((2, 3)) < 0.7
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = (1 - smoothing) * np.eye(vocabulary)[labels] + smoothing / vocabulary
    entropy = -(wanted * np.log(probabilities)).sum(-1)

    log_probs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
    chosen = jnp.take_along_axis(log_probs, jnp.asarray(labels)[..., None], -1)[..., 0]
    loss = NLL(smoothing)(chosen, log_probs.mean(-1), jnp.asarray(mask))
    assert float(loss.sum) == pytest.approx(entropy[mask].sum(), abs=1e-4)
    assert float(loss.weight) == mask.sum()


def test_masked_tokens_give_neither_loss_nor_gradient_even_where_impossible():
    impossible = LOG_PROBS.at[0, 2].set(-jnp.inf)
    loss = NLL(0.1)
    assert float(loss(impossible, MEANS, MASK).sum) == pytest.approx(4.35)
    gradient = jax.grad(lambda x: loss(x, MEANS, MASK).sum)(impossible)
    np.testing.assert_allclose(gradient, np.where(MASK, -0.9, 0.0), rtol=1e-6)


def test_nothing_but_padding_is_a_loss_of_nothing():
    loss = NLL()(LOG_PROBS, MEANS, jnp.zeros_like(MASK))
    assert float(loss.sum) == 0 and float(loss.weight) == 0


def test_halves_of_a_batch_add_up_to_the_whole():
    whole = NLL()(LOG_PROBS, MEANS, MASK)
    halves = [NLL()(LOG_PROBS[i : i + 1], MEANS[i : i + 1], MASK[i : i + 1]) for i in range(2)]
    assert float(whole.sum) == pytest.approx(sum(float(half.sum) for half in halves))
    assert float(whole.weight) == sum(float(half.weight) for half in halves)


def test_squared_error_sums_over_the_sequences():
    predicted, wanted = jnp.asarray([[1.0, 2.0], [0.5, 7.0]]), jnp.asarray([[0.0, 5.0], [0.0, 0.0]])
    loss = SquaredError()(predicted, wanted, jnp.asarray([[True, True], [True, False]]))
    assert float(loss.sum) == 10.25  # 1 + 9 + 0.25
    assert float(loss.weight) == 3.0  # sequences
    assert float(loss.metrics["squared_error"]) == 10.25
