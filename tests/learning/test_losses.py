"""The losses against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest.data.segments import Segments
from rest.learning.losses import (
    GOLD,
    NLL,
    VMPO,
    AdvantageWeighted,
    Anchored,
    OfflineActorCritic,
    RewardWeighted,
    SquaredError,
    Tokens,
    VTrace,
    kl_of_anchor,
)
from rest.learning.preferences import CPO

LOG_PROBS = jnp.asarray([[-1.0, -2.0, -50.0], [-0.5, -9.0, -9.0]])
MEANS = jnp.asarray([[-3.0, -4.0, -60.0], [-5.0, -8.0, -8.0]])
SEGMENTS = jnp.asarray([[1, 1, 0], [1, 0, 0]])
MASK = SEGMENTS > 0


def nll(log_probs, means, segments, smoothing=0.1):
    tokens = Tokens(log_probs, means, Segments(segments))
    return tokens.smoothed(NLL()(tokens, {}), smoothing)


def test_negative_log_likelihood_sums_over_the_real_tokens():
    loss = nll(LOG_PROBS, MEANS, SEGMENTS, 0.0)
    assert float(loss.sum) == 3.5  # 1 + 2 + 0.5
    assert float(loss.weight) == 3.0  # tokens
    assert float(loss.metrics["nll"]) == 3.5


def test_label_smoothing_mixes_in_the_mean_over_the_vocabulary():
    loss = nll(LOG_PROBS, MEANS, SEGMENTS)
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
    loss = nll(chosen, log_probs.mean(-1), jnp.asarray(mask, jnp.int32), smoothing)
    assert float(loss.sum) == pytest.approx(entropy[mask].sum(), abs=1e-4)
    assert float(loss.weight) == mask.sum()


def test_masked_tokens_give_neither_loss_nor_gradient_even_where_impossible():
    impossible = LOG_PROBS.at[0, 2].set(-jnp.inf)
    assert float(nll(impossible, MEANS, SEGMENTS).sum) == pytest.approx(4.35)
    gradient = jax.grad(lambda x: nll(x, MEANS, SEGMENTS).sum)(impossible)
    np.testing.assert_allclose(gradient, np.where(MASK, -0.9, 0.0), rtol=1e-6)


def test_nothing_but_padding_is_a_loss_of_nothing():
    loss = nll(LOG_PROBS, MEANS, jnp.zeros_like(SEGMENTS))
    assert float(loss.sum) == 0 and float(loss.weight) == 0


def test_halves_of_a_batch_add_up_to_the_whole():
    whole = nll(LOG_PROBS, MEANS, SEGMENTS)
    halves = [nll(LOG_PROBS[i : i + 1], MEANS[i : i + 1], SEGMENTS[i : i + 1]) for i in range(2)]
    assert float(whole.sum) == pytest.approx(sum(float(half.sum) for half in halves))
    assert float(whole.weight) == sum(float(half.weight) for half in halves)


def test_squared_error_sums_over_the_sequences():
    predicted, wanted = jnp.asarray([[1.0, 2.0], [0.5, 7.0]]), jnp.asarray([[0.0, 5.0], [0.0, 0.0]])
    loss = SquaredError()(predicted, wanted, jnp.asarray([[True, True], [True, False]]))
    assert float(loss.sum) == 10.25  # 1 + 9 + 0.25
    assert float(loss.weight) == 3.0  # sequences
    assert float(loss.metrics["squared_error"]) == 10.25


# The losses of a policy, on two sequences packed into one row of six tokens, and one in another

ROWS = jnp.asarray([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]])
LABELS = jnp.log(jnp.asarray([[0.5, 0.1, 0.8, 0.9, 0.3, 0.5], [0.6, 0.7, 0.2, 0.4, 0.5, 0.5]]))
SPREAD = LABELS - 2.0
REWARD = jnp.asarray([[1.0, 0.25], [0.75, 0.0]])  # the second row has one sequence
VALUE = jnp.asarray([[0.5, 0.75, 0.875, 0.375, 0.125, 9.0], [0.875, 0.625, 0.75, 0.8125, 9.0, 9.0]])
ADVANTAGES = np.array([0.5, 0.25, 0.125, -0.125, 0.125, -0.125, 0.125, 0.0, -0.0625])  # exactly, ties too
ANCHOR = LABELS + jnp.asarray([[0.3, -0.2, 0.0, 0.1, -2.0, 7.0], [0.0, 0.5, 0.2, -0.4, 7.0, 7.0]])
BC = jnp.log(jnp.asarray([[0.4, 0.05, 0.9, 0.7, 0.2, 0.5], [0.6, 0.5, 0.01, 0.3, 0.5, 0.5]]))
REAL = np.asarray(ROWS) > 0


def tokens(columns=None, token_columns=None, log_probs=LABELS):
    return Tokens(log_probs, SPREAD, Segments(ROWS), columns or {}, token_columns or {})


MU = BC.at[1].set(0.0)  # what drew the tokens of the first row; the second is a human pair, which nothing drew
SAMPLED = jnp.asarray([[1.0, 1.0], [0.0, 0.0]])
DRAWN = {"reward": REWARD, "sampled": SAMPLED}
RL = {"value": VALUE, "anchor_log_probs": ANCHOR, "bc_log_probs": BC, "behaviour_log_probs": MU}


def test_columns_reach_the_tokens_of_their_sequence():
    np.testing.assert_allclose(tokens().segments.spread(REWARD)[REAL], [1.0] * 3 + [0.25] * 2 + [0.75] * 4)
    sums = tokens().segments.sums(jnp.ones_like(LABELS), 3)
    np.testing.assert_array_equal(sums, [[3, 2, 0], [4, 0, 0]])
    later = tokens().segments.later(VALUE, 1, end=-1.0)
    np.testing.assert_allclose(later[REAL], [0.75, 0.875, -1, 0.125, -1, 0.625, 0.75, 0.8125, -1])
    assert (np.asarray(tokens().segments.later(VALUE, 7, end=-1.0))[REAL] == -1).all()


def test_label_smoothing_adds_the_same_to_every_loss():
    both = tokens({"reward": REWARD, "group": jnp.zeros((2, 2))}, RL)
    even = -float(np.asarray(both.mean_log_probs)[REAL].mean())
    for loss in (NLL(), RewardWeighted(), GOLD(), CPO()):
        plain = loss(both, {})
        smoothed = both.smoothed(plain, 0.2)
        assert float(smoothed.weight) == float(plain.weight) and smoothed.metrics == plain.metrics
        mean = float(plain.sum) / float(plain.weight)
        assert float(smoothed.sum) / float(plain.weight) == pytest.approx(0.8 * mean + 0.2 * even, rel=1e-5)


def test_reward_weighted_with_rewards_of_one_is_the_plain_loss_to_the_bit():
    plain = NLL()(tokens(), {})
    weighted = RewardWeighted()(tokens({"reward": jnp.ones((2, 2))}), {})
    even = AdvantageWeighted()(tokens({"advantage": jnp.zeros((2, 2))}), {})
    assert float(plain.sum) == float(weighted.sum) == float(even.sum)
    assert float(plain.weight) == float(weighted.weight) == float(even.weight) == 9


def test_reward_weighted_by_hand():
    loss = RewardWeighted()(tokens({"reward": REWARD}), {})
    wanted = -(1.0 * np.log(0.5 * 0.1 * 0.8) + 0.25 * np.log(0.9 * 0.3) + 0.75 * np.log(0.6 * 0.7 * 0.2 * 0.4))
    assert float(loss.sum) == pytest.approx(wanted, rel=1e-5)


def test_advantage_weights_are_exponential_and_bounded():
    advantage = jnp.asarray([[0.2, -0.1], [0.9, 0.0]])
    loss = AdvantageWeighted(temperature=0.1, max_weight=20.0)(tokens({"advantage": advantage}), {})
    wanted = -(
        np.exp(2) * np.log(0.5 * 0.1 * 0.8) + np.exp(-1) * np.log(0.9 * 0.3) + 20 * np.log(0.6 * 0.7 * 0.2 * 0.4)
    )
    assert float(loss.sum) == pytest.approx(wanted, rel=1e-5)


def test_offline_actor_critic_by_hand():
    loss = OfflineActorCritic()(tokens({"reward": REWARD}, RL), {})
    assert float(loss.sum) == pytest.approx(-(ADVANTAGES * np.asarray(LABELS)[REAL]).sum(), rel=1e-4)
    assert float(loss.metrics["advantage"]) == pytest.approx(ADVANTAGES.sum(), rel=1e-4)


# GOLD


def test_gold_without_any_weight_is_the_plain_loss():
    even = GOLD(steps=0, least_weight=1.0, least_reward=1.0)
    assert float(even(tokens(None, RL), {}).sum) == pytest.approx(float(NLL()(tokens(), {}).sum), rel=1e-6)


def test_gold_by_hand():
    loss = GOLD(steps=1, discount=0.5)(tokens(None, RL), {})
    weights = [0.5, 0.2, 0.8, 0.9, 0.3, 0.6, 0.7, 0.2, 0.4]  # at least 0.2
    rewards = [0.4, 0.1, 0.9, 0.7, 0.2, 0.6, 0.5, 0.1, 0.3]  # at least 0.1
    following = [0.1, 0.9, 1.0, 0.2, 1.0, 0.5, 0.1, 0.3, 1.0]  # 1 past the end
    returns = np.array(rewards) + 0.5 * np.array(following)
    assert float(loss.metrics["returns"]) == pytest.approx(returns.sum(), rel=1e-5)
    assert float(loss.sum) == pytest.approx(-(weights * returns * np.asarray(LABELS)[REAL]).sum(), rel=1e-5)


def test_gold_with_log_probabilities_takes_them_over_a_baseline():
    settings = GOLD(steps=1, reward="log-probability", baseline=-2.0, least_weight=1.0)
    returns = settings(tokens(None, RL), {}).metrics["returns"]
    reward = np.maximum(np.log([0.4, 0.05, 0.9, 0.7, 0.2, 0.6, 0.5, 0.01, 0.3]) + 2, 0.1)
    following = np.array([reward[1], reward[2], 2.0, reward[4], 2.0, reward[6], reward[7], reward[8], 2.0])
    assert float(returns) == pytest.approx((reward + following).sum(), rel=1e-5)


def test_the_weights_of_gold_have_no_gradient():
    loss = GOLD()
    gradient = jax.grad(lambda x: loss(tokens(None, RL, x), {}).sum)(LABELS)
    result = loss(tokens(None, RL), {})
    scaled = jax.grad(lambda s: loss(tokens(None, RL, LABELS * s), {}).sum)(jnp.float32(1.0))
    assert float(scaled) == pytest.approx(float((gradient * LABELS).sum()), rel=1e-5)
    assert float(scaled) == pytest.approx(float(result.sum), rel=1e-5)  # linear in log π where weights are fixed


# V-MPO


def test_vmpo_is_its_published_definition():
    """Written out from Song et al. 2020, §4.1 in float64, a token at a time."""
    settings = VMPO(temperature_bound=0.1, divergence_bound=0.01, top=0.5, temperature=0.2, weight=3.0)
    loss = settings(tokens({"reward": REWARD}, RL), dual_variables_of(settings))
    logs = np.asarray(LABELS, np.float64)[REAL]
    anchor = np.asarray(ANCHOR, np.float64)[REAL]
    # the better half of nine is four; 1/8 ties with the fourth best, as in rlax all that tie are in
    top = [n for n, a in enumerate(ADVANTAGES) if a >= 0.125]
    assert len(top) == 5
    total = sum(np.exp(ADVANTAGES[n] / 0.2) for n in top)
    policy = -sum(np.exp(ADVANTAGES[n] / 0.2) / total * logs[n] for n in top)
    temperature = 0.2 * 0.1 + 0.2 * np.log(total / len(top))
    d = logs - anchor
    kl = np.where(d < 1, np.exp(d), np.e * d) - 1 - d
    assert (d > 1).sum() == 1  # the line beyond 1 is tried too
    wanted = policy + temperature + np.mean(3.0 * kl + 3.0 * (0.01 - kl))
    assert float(loss.sum / loss.weight) == pytest.approx(wanted, rel=1e-5)
    assert float(loss.metrics["temperature"] / loss.weight) == pytest.approx(0.2)
    assert float(loss.metrics["kl_to_anchor"]) == pytest.approx(kl.sum(), rel=1e-4)


def test_v_trace_by_hand():
    """Only the third token is less likely than when it was drawn, 8/9 as likely; what precedes hears so much less."""
    given = tokens(DRAWN, RL)
    wanted = ADVANTAGES.copy()
    wanted[:3] = 35 / 72, 17 / 72, 1 / 9  # 0.875 + 1/9 is what the second and the first token look forward to
    np.testing.assert_allclose(np.asarray(VTrace()(given))[REAL], wanted, atol=1e-6)
    # one token ahead, the value stands for the rest
    np.testing.assert_allclose(np.asarray(VTrace(steps=1)(given))[REAL][:3], [0.375, 17 / 72, 1 / 9], atol=1e-6)


def test_v_trace_with_stored_log_probabilities_is_a_plain_loop():
    """From the last token back, in float64; of a human pair every ratio is 1, whatever stands in its column."""
    mu = jnp.asarray(np.random.default_rng(3).uniform(-3, 0, LABELS.shape), jnp.float32)
    settings = VTrace(clip_rho=1.2, clip_c=0.9)
    found = np.asarray(settings(tokens(DRAWN, RL | {"behaviour_log_probs": mu})))
    for row, start, end, reward, sampled in ((0, 0, 3, 1.0, True), (0, 3, 5, 0.25, True), (1, 0, 4, 0.75, False)):
        above, after = 0.0, 0.0  # v - V and V of the next token
        for t in reversed(range(start, end)):
            ratio = np.exp(float(LABELS[row, t]) - float(mu[row, t])) if sampled else 1.0
            rho, c, value = min(1.2, ratio), min(0.9, ratio), float(VALUE[row, t])
            paid = reward if t == end - 1 else 0.0
            assert found[row, t] == pytest.approx(rho * (paid + after + above - value), abs=1e-5)
            above, after = rho * (paid + after - value) + c * above, value


def test_v_trace_changes_nothing_as_long_as_the_policy_is_what_drew():
    given = tokens({**DRAWN, "sampled": jnp.ones((2, 2))}, RL | {"behaviour_log_probs": BC}, BC)
    np.testing.assert_allclose(np.asarray(VTrace()(given))[REAL], ADVANTAGES, atol=1e-6)
    plain, corrected = VMPO(), VMPO(correction=VTrace())
    assert corrected.needs == (*plain.needs, "sampled", "behaviour_log_probs")
    values = [float(loss(given, dual_variables_of(loss)).sum) for loss in (plain, corrected)]
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    moved = [float(loss(tokens(DRAWN, RL), dual_variables_of(loss)).sum) for loss in (plain, corrected)]
    assert moved[0] != pytest.approx(moved[1], rel=1e-6)


def dual_variables_of(settings):
    return {name: jnp.float32(value) for name, value in settings.dual_variables().items()}


def test_the_dual_variables_of_vmpo_rise_where_their_bound_is_broken():
    def gradients(**changes):
        settings = VMPO(**changes)
        given = tokens({"reward": REWARD}, RL)
        return jax.grad(lambda dual_variables: settings(given, dual_variables).sum)(dual_variables_of(settings))

    # KL(π_old ‖ π) is above 0.01 a token and below 100: α must rise in the first case, so its gradient is negative
    assert gradients(divergence_bound=0.01)["weight"] < 0 < gradients(divergence_bound=100.0)["weight"]
    # weights as uneven as at η = 0.01 break a bound of 0.01 nats; even ones do not
    assert gradients(temperature=0.01, temperature_bound=0.01)["temperature"] < 0
    assert gradients(temperature=10.0, temperature_bound=0.5)["temperature"] > 0


def test_the_gradient_of_vmpo_sees_neither_its_weights_nor_what_the_anchor_thinks_of_alpha():
    settings = VMPO(weight=2.0, top=1.0)
    given = {"reward": REWARD}
    gradient = jax.grad(lambda x: settings(tokens(given, RL, x), dual_variables_of(settings)).sum)(LABELS)
    psi = np.exp(ADVANTAGES / 0.1) / np.exp(ADVANTAGES / 0.1).sum()
    d = np.asarray(LABELS - ANCHOR, np.float64)[REAL]
    wanted = -9 * psi + 2.0 * (np.where(d < 1, np.exp(d), np.e) - 1)
    np.testing.assert_allclose(np.asarray(gradient)[REAL], wanted, rtol=1e-4, atol=1e-5)
    assert not np.asarray(gradient)[~REAL].any()


def test_the_divergence_and_its_gradient_are_right_on_average_over_draws_of_the_anchor():
    """Over a vocabulary of four: Σ anchor · estimate is KL(anchor ‖ π), and so are the gradients."""
    anchor = jnp.asarray([0.35, 0.3, 0.2, 0.15])
    logits = jnp.asarray([0.2, -0.3, 0.1, 0.4])

    def estimated(logits):
        return (anchor * kl_of_anchor(jax.nn.log_softmax(logits)[None], jnp.log(anchor)[None])[0]).sum()

    def exact(logits):
        return (anchor * (jnp.log(anchor) - jax.nn.log_softmax(logits))).sum()

    assert float(estimated(logits)) == pytest.approx(float(exact(logits)), rel=1e-5)
    np.testing.assert_allclose(jax.grad(estimated)(logits), jax.grad(exact)(logits), atol=1e-6)
    assert float(kl_of_anchor(jnp.zeros((1, 1)), jnp.zeros((1, 1)))[0, 0]) == 0
    # no token, however unlikely to the anchor, pushes harder than e - 1
    steep = jax.grad(lambda x: kl_of_anchor(x, jnp.full((1, 1), -50.0)).sum())(jnp.zeros((1, 1)))
    assert float(steep[0, 0]) == pytest.approx(np.e - 1, rel=1e-5)


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 1.0), (0.5, 10**-2.5), (1.0, 1e-5)])
def test_the_anchor_weighs_less_as_training_goes_on(progress, weight):
    given = tokens({"reward": REWARD, "progress": jnp.full((2, 2), progress)}, RL)
    base = RewardWeighted()(given, {})
    anchored = Anchored(RewardWeighted())(given, {})
    kl = float(kl_of_anchor(LABELS, BC)[REAL].sum())
    assert float(anchored.metrics["kl_to_bc"]) == pytest.approx(kl, rel=1e-5)
    assert float(anchored.sum - base.sum) == pytest.approx(weight * kl, abs=2e-6 + weight * 1e-4)
    assert float(anchored.weight) == float(base.weight)


def test_what_a_loss_needs_is_what_it_and_its_part_need():
    assert Anchored().needs == ("reward", "value", "anchor_log_probs", "bc_log_probs", "progress")
    bvmpo = Anchored(VMPO(correction=VTrace()))
    assert set(bvmpo.needs) == {*Anchored().needs, "sampled", "behaviour_log_probs"}
    assert Anchored(CPO()).candidates == 2 and Anchored().dual_variables() == VMPO().dual_variables()
    assert NLL().needs == () and NLL().candidates == 1


@pytest.mark.parametrize(
    "loss",
    [RewardWeighted(), AdvantageWeighted(), OfflineActorCritic(), GOLD(), VMPO(), Anchored(VMPO(correction=VTrace()))],
)
def test_padding_gives_neither_loss_nor_gradient(loss):
    columns = {**DRAWN, "advantage": REWARD - 0.5, "progress": jnp.zeros((2, 2))}

    def total(log_probs):
        return loss(tokens(columns, RL, log_probs), dual_variables_of(loss)).sum

    blocked = jnp.where(REAL, LABELS, -1e9)  # what the network says of padding
    assert float(total(blocked)) == float(total(LABELS))
    gradient = np.asarray(jax.grad(total)(blocked))
    assert np.isfinite(gradient).all() and not gradient[~REAL].any() and gradient[REAL].any()
