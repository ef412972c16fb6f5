"""One Improve step: minimise E_{D_g}[1{R(x, y) > τ} L(x, y; θ)] and keep what scores best on dev (Algorithm 1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rest import processes
from rest.columns import Scorers, columns_of, fits_a_row, learnable
from rest.data.batches import BatchOverrides, BatchSettings, Examples, fitting
from rest.data.store import ScoredDataset
from rest.errors import UserError, refuse_below
from rest.folder import discard, seed_for
from rest.journal import say
from rest.learning.losses import NLL, check_smoothing
from rest.learning.mesh import MachineSettings
from rest.learning.optimizers import Schedule
from rest.learning.train import Trained, TrainSettings, shuffled, train
from rest.policy.policy import Policy, PolicyObjective
from rest.selection import Columns, HumanPairs, Selection, to_compare
from rest.thresholds import PerSourceTop, Rule, choose


@dataclass(frozen=True)
class ImproveSettings:
    """The Improve steps that follow a Grow step."""

    rule: Any = field(default_factory=lambda: PerSourceTop((8, 4, 2)))  # a Rule
    """What passes at each Improve step; its length is I."""
    human_pairs: HumanPairs | Literal["all"] = "compete"
    """D's own pairs are filtered like samples (the paper), always kept, or never. Where Grow drew for some of D's
    sources, or for others, D_g has the pairs of those alone: "all" learns from every pair of D beside it."""
    human_share: float | None = None
    """λ: the share of the pairs learned from that are D's own, by repeating or leaving out some; None: what passed."""
    start: Literal["previous", "bc"] = "previous"
    """Go on from the policy before, or start each Improve from BC (as ReST-EM does)."""
    learning_rate_factor: float = 0.7
    """Each Improve step's learning rate is this times the one before."""
    grow_rate_factor: float = 0.7
    """The Improve steps of each Grow step begin with this times the rate of those of the one before."""
    control_rate_factor: float = 1.0
    """BC continued learns at this times the rates of Improve. A loss that compares the texts of a source takes lower
    rates than likelihood, at which BC would hardly move."""
    unfiltered: bool = True
    """Also train on all of D_g, as a side branch: the paper's I = 0."""
    batch: BatchOverrides = field(default_factory=BatchOverrides)
    """Batches of another shape than the experiment's, say to share the encodings of sources."""
    interpolation: float = 1.0
    """How far to go from where a step starts to where training leads, in weights (WARP: Ramé et al. 2024, §3.3)."""
    loss: Any = field(default_factory=NLL)  # a PolicyLoss
    """What is minimised: NLL (the paper's best), or any other of learning/losses.py and learning/preferences.py."""
    label_smoothing: float = 0.0
    """Share of each label's probability that is spread over the vocabulary, whatever the loss; the paper has none."""
    value: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            max_steps=1000, evaluate_every=100, patience=3, schedule=Schedule(3e-4, 50)
        )
    )
    """The value network's training, where the loss needs one: once, on the samples of the first Grow step."""
    train: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            max_steps=1000, evaluate_every=100, patience=3, average=3, schedule=Schedule(5e-4, 50)
        )
    )

    def __post_init__(self) -> None:
        check_smoothing("improve.label_smoothing", self.label_smoothing)
        if self.human_share is not None and not 0 < self.human_share < 1:
            raise UserError(f"improve.human_share must be above 0 and below 1, not {self.human_share}")
        if self.human_share is not None and (self.human_pairs == "never" or self.loss.candidates > 1):
            raise UserError(
                f"improve.human_share {self.human_share}: there are no human pairs to repeat with human_pairs 'never', "
                "or with a loss that compares the rows of a source"
            )
        if self.human_pairs == "all" and (self.loss.needs or self.loss.candidates > 1):
            name = type(self.loss).__name__
            raise UserError(f"improve.human_pairs 'all': most pairs of D were not scored, and {name} reads scores")
        factors = "learning_rate_factor", "grow_rate_factor", "control_rate_factor"
        refuse_below("improve.", self, dict.fromkeys(factors, 0))
        if not 0 < self.interpolation <= 1:
            raise UserError(f"improve.interpolation must be above 0 and at most 1, not {self.interpolation}")

    def at(self, g: int, i: int) -> dict[str, Any]:
        """All that decides Improve step i of Grow step g; the same whatever steps follow."""
        factors = "learning_rate_factor", "grow_rate_factor", "control_rate_factor"
        of_all = ("rule", "train", "unfiltered", "value", *factors)
        rest = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in of_all}
        return {**rest, "step": self.rule.at(i), "train": self.training(g, i)}

    def training(self, g: int, i: int) -> TrainSettings:
        """The update loop's settings at Improve step i of Grow step g, with the learning rate fallen."""
        fallen = self.learning_rate_factor ** max(0, i - 1) * self.grow_rate_factor ** (g - 1)
        return dataclasses.replace(self.train, rate_factor=self.train.rate_factor * fallen)


def named(rule: Rule, i: int) -> str:
    """Improve step i of a rule, for messages."""
    return ", ".join(f"{name} {value}" for name, value in rule.at(i).items())


def text_numbers(dataset: ScoredDataset) -> np.ndarray:
    """A number for each text of a shard, int32 [rows]; all rows of a source are in one shard."""
    numbers, known, start = np.empty(dataset.rows, np.int32), 0, 0
    for table in dataset.by_shard(["hypothesis"]):
        texts = table["hypothesis"].combine_chunks().dictionary_encode()
        np.add(texts.indices, known, out=numbers[start : start + len(table)], casting="unsafe")
        known, start = known + len(texts.dictionary), start + len(table)
    return numbers


def select(dataset: ScoredDataset, settings: ImproveSettings, i: int) -> Selection:
    """The rows of D_g that Improve step i learns from."""
    stored = dataset.columns(["source_id", "reward", "is_reference"])
    human_pairs: HumanPairs = "never" if settings.human_pairs == "all" else settings.human_pairs
    usable = learnable(dataset, settings.loss.needs)
    rows = slice(None) if usable.all() else usable
    source_id, reward, is_reference = (column[rows] for column in stored.values())
    columns = Columns(source_id, reward, is_reference, lambda: text_numbers(dataset)[rows])
    if settings.loss.candidates > 1:  # of what passes only the best is learned to be likelier
        selection = settings.rule.choose(columns, i, human_pairs)
        selection = to_compare(columns, selection, settings.loss.candidates, human_pairs)
    else:
        selection = choose(settings.rule, columns, i, human_pairs)
    mask = np.zeros(dataset.rows, np.bool_)
    mask[usable] = selection.mask
    return dataclasses.replace(selection, mask=mask)


def with_share(examples: Examples, human: np.ndarray, share: float, seed: int) -> Examples:
    """The pairs with human ones (bool [n]) repeated or left out at random, until they are this share of all."""
    own, others = np.flatnonzero(human), np.flatnonzero(~human)
    if not len(own) or not len(others):
        return examples
    wanted = max(1, round(share / (1 - share) * len(others)))
    some = np.random.default_rng(seed).permutation(own)[: wanted % len(own)]
    return examples.take(np.sort(np.concatenate([others, np.tile(own, wanted // len(own)), some])))


def improve(
    policy: Policy,
    dataset: ScoredDataset,
    settings: ImproveSettings,
    batch: BatchSettings,
    *,
    g: int,
    i: int,
    evaluate: Callable[[Policy], Mapping[str, float]],
    folder: Path,
    seed: int,
    pairs: Examples | None = None,
    scorers: Scorers | None = None,
    machine: MachineSettings | None = None,
) -> tuple[Policy, dict[str, Any]]:
    """Fine-tune on the rows that pass. Returns the checkpoint with the best dev reward, and what to report.

    `pairs` are human pairs that are learned from too, beside those of the dataset, where they fit into a row; `scorers`
    the networks behind the columns that the loss needs, if it needs any.
    """
    name, loss = f"improve {g}.{i}", settings.loss
    selection = select(dataset, settings, i)
    if not selection.rows:
        raise UserError(
            f"{dataset.folder}: no row passes {named(settings.rule, i)} with human pairs {settings.human_pairs!r}; "
            f"the highest reward is {dataset.manifest.reward['all']['max']:.4f}"
        )
    if selection.warning:
        say(f"{name}: warning: {selection.warning}")
    say(
        f"{name}: {selection.rows} of {dataset.rows} rows {'are compared' if loss.candidates > 1 else 'pass'}, "
        f"of {selection.sources} sources, "
        f"{selection.references} human pairs, mean reward {selection.mean_reward:.4f}"
    )
    examples = columns_of(dataset, selection.mask, loss.needs, policy, scorers or Scorers(), batch, folder / "kept")
    if loss.candidates > 1 and not (fits := fits_a_row(examples, batch)).all():
        say(f"{name}: warning: the rows of {(~fits).sum()} of {len(fits)} sources do not fit into one row of a batch")
    human = dataset.columns(["is_reference"])["is_reference"][selection.mask]
    if pairs is not None:
        pairs = pairs.take(np.flatnonzero(fitting(pairs, batch)))
        examples, human = examples.followed_by(pairs), np.append(human, np.ones(len(pairs), np.bool_))
        say(f"{name}: beside them {len(pairs)} human pairs")
    if settings.human_share is not None:
        examples = with_share(examples, human, settings.human_share, seed_for(seed, "human share", g, i))
    training, share = settings.training(g, i), settings.interpolation
    batches, plan = shuffled(
        examples,
        batch,
        pad_id=policy.tokenizer.pad_id,
        seed=seed_for(seed, "improve batches", g, i),
        progress_of=training.max_steps if "progress" in loss.needs else 0,
        machine=machine,
    )
    trained = train(
        policy,
        PolicyObjective(loss, settings.label_smoothing),
        batches,
        training,
        evaluate=lambda reached: evaluate(policy.towards(reached, share)),
        folder=folder,
        seed=seed_for(seed, "improve", g, i),
        description=name,
        machine=machine,
        dual_variables=loss.dual_variables(),
    )
    if trained.best_step == 0:
        say(f"{name}: no checkpoint scored above the starting policy, which is kept")
    processes.first(lambda: discard(folder / "kept"))
    return policy.towards(trained.best, share), report(selection, trained, training, plan.padding) | {
        "references_kept": int(human.sum()),
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
        "learning_rate": training.highest_rate,
        "dev_reward": trained.history,
        "started_policy_won": trained.best_step == 0,
    }
