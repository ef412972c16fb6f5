"""Estimates of the KL divergence: peers' numbers, and that they estimate what they say."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest.errors import UserError
from rest.learning.divergence import K1, K2, K3, AdaptiveCoefficient, FixedCoefficient, InLoss, InReward, exact

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "rl_losses.json").read_text())
LOG_RATIOS = jnp.asarray(GOLDEN["inputs"]["log_probs"]) - jnp.asarray(GOLDEN["inputs"]["anchor_log_probs"])


@pytest.mark.parametrize("peer", ["kl_", "openrlhf_"])
@pytest.mark.parametrize(("estimator", "name"), [(K1(), "k1"), (K2(), "k2"), (K3(), "k3")])
def test_estimates_are_those_of_the_peers(peer, estimator, name):
    key = "kl_k1(lp-ref)" if peer + name == "kl_k1" else peer + name
    np.testing.assert_allclose(estimator(LOG_RATIOS), GOLDEN["expected"][key], atol=1e-5)


def test_a_clipped_estimate_does_not_overflow():
    far = jnp.float32(-30.0)
    assert float(K3(clip=10.0)(far)) == GOLDEN["expected"]["verl_k3_clamp(lp=-30,ref=0)"] == 10
    assert float(K1(clip=10.0)(far)) == -10 and float(K2(clip=10.0)(far)) == 10
    assert bool(jnp.isfinite(K3(clip=10.0)(jnp.float32(-1000.0))))


def test_k1_and_k3_are_right_on_average_and_k2_has_the_gradient():
    logits, anchor = jnp.asarray([0.3, -0.2, 1.0, 0.1]), jnp.asarray([0.1, 0.4, 0.2, 0.0])
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(anchor)
    p = jnp.exp(log_p)
    wanted = float(exact(log_p, log_q))
    assert wanted > 0.05
    for estimator in (K1(), K3()):
        assert float((p * estimator(log_p - log_q)).sum()) == pytest.approx(wanted, abs=1e-6)
    assert float((p * K2()(log_p - log_q)).sum()) != pytest.approx(wanted, abs=1e-3)

    def slope(estimator):  # of the mean over tokens that were drawn: the draws do not move with the logits
        return jax.grad(lambda x: (p * estimator(jax.nn.log_softmax(x) - log_q)).sum())(logits)

    true = jax.grad(lambda x: exact(jax.nn.log_softmax(x), log_q))(logits)
    np.testing.assert_allclose(slope(K2()), true, atol=1e-6)
    np.testing.assert_allclose(slope(K1()), 0.0, atol=1e-6)
    assert np.abs(np.asarray(slope(K3())) - true).max() > 1e-3


def test_the_exact_divergence_is_not_disturbed_by_what_is_never_drawn():
    never = jnp.asarray([-jnp.inf, jnp.log(0.5), jnp.log(0.5)])
    assert float(exact(never, jnp.log(jnp.asarray([0.5, 0.25, 0.25])))) == pytest.approx(np.log(2))
    assert float(exact(never, never)) == 0


def test_the_adaptive_coefficient_is_that_of_the_peers():
    given = GOLDEN["adaptive_kl"]
    adaptive = AdaptiveCoefficient(given["init"], float(given["target"]), given["horizon"])
    coefficient, seen = adaptive.start, []
    for divergence in given["kl_sequence"]:
        coefficient = adaptive.after(coefficient, float(divergence), given["n"])
        seen.append(coefficient)
    np.testing.assert_allclose(seen, given["coef_after_each"], atol=1e-6)
    exact_name = "adaptive_kl(init .2,target 6,horizon 1e4,n_steps 256; current 3,6.5,30,0)"
    np.testing.assert_allclose(seen, GOLDEN["expected"][exact_name], atol=1e-12)


def test_a_fixed_coefficient_stays():
    assert FixedCoefficient(0.3).after(FixedCoefficient(0.3).start, 50.0, 256) == 0.3


def test_a_target_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"target 0\.0"):
        AdaptiveCoefficient(target=0.0)


def test_what_has_no_gradient_cannot_be_in_the_loss():
    assert InReward().estimator == K1() and InLoss().estimator == K3()
    with pytest.raises(UserError, match="K1 has no gradient"):
        InLoss(K1())
