"""M2M100 (Fan et al. 2020) and NLLB-200 (NLLB Team 2022), in and out.

State names and layouts are those of transformers' modeling_m2m_100.py: pre-norm layers, sinusoids as in fairseq, no
bias on the logits; source and target begin with their languages, as its tokenizers have it today. The mixture of
experts of the largest NLLB is not supported. Dropout is ours; theirs drops whole layers too.

It is also the layout of networks of our own with norms first, which know one pair of languages and are told none.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rest.data.tokenizer import MarianTokenizer, Prompt, Tokenizer
from rest.model.families.bart import EMBEDDINGS, SINUSOIDS, read_sizes, tensor_name, write_sizes
from rest.model.families.family import Family, PublishedTokenizer, Tensors, told_both
from rest.model.families.files import Config
from rest.model.families.marian import in_order, with_pieces
from rest.model.layers import TransformerSettings
from rest.model.network import Network

PAD = 1  # positions are counted from padding's id on


def _read(config: Config, tensors: Tensors) -> TransformerSettings:
    config.demand("tie_word_embeddings", True)
    config.demand("pad_token_id", PAD)
    return TransformerSettings(
        **read_sizes(config, "relu", scale_embedding=True),
        norm_first=True,
        positions="fairseq",
        output_bias=False,
        zero_start=False,
    )


def _write(settings: TransformerSettings) -> dict[str, Any]:
    return {"model_type": "m2m_100", "architectures": ["M2M100ForConditionalGeneration"], **write_sizes(settings)}


def _told(
    family: Family, config: Config, tokenizer: PublishedTokenizer, source: str | None, target: str | None
) -> Prompt:
    """Both languages, but for a network of our own."""
    if isinstance(tokenizer, MarianTokenizer) and source is None and target is None:
        config.demand("decoder_start_token_id", tokenizer.eos_id)
        return Prompt(tokenizer.eos_id)
    return told_both(family, config, tokenizer, source, target)


M2M100 = Family(
    name="M2M100 or NLLB",
    read_settings=_read,
    write_settings=_write,
    tensor_name=tensor_name,
    embedding_names=EMBEDDINGS,
    unused=SINUSOIDS,
    prompt=_told,
    language="__([a-z]{2,3})__|([a-z]{3}_[A-Z][a-z]{3})",
)


def as_m2m100(network: Network, tokenizer: Tokenizer) -> tuple[Network, MarianTokenizer]:
    """A network of our own with padding where M2M100 has it; its logit is 0, since there is no bias to block it."""
    known = with_pieces(M2M100, tokenizer, "eos")
    order = np.delete(np.arange(known.vocabulary_size), known.pad_id)
    embedding = network.parameters["embedding"].at[known.pad_id].set(0)
    network = network.with_parameters(dict(network.parameters) | {"embedding": embedding})
    return in_order(network, known, np.insert(order, PAD, known.pad_id))
