"""A learned, reference-free reward: a network that reads source and hypothesis and gives one number.

The network is the policy's own with a linear head in addition, started from the behavioural-cloning policy, as
InstructGPT starts its reward model from the supervised one (Ouyang et al. 2022): the encoder reads the source, the
decoder reads the hypothesis beside it, and the head reads the mean of the decoder's states and how likely the network
finds the hypothesis. It may start from a published encoder instead, which reads both in one row (encoder.py). The head
may also be given how likely a policy finds the hypothesis that does not change, and the lengths of both texts. It is
first fitted alone by ridge regression, then everything is trained together (linear probing, then fine-tuning: Kumar et
al. 2022), so that training starts from a reward that is useful already.
"""

from __future__ import annotations

import dataclasses
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
from rest.data.corpus import count_words
from rest.errors import UserError
from rest.learning.checkpoint import identity_of
from rest.learning.losses import Loss, SquaredError
from rest.learning.mesh import data_mesh, divide
from rest.learning.preferences import BradleyTerry
from rest.model.transformer import Linear, Transformer
from rest.model.xlmr import XLMR
from rest.policy.policy import Policy, hidden_states
from rest.reward.encoder import Encoder
from rest.reward.reward import Calibration
from rest.reward.trivial import PolicyLogProb
from rest.stage import read_json, write_json

SEEN = "seen.npy"  # hashes of the sources that a saved reward was trained on
LIKELIHOODS = 3  # mean log p, mean p and lowest log p of a hypothesis' tokens
WIDER = 4  # times the target positions of a row, where hypotheses share their source's
LIKELIHOOD = "likelihood"  # the folder of the policy whose likelihood the heads of a saved reward read
GIVEN = ("given_log_prob", "given_source_length", "given_target_length")  # columns for the head, where there are any


class RewardNetwork(nnx.Module):
    """A body that reads packed pairs, with linear heads beside its output layer; several heads are an ensemble."""

    def __init__(self, body: Transformer | XLMR, heads: int, given: int = 0, *, rngs: nnx.Rngs) -> None:
        self.body = body
        read = body.settings.width + (LIKELIHOODS if isinstance(body, Transformer) else 0)
        self.head = Linear(read + given, heads, rngs=rngs)

    def features(self, batch: Batch, key: Array | None) -> Float[Array, "B Q F"]:
        """What the head reads of each packed pair: what the body found, then the columns that are given."""
        body = self.body
        found = _beside(body, batch, key) if isinstance(body, Transformer) else _joint(body, batch, key)
        given = [batch.columns[name][..., None] for name in GIVEN if name in batch.columns]
        return jnp.concatenate([found, *given], axis=-1)

    def __call__(self, batch: Batch, key: Array | None) -> Float[Array, "B Q K"]:
        """A raw score of each of K heads for each packed pair."""
        return self.head(self.features(batch, key))


def _own(batch: Batch) -> Bool[Array, "B T Q"]:
    """Which target positions belong to which pair of the row."""
    slots = jnp.arange(1, batch.sequence_ids.shape[1] + 1)
    return batch.target_segments[:, :, None] == slots[None, None]


def _means(own: Bool[Array, "B T Q"], columns: Float[Array, "B T F"]) -> Float[Array, "B Q F"]:
    lengths = jnp.maximum(own.sum(1), 1)[..., None]
    return jnp.einsum("btq,btf->bqf", own.astype(jnp.float32), columns) / lengths


def _beside(body: Transformer, batch: Batch, key: Array | None) -> Float[Array, "B Q F"]:
    """The decoder reads the hypothesis beside the encoded source: its mean state, and the likelihoods."""
    states, own = hidden_states(body, batch, key), _own(batch)
    log_probs = body.scores(states, batch.target).log_probs
    columns = jnp.concatenate(
        [states.astype(jnp.float32), log_probs[..., None], jnp.exp(log_probs)[..., None]], axis=-1
    )
    lowest = jnp.where(own, log_probs[..., None], 0.0).min(1)[..., None]
    return jnp.concatenate([_means(own, columns), lowest], axis=-1)


def _joint(body: XLMR, batch: Batch, key: Array | None) -> Float[Array, "B Q F"]:
    """The encoder reads hypothesis and source in one row, which is the batch's target: its mean state."""
    segments = batch.target_segments
    mask = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None]
    states = body.packed(batch.target, batch.target_positions, mask, key)[-1]
    return _means(_own(batch), states.astype(jnp.float32))


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

    base: Policy | Encoder
    """Whose tokenizer and sizes the network has; its parameters are not used."""
    graph: Any
    parameters: Any
    batch: BatchSettings
    caution: float = 0.0
    """A score is the mean of the heads less this many standard deviations of them."""
    likelihood: PolicyLogProb | None = None
    """The heads also read this, which no training changes, and the logarithms of both lengths."""

    @classmethod
    def new(
        cls, base: Policy | Encoder, batch: BatchSettings, heads: int = 1, likelihood: Policy | None = None
    ) -> LearnedReward:
        """The network of the base with heads that are still to be fitted, which may read a policy's likelihood too."""
        body, given = nnx.merge(base.graph, base.parameters), 0 if likelihood is None else len(GIVEN)
        graph, state = nnx.split(RewardNetwork(body, heads, given, rngs=nnx.Rngs(jax.random.key(0))))
        read = None if likelihood is None else PolicyLogProb(likelihood, batch)
        return cls(base, graph, nnx.to_pure_dict(state), batch, likelihood=read)

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
        """Hash of the parameters, the tokenizers, the networks' settings, the caution and where texts are cut."""
        cut = self.batch.source_tokens, self.batch.target_tokens
        known: tuple[Any, ...] = (self.base.tokenizer.identity, self.base.settings, cut, self.caution)
        if self.likelihood is not None:
            known += (self.likelihood.policy.identity,)
        return identity_of(self.parameters, repr(known))

    def examples(self, sources: Sequence[str], hypotheses: Sequence[str]) -> Examples:
        """Ids as the network reads them, cut to what a row of a batch holds, and the columns that its heads read."""
        s, t = self.batch.source_tokens, self.batch.target_tokens
        if isinstance(self.base, Encoder):
            rows = self.base.rows(sources, hypotheses, t)
            examples = Examples([row[:0] for row in rows], rows)
        else:
            encoded, read = self.base.encode_sources(sources), self.base.encode_references(hypotheses)
            examples = Examples([x[:s] for x in encoded], [y[:t] for y in read])
        if self.likelihood is None or not len(examples):
            return examples
        log_probs = self.likelihood(sources, hypotheses, None)
        lengths = (np.log1p([count_words(text) for text in texts]) for texts in (sources, hypotheses))
        columns = (column.astype(np.float32) for column in (log_probs, *lengths))
        return dataclasses.replace(examples, columns=dict(zip(GIVEN, columns, strict=True)))

    def predict(self, parameters: Any, examples: Examples) -> np.ndarray:
        """Raw scores of the heads, float32 [n, K]."""
        if not len(examples):
            return np.zeros((0, self.heads), np.float32)
        return self._map(_predict, parameters, examples)

    def members(self, sources: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        """Raw scores of the heads, float32 [n, K]."""
        return self.predict(self.parameters, self.shared(self.examples(sources, hypotheses), sources))

    def shared(self, examples: Examples, sources: Sequence[str]) -> Examples:
        """The same pairs, where the hypotheses of one source are to share its encoding."""
        texts = list(dict.fromkeys(sources))
        if isinstance(self.base, Encoder) or len(texts) == len(sources):
            return examples
        place = {text: k for k, text in enumerate(texts)}
        source_of = np.fromiter((place[text] for text in sources), np.int64, len(sources))
        firsts = np.unique(source_of, return_index=True)[1]
        return dataclasses.replace(examples, sources=[examples.sources[k] for k in firsts], source_of=source_of)

    def _map(self, function: Any, parameters: Any, examples: Examples) -> np.ndarray:
        """A jitted function of packed batches, by pair [n, ...]."""
        parts, mesh, batch = [], data_mesh(), self.batch
        if examples.source_of is not None:
            batch = dataclasses.replace(batch, target_tokens=WIDER * batch.target_tokens)
        for part in evaluation_batches(examples, batch, pad_id=self.base.tokenizer.pad_id):
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
        """Write the network as a policy's (or encoder's) folder with the heads beside it, and its calibration."""
        self.base.with_parameters(self.parameters["body"]).save(folder)
        if self.likelihood is not None:
            self.likelihood.policy.save(folder / LIKELIHOOD)
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
        base = Encoder.load(folder) if (folder / "encoder.json").exists() else Policy.load(folder)
        likelihood = Policy.load(folder / LIKELIHOOD) if (folder / LIKELIHOOD).exists() else None
        new = cls.new(base, BatchSettings(**record["batch"]), len(head["bias"]), likelihood)
        line = record.get("calibration") or {"scores": record["scale"], "rewards": (0.0, 1.0)}  # before calibrations
        calibration = Calibration(tuple(line["scores"]), tuple(line["rewards"]))
        parameters = {**new.parameters, "head": head}
        return dataclasses.replace(new, parameters=parameters, caution=record.get("caution", 0.0)), calibration
