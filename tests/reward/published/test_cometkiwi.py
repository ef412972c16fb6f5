"""CometKiwi: scores equal to those of the published forward pass, whatever the batches, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rest.errors import UserError
from rest.reward.published.cometkiwi import CometKiwi, sparsemax
from rest.reward.reward import Reward

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "rewards"
SEGMENTS = json.loads((GOLDEN / "segments.json").read_text())
TINY = CometKiwi(GOLDEN / "cometkiwi")  # sparsemax_patch, post-norm
TINY_XL = CometKiwi(GOLDEN / "cometkiwi_xl", max_tokens=128)  # sparsemax, norms in the mixture, pre-norm, final Sigmoid
SHORT = [0, 1, 2, 3, 5]


def scores_of(metric: CometKiwi) -> dict:
    return json.loads((metric.folder / "scores.json").read_text())


@pytest.fixture
def copy(tmp_path) -> Path:
    """A folder to corrupt."""
    return shutil.copytree(GOLDEN / "cometkiwi", tmp_path / "cometkiwi")


def texts(rows: list[int]) -> tuple[list[str], list[str]]:
    return [SEGMENTS[i][0] for i in rows], [SEGMENTS[i][1] for i in rows]


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "segments"), [(TINY, [*range(6)]), (TINY_XL, SHORT)], ids=["large", "xl"])
def test_scores_are_those_of_the_published_network(metric, segments):
    golden = scores_of(metric)
    rows = metric.rows(*texts(segments))
    assert rows[:4] == golden["rows"]
    assert [len(row) for row in rows] == golden["lengths"]
    found = metric(*texts(segments), None)
    assert found.dtype == np.float32
    assert np.ptp(found) > 0.3
    np.testing.assert_allclose(found, golden["scores"], atol=1e-4)


def test_the_joined_row_loses_the_end_of_the_source_first():
    (row,) = TINY.rows(["ja"], ["a very long line " * 200])
    assert (len(row), row[508:]) == (
        512,
        [TINY.scorer.tokenizer.encode(["a very long line " * 200])[0][507], 2, 2, *row[511:]],
    )
    (row,) = replace(TINY, max_tokens=32).rows(["nein " * 40], ["ja"])
    hypothesis, source = (TINY.scorer.tokenizer.encode([text])[0] for text in ("ja", "nein " * 40))
    assert row == [0, *hypothesis, 2, 2, *source][:32]


@pytest.mark.slow
@pytest.mark.parametrize("metric", [TINY, TINY_XL], ids=["large", "xl"])
def test_scores_do_not_depend_on_batch_size_order_or_padding(metric):
    alone = replace(metric, batch_tokens=1)(*texts(SHORT), None)  # a batch each, as wide as it needs
    for batch_tokens in (100, 8192):
        found = replace(metric, batch_tokens=batch_tokens)(*texts(SHORT), None)
        np.testing.assert_allclose(found, alone, atol=1e-5)
    np.testing.assert_allclose(metric(*texts(SHORT[::-1]), None)[::-1], alone, atol=1e-5)
    if metric is TINY:
        np.testing.assert_allclose(metric(*texts([4, *SHORT]), None)[1:], alone, atol=1e-5)
    assert metric([], [], None).shape == (0,)


@pytest.mark.slow
def test_as_a_reward_what_is_outside_0_and_1_is_clipped():
    scored = Reward(TINY, CometKiwi.scale)(*texts([*range(6)]), None)
    wanted = np.asarray(scores_of(TINY)["scores"])
    np.testing.assert_allclose(scored.reward, np.clip(wanted, 0, 1), atol=1e-4)
    assert scored.clipped == ((wanted < 0) | (wanted > 1)).sum() > 0


@pytest.mark.parametrize(
    ("z", "wanted"),
    [
        ([0.0, 0.0], [0.5, 0.5]),
        ([0.3, 3.0, 0.1], [0, 1, 0]),
        ([0.5, 0.8, -1.0], [0.35, 0.65, 0]),
        ([1.0, 1.2, 0.9, 1.1], [0.2, 0.4, 0.1, 0.3]),
    ],
)
def test_sparsemax_is_the_nearest_distribution(z, wanted):
    np.testing.assert_allclose(sparsemax(jnp.asarray(z, jnp.float32)), wanted, atol=1e-6)


def test_identity_is_what_scores_depend_on(copy):
    assert TINY.identity == replace(TINY, folder=copy, batch_tokens=64).identity
    hparams = json.loads((copy / "hparams.json").read_text())
    (copy / "hparams.json").write_text(json.dumps(hparams | {"layer_norm": True}))
    others = [replace(TINY, max_tokens=256), replace(TINY, folder=copy), replace(TINY, dtype="bfloat16"), TINY_XL]
    assert len({TINY.identity, *(other.identity for other in others)}) == 5


# Refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_identifier": "regression_metric"}, '"regression_metric" cannot be used: what can be read is unified_'),
        (
            {"input_segments": ["mt", "src", "ref"]},
            'input_segments .* cannot be used: what can be read is ."mt", "src".',
        ),
        ({"sent_layer": 12}, "sent_layer 12 cannot be used: what can be read is mix"),
        ({"layer_transformation": "entmax"}, '"entmax" cannot be used: what can be read is softmax, sparsemax, spa'),
        ({"activations": "Mish"}, 'activations "Mish" cannot be used: what can be read is Tanh, Sigmoid, ReLU'),
        ({"final_activation": "Mish"}, 'final_activation "Mish" cannot be used'),
        ({"word_level_training": True}, "word_level_training true cannot be used: it must be false"),
        ({"layer_norm": None}, r"hparams\.json: has no field 'layer_norm'"),
        ({"hidden_sizes": [12, 8, 4]}, r"shape of tensor estimator\.ff\.6\.bias is \(1,\), not what config\.json asks"),
        ({"hidden_sizes": [12, 8, 1, 4]}, r"no tensor estimator\.ff\.9\.bias, which config\.json asks for"),
    ],
)
def test_hparams_that_are_not_supported_are_refused(copy, fields, message):
    path = copy / "hparams.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(UserError, match=message):
        CometKiwi(copy)(*texts(SHORT), None)


def test_a_folder_without_what_is_needed_is_refused(copy):
    metric = CometKiwi(copy)
    tensors = load_file(copy / "model.safetensors")
    assert "layerwise_attention.dropout_fill" in tensors  # left out without a word
    save_file(tensors | {"hidden2tag.weight": np.zeros(1, np.float32)}, copy / "model.safetensors")
    with pytest.raises(UserError, match=r"tensor hidden2tag\.weight is not a part of the network"):
        metric(*texts(SHORT), None)
    del tensors["layerwise_attention.gamma"]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(UserError, match=r"no tensor layerwise_attention\.gamma, which config\.json asks for"):
        metric(*texts(SHORT), None)
    (copy / "hparams.json").unlink()
    with pytest.raises(UserError, match=r"hparams\.json: no such file"):
        metric(*texts(SHORT), None)


def test_lengths_and_limits_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="must be as many, but there are 1, 2 and no"):
        TINY(["a"], ["b", "c"], None)
    with pytest.raises(UserError, match="max_tokens 512 is not between 8 and 128"):
        replace(TINY_XL, max_tokens=512)(["a"], ["b"], None)
