"""A published encoder that a learned reward may start from: XLM-R, which reads hypothesis and source in one row."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rest.data.tokenizer import Tokenizer
from rest.errors import UserError
from rest.model.families.xlmr import XLMR, XLMRSettings, read_xlmr
from rest.model.network import Network


@dataclass(frozen=True)
class Encoder:
    """An encoder with its tokenizer."""

    network: Network
    tokenizer: Tokenizer

    @property
    def settings(self) -> XLMRSettings:
        return self.network.settings


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
        network, tokenizer = read_xlmr(self.folder, self.dtype)
        if self.dropout is None or self.dropout == network.settings.dropout:
            return Encoder(network, tokenizer)
        if not 0 <= self.dropout < 1:
            raise UserError(f"reward.start: dropout {self.dropout} must be from 0 to below 1")
        settings = dataclasses.replace(network.settings, dropout=self.dropout)
        changed = Network.shaped(settings, lambda rngs: XLMR(settings, rngs=rngs))
        return Encoder(changed.with_parameters(network.parameters), tokenizer)
