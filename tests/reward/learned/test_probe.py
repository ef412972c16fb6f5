"""The heads fitted alone: as far as the penalty allows, with the one that the ratings held out ask for."""

from dataclasses import replace

import numpy as np
import pytest

from rest.reward.learned.network import LearnedReward
from rest.reward.learned.probe import probe


@pytest.fixture(scope="module")
def texts(corpus):
    return corpus.dev.sources[:20], corpus.dev.references[:20]


def rated(examples, ratings):
    given = {"rating": ratings, "group": np.arange(len(ratings), dtype=np.float32)}
    return replace(examples, columns={**examples.columns, **given})


def unasked(scores):
    raise AssertionError("with one penalty nothing is to be chosen")


def test_the_head_alone_is_fitted_as_far_as_the_penalty_allows(lively, batch, texts):
    new = LearnedReward.new(lively, batch)
    examples = new.examples(*texts)
    ratings = np.asarray([len(ids) for ids in examples.targets], np.float32)
    errors = []
    for penalty in (1e-6, 0.1, 1e6):
        fitted, chosen = probe(new, rated(examples, ratings), examples, (penalty,), unasked)
        assert chosen == penalty
        assert fitted.network.parameters["body"] is new.network.parameters["body"]
        scores = fitted.predict(examples)[:, 0]
        np.testing.assert_allclose(scores.mean(), ratings.mean(), rtol=1e-3)  # the bias is not penalised
        errors.append(np.abs(scores - ratings).mean())
    assert errors[0] < 0.1 < errors[1] < errors[2]
    assert errors[2] == pytest.approx(np.abs(ratings - ratings.mean()).mean(), rel=1e-2)


def test_the_penalty_is_the_first_that_agrees_best_with_what_is_held_out(lively, batch, texts):
    new = LearnedReward.new(lively, batch, heads=2)
    ratings = np.random.default_rng(0).random(len(texts[0])).astype(np.float32)
    training, held_out = rated(new.examples(*texts), ratings), new.examples(texts[1], texts[0])
    looked = []

    def agreement(scores):
        looked.append(scores)
        return (0.1, 0.5, 0.5)[len(looked) - 1]

    found, chosen = probe(new, training, held_out, (1e-6, 0.1, 1e3), agreement)
    assert chosen == 0.1 and len(looked) == 3
    spread = [scores.std() for scores in looked]
    assert spread[0] > spread[1] > spread[2]  # a penalty shrinks
    # what was looked at is what the reward then predicts, and the reward the same as with this penalty alone
    np.testing.assert_allclose(found.predict(held_out).mean(1), looked[1], atol=1e-4)
    assert probe(new, training, held_out, (0.1,), unasked)[0].identity == found.identity
