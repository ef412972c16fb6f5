"""Embeddings of sentences by an encoder, and pairs that are no translations by them."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from rest.data.batches import pad
from rest.errors import UserError
from rest.model.families.bert import read_encoder
from rest.model.families.xlmr import XLMR
from rest.reward.embedding import EmbeddingCosine
from rest.reward.learned.encoder import FirstState, PooledState
from rest.reward.learned.sentences import NonTranslations, SentenceEmbeddings
from rest.reward.reward import identify

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "rewards"
TEXTS = ["the dog", "katze sitzt auf der matte", "", "the dog", "no " * 40]


@pytest.fixture(scope="module")
def embed():
    return SentenceEmbeddings(GOLDEN / "xlmr", prefix="no ", batch_tokens=128, max_tokens=20)


def test_an_embedding_is_the_mean_state_of_the_text_alone(embed):
    network, tokenizer = read_encoder(GOLDEN / "xlmr")
    found = embed(TEXTS)
    assert found.shape == (5, 16) and found.dtype == np.float32
    forward = nnx.jit(XLMR.__call__)
    for vector, ids in zip(found, tokenizer.encode(["no " + text for text in TEXTS]), strict=True):
        row = [0, *ids[:18], 2]
        states = forward(network.module, pad([row], 20, 1), np.arange(20)[None] < len(row))[-1]
        np.testing.assert_allclose(vector, np.asarray(states)[0, : len(row)].mean(0), atol=1e-5)


def test_a_text_is_encoded_once(embed, monkeypatch):
    found, asked = embed(TEXTS), []
    encode = SentenceEmbeddings._encode

    def watched(self, texts):
        asked.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(SentenceEmbeddings, "_encode", watched)
    again = embed(["new", *TEXTS, "new"])
    assert asked == ["new"]
    np.testing.assert_array_equal(again[1:6], found)
    np.testing.assert_array_equal(again[0], again[6])
    assert embed([]).shape == (0, 16)


def test_what_is_remembered_does_not_grow_without_end(monkeypatch):
    monkeypatch.setattr("rest.reward.learned.sentences.REMEMBERED", 2)
    embed = SentenceEmbeddings(GOLDEN / "xlmr")
    assert len(embed(["no", "the", "dog"])) == 3 and len(embed._known) == 2
    np.testing.assert_allclose(embed(["no", "dog"]), embed(["dog", "no"])[::-1])


def test_poolings_differ_and_are_part_of_the_identity():
    kinds = [SentenceEmbeddings(GOLDEN / "bert", max_tokens=24, pooling=kind) for kind in (FirstState(), PooledState())]
    first, pooled = (kind(["the dog"]) for kind in kinds)
    pooler = kinds[1].encoder.network.module.pooler
    kernel, bias = np.asarray(pooler.kernel[...]), np.asarray(pooler.bias[...])
    np.testing.assert_allclose(pooled, np.tanh(first @ kernel + bias), atol=1e-5)
    assert len({identify(kind) for kind in kinds}) == 2


def test_they_are_what_a_utility_may_compare(embed):
    utility = EmbeddingCosine(embed).prepared(TEXTS)
    found = utility.pairs("x", TEXTS[:2], TEXTS)
    np.testing.assert_allclose(found[0, [0, 3]], 1, atol=1e-6)
    assert len(np.unique(found.round(5))) > 5


# Sentences that are points on a circle, of which the other language has the same.


def on_a_circle(texts) -> np.ndarray:
    degrees = np.radians([float(text[1:]) for text in texts])
    return np.stack([np.cos(degrees), np.sin(degrees)], 1).astype(np.float32)


def test_margins_by_hand():
    """Of each side's two nearest, the partner among them: equation 2 with k = 2."""
    cosines, margins = NonTranslations(on_a_circle, neighbours=2).scores(["s0", "s90"], ["t0", "t60"])
    c = np.cos(np.radians([0, 30, 60, 90]))
    np.testing.assert_allclose(cosines, [c[0], c[1]], atol=1e-6)
    # s0: 1 and cos 60; t0: 1 and cos 90; s90: cos 30 and cos 90; t60: cos 30 and cos 60
    wanted = [1 / ((1 + c[2] + 1 + c[3]) / 4), c[1] / ((c[1] + c[3] + c[1] + c[2]) / 4)]
    np.testing.assert_allclose(margins, wanted, rtol=1e-5)


@pytest.mark.parametrize("among", [5, 10_000])
def test_pairs_that_do_not_belong_together_are_found(among):
    degrees = np.arange(0, 360, 9)
    sources, references = [f"s{d}" for d in degrees], [f"t{d}" for d in degrees]
    wrong = np.arange(len(degrees)) % 10 == 3
    references = np.where(wrong, np.roll(references, 11), references).tolist()
    find = NonTranslations(on_a_circle, among=among)
    np.testing.assert_array_equal(find(sources, references), wrong)
    by_cosine = NonTranslations(on_a_circle, least_margin=None, least_cosine=0.5)
    np.testing.assert_array_equal(by_cosine(sources, references), wrong)
    assert not NonTranslations(on_a_circle, least_margin=None)(sources, references).any()


def test_wrong_input_is_refused():
    assert NonTranslations(on_a_circle)([], []).shape == (0,)
    assert NonTranslations(on_a_circle).scores(["s0"], ["t0"])[1].tolist() == [1.0]
    with pytest.raises(UserError, match="1 sources and 2 references are no pairs"):
        NonTranslations(on_a_circle)(["s0"], ["t0", "t1"])
    with pytest.raises(UserError, match="neighbours 4 must be at least 1 and at most among 3"):
        NonTranslations(on_a_circle, among=3)


MODEL, DATA = os.environ.get("REST_E5_SMALL"), os.environ.get("REST_MULTI30K")


@pytest.mark.skipif(not (MODEL and DATA), reason="REST_E5_SMALL and REST_MULTI30K name no folders")
def test_a_real_encoder_finds_translations():
    """Multilingual E5 small and the first 100 sentences of Multi30k's test set."""
    sides = []
    for side in ("de", "en"):
        with gzip.open(Path(DATA or "") / f"test_2016_flickr.{side}.gz", "rt", encoding="utf8") as file:
            sides.append([line.strip() for line in file][:100])
    embed = SentenceEmbeddings(MODEL or "", prefix="query: ")
    x, y = (embed(texts) for texts in sides)
    cosines = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (y / np.linalg.norm(y, axis=1, keepdims=True)).T
    assert min((cosines.argmax(axis) == np.arange(100)).mean() for axis in (0, 1)) > 0.95
    shuffled = sides[1][:50] + np.roll(sides[1][50:], 1).tolist()
    found = NonTranslations(embed)(sides[0], shuffled)
    assert found[:50].mean() < 0.1 and found[50:].mean() > 0.9
