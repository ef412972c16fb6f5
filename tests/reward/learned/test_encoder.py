"""A reward that starts from a published encoder: what it reads, and that it survives saving."""

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rest.data.batches import BatchSettings, pad
from rest.errors import UserError
from rest.learning.optimizers import Schedule
from rest.learning.train import TrainSettings
from rest.model.families.xlmr import XLMR
from rest.model.layers import TransformerSettings
from rest.reward.learned.encoder import (
    Apart,
    FirstState,
    HuggingFaceEncoder,
    Joint,
    MeanState,
    MixedLayers,
    PooledState,
)
from rest.reward.learned.fit import Rated, fit
from rest.reward.learned.network import LearnedReward
from rest.reward.learned.settings import RewardSettings
from rest.reward.reward import Calibration

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "rewards"
XLMR_FOLDER = GOLDEN / "xlmr"
TEXTS = (
    ["The cat sat.", "A long sentence about nothing at all.", "Yes", "", "The cat sat."],
    ["Die Katze saß.", "Ein Satz.", "", "Ja", "Die Katze saß."],
)


ENCODERS = {
    "joint": HuggingFaceEncoder(XLMR_FOLDER),
    "joint, two segments": HuggingFaceEncoder(GOLDEN / "bert", layers=MixedLayers(), pooling=FirstState()),
    "apart": HuggingFaceEncoder(XLMR_FOLDER, reading=Apart("q: "), layers=MixedLayers()),
    "apart, pooled": HuggingFaceEncoder(GOLDEN / "bert", reading=Apart(), pooling=PooledState()),
}


def a_reward(start: HuggingFaceEncoder) -> LearnedReward:
    """All that training would change is noise, so that each of it counts."""
    room = 24 if start.folder == GOLDEN / "bert" else 96  # what the golden BERT has positions for
    new = LearnedReward.new(start.read(), BatchSettings(2 * room, room, room), heads=2)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=new.network.parameters["head"]["kernel"].shape)
    network = new.network.with_part("head", {"kernel": noise, "bias": np.zeros(2)})
    if "mixture" in network.parameters:
        count = len(network.parameters["mixture"]["weights"])
        network = network.with_part("mixture", {"weights": rng.normal(size=count), "gamma": np.full(1, 1.5)})
    return new.with_network(network)


@pytest.fixture(scope="module", params=ENCODERS.values(), ids=ENCODERS.keys())
def reward(request):
    return a_reward(request.param)


def test_the_first_layers_alone_find_what_they_find_in_the_whole_encoder(tmp_path):
    whole, first = (HuggingFaceEncoder(XLMR_FOLDER, depth=depth).read() for depth in (None, 1))
    layers = first.network.parameters["layers"]
    assert first.settings.layers == len(layers) == 1 < whole.settings.layers == len(whole.network.parameters["layers"])
    ids = pad([whole.tokenizer.encode(["The cat sat."])[0]], 16, 0)
    states = [nnx.jit(XLMR.__call__)(encoder.network.module, ids, ids > 0) for encoder in (whole, first)]
    assert len(states[1]) == 2  # the embedding's and the layer's
    for one, other in zip(states[0], states[1], strict=False):
        np.testing.assert_array_equal(one, other)
    reward = a_reward(HuggingFaceEncoder(XLMR_FOLDER, depth=1))
    reward.save(tmp_path, Calibration((0.0, 1.0), (0.0, 1.0)))
    loaded, _ = LearnedReward.load(tmp_path)
    np.testing.assert_array_equal(loaded(*TEXTS, None), reward(*TEXTS, None))
    with pytest.raises(UserError, match=r"reward.start: depth 9 must be from 1 to 2, the layers of .*xlmr"):
        HuggingFaceEncoder(XLMR_FOLDER, depth=9).read()


WIDE = 96  # as long as the longest of the rows below
packed = nnx.jit(XLMR.packed)


def found_in(reward, rows: list[list[int]], segments: list[list[int]]) -> np.ndarray:
    """What the plain network finds in each row by itself, not packed: [n, D]."""
    module, view, out = reward.network.module, reward.reader.view, []
    for ids, segment in zip(rows, segments, strict=True):
        wide = pad([ids, segment], WIDE, 0)  # one program serves all rows
        mask = np.arange(WIDE)[None, None] < len(ids)
        states = np.stack(packed(module.body, wide[:1], np.arange(WIDE)[None], mask, None, wide[1:]))
        states = states[:, 0, : len(ids)]
        state = states[-1]
        if isinstance(view.layers, MixedLayers):
            weights, gamma = np.exp(module.mixture.weights[...]), np.asarray(module.mixture.gamma[...])
            state = gamma * np.einsum("l,ltd->td", weights / weights.sum(), states)
        first = np.asarray(state)[0]
        match view.pooling:
            case MeanState():
                out.append(np.asarray(state).mean(0))
            case PooledState():
                pooler = module.body.pooler
                out.append(np.tanh(first @ np.asarray(pooler.kernel[...]) + np.asarray(pooler.bias[...])))
            case FirstState():
                out.append(first)
    return np.stack(out)


def test_the_head_reads_what_the_plain_network_finds(reward):
    """Each pair alone, not packed."""
    reader, module = reward.reader, reward.network.module
    settings, eos = reader.settings, reader.tokenizer.eos_id
    if isinstance(reader.view.reading, Apart):
        prefix = reader.view.reading.prefix
        sides = [reader.tokenizer.encode([prefix + text for text in texts]) for texts in TEXTS]
        rows = [[[settings.bos_id, *ids, eos] for ids in side] for side in sides]
        s, h = (found_in(reward, side, [[0] * len(row) for row in side]) for side in rows)
        read = np.concatenate([s, h, np.abs(s - h), s * h], axis=1)
    else:
        x, y = (reader.tokenizer.encode(texts) for texts in TEXTS)
        between = [eos] if settings.two_segments else [eos, eos]
        rows = [[settings.bos_id, *b, *between, *a, eos] for a, b in zip(x, y, strict=True)]
        second = [len(a) + 1 for a in x]
        parts = [[0] * (len(row) - n) + [int(settings.two_segments)] * n for row, n in zip(rows, second, strict=True)]
        read = found_in(reward, rows, parts)
    np.testing.assert_allclose(reward.members(*TEXTS), read @ module.head.kernel[...], atol=2e-4)


def test_hypotheses_that_share_a_source_score_as_alone(reward):
    sources = ["The cat sat.", "Yes", "The cat sat.", "Yes", "The cat sat."]
    alone = [reward([x], [y], None)[0] for x, y in zip(sources, TEXTS[1], strict=True)]
    np.testing.assert_allclose(reward(sources, TEXTS[1], None), alone, atol=1e-5)


def test_scores_do_not_depend_on_batch_size_order_or_padding(reward):
    scores = reward(*TEXTS, None)
    assert np.ptp(scores) > 0.05
    np.testing.assert_allclose(scores[0], scores[-1], atol=1e-5)
    np.testing.assert_allclose(reward(TEXTS[0][::-1], TEXTS[1][::-1], None)[::-1], scores, atol=1e-5)
    np.testing.assert_allclose(reward(TEXTS[0][1:2], TEXTS[1][1:2], None), scores[1:2], atol=1e-5)
    wider = replace(reward, batch=BatchSettings(512, 128, 128))
    np.testing.assert_allclose(wider(*TEXTS, None), scores, atol=1e-5)


def test_a_long_row_loses_the_end_of_the_source_first():
    reward = a_reward(ENCODERS["joint"])

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
    assert loaded.reader.view == reward.reader.view


def test_products_of_an_encoder_are_rounded_where_asked():
    whole, low = (HuggingFaceEncoder(XLMR_FOLDER, products=kind).read() for kind in ("float32", "bfloat16"))
    assert (whole.settings.products, low.settings.products) == ("float32", "bfloat16")
    ids, mask = jnp.arange(4, 12)[None], jnp.ones((1, 8), bool)
    exact, near = (encoder.network.module(ids, mask)[-1] for encoder in (whole, low))
    assert near.dtype == jnp.float32 and not np.array_equal(near, exact)
    np.testing.assert_allclose(near, exact, atol=0.05)


def test_how_an_encoder_is_read_is_part_of_what_a_reward_is():
    starts = [replace(ENCODERS["joint"], reading=reading) for reading in (Joint(), Apart(), Apart("query: "))]
    assert len({LearnedReward.new(start.read(), BatchSettings()).identity for start in starts}) == 3


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
        attacked=0,
        train=training,
    )
    fitted = fit(policy, rated, settings, BatchSettings(192, 96, 96), folder=tmp_path, seed=0)
    assert fitted.report["pearson_ratings"] > 0.8
    assert (fitted.reward.likelihood is None) == (not likelihood)


def test_a_reward_from_scratch_has_the_sizes_asked_for_and_the_policy_s_tokenizer(policy, rated, batch, tmp_path):
    sizes = TransformerSettings(width=16, heads=2, feed_forward=32, encoder_layers=1, decoder_layers=1)
    training = TrainSettings(max_steps=0)
    settings = RewardSettings(rater=None, ratings=(None,), start=sizes, attacked=0, train=training)
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
