"""Ranking losses: peers' numbers, and that a group weighs one however many answers it has."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest.learning.preferences import BradleyTerry

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
