"""MetricX: scores equal to those of the published forward pass, whatever the batches, and what is refused."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rest.errors import UserError
from rest.reward.published.metricx import METRICX_23, METRICX_23_QE, METRICX_24, METRICX_24_QE, MetricX
from rest.reward.reward import Reward

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "rewards"
FORMS = {
    "METRICX_23": METRICX_23,
    "METRICX_23_QE": METRICX_23_QE,
    "METRICX_24": METRICX_24,
    "METRICX_24_QE": METRICX_24_QE,
}
SOURCES, HYPOTHESES, REFERENCES = map(list, zip(*json.loads((GOLDEN / "segments.json").read_text()), strict=True))
SCORES = json.loads((GOLDEN / "metricx" / "scores.json").read_text())
TINY = MetricX(GOLDEN / "metricx", score_id=12)
SHORT = [0, 1, 2, 3, 5]


@pytest.fixture
def copy(tmp_path) -> Path:
    """A folder to corrupt."""
    return shutil.copytree(GOLDEN / "metricx", tmp_path / "metricx")


def score(metric: MetricX, rows: list[int]) -> np.ndarray:
    return metric([SOURCES[i] for i in rows], [HYPOTHESES[i] for i in rows], None)


@pytest.mark.parametrize("name", FORMS)
def test_scores_are_the_published_errors_negated(name):
    metric = replace(TINY, form=FORMS[name])
    rows = metric.rows(SOURCES, HYPOTHESES, REFERENCES)
    assert rows[:4] == SCORES[name]["rows"]
    assert [len(row) for row in rows] == SCORES[name]["lengths"]
    assert max(SCORES[name]["lengths"]) == FORMS[name].max_tokens - 1  # one of them is cut
    found = metric(SOURCES, HYPOTHESES, REFERENCES)
    assert found.dtype == np.float32
    assert np.ptp(found) > 1
    np.testing.assert_allclose(found, -np.asarray(SCORES[name]["scores"]["12"]), atol=1e-4)
    assert metric.needs_references == (name in ("METRICX_23", "METRICX_24"))


def test_errors_end_at_0_and_25():
    wanted = np.asarray(SCORES["METRICX_24_QE"]["scores"]["13"])
    assert {0.0, 25.0} <= set(wanted)
    found = replace(TINY, score_id=13)(SOURCES, HYPOTHESES, None)
    np.testing.assert_array_equal(found == 0, wanted == 0)
    np.testing.assert_array_equal(found == -25, wanted == 25)
    assert not np.signbit(found[found == 0]).any()


def test_scores_do_not_depend_on_batch_size_order_or_padding():
    alone = score(replace(TINY, batch_tokens=1), SHORT)  # a batch each, as wide as it needs
    for batch_tokens in (100, 8192):
        np.testing.assert_allclose(score(replace(TINY, batch_tokens=batch_tokens), SHORT), alone, rtol=2e-6, atol=1e-5)
    np.testing.assert_allclose(score(TINY, SHORT[::-1])[::-1], alone, rtol=2e-6, atol=1e-5)
    np.testing.assert_allclose(score(TINY, [4, *SHORT])[1:], alone, rtol=2e-6, atol=1e-5)
    assert score(TINY, []).shape == (0,)


def test_as_a_reward_a_lower_error_is_better():
    scored = Reward(TINY, MetricX.scale)(SOURCES, HYPOTHESES, None)
    np.testing.assert_allclose(scored.reward, 1 - np.asarray(SCORES["METRICX_24_QE"]["scores"]["12"]) / 25, atol=1e-5)
    assert scored.clipped == 0


def test_bfloat16_is_close():
    low = score(replace(TINY, dtype="bfloat16"), SHORT)
    assert 1e-4 < np.abs(low - score(TINY, SHORT)).max() < 0.5


def test_identity_is_what_scores_depend_on(copy):
    assert TINY.identity == replace(TINY, folder=copy, batch_tokens=64).identity
    tensors = load_file(copy / "model.safetensors")
    tensors["lm_head.weight"][12] *= 2
    save_file(tensors, copy / "model.safetensors")
    others = [replace(TINY, form=METRICX_23_QE), replace(TINY, score_id=13), replace(TINY, folder=copy)]
    assert len({TINY.identity, *(other.identity for other in others)}) == 4
    tensors["lm_head.weight"][12] /= 2
    tensors["lm_head.weight"][20] += 1  # a row that is never read
    save_file(tensors, copy / "model.safetensors")
    assert replace(TINY, folder=copy).identity == TINY.identity


def test_the_tokenizer_may_be_in_another_folder(copy, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    for name in ("spiece.model", "tokenizer_config.json"):
        (copy / name).rename(tmp_path / "tokenizer" / name)
    assert replace(TINY, folder=copy, tokenizer=tmp_path / "tokenizer").identity == TINY.identity


def test_braces_in_a_text_are_text():
    pieces = replace(TINY, form=METRICX_24_QE).rows(["{hypothesis}"], ["{0} %s"], None)
    assert pieces == TINY.scorer.tokenizer.encode(["source: {hypothesis} candidate: {0} %s"])


# Refused


def test_texts_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="compares with references, but this text has none: choose a QE form"):
        replace(TINY, form=METRICX_23)(SOURCES, HYPOTHESES, None)
    with pytest.raises(UserError, match="must be as many, but there are 6, 1 and no"):
        TINY(SOURCES, HYPOTHESES[:1], None)
    with pytest.raises(UserError, match="must be as many, but there are 6, 6 and 5"):
        TINY(SOURCES, HYPOTHESES, REFERENCES[:5])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "t5"}, r'config\.json: model_type "t5" cannot be used: it must be "mt5"'),
        ({"feed_forward_proj": "gated-tanh"}, 'feed_forward_proj "gated-tanh" cannot be used'),
        ({"decoder_start_token_id": 5}, "decoder_start_token_id 5 cannot be used: it must be 0"),
        (
            {"num_layers": 3},
            r"no tensor encoder\.block\.2\.layer\.0\.SelfAttention\.k\.weight, which config\.json asks",
        ),
    ],
)
def test_a_config_that_is_not_supported_is_refused(copy, fields, message):
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(UserError, match=message):
        score(replace(TINY, folder=copy), SHORT)


def test_a_folder_without_what_is_needed_is_refused(copy):
    metric = replace(TINY, folder=copy)
    with pytest.raises(UserError, match=r"vocab_size 72 cannot be used: the tokenizer has 60 ids, and 250089 scores"):
        score(MetricX(copy), SHORT)
    tensors = load_file(copy / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(UserError, match=re.escape("the weights have no tensor lm_head.weight of their own")):
        score(metric, SHORT)
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        score(metric, SHORT)
    (copy / "spiece.model").unlink()
    with pytest.raises(
        UserError, match=r"spiece\.model: no such file, nor is there tokenizer\.json; `tokenizer` may name"
    ):
        score(metric, SHORT)
    (copy / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        score(metric, SHORT)
