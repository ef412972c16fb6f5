"""A learned, reference-free reward: a network that reads source and hypothesis and gives one number.

The network is the policy's own with a linear head in addition, started from the behavioural-cloning policy, as
InstructGPT starts its reward model from the supervised one (Ouyang et al. 2022): the encoder reads the source, the
decoder reads the hypothesis beside it, and the head reads the mean of the decoder's states and how likely the network
finds the hypothesis. It may start from a published encoder instead (encoder.py, reading.py). The head may also be
given how likely a policy finds the hypothesis that does not change, and the lengths of both texts. probe.py fits
the heads alone, fit.py then trains everything together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from rest.data.batches import Batch, BatchSettings, Examples
from rest.data.tokenizer import Tokenizer, load_tokenizer
from rest.errors import UserError
from rest.folder import check_seal, read_json, seal, write_json
from rest.learning.apply import per_sequence
from rest.learning.losses import Loss, SquaredError
from rest.learning.mesh import MachineSettings
from rest.learning.preferences import BradleyTerry
from rest.model.families.xlmr import XLMR, XLMRSettings
from rest.model.layers import Linear, TransformerSettings
from rest.model.network import Network
from rest.model.transformer import Transformer
from rest.policy.policy import Policy
from rest.reward.learned.encoder import Encoder, View
from rest.reward.learned.reading import (
    ReadBeside,
    Reader,
    ReadJointly,
    beside,
    encoded,
    mixture,
    reader,
    reader_of,
    width,
)
from rest.reward.likelihood import PolicyLogProb
from rest.reward.reward import Calibration
from rest.statistics.words import count_words

SEEN = "seen.npy"  # hashes of the sources that a saved reward was trained on
WIDER = 4  # times the target positions of a row, where hypotheses share their source's
NARROW = (64, 128)  # positions of rows for short texts: attention costs by the row's length, whoever shares it
LIKELIHOOD = "likelihood"  # the folder of the policy whose likelihood the heads of a saved reward read
GIVEN = ("given_log_prob", "given_source_length", "given_target_length")  # columns for the head, where there are any


@dataclass(frozen=True)
class RewardShape:
    """What the network is made from."""

    body: TransformerSettings | XLMRSettings
    heads: int = 1
    """Several are an ensemble."""
    given: int = 0
    """Columns that the heads read beside what the body finds."""
    view: View = View()
    """How an encoder's states are read."""


class RewardNetwork(nnx.Module):
    """A body that reads packed pairs, with linear heads beside its output layer."""

    def __init__(self, shape: RewardShape, body: Transformer | XLMR, *, rngs: nnx.Rngs) -> None:
        self.body, self.view = body, shape.view
        self.mixture = mixture(shape.body, shape.view) if isinstance(shape.body, XLMRSettings) else None
        self.head = Linear(width(shape.body, shape.view) + shape.given, shape.heads, rngs=rngs)

    def features(self, batch: Batch, key: Array | None) -> Float[Array, "B Q F"]:
        """What the heads read of each packed pair: what the body found, then the columns that are given."""
        body = self.body
        if isinstance(body, Transformer):
            found = beside(body, batch, key)
        else:
            found = encoded(body, self.mixture, self.view, batch, key)
        given = [batch.columns[name][..., None] for name in GIVEN if name in batch.columns]
        return jnp.concatenate([found, *given], axis=-1)

    def __call__(self, batch: Batch, key: Array | None) -> Float[Array, "B Q K"]:
        """A raw score of each of K heads for each packed pair."""
        return self.head(self.features(batch, key))

    def arithmetic(self, rows: int, source: int, target: int) -> tuple[int, str] | None:
        """FLOPs of the products of a forward pass, but for the heads; their type. None where an encoder reads."""
        return self.body.arithmetic(rows, source, target) if isinstance(self.body, Transformer) else None


def _features(network: RewardNetwork, batch: Batch) -> Float[Array, "B Q F"]:
    return network.features(batch, None)


def _predict(network: RewardNetwork, batch: Batch) -> Float[Array, "B Q K"]:
    return network(batch, None)


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

    loss: RatingLoss = RatingLoss()

    def __call__(
        self, network: RewardNetwork, batch: Batch, key: Array | None, dual_variables: Mapping[str, Any]
    ) -> Loss:
        scores, rating, group = network(batch, key), batch.columns["rating"], batch.columns["group"]
        losses = []
        for head in range(scores.shape[-1]):
            mask = batch.real if scores.shape[-1] == 1 else batch.real & ~left_out(group, head)
            losses.append(self.loss(scores[..., head], rating, group, mask))
        return jax.tree.map(lambda *parts: sum(parts), *losses)


def left_out(group: Float[Array, "*B"], head: int) -> Bool[Array, "*B"]:
    """Whether a head does not learn from a group: fixed by the two numbers."""
    key = jax.random.key(head)
    draw = jax.vmap(lambda number: jax.random.uniform(jax.random.fold_in(key, number)))
    return (draw(group.astype(jnp.int32).ravel()) < LEFT_OUT).reshape(group.shape)


def by_length(examples: Examples, batch: BatchSettings) -> Iterator[tuple[BatchSettings, np.ndarray]]:
    """Rows for short, for longer and for all other texts, each with the pairs, int64 [k], that are read in them."""
    room = batch.source_tokens, batch.target_tokens
    narrow = [tokens for tokens in NARROW if 2 * tokens <= max(room)]
    of_pair = np.searchsorted(narrow, np.maximum(*examples.lengths))
    for k, tokens in enumerate([*narrow, max(room)]):
        if len(pairs := np.flatnonzero(of_pair == k)):
            source, target = (min(tokens, own) for own in room)
            yield dataclasses.replace(batch, source_tokens=source, target_tokens=target), pairs


@dataclass(frozen=True)
class LearnedReward:
    """A trained reward network; a reward function that needs no references."""

    network: Network
    reader: Reader
    batch: BatchSettings
    caution: float = 0.0
    """A score is the mean of the heads less this many standard deviations of them."""
    likelihood: PolicyLogProb | None = None
    """The heads also read this, which no training changes, and the logarithms of both lengths."""

    @classmethod
    def new(
        cls, start: Policy | Encoder, batch: BatchSettings, heads: int = 1, likelihood: Policy | None = None
    ) -> LearnedReward:
        """The network of the start with heads that are still to be fitted, which may read a policy's likelihood too."""
        read_as = reader_of(start)
        shape = RewardShape(start.settings, heads, 0 if likelihood is None else len(GIVEN), read_as.view)
        rngs = nnx.Rngs(jax.random.key(0))
        network = start.network.inside(shape, lambda body: RewardNetwork(shape, body, rngs=rngs))
        read = None if likelihood is None else PolicyLogProb(likelihood, batch)
        return cls(network, read_as, batch, likelihood=read)

    def with_network(self, network: Network) -> LearnedReward:
        return dataclasses.replace(self, network=network)

    def with_tokenizer(self, tokenizer: Tokenizer) -> LearnedReward:
        """The same with this one, wherever it has an equal one."""
        found = self
        if self.reader.tokenizer.identity == tokenizer.identity:
            found = dataclasses.replace(found, reader=dataclasses.replace(self.reader, tokenizer=tokenizer))
        if (read := self.likelihood) is not None and read.policy.tokenizer.identity == tokenizer.identity:
            policy = dataclasses.replace(read.policy, tokenizer=tokenizer)
            found = dataclasses.replace(found, likelihood=dataclasses.replace(read, policy=policy))
        return found

    @property
    def heads(self) -> int:
        return self.network.settings.heads

    @property
    def body(self) -> Network | None:
        """The transformer that reads source and hypothesis apart; None where an encoder does."""
        if not isinstance(self.reader, ReadBeside):
            return None
        return Network.of(self.network.settings.body, self.network.module.body)

    def features(self, examples: Examples, shown: str = "") -> Float[np.ndarray, "n F"]:
        """What the heads read of each pair; a progress bar is `shown` as this."""
        return self._of(_features, examples, shown)

    @cached_property
    def identity(self) -> str:
        """Hash of the parameters, the tokenizers, the networks' settings, the caution and where texts are cut."""
        cut = self.batch.source_tokens, self.batch.target_tokens
        known: tuple[Any, ...] = (self.reader.tokenizer.identity, self.reader.settings, cut, self.caution)
        if self.reader.view != View():
            known += (self.reader.view,)
        if self.likelihood is not None:
            known += (self.likelihood.policy.identity,)
        return self.network.identity(repr(known))

    def examples(self, sources: Sequence[str], hypotheses: Sequence[str]) -> Examples:
        """Ids as the network reads them, cut to what a row of a batch holds, and the columns that its heads read."""
        examples = self.reader.examples(sources, hypotheses, self.batch)
        if self.likelihood is None or not len(examples):
            return examples
        log_probs = self.likelihood(sources, hypotheses, None)
        lengths = (np.log1p([count_words(text) for text in texts]) for texts in (sources, hypotheses))
        columns = (column.astype(np.float32) for column in (log_probs, *lengths))
        return dataclasses.replace(examples, columns=dict(zip(GIVEN, columns, strict=True)))

    def predict(self, examples: Examples) -> np.ndarray:
        """Raw scores of the heads, float32 [n, K]."""
        return self._of(_predict, examples) if len(examples) else np.zeros((0, self.heads), np.float32)

    def members(self, sources: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        """Raw scores of the heads, float32 [n, K]; a pair that comes again is read once."""
        pairs = list(zip(sources, hypotheses, strict=True))
        place = {pair: k for k, pair in enumerate(dict.fromkeys(pairs))}
        x, y = [source for source, _ in place], [hypothesis for _, hypothesis in place]
        return self.predict(self.shared(self.examples(x, y), x))[[place[pair] for pair in pairs]]

    def shared(self, examples: Examples, sources: Sequence[str]) -> Examples:
        """The same pairs, where the hypotheses of one source are to share its encoding."""
        texts = list(dict.fromkeys(sources))
        if isinstance(self.reader, ReadJointly) or len(texts) == len(sources):
            return examples
        place = {text: k for k, text in enumerate(texts)}
        source_of = np.fromiter((place[text] for text in sources), np.int64, len(sources))
        firsts = np.unique(source_of, return_index=True)[1]
        return dataclasses.replace(examples, sources=[examples.sources[k] for k in firsts], source_of=source_of)

    def _of(self, function: Callable[..., Array], examples: Examples, shown: str = "") -> np.ndarray:
        """A function of packed batches, by pair [n, ...]."""
        columns = {name: x for name, x in examples.columns.items() if name in GIVEN}
        examples = dataclasses.replace(examples, columns=columns)  # those that are read: else it is compiled for others
        pad_id, wider = self.reader.tokenizer.pad_id, 1 if examples.source_of is None else WIDER
        found, order = list[np.ndarray](), list[np.ndarray]()
        for room, pairs in by_length(examples, self.batch):
            batch = dataclasses.replace(room, target_tokens=wider * room.target_tokens)
            found.append(per_sequence(function, self.network, examples.take(pairs), batch, pad_id=pad_id, shown=shown))
            order.append(pairs)
        return np.concatenate(found)[np.argsort(np.concatenate(order))]

    def __call__(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
    ) -> np.ndarray:
        return self.joined(self.members(sources, hypotheses))

    def joined(self, members: Float[np.ndarray, "n K"]) -> Float[np.ndarray, " n"]:
        """One score of those of the heads."""
        return members.mean(1) - np.float32(self.caution) * members.std(1)

    def save(self, folder: Path, calibration: Calibration) -> None:
        """Write the network, its tokenizer and its calibration."""
        self.network.save(folder)
        self.reader.tokenizer.save(folder / "tokenizer")
        if self.likelihood is not None:
            self.likelihood.policy.save(folder / LIKELIHOOD)
        record: dict[str, Any] = {"body": type(self.reader.settings).__name__, "settings": vars(self.reader.settings)}
        record |= {"view": self.reader.view.record(), "heads": self.heads, "caution": self.caution}
        record |= {"batch": vars(self.batch)}
        write_json(folder / "reward.json", record | {"calibration": vars(calibration)})
        seal(folder)

    @classmethod
    def load(cls, folder: Path, machine: MachineSettings | None = None) -> tuple[LearnedReward, Calibration]:
        """Read what `save` wrote: the reward function and its calibration."""
        if not (folder / "reward.json").exists():
            raise UserError(f"{folder}: no learned reward there (it has no reward.json)")
        check_seal(folder)
        record, tokenizer = read_json(folder / "reward.json"), load_tokenizer(folder / "tokenizer")
        body = XLMRSettings if record["body"] == XLMRSettings.__name__ else TransformerSettings
        read_as = reader(tokenizer, body(**record["settings"]), View.of(record["view"]))
        batch, likelihood = BatchSettings(**record["batch"]), None
        if (folder / LIKELIHOOD).exists():
            likelihood = PolicyLogProb(Policy.load(folder / LIKELIHOOD, machine), batch)
        shape = RewardShape(read_as.settings, record["heads"], 0 if likelihood is None else len(GIVEN), read_as.view)
        network = Network.load(folder, shape, lambda rngs: RewardNetwork(shape, read_as.body(rngs), rngs=rngs), machine)
        calibration = Calibration(*map(tuple, record["calibration"].values()))
        return cls(network, read_as, batch, record["caution"], likelihood), calibration
