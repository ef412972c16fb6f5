"""M2M100 (Fan et al. 2020) and NLLB-200 (NLLB Team 2022), in and out.

State names and layouts are those of transformers' modeling_m2m_100.py: pre-norm layers, sinusoids as in fairseq, no
bias on the logits; source and target begin with their languages, as its tokenizers have it today. The mixture of
experts of the largest NLLB is not supported. Dropout is ours; theirs drops whole layers too.
"""

from __future__ import annotations

from typing import Any

from rest.model.families.bart import EMBEDDINGS, SINUSOIDS, read_sizes, tensor_name, write_sizes
from rest.model.families.family import Family, Tensors, told_both
from rest.model.families.files import Config
from rest.model.layers import TransformerSettings


def _read(config: Config, tensors: Tensors) -> TransformerSettings:
    config.demand("tie_word_embeddings", True)
    return TransformerSettings(
        **read_sizes(config, "relu", scale_embedding=True),
        norm_first=True,
        positions="fairseq",
        output_bias=False,
        zero_start=False,
    )


def _write(settings: TransformerSettings) -> dict[str, Any]:
    return {"model_type": "m2m_100", "architectures": ["M2M100ForConditionalGeneration"], **write_sizes(settings)}


M2M100 = Family(
    name="M2M100 or NLLB",
    read_settings=_read,
    write_settings=_write,
    tensor_name=tensor_name,
    embedding_names=EMBEDDINGS,
    unused=SINUSOIDS,
    prompt=told_both,
    language="__([a-z]{2,3})__|([a-z]{3}_[A-Z][a-z]{3})",
)
