"""Behavioural cloning: the policy that ReST starts from, and, trained on for longer, the control beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Array

from rest import processes
from rest.data.batches import Batch, BatchSettings, Examples, fitting
from rest.data.corpus import Split
from rest.data.ragged import BLOCK, Ragged
from rest.data.tokenizer import Tokenizer, source_ids, target_ids
from rest.errors import UserError
from rest.folder import seed_for
from rest.journal import say
from rest.learning.apply import apply, asked
from rest.learning.losses import NLL, check_smoothing
from rest.learning.mesh import MachineSettings
from rest.learning.optimizers import Schedule
from rest.learning.train import Trained, TrainSettings, shuffled, train
from rest.model.transformer import Transformer
from rest.policy.policy import Policy, PolicyObjective


@dataclass(frozen=True)
class BCSettings:
    """Behavioural cloning: until the dev loss stops falling."""

    label_smoothing: float = 0.05
    """Share of each label's probability that is spread evenly over the vocabulary: samples have as much noise."""
    train: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            max_steps=20_000,
            evaluate_every=500,
            patience=3,
            average=4,
            schedule=Schedule(2e-3, 500, "inverse_sqrt"),
        )
    )

    def __post_init__(self) -> None:
        check_smoothing("bc.label_smoothing", self.label_smoothing)


def _loss(network: Transformer, batch: Batch) -> tuple[Array, Array]:
    loss = PolicyObjective(NLL())(network, batch, None, {})
    return loss.metrics["nll"], loss.weight


def human_pairs(policy: Policy, split: Split) -> Examples:
    """The pairs of a split as ids."""
    if split.references is None:
        raise UserError(f"{split.name}: behavioural cloning needs references, and this text has none")
    return Examples(policy.encode_sources(split.sources), policy.encode_references(split.references))


def drop_long(tokenizer: Tokenizer, split: Split, batch: BatchSettings) -> tuple[Split, int]:
    """Training text without the pairs that do not fit into a row, and how many those were."""
    fits = np.ones(len(split), np.bool_)
    for start in range(0, len(split), BLOCK):  # so that not all ids are in memory
        part = slice(start, start + BLOCK)
        sources = source_ids(tokenizer, split.sources[part])
        nothing = Ragged.of([] for _ in split.sources[part])
        targets = nothing if split.references is None else target_ids(tokenizer, split.references[part])
        fits[part] = fitting(Examples(sources, targets), batch)
    return (split, 0) if fits.all() else (split.take(np.flatnonzero(fits)), int((~fits).sum()))


def dev_loss(policy: Policy, dev: Split, batch: BatchSettings) -> Callable[[Policy], Mapping[str, float]]:
    """An evaluation for `train` of policies with this one's tokenizer: the dev references' loss, nats per token."""
    batches = asked(policy.network, human_pairs(policy, dev), batch, pad_id=policy.tokenizer.pad_id)

    @cache
    def assembled(start: int, stop: int) -> list[Batch]:
        return list(batches.part(slice(start, stop)))

    def evaluate(policy: Policy) -> dict[str, float]:
        def work(own: slice) -> np.ndarray:
            parts = assembled(own.start, own.stop)
            processes.done["evaluated"] += sum(len(part.target) for part in parts)
            return np.asarray([apply(_loss, policy.network, part) for part in parts])

        sums = np.concatenate(processes.divided(len(batches), work)).sum(0)
        return {"score": -float(sums[0] / sums[1])}

    return evaluate


def clone(
    policy: Policy,
    pairs: Split,
    label_smoothing: float,
    settings: TrainSettings,
    batch: BatchSettings,
    *,
    evaluate: Callable[[Policy], Mapping[str, float]],
    folder: Path,
    seed: int,
    description: str,
    machine: MachineSettings | None = None,
) -> Trained[Policy]:
    """Train a policy on human pairs; what `evaluate` scores best is kept."""
    examples, pad_id = human_pairs(policy, pairs), policy.tokenizer.pad_id
    batches, plan = shuffled(
        examples, batch, pad_id=pad_id, seed=seed_for(seed, f"{description} batches"), machine=machine
    )
    say(f"{description}: {len(examples)} pairs in {len(plan.rows)} rows, {plan.padding:.1%} padding")
    return train(
        policy,
        PolicyObjective(NLL(), label_smoothing),
        batches,
        settings,
        evaluate=evaluate,
        folder=folder,
        seed=seed_for(seed, description),
        description=description,
        machine=machine,
    )
