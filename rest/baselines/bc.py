"""Behavioural cloning: the policy that ReST starts from, and, trained on for longer, the control beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rest.data.batches import BatchSettings, Examples, evaluation_batches, fitting, training_batches
from rest.data.corpus import Split
from rest.errors import UserError
from rest.journal import say
from rest.learning.losses import NLL
from rest.learning.mesh import data_mesh, divide
from rest.learning.train import Schedule, Trained, TrainSettings, train
from rest.policy.policy import Policy, PolicyObjective
from rest.stage import seed_for


@dataclass(frozen=True)
class BCSettings:
    """Behavioural cloning: until the dev loss stops falling."""

    loss: NLL = field(default_factory=NLL)
    train: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            max_steps=20_000,
            evaluate_every=500,
            patience=3,
            average=4,
            schedule=Schedule(2e-3, 500, "inverse_sqrt"),
        )
    )


@partial(jax.jit, static_argnames=("objective",))
def _loss(objective: PolicyObjective, parameters: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    loss = objective(parameters, batch, None)
    return loss.metrics["nll"], loss.weight


def human_pairs(policy: Policy, split: Split, batch: BatchSettings) -> Examples:
    """The pairs of a split as ids; refuses one that does not fit into a row of a batch."""
    if split.references is None:
        raise UserError(f"{split.name}: behavioural cloning needs references, and this text has none")
    examples = Examples(policy.encode_sources(split.sources), policy.encode_references(split.references))
    fits = fitting(examples, batch)
    if not fits.all():
        row = int((~fits).argmax())
        raise UserError(
            f"{split.name}: sentence {int(split.ids[row]) + 1} has {len(examples.sources[row])} source and "
            f"{len(examples.targets[row])} target tokens, more than batch.source_tokens {batch.source_tokens} "
            f"or batch.target_tokens {batch.target_tokens}"
        )
    return examples


def drop_long(policy: Policy, split: Split, batch: BatchSettings) -> tuple[Split, int]:
    """Training text without the pairs that do not fit into a row, and how many those were."""
    sources = policy.encode_sources(split.sources)
    targets = sources if split.references is None else policy.encode_references(split.references)
    fits = fitting(Examples(sources, targets), batch)
    return (split, 0) if fits.all() else (split.take(np.flatnonzero(fits)), int((~fits).sum()))


def dev_loss(policy: Policy, dev: Split, batch: BatchSettings) -> Callable[[Any], Mapping[str, float]]:
    """An evaluation for `train`: the negative log-likelihood of dev references, nats a token."""
    examples = human_pairs(policy, dev, batch)
    batches = evaluation_batches(examples, batch, pad_id=policy.tokenizer.pad_id)
    objective, mesh = PolicyObjective(policy.graph, NLL(0.0)), data_mesh()

    def evaluate(parameters: Any) -> dict[str, float]:
        sums = np.sum([_loss(objective, parameters, divide(part, mesh)) for part in batches], axis=0)
        return {"score": -float(sums[0] / sums[1])}

    return evaluate


def clone(
    policy: Policy,
    pairs: Split,
    loss: NLL,
    settings: TrainSettings,
    batch: BatchSettings,
    *,
    evaluate: Callable[[Any], Mapping[str, float]],
    folder: Path,
    seed: int,
    description: str,
) -> tuple[Policy, Trained]:
    """Train a policy on human pairs; what `evaluate` scores best is kept."""
    examples = human_pairs(policy, pairs, batch)
    batches, plan = training_batches(
        examples,
        batch,
        pad_id=policy.tokenizer.pad_id,
        seed=seed_for(seed, f"{description} batches"),
        process=(jax.process_index(), jax.process_count()),
    )
    say(f"{description}: {len(examples)} pairs in {len(plan.rows)} rows, {plan.padding:.1%} padding")
    trained = train(
        PolicyObjective(policy.graph, loss),
        policy.parameters,
        batches,
        settings,
        evaluate=evaluate,
        folder=folder,
        seed=seed_for(seed, description),
        description=description,
    )
    return policy.with_parameters(trained.parameters), trained
