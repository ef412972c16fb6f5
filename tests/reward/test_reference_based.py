"""Sentence chrF and BLEU against sacreBLEU itself."""

import numpy as np
import pytest
import sacrebleu

from rest.errors import UserError
from rest.reward.reference_based import SentenceBLEU, SentenceChrF

HYPOTHESES = [
    "the cat sat on a mat",
    "a completely other thing",
    "",
    "the cat sat on a mat",
    "Grüße , Welt !",
]
REFERENCES = ["the cat sat on the mat", "nothing of the kind here", "some text", "a mat", "Grüße , Welt !"]
SOURCES = [""] * len(HYPOTHESES)
METRICS = [SentenceChrF(), SentenceChrF(word_order=2), SentenceBLEU()]


@pytest.mark.parametrize("word_order", [0, 2])
def test_chrf_is_that_of_sacrebleu(word_order):
    scores = SentenceChrF(word_order)(SOURCES, HYPOTHESES, REFERENCES)
    pairs = zip(HYPOTHESES, REFERENCES, strict=True)
    expected = [sacrebleu.sentence_chrf(h, [r], word_order=word_order).score for h, r in pairs]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@pytest.mark.parametrize("tokenize", ["13a", "zh", "char"])
@pytest.mark.parametrize("smooth", ["exp", "floor", "add-k", "none"])
def test_bleu_is_that_of_sacrebleu(tokenize, smooth):
    scores = SentenceBLEU(tokenize, smooth=smooth)(SOURCES, HYPOTHESES, REFERENCES)
    pairs = zip(HYPOTHESES, REFERENCES, strict=True)
    expected = [
        sacrebleu.sentence_bleu(h, [r], smooth_method=smooth, tokenize=tokenize, use_effective_order=True).score
        for h, r in pairs
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_case_is_ignored_if_asked():
    texts = [""], ["The Cat sat on it"], ["the cat sat on it"]
    assert SentenceBLEU(lowercase=True)(*texts)[0] == pytest.approx(100)
    assert SentenceBLEU()(*texts)[0] < 100


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_scores_are_float32_on_the_scale(metric):
    scores = metric(SOURCES, HYPOTHESES, REFERENCES)
    low, high = metric.scale
    assert (low, high) == (0, 100) and metric.needs_references
    assert scores.dtype == np.float32 and scores.shape == (len(HYPOTHESES),)
    assert scores[2] == 0 and scores[4] == pytest.approx(100)
    assert (scores >= low).all() and (scores <= high * (1 + 1e-6)).all()
    assert metric([], [], []).shape == (0,)


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_a_score_depends_on_its_row_alone(metric):
    scores = metric(SOURCES, HYPOTHESES, REFERENCES)
    backwards = metric(SOURCES[::-1], HYPOTHESES[::-1], REFERENCES[::-1])
    one_by_one = [metric([s], [h], [r])[0] for s, h, r in zip(SOURCES, HYPOTHESES, REFERENCES, strict=True)]
    assert scores.tolist() == backwards[::-1].tolist() == one_by_one


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_missing_references_are_refused(metric):
    with pytest.raises(UserError, match="this text has none"):
        metric(SOURCES, HYPOTHESES, None)
    with pytest.raises(UserError, match="there are 5, 5 and 4"):
        metric(SOURCES, HYPOTHESES, REFERENCES[1:])


def test_a_negative_word_order_is_refused():
    with pytest.raises(UserError, match="word_order must not be below 0, but is -1"):
        SentenceChrF(word_order=-1)
