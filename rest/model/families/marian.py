"""Marian (Junczys-Dowmunt et al. 2018), as OPUS-MT publishes it, in and out; the layout of our own networks too.

State names and layouts are those of transformers' modeling_marian.py. Both sides share one embedding, or have one each
with a vocabulary each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from rest.data.tokenizer import MarianTokenizer, Prompt, SentencePieceTokenizer, Tokenizer
from rest.errors import UserError
from rest.folder import write_json
from rest.model.attention import BLOCKED
from rest.model.families.bart import EMBEDDINGS, SINUSOIDS, read_sizes, tensor_name, write_sizes
from rest.model.families.family import Family, Tensors, told_target
from rest.model.families.files import Config
from rest.model.layers import TransformerSettings
from rest.model.network import Network


def _read(config: Config, tensors: Tensors) -> TransformerSettings:
    shared = config.get("share_encoder_decoder_embeddings", True)
    if shared:
        config.demand("decoder_vocab_size", config["vocab_size"])
        config.demand("tie_word_embeddings", True)
    config.demand("static_position_embeddings", True)
    config.demand("decoder_start_token_id", config["pad_token_id"])
    for name in ("normalize_before", "normalize_embedding", "add_final_layer_norm"):
        config.demand(name, False)
    embedding = tensors.get(EMBEDDINGS[0] if shared else EMBEDDINGS[2])
    output = None if shared else tensors.get("lm_head.weight")
    return TransformerSettings(
        **read_sizes(config, "gelu", scale_embedding=False),
        encoder_vocabulary=None if shared else config["vocab_size"],
        tied_output=output is None or embedding is None or np.array_equal(output, embedding),
        # Marian starts from a zero embedding, and publishes it as that of padding; fine-tuning may have changed it
        zero_start=embedding is None or not embedding[config["pad_token_id"]].any(),
    )


def _write(settings: TransformerSettings) -> dict[str, Any]:
    return {
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        **write_sizes(settings),
        "max_position_embeddings": 1024,
        "normalize_before": False,
        "normalize_embedding": False,
        "static_position_embeddings": True,
        "share_encoder_decoder_embeddings": settings.encoder_vocabulary is None,
    }


MARIAN = Family(
    name="Marian",
    read_settings=_read,
    write_settings=_write,
    tensor_name=tensor_name,
    embedding_names=EMBEDDINGS,
    unused=SINUSOIDS,
    prompt=told_target,
    language=">>([A-Za-z_]+)<<",
)


def as_marian(network: Network, tokenizer: Tokenizer) -> tuple[Network, MarianTokenizer]:
    """The same with padding as the last id, as in every OPUS-MT model: CTranslate2 takes the last row for padding's.

    Padding cannot be produced, and starts the decoder as nothing where the network has it so.
    """
    known = with_pieces(MARIAN, tokenizer, "padding")
    order = np.arange(known.vocabulary_size)
    if known.source_pieces is None:  # the ids of two vocabularies are theirs already
        order = np.append(order[order != known.pad_id], known.pad_id)
    parameters = dict(network.parameters)
    if network.settings.zero_start:
        parameters["embedding"] = parameters["embedding"].at[known.pad_id].set(0)
    if "output_bias" in parameters:
        parameters["output_bias"] = parameters["output_bias"].at[known.pad_id].set(BLOCKED)
    return in_order(network.with_parameters(parameters), known, order)


def with_pieces(family: Family, tokenizer: Tokenizer, start: Literal["padding", "eos"]) -> MarianTokenizer:
    """A tokenizer of SentencePiece models with its pieces; UserError for one of another kind or with another start."""
    if not isinstance(tokenizer, SentencePieceTokenizer | MarianTokenizer):
        name = type(tokenizer).__name__
        raise UserError(f"export: a {family.name} folder needs SentencePiece models, and this policy has none ({name})")
    if tokenizer.prompt.start != {"padding": tokenizer.pad_id, "eos": tokenizer.eos_id}[start]:
        raise UserError(
            f"export: the decoder of a {family.name} folder starts with {start}, and this policy's does not; "
            f"one that is trained with tokenizer.start {start!r} does"
        )
    if isinstance(tokenizer, MarianTokenizer):
        return tokenizer
    return MarianTokenizer(tokenizer.models, tokenizer.pieces, prompt=tokenizer.prompt)


def in_order(
    network: Network, tokenizer: MarianTokenizer, order: Int[np.ndarray, " V"]
) -> tuple[Network, MarianTokenizer]:
    """The same with other ids: id i becomes what was id `order[i]`."""
    start = Prompt(int(np.argmax(order == tokenizer.prompt.start)))
    parameters = dict(network.parameters)
    for name in ("embedding", "output", "output_bias"):
        if name in parameters:
            parameters[name] = jnp.asarray(parameters[name])[order]
    pieces = [tokenizer.pieces[i] for i in order]
    theirs = MarianTokenizer(tokenizer.models, pieces, tokenizer.source_pieces, start)
    return network.with_parameters(parameters), theirs


def save_tokenizer(folder: Path, tokenizer: MarianTokenizer, **names: str) -> None:
    """The files of transformers' MarianTokenizer; `names` are special tokens that it lacks."""
    tokenizer.prompted(Prompt(tokenizer.pad_id)).save(folder)  # config.json has what else there is
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", **names}
    fields = {"tokenizer_class": "MarianTokenizer", "separate_vocabs": tokenizer.source_pieces is not None} | special
    write_json(folder / "tokenizer_config.json", fields)
