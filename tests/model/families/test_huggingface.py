"""Checkpoints of Hugging Face: logits equal to PyTorch's, folders written and read back, and what is refused."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from rest.data.tokenizer import MarianTokenizer, Prompt
from rest.errors import UserError
from rest.model.attention import BLOCKED
from rest.model.families.huggingface import HuggingFaceModel, write
from rest.model.positions import distance_buckets
from rest.model.transformer import Transformer
from rest.policy.policy import Policy

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "huggingface"
NAMES = ["marian", "marian_gelu", "marian_two", "t5", "t5_1_1", "mt5", "umt5", "madlad", "m2m100", "mbart"]
VOCABULARY = 70


@pytest.fixture
def copy(folders, tmp_path) -> Path:
    """A Marian folder to corrupt."""
    return shutil.copytree(folders["marian"], tmp_path / "marian")


def corrupt(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@nnx.jit
def forced(net: Transformer, source, mask, target_input) -> jax.Array:
    positions = [jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape) for x in (source, target_input)]
    causal = jnp.tril(jnp.ones((len(source), *(target_input.shape[1],) * 2), bool))
    encoded = net.encode(source, positions[0], mask[:, None])
    return jax.vmap(net.logits)(net.decode(target_input, positions[1], causal, encoded, mask[:, None]))


cross_keys = nnx.jit(lambda net, ids, positions, mask: net.cross_keys(net.encode(ids, positions, mask[:, None])))


@pytest.fixture
def inputs(golden, started):
    """A function: the pairs of a golden model with its logits, and the policy."""

    def read(name: str) -> tuple[Policy, dict[str, np.ndarray]]:
        policy, arrays = started(name), golden(name)
        lengths = arrays["lengths"]
        arrays["mask"] = np.arange(arrays["source"].shape[1])[None] < lengths[:, :1]
        arrays["real"] = np.arange(arrays["target"].shape[1])[None] < lengths[:, 1:]
        arrays["target_input"] = np.insert(arrays["target"], 0, policy.tokenizer.prompt.start, 1)[:, :-1]
        arrays["produced"] = np.arange(VOCABULARY) != policy.tokenizer.pad_id
        return policy, arrays

    return read


def compare(logits: np.ndarray, golden: dict[str, np.ndarray]) -> None:
    """Where a token is wanted, for every id that can be produced."""
    ours, theirs = np.asarray(logits)[golden["real"]], golden["logits"][golden["real"]]
    assert np.ptp(theirs) > 3
    np.testing.assert_allclose(ours[:, :VOCABULARY][:, golden["produced"]], theirs[:, golden["produced"]], atol=1e-4)
    assert (ours[:, ~np.pad(golden["produced"], (0, ours.shape[1] - VOCABULARY))] < BLOCKED / 2).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_pytorch(inputs, name):
    policy, golden = inputs(name)
    compare(forced(policy.network.module, golden["source"], golden["mask"], golden["target_input"]), golden)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_step_by_step_too(inputs, name):
    policy, golden = inputs(name)
    net = policy.network.module
    source, mask = jnp.asarray(golden["source"]), jnp.asarray(golden["mask"])
    positions = jnp.broadcast_to(jnp.arange(source.shape[1])[None], source.shape)
    cross = cross_keys(net, source, positions, mask)
    rows, steps = golden["target_input"].shape
    cache, step, found = net.empty_cache(rows, steps), nnx.jit(Transformer.decode_step), []
    for t, ids in enumerate(golden["target_input"].T):
        slot = jnp.int32((t + 3) % steps)  # the ring may begin anywhere
        logits, cache = step(net, ids, np.full(rows, t), slot, cache, cross, mask)
        found.append(logits)
    compare(np.stack(found, 1), golden)


def test_buckets_of_relative_positions_are_those_of_pytorch():
    with np.load(GOLDEN / "buckets.npz") as golden:
        ahead = golden["distances"]
        for name in set(golden) - {"distances"}:
            kind, buckets, furthest = name.split("_")[0], *map(int, name.split("_")[1:])
            if kind == "causal":
                ours = np.where(ahead > 0, 0, distance_buckets(buckets, furthest)[np.minimum(abs(ahead), furthest)])
            else:
                near = distance_buckets(buckets // 2, furthest)[np.minimum(abs(ahead), furthest)]
                ours = near + np.where(ahead > 0, buckets // 2, 0)
            np.testing.assert_array_equal(ours, golden[name], name)


# Written and read back


@pytest.mark.parametrize("name", ["marian", "marian_gelu"])
def test_what_is_written_of_the_settings_is_what_was_read(folders, name, tmp_path):
    policy = Policy.start(HuggingFaceModel(folders[name]))
    write(tmp_path / "out", policy.network, policy.tokenizer)
    config, wanted = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "out", folders[name]))
    other = {key: value for key, value in config.items() if wanted.get(key, value) != value}
    assert other == {"max_position_embeddings": 1024}


def test_our_policy_is_written_with_padding_last_and_reads_back_with_the_same_logits(
    lively, corpus, tmp_path, teacher_forced
):
    write(tmp_path / "out", lively.network, lively.tokenizer)
    again = Policy.start(HuggingFaceModel(tmp_path / "out"))
    size = lively.tokenizer.vocabulary_size
    assert (again.tokenizer.pad_id, again.tokenizer.eos_id) == (size - 1, 0)
    assert again.tokenizer.pieces == [*lively.tokenizer.pieces[1:], "<pad>"]
    assert again.settings == lively.settings
    for source, reference in zip(corpus.dev.sources[:3], corpus.dev.references[:3], strict=True):
        ids, theirs = lively.encode_references([reference])[0], again.encode_references([reference])[0]
        np.testing.assert_array_equal(theirs, ids - 1)
        ours, found = teacher_forced(lively, source, ids), teacher_forced(again, source, theirs)
        np.testing.assert_allclose(found[:, : size - 1], ours[:, 1:size], atol=1e-5)


@pytest.fixture
def norms_first(lively) -> Policy:
    """A policy of our own in the shape of M2M100."""
    shape = {"norm_first": True, "positions": "fairseq", "output_bias": False, "zero_start": False}
    tokenizer = lively.tokenizer.prompted(Prompt(lively.tokenizer.eos_id))
    return Policy.new(dataclasses.replace(lively.settings, **shape), tokenizer, 0)


def test_our_policy_with_norms_first_is_written_as_an_m2m100_and_reads_back_with_the_same_logits(
    norms_first, corpus, tmp_path, teacher_forced
):
    assert write(tmp_path / "out", norms_first.network, norms_first.tokenizer).name == "M2M100 or NLLB"
    again = Policy.start(HuggingFaceModel(tmp_path / "out"))
    assert (again.tokenizer.eos_id, again.tokenizer.pad_id) == (0, 1)
    assert again.tokenizer.pieces == ["</s>", "<pad>", *norms_first.tokenizer.pieces[2:]]
    assert again.tokenizer.prompt == Prompt(again.tokenizer.eos_id)
    assert again.settings == norms_first.settings
    for source, reference in zip(corpus.dev.sources[:3], corpus.dev.references[:3], strict=True):
        ids, theirs = norms_first.encode_references([reference])[0], again.encode_references([reference])[0]
        ours, found = teacher_forced(norms_first, source, ids), teacher_forced(again, source, theirs)
        np.testing.assert_allclose(found[:, 2:], ours[:, 2:], atol=1e-5)
        np.testing.assert_allclose(found[:, 0], ours[:, 1], atol=1e-5)
    write(tmp_path / "again", again.network, again.tokenizer)
    files = [{path.name: path.read_bytes() for path in (tmp_path / n).iterdir()} for n in ("out", "again")]
    assert files[0] == files[1]


def test_a_folder_is_not_written_of_a_policy_with_the_other_family_s_start(norms_first, lively, tmp_path):
    with pytest.raises(UserError, match=r"decoder of a M2M100 or NLLB folder starts with eos.*tokenizer\.start 'eos'"):
        write(tmp_path / "out", norms_first.network, lively.tokenizer)
    with pytest.raises(UserError, match=r"decoder of a Marian folder starts with padding.*tokenizer\.start 'padding'"):
        write(tmp_path / "out", lively.network, norms_first.tokenizer)
    with pytest.raises(UserError, match="knows no languages"):
        write(tmp_path / "out", norms_first.network, norms_first.tokenizer)
        HuggingFaceModel(tmp_path / "out", target_language="deu_Latn", source_language="eng_Latn").read()


def test_a_policy_of_a_published_model_is_saved_and_loaded(folders, tmp_path):
    for name in ("marian", "t5_1_1"):
        policy = Policy.start(HuggingFaceModel(folders[name], dropout=0.3))
        assert policy.settings.dropout == 0.3
        policy.save(tmp_path / name)
        assert Policy.load(tmp_path / name).identity == policy.identity


# The tokenizer


def test_each_side_has_its_own_pieces(folders, pieces):
    tokenizer = HuggingFaceModel(folders["marian"]).read().tokenizer
    text = "abc fed hag"
    assert tokenizer.encode([text]) != tokenizer.encode_targets([text])
    for encode, model in zip((tokenizer.encode, tokenizer.encode_targets), (pieces(1), pieces(2)), strict=True):
        pieces = [tokenizer.pieces[i] for i in encode([text])[0]]
        assert [piece for piece in pieces if piece != "<unk>"] == [
            model.pieces[i] for i in model.encode([text])[0] if model.pieces[i] in tokenizer.pieces
        ]
    ids = tokenizer.encode_targets([text])
    assert tokenizer.decode([[*ids[0], tokenizer.eos_id, tokenizer.pad_id], []])[1] == ""


def test_ids_and_text_are_those_of_transformers(folders):
    ours = HuggingFaceModel(folders["marian"]).read().tokenizer
    with pytest.warns(UserWarning, match="sacremoses"):
        theirs = transformers.MarianTokenizer.from_pretrained(folders["marian"])
    random = np.random.default_rng(5)
    texts = ["", ">>xyz<< abc", ">>abc<< fed", ">> abc", "Zzz ä"]
    texts += [" ".join("".join(random.choice(list("abcdefgh"), 4)) for _ in range(5)) for _ in range(20)]
    for text in texts:
        assert [*ours.encode([text])[0], ours.eos_id] == theirs(text)["input_ids"]
        assert [*ours.encode_targets([text])[0], ours.eos_id] == theirs(text_target=text)["input_ids"]
    rows = [row for row in ours.encode_targets(texts) if 1 not in row]  # theirs leaves <unk> out
    assert len(rows) > 5
    assert ours.decode(rows) == theirs.batch_decode(rows, skip_special_tokens=True)


def test_the_identity_of_a_tokenizer_is_its_content(marian, tmp_path):
    tokenizer = marian
    tokenizer.save(tmp_path)
    assert tokenizer.identity == MarianTokenizer.load(tmp_path).identity
    first, second = tokenizer.models
    others = [
        MarianTokenizer((second, first), tokenizer.pieces),
        MarianTokenizer(tokenizer.models, [*tokenizer.pieces[:2], "another", *tokenizer.pieces[3:]]),
        MarianTokenizer(tokenizer.models, tokenizer.pieces, tokenizer.pieces),
        tokenizer.prompted(Prompt(tokenizer.pad_id, source=(2,))),
    ]
    assert len({tokenizer.identity, *(other.identity for other in others)}) == 5


def test_a_t5_that_newer_transformers_saved_again_has_the_same_settings(folders, tmp_path):
    before = HuggingFaceModel(folders["t5_1_1"]).read().network.settings
    assert not before.tied_output and not before.scale_output
    folder = shutil.copytree(folders["t5_1_1"], tmp_path / "again")
    corrupt(folder, tie_word_embeddings=True, scale_decoder_outputs=False)
    assert HuggingFaceModel(folder).read().network.settings == before


# Refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "bart"},
            'model_type "bart" cannot be used: what can be read is marian, t5, mt5, umt5, m2m_100',
        ),
        ({"normalize_embedding": True}, "normalize_embedding true cannot be used: it must be false"),
        ({"decoder_vocab_size": 80}, "decoder_vocab_size 80 cannot be used: it must be 70"),
        ({"decoder_attention_heads": 4}, "decoder_attention_heads 4 cannot be used: it must be 2"),
        ({"activation_function": "tanh"}, 'activation_function "tanh" cannot be used: activations are relu, silu'),
        ({"decoder_start_token_id": 0}, "decoder_start_token_id 0 cannot be used: it must be 69"),
        ({"eos_token_id": 5}, "eos_token_id 5 cannot be used: it must be 0"),
        ({"vocab_size": 60, "decoder_vocab_size": 60}, "vocab_size 60 cannot be used: the tokenizer has 70 ids"),
        ({"d_model": None}, "config.json: has no field 'd_model'"),
        ({"encoder_layers": 3}, "no tensor model.encoder.layers.2.self_attn.k_proj.bias, which"),
        ({"encoder_layers": 1}, "tensor model.encoder.layers.1.fc1.bias is not a part of the network"),
        ({"d_model": 24, "encoder_attention_heads": 2}, r"the shape of tensor \S+ is \(16,\), not what"),
    ],
)
def test_a_config_that_is_not_supported_is_refused(copy, fields, message):
    corrupt(copy, **fields)
    with pytest.raises(UserError, match=message):
        HuggingFaceModel(copy).read()


def test_t5_with_another_activation_is_refused(folders, tmp_path):
    folder = shutil.copytree(folders["t5"], tmp_path / "t5")
    corrupt(folder, feed_forward_proj="gated-tanh")
    with pytest.raises(UserError, match='feed_forward_proj "gated-tanh" cannot be used'):
        HuggingFaceModel(folder).read()


def test_a_folder_without_what_is_needed_is_refused(copy):
    (copy / "vocab.json").rename(copy / "kept")
    with pytest.raises(UserError, match=r"vocab\.json: no such file"):
        HuggingFaceModel(copy).read()
    (copy / "vocab.json").write_text('{"</s>": 0, "<unk>": 2, "<pad>": 3}')
    with pytest.raises(UserError, match=r"vocab\.json: its 3 ids are not the numbers from 0 to 2"):
        HuggingFaceModel(copy).read()
    (copy / "vocab.json").write_text('{"</s>": 0, "a": 1, "<pad>": 2}')
    with pytest.raises(UserError, match=r"vocab\.json: has no piece '<unk>'"):
        HuggingFaceModel(copy).read()
    (copy / "kept").rename(copy / "vocab.json")
    (copy / "source.spm").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        HuggingFaceModel(copy).read()
    (copy / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"model\.safetensors: not a safetensors file that can be read"):
        HuggingFaceModel(copy).read()
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: not weights that PyTorch saved: it begins neither"):
        HuggingFaceModel(copy).read()
    (copy / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        HuggingFaceModel(copy).read()
    (copy / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        HuggingFaceModel(copy).read()


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16], ids=["float16", "bfloat16"])
def test_weights_in_several_files_old_copies_and_half_precision_are_read(copy, dtype):
    whole = HuggingFaceModel(copy).read().network.parameters
    tensors = load_file(copy / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.shared.weight"]
    tensors["model.encoder.embed_positions.weight"] = np.zeros((64, 16), np.float32)
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({n: t.astype(dtype) for n, t in tensors.items() if files[n] == file}, copy / file)
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (copy / "model.safetensors").unlink()
    parts = HuggingFaceModel(copy).read().network.parameters
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-2), parts, whole)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(parts)} == {"float32"}


def test_an_output_layer_that_is_not_the_embedding_is_refused_in_marian(copy):
    tensors = load_file(copy / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.shared.weight"] + 1}, copy / "model.safetensors")
    with pytest.raises(UserError, match=r"tensor lm_head\.weight is not the shared embedding"):
        HuggingFaceModel(copy).read()


def test_what_a_marian_folder_cannot_hold_is_not_written(folders, lively, tmp_path):
    t5 = Policy.start(HuggingFaceModel(folders["t5"]))
    rms = Policy.new(dataclasses.replace(lively.settings, norm="rms", heads=1), lively.tokenizer, 0)
    with pytest.raises(UserError, match=re.escape("model.norm 'rms' is not what a Marian folder can hold")):
        write(tmp_path / "out", rms.network, rms.tokenizer)
    with pytest.raises(UserError, match=r"needs SentencePiece models.*HuggingFaceTokenizer"):
        write(tmp_path / "out", lively.network, t5.tokenizer)
    with pytest.raises(UserError, match=r"a T5 folder needs a tokenizer of transformers.*SentencePieceTokenizer"):
        write(tmp_path / "out", t5.network, lively.tokenizer)
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="full: exists already"):
        write(tmp_path / "full", lively.network, lively.tokenizer)
