"""The learned reward: a score is a function of its source and hypothesis alone, and survives being saved."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest.data.batches import BatchSettings, Examples
from rest.errors import UserError
from rest.reward.learned.network import LEFT_OUT, NARROW, LearnedReward, RatingLoss, by_length, left_out
from rest.reward.learned.probe import probe
from rest.reward.likelihood import PolicyLogProb
from rest.reward.reward import Calibration, Reward


@pytest.fixture(scope="module")
def texts(corpus):
    """Sources and hypotheses, among them an empty one, and one that is the same as another."""
    hypotheses = [*corpus.dev.references[:20], "", corpus.dev.references[0]]
    return [*corpus.dev.sources[:21], corpus.dev.sources[0]], hypotheses


@pytest.fixture(scope="module")
def reward(lively, batch, texts):
    """The head is fitted to noise, so that every feature counts."""
    new = LearnedReward.new(lively, batch)
    ratings = np.random.default_rng(0).random(len(texts[0])).astype(np.float32)
    examples = rated(new.examples(*texts), ratings)
    return probe(new, examples, examples, (0.01,), np.std)[0]


def rated(examples, ratings):
    columns = {"rating": ratings, "group": np.arange(len(ratings), dtype=np.float32)}
    return replace(examples, columns={**examples.columns, **columns})


@pytest.fixture(scope="module")
def scores(reward, texts):
    return reward(*texts, None)


def test_a_source_that_its_hypotheses_share_changes_no_score(reward, texts):
    hypotheses = texts[1][:9]
    sources = [texts[0][k % 3] for k in range(9)]
    alone = [reward([x], [y], None)[0] for x, y in zip(sources, hypotheses, strict=True)]
    np.testing.assert_allclose(reward(sources, hypotheses, None), alone, atol=1e-5)


def test_scores_are_one_number_a_hypothesis_and_differ(scores, texts):
    assert scores.dtype == np.float32 and scores.shape == (len(texts[0]),)
    assert len(np.unique(scores[:-1].round(4))) > 15
    np.testing.assert_allclose(scores[0], scores[-1], atol=1e-5)


def test_scores_do_not_depend_on_batch_size_order_or_neighbours(reward, lively, texts, scores):
    sources, hypotheses = texts
    np.testing.assert_allclose(reward(sources[::-1], hypotheses[::-1], None)[::-1], scores, atol=1e-5)
    np.testing.assert_allclose(reward(sources[3:8], hypotheses[3:8], None), scores[3:8], atol=1e-5)
    alone = [reward([x], [y], None)[0] for x, y in zip(sources[:4], hypotheses[:4], strict=True)]
    np.testing.assert_allclose(alone, scores[:4], atol=1e-5)
    # in wider rows; a text that the narrow ones cut scores otherwise there
    short = [
        i
        for i, pair in enumerate(zip(sources, hypotheses, strict=True))
        if all(len(ids) <= 64 for ids in lively.encode_sources(pair))
    ]
    assert 0 < len(short) < len(sources)
    wider = replace(reward, batch=replace(reward.batch, batch_tokens=256, source_tokens=128, target_tokens=128))
    of_both = wider(sources, hypotheses, None)  # read in rows of two lengths
    np.testing.assert_allclose(of_both[short], scores[short], atol=1e-5)
    np.testing.assert_allclose(wider(sources[::-1], hypotheses[::-1], None)[::-1], of_both, atol=1e-5)


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 400)), min_size=1, max_size=40),
    st.sampled_from([(96, 64), (128, 128), (320, 320), (100, 400)]),
)
def test_every_pair_is_read_once_in_rows_as_narrow_as_there_are(lengths, room):
    examples = Examples(*([np.zeros(n, np.int32) for n in side] for side in zip(*lengths, strict=True)))
    found = list(by_length(examples, BatchSettings(1024, *room)))
    assert sorted(pair for _, pairs in found for pair in pairs) == list(range(len(lengths)))
    for batch, pairs in found:
        assert batch.batch_tokens == 1024 and batch.source_tokens <= room[0] and batch.target_tokens <= room[1]
        for longest in (max(lengths[pair]) for pair in pairs):
            width = next((width for width in NARROW if longest <= width and 2 * width <= max(room)), max(room))
            assert (batch.source_tokens, batch.target_tokens) == (min(width, room[0]), min(width, room[1]))


def test_no_hypotheses_have_no_scores(reward):
    assert reward([], [], None).shape == (0,)


def test_references_are_not_looked_at(reward, texts, scores):
    np.testing.assert_array_equal(reward(*texts, texts[0]), scores)


def test_both_the_source_and_the_hypothesis_matter(reward, texts, scores):
    sources, hypotheses = texts
    for other in (reward(sources[1:], hypotheses[:-1], None), reward(sources[:-1], hypotheses[1:], None)):
        assert (np.abs(other - scores[:-1]) > 1e-4).mean() > 0.8


def test_the_head_can_read_how_likely_the_network_finds_a_hypothesis(reward, lively, texts, teacher_forced):
    """The last three features, against the plain network: the mean log p, the mean p and the lowest log p."""
    sources, hypotheses = texts[0][:6], texts[1][:6]
    wanted = []
    for source, tokens in zip(sources, lively.encode_references(hypotheses), strict=True):
        logits = teacher_forced(lively, source, tokens)
        log_probs = (logits - np.log(np.exp(logits).sum(1, keepdims=True)))[np.arange(len(tokens)), tokens]
        wanted.append([log_probs.mean(), np.exp(log_probs).mean(), log_probs.min()])
    kernel = np.zeros(reward.network.parameters["head"]["kernel"].shape, np.float32)
    for feature in range(3):
        one = kernel.copy()
        one[feature - 3] = 1
        reading = with_head(reward, one, np.zeros(1, np.float32))
        np.testing.assert_allclose(
            reading(sources, hypotheses, None), np.asarray(wanted)[:, feature], rtol=1e-4, atol=1e-5
        )


@pytest.fixture(scope="module")
def advised(policy, lively, batch, texts):
    """A reward whose head also reads the likelihood under another policy, and lengths."""
    new = LearnedReward.new(policy, batch, likelihood=lively)
    ratings = np.random.default_rng(0).random(len(texts[0])).astype(np.float32)
    examples = rated(new.examples(*texts), ratings)
    return probe(new, examples, examples, (0.01,), np.std)[0]


def test_the_head_can_read_the_likelihood_of_a_policy_that_stays_as_it_was(advised, lively, batch, texts):
    examples = advised.examples(*texts)
    wanted = PolicyLogProb(lively, batch)(*texts, None)
    words = [[np.log(1 + len(text.split())) for text in side] for side in texts]
    kernel = np.zeros(advised.network.parameters["head"]["kernel"].shape, np.float32)
    for feature, column in zip((-3, -2, -1), (wanted, *words), strict=True):
        one = kernel.copy()
        one[feature] = 1
        reading = with_head(advised, one, np.zeros(1, np.float32))
        np.testing.assert_allclose(reading(*texts, None), column, rtol=1e-4, atol=1e-5)
        # whatever becomes of the network
        parameters = reading.network.parameters
        moved = {**parameters, "body": jax.tree.map(lambda leaf: leaf + 0.1, parameters["body"])}
        elsewhere = reading.with_network(reading.network.with_parameters(moved))
        np.testing.assert_allclose(elsewhere.predict(examples)[:, 0], column, rtol=1e-4, atol=1e-5)


def test_scores_with_a_likelihood_depend_on_nothing_else_and_survive_saving(advised, policy, texts, tmp_path):
    sources, hypotheses = texts
    scores = advised(sources, hypotheses, None)
    np.testing.assert_allclose(advised(sources[::-1], hypotheses[::-1], None)[::-1], scores, atol=1e-5)
    np.testing.assert_allclose(advised(sources[3:8], hypotheses[3:8], None), scores[3:8], atol=1e-5)
    assert advised([], [], None).shape == (0,)
    advised.save(tmp_path, Calibration((0.0, 1.0), (0.0, 1.0)))
    loaded, _ = LearnedReward.load(tmp_path)
    np.testing.assert_array_equal(loaded(sources, hypotheses, None), scores)
    assert loaded.identity == advised.identity
    other = replace(advised, likelihood=replace(advised.likelihood, policy=policy))
    assert other.identity != advised.identity


def with_head(reward: LearnedReward, kernel: np.ndarray, bias: np.ndarray) -> LearnedReward:
    return reward.with_network(reward.network.with_part("head", {"kernel": kernel, "bias": bias}))


@pytest.fixture(scope="module")
def ensemble(lively, batch, texts):
    new = LearnedReward.new(lively, batch, heads=4)
    ratings = np.random.default_rng(0).random(len(texts[0])).astype(np.float32)
    examples = rated(new.examples(*texts), ratings)
    return probe(new, examples, examples, (0.1,), np.std)[0]


def test_heads_differ_because_each_leaves_out_other_groups(ensemble, texts):
    members = ensemble.members(*texts)
    assert members.shape == (len(texts[0]), 4) and members.std(1).min() > 1e-4
    np.testing.assert_allclose(ensemble(*texts, None), members.mean(1), rtol=1e-5)
    again = ensemble.members(*(side * 3 for side in texts))
    np.testing.assert_array_equal(again, np.tile(members, (3, 1)))  # read once, so to the last bit
    cautious = replace(ensemble, caution=1.5)
    np.testing.assert_allclose(cautious(*texts, None), members.mean(1) - 1.5 * members.std(1), rtol=1e-4, atol=1e-6)
    assert cautious.identity != ensemble.identity


def test_a_head_leaves_out_the_same_groups_always_and_about_the_share(ensemble):
    groups = jnp.arange(2000, dtype=jnp.float32)
    out = [np.asarray(left_out(groups, head)) for head in range(3)]
    assert all(abs(part.mean() - LEFT_OUT) < 0.04 for part in out)
    assert not np.array_equal(out[0], out[1])
    np.testing.assert_array_equal(np.asarray(left_out(groups[::-1], 0))[::-1], out[0])


def test_a_saved_ensemble_keeps_its_heads_and_its_caution(ensemble, texts, tmp_path):
    cautious = replace(ensemble, caution=0.5)
    cautious.save(tmp_path, Calibration((0.0, 1.0), (0.0, 1.0)))
    loaded, _ = LearnedReward.load(tmp_path)
    assert loaded.heads == 4 and loaded.caution == 0.5 and loaded.identity == cautious.identity


@pytest.mark.parametrize(("regression", "ranking"), [(0.0, 0.0), (-1.0, 2.0)])
def test_ratings_must_be_learned_somehow(regression, ranking):
    with pytest.raises(UserError, match="regression"):
        RatingLoss(regression, ranking)


def test_the_two_losses_are_added_as_means():
    rng = np.random.default_rng(0)
    predicted, rating = (jnp.asarray(rng.normal(size=(2, 4)), jnp.float32) for _ in range(2))
    group, mask = jnp.array([[0.0, 0, 1, 1], [2, 2, 2, 3]]), jnp.ones((2, 4), bool)
    one, two, both = (
        RatingLoss(*weights)(predicted, rating, group, mask) for weights in ((1.0,), (0.0, 1.0), (2.0, 3.0))
    )
    mean = [float(loss.sum / loss.weight) for loss in (one, two, both)]
    assert mean[2] == pytest.approx(2 * mean[0] + 3 * mean[1], rel=1e-5)
    assert mean[0] == pytest.approx(np.square(predicted - rating).mean(), rel=1e-5)


def test_a_text_longer_than_a_row_is_cut_to_it(reward, batch):
    long = "pu " * 200
    examples = reward.examples([long], [long])
    assert len(examples.sources[0]) == batch.source_tokens
    assert len(examples.targets[0]) == batch.target_tokens
    assert np.isfinite(reward([long], [long], None)).all()


def test_a_saved_reward_scores_the_same_on_the_same_scale(reward, texts, scores, tmp_path):
    line = Calibration((-0.5, 1.0, 1.5), (0.0, 0.9, 1.0))
    reward.save(tmp_path / "reward", line)
    loaded, scale = LearnedReward.load(tmp_path / "reward")
    assert scale == line
    assert loaded.identity == reward.identity
    np.testing.assert_array_equal(loaded(*texts, None), scores)
    assert Reward(loaded, scale).identity == Reward(reward, line).identity


def test_identity_changes_with_a_parameter(reward):
    kernel, bias = (np.asarray(reward.network.parameters["head"][name]) for name in ("kernel", "bias"))
    assert with_head(reward, kernel, bias).identity == reward.identity
    assert with_head(reward, kernel, np.nextafter(bias, np.float32(1))).identity != reward.identity


def test_a_folder_without_a_reward_is_an_error_that_names_it(lively, tmp_path):
    lively.save(tmp_path)
    with pytest.raises(UserError, match="no learned reward there"):
        LearnedReward.load(tmp_path)
