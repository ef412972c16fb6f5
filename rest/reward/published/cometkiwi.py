"""CometKiwi (Rei et al. 2022, 2023): an XLM-R that reads a translation beside its source and gives its quality.

Inputs and network are those of the published code, UnifiedMetric of github.com/Unbabel/COMET, for the checkpoints that
read only these two: wmt22-cometkiwi-da, wmt23-cometkiwi-da-xl and -xxl. Scores are about 0 to 1, higher is better.
The checkpoints are pickles, which are not read; `scripts/convert_cometkiwi.py` writes the folder that is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rest.errors import UserError
from rest.model.families.files import Config, Place, fill, read_tensors, refuse_left
from rest.model.families.xlmr import UNUSED, XLMR, XLMRSettings, read_settings, state_name
from rest.model.layers import Linear
from rest.model.network import Network
from rest.reward.published.scorer import Scorer, refuse_unequal

ENCODER = "encoder.model."  # what their names of the encoder's tensors begin with
DROPOUT = ("layerwise_attention.dropout_mask", "layerwise_attention.dropout_fill")


def sparsemax(z: Float[Array, " L"]) -> Float[Array, " L"]:
    """The nearest probabilities to z (Martins & Astudillo 2016)."""
    falling = -jnp.sort(-z)
    excess = jnp.cumsum(falling) - 1
    count = jnp.arange(1, z.size + 1)
    support = (falling * count > excess).sum()
    return jnp.maximum(z - excess[support - 1] / support, 0)


TRANSFORMATIONS: dict[str, Callable[[Array], Array]] = {
    "softmax": jax.nn.softmax,
    "sparsemax": sparsemax,
    # The code that the published checkpoints were trained with meant sparsemax and took softmax. This word in their
    # settings tells COMET 2.2.4 and newer to do so still.
    "sparsemax_patch": jax.nn.softmax,
}
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "Tanh": jnp.tanh,
    "Sigmoid": jax.nn.sigmoid,
    "ReLU": jax.nn.relu,
    "GELU": partial(jax.nn.gelu, approximate=False),
    "SiLU": jax.nn.silu,
}


@dataclass(frozen=True)
class HeadSettings:
    """What stands on the encoder, in the words of COMET's hparams.yaml."""

    layer_transformation: str
    """Which function makes the weights of the layers."""
    layer_norm: bool
    """Normalise each layer's states, over all positions of a row, before they are mixed."""
    hidden_sizes: tuple[int, ...]
    activations: str
    final_activation: str | None = None


class CometKiwiNetwork(nnx.Module):
    """Encoder, a mixture of its layers at the first token, and a feed-forward estimator."""

    def __init__(self, encoder: XLMRSettings, head: HeadSettings, *, rngs: nnx.Rngs) -> None:
        self.settings = head
        self.encoder = XLMR(encoder, rngs=rngs)
        self.layer_weights = nnx.List([nnx.Param(jnp.zeros(1)) for _ in range(encoder.layers + 1)])
        self.gamma = nnx.Param(jnp.ones(1))
        sizes = (encoder.width, *head.hidden_sizes, 1)
        self.estimator = nnx.List([Linear(m, n, rngs=rngs) for m, n in pairwise(sizes)])

    def first(self, states: Float[Array, "B S D"], mask: Bool[Array, "B S"]) -> Float[Array, "B D"]:
        """One layer's state of the first token, float32."""
        states = states.astype(jnp.float32)
        if not self.settings.layer_norm:
            return states[:, 0]
        real = mask[..., None]
        count = jnp.maximum(mask.sum(1), 1)[:, None] * states.shape[-1]
        mean = jnp.where(real, states, 0).sum((1, 2))[:, None] / count
        centred = states - mean[..., None]
        variance = jnp.square(jnp.where(real, centred, 0)).sum((1, 2))[:, None] / count
        return centred[:, 0] / jnp.sqrt(variance + 1e-12)

    def __call__(self, ids: Int[Array, "B S"], mask: Bool[Array, "B S"]) -> Float[Array, " B"]:
        """The quality of each pair."""
        weights = TRANSFORMATIONS[self.settings.layer_transformation](
            jnp.concatenate([weight[...] for weight in self.layer_weights])
        )
        layers = jnp.stack([self.first(states, mask) for states in self.encoder(ids, mask)])
        x = jnp.einsum("l,lbd->bd", weights * self.gamma[...], layers)
        for linear in self.estimator[:-1]:
            x = ACTIVATIONS[self.settings.activations](linear(x))
        scores = self.estimator[-1](x)[:, 0]
        final = self.settings.final_activation
        return scores if final is None else ACTIVATIONS[final](scores)


@dataclass(frozen=True)
class CometKiwi:
    """A converted CometKiwi checkpoint; a reward function that needs no references."""

    folder: Path
    """What scripts/convert_cometkiwi.py wrote: config.json, hparams.json, model.safetensors, the tokenizer's files."""
    max_tokens: int = 512
    """Where the joined row is cut: the end of the source goes first. Published scores are of 512."""
    batch_tokens: int = 8192
    """Positions that are scored at once, padding included."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the encoder's activations and matrix products; the published scores are of float32."""

    scale: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs_references: ClassVar[bool] = False

    @cached_property
    def scorer(self) -> Scorer:
        """The network, read on first use."""
        encoder, tokenizer = read_settings(self.folder, self.dtype)
        if not 8 <= self.max_tokens <= encoder.max_tokens:
            raise UserError(f"CometKiwi: max_tokens {self.max_tokens} is not between 8 and {encoder.max_tokens}")
        head = read_head(self.folder)
        settings = encoder, head, self.max_tokens
        empty = Network.shaped(settings, lambda rngs: CometKiwiNetwork(encoder, head, rngs=rngs))
        tensors = read_tensors(self.folder)
        network, left = fill(self.folder, empty, tensors, partial(_tensor_name, encoder))
        for name in left:
            if name not in DROPOUT and name.removeprefix(ENCODER) not in UNUSED:
                refuse_left(self.folder, name)
        return Scorer(network, tokenizer)

    @property
    def identity(self) -> str:
        """Hash of the parameters, the tokenizer and the settings that change scores."""
        return self.scorer.identity

    def rows(self, sources: Sequence[str], hypotheses: Sequence[str]) -> list[list[int]]:
        """`<s> hypothesis </s></s> source </s>`, cut; each side is first cut to what it could have if it were alone."""
        tokenizer, room = self.scorer.tokenizer, self.max_tokens - 4
        bos, eos, pad = self.scorer.network.settings[0].bos_id, tokenizer.eos_id, tokenizer.pad_id
        sides = [[[i for i in ids[:room] if i != pad] for ids in tokenizer.encode(x)] for x in (hypotheses, sources)]
        return [[bos, *y, eos, eos, *x, eos][: self.max_tokens] for y, x in zip(*sides, strict=True)]

    def __call__(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
    ) -> np.ndarray:
        refuse_unequal(sources, hypotheses, references)
        return self.scorer(self.rows(sources, hypotheses), self.batch_tokens)


def read_head(folder: Path) -> HeadSettings:
    """The settings of hparams.json that scores depend on; refuses what the network here cannot do."""
    hparams = Config.read(folder / "hparams.json")
    hparams.choose("class_identifier", {"unified_metric": None})
    hparams.choose("sent_layer", {"mix": None})
    if hparams["input_segments"] != ["mt", "src"]:
        hparams.refuse("input_segments", 'what can be read is ["mt", "src"]')
    hparams.demand("word_level_training", False)  # texts are then tokenised word by word
    for name, choices in {"layer_transformation": TRANSFORMATIONS, "activations": ACTIVATIONS}.items():
        hparams.choose(name, choices)
    if hparams.get("final_activation") is not None:
        hparams.choose("final_activation", ACTIVATIONS)
    return HeadSettings(
        layer_transformation=hparams["layer_transformation"],
        layer_norm=hparams["layer_norm"],
        hidden_sizes=tuple(hparams["hidden_sizes"]),
        activations=hparams["activations"],
        final_activation=hparams.get("final_activation"),
    )


def _tensor_name(encoder: XLMRSettings, keys: Place) -> str:
    """Where COMET keeps the parameter at `keys` of ours."""
    match keys:
        case ("encoder", *rest):
            return ENCODER + state_name(encoder, tuple(rest))
        case ("estimator", int(layer), leaf):  # an activation and dropout follow each linear layer
            return f"estimator.ff.{3 * layer}.{'weight' if leaf == 'kernel' else leaf}"
        case ("layer_weights", layer):
            return f"layerwise_attention.scalar_parameters.{layer}"
    return "layerwise_attention.gamma"
