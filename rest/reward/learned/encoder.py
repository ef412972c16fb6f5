"""A published encoder that a learned reward may start from, and how its states become numbers of a pair of texts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from rest.data.segments import Segments
from rest.data.tokenizer import Tokenizer
from rest.errors import UserError
from rest.model.families.bert import read_encoder
from rest.model.families.hub import commit, model_folder
from rest.model.families.xlmr import XLMR, XLMRSettings
from rest.model.network import Network
from rest.model.products import Products

# How two texts are read


@dataclass(frozen=True)
class Joint:
    """Hypothesis and source in one row, each seeing the other (CometKiwi: Rei et al. 2022)."""


@dataclass(frozen=True)
class Apart:
    """Each by itself; the head reads [s, h, |s - h|, s * h] (Conneau et al. 2017, "Supervised Learning of Universal
    Sentence Representations", section 3.1)."""

    prefix: str = ""
    """Before each text, as the encoder was trained: "query: " for E5."""


# Which states are read


@dataclass(frozen=True)
class LastLayer:
    """What the last layer gives."""


@dataclass(frozen=True)
class MixedLayers:
    """A learned mean of all layers, the embedding among them, times a learned number (ELMo: Peters et al. 2018; COMET).

    It starts at the plain mean.
    """


# What becomes of the states of a text's tokens


@dataclass(frozen=True)
class MeanState:
    """Their mean."""

    def __call__(
        self, body: XLMR, states: Float[Array, "B T D"], tokens: Segments, positions: Array, texts: int
    ) -> Float[Array, "B Q D"]:
        """Float32, of each of Q texts of a row; positions [B, T] count from 0 in each."""
        return tokens.means(states.astype(jnp.float32), texts)


@dataclass(frozen=True)
class FirstState:
    """The first one."""

    def __call__(
        self, body: XLMR, states: Float[Array, "B T D"], tokens: Segments, positions: Array, texts: int
    ) -> Float[Array, "B Q D"]:
        """Float32, of each of Q texts of a row; positions [B, T] count from 0 in each."""
        firsts = Segments(jnp.where(positions == 0, tokens.ids, 0))
        return firsts.means(states.astype(jnp.float32), texts)


@dataclass(frozen=True)
class PooledState(FirstState):
    """The first one after BERT's pooler, tanh(W x + b), as LaBSE was trained (Feng et al. 2022)."""

    def __call__(
        self, body: XLMR, states: Float[Array, "B T D"], tokens: Segments, positions: Array, texts: int
    ) -> Float[Array, "B Q D"]:
        """Float32, of each of Q texts of a row; positions [B, T] count from 0 in each."""
        assert body.pooler is not None
        return jnp.tanh(body.pooler(super().__call__(body, states, tokens, positions, texts)))


Reading = Joint | Apart
Layers = LastLayer | MixedLayers
Pooling = MeanState | FirstState | PooledState


@dataclass(frozen=True)
class View:
    """How an encoder's states become what a head reads."""

    reading: Reading = Joint()
    layers: Layers = LastLayer()
    pooling: Pooling = MeanState()

    def record(self) -> dict[str, dict[str, str]]:
        """For a file."""
        return {name: {"kind": type(part).__name__, **vars(part)} for name, part in vars(self).items()}

    @classmethod
    def of(cls, record: dict[str, dict[str, str]]) -> View:
        """What `record` wrote."""
        parts = {name: dict(part) for name, part in record.items()}
        made: dict[str, Any] = {name: KINDS[part.pop("kind")](**part) for name, part in parts.items()}
        return cls(**made)


KINDS = {kind.__name__: kind for kind in (Joint, Apart, LastLayer, MixedLayers, MeanState, FirstState, PooledState)}


@dataclass(frozen=True)
class Encoder:
    """An encoder with its tokenizer."""

    network: Network
    tokenizer: Tokenizer
    view: View = View()

    @property
    def settings(self) -> XLMRSettings:
        return self.network.settings


@dataclass(frozen=True)
class HuggingFaceEncoder:
    """An encoder in the layout of Hugging Face: XLM-R, XLM-R XL, or BERT and its kin, such as E5, LaBSE, MiniLM."""

    folder: Path | str
    """Where config.json, weights and the tokenizer's files are; or a name on the hub: FacebookAI/xlm-roberta-base."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    reading: Reading = Joint()
    """Source and hypothesis in one row, Joint(), or each by itself, Apart()."""
    layers: Layers = LastLayer()
    """The last layer's states, or a learned mixture of all, MixedLayers()."""
    pooling: Pooling = MeanState()
    """What becomes of a text's states: their MeanState(), the FirstState(), or its PooledState()."""
    depth: int | None = None
    """Only its first so many layers are there, which cost less; the middle ones often tell more of a translation than
    the last, which serve what the encoder was trained for (BERTScore: Zhang et al. 2020, appendix B). None: all."""
    dropout: float | None = None
    """While training; None: what config.json says."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and matrix products."""
    products: Products = "float32"
    """What the factors of linear layers are rounded to where `dtype` is float32; the faster way on CPU."""

    @property
    def commit(self) -> str | None:
        """The commit on the hub that its files are of; None for a folder."""
        return commit(model_folder(self.folder, self.revision))

    def read(self) -> Encoder:
        """UserError where the folder holds no such encoder."""
        folder, pooler = model_folder(self.folder, self.revision), isinstance(self.pooling, PooledState)
        network, tokenizer = read_encoder(folder, self.dtype, pooler)
        view = View(self.reading, self.layers, self.pooling)
        dropout = network.settings.dropout if self.dropout is None else self.dropout
        if not 0 <= dropout < 1:
            raise UserError(f"reward.start: dropout {dropout} must be from 0 to below 1")
        there = network.settings.layers
        depth = there if self.depth is None else self.depth
        if not 1 <= depth <= there:
            raise UserError(f"reward.start: depth {depth} must be from 1 to {there}, the layers of {folder}")
        settings = dataclasses.replace(network.settings, layers=depth, dropout=dropout, products=self.products)
        changed = Network.shaped(settings, lambda rngs: XLMR(settings, rngs=rngs))
        layers = {number: layer for number, layer in network.parameters["layers"].items() if number < depth}
        return Encoder(changed.with_parameters({**network.parameters, "layers": layers}), tokenizer, view)
