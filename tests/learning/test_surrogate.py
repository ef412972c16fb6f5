"""PPO's losses: peers' numbers, and which tokens still have a gradient."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest.data.segments import Segments
from rest.errors import UserError
from rest.learning.returns import gae, whiten
from rest.learning.surrogate import ClippedSurrogate, ClippedValue, Reinforce

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "rl_losses.json").read_text())
INPUTS, EXPECTED = GOLDEN["inputs"], GOLDEN["expected"]
MASK = jnp.asarray(INPUTS["mask"], bool)
LOG_PROBS, OLD = jnp.asarray(INPUTS["log_probs"]), jnp.asarray(INPUTS["old_log_probs"])
ESTIMATE = gae(jnp.asarray(INPUTS["rewards"]), jnp.asarray(INPUTS["values"]), MASK, 1.0, 0.95)
ADVANTAGES = whiten(ESTIMATE.advantages, MASK)
SEGMENTS, SEQUENCES = Segments(MASK.astype(jnp.int32)), jnp.ones((2, 1), bool)


def policy_loss(surrogate, log_probs=LOG_PROBS, advantages=ADVANTAGES, entropies=None):
    entropies = jnp.zeros_like(log_probs) if entropies is None else entropies
    return surrogate(log_probs, OLD, advantages, entropies, SEGMENTS, SEQUENCES)


def mean(loss, name=None):
    return float((loss.sum if name is None else loss.metrics[name]) / loss.weight)


def test_the_policy_loss_is_that_of_the_peers():
    loss = policy_loss(ClippedSurrogate())
    assert mean(loss) == pytest.approx(EXPECTED["trl_pg_loss"], abs=1e-5)
    assert mean(loss) == pytest.approx(EXPECTED["openrlhf_pg_loss"], abs=1e-5)
    assert mean(loss, "clip_fraction") == EXPECTED["trl_pg_clipfrac"] == EXPECTED["openrlhf_clip_ratio"]
    assert mean(policy_loss(ClippedSurrogate(dual_clip=3.0))) == pytest.approx(
        EXPECTED["openrlhf_pg_loss_dual3"], abs=1e-5
    )
    assert mean(policy_loss(ClippedSurrogate(average="sequences"))) == pytest.approx(
        EXPECTED["openrlhf_pg_loss_sample_mean"], abs=1e-5
    )
    assert float(jnp.where(MASK, OLD - LOG_PROBS, 0.0).sum() / MASK.sum()) == pytest.approx(
        EXPECTED["openrlhf_ppo_kl"], abs=1e-5
    )


def test_sequences_that_share_a_row_weigh_the_same_as_apart():
    """Two sequences of 5 and 3 tokens, in two rows or packed into one."""
    apart = policy_loss(ClippedSurrogate(average="sequences"))
    order = np.asarray([0, 1, 2, 3, 4, 5, 6, 7])
    row = [jnp.asarray(np.asarray(x).ravel()[order][None]) for x in (LOG_PROBS, OLD, ADVANTAGES)]
    segments = Segments(jnp.asarray([[1, 1, 1, 1, 1, 2, 2, 2]]))
    packed = ClippedSurrogate(average="sequences")(
        *row, jnp.zeros((1, 8)), segments, jnp.asarray([[True, True, False]])
    )
    assert float(packed.weight) == float(apart.weight) == 2
    assert mean(packed) == pytest.approx(mean(apart), abs=1e-6)


def test_reinforce_is_the_advantage_times_the_log_probability_of_whole_sequences():
    """Rows of 5 and 3 tokens, paid .6 and -.2 above the others: the loss is the mean of the two."""
    advantages = jnp.asarray([[0.6] * 5, [-0.2] * 3 + [9.0] * 2])
    loss = policy_loss(Reinforce(), advantages=advantages, entropies=jnp.asarray([[1.0] * 5, [2.0] * 5]))
    # log π(y) are -1.2 - .7 - 2.3 - .1 - .5 = -4.8 and -.9 - 1.5 - .3 = -2.7
    assert mean(loss) == mean(loss, "policy_loss") == pytest.approx((0.6 * 4.8 - 0.2 * 2.7) / 2, rel=1e-5)
    assert float(loss.weight) == 2 and mean(loss, "entropy") == pytest.approx(1.5)
    slope = jax.grad(lambda x: policy_loss(Reinforce(), x, advantages).sum)(LOG_PROBS)
    np.testing.assert_allclose(slope, np.where(MASK, -np.asarray(advantages), 0), rtol=1e-6)
    # at the policy that drew, the clipped ratio of tokens has the same direction, whichever way it is divided
    clipped = jax.grad(lambda x: policy_loss(ClippedSurrogate(), x, advantages).sum)(OLD)
    np.testing.assert_allclose(clipped, slope, rtol=1e-5)


def test_a_ratio_outside_the_clip_has_no_gradient_where_it_would_go_further():
    far = jnp.log(jnp.asarray([[1.5, 0.5, 1.5, 0.5, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0]])) + OLD
    advantages = jnp.asarray([[1.0, -1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    slope = jax.grad(lambda x: policy_loss(ClippedSurrogate(), x, advantages).sum)(far)
    np.testing.assert_allclose(slope[0], [0.0, 0.0, 1.5, -0.5, -1.0], atol=1e-6)


def test_the_dual_clip_limits_what_a_bad_token_may_cost():
    far = OLD + jnp.log(jnp.float32(10.0))
    advantages = -jnp.ones_like(OLD)
    assert mean(policy_loss(ClippedSurrogate(), far, advantages)) == pytest.approx(10, rel=1e-5)
    assert mean(policy_loss(ClippedSurrogate(dual_clip=3.0), far, advantages)) == pytest.approx(3)


def test_the_entropy_bonus_lowers_the_loss_by_the_mean_entropy():
    entropies = jnp.asarray(np.arange(10.0).reshape(2, 5), jnp.float32)
    plain, bonus = (mean(policy_loss(ClippedSurrogate(entropy_bonus=b), entropies=entropies)) for b in (0.0, 0.1))
    assert plain - bonus == pytest.approx(0.1 * (0 + 1 + 2 + 3 + 4 + 5 + 6 + 7) / 8, abs=1e-5)


def test_the_value_loss_is_that_of_the_peers():
    old, new = jnp.asarray(INPUTS["values"]), jnp.asarray(INPUTS["new_values"])
    loss = ClippedValue()(new, old, ESTIMATE.returns, MASK)
    for peer in ("trl_vf_loss(0.5*masked_mean(max))", "openrlhf_vf_loss", "verl_vf_loss"):
        assert mean(loss) == pytest.approx(EXPECTED[peer], abs=1e-5)
    assert mean(loss, "clip_fraction") == EXPECTED["trl_vf_clipfrac"]
    free = ClippedValue(clip=0.0)(new, old, ESTIMATE.returns, MASK)
    assert float(free.sum) == pytest.approx(float(free.metrics["squared_error"]) / 2)


def test_masked_tokens_give_neither_loss_nor_gradient():
    wild = jnp.where(MASK, LOG_PROBS, 300.0)  # a ratio that overflows
    assert mean(policy_loss(ClippedSurrogate(), wild)) == pytest.approx(mean(policy_loss(ClippedSurrogate())))
    slope = jax.grad(lambda x: policy_loss(ClippedSurrogate(), x).sum)(wild)
    assert bool(jnp.isfinite(slope).all()) and not slope[1, 3:].any()
    assert mean(policy_loss(Reinforce(), wild)) == pytest.approx(mean(policy_loss(Reinforce())))


def test_what_tokens_count_is_nothing_on_padding_and_one_a_token_or_a_sequence():
    for surrogate, counted, divisor in (
        (ClippedSurrogate(), [1] * 8, 8),
        (ClippedSurrogate(average="sequences"), [1 / 5] * 5 + [1 / 3] * 3, 2),
        (Reinforce(), [1] * 8, 2),
    ):
        weights, weight = surrogate.weights(SEGMENTS, SEQUENCES)
        np.testing.assert_allclose(np.asarray(weights)[np.asarray(MASK)], counted, rtol=1e-6)
        assert float(weight) == divisor and not np.asarray(weights)[~np.asarray(MASK)].any()


def test_limits_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match=r"dual_clip 0\.5"):
        ClippedSurrogate(dual_clip=0.5)
