"""The encoder XLM-RoBERTa (Conneau et al. 2020) and its XL form (Goyal et al. 2021), and Hugging Face folders of it.

Learned positions that start after padding's id, post-norm layers with a norm on the embedding too; XL has pre-norm
layers and a norm at the end instead. BERT is the same network with positions from 0 (bert.py). State names and hidden
states are those of transformers' modeling_xlm_roberta.py and modeling_xlm_roberta_xl.py, and tests hold them to
PyTorch's. Dropout is on the outputs of layers and on the embedding; theirs is on the weights of attention too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rest.data.tokenizer import HuggingFaceTokenizer, Tokenizer
from rest.errors import UserError
from rest.model.families.files import Config, Place, fill, read_tensors, refuse_left
from rest.model.layers import Block, Linear, Norm, TransformerSettings, attending, dropout, layer, split_key
from rest.model.network import Network
from rest.model.products import Products

POST_NORM = {  # our word for a part of a layer, and theirs
    "attention": "attention",
    "query": "self.query",
    "key": "self.key",
    "value": "self.value",
    "output": "output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward": "",
    "inner": "intermediate.dense",
    "outer": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
    "kernel": "weight",
    "scale": "weight",
}
PRE_NORM = POST_NORM | {"attention_norm": "attention.self_attn_layer_norm", "feed_forward_norm": "LayerNorm"}
LEGACY_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # BERT's from TensorFlow
LEGACY = re.compile(r"LayerNorm\.(gamma|beta)$")
EMBEDDINGS = {
    "embedding": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "segments": "embeddings.token_type_embeddings.weight",
}
POOLER = ("pooler.dense.weight", "pooler.dense.bias")
UNUSED = ("embeddings.position_ids", "embeddings.token_type_ids", *POOLER)


@dataclass(frozen=True)
class XLMRSettings:
    """Sizes and variants of the encoder; BERT's too."""

    vocabulary_size: int
    pad_id: int
    bos_id: int
    """What a row of ids starts with."""
    width: int
    heads: int
    feed_forward: int
    layers: int
    max_positions: int
    """Rows of the table of positions, of which the first are never a token's."""
    first_position: int | None = None
    """The row of a text's first token; None: pad_id + 1, as in XLM-R; 0 in BERT."""
    segments: int = 1
    """Rows of the table of segments."""
    two_segments: bool = False
    """Of two texts in a row the second is of segment 1, behind one separator, as BERT was trained; else all is of
    segment 0 and there are two separators, as in RoBERTa."""
    pooler: bool = False
    """With BERT's layer over the state of the first token."""
    activation: Literal["relu", "silu", "gelu", "gelu_tanh"] = "gelu"
    norm_first: bool = False
    """Normalise the input of a layer (XL) instead of its output."""
    norm_epsilon: float = 1e-5
    dropout: float = 0.1
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and matrix products; parameters, norms and softmax are float32."""
    products: Products = "float32"
    """What the factors of linear layers are rounded to where `dtype` is float32."""

    @property
    def start(self) -> int:
        """The row of the table of positions that a text's first token has."""
        return self.pad_id + 1 if self.first_position is None else self.first_position

    @property
    def max_tokens(self) -> int:
        """The longest row that has a position for each token."""
        return self.max_positions - self.start

    def single(self, text: Sequence[int], eos_id: int) -> list[int]:
        """`<s> text </s>`, cut to what has positions."""
        return [self.bos_id, *text[: self.max_tokens - 2], eos_id]

    def pair(self, first: Sequence[int], second: Sequence[int], eos_id: int) -> tuple[list[int], list[int]]:
        """`<s> first </s></s> second </s>` or `<s> first </s> second </s>`, and the segment of each id; not cut."""
        head = [self.bos_id, *first, eos_id] + [eos_id] * (not self.two_segments)
        tail = [*second, eos_id]
        return head + tail, [0] * len(head) + [int(self.two_segments)] * len(tail)

    @property
    def block(self) -> TransformerSettings:
        """A layer, in the words of our transformer."""
        return TransformerSettings(
            width=self.width,
            heads=self.heads,
            head_width=self.width // self.heads,
            feed_forward=self.feed_forward,
            dropout=self.dropout,
            activation=self.activation,
            norm_first=self.norm_first,
            norm_epsilon=self.norm_epsilon,
            dtype=self.dtype,
            products=self.products,
        )


class XLMR(nnx.Module):
    """Encoder only. Masks are bool, True = real token; padding is on the right."""

    def __init__(self, settings: XLMRSettings, *, rngs: nnx.Rngs) -> None:
        self.settings, block = settings, settings.block
        self.remat = False

        def table(rows: int) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), (rows, settings.width)) * 0.02)

        self.embedding = table(settings.vocabulary_size)
        self.positions = table(settings.max_positions)
        self.segments = table(settings.segments)
        self.embedding_norm = None if settings.norm_first else Norm(block)
        self.layers = nnx.List([Block(block, cross=False, rngs=rngs) for _ in range(settings.layers)])
        self.norm = Norm(block) if settings.norm_first else None
        self.pooler = Linear(settings.width, settings.width, rngs=rngs) if settings.pooler else None

    def __call__(
        self, ids: Int[Array, "B S"], mask: Bool[Array, "B S"], key: Array | None = None
    ) -> list[Float[Array, "B S D"]]:
        """Hidden states: the embedding, then what each layer gives; L + 1 arrays."""
        return self.packed(ids, jnp.arange(ids.shape[1])[None], mask[:, None], key)

    def packed(
        self,
        ids: Int[Array, "B S"],
        positions: Int[Array, "#B S"],
        mask: Bool[Array, "B #S S"],
        key: Array | None = None,
        segments: Int[Array, "B S"] | None = None,
    ) -> list[Float[Array, "B S D"]]:
        """The same where several texts share a row: positions count from 0 in each, the mask says who sees whom.

        `segments` are rows of the table of segments; None: all are 0.
        """
        embedding_key, *layer_keys = split_key(key, 1 + len(self.layers))
        # a batch may be padded to more positions than the table has; no token is there
        positions = jnp.minimum(positions + self.settings.start, self.settings.max_positions - 1)
        segment = self.segments[...][:1][None] if segments is None else self.segments[...][segments]
        x = self.embedding[...][ids] + segment + self.positions[...][positions]
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        states = [dropout(x.astype(self.settings.dtype), self.settings.dropout, embedding_key)]
        for block, layer_key in zip(self.layers, layer_keys, strict=True):
            states.append(layer(self, block)(states[-1], attending(block.attention, mask), None, layer_key))
        if self.norm is not None:
            states[-1] = self.norm(states[-1])
        return states


class XLMRCheckpoint(NamedTuple):
    """What makes an encoder."""

    network: Network
    tokenizer: Tokenizer


def read_xlmr(folder: Path, dtype: Literal["float32", "bfloat16"] = "float32") -> XLMRCheckpoint:
    """The encoder of a Hugging Face folder: config.json, weights and the tokenizer's files.

    The output layer of a masked language model, and any other head, is left out.
    """
    settings, tokenizer = read_settings(folder, dtype)
    return XLMRCheckpoint(read_network(folder, settings, "roberta."), tokenizer)


def read_network(folder: Path, settings: XLMRSettings, prefix: str) -> Network:
    """The weights of a folder; with a head, the encoder's tensors have the prefix, and others are left out."""
    tensors = read_tensors(folder)
    if prefix + EMBEDDINGS["embedding"] in tensors:
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    tensors = {LEGACY.sub(lambda found: LEGACY_NAMES[found[0]], name): tensor for name, tensor in tensors.items()}
    if settings.pooler and POOLER[0] not in tensors:
        raise UserError(f"{folder}: the weights have no pooler ({POOLER[0]}), which is to read them")
    empty = Network.shaped(settings, lambda rngs: XLMR(settings, rngs=rngs))
    network, left = fill(folder, empty, tensors, partial(state_name, settings))
    for name in left:
        if name not in UNUSED:
            refuse_left(folder, name)
    return network


def read_settings(folder: Path, dtype: Literal["float32", "bfloat16"]) -> tuple[XLMRSettings, Tokenizer]:
    """What config.json says of the encoder, and its tokenizer."""
    config = Config.read(folder / "config.json")
    norm_first = config.choose("model_type", {"xlm-roberta": False, "xlm-roberta-xl": True})
    tokenizer = read_tokenizer(folder)
    config.demand("pad_token_id", tokenizer.pad_id)
    ids = tokenizer.pad_id, config.get("bos_token_id", 0)
    return replace(read_sizes(config, tokenizer, *ids, dtype), norm_first=norm_first), tokenizer


def read_sizes(
    config: Config, tokenizer: Tokenizer, pad_id: int, bos_id: int, dtype: Literal["float32", "bfloat16"]
) -> XLMRSettings:
    """The fields of config.json that XLM-R and BERT have alike; refuses what neither network here can do."""
    config.demand("position_embedding_type", "absolute")
    for name in ("is_decoder", "add_cross_attention"):
        config.demand(name, False)
    if config["hidden_size"] % config["num_attention_heads"]:
        config.refuse("num_attention_heads", f"the width, {config['hidden_size']}, is not a multiple of it")
    if tokenizer.vocabulary_size > config["vocab_size"]:
        config.refuse("vocab_size", f"the tokenizer has {tokenizer.vocabulary_size} ids")
    return XLMRSettings(
        vocabulary_size=config["vocab_size"],
        pad_id=pad_id,
        bos_id=bos_id,
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        feed_forward=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        max_positions=config["max_position_embeddings"],
        segments=config["type_vocab_size"],
        activation=config.activation("hidden_act", config.get("hidden_act", "gelu")),
        norm_epsilon=config["layer_norm_eps"],
        dropout=config.get("hidden_dropout_prob", 0.1),
        dtype=dtype,
    )


def read_tokenizer(folder: Path) -> Tokenizer:
    """XLM-R's tokenizer, SentencePiece whose ids are moved by one; from its model or from tokenizer.json."""
    from transformers import XLMRobertaTokenizer

    model, rules = folder / "sentencepiece.bpe.model", folder / "tokenizer.json"
    if not model.is_file() and not rules.is_file():
        raise UserError(f"{model}: no such file, nor is there {rules.name}, and XLM-R's tokenizer needs one of them")
    try:
        # by its class, since a folder of the XL form may not name one
        return HuggingFaceTokenizer(XLMRobertaTokenizer.from_pretrained(folder))
    except Exception as error:  # each parser that transformers calls raises its own
        found = rules if rules.is_file() else model
        raise UserError(f"{found}: cannot be read as a tokenizer: {str(error).splitlines()[0]}") from error


def state_name(settings: XLMRSettings, keys: Place) -> str:
    """Where transformers keeps the parameter at `keys` of ours."""
    match keys:
        case ("embedding" | "positions" | "segments" as table,):
            return EMBEDDINGS[table]
        case ("layers", layer, *rest):
            words = PRE_NORM if settings.norm_first else POST_NORM
            parts = ["encoder", "layer", str(layer), *(words.get(word, word) for word in rest)]
        case ("pooler", leaf):
            parts = ["pooler", "dense", POST_NORM.get(leaf, leaf)]
        case (norm, leaf):
            parts = [{"embedding_norm": "embeddings", "norm": "encoder"}[norm], "LayerNorm", POST_NORM.get(leaf, leaf)]
    return ".".join(part for part in parts if part)
