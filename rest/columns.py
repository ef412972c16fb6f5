"""What a loss reads beside the tokens, as columns of the scored dataset.

What takes a network (log-probabilities of BC or of an anchor, values) is computed once for a dataset and kept beside
its rows, `grow-1/columns/<name>/`, named by the network's content: every epoch and every Improve step read the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rest import processes
from rest.data.batches import BatchSettings, Examples
from rest.data.ragged import Ragged
from rest.data.store import ScoredDataset
from rest.errors import UserError
from rest.folder import discard, seed_for
from rest.journal import say
from rest.learning.mesh import MachineSettings
from rest.learning.train import TrainSettings, shuffled, train
from rest.policy.policy import Policy, token_log_probs
from rest.policy.value import Value, ValueObjective
from rest.statistics.correlation import kendall, spearman


@dataclass(frozen=True)
class Scorers:
    """The networks that the columns of a loss come from; each None where the loss does not ask for it."""

    bc: Policy | None = None
    value: Value | None = None


def examples_of(table: pa.Table, policy: Policy, batch: BatchSettings) -> Examples:
    """Rows of a dataset as ids: sources are tokenised, hypotheses are the stored tokens."""
    texts, places = _distinct(table["source"])
    encoded = policy.encode_sources(texts).cut(batch.source_tokens)
    targets = Ragged.of_column(table["tokens"])
    longest = targets.lengths.max(initial=0)
    if longest > batch.target_tokens:
        raise UserError(f"batch.target_tokens {batch.target_tokens} is less than a stored hypothesis' {longest} tokens")
    if batch.share_sources:
        return Examples(encoded, targets, source_of=places)
    return Examples(encoded.take(places), targets)


def _distinct(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """The texts of a column, each once, in the order in which they come, and which of them each row has, int32 [n]."""
    coded = column.dictionary_encode().unify_dictionaries()
    if not coded.num_chunks:
        return [], np.zeros(0, np.int32)
    return coded.chunk(0).dictionary.to_pylist(), np.concatenate([chunk.indices.to_numpy() for chunk in coded.chunks])


def learnable(dataset: ScoredDataset, needs: tuple[str, ...]) -> np.ndarray:
    """The rows that a loss with such needs can learn from, bool [rows].

    What beam search found was drawn from no distribution: a loss that asks how likely it was goes without.
    """
    if "behaviour_log_probs" not in needs:
        return np.ones(dataset.rows, np.bool_)
    return np.logical_or(*dataset.columns(["is_sample", "is_reference"]).values())


def columns_of(
    dataset: ScoredDataset,
    mask: np.ndarray,
    needs: tuple[str, ...],
    policy: Policy,
    scorers: Scorers,
    batch: BatchSettings,
    cache: Path,
) -> Examples:
    """The rows of `mask` (bool [rows]) with the columns that a loss needs; `policy` is where its training starts.

    ValueError where a row is not `learnable`, or a network is missing.
    """
    if (mask & ~learnable(dataset, needs)).any():
        raise ValueError("rows of beam search have no log-probabilities of what drew them")
    sidecars: dict[str, str] = {}
    for name, of in {"anchor_log_probs": policy, "bc_log_probs": scorers.bc}.items():
        if name in needs and of is not None:
            sidecars[name] = column_name("log_probs", of.identity, batch)
            log_probs = partial(token_log_probs, of, batch=batch)
            _write_once(dataset, sidecars[name], log_probs, policy, batch, {"policy": of.identity})
    if "value" in needs and scorers.value is not None:
        sidecars["value"] = column_name("value", scorers.value.identity, batch)
        values = partial(scorers.value.of, batch=batch)
        _write_once(dataset, sidecars["value"], values, policy, batch, {"value": scorers.value.identity})
    missing = {"bc_log_probs", "value"} & set(needs) - set(sidecars)
    if missing:
        raise ValueError(f"no network was given for {sorted(missing)}")

    stored = dataset.columns(["source_id", "reward", "is_sample"])
    drawn = [name for name in ("behaviour_log_probs",) if name in needs]  # stored while the samples were drawn
    kept = dataset.keep(mask, ["source", "tokens", *drawn, *dict.fromkeys(sidecars.values())], cache)
    examples = examples_of(kept, policy, batch)
    token_columns = {name: Ragged.of_column(kept[column]) for name, column in sidecars.items()}
    token_columns |= {name: Ragged.of_column(kept[name]) for name in drawn}  # nothing, which is 0, in human pairs
    numbers: dict[str, Callable[[], np.ndarray]] = {
        "reward": lambda: stored["reward"][mask],
        "advantage": lambda: stored["reward"][mask] - baselines(**stored)[mask],
        # told apart within a row only; whole numbers up to here are exact as float32
        "group": lambda: np.unique(stored["source_id"][mask], return_inverse=True)[1] % 2**24,
        "progress": lambda: np.zeros(len(kept), np.float32),
        "sampled": lambda: stored["is_sample"][mask],
    }
    return replace(
        examples,
        columns={name: of().astype(np.float32, copy=False) for name, of in numbers.items() if name in needs},
        token_columns=token_columns,
        groups=stored["source_id"][mask] if "group" in needs else None,
    )


def column_name(kind: str, identity: str, batch: BatchSettings) -> str:
    """The name of a network's numbers. Batches cut sources and decide last bits, so those of others are others."""
    return f"{kind}_{hashlib.sha256(f'{identity} {batch}'.encode()).hexdigest()[:16]}"


def baselines(source_id: np.ndarray, reward: np.ndarray, is_sample: np.ndarray) -> np.ndarray:
    """The mean reward of the samples of each row's source, float32 [n]; of all samples where it has none."""
    group, count = _numbered(source_id)
    counts = np.bincount(group[is_sample], minlength=count)
    sums = np.bincount(group[is_sample], reward[is_sample], minlength=count)
    overall = sums.sum() / max(1, counts.sum())
    return np.where(counts > 0, sums / np.maximum(counts, 1), overall).astype(np.float32)[group]


def _numbered(ids: np.ndarray) -> tuple[np.ndarray, int]:
    """The numbers of ids in the order of their distinct values, [n] in 0..count-1, and the count."""
    if (ids[1:] >= ids[:-1]).all():  # as a dataset is written: no sort of all rows
        group: np.ndarray = np.cumsum(np.append(False, ids[1:] != ids[:-1])[: len(ids)], dtype=np.int32)
        return group, int(group[-1]) + 1 if len(ids) else 0
    values, group = np.unique(ids, return_inverse=True)
    return group, len(values)


def _write_once(
    dataset: ScoredDataset,
    name: str,
    of: Callable[[Examples], list[np.ndarray]],
    policy: Policy,
    batch: BatchSettings,
    settings: dict[str, Any],
) -> None:
    """Computes a column of numbers per token, a shard at a time, unless it is there."""

    def part(shard: int) -> list[np.ndarray]:
        if not shard:
            say(f"{dataset.folder.name}: column {name}")
        return of(examples_of(dataset.shard(shard, ["source", "tokens"]), policy, batch))

    dataset.sidecars.write_once(name, part, settings | {"batch": vars(batch)})


def learn_value(
    bc: Policy,
    dataset: ScoredDataset,
    settings: TrainSettings,
    batch: BatchSettings,
    *,
    folder: Path,
    seed: int,
    machine: MachineSettings | None = None,
) -> tuple[Value, dict[str, Any]]:
    """A value network from BC's parameters, on the samples of D_1; a tenth of the sources is held out to stop by.

    The report has Kendall's and Spearman's correlation of the value before the last token with the reward, which ReST
    gives too, on the sources held out.
    """
    stored = dataset.columns(["source_id", "reward", "is_sample"])
    samples = stored["is_sample"]
    if not samples.any():
        raise UserError(f"{dataset.folder}: no samples to learn a value from")
    sources = np.unique(stored["source_id"][samples])
    held = np.random.default_rng(seed_for(seed, "value held out")).permutation(sources)[: max(1, len(sources) // 10)]
    out = np.isin(stored["source_id"], held)

    def rows(mask: np.ndarray) -> tuple[Examples, np.ndarray]:
        examples = columns_of(dataset, mask, ("reward",), bc, Scorers(), batch, folder / "kept")
        return examples, examples.columns["reward"]

    examples, rewards = rows(samples & ~out)
    unseen, unseen_rewards = rows(samples & out)

    def evaluate(value: Value) -> dict[str, float]:
        errors = [np.square(v - r) for v, r in zip(value.of(unseen, batch), unseen_rewards, strict=True)]
        return {"score": -float(np.concatenate(errors).mean(dtype=np.float64))}

    pad_id, own = bc.tokenizer.pad_id, seed_for(seed, "value batches")
    batches, _ = shuffled(examples, batch, pad_id=pad_id, seed=own, machine=machine)
    trained = train(
        Value.start(bc, mean=float(rewards.mean())),  # so that only what differs is left to learn
        ValueObjective(),
        batches,
        settings,
        evaluate=evaluate,
        folder=folder,
        seed=seed_for(seed, "value"),
        description="value",
        machine=machine,
    )
    processes.first(lambda: discard(folder / "kept"))
    last = np.array([values[-1] for values in trained.best.of(unseen, batch)])
    varies = bool(np.ptp(last) and np.ptp(unseen_rewards))  # a correlation with what does not vary is none
    report = {
        "rows": len(unseen),
        "squared_error": -trained.score,
        "variance": float(unseen_rewards.var(dtype=np.float64)),
        "kendall": kendall(last, unseen_rewards) if varies else None,
        "spearman": spearman(last, unseen_rewards) if varies else None,
        "gradient_steps": trained.steps,
    }
    say(f"value: squared error {-trained.score:.4f}, Kendall {report['kendall']}, Spearman {report['spearman']}")
    return trained.best, report


def fits_a_row(examples: Examples, batch: BatchSettings) -> np.ndarray:
    """Which groups fit into one row of a batch, so that a loss sees all of their rows together: bool [groups]."""
    assert examples.groups is not None
    group, _ = _numbered(examples.groups)
    sources, targets = examples.lengths
    fits = np.bincount(group, targets) <= batch.target_tokens
    if examples.source_of is not None:  # one source, which fits
        return fits
    return fits & (np.bincount(group, sources) <= batch.source_tokens)
