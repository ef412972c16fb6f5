"""Published checkpoints in and out: folders as Hugging Face `transformers` reads and writes them, without PyTorch.

Read are Marian (OPUS-MT), T5 (1.0, 1.1, Flan) and mT5; a network that is laid out as Marian, our default, is written.
State names and layouts are those of transformers' modeling_marian.py and modeling_t5.py, and tests hold the logits to
PyTorch's. M2M100 and NLLB are refused: their sinusoids have other rates and start at 2, the output has no bias, and
every translation is forced to begin with the token of its language, which sampling, beam search and losses would have
to leave out of the log-probabilities.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from safetensors.numpy import save_file

from rest.data.tokenizer import HuggingFaceSettings, MarianTokenizer, SentencePieceTokenizer, Tokenizer
from rest.errors import UserError
from rest.folder import write_json
from rest.model.families.files import ACTIVATIONS, Config, Place, fill, read_tensors, refuse_left
from rest.model.layers import BLOCKED, TransformerSettings
from rest.model.network import Network
from rest.model.transformer import Transformer

MARIAN = {  # our word for a part of a layer, and theirs
    "attention": "self_attn",
    "attention_norm": "self_attn_layer_norm",
    "cross": "encoder_attn",
    "cross_norm": "encoder_attn_layer_norm",
    "feed_forward": "",
    "feed_forward_norm": "final_layer_norm",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "output": "out_proj",
    "inner": "fc1",
    "outer": "fc2",
    "kernel": "weight",
    "scale": "weight",
}
T5 = {
    "attention": "layer.0.SelfAttention",
    "attention_norm": "layer.0.layer_norm",
    "cross": "layer.1.EncDecAttention",
    "cross_norm": "layer.1.layer_norm",
    "query": "q",
    "key": "k",
    "value": "v",
    "output": "o",
    "gate": "wi_1",
    "outer": "wo",
    "kernel": "weight",
    "scale": "weight",
}
VOCABULARY_WIDE = ("embedding", "output", "output_bias")  # parameters with a row for each id
COPIES = (  # of the embedding, in older files
    "lm_head.weight",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
)
UNUSED = (  # follow from the settings, or are never read
    "model.encoder.embed_positions.weight",
    "model.decoder.embed_positions.weight",
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",  # old T5 files
)


class Checkpoint(NamedTuple):
    """What makes a policy."""

    network: Network
    tokenizer: Tokenizer


@dataclass(frozen=True)
class HuggingFaceModel:
    """A published model with its tokenizer, from a folder: Marian (OPUS-MT), T5 or mT5."""

    folder: Path
    """config.json, model.safetensors and the tokenizer's files."""
    dropout: float | None = None
    """While training; None: what config.json says."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and matrix products."""

    def read(self, tokenizer_folder: Path | None = None) -> Checkpoint:
        """The network and its tokenizer, whose files may be in another folder."""
        config = Config.read(self.folder / "config.json")
        readers = {"marian": _marian_settings, "t5": _t5_settings, "mt5": _t5_settings}
        read_settings = config.choose("model_type", readers)
        tensors = read_tensors(self.folder, "AutoModelForSeq2SeqLM")
        settings = read_settings(config, tensors)
        tokenizer = HuggingFaceSettings(str(tokenizer_folder or self.folder)).train([], 0)
        for name, wanted in {"pad_token_id": tokenizer.pad_id, "eos_token_id": tokenizer.eos_id}.items():
            config.demand(name, wanted)
        config.demand("decoder_start_token_id", tokenizer.pad_id)
        if tokenizer.vocabulary_size > config["vocab_size"]:
            config.refuse("vocab_size", f"the tokenizer has {tokenizer.vocabulary_size} ids")
        dropout = settings.dropout if self.dropout is None else self.dropout
        settings = dataclasses.replace(settings, dtype=self.dtype, dropout=dropout)
        return Checkpoint(_filled(self.folder, settings, tokenizer, tensors), tokenizer)


def _marian_settings(config: Config, tensors: Mapping[str, np.ndarray]) -> TransformerSettings:
    for name in ("share_encoder_decoder_embeddings", "tie_word_embeddings", "static_position_embeddings"):
        config.demand(name, True)
    for name in ("normalize_before", "normalize_embedding", "add_final_layer_norm"):
        config.demand(name, False)
    config.demand("decoder_vocab_size", config["vocab_size"])
    for name in ("attention_heads", "ffn_dim"):
        config.demand(f"decoder_{name}", config[f"encoder_{name}"])
    embedding = tensors.get("model.shared.weight")
    return TransformerSettings(
        width=config["d_model"],
        heads=config["encoder_attention_heads"],
        feed_forward=config["encoder_ffn_dim"],
        encoder_layers=config["encoder_layers"],
        decoder_layers=config["decoder_layers"],
        dropout=config.get("dropout", 0.1),
        activation=config.activation("activation_function", config.get("activation_function", "gelu")),
        scale_embedding=config.get("scale_embedding", False),
        # Marian starts from a zero embedding, and publishes it as that of padding; fine-tuning may have changed it
        zero_start=embedding is None or not embedding[config["pad_token_id"]].any(),
    )


def _t5_settings(config: Config, tensors: Mapping[str, np.ndarray]) -> TransformerSettings:
    feed_forward = config.get("feed_forward_proj", "relu" if config["model_type"] == "t5" else "gated-gelu")
    gated, activation = feed_forward.startswith("gated-"), feed_forward.removeprefix("gated-")
    if feed_forward == "gated-gelu":
        activation = "gelu_new"
    head = tensors.get("lm_head.weight")
    tied = head is None or np.array_equal(head, tensors.get("shared.weight", ()))
    # As transformers decides it: T5 scales unless its file says that the output is not tied, mT5 never does.
    scaled = config["model_type"] == "t5" and config.get("tie_word_embeddings", True)
    return TransformerSettings(
        width=config["d_model"],
        heads=config["num_heads"],
        head_width=config["d_kv"],
        feed_forward=config["d_ff"],
        encoder_layers=config["num_layers"],
        decoder_layers=config.get("num_decoder_layers", config["num_layers"]),
        dropout=config.get("dropout_rate", 0.1),
        activation=config.activation("feed_forward_proj", activation),
        gated=gated,
        norm="rms",
        norm_first=True,
        norm_epsilon=config.get("layer_norm_epsilon", 1e-6),
        biases=False,
        positions="relative",
        relative_buckets=config.get("relative_attention_num_buckets", 32),
        relative_distance=config.get("relative_attention_max_distance", 128),
        scale_embedding=False,
        scale_attention=False,
        scale_output=config.get("scale_decoder_outputs", scaled),
        tied_output=tied,
        zero_start=False,
    )


def _state_name(settings: TransformerSettings, path: tuple[Any, ...]) -> str:
    """Where transformers keeps the parameter at `path` of ours."""
    relative = settings.positions == "relative"
    match path:
        case ("embedding",):
            return "shared.weight" if relative else "model.shared.weight"
        case ("output",):
            return "lm_head.weight"
        case ("output_bias",):
            return "final_logits_bias"
        case ("encoder_norm" | "decoder_norm" as norm, _):
            return f"{norm.removesuffix('_norm')}.final_layer_norm.weight"
        case ("encoder_positions" | "decoder_positions" as positions, _):
            side = positions.removesuffix("_positions")
            return f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        case (side, layer, *rest):
            pass
    if relative:
        last = 1 if side == "encoder" else 2
        words = T5 | {
            "feed_forward": f"layer.{last}.DenseReluDense",
            "feed_forward_norm": f"layer.{last}.layer_norm",
            "inner": "wi_0" if settings.gated else "wi",
        }
        parts = [side, "block", str(layer)]
    else:
        words, parts = MARIAN, ["model", side, "layers", str(layer)]
    return ".".join(part for part in [*parts, *(words.get(word, word) for word in rest)] if part)


def _filled(
    folder: Path, settings: TransformerSettings, tokenizer: Tokenizer, tensors: Mapping[str, np.ndarray]
) -> Network:
    """Our network with their parameters; refuses a tensor that is missing, has another shape, or is left over."""
    vocabulary, pad_id = tokenizer.vocabulary_size, tokenizer.pad_id

    def adapt(keys: Place, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if keys == ("output_bias",):
            array = np.where(np.arange(array.size) == pad_id, 0, array.reshape(-1))
        if keys[0] in VOCABULARY_WIDE and len(array) >= vocabulary:
            rows = array[:vocabulary]  # what they have beyond is never produced, nor is what ours is filled up with
            array = np.concatenate([rows, np.zeros((shape[0] - vocabulary, *rows.shape[1:]), np.float32)])
        return array

    empty = Network.shaped(settings, lambda rngs: Transformer(settings, vocabulary, pad_id=pad_id, rngs=rngs))
    network, left = fill(folder, empty, tensors, partial(_state_name, settings), adapt)
    embedding = tensors[_state_name(settings, ("embedding",))]
    for name, tensor in left.items():
        if name in COPIES and not np.array_equal(tensor, embedding):
            raise UserError(
                f"{folder}: tensor {name} is not the shared embedding, and other embeddings are not supported"
            )
        if name not in COPIES + UNUSED:
            refuse_left(folder, name)
    return network


def write_marian(folder: Path, network: Network, tokenizer: Tokenizer) -> None:
    """Write a folder that `transformers` opens as MarianMTModel and MarianTokenizer, and that CTranslate2 converts.

    Padding becomes the last id, as in every OPUS-MT model: CTranslate2 takes the last row for padding's and drops it.
    """
    settings: TransformerSettings = network.settings
    _refuse_unlike_marian(settings)
    if not isinstance(tokenizer, SentencePieceTokenizer | MarianTokenizer):
        raise UserError(
            f"export: a Marian folder needs SentencePiece models, and this policy has none ({type(tokenizer).__name__})"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists already; choose another folder")
    order = np.arange(tokenizer.vocabulary_size)
    order = np.append(order[order != tokenizer.pad_id], tokenizer.pad_id)
    pieces = [tokenizer.pieces[i] for i in order]
    theirs = MarianTokenizer(tokenizer.models, pieces)

    tensors = {}
    for path, leaf in jax.tree.leaves_with_path(network.parameters):
        keys = tuple(part.key for part in path)
        array = np.array(leaf, np.float32)
        if keys == ("embedding",) and settings.zero_start:
            array[tokenizer.pad_id] = 0
        if keys == ("output_bias",):
            array[tokenizer.pad_id] = BLOCKED
        if keys[0] in VOCABULARY_WIDE:
            array = array[order]
        if keys == ("output_bias",):
            array = array[None]
        tensors[_state_name(settings, keys)] = np.ascontiguousarray(array.T if keys[-1] == "kernel" else array)

    folder.mkdir(parents=True, exist_ok=True)
    theirs.save(folder)
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "MarianTokenizer", "separate_vocabs": False} | special
    )
    ids = {"pad_token_id": theirs.pad_id, "eos_token_id": theirs.eos_id, "decoder_start_token_id": theirs.pad_id}
    generation = {"bad_words_ids": [[theirs.pad_id]], "forced_eos_token_id": theirs.eos_id, "max_length": 512}
    write_json(folder / "generation_config.json", ids | generation)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    mode = (folder / "generation_config.json").stat().st_mode
    (folder / "model.safetensors").chmod(mode)  # save_file writes it for its owner alone
    write_json(folder / "config.json", _marian_config(settings, theirs.vocabulary_size) | ids)


def _refuse_unlike_marian(settings: TransformerSettings) -> None:
    marian = TransformerSettings(
        width=settings.width, heads=settings.heads, head_width=settings.width // settings.heads
    )
    for name in (
        "norm",
        "norm_first",
        "gated",
        "biases",
        "positions",
        "scale_attention",
        "scale_output",
        "tied_output",
    ):
        if getattr(settings, name) != getattr(marian, name):
            raise UserError(f"export: model.{name} {getattr(settings, name)!r} is not what a Marian folder can hold")
    if settings.head_width not in (None, marian.head_width):
        raise UserError(f"export: model.head_width {settings.head_width} is not what a Marian folder can hold")
    if settings.norm_epsilon not in (None, 1e-5):
        raise UserError(f"export: model.norm_epsilon {settings.norm_epsilon} is not what a Marian folder can hold")


def _marian_config(settings: TransformerSettings, vocabulary_size: int) -> dict[str, Any]:
    sides = {
        f"{side}_{name}": value
        for side, layers in (("encoder", settings.encoder_layers), ("decoder", settings.decoder_layers))
        for name, value in (
            ("layers", layers),
            ("attention_heads", settings.heads),
            ("ffn_dim", settings.feed_forward),
        )
    }
    return {
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        "is_encoder_decoder": True,
        "dtype": "float32",
        "vocab_size": vocabulary_size,
        "decoder_vocab_size": vocabulary_size,
        "d_model": settings.width,
        **sides,
        "activation_function": {ours: theirs for theirs, ours in ACTIVATIONS.items()}[settings.activation],
        "dropout": settings.dropout,
        "scale_embedding": settings.scale_embedding,
        "max_position_embeddings": 1024,
        "normalize_before": False,
        "normalize_embedding": False,
        "static_position_embeddings": True,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
    }
