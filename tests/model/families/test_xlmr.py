"""XLM-R: hidden states equal to PyTorch's, ids equal to SentencePiece's, and what is refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from flax import nnx
from safetensors.numpy import load_file, save_file

from rest.errors import UserError
from rest.model.families.xlmr import XLMR, read_xlmr

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "rewards"


forward = nnx.jit(XLMR.__call__)


def hidden_states(checkpoint, ids, mask) -> np.ndarray:
    """[L + 1, B, S, D]."""
    return np.stack(forward(checkpoint.network.module, ids, mask))


@pytest.fixture(scope="module", params=["xlmr", "xlmr_xl"])
def golden(request):
    """The checkpoint and its arrays."""
    with np.load(GOLDEN / request.param / "states.npz") as arrays:
        return read_xlmr(GOLDEN / request.param), dict(arrays)


@pytest.fixture
def copy(tmp_path) -> Path:
    """A folder to corrupt."""
    return shutil.copytree(GOLDEN / "xlmr", tmp_path / "xlmr")


def test_hidden_states_are_those_of_pytorch(golden):
    checkpoint, arrays = golden
    found = hidden_states(checkpoint, arrays["ids"].astype(np.int32), arrays["mask"])
    assert found.shape == arrays["states"].shape
    mask = arrays["mask"]
    np.testing.assert_allclose(found[:, mask], arrays["states"][:, mask], atol=2e-5)


def test_padding_does_not_change_a_row(golden):
    checkpoint, arrays = golden
    ids, mask = arrays["ids"].astype(np.int32), arrays["mask"]
    wide = np.pad(ids, ((0, 1), (0, 40)), constant_values=7), np.pad(mask, ((0, 1), (0, 40)))
    ours, found = hidden_states(checkpoint, ids, mask), hidden_states(checkpoint, *wide)
    np.testing.assert_allclose(found[:, :-1, : ids.shape[1]][:, mask], ours[:, mask], atol=1e-5)


def test_bfloat16_is_close(golden):
    checkpoint, arrays = golden
    name = "xlmr_xl" if checkpoint.network.settings.norm_first else "xlmr"
    low = read_xlmr(GOLDEN / name, dtype="bfloat16")
    states, mask = hidden_states(low, arrays["ids"].astype(np.int32), arrays["mask"]), arrays["mask"]
    assert str(states.dtype) == "bfloat16"
    difference = np.abs(states.astype(np.float32)[-1][mask] - arrays["states"][-1][mask])
    assert 1e-4 < difference.mean() < 0.05


def test_ids_are_those_of_sentencepiece_moved_by_one(golden):
    tokenizer = golden[0].tokenizer
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(GOLDEN / "xlmr" / "sentencepiece.bpe.model"))
    texts = ["", "the dog  sleeps", "katze\u221e see", " a  very long line "]
    assert tokenizer.encode(texts) == [[i + 1 if i else 3 for i in pieces.encode(text)] for text in texts]
    assert (tokenizer.pad_id, tokenizer.eos_id) == (1, 2)
    assert tokenizer.vocabulary_size == pieces.vocab_size() + 2  # <pad> and <mask>


def test_a_tokenizer_saved_as_rules_gives_the_same_ids(copy):
    tokenizer = read_xlmr(copy).tokenizer
    (copy / "sentencepiece.bpe.model").unlink()
    tokenizer.save(copy)
    assert not (copy / "sentencepiece.bpe.model").exists()
    again = read_xlmr(copy).tokenizer
    texts = ["the dog sleeps", "see\u221e"]
    assert again.encode(texts) == tokenizer.encode(texts)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "bert"}, 'model_type "bert" cannot be used: what can be read is xlm-roberta, xlm-roberta-xl'),
        ({"position_embedding_type": "relative_key"}, 'position_embedding_type "relative_key" cannot be used'),
        ({"is_decoder": True}, "is_decoder true cannot be used: it must be false"),
        ({"hidden_act": "tanh"}, 'hidden_act "tanh" cannot be used: activations are relu, silu'),
        ({"num_attention_heads": 3}, "num_attention_heads 3 cannot be used: the width, 16, is not a multiple of it"),
        ({"pad_token_id": 0}, "pad_token_id 0 cannot be used: it must be 1"),
        ({"vocab_size": 20}, r"vocab_size 20 cannot be used: the tokenizer has \d+ ids"),
        ({"hidden_size": None}, "config.json: has no field 'hidden_size'"),
        ({"num_hidden_layers": 3}, "no tensor encoder.layer.2.attention.self.key.bias, which config.json asks for"),
        ({"num_hidden_layers": 1}, "tensor encoder.layer.1.attention.output.LayerNorm.bias is not a part of the net"),
        ({"max_position_embeddings": 50}, r"shape of tensor embeddings.position_embeddings.weight is \(40, 16\), not"),
    ],
)
def test_a_config_that_is_not_supported_is_refused(copy, fields, message):
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(UserError, match=message):
        read_xlmr(copy)


def test_a_folder_without_what_is_needed_is_refused(copy):
    tensors = load_file(copy / "model.safetensors")
    assert any(name.startswith("lm_head") for name in tensors)  # left out without a word
    save_file(tensors | {"roberta.encoder.odd": np.zeros(1, np.float32)}, copy / "model.safetensors")
    with pytest.raises(UserError, match=re.escape("tensor encoder.odd is not a part of the network")):
        read_xlmr(copy)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: not weights that PyTorch saved: it begins neither"):
        read_xlmr(copy)
    model = copy / "sentencepiece.bpe.model"
    model.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"sentencepiece\.bpe\.model: cannot be read as a tokenizer"):
        read_xlmr(copy)
    model.unlink()
    with pytest.raises(UserError, match=r"sentencepiece\.bpe\.model: no such file, nor is there tokenizer\.json"):
        read_xlmr(copy)
    (copy / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        read_xlmr(copy)
