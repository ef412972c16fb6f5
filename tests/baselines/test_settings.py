"""Settings of PPO and its kin: where a critic starts from, and what makes no sense together."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from rest.baselines.rollout import RolloutSettings
from rest.baselines.settings import GRPO, RLOO, FromPolicy, FromReward, PPOSettings
from rest.data.tokenizer import SentencePieceSettings
from rest.errors import UserError
from rest.learning.divergence import K3, InLoss, InReward
from rest.learning.returns import GAE, Group
from rest.learning.surrogate import ClippedSurrogate, Reinforce
from rest.model.families.xlmr import XLMRSettings
from rest.policy.policy import Policy
from rest.reward.learned.network import LearnedReward, ReadJointly
from rest.reward.reward import Reward


def test_a_critic_starts_from_the_policy_or_from_the_body_of_the_reward(lively, policy, batch):
    learned = LearnedReward.new(policy, batch, heads=2)  # which learned from another start than the policy that is here
    reward = Reward(learned, scale=(0.0, 1.0))
    for value, wanted in (
        (FromPolicy()(lively, reward), lively.network.parameters),
        (FromReward()(lively, reward), learned.network.parameters["body"]),
    ):
        found = value.network.parameters
        assert jax.tree.structure(found["body"]) == jax.tree.structure(wanted)
        for ours, theirs in zip(*map(jax.tree.leaves, (found["body"], wanted)), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert not found["head"]["kernel"].any() and not found["head"]["bias"].any()
        assert value.pad_id == lively.tokenizer.pad_id


def length(sources, hypotheses):
    return np.asarray([len(y) for y in hypotheses], np.float32)


def test_a_reward_that_does_not_read_what_the_policy_does_starts_no_critic(lively, corpus, batch):
    learned = LearnedReward.new(lively, batch)
    jointly = ReadJointly(
        lively.tokenizer, XLMRSettings(8, 1, 0, width=8, heads=1, feed_forward=8, layers=1, max_positions=9)
    )
    other = Policy.new(lively.settings, SentencePieceSettings(200).train([corpus.dev.sources], 0), seed=0)
    for function, message in (
        (length, "FromReward: length is not learned"),
        (replace(learned, reader=jointly), "does not read what the policy does"),
        (LearnedReward.new(other, batch), "does not read what the policy does"),
    ):
        with pytest.raises(UserError, match=message):
            FromReward()(lively, Reward(function, scale=(0.0, 1.0)))


def test_the_published_methods_are_what_their_papers_say():
    assert RLOO.divergence == InReward() and RLOO.surrogate == Reinforce() and RLOO.epochs == 1
    assert GRPO.divergence == InLoss(K3()) and GRPO.surrogate == ClippedSurrogate(average="sequences")
    for settings in (RLOO, GRPO):
        assert settings.rollouts == 0 and not settings.has_critic and settings.advantage.whitening is None
    assert PPOSettings().has_critic and PPOSettings().advantage.whitening == "bessel"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "ppo.epochs must be at least 1, not 0"),
        ({"average": 0}, "ppo.average must be at least 1, not 0"),
        ({"ema": 1.0}, r"ppo\.ema must be at least 0 and below 1, not 1\.0"),
        ({"advantage": Group(), "rollout": RolloutSettings(4, 1)}, "samples_per_source 1: Group compares"),
        ({"advantage": Group(), "surrogate": Reinforce()}, "ppo.surrogate Reinforce: epochs must be 1 .* not 2"),
        ({"advantage": GAE(), "surrogate": Reinforce(), "epochs": 1}, "not 1 and GAE"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        PPOSettings(**changes)
