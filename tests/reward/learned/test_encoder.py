"""A reward that starts from XLM-R: what it reads, that scores depend on nothing else, and that it survives saving."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from rest.data.batches import BatchSettings
from rest.errors import UserError
from rest.learning.optimizers import Schedule
from rest.learning.train import TrainSettings
from rest.model.families.xlmr import XLMR
from rest.model.layers import TransformerSettings
from rest.reward.learned.encoder import HuggingFaceEncoder
from rest.reward.learned.fit import Rated, fit
from rest.reward.learned.network import LearnedReward
from rest.reward.learned.settings import RewardSettings
from rest.reward.reward import Calibration

XLMR_FOLDER = Path(__file__).resolve().parents[2] / "golden" / "rewards" / "xlmr"
TEXTS = (
    ["The cat sat.", "A long sentence about nothing at all.", "Yes", "", "The cat sat."],
    ["Die Katze saß.", "Ein Satz.", "", "Ja", "Die Katze saß."],
)


@pytest.fixture(scope="module")
def reward():
    new = LearnedReward.new(HuggingFaceEncoder(XLMR_FOLDER).read(), BatchSettings(192, 96, 96), heads=2)
    noise = np.random.default_rng(0).normal(size=new.network.parameters["head"]["kernel"].shape)
    return new.with_network(new.network.with_part("head", {"kernel": noise, "bias": np.zeros(2)}))


def test_the_head_reads_the_mean_state_of_the_joined_row(reward):
    """Each pair alone, not packed, through the plain network."""
    reader, module = reward.reader, reward.network.module
    rows = reader.examples(*TEXTS, reward.batch).targets
    x, y = (reader.tokenizer.encode([texts[0]])[0] for texts in TEXTS)
    eos = reader.tokenizer.eos_id
    assert rows[0].tolist() == [reader.settings.bos_id, *y, eos, eos, *x, eos]
    ids = np.full((len(rows), 96), reader.settings.pad_id, np.int32)
    for r, row in enumerate(rows):
        ids[r, : len(row)] = row
    mask = np.arange(96) < np.array([[len(row)] for row in rows])
    states = np.asarray(nnx.jit(XLMR.__call__)(module.body, ids, mask)[-1])
    means = np.stack([states[r, : len(row)].mean(0) for r, row in enumerate(rows)])
    np.testing.assert_allclose(reward.members(*TEXTS), means @ module.head.kernel[...], atol=1e-4)


def test_scores_do_not_depend_on_batch_size_order_or_padding(reward):
    scores = reward(*TEXTS, None)
    assert np.ptp(scores) > 0.05
    np.testing.assert_allclose(scores[0], scores[-1], atol=1e-5)
    np.testing.assert_allclose(reward(TEXTS[0][::-1], TEXTS[1][::-1], None)[::-1], scores, atol=1e-5)
    np.testing.assert_allclose(reward(TEXTS[0][1:2], TEXTS[1][1:2], None), scores[1:2], atol=1e-5)
    wider = replace(reward, batch=BatchSettings(512, 128, 128))
    np.testing.assert_allclose(wider(*TEXTS, None), scores, atol=1e-5)


def test_a_long_row_loses_the_end_of_the_source_first(reward):
    def row(source, hypothesis, longest):
        (target,) = reward.reader.examples([source], [hypothesis], BatchSettings(longest, longest, longest)).targets
        return target.tolist()

    whole, cut = (row("word " * 60, "Wort", n) for n in (512, 20))
    assert len(cut) == 20 and cut == whole[:20]
    assert len(row("a", "Wort " * 900, 10**6)) <= reward.reader.settings.max_tokens


def test_a_saved_encoder_scores_the_same(reward, tmp_path):
    reward.save(tmp_path, Calibration((0.0, 1.0), (0.0, 1.0)))
    loaded, _ = LearnedReward.load(tmp_path)
    np.testing.assert_array_equal(loaded(*TEXTS, None), reward(*TEXTS, None))
    assert loaded.identity == reward.identity and loaded.heads == 2


@pytest.fixture(scope="module")
def rated(corpus):
    text = corpus.train.take(slice(0, 40))
    halves = [" ".join(y.split()[:2]) for y in text.references]
    ratings = np.repeat([1.0, 0.0], 40).astype(np.float32)
    return Rated(text.sources * 2, text.references + halves, ratings, np.concatenate([text.ids, text.ids]))


@pytest.mark.parametrize("likelihood", [False, True])
def test_a_reward_learns_from_a_published_encoder(policy, rated, tmp_path, likelihood):
    training = TrainSettings(max_steps=4, evaluate_every=2, schedule=Schedule(1e-3))
    settings = RewardSettings(
        rater=None,
        ratings=(None,),
        start=HuggingFaceEncoder(XLMR_FOLDER, dropout=0.0),
        likelihood=likelihood,
        train=training,
    )
    fitted = fit(policy, rated, settings, BatchSettings(192, 96, 96), folder=tmp_path, seed=0)
    assert fitted.report["pearson_ratings"] > 0.8
    assert (fitted.reward.likelihood is None) == (not likelihood)


def test_a_reward_from_scratch_has_the_sizes_asked_for_and_the_policy_s_tokenizer(policy, rated, batch, tmp_path):
    sizes = TransformerSettings(width=16, heads=2, feed_forward=32, encoder_layers=1, decoder_layers=1)
    training = TrainSettings(max_steps=0)
    settings = RewardSettings(rater=None, ratings=(None,), start=sizes, train=training)
    one, two = (fit(policy, rated, settings, batch, folder=tmp_path / str(seed), seed=seed).reward for seed in (0, 1))
    assert one.reader.settings == sizes and one.reader.tokenizer.identity == policy.tokenizer.identity
    starts = [np.asarray(reward.network.parameters["body"]["embedding"]) for reward in (one, two)]
    assert not np.array_equal(*starts)  # another seed starts elsewhere


def test_a_start_that_is_none_is_refused(policy, rated, batch, tmp_path):
    with pytest.raises(UserError, match=r"reward.start: 'xlmr' is none of"):
        fit(policy, rated, RewardSettings(rater=None, ratings=(None,), start="xlmr"), batch, folder=tmp_path, seed=0)
    with pytest.raises(UserError, match=r"dropout 1.5 must be from 0 to below 1"):
        HuggingFaceEncoder(XLMR_FOLDER, dropout=1.5).read()
    with pytest.raises(UserError, match="no such file"):
        HuggingFaceEncoder(tmp_path).read()
