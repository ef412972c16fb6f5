"""BERT: ids, hidden states and pooler equal to PyTorch's, its tokenizers, and what is refused."""

import json
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from rest.errors import UserError
from rest.model.families.bert import read_encoder
from rest.model.families.xlmr import XLMR, read_xlmr

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "rewards"
PAIRS = [
    ("the dog sleeps", "der hund schläft"),
    ("a cat", "eine katze sitzt auf der matte"),
    ("good night and see you", "bis morgen"),
    ("no", "nein"),
]


@pytest.fixture(scope="module")
def bert():
    return read_encoder(GOLDEN / "bert", pooler=True)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "bert" / "states.npz") as arrays:
        return {name: a.astype(np.int32) if a.dtype.kind == "i" else a for name, a in arrays.items()}


@pytest.fixture
def copy(tmp_path) -> Path:
    """A folder to change."""
    return shutil.copytree(GOLDEN / "bert", tmp_path / "bert")


def change(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


packed = nnx.jit(XLMR.packed)


def states_of(checkpoint, golden) -> np.ndarray:
    positions = np.arange(golden["ids"].shape[1])[None]
    given = golden["ids"], positions, golden["mask"][:, None], None, golden["segments"]
    return np.stack(packed(checkpoint.network.module, *given))


def test_pairs_are_the_rows_that_its_own_tokenizer_makes(bert, golden):
    settings, tokenizer = bert.network.settings, bert.tokenizer
    sides = [tokenizer.encode([pair[side] for pair in PAIRS]) for side in (0, 1)]
    assert settings.two_segments and settings.max_tokens == 24
    for r, (first, second) in enumerate(zip(*sides, strict=True)):
        ids, segments = settings.pair(first, second, tokenizer.eos_id)
        real = golden["mask"][r]
        assert ids == golden["ids"][r][real].tolist() and segments == golden["segments"][r][real].tolist()
    assert settings.single([7, 8], tokenizer.eos_id) == [settings.bos_id, 7, 8, tokenizer.eos_id]
    assert len(settings.single([7] * 99, tokenizer.eos_id)) == 24


def test_hidden_states_and_pooler_are_those_of_pytorch(bert, golden):
    found, mask = states_of(bert, golden), golden["mask"]
    np.testing.assert_allclose(found[:, mask], golden["states"][:, mask], atol=2e-5)
    assert np.ptp(golden["pooled"], axis=0).min() > 1e-3  # they differ between rows
    pooled = np.tanh(bert.network.module.pooler(jnp.asarray(found[-1][:, 0])))
    np.testing.assert_allclose(pooled, golden["pooled"], atol=2e-5)


def test_a_pooler_is_there_only_where_it_is_read(bert, golden):
    without = read_encoder(GOLDEN / "bert")
    assert without.network.module.pooler is None
    np.testing.assert_array_equal(states_of(without, golden), states_of(bert, golden))


def test_names_that_tensorflow_left_are_read(copy, bert, golden):
    tensors = load_file(copy / "model.safetensors")
    old = {"weight": "gamma", "bias": "beta"}
    renamed = {re.sub(r"(?<=LayerNorm\.)\w+", lambda found: old[found[0]], name): a for name, a in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, copy / "model.safetensors")
    np.testing.assert_array_equal(states_of(read_encoder(copy), golden), states_of(bert, golden))


def test_an_encoder_with_the_tokenizer_of_xlmr_has_its_pairs(copy):
    """As multilingual E5 has it: BERT's network, XLM-R's rows, and padding that config.json does not name."""
    for name in ("vocab.txt", "states.npz"):
        (copy / name).unlink()
    shutil.copy(GOLDEN / "xlmr" / "sentencepiece.bpe.model", copy)
    tensors = load_file(copy / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    save_file(tensors | {name: np.zeros((70, 16), np.float32)}, copy / "model.safetensors")
    change(copy, vocab_size=70)
    network, tokenizer = read_encoder(copy)
    assert not network.settings.two_segments and network.settings.pad_id == tokenizer.pad_id == 1
    assert tokenizer.identity == read_xlmr(GOLDEN / "xlmr").tokenizer.identity
    assert network.settings.pair([5], [6], 2) == ([0, 5, 2, 2, 6, 2], [0] * 6)
    assert network.settings.max_tokens == 24


def test_xlmr_is_read_by_the_same_function():
    one, two = read_encoder(GOLDEN / "xlmr"), read_xlmr(GOLDEN / "xlmr")
    assert one.network.settings == two.network.settings and one.network.identity("") == two.network.identity("")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "roberta"}, 'model_type "roberta" cannot be used: what can be read is bert, xlm-roberta, xlm'),
        ({"position_embedding_type": "relative_key"}, 'position_embedding_type "relative_key" cannot be used'),
        ({"vocab_size": 20}, r"vocab_size 20 cannot be used: the tokenizer has \d+ ids"),
        ({"num_hidden_layers": 1}, "tensor encoder.layer.1.attention.output.LayerNorm.bias is not a part of the net"),
    ],
)
def test_a_config_that_is_not_supported_is_refused(copy, fields, message):
    change(copy, **fields)
    with pytest.raises(UserError, match=message):
        read_encoder(copy)


def test_a_folder_without_what_is_needed_is_refused(copy):
    tensors = load_file(copy / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    save_file(kept, copy / "model.safetensors")
    read_encoder(copy)
    with pytest.raises(UserError, match=r"the weights have no pooler \(pooler.dense.weight\)"):
        read_encoder(copy, pooler=True)
    (copy / "vocab.txt").unlink()
    with pytest.raises(UserError, match=r"tokenizer.json: no such file, nor is there vocab.txt"):
        read_encoder(copy)
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="the tokenizer cannot be read"):
        read_encoder(copy)
