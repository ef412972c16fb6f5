"""What a rollout teaches, by hand: where the divergence enters, and what an advantage is of."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest.baselines.rollout import Rollout, RolloutSettings
from rest.baselines.settings import GRPO, RLOO, PPOSettings
from rest.baselines.updates import PolicyUpdate, explained_variance, learn_from
from rest.data.batches import Examples, minibatches
from rest.learning.divergence import K2, K3, FixedCoefficient, InLoss
from rest.learning.returns import GAE, Group, LeaveOneOut
from rest.learning.surrogate import ClippedSurrogate, Reinforce
from rest.policy.policy import token_log_probs

LENGTHS = np.asarray([1, 2, 3, 3, 1, 2])


def hand():
    """Two sources with three hypotheses each, of 1 to 3 tokens and 1 nat of divergence a token; one is cut."""
    mask = np.arange(3) < LENGTHS[:, None]
    log_probs = np.where(mask, np.float32(-1.0), np.float32(0.0))
    columns = {
        "reward": np.asarray([0.1, 0.4, 0.9, 0.5, 0.5, 0.8], np.float32),
        "finish": ["eos"] * 5 + ["length"],
    }
    examples = Examples([[5]] * 6, [[6] * n for n in LENGTHS])
    return Rollout(columns, examples, LENGTHS, mask, log_probs, 2 * log_probs, -log_probs, 0.0)


def of_three(settings):
    return replace(settings, rollout=RolloutSettings(2, 3))


def learned_by_hand(settings, coefficient=0.1):
    """What the tokens of each hypothesis have as their advantage, and what is reported."""
    learned, metrics = learn_from(hand(), None, settings, coefficient)
    advantages = learned.token_columns["advantages"]
    assert [len(a) for a in advantages] == LENGTHS.tolist()
    assert all(np.ptp(a) == 0 for a in advantages)  # a hypothesis is one action
    return [float(a[0]) for a in advantages], metrics


def test_rloo_is_paid_less_its_divergence_and_compared_with_the_others_and_nothing_more():
    # paid .1 - .1, .4 - .2, .9 - .3 and .5 - .3, .5 - .1, .8 - .2; less the mean of the other two
    advantages, metrics = learned_by_hand(of_three(RLOO))
    np.testing.assert_allclose(advantages, [0 - 0.4, 0.2 - 0.3, 0.6 - 0.1, 0.2 - 0.5, 0.4 - 0.4, 0.6 - 0.3], atol=1e-6)
    assert metrics["objective/kl"] == pytest.approx(2) and metrics["objective/reward"] == pytest.approx(3.2 / 6)
    assert metrics["objective/penalised_reward"] == pytest.approx(2 / 6)
    assert metrics["length/mean"] == 2 and metrics["length/cut"] == pytest.approx(1 / 6)


def test_grpo_is_paid_its_reward_standardised_once_whatever_the_divergence():
    advantages, metrics = learned_by_hand(of_three(GRPO))
    first, second = np.asarray([0.1, 0.4, 0.9]), np.asarray([0.5, 0.5, 0.8])
    wanted = [(x - x.mean()) / x.std(ddof=1) for x in (first, second)]
    np.testing.assert_allclose(advantages, np.concatenate(wanted), atol=1e-4)
    assert advantages == learned_by_hand(of_three(GRPO), coefficient=9.0)[0]
    assert metrics["objective/kl"] == pytest.approx(2)  # which is reported all the same
    assert metrics["objective/penalised_reward"] == metrics["objective/reward"] == pytest.approx(3.2 / 6)


def test_ppo_whitens_its_advantages_and_not_what_the_critic_learns():
    settings = of_three(PPOSettings(advantage=GAE(lambda_=1.0, whitening="population")))
    values = [np.full(n, 0.25, np.float32) for n in LENGTHS]
    learned, metrics = learn_from(hand(), values, settings, 0.1)
    flat = np.concatenate(learned.token_columns["advantages"])
    assert flat.mean() == pytest.approx(0, abs=1e-5) and flat.std() == pytest.approx(1, abs=1e-5)
    # what is still to come: the third hypothesis is paid -.1, -.1 and .9 - .1
    np.testing.assert_allclose(learned.token_columns["returns"][2], [0.6, 0.7, 0.8], atol=1e-6)
    plain, _ = learn_from(hand(), values, replace(settings, advantage=GAE(lambda_=1.0, whitening=None)), 0.1)
    np.testing.assert_allclose(plain.token_columns["advantages"][2], [0.35, 0.45, 0.55], atol=1e-6)
    assert metrics["ppo/advantage_deviation"] == pytest.approx(
        np.concatenate(plain.token_columns["advantages"]).std(), abs=1e-6
    )


# The divergence in the loss, of the policy of the tests: a sequence of 4 tokens and one of 2, with distances given


@pytest.fixture(scope="module")
def drawn(lively, corpus, batch):
    """A batch in which nothing has an advantage, and the distances of the policy from its anchor."""
    sources = lively.encode_sources(corpus.dev.sources[:2])
    examples = Examples(sources, [np.asarray([9, 12, 7, 30]), np.asarray([11, 5])])
    distances = [np.asarray([0.3, -0.2, 0.5, 0.1], np.float32), np.asarray([-0.4, 0.6], np.float32)]
    own = token_log_probs(lively, examples, batch, temperature=0.8)
    columns = {"log_probs": own, "anchor_log_probs": [x - d for x, d in zip(own, distances, strict=True)]}
    columns |= {"advantages": [np.zeros(len(x), np.float32) for x in own]}
    examples = replace(examples, columns={"human": np.zeros(2, np.float32)}, token_columns=columns)
    (part,) = minibatches(examples, batch, pad_id=lively.tokenizer.pad_id, seed=0)
    return jax.tree.map(jnp.asarray, part), distances


@pytest.mark.parametrize(
    ("surrogate", "of_sequences"),
    [
        (ClippedSurrogate(average="sequences"), lambda a, b: (a.mean() + b.mean()) / 2),
        (ClippedSurrogate(), lambda a, b: (a.sum() + b.sum()) / 6),
        (Reinforce(), lambda a, b: (a.sum() + b.sum()) / 2),
    ],
)
def test_the_divergence_in_the_loss_counts_as_the_tokens_do(surrogate, of_sequences, lively, drawn):
    part, distances = drawn
    for estimator, function in ((K3(), lambda d: np.exp(-d) - 1 + d), (K2(), lambda d: d**2 / 2)):
        update = PolicyUpdate(surrogate, InLoss(estimator, FixedCoefficient(0.5)), 0.8, 0.0)
        loss = update(lively.network.module, part, None, {})
        wanted = 0.5 * of_sequences(*map(function, distances))
        assert float(loss.sum / loss.weight) == pytest.approx(wanted, rel=1e-3)


def test_the_divergence_has_a_gradient_in_the_loss_and_none_in_the_reward(lively, drawn):
    part, _ = drawn

    def slope(divergence):
        def total(parameters):
            update = PolicyUpdate(ClippedSurrogate(), divergence, 0.8, 0.0)
            return update(lively.network.with_parameters(parameters).module, part, None, {}).sum

        gradient = jax.jit(jax.grad(total))(lively.network.parameters)
        return float(sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(gradient)))

    assert slope(InLoss()) > 0 == slope(None)


@pytest.mark.parametrize("advantage", [LeaveOneOut(), Group()])
def test_a_source_whose_samples_are_paid_alike_teaches_nothing(advantage):
    rollout = hand()
    rollout.columns["reward"][:] = 0.5
    settings = of_three(replace(GRPO, advantage=advantage))
    learned, _ = learn_from(rollout, None, settings, 0.1)
    assert not np.concatenate(learned.token_columns["advantages"]).any()


def test_explained_variance_by_hand():
    mask = np.asarray([[True, True, False]])
    returns = np.asarray([[0.0, 1.0, 9.0]], np.float32)
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(np.zeros_like(returns), returns, mask) == 0
    assert explained_variance(-returns, returns, mask) == -3
