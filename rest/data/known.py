"""The token ids of a run's texts, kept beside its stages: no stage tokenises what another has.

run/tokens/dev-source-<key>.arrow ...   columns hash, more (the halves of a text's hash) and tokens, by rising hash

A file is found by the content of its texts and its tokenizer, is read where it lies, and may be removed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from rest.data.corpus import Split
from rest.data.ragged import BLOCK, Ragged
from rest.data.shards import as_array, made_once, reading
from rest.data.tokenizer import Prompt, Tokenizer

Encode = Callable[[Sequence[str]], list[list[int]]]
SCHEMA = pa.schema([("hash", pa.uint64()), ("more", pa.uint64()), ("tokens", pa.list_(pa.int32()))])


@dataclass(frozen=True)
class KnownTexts:
    """Texts of one language and their ids, memory-mapped but for 8 bytes a text."""

    hashes: np.ndarray  # uint64 [n], rising
    more: pa.ChunkedArray  # uint64 [n], the other half: no two texts are taken for equal
    ids: Ragged  # int32

    @classmethod
    def kept(cls, path: Path, texts: Sequence[str], encode: Encode) -> KnownTexts:
        """Those of a file, which is made where it is absent; of several processes one makes it."""

        def write(file: BinaryIO) -> None:
            hashes = hashes_of(texts)
            _, firsts = np.unique(hashes[:, 0], return_index=True)
            with pa.ipc.new_file(file, SCHEMA) as writer:
                for start in range(0, len(firsts), BLOCK):
                    rows = firsts[start : start + BLOCK]
                    tokens = Ragged.of(encode([texts[row] for row in rows]))
                    columns = hashes[rows, 0], hashes[rows, 1], list(tokens)
                    writer.write(pa.record_batch(list(map(as_array, columns, SCHEMA.types)), schema=SCHEMA))

        made_once(path, write)
        with reading(path):
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        return cls(table["hash"].to_numpy(), table["more"], Ragged.of_column(table["tokens"]))

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """Where the text of each hash, uint64 [n, 2], is: int64 [n]; -1: it is not known."""
        if not len(self.hashes) or not len(hashes):
            return np.full(len(hashes), -1)
        at = np.minimum(np.searchsorted(self.hashes, hashes[:, 0]), len(self.hashes) - 1)
        same = (self.hashes[at] == hashes[:, 0]) & (self.more.take(pa.array(at)).to_numpy() == hashes[:, 1])
        return np.where(same, at, -1)


def hashes_of(texts: Sequence[str]) -> np.ndarray:
    """uint64 [n, 2]"""
    digests = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts)
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)


class Remembering:
    """A tokenizer that looks up texts that are known, and is otherwise the one that it is given."""

    def __init__(self, tokenizer: Tokenizer, folder: Path, splits: Iterable[Split]) -> None:
        """It knows the texts of the splits. Their ids are in `folder`, and are put there where they are not."""
        self._tokenizer, self._folder = tokenizer, folder
        self._sources: list[KnownTexts] = []
        self._targets: list[KnownTexts] = []
        for split in splits:
            self.remember(split)

    def remember(self, split: Split) -> None:
        """Know the texts of a split too."""
        self._sources.append(self._kept(f"{split.name}-source", split.sources, self.encode))
        for number, references in enumerate([split.references or [], *split.more_references]):
            if references:
                self._targets.append(self._kept(f"{split.name}-target-{number}", references, self.encode_targets))

    def _kept(self, name: str, texts: Sequence[str], encode: Encode) -> KnownTexts:
        content = hashlib.sha256(self.identity.encode())
        for start in range(0, len(texts), BLOCK):
            content.update("\n".join(texts[start : start + BLOCK]).encode("utf-8", "surrogatepass") + b"\0")
        return KnownTexts.kept(self._folder / f"{name}-{content.hexdigest()[:16]}.arrow", texts, encode)

    @property
    def vocabulary_size(self) -> int:
        return self._tokenizer.vocabulary_size

    @property
    def pad_id(self) -> int:
        return self._tokenizer.pad_id

    @property
    def eos_id(self) -> int:
        return self._tokenizer.eos_id

    @property
    def prompt(self) -> Prompt:
        return self._tokenizer.prompt

    @property
    def identity(self) -> str:
        return self._tokenizer.identity

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return _looked_up(self._sources, self._tokenizer.encode, texts)

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        return _looked_up(self._targets, self._tokenizer.encode_targets, texts)

    def decode(self, ids: Sequence[Sequence[int] | np.ndarray]) -> list[str]:
        return self._tokenizer.decode(ids)

    def save(self, folder: Path) -> None:
        self._tokenizer.save(folder)


def _looked_up(known: Sequence[KnownTexts], encode: Encode, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text from the first that know it, or as they are encoded."""
    found: list[list[int] | None] = [None] * len(texts)
    hashes, left = hashes_of(texts), np.arange(len(texts))
    for some in known:
        places = some.find(hashes[left])
        for row, place in zip(left[places >= 0], places[places >= 0], strict=True):
            found[row] = some.ids[place].tolist()
        left = left[places < 0]
    new = iter(encode([texts[row] for row in left.tolist()])) if len(left) else iter(())
    return [next(new) if ids is None else ids for ids in found]
