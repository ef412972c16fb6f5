"""A learned, reference-free reward: a network that reads source and hypothesis and gives one number.

The network is the policy's own with a linear head in addition, started from the behavioural-cloning policy, as
InstructGPT starts its reward model from the supervised one (Ouyang et al. 2022): the encoder reads the source, the
decoder reads the hypothesis beside it, and the head reads the mean of the decoder's states and how likely the network
finds the hypothesis. The head is first fitted alone by ridge regression, then everything is trained together (linear
probing, then fine-tuning: Kumar et al. 2022), so that training starts from a reward that is useful already.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from rest.data.batches import Batch, BatchSettings, Examples, evaluation_batches
from rest.errors import UserError
from rest.learning.losses import Loss, SquaredError
from rest.learning.mesh import data_mesh, divide
from rest.learning.preferences import BradleyTerry
from rest.model.transformer import Linear, Transformer
from rest.policy.policy import Policy, hidden_states
from rest.reward.reward import Calibration
from rest.stage import read_json, write_json

LIKELIHOODS = 3  # mean log p, mean p and lowest log p of a hypothesis' tokens


class RewardNetwork(nnx.Module):
    """Encoder-decoder with linear heads beside its output layer; several heads are an ensemble."""

    def __init__(self, body: Transformer, heads: int, *, rngs: nnx.Rngs) -> None:
        self.body = body
        self.head = Linear(body.settings.width + LIKELIHOODS, heads, rngs=rngs)

    def features(self, batch: Batch, key: Array | None) -> Float[Array, "B Q F"]:
        """What the head reads of each packed pair: the mean decoder state, and the likelihoods."""
        states = hidden_states(self.body, batch, key)
        log_probs = self.body.scores(states, batch.target).log_probs
        slots = jnp.arange(1, batch.sequence_ids.shape[1] + 1)
        own = batch.target_segments[:, :, None] == slots[None, None]
        columns = jnp.concatenate(
            [states.astype(jnp.float32), log_probs[..., None], jnp.exp(log_probs)[..., None]], axis=-1
        )
        lengths = jnp.maximum(own.sum(1), 1)[..., None]
        means = jnp.einsum("btq,btf->bqf", own.astype(jnp.float32), columns) / lengths
        lowest = jnp.where(own, log_probs[..., None], 0.0).min(1)[..., None]
        return jnp.concatenate([means, lowest], axis=-1)

    def __call__(self, batch: Batch, key: Array | None) -> Float[Array, "B Q K"]:
        """A raw score of each of K heads for each packed pair."""
        return self.head(self.features(batch, key))


@dataclass(frozen=True)
class RatingLoss:
    """What ratings are learned by: regression of their values, the ranking of their groups, or both."""

    regression: float = 1.0
    """Weight of the squared error."""
    ranking: float = 0.0
    """Weight of the ranking of hypotheses of the same source."""
    bradley_terry: BradleyTerry = BradleyTerry()

    def __post_init__(self) -> None:
        if min(self.regression, self.ranking) < 0 or self.regression + self.ranking == 0:
            raise UserError(
                f"loss: regression {self.regression} and ranking {self.ranking} must not be below 0, nor both 0"
            )

    def __call__(
        self,
        predicted: Float[Array, "B Q"],
        rating: Float[Array, "B Q"],
        group: Float[Array, "B Q"],
        mask: Bool[Array, "B Q"],
    ) -> Loss:
        """Means over sequences and over groups, added; divided by sequences."""
        squares = SquaredError()(predicted, rating, mask)
        if not self.ranking:
            return Loss(self.regression * squares.sum, squares.weight, squares.metrics)
        ranks = self.bradley_terry(predicted, rating, group, mask)
        scale = squares.weight / jnp.maximum(ranks.weight, 1.0)
        return Loss(
            self.regression * squares.sum + self.ranking * scale * ranks.sum,
            squares.weight,
            squares.metrics | {name: scale * value for name, value in ranks.metrics.items()},
        )


LEFT_OUT = 0.25  # share of the groups that each of several heads does not learn from


@dataclass(frozen=True)
class RewardObjective:
    """Learning from ratings; what `train` updates. Several heads leave out different groups, so that they differ."""

    graph: Any
    loss: RatingLoss = RatingLoss()

    def __call__(self, parameters: Any, batch: Batch, key: Array | None) -> Loss:
        scores = nnx.merge(self.graph, parameters)(batch, key)
        rating, group, real = batch.columns["rating"], batch.columns["group"], batch.sequence_ids >= 0
        losses = []
        for head in range(scores.shape[-1]):
            mask = real if scores.shape[-1] == 1 else real & ~left_out(group, head)
            losses.append(self.loss(scores[..., head], rating, group, mask))
        return jax.tree.map(lambda *parts: sum(parts), *losses)


def left_out(group: Float[Array, "*B"], head: int) -> Bool[Array, "*B"]:
    """Whether a head does not learn from a group: fixed by the two numbers."""
    key = jax.random.key(head)
    draw = jax.vmap(lambda number: jax.random.uniform(jax.random.fold_in(key, number)))
    return (draw(group.astype(jnp.int32).ravel()) < LEFT_OUT).reshape(group.shape)


@partial(jax.jit, static_argnames=("graph",))
def _features(graph: Any, parameters: Any, batch: Batch) -> Array:
    return nnx.merge(graph, parameters).features(batch, None)


@partial(jax.jit, static_argnames=("graph",))
def _predict(graph: Any, parameters: Any, batch: Batch) -> Array:
    return nnx.merge(graph, parameters)(batch, None)


@dataclass(frozen=True)
class LearnedReward:
    """A trained reward network; a reward function that needs no references."""

    base: Policy
    """Whose tokenizer and sizes the network has; its parameters are not used."""
    graph: Any
    parameters: Any
    batch: BatchSettings
    caution: float = 0.0
    """A score is the mean of the heads less this many standard deviations of them."""

    @classmethod
    def new(cls, base: Policy, batch: BatchSettings, heads: int = 1) -> LearnedReward:
        """The policy's network with heads that are still to be fitted."""
        body = nnx.merge(base.graph, base.parameters)
        graph, state = nnx.split(RewardNetwork(body, heads, rngs=nnx.Rngs(jax.random.key(0))))
        return cls(base, graph, nnx.to_pure_dict(state), batch)

    @property
    def heads(self) -> int:
        return self.parameters["head"]["bias"].shape[0]

    def probe(self, examples: Examples, ridge: float) -> LearnedReward:
        """Fit the heads alone to the column `rating` by ridge regression of the standardised features."""
        features = self._map(_features, self.parameters, examples).astype(np.float64)
        ratings, group = examples.columns["rating"].astype(np.float64), examples.columns["group"]
        kernels, biases = [], []
        for head in range(self.heads):
            kept = np.ones(len(ratings), bool) if self.heads == 1 else ~np.asarray(left_out(jnp.asarray(group), head))
            x, y = features[kept], ratings[kept]
            mean, spread = x.mean(0), x.std(0) + 1e-6
            z = (x - mean) / spread
            weights = np.linalg.solve(z.T @ z + ridge * len(z) * np.eye(z.shape[1]), z.T @ (y - y.mean())) / spread
            kernels.append(weights)
            biases.append(y.mean() - mean @ weights)
        fitted = {"kernel": np.stack(kernels, 1), "bias": np.asarray(biases)}
        head_parameters = {name: jnp.asarray(value, jnp.float32) for name, value in fitted.items()}
        return dataclasses.replace(self, parameters={**self.parameters, "head": head_parameters})

    @cached_property
    def identity(self) -> str:
        """Hash of the parameters, the tokenizer, the network's settings, the caution and where texts are cut."""
        cut = self.batch.source_tokens, self.batch.target_tokens
        known = self.base.tokenizer.identity, self.base.settings, cut, self.caution
        digest = hashlib.sha256(repr(known).encode())
        for leaf in jax.tree.leaves(self.parameters):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()

    def examples(self, sources: Sequence[str], hypotheses: Sequence[str]) -> Examples:
        """Ids of both sides, cut to what a row of a batch holds."""
        s, t = self.batch.source_tokens, self.batch.target_tokens
        encoded, read = self.base.encode_sources(sources), self.base.encode_references(hypotheses)
        return Examples([x[:s] for x in encoded], [y[:t] for y in read])

    def predict(self, parameters: Any, examples: Examples) -> np.ndarray:
        """Raw scores of the heads, float32 [n, K]."""
        if not len(examples):
            return np.zeros((0, self.heads), np.float32)
        return self._map(_predict, parameters, examples)

    def members(self, sources: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        """Raw scores of the heads, float32 [n, K]."""
        return self.predict(self.parameters, self.examples(sources, hypotheses))

    def _map(self, function: Any, parameters: Any, examples: Examples) -> np.ndarray:
        """A jitted function of packed batches, by pair [n, ...]."""
        parts, mesh = [], data_mesh()
        for part in evaluation_batches(examples, self.batch, pad_id=self.base.tokenizer.pad_id):
            real = part.sequence_ids >= 0
            values = np.asarray(function(self.graph, parameters, divide(part, mesh)))
            parts.append((part.sequence_ids[real], values[real]))
        rows, values = (np.concatenate(column) for column in zip(*parts, strict=True))
        return values[np.argsort(rows)]

    def __call__(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
    ) -> np.ndarray:
        return self.joined(self.members(sources, hypotheses))

    def joined(self, members: Float[np.ndarray, "n K"]) -> Float[np.ndarray, " n"]:
        """One score of those of the heads."""
        return members.mean(1) - np.float32(self.caution) * members.std(1)

    def save(self, folder: Path, calibration: Calibration) -> None:
        """Write the network as a policy folder with the heads beside it, and its calibration."""
        self.base.with_parameters(self.parameters["body"]).save(folder)
        np.savez(folder / "head.npz", **self.parameters["head"])
        record = {"caution": self.caution, "calibration": vars(calibration), "batch": vars(self.batch)}
        write_json(folder / "reward.json", record)

    @classmethod
    def load(cls, folder: Path) -> tuple[LearnedReward, Calibration]:
        """Read what `save` wrote: the reward function and its calibration."""
        if not (folder / "reward.json").exists():
            raise UserError(f"{folder}: no learned reward there (it has no reward.json)")
        record = read_json(folder / "reward.json")
        with np.load(folder / "head.npz", allow_pickle=False) as arrays:
            head = {name: jnp.asarray(value) for name, value in arrays.items()}
        new = cls.new(Policy.load(folder), BatchSettings(**record["batch"]), len(head["bias"]))
        line = record.get("calibration") or {"scores": record["scale"], "rewards": (0.0, 1.0)}  # before calibrations
        calibration = Calibration(tuple(line["scores"]), tuple(line["rewards"]))
        parameters = {**new.parameters, "head": head}
        return dataclasses.replace(new, parameters=parameters, caution=record.get("caution", 0.0)), calibration
