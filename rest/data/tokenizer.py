"""Text to token ids and back: SentencePiece trained on the training text, or any Hugging Face tokenizer."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import sentencepiece

from rest.errors import UserError


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the system asks of a tokenizer. Source and target share one vocabulary."""

    @property
    def vocabulary_size(self) -> int: ...
    @property
    def pad_id(self) -> int:
        """Padding; also the decoder's first input, as in Marian."""
        ...

    @property
    def eos_id(self) -> int: ...
    @property
    def identity(self) -> str:
        """Hash of the content: equal for tokenizers that give the same ids."""
        ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids without EOS."""
        ...

    def decode(self, ids: Sequence[Sequence[int] | np.ndarray]) -> list[str]:
        """Text; EOS and padding are left out."""
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
                f"{str(error).strip().splitlines()[-1]}"
            ) from error
        return SentencePieceTokenizer(model.getvalue())


class SentencePieceTokenizer:
    """A trained SentencePiece model."""

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

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
        return hashlib.sha256(self._model).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._processor.encode(list(texts), num_threads=1)

    def decode(self, ids: Sequence[Sequence[int] | np.ndarray]) -> list[str]:
        silent = {self.pad_id, self.eos_id}
        rows = [[int(i) for i in row if i not in silent] for row in ids]
        return self._processor.decode(rows, num_threads=1) if rows else []

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sentencepiece.model").write_bytes(self._model)


@dataclass(frozen=True)
class HuggingFaceSettings:
    """A tokenizer of the Hugging Face hub or of a local folder, used as it is."""

    name: str
    """Name on the hub, or path of a folder."""

    def train(self, sides: Sequence[Sequence[str]], seed: int) -> HuggingFaceTokenizer:
        """Load it; nothing is learned."""
        from transformers import AutoTokenizer

        try:
            return HuggingFaceTokenizer(AutoTokenizer.from_pretrained(self.name))
        except (OSError, ValueError) as error:
            raise UserError(f"tokenizer: {self.name!r} cannot be loaded: {str(error).splitlines()[0]}") from error


class HuggingFaceTokenizer:
    """Any fast or slow tokenizer of `transformers` that has padding and EOS."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
            raise UserError(f"tokenizer: {tokenizer.name_or_path!r} lacks an EOS or a padding token")

    @cached_property
    def vocabulary_size(self) -> int:
        return max(self._tokenizer.get_vocab().values()) + 1  # ids may have gaps

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
        parts = [self._tokenizer.get_vocab(), rules or type(self._tokenizer).__qualname__]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    def decode(self, ids: Sequence[Sequence[int] | np.ndarray]) -> list[str]:
        rows = [[int(i) for i in row] for row in ids]
        return self._tokenizer.batch_decode(rows, skip_special_tokens=True) if rows else []

    def save(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(folder)


TokenizerSettings = SentencePieceSettings | HuggingFaceSettings


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read what `save` wrote."""
    model = folder / "sentencepiece.model"
    if model.exists():
        return SentencePieceTokenizer(model.read_bytes())
    if not folder.is_dir():
        raise UserError(f"{folder}: no tokenizer there")
    return HuggingFaceSettings(str(folder)).train([], 0)
