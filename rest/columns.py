"""What a loss reads beside the tokens, as columns of the scored dataset.

What takes a network (log-probabilities of BC or of an anchor, values) is computed once for a dataset and kept beside
its rows, `grow-1/columns/<name>/`, named by the network's content: every epoch and every Improve step read the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from flax import nnx
from jaxtyping import Array
from scipy import stats

from rest.data.batches import Batch, BatchSettings, Examples, training_batches
from rest.data.store import ScoredDataset
from rest.errors import UserError
from rest.journal import say
from rest.learning.checkpoint import load_parameters, save_parameters
from rest.learning.losses import Loss, SquaredError
from rest.learning.train import Batches, TrainSettings, train
from rest.learning.value import Value
from rest.policy.policy import Policy, token_log_probs
from rest.stage import discard, seed_for


@dataclass(frozen=True)
class Judges:
    """The networks that the columns of a loss come from; each None where the loss does not ask for it."""

    bc: Policy | None = None
    value: Value | None = None


def examples_of(table: pa.Table, policy: Policy, batch: BatchSettings) -> Examples:
    """Rows of a dataset as ids: sources are tokenised, hypotheses are the stored tokens."""
    sources = table["source"].combine_chunks().dictionary_encode()
    texts = sources.dictionary.to_pylist()
    encoded = [ids[: batch.source_tokens] for ids in policy.encode_sources(texts)]
    targets = _lists(table["tokens"])
    longest = max(map(len, targets))
    if longest > batch.target_tokens:
        raise UserError(f"batch.target_tokens {batch.target_tokens} is less than a stored hypothesis' {longest} tokens")
    places = np.asarray(sources.indices, np.int64)
    if batch.share_sources:
        return Examples(encoded, targets, source_of=places)
    return Examples([encoded[k] for k in places], targets)


def _lists(column: pa.ChunkedArray) -> list[np.ndarray]:
    """A list column as one array a row."""
    whole = column.combine_chunks()
    offsets, values = whole.offsets.to_numpy(), whole.values.to_numpy()
    return [values[a:b] for a, b in pairwise(offsets)]


def columns_of(
    dataset: ScoredDataset,
    mask: np.ndarray,
    needs: tuple[str, ...],
    policy: Policy,
    judges: Judges,
    batch: BatchSettings,
    cache: Path,
) -> Examples:
    """The rows of `mask` (bool [rows]) with the columns that a loss needs; `policy` is where its training starts."""
    sidecars: dict[str, str] = {}
    scorers = {"anchor_log_probs": policy, "bc_log_probs": judges.bc}
    for name, scorer in scorers.items():
        if name in needs and scorer is not None:
            sidecars[name] = f"log_probs_{scorer.identity[:16]}"
            of = partial(token_log_probs, scorer, batch=batch)
            _write_once(dataset, sidecars[name], of, policy, batch, {"policy": scorer.identity})
    if "value" in needs and judges.value is not None:
        sidecars["value"] = f"value_{judges.value.identity[:16]}"
        of = partial(judges.value.of, batch=batch, pad_id=policy.tokenizer.pad_id)
        _write_once(dataset, sidecars["value"], of, policy, batch, {"value": judges.value.identity})
    missing = {"bc_log_probs", "value"} & set(needs) - set(sidecars)
    if missing:
        raise ValueError(f"no network was given for {sorted(missing)}")

    stored = dataset.columns(["source_id", "reward", "is_reference"])
    kept = dataset.keep(mask, ["source", "tokens", *dict.fromkeys(sidecars.values())], cache)
    examples = examples_of(kept, policy, batch)
    numbers: dict[str, Callable[[], np.ndarray]] = {
        "reward": lambda: stored["reward"],
        "advantage": lambda: stored["reward"] - baselines(**stored),
        # told apart within a row only; whole numbers up to here are exact as float32
        "group": lambda: stored["source_id"] % 2**24,
        "progress": lambda: np.zeros(dataset.rows),
    }
    return replace(
        examples,
        columns={name: of()[mask].astype(np.float32) for name, of in numbers.items() if name in needs},
        token_columns={name: _lists(kept[column]) for name, column in sidecars.items()},
        groups=stored["source_id"][mask] if "group" in needs else None,
    )


def baselines(source_id: np.ndarray, reward: np.ndarray, is_reference: np.ndarray) -> np.ndarray:
    """The mean reward of the samples of each row's source, float32 [n]; of all samples where it has none."""
    _, group = np.unique(source_id, return_inverse=True)
    counts = np.bincount(group[~is_reference], minlength=group.max(initial=-1) + 1)
    sums = np.bincount(group[~is_reference], reward[~is_reference], minlength=len(counts))
    overall = sums.sum() / max(1, counts.sum())
    return np.where(counts > 0, sums / np.maximum(counts, 1), overall)[group].astype(np.float32)


def _write_once(
    dataset: ScoredDataset,
    name: str,
    of: Callable[[Examples], list[np.ndarray]],
    policy: Policy,
    batch: BatchSettings,
    settings: dict[str, Any],
) -> None:
    """Computes a column of numbers a token, a shard at a time, unless it is there."""
    if name in dataset.column_names:
        return
    say(f"{dataset.folder.name}: column {name}")
    tables = dataset.by_shard(["source", "tokens"])
    dataset.write_column(name, (of(examples_of(table, policy, batch)) for table in tables), settings)


class Timed:
    """Batches whose column `progress` says how much of the training is done, 0 at its start and 1 at its end."""

    def __init__(self, batches: Batches, total: int) -> None:
        self.batches, self.total, self.drawn = batches, total, 0

    def __next__(self) -> Batch:
        batch = next(self.batches)
        done = np.full(batch.sequence_ids.shape, self.drawn / max(1, self.total - 1), np.float32)
        self.drawn += 1
        return replace(batch, columns={**batch.columns, "progress": done})

    def get_state(self) -> dict[str, Any]:
        return {"drawn": self.drawn, "batches": self.batches.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]
        self.batches.set_state(state["batches"])


# The value of a prefix under the behaviour policy


@dataclass(frozen=True)
class ValueObjective:
    """Regression of the reward of the whole sequence at every token: the Monte-Carlo return of its prefix."""

    graph: Any

    def __call__(self, parameters: Any, batch: Batch, key: Array | None) -> Loss:
        values = nnx.merge(self.graph, parameters)(batch, key)
        wanted = jnp.take_along_axis(batch.columns["reward"], jnp.maximum(batch.target_segments - 1, 0), axis=1)
        return SquaredError()(values, wanted, batch.target_segments > 0)


def learn_value(
    bc: Policy, dataset: ScoredDataset, settings: TrainSettings, batch: BatchSettings, *, folder: Path, seed: int
) -> tuple[Value, dict[str, Any]]:
    """A value network from BC's parameters, on the samples of D_1; a tenth of the sources is held out to stop by.

    The report has Kendall's and Spearman's correlation of the value before the last token with the reward, which ReST
    gives too, on the sources held out.
    """
    stored = dataset.columns(["source_id", "reward", "is_reference"])
    samples = ~stored["is_reference"]
    if not samples.any():
        raise UserError(f"{dataset.folder}: no samples to learn a value from")
    sources = np.unique(stored["source_id"][samples])
    held = np.random.default_rng(seed_for(seed, "value held out")).permutation(sources)[: max(1, len(sources) // 10)]
    out = np.isin(stored["source_id"], held)

    def rows(mask: np.ndarray) -> tuple[Examples, np.ndarray]:
        examples = columns_of(dataset, mask, ("reward",), bc, Judges(), batch, folder / "kept")
        return examples, examples.columns["reward"]

    value, pad_id = Value.start(bc), bc.tokenizer.pad_id
    examples, rewards = rows(samples & ~out)
    # the head starts at the mean, so that only what differs is left to learn
    head = {**value.parameters["head"], "bias": jnp.full_like(value.parameters["head"]["bias"], rewards.mean())}
    value = value.with_parameters({**value.parameters, "head": head})
    unseen, unseen_rewards = rows(samples & out)

    def predicted(parameters: Any) -> list[np.ndarray]:
        return value.with_parameters(parameters).of(unseen, batch, pad_id)

    def evaluate(parameters: Any) -> dict[str, float]:
        errors = [np.square(v - r) for v, r in zip(predicted(parameters), unseen_rewards, strict=True)]
        return {"score": -float(np.concatenate(errors).mean(dtype=np.float64))}

    batches, _ = training_batches(
        examples,
        batch,
        pad_id=pad_id,
        seed=seed_for(seed, "value batches"),
        process=(jax.process_index(), jax.process_count()),
    )
    trained = train(
        ValueObjective(value.graph),
        value.parameters,
        batches,
        settings,
        evaluate=evaluate,
        folder=folder,
        seed=seed_for(seed, "value"),
        description="value",
    )
    discard(folder / "kept")
    last = np.array([values[-1] for values in predicted(trained.parameters)])
    report = {
        "rows": len(unseen),
        "squared_error": -trained.score,
        "variance": float(unseen_rewards.var(dtype=np.float64)),
        "kendall": _finite(stats.kendalltau(last, unseen_rewards).statistic),
        "spearman": _finite(stats.spearmanr(last, unseen_rewards).statistic) if np.ptp(last) else None,
        "gradient_steps": trained.steps,
    }
    say(f"value: squared error {-trained.score:.4f}, Kendall {report['kendall']}, Spearman {report['spearman']}")
    return value.with_parameters(trained.parameters), report


def _finite(number: float) -> float | None:
    """JSON has no NaN: a correlation with what does not vary is none."""
    return float(number) if np.isfinite(number) else None


def save_value(folder: Path, value: Value) -> None:
    save_parameters(folder, value.parameters)


def load_value(folder: Path, bc: Policy) -> Value:
    """Reads what `save_value` wrote; the network is that of BC under a scalar head."""
    empty = Value.start(bc)
    return empty.with_parameters(load_parameters(folder, empty.parameters))


def whole(examples: Examples, batch: BatchSettings) -> np.ndarray:
    """Which groups fit into one row of a batch, so that a loss sees all of their rows together: bool [groups]."""
    assert examples.groups is not None
    _, group = np.unique(examples.groups, return_inverse=True)
    fits = np.bincount(group, [len(ids) for ids in examples.targets]) <= batch.target_tokens
    if examples.source_of is not None:  # one source, which fits
        return fits
    return fits & (np.bincount(group, [len(ids) for ids in examples.sources]) <= batch.source_tokens)
