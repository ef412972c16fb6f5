"""Hugging Face folders of BERT (Devlin et al. 2019) and its kin, such as multilingual E5, LaBSE and MiniLM.

The network is XLM-R's (xlmr.py) with positions from 0. Some, such as E5, have XLM-R's tokenizer, and are given two
texts as XLM-R is; the others have WordPiece and two segments.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rest.data.tokenizer import HuggingFaceTokenizer, Tokenizer
from rest.errors import UserError
from rest.folder import read_json
from rest.model.families.files import Config
from rest.model.families.xlmr import XLMRCheckpoint, read_network, read_settings, read_sizes, read_tokenizer


def read_encoder(
    folder: Path, dtype: Literal["float32", "bfloat16"] = "float32", pooler: bool = False
) -> XLMRCheckpoint:
    """The encoder of a Hugging Face folder: config.json, weights and the tokenizer's files; BERT, XLM-R or XLM-R XL.

    With `pooler` its layer over the first token too, which LaBSE's sentence embeddings are of. UserError where the
    folder holds no such encoder.
    """
    config = Config.read(folder / "config.json")
    bert = config.choose("model_type", {"bert": True, "xlm-roberta": False, "xlm-roberta-xl": False})
    if not bert:
        settings, tokenizer = read_settings(folder, dtype)
        prefix = "roberta."
    else:
        first, tokenizer = read_bert_tokenizer(folder, config)
        # the table's row of padding is never looked at; config.json may name another id than the tokenizer's
        settings = read_sizes(config, tokenizer, tokenizer.pad_id, first, dtype)
        two = settings.segments > 1 and not _is_sentencepiece(folder, config)
        settings, prefix = replace(settings, first_position=0, two_segments=two), "bert."
    settings = replace(settings, pooler=pooler)
    return XLMRCheckpoint(read_network(folder, settings, prefix), tokenizer)


def read_bert_tokenizer(folder: Path, config: Config) -> tuple[int, Tokenizer]:
    """The id that rows start with, and the tokenizer, whose separator is its EOS."""
    if _is_sentencepiece(folder, config):
        return config.get("bos_token_id", 0), read_tokenizer(folder)
    from transformers import BertTokenizerFast

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise UserError(f"{folder / 'tokenizer.json'}: no such file, nor is there vocab.txt, and BERT's needs one")
    try:
        tokenizer: Any = BertTokenizerFast.from_pretrained(folder)
    except Exception as error:  # each parser that transformers calls raises its own
        raise UserError(f"{folder}: the tokenizer cannot be read: {str(error).splitlines()[0]}") from error
    tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
    return tokenizer.cls_token_id, HuggingFaceTokenizer(tokenizer)


def _is_sentencepiece(folder: Path, config: Config) -> bool:
    """Whether the tokenizer is XLM-R's."""
    if (folder / "sentencepiece.bpe.model").is_file():
        return True
    stored = folder / "tokenizer_config.json"
    named = read_json(stored).get("tokenizer_class") if stored.is_file() else None
    return str(named or config.get("tokenizer_class", "")).startswith("XLMRoberta")
