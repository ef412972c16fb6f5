"""Text to token ids and back: SentencePiece trained on the training text, or what a published model comes with."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import sentencepiece

from rest.data.ragged import BLOCK, Ragged
from rest.errors import UserError
from rest.folder import read_json, write_json

PROMPT = "prompt.json"


@dataclass(frozen=True)
class Prompt:
    """What a network is given beside the texts: ids that nobody chooses, and so in no log-probability and no length."""

    start: int
    """What the decoder begins with."""
    forced: tuple[int, ...] = ()
    """What every target begins with then, such as its language; the decoder may choose from here on."""
    source: tuple[int, ...] = ()
    """What every source begins with, such as its language."""

    @property
    def decoder(self) -> tuple[int, ...]:
        """All that the decoder is given before it may choose."""
        return self.start, *self.forced


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the system asks of a tokenizer. Source and target share one vocabulary, maybe not its use."""

    @property
    def vocabulary_size(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def prompt(self) -> Prompt:
        """What a policy with this tokenizer is given beside the texts."""
        ...

    @property
    def identity(self) -> str:
        """Hash of the content: equal for tokenizers that give the same ids."""
        ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of source text, without EOS and without the prompt."""
        ...

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of target text, without EOS and without the prompt."""
        ...

    def decode(self, ids: Sequence[Sequence[int] | np.ndarray]) -> list[str]:
        """Target text; EOS and padding are left out."""
        ...

    def save(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class SentencePieceSettings:
    """A joint SentencePiece vocabulary trained on both sides of the training text."""

    vocabulary_size: int = 4096
    """Number of pieces; fewer when the text does not hold as many. Multiples of 64 sample fastest."""
    kind: str = "unigram"
    """unigram or bpe."""
    normalization: str = "identity"
    """SentencePiece rule: identity (the text is used as it is), nmt_nfkc, nfkc."""
    character_coverage: float = 0.9995
    """Share of the characters kept as pieces; the rest become bytes when byte_fallback is set."""
    byte_fallback: bool = False
    """Spell characters outside the vocabulary as bytes instead of <unk>."""
    max_sentences: int = 2_000_000
    """Sentences of each side that the pieces are learned from."""
    start: Literal["padding", "eos"] = "padding"
    """What the decoder begins with: padding as in Marian, or EOS as in M2M100."""

    def train(self, sides: Sequence[Sequence[str]], seed: int) -> SentencePieceTokenizer:
        """Learn the pieces from the given sides of the training text."""
        model = io.BytesIO()
        sentencepiece.set_random_generator_seed(seed)
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(text for side in sides for text in side[: self.max_sentences]),
                model_writer=model,
                vocab_size=self.vocabulary_size,
                model_type=self.kind,
                normalization_rule_name=self.normalization,
                character_coverage=self.character_coverage,
                byte_fallback=self.byte_fallback,
                hard_vocab_limit=False,
                pad_id=0,
                eos_id=1,
                unk_id=2,
                bos_id=-1,
                num_threads=1,  # the pieces must not depend on how many cores there are
                minloglevel=2,
            )
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(
                f"tokenizer: SentencePiece could not learn {self.vocabulary_size} pieces ({self.kind}): "
                f"{str(error).strip().splitlines()[-1].rpartition('] ')[2]}"
            ) from error
        learned = SentencePieceTokenizer(model.getvalue())
        return learned if self.start == "padding" else learned.prompted(Prompt(learned.eos_id))


class SentencePieceTokenizer:
    """A trained SentencePiece model."""

    def __init__(self, model: bytes, prompt: Prompt | None = None) -> None:
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.prompt = prompt or Prompt(self.pad_id)

    def prompted(self, prompt: Prompt) -> SentencePieceTokenizer:
        """The same with another prompt."""
        return SentencePieceTokenizer(self._model, prompt)

    @property
    def vocabulary_size(self) -> int:
        return self._processor.vocab_size()

    @property
    def pad_id(self) -> int:
        return self._processor.pad_id()

    @property
    def eos_id(self) -> int:
        return self._processor.eos_id()

    @cached_property
    def identity(self) -> str:
        unusual = [json.dumps(prompt).encode() for prompt in _unusual(self.prompt, self.pad_id)]
        return hashlib.sha256(b"".join([self._model, *unusual])).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._processor.encode(list(texts), num_threads=1)

    encode_targets = encode

    @property
    def models(self) -> tuple[bytes, bytes]:
        """The SentencePiece models of source and target."""
        return self._model, self._model

    @property
    def pieces(self) -> list[str]:
        """The vocabulary in the order of its ids."""
        return self._processor.id_to_piece(list(range(self.vocabulary_size)))

    def decode(self, ids: Sequence[Sequence[int] | np.ndarray]) -> list[str]:
        silent = {self.pad_id, self.eos_id}
        rows = [[int(i) for i in row if i not in silent] for row in ids]
        return self._processor.decode(rows, num_threads=1) if rows else []

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sentencepiece.model").write_bytes(self._model)
        _save_prompt(self.prompt, self.pad_id, folder)


class MarianTokenizer:
    """What an OPUS-MT model comes with: a SentencePiece model a side, and one list of pieces that gives their ids.

    Some have a list for each side; `pieces` is then that of the target. As in `transformers`, a first word such as
    `>>fra<<`, which tells a multilingual model its target language, is one piece, and punctuation is not normalised.
    """

    def __init__(
        self,
        models: tuple[bytes, bytes],
        pieces: Sequence[str],
        source_pieces: Sequence[str] | None = None,
        prompt: Prompt | None = None,
    ) -> None:
        self.models, self.pieces = models, list(pieces)
        self.source_pieces = None if source_pieces is None else list(source_pieces)
        self._source, self._target = (sentencepiece.SentencePieceProcessor(model_proto=model) for model in models)
        self._ids = {piece: i for i, piece in enumerate(self.pieces)}
        self._source_ids = {piece: i for i, piece in enumerate(self.source_pieces or self.pieces)}
        self.prompt = prompt or Prompt(self.pad_id)

    @classmethod
    def load(cls, folder: Path) -> MarianTokenizer:
        """Read source.spm, target.spm, vocab.json and, where there is one, target_vocab.json."""
        for name in ("source.spm", "target.spm", "vocab.json"):
            if not (folder / name).is_file():
                raise UserError(f"{folder / name}: no such file, and a Marian tokenizer needs it")
        models = (folder / "source.spm").read_bytes(), (folder / "target.spm").read_bytes()
        source, target = _pieces(folder / "vocab.json"), None
        if (folder / "target_vocab.json").is_file():
            target = _pieces(folder / "target_vocab.json")
            if source.index("</s>") != target.index("</s>"):
                raise UserError(f"{folder}: </s> has another id in vocab.json than in target_vocab.json")
        try:
            return cls(models, source) if target is None else cls(models, target, source)
        except RuntimeError as error:
            raise UserError(f"{folder}: source.spm or target.spm is not a SentencePiece model") from error

    def prompted(self, prompt: Prompt) -> MarianTokenizer:
        """The same with another prompt."""
        return MarianTokenizer(self.models, self.pieces, self.source_pieces, prompt)

    @property
    def source_vocabulary(self) -> dict[str, int]:
        """Id of each piece of the source."""
        return self._source_ids

    @property
    def vocabulary_size(self) -> int:
        return len(self.pieces)

    @property
    def pad_id(self) -> int:
        return self._ids["<pad>"]

    @property
    def eos_id(self) -> int:
        return self._ids["</s>"]

    @cached_property
    def identity(self) -> str:
        parts = [hashlib.sha256(model).hexdigest() for model in self.models]
        own = [] if self.source_pieces is None else [self.source_pieces]
        known = [*parts, self.pieces, *own, *_unusual(self.prompt, self.pad_id)]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        known = self._said(self._source_ids)
        return [self._encode(text, self._source, known) for text in texts]

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        known = self._said(self._ids)
        return [self._encode(text, self._target, known) for text in texts]

    @staticmethod
    def _said(ids: Mapping[str, int]) -> dict[str, int]:
        """Ids of what text can say, which is no padding and no end."""
        return {**ids, "<pad>": ids["<unk>"], "</s>": ids["<unk>"]}

    @staticmethod
    def _encode(text: str, model: sentencepiece.SentencePieceProcessor, ids: Mapping[str, int]) -> list[int]:
        end = text.index("<<") + 2 if text.startswith(">>") and "<<" in text else 0
        pieces = [text[:end]] * bool(end) + model.encode(text[end:], out_type=str)
        return [ids.get(piece, ids["<unk>"]) for piece in pieces]

    def decode(self, ids: Sequence[Sequence[int] | np.ndarray]) -> list[str]:
        silent = {self.pad_id, self.eos_id}
        return [self._target.decode([self.pieces[int(i)] for i in row if int(i) not in silent]) for row in ids]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for side, model in zip(("source", "target"), self.models, strict=True):
            (folder / f"{side}.spm").write_bytes(model)
        write_json(folder / "vocab.json", self._source_ids)
        if self.source_pieces is not None:
            write_json(folder / "target_vocab.json", self._ids)
        _save_prompt(self.prompt, self.pad_id, folder)


def _pieces(path: Path) -> list[str]:
    """In the order of their ids."""
    ids = read_json(path)
    if sorted(ids.values()) != list(range(len(ids))):
        raise UserError(f"{path}: its {len(ids)} ids are not the numbers from 0 to {len(ids) - 1}")
    for piece in ("<pad>", "</s>", "<unk>"):
        if piece not in ids:
            raise UserError(f"{path}: has no piece {piece!r}")
    return sorted(ids, key=lambda piece: ids[piece])


@dataclass(frozen=True)
class HuggingFaceSettings:
    """A tokenizer of the Hugging Face hub or of a local folder, used as it is."""

    name: str
    """Name on the hub, or path of a folder."""

    def train(self, sides: Sequence[Sequence[str]], seed: int) -> HuggingFaceTokenizer | MarianTokenizer:
        """Load it; nothing is learned."""
        from transformers import AutoTokenizer

        if (Path(self.name) / "source.spm").exists():
            return MarianTokenizer.load(Path(self.name))
        try:
            return HuggingFaceTokenizer(AutoTokenizer.from_pretrained(self.name, trust_remote_code=False))
        except (OSError, ValueError) as error:
            raise UserError(f"tokenizer: {self.name!r} cannot be loaded: {str(error).splitlines()[0]}") from error


_AS_TEXT = {"add_special_tokens": False, "split_special_tokens": True}


class HuggingFaceTokenizer:
    """Any fast or slow tokenizer of `transformers` that has padding and EOS."""

    def __init__(self, tokenizer: Any, prompt: Prompt | None = None) -> None:
        self._tokenizer = tokenizer
        if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
            raise UserError(f"tokenizer: {tokenizer.name_or_path!r} lacks an EOS or a padding token")
        self.prompt = prompt or Prompt(self.pad_id)

    def prompted(self, prompt: Prompt) -> HuggingFaceTokenizer:
        """The same with another prompt."""
        return HuggingFaceTokenizer(self._tokenizer, prompt)

    @cached_property
    def source_vocabulary(self) -> dict[str, int]:
        """Id of each piece, those of languages among them."""
        return self._tokenizer.get_vocab() | getattr(self._tokenizer, "lang_token_to_id", {})  # M2M100's are apart

    @cached_property
    def vocabulary_size(self) -> int:
        return max(self.source_vocabulary.values()) + 1  # ids may have gaps

    @property
    def pad_id(self) -> int:
        return self._tokenizer.pad_token_id

    @property
    def eos_id(self) -> int:
        return self._tokenizer.eos_token_id

    @cached_property
    def identity(self) -> str:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        rules = json.loads(backend.to_str()) if backend is not None else {}
        for unused in ("truncation", "padding"):  # `encode` turns both off
            rules.pop(unused, None)
        parts = [self.source_vocabulary, rules or type(self._tokenizer).__qualname__]
        parts += _unusual(self.prompt, self.pad_id)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._spelt("text", list(texts))

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        if self.prompt.forced:  # then sides differ by their languages alone, and these are the prompt's
            return self.encode(texts)
        return self._spelt("text_target", list(texts))

    def _spelt(self, side: str, texts: list[str]) -> list[list[int]]:
        """The ids of texts, none of them a control id: text that says </s> ends nothing."""
        if not texts:
            return []
        rows = self._tokenizer(**{side: texts}, **_AS_TEXT)["input_ids"]
        unknown = self._tokenizer.unk_token_id
        control = {*self._tokenizer.all_special_ids} - {unknown}
        for row, text in enumerate(texts):
            if control.isdisjoint(rows[row]):
                continue
            for piece in self._tokenizer.all_special_tokens:  # some tokenizers know it as a piece, unless it is broken
                text = text.replace(piece, f"{piece[0]} {piece[1:]}")
            ids = self._tokenizer(**{side: [text]}, **_AS_TEXT)["input_ids"][0]
            rows[row] = [unknown if i in control else i for i in ids]
        return rows

    def decode(self, ids: Sequence[Sequence[int] | np.ndarray]) -> list[str]:
        rows = [[int(i) for i in row] for row in ids]
        return self._tokenizer.batch_decode(rows, skip_special_tokens=True) if rows else []

    def save(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(folder)
        _save_prompt(self.prompt, self.pad_id, folder)


def _unusual(prompt: Prompt, pad_id: int) -> list[dict[str, Any]]:
    """A prompt that is more than padding, to be kept and to be part of an identity."""
    return [] if prompt == Prompt(pad_id) else [asdict(prompt)]


def _save_prompt(prompt: Prompt, pad_id: int, folder: Path) -> None:
    for fields in _unusual(prompt, pad_id):
        write_json(folder / PROMPT, fields)


TokenizerSettings = SentencePieceSettings | HuggingFaceSettings


def source_ids(tokenizer: Tokenizer, sources: Sequence[str]) -> Ragged:
    """Token ids of each source, the prompt's before them and EOS behind, int32 [tokens]."""
    before, eos = tokenizer.prompt.source, tokenizer.eos_id
    return Ragged.of([*before, *ids, eos] for ids in each_once(tokenizer.encode, sources))


def target_ids(tokenizer: Tokenizer, targets: Sequence[str]) -> Ragged:
    """Token ids of each text in the target language, ending in EOS: a human translation has ended."""
    eos = tokenizer.eos_id
    return Ragged.of([*ids, eos] for ids in each_once(tokenizer.encode_targets, targets))


def each_once(encode: Callable[[Sequence[str]], list[list[int]]], texts: Sequence[str]) -> Iterator[list[int]]:
    """Ids of each text, not all in memory as lists; a text that comes again is encoded once."""
    for start in range(0, len(texts), BLOCK):
        block = texts[start : start + BLOCK]
        known = dict.fromkeys(block)
        ids = dict(zip(known, encode(list(known)), strict=True))
        yield from (ids[text] for text in block)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read what `save` wrote."""
    model = folder / "sentencepiece.model"
    if not folder.is_dir():
        raise UserError(f"{folder}: no tokenizer there")
    tokenizer: SentencePieceTokenizer | HuggingFaceTokenizer | MarianTokenizer
    if model.exists():
        tokenizer = SentencePieceTokenizer(model.read_bytes())
    else:
        tokenizer = HuggingFaceSettings(str(folder)).train([], 0)
    if not (folder / PROMPT).exists():
        return tokenizer
    fields = read_json(folder / PROMPT)
    return tokenizer.prompted(Prompt(fields["start"], tuple(fields["forced"]), tuple(fields["source"])))
