"""A rollout: which distribution its log-probabilities are of, where rewards lie, and that no two are the same."""

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rest.baselines.rollout import RolloutSettings, roll_out, side_by_side, sources_of, token_rewards
from rest.data.batches import Examples, minibatches
from rest.errors import UserError
from rest.learning.divergence import K1, K3, Exact
from rest.learning.mesh import MachineSettings
from rest.policy.policy import token_log_probs
from rest.reward.reward import Reward

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "rl_losses.json").read_text())
SETTINGS, PLAIN = RolloutSettings(6, 3, temperature=0.8), K1()


def brevity(sources, hypotheses, references):
    """A reward between 0 and 1 that is seldom either."""
    return np.asarray([1 / (1 + len(y)) for y in hypotheses], np.float32)


@pytest.fixture(scope="module")
def text(lively, corpus):
    """Sources that share one width, so that samplers are compiled once."""
    short = [row for row, ids in enumerate(lively.encode_sources(corpus.train.sources)) if len(ids) <= 16]
    return corpus.train.take(short[:6])


@pytest.fixture(scope="module")
def rolled(lively, policy, text, batch):
    def roll(number=1, max_target_tokens=12, estimator=PLAIN, **changes):
        return roll_out(
            lively,
            policy,
            text,
            Reward(brevity),
            replace(SETTINGS, **changes),
            estimator,
            batch,
            max_target_tokens=max_target_tokens,
            number=number,
            seed=5,
            machine=MachineSettings(rows=24),
        )

    return roll


@pytest.fixture(scope="module")
def rollout(rolled):
    return rolled()


def test_log_probabilities_are_of_the_distribution_that_was_sampled_from(rollout, lively, policy, batch):
    mask, drawn = rollout.mask, rollout.columns
    assert rollout.sampler_gap < 1e-4
    np.testing.assert_allclose(rollout.log_probs, side_by_side(drawn["behaviour_log_probs"], mask), atol=1e-4)
    # at temperature 1 the same tokens have other log-probabilities: ratios to those would not start at 1
    plain = side_by_side(token_log_probs(lively, rollout.examples, batch, same_shapes=True), mask)
    np.testing.assert_allclose(plain, side_by_side(drawn["log_probs"], mask), atol=1e-4)
    assert np.abs(plain - rollout.log_probs)[mask].max() > 0.1
    of_anchor = token_log_probs(policy, rollout.examples, batch, temperature=0.8, same_shapes=True)
    np.testing.assert_array_equal(rollout.anchor_log_probs, side_by_side(of_anchor, mask))


def test_the_distribution_is_that_of_the_plain_network(rollout, lively, text, teacher_forced):
    tokens = rollout.columns["tokens"][0]
    logits = teacher_forced(lively, text.sources[0], tokens) / 0.8
    wanted = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(rollout.log_probs[0, : len(tokens)], wanted[np.arange(len(tokens)), tokens], atol=1e-4)


def test_divergences_are_estimates_of_the_tokens_drawn_or_exact(rolled, rollout, lively, policy, text, teacher_forced):
    log_ratios = rollout.log_probs - rollout.anchor_log_probs
    np.testing.assert_array_equal(rollout.divergences, log_ratios)
    np.testing.assert_allclose(rolled(estimator=K3()).divergences, np.expm1(-log_ratios) + log_ratios, atol=1e-5)
    found, wanted = rolled(estimator=Exact()), np.zeros_like(log_ratios)
    np.testing.assert_array_equal(found.log_probs, rollout.log_probs)  # the same draws
    for k, tokens in enumerate(rollout.columns["tokens"]):
        source = text.sources[k // SETTINGS.samples_per_source]
        logits = [teacher_forced(who, source, tokens) / 0.8 for who in (lively, policy)]
        own, other = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in logits)
        wanted[k, : len(tokens)] = (np.exp(own) * (own - other)).sum(-1)
    np.testing.assert_allclose(found.divergences, wanted, atol=1e-4)
    assert (found.divergences[rollout.mask] > 0).all() and not (rollout.divergences[rollout.mask] > 0).all()


def test_masks_come_from_lengths_and_eos_is_a_token_like_others(rollout, lively, batch):
    eos = lively.tokenizer.eos_id
    assert rollout.finished.any() and not rollout.finished.all()
    assert rollout.mask.sum() == rollout.lengths.sum() == sum(map(len, rollout.columns["tokens"]))
    for tokens, finished in zip(rollout.columns["tokens"], rollout.finished, strict=True):
        assert (tokens[-1] == eos) == finished and eos not in tokens[:-1]
    # where padding has the same id as EOS, or as what decoding starts with, no token is lost
    numbers = [np.ones(length, np.float32) for length in rollout.lengths]
    examples = replace(rollout.examples, token_columns={"number": numbers})
    for pad_id in (eos, 0):
        parts = minibatches(examples, batch, pad_id=pad_id, seed=0)
        assert sum(int((part.target_segments > 0).sum()) for part in parts) == rollout.lengths.sum()
        assert sum(float(part.token_columns["number"].sum()) for part in parts) == rollout.lengths.sum()
        ends = sum(int(((part.target == eos) & (part.target_segments > 0)).sum()) for part in parts)
        assert ends == rollout.finished.sum()


def test_rewards_keep_their_fractions_on_the_last_token():
    """The numbers of a peer; and a reward array of integers would make all of these 0."""
    mask = np.asarray(GOLDEN["inputs"]["mask"], bool)
    log_probs, anchor = (np.asarray(GOLDEN["inputs"][k], np.float32) for k in ("log_probs", "anchor_log_probs"))
    divergences = np.where(mask, K1()(jnp.asarray(log_probs - anchor)), 0).astype(np.float32)
    rewards, finished, lengths = np.asarray([0.73, -0.4], np.float32), np.asarray([True, False]), mask.sum(1)
    ours = token_rewards(rewards, finished, lengths, divergences, SETTINGS, 0.1)
    np.testing.assert_allclose(
        ours, GOLDEN["expected"]["openrlhf_compute_reward(r=[.73,-.4],kl=k1,coef=.1)"], atol=1e-6
    )
    assert ours.dtype == np.float32
    # the second was cut after its third token: there the penalty is, and not on padding
    strict = replace(SETTINGS, missing_eos_penalty=1.0, clip_reward=0.5)
    paid = token_rewards(rewards, finished, lengths, 0 * divergences, strict, 0.1)
    np.testing.assert_allclose(paid, [[0, 0, 0, 0, 0.5], [0, 0, -0.5, 0, 0]], atol=1e-6)


def test_no_two_rollouts_share_their_randomness(rollout, rolled):
    texts = [tuple(rollout.columns["tokens"][k].tolist()) for k in range(18)]
    assert all(len(set(texts[k : k + 3])) == 3 for k in range(0, 18, 3))  # the samples of a source
    again, later = rolled(), rolled(number=2)
    assert [tuple(y.tolist()) for y in again.columns["tokens"]] == texts
    same = sum(tuple(y.tolist()) == x for x, y in zip(texts, later.columns["tokens"], strict=True))
    assert same < 3  # the odd short one


def test_sources_are_gone_through_before_any_comes_again(corpus):
    text = corpus.train.take(slice(0, 20))
    ids = [sources_of(text, 6, number, seed=1).ids.tolist() for number in range(1, 7)]
    for epoch in (ids[:3], ids[3:]):
        assert len({i for part in epoch for i in part}) == 18
    assert ids[:3] != ids[3:]
    assert sources_of(text, 6, 4, seed=1).ids.tolist() == ids[3]
    with pytest.raises(UserError, match=r"ppo\.rollout\.sources 21: PPO has only 20"):
        sources_of(text, 21, 1, seed=1)


def test_what_no_ratio_can_be_taken_of_is_refused(rolled):
    sampling = SETTINGS.sampling(12)  # no setting of a rollout cuts the distribution
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.8, 0, 1.0)
    with pytest.raises(UserError, match=r"temperature must be from 0.0001 to 10000, not 0"):
        RolloutSettings(temperature=0.0)
    with pytest.raises(UserError, match=r"batch\.target_tokens 64 is less than .* 65"):
        rolled(max_target_tokens=65)
    with pytest.raises(UserError, match="samples_per_source 0"):
        RolloutSettings(samples_per_source=0)
    with pytest.raises(UserError, match=r"missing_eos_penalty -1\.0"):
        RolloutSettings(missing_eos_penalty=-1.0)


def test_examples_of_one_token_are_rolled_like_others(lively, batch):
    one = Examples([lively.encode_sources(["na"])[0]], [np.asarray([lively.tokenizer.eos_id], np.int32)])
    assert [len(x) for x in token_log_probs(lively, one, batch, temperature=0.8, same_shapes=True)] == [1]
