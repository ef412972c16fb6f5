"""mBART-50 (Tang et al. 2020), in and out.

State names and layouts are those of transformers' modeling_mbart.py: pre-norm layers, learned positions and a norm on
the embedding. Source and target begin with their languages; the first mBART, of 25 languages, has that of the source
at its end, and is not supported.
"""

from __future__ import annotations

from typing import Any

from rest.model.families.bart import EMBEDDINGS, read_sizes, tensor_name, write_sizes
from rest.model.families.family import Family, Tensors, told_both
from rest.model.families.files import Config
from rest.model.layers import TransformerSettings


def _read(config: Config, tensors: Tensors) -> TransformerSettings:
    for name in ("tie_word_embeddings", "normalize_before", "normalize_embedding", "add_final_layer_norm"):
        config.demand(name, True)
    config.demand("static_position_embeddings", False)
    return TransformerSettings(
        **read_sizes(config, "gelu", scale_embedding=False),
        norm_first=True,
        positions="learned",
        max_positions=config.get("max_position_embeddings", 1024),
        embedding_norm=True,
        zero_start=False,
    )


def _write(settings: TransformerSettings) -> dict[str, Any]:
    return {
        "model_type": "mbart",
        "architectures": ["MBartForConditionalGeneration"],
        "tokenizer_class": "MBart50Tokenizer",  # by which CTranslate2 tells it from the first mBART
        **write_sizes(settings),
        "max_position_embeddings": settings.max_positions,
        "normalize_before": True,
        "normalize_embedding": True,
        "add_final_layer_norm": True,
        "static_position_embeddings": False,
    }


MBART = Family(
    name="mBART-50",
    read_settings=_read,
    write_settings=_write,
    tensor_name=tensor_name,
    embedding_names=EMBEDDINGS,
    unused=(),
    prompt=told_both,
    language="([a-z]{2}_[A-Z]{2})",
)
