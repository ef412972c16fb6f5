"""Ranking losses: peers' numbers, and that a group weighs one however many answers it has."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest.data.segments import Segments
from rest.learning.losses import Tokens
from rest.learning.preferences import CPO, DPO, RRHF, BradleyTerry, MinimumRisk

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "rl_losses.json").read_text())


def golden(name):
    return jnp.asarray(GOLDEN["inputs"][f"pairwise_{name}"])


@pytest.mark.parametrize(("margin", "name"), [(0.0, "pairwise_loss"), (1.0, "pairwise_loss_margin")])
def test_a_pair_s_loss_is_that_of_the_peers(margin, name):
    losses = BradleyTerry(margin=margin).pairs(golden("chosen"), golden("rejected"), golden("margin"))
    assert float(losses.mean()) == pytest.approx(GOLDEN["expected"][name], abs=1e-6)


def test_a_pair_far_on_the_wrong_side_has_a_finite_loss_and_gradient():
    loss, slope = jax.value_and_grad(lambda x: BradleyTerry().pairs(x, -x, jnp.ones(())))(jnp.float32(-100.0))
    assert float(loss) == pytest.approx(200) and float(slope) == pytest.approx(-2)


def test_centring_adds_the_squared_sum():
    plain, centred = (
        BradleyTerry(centring=c).pairs(jnp.array([2.0]), jnp.array([1.0]), jnp.ones(1)) for c in (0.0, 0.1)
    )
    assert float((centred - plain)[0]) == pytest.approx(0.9, abs=1e-6)


def by_hand(predicted, rating, group):
    """Groups of one row: the mean over groups of the mean over pairs of −log σ of the difference."""
    total = groups = 0.0
    for g in set(group):
        own = [i for i, other in enumerate(group) if other == g]
        pairs = [(i, j) for i in own for j in own if rating[i] > rating[j]]
        count = len(own) * (len(own) - 1) / 2
        if pairs:
            total += sum(np.log1p(np.exp(-(predicted[i] - predicted[j]))) for i, j in pairs) / count
            groups += len(pairs) / count
    return total, groups


def test_all_pairs_of_a_group_share_a_weight_of_one():
    predicted, rating = [0.3, -1.0, 2.0, 0.5, 0.1, 9.9], [3.0, 1.0, 2.0, 1.0, 0.0, 5.0]
    group = [7, 7, 7, 4, 4, 4]
    mask = [True] * 5 + [False]
    total, groups = by_hand(predicted[:5], rating[:5], group[:5])
    loss = BradleyTerry()(*(jnp.array([row], jnp.float32) for row in (predicted, rating, group)), jnp.array([mask]))
    assert groups == 2
    assert float(loss.weight) == pytest.approx(2) and float(loss.sum) == pytest.approx(total, rel=1e-5)
    # of the first group's three pairs two are ordered as rated, of the second's one pair one
    assert float(loss.metrics["ranked_right"]) == pytest.approx(2 / 3 + 1)


def test_equal_ratings_and_lone_answers_have_no_weight():
    rating, group = jnp.array([[1.0, 1.0, 2.0]]), jnp.array([[0.0, 0.0, 1.0]])
    loss = BradleyTerry()(jnp.array([[0.1, 0.9, 0.2]]), rating, group, jnp.ones((1, 3), bool))
    assert float(loss.weight) == float(loss.sum) == 0


# Preferences of a policy: two sources in one row (three and two rows of a token or two), one without a pair below

SEGMENTS = Segments(jnp.asarray([[1, 1, 2, 3, 3, 4, 5, 5], [1, 1, 1, 2, 0, 0, 0, 0]]))
LOG_PROBS = -jnp.asarray([[1.0, 2.0, 0.5, 1.5, 2.5, 3.0, 0.25, 0.75], [1.0, 1.0, 1.0, 2.0, 9.0, 9.0, 9.0, 9.0]])
ANCHORED = LOG_PROBS + jnp.asarray(
    [[0.1, 0.2, -0.3, 0.0, 0.5, 1.0, -0.5, 0.0], [0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0]]
)
SUMS = [-3.0, -0.5, -4.0, -3.0, -1.0]  # of the five sequences of the first row
GROUP = jnp.asarray([[7.0, 7.0, 7.0, 8.0, 8.0], [9.0, 9.0, 0.0, 0.0, 0.0]])
REWARDS = jnp.asarray([[0.9, 0.1, 0.5, 0.2, 0.6], [0.4, 0.4, 0.0, 0.0, 0.0]])  # the second row's tie


def policy_tokens(group=GROUP, reward=REWARDS):
    columns = {"group": group, "reward": reward}
    return Tokens(LOG_PROBS, LOG_PROBS, SEGMENTS, columns, {"anchor_log_probs": ANCHORED})


def two(group=GROUP):
    """Only the best and the worst of the first source: its middle one is in a group of its own."""
    return policy_tokens(group.at[0, 2].set(99.0))


def minus_log_sigmoid(x):
    return float(np.log1p(np.exp(-x)))


def test_dpo_by_hand():
    loss = DPO(beta=0.5)(two(), {})
    # log π - log π_anchor of the sequences: -0.3, 0.3, -, -1.0, 0.5
    wanted = minus_log_sigmoid(0.5 * (-0.3 - 0.3)) + minus_log_sigmoid(0.5 * (0.5 + 1.0))
    assert float(loss.sum) == pytest.approx(wanted, rel=1e-5)
    assert float(loss.weight) == 2.0  # sources with a pair; the tie has none
    assert float(loss.metrics["ranked_right"]) == 1.0
    assert float(loss.metrics["margin"]) == pytest.approx(0.5 * (-0.6 + 1.5), rel=1e-5)


def test_dpo_starts_at_log_two_where_the_policy_is_the_anchor():
    tokens = two()
    same = Tokens(LOG_PROBS, LOG_PROBS, SEGMENTS, tokens.columns, {"anchor_log_probs": LOG_PROBS})
    loss = DPO()(same, {})
    assert float(loss.sum / loss.weight) == pytest.approx(np.log(2), rel=1e-6)


def test_cpo_by_hand():
    loss = CPO(beta=0.1, nll=2.0)(two(), {})
    ranking = minus_log_sigmoid(0.1 * (-3.0 + 0.5)) + minus_log_sigmoid(0.1 * (-1.0 + 3.0))
    assert float(loss.sum) == pytest.approx(ranking + 2.0 * (3.0 / 2 + 1.0 / 2), rel=1e-5)  # of the best, per token
    assert float(loss.weight) == 2.0


def test_rrhf_by_hand():
    loss = RRHF()(policy_tokens(), {})
    # log-likelihoods per token: -1.5, -0.5, -2 with rewards 0.9, 0.1, 0.5, and -3, -0.5 with 0.2, 0.6
    hinges = (-0.5 + 1.5) + 0.0 + (-0.5 + 2.0) + 0.0
    assert float(loss.sum) == pytest.approx(hinges + 1.5 + 0.5, rel=1e-5)
    assert float(loss.weight) == 2.0
    assert float(loss.metrics["ranked_right"]) == pytest.approx(1 / 3 + 1.0)


@pytest.mark.parametrize("sharpness", [0.005, 1.0])
def test_minimum_risk_by_hand(sharpness):
    loss = MinimumRisk(sharpness, nll=2.0)(policy_tokens(), {})
    risk = 0.0
    for of in (slice(0, 3), slice(3, 5)):
        likely = np.exp(sharpness * np.array(SUMS[of]))
        risk += float(likely @ (1.0 - np.array(REWARDS[0, of])) / likely.sum())
    assert float(loss.sum) == pytest.approx(risk + 2.0 * (3.0 / 2 + 1.0 / 2), rel=1e-5)  # of the best, per token
    assert float(loss.weight) == 2.0  # the tie has none
    assert float(loss.metrics["expected_reward"]) == pytest.approx(2.0 - risk, rel=1e-5)


def test_minimum_risk_moves_likelihood_by_how_far_a_text_is_from_the_mean():
    """The gradient by a sequence's log-likelihood is α q (mean reward - its own) (Shen et al. 2016, eq. 12)."""
    alpha, rows = 0.5, policy_tokens()

    def loss(log_probs):
        return MinimumRisk(alpha)(Tokens(log_probs, log_probs, SEGMENTS, rows.columns, {}), {}).sum

    slopes = jax.grad(loss)(LOG_PROBS)
    likely = np.exp(alpha * np.array(SUMS[:3]))
    q, reward = likely / likely.sum(), np.array(REWARDS[0, :3])
    wanted = alpha * q * (q @ reward - reward)
    np.testing.assert_allclose(slopes[0, [0, 2, 3]], wanted, rtol=1e-5)
    np.testing.assert_allclose(slopes[0, 1], wanted[0], rtol=1e-5)  # each of its tokens
    np.testing.assert_array_equal(slopes[1], 0.0)  # a tie, and rows that are empty


def test_pairs_of_a_reward_that_is_right_agree_with_bradley_terry():
    """With β = 1 and no anchor, CPO's ranking is the pairwise loss of the sequences' log-likelihoods."""
    tokens = policy_tokens()
    scores = tokens.segments.sums(LOG_PROBS, 5)
    np.testing.assert_allclose(scores[0], SUMS)
    pairwise = BradleyTerry()(scores, REWARDS, GROUP, jnp.asarray([[True] * 5, [True] * 2 + [False] * 3]))
    assert float(CPO(beta=1.0, nll=0.0)(tokens, {}).sum) == pytest.approx(float(pairwise.sum), rel=1e-5)


def test_the_peers_pairwise_numbers_are_those_of_cpo_and_dpo():
    """One pair a row, of one token each: -log σ of the difference, as the published functions give it."""
    chosen, rejected = golden("chosen"), golden("rejected")
    log_probs = jnp.stack([chosen, rejected], 1)
    columns = {"group": jnp.ones((3, 2)), "reward": jnp.asarray([[1.0, 0.0]] * 3)}
    anchor = {"anchor_log_probs": jnp.zeros((3, 2))}
    tokens = Tokens(log_probs, log_probs, Segments(jnp.asarray([[1, 2]] * 3)), columns, anchor)
    for loss in (CPO(beta=1.0, nll=0.0), DPO(beta=1.0)):
        found = loss(tokens, {})
        assert float(found.sum / found.weight) == pytest.approx(GOLDEN["expected"]["pairwise_loss"], abs=1e-6)


@pytest.mark.parametrize("loss", [DPO(), CPO(), RRHF(), MinimumRisk()])
def test_sources_without_a_pair_have_no_gradient(loss):
    def total(log_probs):
        tokens = Tokens(
            log_probs, log_probs, SEGMENTS, {"group": GROUP, "reward": REWARDS}, policy_tokens().token_columns
        )
        return loss(tokens, {}).sum

    gradient = np.asarray(jax.grad(total)(LOG_PROBS))
    assert gradient[0].any() and not gradient[1].any()
