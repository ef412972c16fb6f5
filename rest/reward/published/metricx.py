"""MetricX-23 and MetricX-24 (Juraska et al. 2023, 2024): an mT5 that reads a translation and gives its error.

Inputs, the one step of the decoder and the logit that is read are those of the published code, metricx23 and metricx24
in github.com/google-research/metricx. The published number is an error as MQM weighs it: 0 is best, 25 worst. Here it
is negated, as the scores of MQM raters are published, so that higher is better as for every other reward function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rest.errors import UserError
from rest.model.families.files import Config
from rest.model.families.hub import model_folder, tokenizer_folder
from rest.model.families.huggingface import HuggingFaceModel
from rest.model.layers import TransformerSettings
from rest.model.network import Network
from rest.model.transformer import Transformer
from rest.reward.published.scorer import Scorer, refuse_unequal

WORST = 25.0


@dataclass(frozen=True)
class InputForm:
    """How the texts become one input."""

    template: str
    """Where {source}, {hypothesis} and {reference} stand."""
    max_tokens: int
    """Where the input is cut; the end of sequence, which is then taken off, counts as one."""


METRICX_23 = InputForm("candidate: {hypothesis} reference: {reference}", 1024)
METRICX_23_QE = InputForm("candidate: {hypothesis} source: {source}", 1024)
METRICX_24 = InputForm("source: {source} candidate: {hypothesis} reference: {reference}", 1536)
METRICX_24_QE = InputForm("source: {source} candidate: {hypothesis}", 1536)


class MetricXNetwork(nnx.Module):
    """Encoder, one step of the decoder, and the one row of the output layer that is read."""

    def __init__(self, settings: TransformerSettings, vocabulary_size: int, *, pad_id: int, rngs: nnx.Rngs) -> None:
        self.body = Transformer(settings, vocabulary_size, pad_id=pad_id, rngs=rngs)
        self.head = nnx.Param(jnp.zeros(settings.width))

    def __call__(self, ids: Int[Array, "B S"], mask: Bool[Array, "B S"]) -> Float[Array, " B"]:
        """The negated error of each input."""
        rows, length = ids.shape
        encoded = self.body.encode(ids, jnp.arange(length)[None], mask[:, None])
        start, here = jnp.full((rows, 1), self.body.prompt[0]), jnp.zeros((rows, 1), jnp.int32)
        states = self.body.decode(start, here, jnp.ones((rows, 1, 1), bool), encoded, mask[:, None])
        hidden, _ = self.body.output_layer(states[:, 0])
        error = hidden.astype(jnp.float32) @ self.head[...]
        return 0.0 - jnp.clip(error, 0.0, WORST)  # and not a negation, which would give -0.0


@dataclass(frozen=True)
class MetricX:
    """A published MetricX, from a folder or the Hugging Face hub; a reward function, float32 [n] in [-25, 0]."""

    folder: Path | str
    """Where config.json and the weights are; or a name on the hub, such as google/metricx-24-hybrid-large-v2p6."""
    tokenizer: Path | str | None = None
    """The same for the files of its mT5 tokenizer, such as google/mt5-xl; None: where the weights are."""
    form: InputForm = METRICX_24_QE
    batch_tokens: int = 8192
    """Positions that are scored at once, padding included."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and matrix products; the published scores are of float32."""
    score_id: int = 250089
    """The id whose logit is the error: <extra_id_10> of mT5."""
    revision: str = "main"
    """Of the weights on the hub: branch, tag or commit."""

    scale: ClassVar[tuple[float, float]] = (-WORST, 0.0)

    @property
    def needs_references(self) -> bool:
        return "{reference}" in self.form.template

    @cached_property
    def scorer(self) -> Scorer:
        """The network, read on first use."""
        folder = model_folder(self.folder, self.revision)
        config = Config.read(folder / "config.json")
        config.demand("model_type", "mt5")
        texts = folder if self.tokenizer is None else tokenizer_folder(self.tokenizer)
        if not any((texts / name).is_file() for name in ("spiece.model", "tokenizer.json")):
            raise UserError(
                f"{texts / 'spiece.model'}: no such file, nor is there tokenizer.json; `tokenizer` may name the folder "
                "of another model that has them, such as google/mt5-xl"
            )
        body, tokenizer = HuggingFaceModel(folder, dtype=self.dtype).read(texts)
        config.demand("decoder_start_token_id", tokenizer.pad_id)  # what the one step of the decoder begins with
        settings: TransformerSettings = body.settings
        if settings.tied_output:
            raise UserError(f"{folder}: the weights have no tensor lm_head.weight of their own, which scores")
        if tokenizer.vocabulary_size <= self.score_id:
            config.refuse(
                "vocab_size", f"the tokenizer has {tokenizer.vocabulary_size} ids, and {self.score_id} scores"
            )
        settings = dataclasses.replace(settings, tied_output=True)  # of the output layer, one row is kept

        def build(rngs: nnx.Rngs) -> MetricXNetwork:
            return MetricXNetwork(settings, tokenizer.vocabulary_size, pad_id=tokenizer.pad_id, rngs=rngs)

        kept = {name: part for name, part in body.parameters.items() if name != "output"}
        filled = {"body": kept, "head": body.parameters["output"][self.score_id]}
        return Scorer(Network.shaped((settings, self.form), build).with_parameters(filled), tokenizer)

    @property
    def identity(self) -> str:
        """Hash of the parameters, the tokenizer and the settings that change scores."""
        return self.scorer.identity

    def rows(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
    ) -> list[list[int]]:
        """Ids of each input, without EOS."""
        inputs = [
            self.form.template.format(source=source, hypothesis=hypothesis, reference=reference)
            for source, hypothesis, reference in zip(
                sources, hypotheses, references or [""] * len(sources), strict=True
            )
        ]
        return [ids[: self.form.max_tokens - 1] for ids in self.scorer.tokenizer.encode(inputs)]

    def __call__(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
    ) -> np.ndarray:
        refuse_unequal(sources, hypotheses, references)
        if self.needs_references and references is None:
            raise UserError("this form of MetricX compares with references, but this text has none: choose a QE form.")
        return self.scorer(self.rows(sources, hypotheses, references), self.batch_tokens)
