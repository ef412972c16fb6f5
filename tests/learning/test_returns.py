"""Returns and advantages: peers' numbers, plain loops, and what holds of all of them."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest.data.segments import Segments
from rest.learning.returns import GAE, Group, LeaveOneOut, gae, group_advantages, leave_one_out, v_trace, whiten

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "rl_losses.json").read_text())
EXPECTED = GOLDEN["expected"]
REWARDS, VALUES = (jnp.asarray(GOLDEN["inputs"][name]) for name in ("rewards", "values"))
MASK = jnp.asarray(GOLDEN["inputs"]["mask"], bool)
GROUPS = jnp.asarray([[0.1, 0.5, 0.9, 0.3], [0.2, 0.2, 0.2, 0.2]])


def same(ours, theirs, tolerance=1e-5):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("discount", "name"), [(1.0, "gae_raw_g1_l.95"), (0.99, "gae_raw_g.99_l.95")])
def test_gae_is_that_of_the_peers(discount, name):
    ours = gae(REWARDS, VALUES, MASK, discount, 0.95)
    same(ours.advantages, EXPECTED[name]["adv"])
    same(ours.returns, EXPECTED[name]["ret"])
    if discount == 1:
        same(ours.returns, EXPECTED["verl_returns"])


def test_whitening_names_its_variance():
    advantages = gae(REWARDS, VALUES, MASK, 1.0, 0.95).advantages
    same(whiten(advantages, MASK), EXPECTED["trl_masked_whiten_adv(bessel,eps1e-8 in rsqrt)"])
    same(whiten(advantages, MASK), EXPECTED["verl_gae_whitened_adv"])
    same(whiten(advantages, MASK, "population"), EXPECTED["openrlhf_adv_norm(population var)"])
    same(whiten(REWARDS, MASK, shift_mean=False), EXPECTED["trl_masked_whiten_noshift(rewards)"])


def test_group_advantages_are_those_of_the_peers():
    same(leave_one_out(GROUPS), EXPECTED["rloo"])
    same(group_advantages(GROUPS), EXPECTED["grpo(ddof1,eps1e-6)"])


@pytest.mark.parametrize(("advantage", "name"), [(LeaveOneOut(), "rloo"), (Group(), "grpo(ddof1,eps1e-6)")])
def test_all_tokens_of_a_hypothesis_have_the_advantage_of_what_it_is_paid_in_all(advantage, name):
    """The groups' rewards, spread over tokens in whatever way; nothing is whitened after."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 6, 8)
    mask = np.arange(5) < lengths[:, None]
    parts = np.where(mask, random.standard_normal((8, 5)), 0)
    parts[:, 0] += np.ravel(GROUPS) - parts.sum(1)
    found = advantage(jnp.asarray(parts, jnp.float32), jnp.ones((8, 5)), jnp.asarray(mask), 4)
    same(found.advantages, np.where(mask, np.ravel(EXPECTED[name])[:, None], 0))
    assert advantage.of_sequences and advantage.whitening is None and not np.asarray(found.returns).any()


def test_gae_may_scale_the_rewards_first():
    plain, scaled = (GAE(whiten_rewards=on)(REWARDS, VALUES, MASK, 1) for on in (False, True))
    same(plain.advantages, EXPECTED["gae_raw_g1_l.95"]["adv"])
    white = jnp.asarray(EXPECTED["trl_masked_whiten_noshift(rewards)"])
    same(scaled.advantages, gae(white, VALUES, MASK, 1.0, 0.95).advantages)
    assert GAE().whitening == "bessel" and not GAE().of_sequences


@st.composite
def rollouts(draw):
    """Numbers of each token, the mask and the lengths, 1 up to the width; of few shapes, which are compiled for."""
    rows, width = draw(st.sampled_from([(3, 6), (2, 1)]))
    random = np.random.default_rng(draw(st.integers(0, 999)))
    lengths = random.integers(1, width + 1, rows)
    rewards, values, log_ratios = random.standard_normal((3, rows, width)).astype(np.float32)
    return rewards, values, log_ratios, np.arange(width) < lengths[:, None], lengths


DISCOUNTS = st.sampled_from([0.0, 0.7, 1.0])
LAMBDAS = st.sampled_from([0.0, 0.5, 1.0])


@given(rollouts(), DISCOUNTS, LAMBDAS)
def test_gae_by_scan_is_a_plain_loop_and_reads_no_padding(rollout, discount, lambda_):
    rewards, values, _, mask, lengths = rollout
    wanted = np.zeros_like(rewards)
    for row, length in enumerate(lengths):
        later = 0.0
        for t in reversed(range(length)):
            after = values[row, t + 1] if t + 1 < length else 0.0
            later = rewards[row, t] + discount * after - values[row, t] + discount * lambda_ * later
            wanted[row, t] = later
    ours = gae(*map(jnp.asarray, (rewards, values, mask)), discount, lambda_)
    same(ours.advantages, wanted)
    same(ours.returns, wanted + np.where(mask, values, 0))
    if lambda_ == 1:  # the sum of what is still to come, whatever the values say
        same(ours.returns, n_step(rewards, values, mask, discount, rewards.shape[1]))


def n_step(rewards, values, mask, discount, steps):
    """V-trace's returns where the policy is the one that drew: the next `steps` rewards and the value after them."""
    rewards, values, segments = jnp.asarray(rewards), jnp.asarray(values), Segments(jnp.asarray(mask, jnp.int32))
    return v_trace(rewards, values, jnp.zeros_like(values), segments, discount, steps).returns


@given(rollouts(), DISCOUNTS, st.integers(1, 8))
def test_v_trace_with_ratios_of_one_is_the_n_step_return_by_a_plain_loop(rollout, discount, steps):
    rewards, values, _, mask, lengths = rollout
    wanted = np.zeros_like(rewards)
    for row, length in enumerate(lengths):
        for t in range(length):
            end = min(t + steps, length)
            wanted[row, t] = sum(discount ** (k - t) * rewards[row, k] for k in range(t, end))
            wanted[row, t] += discount**steps * values[row, end] if t + steps < length else 0.0
    same(n_step(rewards, values, mask, discount, steps), wanted)


@given(rollouts(), DISCOUNTS)
def test_v_trace_is_its_recursion(rollout, discount):
    rewards, values, log_ratios, mask, lengths = rollout
    wanted, advantages = np.zeros_like(rewards), np.zeros_like(rewards)
    for row, length in enumerate(lengths):
        later = after = 0.0  # v - V and V one token on (Espeholt et al. 2018, remark 1)
        for t in reversed(range(length)):
            ratio, value = np.exp(log_ratios[row, t]), values[row, t]
            rho, c = min(1.5, ratio), min(0.8, ratio)
            advantages[row, t] = rho * (rewards[row, t] + discount * (after + later) - value)
            later = rho * (rewards[row, t] + discount * after - value) + discount * c * later
            after = value
            wanted[row, t] = value + later
    segments = Segments(jnp.asarray(mask, jnp.int32))
    numbers = map(jnp.asarray, (rewards, values, log_ratios))
    ours = v_trace(*numbers, segments, discount, rewards.shape[1], 1.5, 0.8)
    same(ours.returns, wanted, 1e-4)
    same(ours.advantages, advantages, 1e-4)


@given(rollouts(), rollouts(), st.integers(1, 8))
def test_v_trace_of_packed_rows_is_that_of_each_sequence(first, second, steps):
    def corrected(rewards, values, log_ratios, segments):
        numbers = map(jnp.asarray, (rewards, values, log_ratios))
        return v_trace(*numbers, Segments(jnp.asarray(segments)), 0.9, steps, 1.5, 0.8)

    def row_of_twelve(parts):
        """Side by side, the numbers and their segments, and padding after them."""
        joined = [np.concatenate(numbers, axis=1) for numbers in zip(*parts, strict=True)]
        return [np.pad(numbers, ((0, 0), (0, 12 - numbers.shape[1]))) for numbers in joined]

    for row in range(min(len(first[4]), len(second[4]))):
        parts = [
            [part[row : row + 1, : rollout[4][row]] for part in rollout[:3]] + [np.full((1, rollout[4][row]), segment)]
            for segment, rollout in enumerate((first, second), start=1)
        ]
        lengths = [rollout[4][row] for rollout in (first, second)]
        packed = corrected(*row_of_twelve(parts))
        alone = [corrected(*row_of_twelve([part])) for part in parts]
        for name in ("advantages", "returns"):
            wanted = [getattr(x, name)[:, :length] for x, length in zip(alone, lengths, strict=True)]
            same(getattr(packed, name)[:, : sum(lengths)], np.concatenate(wanted, axis=1))


@given(rollouts())
def test_whitened_numbers_have_mean_0_and_deviation_1_over_what_is_unmasked(rollout):
    x, _, _, mask, _ = rollout
    if mask.sum() < 3:
        return
    ours = np.asarray(whiten(jnp.asarray(x), jnp.asarray(mask), "population"))
    assert not ours[~mask].any()
    assert ours[mask].mean() == pytest.approx(0, abs=1e-4) and ours[mask].std() == pytest.approx(1, abs=1e-3)
    kept = np.asarray(whiten(jnp.asarray(x), jnp.asarray(mask), "population", shift_mean=False))
    assert kept[mask].mean() == pytest.approx(x[mask].mean(), abs=1e-4)


def test_a_lone_sample_has_nothing_to_be_compared_with():
    for advantages in (leave_one_out, group_advantages):
        with pytest.raises(ValueError, match="two samples"):
            advantages(jnp.ones((2, 1)))
