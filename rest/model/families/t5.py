"""T5 (Raffel et al. 2020), T5 1.1, Flan, mT5 (Xue et al. 2021), umT5 (Chung et al. 2023) and MADLAD-400
(Kudugunta et al. 2023), in and out.

State names and layouts are those of transformers' modeling_t5.py and modeling_umt5.py. An mT5 is written as the T5 1.1
that it is. Files of MADLAD-400 have the shared embedding as that of the decoder only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rest.model.families.family import Family, Tensors, told_target
from rest.model.families.files import ACTIVATIONS, Config, Place
from rest.model.layers import TransformerSettings, head_width

WORDS = {  # our word for a part of a layer, and theirs
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
EMBEDDINGS = ("shared.weight", "decoder.embed_tokens.weight", "encoder.embed_tokens.weight")
UNUSED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)  # of old files


def _read(config: Config, tensors: Tensors) -> TransformerSettings:
    kind = config["model_type"]
    feed_forward = config.get("feed_forward_proj", "relu" if kind == "t5" else "gated-gelu")
    gated, activation = feed_forward.startswith("gated-"), feed_forward.removeprefix("gated-")
    if feed_forward == "gated-gelu":
        activation = "gelu_new"
    head = tensors.get("lm_head.weight")
    embedding = next((tensors[name] for name in EMBEDDINGS if name in tensors), ())
    # As transformers decides it: T5 scales unless its file says that the output is not tied, mT5 never does.
    scaled = kind != "mt5" and config.get("tie_word_embeddings", True)
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
        relative_each_layer=kind == "umt5",
        scale_embedding=False,
        scale_attention=False,
        scale_output=config.get("scale_decoder_outputs", scaled),
        tied_output=head is None or np.array_equal(head, embedding),
        zero_start=False,
    )


def _write(settings: TransformerSettings) -> dict[str, Any]:
    kind, model_class = ("umt5", "UMT5") if settings.relative_each_layer else ("t5", "T5")
    activation = {ours: theirs for theirs, ours in ACTIVATIONS.items()}[settings.activation]
    if settings.gated:
        activation = "gated-gelu" if activation == "gelu_new" else f"gated-{activation}"
    return {
        "model_type": kind,
        "architectures": [f"{model_class}ForConditionalGeneration"],
        "d_model": settings.width,
        "d_kv": head_width(settings),
        "d_ff": settings.feed_forward,
        "num_heads": settings.heads,
        "num_layers": settings.encoder_layers,
        "num_decoder_layers": settings.decoder_layers,
        "dropout_rate": settings.dropout,
        "feed_forward_proj": activation,
        "layer_norm_epsilon": settings.norm_epsilon or 1e-6,
        "relative_attention_num_buckets": settings.relative_buckets,
        "relative_attention_max_distance": settings.relative_distance,
        "tie_word_embeddings": settings.scale_output,
    }


def tensor_name(settings: TransformerSettings, place: Place) -> str:
    """Where transformers keeps the parameter at a place of ours."""
    match place:
        case ("embedding",):
            return EMBEDDINGS[0]
        case ("output",):
            return "lm_head.weight"
        case ("encoder_norm" | "decoder_norm" as norm, _):
            return f"{norm.removesuffix('_norm')}.final_layer_norm.weight"
        case ("encoder_positions" | "decoder_positions" as positions, layer, _):
            side = positions.removesuffix("_positions")
            return f"{side}.block.{layer}.layer.0.SelfAttention.relative_attention_bias.weight"
    side, layer, *rest = place
    last = 1 if side == "encoder" else 2
    words = WORDS | {
        "feed_forward": f"layer.{last}.DenseReluDense",
        "feed_forward_norm": f"layer.{last}.layer_norm",
        "inner": "wi_0" if settings.gated else "wi",
    }
    return ".".join([side, "block", str(layer), *(words.get(word, str(word)) for word in rest)])


T5 = Family(
    name="T5",
    read_settings=_read,
    write_settings=_write,
    tensor_name=tensor_name,
    embedding_names=EMBEDDINGS,
    unused=UNUSED,
    prompt=told_target,
    language="<2([A-Za-z_]+)>",
)
