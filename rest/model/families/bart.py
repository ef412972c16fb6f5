"""What Marian, M2M100 and mBART have in common, whose code in transformers is BART's (Lewis et al. 2020)."""

from __future__ import annotations

from typing import Any

from rest.model.families.files import ACTIVATIONS, Config, Place
from rest.model.layers import TransformerSettings

WORDS = {  # our word for a part of a layer, and theirs
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
EMBEDDINGS = ("model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
SINUSOIDS = tuple(f"model.{side}.embed_positions.weight{s}" for side in ("encoder", "decoder") for s in ("", "s"))


def tensor_name(settings: TransformerSettings, place: Place) -> str:
    """Where transformers keeps the parameter at a place of ours."""
    match place:
        case ("embedding",):
            return EMBEDDINGS[0] if settings.encoder_vocabulary is None else EMBEDDINGS[2]
        case ("encoder_embedding",):
            return EMBEDDINGS[1]
        case ("output",):
            return "lm_head.weight"
        case ("output_bias",):
            return "final_logits_bias"
        case (side, "positions"):
            return f"model.{side.removesuffix('_input')}.embed_positions.weight"
        case (side, "norm", leaf):
            return f"model.{side.removesuffix('_input')}.layernorm_embedding.{WORDS.get(leaf, leaf)}"
        case ("encoder_norm" | "decoder_norm" as norm, leaf):
            return f"model.{norm.removesuffix('_norm')}.layer_norm.{WORDS.get(leaf, leaf)}"
    side, layer, *rest = place
    parts = ["model", side, "layers", str(layer), *(WORDS.get(word, word) for word in rest)]
    return ".".join(part for part in parts if part)


def read_sizes(config: Config, activation: str, scale_embedding: bool) -> dict[str, Any]:
    """Fields of our settings; activation and scale are those that the absence of their fields means."""
    for name in ("attention_heads", "ffn_dim"):
        config.demand(f"decoder_{name}", config[f"encoder_{name}"])
    return {
        "width": config["d_model"],
        "heads": config["encoder_attention_heads"],
        "feed_forward": config["encoder_ffn_dim"],
        "encoder_layers": config["encoder_layers"],
        "decoder_layers": config["decoder_layers"],
        "dropout": config.get("dropout", 0.1),
        "activation": config.activation("activation_function", config.get("activation_function", activation)),
        "scale_embedding": config.get("scale_embedding", scale_embedding),
    }


def write_sizes(settings: TransformerSettings) -> dict[str, Any]:
    """Fields of config.json."""
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
        "d_model": settings.width,
        **sides,
        "activation_function": {ours: theirs for theirs, ours in ACTIVATIONS.items()}[settings.activation],
        "dropout": settings.dropout,
        "scale_embedding": settings.scale_embedding,
        "tie_word_embeddings": settings.tied_output,
    }
