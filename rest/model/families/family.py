"""What the families of published models share: how one is described, read into our network, and written."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from rest.data.tokenizer import HuggingFaceTokenizer, MarianTokenizer, Prompt
from rest.errors import UserError
from rest.folder import write_json
from rest.model.attention import BLOCKED
from rest.model.families.files import Config, Place, fill, refuse_left
from rest.model.layers import TransformerSettings, head_width
from rest.model.network import Network
from rest.model.transformer import Transformer

PublishedTokenizer = HuggingFaceTokenizer | MarianTokenizer
Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Family:
    """One family, in and out: how transformers names its settings, tensors and languages."""

    name: str
    """For messages."""
    read_settings: Callable[[Config, Tensors], TransformerSettings]
    """Ours, of theirs; UserError for what our network cannot be."""
    write_settings: Callable[[TransformerSettings], dict[str, Any]]
    """The fields of config.json, but for ids and the size of the vocabulary."""
    tensor_name: Callable[[TransformerSettings, Place], str]
    """What theirs calls the parameter at a place of ours."""
    embedding_names: tuple[str, ...]
    """Of the shared embedding, the usual name first; a file may have several, which must be equal."""
    unused: tuple[str, ...]
    """Tensors of some files that follow from the settings, or are never read."""
    prompt: Callable[[Family, Config, PublishedTokenizer, str | None, str | None], Prompt]
    """What the network is given, for a source and a target language."""
    language: str
    """A pattern of the pieces that name languages, whose one group that matches is what users call them."""

    def languages(self, tokenizer: PublishedTokenizer) -> dict[str, int]:
        """Id of each language that the tokenizer knows."""
        found = ((re.fullmatch(self.language, piece), i) for piece, i in tokenizer.source_vocabulary.items())
        return {match[match.lastindex or 0]: i for match, i in found if match}


# Languages


def told_target(
    family: Family, config: Config, tokenizer: PublishedTokenizer, source: str | None, target: str | None
) -> Prompt:
    """A first piece of the source says the target language, in models of several; it may be in the text already."""
    if source is not None:
        raise UserError(f"source_language {source!r}: a {family.name} model is told the target language only")
    start = config.get("decoder_start_token_id", tokenizer.pad_id)
    if target is None:
        return Prompt(start)
    return Prompt(start, source=(_language("target_language", target, family, tokenizer),))


def told_both(
    family: Family, config: Config, tokenizer: PublishedTokenizer, source: str | None, target: str | None
) -> Prompt:
    """Source and target begin with their languages; the decoder starts with EOS."""
    config.demand("decoder_start_token_id", tokenizer.eos_id)
    return Prompt(
        tokenizer.eos_id,
        forced=(_language("target_language", target, family, tokenizer),),
        source=(_language("source_language", source, family, tokenizer),),
    )


def _language(field: str, name: str | None, family: Family, tokenizer: PublishedTokenizer) -> int:
    known = family.languages(tokenizer)
    if name in known:
        return known[name]
    if not known:
        raise UserError(f"{field} {name!r}: the tokenizer of this {family.name} model knows no languages")
    some = ", ".join(sorted(known)[:8]) + ", …" * (len(known) > 8)
    if name is None:
        raise UserError(f"{field}: a {family.name} model needs one of the {len(known)} languages that it knows: {some}")
    close = sorted(n for n in known if n.startswith(name)) or difflib.get_close_matches(name, known, 3, 0.5)
    hint = f"did you mean {' or '.join(map(repr, close[:3]))}?" if close else f"it knows {some}"
    raise UserError(f"{field} {name!r}: no language of this {family.name} model; {hint}")


# In


def read_network(
    folder: Path, family: Family, settings: TransformerSettings, tokenizer: PublishedTokenizer, tensors: Tensors
) -> Network:
    """Our network with their parameters; refuses a tensor that is missing, has another shape, or is left over."""
    vocabulary, pad_id = tokenizer.vocabulary_size, tokenizer.pad_id

    def name_of(place: Place) -> str:
        name = family.tensor_name(settings, place)
        others = family.embedding_names if name == family.embedding_names[0] else ()
        return next((other for other in others if other in tensors), name)

    def adapt(place: Place, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if place == ("output_bias",):
            array = np.where(array.reshape(-1) < BLOCKED / 2, 0, array.reshape(-1))  # ours blocks padding by itself
        known = {("embedding",): vocabulary, ("output",): vocabulary, ("output_bias",): vocabulary}
        rows = (known | {("encoder_embedding",): settings.encoder_vocabulary}).get(place)
        if rows is None or len(array) < rows:
            return array
        # what they have beyond is never produced, nor is what ours is filled up with
        return np.concatenate([array[:rows], np.zeros((shape[0] - rows, *array.shape[1:]), np.float32)])

    def build(rngs: Any) -> Transformer:
        return Transformer(settings, vocabulary, pad_id=pad_id, prompt=tokenizer.prompt.decoder, rngs=rngs)

    network, left = fill(folder, Network.shaped(settings, build), tensors, name_of, adapt)
    embedding = tensors[name_of(("embedding",))]
    for name, tensor in left.items():
        if name in (*family.embedding_names, "lm_head.weight"):
            if not np.array_equal(tensor, embedding):
                raise UserError(
                    f"{folder}: tensor {name} is not the shared embedding, and other embeddings are not supported"
                )
        elif name not in family.unused:
            refuse_left(folder, name)
    return network


# Out


def write_folder(
    folder: Path, family: Family, network: Network, tokenizer: PublishedTokenizer, ids: dict[str, Any]
) -> None:
    """Write config.json, generation_config.json and the tensors; `ids` are further fields of the first two.

    UserError where the family cannot hold what the network is.
    """
    settings: TransformerSettings = network.settings
    prompt = tokenizer.prompt
    rows = {"embedding": tokenizer.vocabulary_size, "encoder_embedding": settings.encoder_vocabulary}
    rows |= dict.fromkeys(("output", "output_bias"), tokenizer.vocabulary_size)
    tensors = {}
    for path, leaf in jax.tree.leaves_with_path(network.parameters):
        place = tuple(part.key for part in path)
        array = np.asarray(leaf)[: rows.get(place[0])]
        array = array.T if place[-1] == "kernel" else array[None] if place == ("output_bias",) else array
        tensors[family.tensor_name(settings, place)] = np.ascontiguousarray(array)
    special: dict[str, Any] = {"pad_token_id": tokenizer.pad_id, "eos_token_id": tokenizer.eos_id}
    special |= {"decoder_start_token_id": prompt.start}
    config = {
        "is_encoder_decoder": True,
        "dtype": settings.parameter_dtype,
        **family.write_settings(settings),
        "vocab_size": settings.encoder_vocabulary or tokenizer.vocabulary_size,
        **special,
        **ids,
    }
    _refuse_unlike(family, settings, Config(folder / "config.json", config), tensors)
    if settings.tied_output and not config["tie_word_embeddings"]:  # an mT5 whose output is its embedding
        tensors["lm_head.weight"] = tensors[family.embedding_names[0]].copy()
    folder.mkdir(parents=True, exist_ok=True)
    forced = {"forced_bos_token_id": prompt.forced[0]} if prompt.forced else {}
    generation = {"bad_words_ids": [[tokenizer.pad_id]], "max_length": 512}
    write_json(folder / "generation_config.json", special | forced | generation | ids)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    mode = (folder / "generation_config.json").stat().st_mode
    (folder / "model.safetensors").chmod(mode)  # save_file writes it for its owner alone
    write_json(folder / "config.json", config)


def _refuse_unlike(family: Family, settings: TransformerSettings, config: Config, tensors: Tensors) -> None:
    """A family holds a network if reading what is written gives the same settings."""
    again = family.read_settings(config, tensors)
    types = {name: getattr(settings, name) for name in ("dtype", "products", "parameter_dtype")}
    again = dataclasses.replace(again, **types)
    ours, theirs = _explicit(settings), _explicit(again)
    for field in dataclasses.fields(settings):
        if getattr(ours, field.name) != getattr(theirs, field.name):
            value = getattr(settings, field.name)
            raise UserError(f"export: model.{field.name} {value!r} is not what a {family.name} folder can hold")


def _explicit(settings: TransformerSettings) -> TransformerSettings:
    """Settings with what None stands for."""
    epsilon = settings.norm_epsilon or (1e-5 if settings.norm == "layer" else 1e-6)
    return dataclasses.replace(settings, head_width=head_width(settings), norm_epsilon=epsilon)
