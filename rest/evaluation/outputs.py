"""The hypotheses of one policy for the sources of a split, their scores, and the file that keeps both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rest import processes
from rest.data.corpus import Gold, Split
from rest.data.shards import reading
from rest.errors import UserError
from rest.folder import seed_for
from rest.learning.mesh import MachineSettings
from rest.policy.policy import Policy
from rest.policy.sampler import Hypotheses, SamplingSettings, sample
from rest.reward.reference_based import SentenceChrF
from rest.reward.reward import Groups, Reward

# (sources, hypotheses, references) -> [n]: what Best-of-N chooses by; only the order of the numbers matters
Chooser = Callable[[list[str], list[str], list[str] | None], np.ndarray]
LEAST_PEERS = 4  # samples of a source, below which a reward that compares them says little


def draw(
    policy: Policy,
    split: Split,
    n: int,
    sampling: SamplingSettings,
    seed: int,
    machine: MachineSettings | None = None,
) -> list[list[str]]:
    """[sources][n] samples; more of them begin with the same."""
    return draw_hypotheses(policy, split, n, sampling, seed, machine).texts


def draw_hypotheses(
    policy: Policy,
    split: Split,
    n: int,
    sampling: SamplingSettings,
    seed: int,
    machine: MachineSettings | None = None,
) -> Hypotheses:
    """What `draw` draws, with its log-probabilities."""
    own = seed_for(seed, f"sample {split.name}")
    return sample(policy, split.sources, split.ids, n, sampling, seed=own, machine=machine)


@dataclass
class LastDrawn:
    """Samples of a split; the last are kept, for what chooses from the same ones in another way."""

    split: Split
    seed: int
    machine: MachineSettings | None = None
    kept: tuple[Any, Hypotheses] | None = None  # what was asked for, and what was drawn

    def __call__(self, policy: Policy, n: int, sampling: SamplingSettings) -> Hypotheses:
        """What `draw_hypotheses` draws."""
        asked = policy.identity, n, sampling
        if self.kept is None or self.kept[0] != asked:
            drawn = draw_hypotheses(policy, self.split, n, sampling, self.seed, self.machine)
            self.kept = asked, drawn
        return self.kept[1]


def score(
    reward: Reward,
    gold: Gold | None,
    split: Split,
    texts: list[list[str]],
    chrf: bool = False,
    among: list[list[str]] | None = None,
) -> dict[str, np.ndarray]:
    """float [sources, n] of each: reward, gold where the task knows it, and sentence chrF where it is asked for.

    There is no reward where `rewards_of` has none.
    """
    n = len(texts[0])

    def work(own: slice) -> dict[str, np.ndarray]:
        part, some = split.take(own), texts[own]
        sources, flat, references = _rows(part, some)
        rewards = rewards_of(reward, part, some, None if among is None else among[own])
        scores = {} if rewards is None else {"reward": rewards}
        if gold is not None:
            scores["gold"] = gold(sources, flat)
        if chrf and references is not None:
            scores["chrf"] = SentenceChrF()(sources, flat, references)
        return {name: np.asarray(values).reshape(-1, n) for name, values in scores.items()}

    found = processes.divided(len(texts), work)
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def rewards_of(
    reward: Reward, split: Split, texts: list[list[str]], among: list[list[str]] | None = None
) -> np.ndarray | None:
    """float32 [sources, n], the rewards of `texts` [sources][n].

    A reward that compares the samples of a source compares these with each other or, outputs that are no samples, with
    the samples `among` [sources][N]; None where those are fewer than LEAST_PEERS.
    """
    n, samples = len(texts[0]), texts if among is None else among
    if reward.compares and len(samples[0]) < LEAST_PEERS:
        return None
    together = reward.compares and among is not None
    rows = [[*peers, *few] for peers, few in zip(samples, texts, strict=True)] if together else texts
    groups = Groups.of_samples(len(rows), len(rows[0]))
    if together:
        groups = groups._replace(peers=np.tile(np.arange(len(rows[0])) < len(samples[0]), len(rows)))
    return reward(*_rows(split, rows), groups).reward.reshape(len(rows), -1)[:, -n:]


def chooser_of(reward: Reward, sources: int) -> Chooser:
    """The reward as what Best-of-N chooses by, of as many samples of each of so many sources."""

    def choose(x: list[str], y: list[str], references: list[str] | None) -> np.ndarray:
        return reward(x, y, references, Groups.of_samples(sources, len(y) // sources)).reward

    return choose


def flat_scores(chooser: Chooser, split: Split, texts: list[list[str]]) -> np.ndarray:
    """[sources, n]"""
    return np.asarray(chooser(*_rows(split, texts))).reshape(len(texts), -1)


def _rows(split: Split, texts: list[list[str]]) -> tuple[list[str], list[str], list[str] | None]:
    """Source, hypothesis and reference of every row."""
    n = len(texts[0])
    sources = [x for x in split.sources for _ in range(n)]
    references = None if split.references is None else [y for y in split.references for _ in range(n)]
    return sources, [y for row in texts for y in row], references


@dataclass(frozen=True)
class Outputs:
    """As many hypotheses for each source, row by row with their scores."""

    split: Split
    texts: list[list[str]]  # [sources][n]
    # float32 [sources, n]; "reward" but where it had nothing to compare with, "gold", "judge"
    scores: dict[str, np.ndarray]

    def write(self, path: Path) -> None:
        """One Parquet file, a row a hypothesis: source_id, sample_index, source, reference, hypothesis, scores.

        And more_references, a list, where the split has them.
        """
        n = len(self.texts[0])
        references: Sequence[str | None] = self.split.references or [None] * len(self.split)
        columns = {
            "source_id": np.repeat(self.split.ids, n),
            "sample_index": np.tile(np.arange(n, dtype=np.int32), len(self.split)),
            "source": [x for x in self.split.sources for _ in range(n)],
            "reference": pa.array([y for y in references for _ in range(n)], pa.string()),
            "hypothesis": [y for row in self.texts for y in row],
            **{name: values.astype(np.float32).ravel() for name, values in self.scores.items()},
        }
        if self.split.more_references:
            columns["more_references"] = [
                list(row) for row in zip(*self.split.more_references, strict=True) for _ in range(n)
            ]
        pq.write_table(pa.table(columns), path, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> Outputs:
        """UserError for a file that is absent, damaged or of another kind."""
        with reading(path):
            table = pq.read_table(path)
        columns = {name: table[name] for name in table.column_names}
        fixed = ("source_id", "sample_index", "source", "reference", "hypothesis")
        missing = [name for name in fixed if name not in columns]
        if missing or not len(table):
            raise UserError(f"{path} does not hold outputs: it has no {', '.join(missing) or 'rows'}")
        n = int(columns["sample_index"].to_numpy().max()) + 1
        if len(table) % n:
            raise UserError(f"{path} is damaged: {len(table)} rows are not {n} a source")
        texts, every = columns["hypothesis"].to_pylist(), slice(None, None, n)
        references = columns["reference"].to_pylist()[every]
        more = columns.pop("more_references", pa.array([])).to_pylist()[every]
        split = Split(
            path.parent.name,
            columns["source_id"].to_numpy()[every],
            columns["source"].to_pylist()[every],
            None if references[0] is None else references,
            [list(lines) for lines in zip(*more, strict=True)],
        )
        scores = {name: columns[name].to_numpy().reshape(-1, n) for name in columns if name not in fixed}
        return cls(split, [texts[k : k + n] for k in range(0, len(texts), n)], scores)
