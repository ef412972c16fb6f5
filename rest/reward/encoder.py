"""A published encoder that a learned reward may start from: XLM-R, which reads hypothesis and source in one row."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flax import nnx

from rest.data.tokenizer import Tokenizer, load_tokenizer
from rest.errors import UserError
from rest.learning.checkpoint import load_parameters, save_parameters
from rest.model.folder import blueprint
from rest.model.xlmr import XLMR, XLMRSettings, read_xlmr
from rest.stage import read_json, write_json


@dataclass(frozen=True)
class Encoder:
    """An encoder with its tokenizer. Parameters are a pure dict of arrays; `graph` and they make the network."""

    settings: XLMRSettings
    tokenizer: Tokenizer
    graph: Any
    parameters: Any

    def with_parameters(self, parameters: Any) -> Encoder:
        return dataclasses.replace(self, parameters=parameters)

    def rows(self, sources: Sequence[str], hypotheses: Sequence[str], longest: int) -> list[np.ndarray]:
        """`<s> hypothesis </s></s> source </s>`, as XLM-R was given two texts; the end of the source is cut first."""
        bos, eos = self.settings.bos_id, self.tokenizer.eos_id
        longest = min(longest, self.settings.max_tokens)
        sides = (self.tokenizer.encode(texts) for texts in (hypotheses, sources))
        rows = ([bos, *y[: longest - 3], eos, eos, *x, eos] for y, x in zip(*sides, strict=True))
        return [np.asarray(row[:longest], np.int32) for row in rows]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(folder / "tokenizer")
        save_parameters(folder / "parameters", self.parameters)
        write_json(folder / "encoder.json", dataclasses.asdict(self.settings))

    @classmethod
    def load(cls, folder: Path) -> Encoder:
        """Read what `save` wrote."""
        settings = XLMRSettings(**read_json(folder / "encoder.json"))
        graph, state = nnx.split(XLMR(settings, rngs=nnx.Rngs(0)))
        parameters = load_parameters(folder / "parameters", nnx.to_pure_dict(state))
        return cls(settings, load_tokenizer(folder / "tokenizer"), graph, parameters)


@dataclass(frozen=True)
class HuggingFaceEncoder:
    """An XLM-R (or XLM-R XL) in the layout of Hugging Face."""

    folder: Path
    """config.json, model.safetensors and the tokenizer's files."""
    dropout: float | None = None
    """While training; None: what config.json says."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and matrix products."""

    def read(self) -> Encoder:
        """UserError where the folder holds no such encoder."""
        settings, tokenizer, graph, parameters = read_xlmr(self.folder, self.dtype)
        if self.dropout is None or self.dropout == settings.dropout:
            return Encoder(settings, tokenizer, graph, parameters)
        if not 0 <= self.dropout < 1:
            raise UserError(f"reward.start: dropout {self.dropout} must be from 0 to below 1")
        settings = dataclasses.replace(settings, dropout=self.dropout)
        graph, _ = blueprint(lambda: XLMR(settings, rngs=nnx.Rngs(0)))
        return Encoder(settings, tokenizer, graph, parameters)
