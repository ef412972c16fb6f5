"""Published checkpoints in and out: folders as Hugging Face `transformers` reads and writes them, without PyTorch.

A file each says what a family is: Marian (OPUS-MT), T5 and its kin, M2M100 and NLLB, mBART-50. Every family that is
read is written. Tests hold logits and translations to PyTorch's.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from rest.data.tokenizer import HuggingFaceSettings, HuggingFaceTokenizer, MarianTokenizer, Prompt, Tokenizer
from rest.errors import UserError
from rest.folder import read_json, write_json
from rest.model.families.family import Family, PublishedTokenizer, read_network, write_folder
from rest.model.families.files import Config, read_tensors
from rest.model.families.hub import commit, model_folder
from rest.model.families.m2m100 import M2M100, as_m2m100
from rest.model.families.marian import MARIAN, as_marian, save_tokenizer
from rest.model.families.mbart import MBART
from rest.model.families.t5 import T5
from rest.model.layers import TransformerSettings
from rest.model.network import Network
from rest.model.products import Products

FAMILIES = {"marian": MARIAN, "t5": T5, "mt5": T5, "umt5": T5, "m2m_100": M2M100, "mbart": MBART}
BY_POSITIONS = {"sinusoidal": MARIAN, "relative": T5, "fairseq": M2M100, "learned": MBART}


class Checkpoint(NamedTuple):
    """What makes a policy."""

    network: Network
    tokenizer: Tokenizer


@dataclass(frozen=True)
class HuggingFaceModel:
    """A published model with its tokenizer, from a folder or the Hugging Face hub; docs/models.md has the families."""

    folder: Path | str
    """Where config.json, weights and the tokenizer's files are; or a name on the hub: Helsinki-NLP/opus-mt-de-en."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    source_language: str | None = None
    """As the model calls it, for one that is told it: deu_Latn (NLLB), de (M2M100), de_DE (mBART-50)."""
    target_language: str | None = None
    """The same of the target; also what MADLAD-400 (de) and OPUS-MT into several languages (deu) are told."""
    dropout: float | None = None
    """While training; None: what config.json says."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and matrix products."""
    products: Products = "float32"
    """What the factors of linear layers are rounded to where `dtype` is float32; the faster way on CPU."""
    parameter_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the parameters, in memory and in what is exported."""

    def read(self, tokenizer_folder: Path | None = None) -> Checkpoint:
        """The network and its tokenizer, whose files may be in another folder."""
        folder = model_folder(self.folder, self.revision)
        config = Config.read(folder / "config.json")
        family: Family = config.choose("model_type", FAMILIES)
        tensors = read_tensors(folder)
        settings = family.read_settings(config, tensors)
        tokenizer = HuggingFaceSettings(str(tokenizer_folder or folder)).train([], 0)
        _refuse_other_ids(config, settings, tokenizer)
        prompt = family.prompt(family, config, tokenizer, self.source_language, self.target_language)
        tokenizer = tokenizer.prompted(prompt)
        dropout = settings.dropout if self.dropout is None else self.dropout
        settings = dataclasses.replace(
            settings, dtype=self.dtype, products=self.products, parameter_dtype=self.parameter_dtype, dropout=dropout
        )
        return Checkpoint(read_network(folder, family, settings, tokenizer, tensors), tokenizer)

    @property
    def commit(self) -> str | None:
        """The commit on the hub that its files are of; None for a folder."""
        return commit(model_folder(self.folder, self.revision))


def _refuse_other_ids(config: Config, settings: TransformerSettings, tokenizer: PublishedTokenizer) -> None:
    """A tokenizer that is not the network's."""
    for name, wanted in {"pad_token_id": tokenizer.pad_id, "eos_token_id": tokenizer.eos_id}.items():
        config.demand(name, wanted)
    shared = settings.encoder_vocabulary is None
    known = {"vocab_size" if shared else "decoder_vocab_size": tokenizer.vocabulary_size}
    if isinstance(tokenizer, MarianTokenizer):
        if shared != (tokenizer.source_pieces is None):
            files = "vocab.json alone" if tokenizer.source_pieces is None else "vocab.json and target_vocab.json"
            config.refuse("share_encoder_decoder_embeddings", f"the tokenizer has {files}")
        if not shared:
            known["vocab_size"] = len(tokenizer.source_vocabulary)
    for name, size in known.items():
        if size > config[name]:
            config.refuse(name, f"the tokenizer has {size} ids")


def write(folder: Path, network: Network, tokenizer: Tokenizer) -> Family:
    """Write a folder that `transformers` opens, and CTranslate2 converts where it knows the family, which is returned.

    UserError where the folder holds something, and where no family has such a network.
    """
    settings: TransformerSettings = network.settings
    family = BY_POSITIONS[settings.positions]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists already; choose another folder")
    if family is MARIAN:
        theirs, pieces = as_marian(network, tokenizer)
        ids = {"decoder_vocab_size": pieces.vocabulary_size, "forced_eos_token_id": pieces.eos_id}
        write_folder(folder, family, theirs, pieces, ids)
        save_tokenizer(folder, pieces)
    elif family is M2M100 and not isinstance(tokenizer, HuggingFaceTokenizer):
        theirs, pieces = as_m2m100(network, tokenizer)
        write_folder(folder, family, theirs, pieces, {})
        save_tokenizer(folder, pieces, bos_token="</s>")  # CTranslate2 asks for one
    elif isinstance(tokenizer, HuggingFaceTokenizer):
        write_folder(folder, family, network, tokenizer, {})
        _save_published(folder, family, tokenizer)
    else:
        raise UserError(
            f"export: a {family.name} folder needs a tokenizer of transformers, and this policy has none "
            f"({type(tokenizer).__name__})"
        )
    return family


def _save_published(folder: Path, family: Family, tokenizer: HuggingFaceTokenizer) -> None:
    """The tokenizer as transformers saves it, set to the languages."""
    prompt = tokenizer.prompt
    tokenizer.prompted(Prompt(tokenizer.pad_id)).save(folder)
    if prompt.forced:
        names = {i: name for name, i in family.languages(tokenizer).items()}
        languages = {"src_lang": names[prompt.source[0]], "tgt_lang": names[prompt.forced[0]]}
        path = folder / "tokenizer_config.json"
        write_json(path, read_json(path) | languages)
