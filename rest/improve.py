"""One Improve step: minimise E_{D_g}[1{R(x, y) > τ} L(x, y; θ)] and keep what scores best on dev (Algorithm 1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from rest.data.batches import BatchSettings, Examples, training_batches
from rest.data.store import ScoredDataset
from rest.errors import UserError
from rest.journal import say
from rest.learning.losses import NLL
from rest.learning.train import Schedule, Trained, TrainSettings, train
from rest.policy.policy import Policy, PolicyObjective
from rest.stage import discard, seed_for
from rest.thresholds import Columns, GlobalPercentile, HumanPairs, Rule, Selection


@dataclass(frozen=True)
class ImproveSettings:
    """The Improve steps that follow a Grow step."""

    rule: Any = field(default_factory=lambda: GlobalPercentile((50.0, 75.0, 90.0)))  # a Rule
    """What passes at each Improve step; its length is I."""
    human_pairs: HumanPairs = "compete"
    """D's own pairs are filtered like samples (the paper), always kept, or never."""
    start: Literal["previous", "bc"] = "previous"
    """Go on from the policy before, or start each Improve from BC (as ReST-EM does)."""
    learning_rate_factor: float = 0.5
    """Each Improve step's learning rate is this times the one before."""
    unfiltered: bool = True
    """Also train on all of D_g, as a side branch: the paper's I = 0."""
    loss: Any = field(default_factory=lambda: NLL(0.1))  # a PolicyLoss
    train: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            max_steps=1000, evaluate_every=100, patience=3, schedule=Schedule(5e-4, 50)
        )
    )

    def at(self, i: int) -> dict[str, Any]:
        """All that decides Improve step i; the same whatever steps follow."""
        rest = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("rule", "train", "unfiltered", "learning_rate_factor")
        }
        return {**rest, "step": self.rule.at(i), "train": self.training(i)}

    def training(self, i: int) -> TrainSettings:
        """The update loop's settings at Improve step i, with the learning rate fallen."""
        schedule = self.train.schedule
        rate = schedule.learning_rate * self.learning_rate_factor ** max(0, i - 1)
        return dataclasses.replace(self.train, schedule=dataclasses.replace(schedule, learning_rate=rate))


def named(rule: Rule, i: int) -> str:
    """Improve step i of a rule, for messages."""
    return ", ".join(f"{name} {value}" for name, value in rule.at(i).items())


def select(dataset: ScoredDataset, settings: ImproveSettings, i: int) -> Selection:
    """The rows of D_g that Improve step i learns from."""
    stored = dataset.columns(["source_id", "reward", "is_reference"])
    columns = Columns(stored["source_id"], stored["reward"], stored["is_reference"])
    return settings.rule.choose(columns, i, settings.human_pairs)


def improve(
    policy: Policy,
    dataset: ScoredDataset,
    settings: ImproveSettings,
    batch: BatchSettings,
    *,
    g: int,
    i: int,
    evaluate: Callable[[Any], Mapping[str, float]],
    folder: Path,
    seed: int,
) -> tuple[Policy, dict[str, Any]]:
    """Fine-tune on the rows that pass. Returns the checkpoint with the best dev reward, and what to report."""
    name = f"improve {g}.{i}"
    selection = select(dataset, settings, i)
    if not selection.rows:
        raise UserError(
            f"{dataset.folder}: no row passes {named(settings.rule, i)} with human pairs {settings.human_pairs!r}; "
            f"the highest reward is {dataset.manifest.reward['all']['max']:.4f}"
        )
    if selection.warning:
        say(f"{name}: warning: {selection.warning}")
    say(
        f"{name}: {selection.rows} of {dataset.rows} rows pass, of {selection.sources} sources, "
        f"{selection.references} human pairs, mean reward {selection.mean_reward:.4f}"
    )
    kept = dataset.keep(selection.mask, ["source", "tokens"], folder / "kept")
    batches, plan = training_batches(
        examples_of(kept, policy, batch),
        batch,
        pad_id=policy.tokenizer.pad_id,
        seed=seed_for(seed, "improve batches", g, i),
        process=(jax.process_index(), jax.process_count()),
    )
    training = settings.training(i)
    trained = train(
        PolicyObjective(policy.graph, settings.loss),
        policy.parameters,
        batches,
        training,
        evaluate=evaluate,
        folder=folder,
        seed=seed_for(seed, "improve", g, i),
        description=name,
    )
    if trained.best_step == 0:
        say(f"{name}: no checkpoint scored above the starting policy, which is kept")
    discard(folder / "kept")
    return policy.with_parameters(trained.parameters), report(selection, trained, training, plan.padding) | {
        "grow": g,
        "improve": i,
        "rows": dataset.rows,
    }


def report(selection: Selection, trained: Trained, training: TrainSettings, padding: float) -> dict[str, Any]:
    """What passed and what came of it."""
    return {
        "threshold": selection.threshold,
        "thresholds": selection.thresholds,
        "rows_kept": selection.rows,
        "sources_kept": selection.sources,
        "references_kept": selection.references,
        "mean_reward_kept": selection.mean_reward,
        "warning": selection.warning,
        "padding": padding,
        "best_step": trained.best_step,
        "gradient_steps": trained.steps,
        "stopped": trained.stopped,
        "learning_rate": training.schedule.learning_rate,
        "dev_reward": trained.history,
        "started_policy_won": trained.best_step == 0,
    }


def examples_of(table: Any, policy: Policy, batch: BatchSettings) -> Examples:
    """Kept rows as ids: sources are tokenised, hypotheses are the stored tokens."""
    sources = table["source"].combine_chunks().dictionary_encode()
    texts = sources.dictionary.to_pylist()
    encoded = [ids[: batch.source_tokens] for ids in policy.encode_sources(texts)]
    tokens = table["tokens"].combine_chunks()
    offsets, values = tokens.offsets.to_numpy(), tokens.values.to_numpy()
    targets = [values[a:b] for a, b in pairwise(offsets)]
    longest = max(map(len, targets))
    if longest > batch.target_tokens:
        raise UserError(f"batch.target_tokens {batch.target_tokens} is less than a stored hypothesis' {longest} tokens")
    return Examples([encoded[k] for k in np.asarray(sources.indices)], targets)
