"""What every stage of a run reads: the text and its parts, what is there already, and what decides a stage's bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rest.baselines.bc import drop_long
from rest.data.corpus import Corpus, Split, source_text
from rest.data.tokenizer import load_tokenizer
from rest.errors import UserError
from rest.experiment import Experiment
from rest.journal import say
from rest.model.huggingface import HuggingFaceModel
from rest.policy.policy import Policy
from rest.reward.fit import RewardSettings, human_ratings
from rest.reward.rated import Rated
from rest.stage import describe, seed_for, write_json


@dataclass(frozen=True)
class Inputs:
    """An experiment and the folder of its run."""

    experiment: Experiment
    out: Path

    @cached_property
    def corpus(self) -> Corpus:
        """The cleaned text, with what cleaning dropped counted."""
        corpus = self.experiment.corpus.load(self.experiment.cleaning)
        say("corpus: " + "; ".join(f"{split} {_counts(counts)}" for split, counts in corpus.counts.items()))
        return corpus

    @cached_property
    def corpus_identity(self) -> str:
        return hash_text(self.corpus.train, self.corpus.dev, self.corpus.test)

    @cached_property
    def train(self) -> Split:
        """D, as far as it fits into the rows of a batch."""
        kept, dropped = drop_long(self._new_policy, self.corpus.train, self.experiment.batch)
        if dropped:
            say(f"train: {dropped} pairs dropped, longer than a row of a batch")
        if not len(kept):
            raise UserError("batch: no training pair fits into batch.source_tokens and batch.target_tokens")
        return kept

    @cached_property
    def _text(self) -> Split | None:
        """Source text without references that Grow samples for too, as far as it fits into the rows of a batch."""
        e = self.experiment
        if e.grow.text is None:
            return None
        text, counts = source_text(e.grow.text, e.cleaning, self.corpus)
        kept, dropped = drop_long(self._new_policy, text, e.batch)
        say(f"grow text: {_counts(counts)}" + f", longer than a row of a batch {dropped}" * bool(dropped))
        if not len(kept):
            raise UserError(f"{e.grow.text}: no sentence fits into batch.source_tokens")
        return kept

    @cached_property
    def _new_policy(self) -> Policy:
        """What BC starts from: a published model, or a random network.

        A tokenizer that is trained is kept in BC's folder; the same text and settings give the same.
        """
        e = self.experiment
        if isinstance(e.model, HuggingFaceModel):
            return Policy.start(e.model)
        if (self.out / "bc").exists():
            tokenizer = load_tokenizer(self.out / "bc" / "tokenizer")
        else:
            tokenizer = e.tokenizer.train([self.corpus.train.sources, self.corpus.train.references or []], e.seed)
        return Policy.new(e.model, tokenizer, seed_for(e.seed, "policy"))

    @property
    def learns_reward(self) -> bool:
        return isinstance(self.experiment.reward, RewardSettings)

    @cached_property
    def _shares(self) -> tuple[Split, Split]:
        """What BC learns from, and what the later stages draw their sources from: all, or disjoint parts."""
        train, share = self.train, self.experiment.bc_share
        if share == 1:
            return train, train
        rows = np.random.default_rng(seed_for(self.experiment.seed, "bc share")).permutation(len(train))
        cut = round(share * len(train))
        if not 0 < cut < len(train):
            raise UserError(f"bc_share {share}: of {len(train)} training pairs that leaves BC or the rest without any")
        return train.take(np.sort(rows[:cut])), train.take(np.sort(rows[cut:]))

    @cached_property
    def _parts(self) -> tuple[Split, Split]:
        """Training text for Grow and PPO, and what is set aside for the ratings of a learned reward."""
        train = self._shares[1]
        if not self.learns_reward:
            return train, train.take([])
        if self.experiment.reward.ratings:  # of other text
            return train, train.take([])
        wanted = self.experiment.reward.sources
        if wanted >= len(train):
            raise UserError(f"reward.sources {wanted}: the training text has only {len(train)}, and Grow needs some")
        rows = np.random.default_rng(seed_for(self.experiment.seed, "rated sources")).permutation(len(train))
        return train.take(np.sort(rows[wanted:])), train.take(np.sort(rows[:wanted]))

    def _human_ratings(self, g: int) -> Rated:
        """The ratings in files that the reward of Grow step g is learned from."""
        e = self.experiment
        added = () if e.refresh is None else e.refresh.ratings[: g - 1]
        if len(added) < g - 1:
            raise UserError(
                f"refresh.ratings: no files of ratings to add before Grow {g}; let people rate samples of the latest "
                f"policy, and name the files"
            )
        return human_ratings(e.reward, added)

    @property
    def newest(self) -> int:
        """The Grow step of the newest reward that is complete; 1 where the reward is not refreshed."""
        steps = range(2, self.experiment.grow_steps + 1 if self.experiment.refresh else 2)
        return max((g for g in steps if self._reward_folder(g).exists()), default=1)

    def _reward_folder(self, g: int) -> Path:
        return self.out / ("reward" if g == 1 else f"reward-{g}")

    def _settings(self, **parts: Any) -> dict[str, Any]:
        """What decides the bytes of a stage: its settings, its inputs and the seed."""
        return {"seed": self.experiment.seed, "corpus": self.corpus_identity, **parts}

    @property
    def _share(self) -> dict[str, float]:
        """The share of BC, where it is not all."""
        return {} if self.experiment.bc_share == 1 else {"bc_share": self.experiment.bc_share}

    @property
    def _choose(self) -> dict[str, Any]:
        """What decides which checkpoint is the best on dev."""
        evaluation = self.experiment.evaluation
        return {
            "samples_per_source": evaluation.dev_samples_per_source,
            "sources": evaluation.dev_sources,
            "sampling": evaluation.sampling,
        }

    def improves(self) -> list[Path]:
        """Folders of the complete Improve steps on the way (not the side branches), in order."""
        e = self.experiment
        steps = [(g, i) for g in range(1, e.grow_steps + 1) for i in range(1, e.improve.rule.steps + 1)]
        folders = [self.out / f"improve-{g}-{i}" for g, i in steps]
        return [folder for folder in folders if folder.exists()]

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keeps experiment.json: the settings that the folder was last gone on with and not refused."""
        path, settings = self.out / "experiment.json", describe(self.experiment)
        self.out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_json(path, settings)
        yield
        write_json(path, settings)

    def policy_before(self, g: int, i: int = 0) -> Policy:
        """The policy that Improve step i of Grow step g starts from; of i = 0 the one that samples D_g."""
        before = self._before(f"improve-{g}-{i}")
        assert before is not None
        return self.load(before, f"rest improve --g {g} --i {i - 1}" if i > 1 else "rest bc")

    def load(self, name: str, made_by: str = "rest run") -> Policy:
        """The policy of a stage that must be complete."""
        if not (self.out / name / "policy").exists():
            raise UserError(f"{self.out / name}: no such policy in this run; policies are made with `{made_by}`")
        return Policy.load(self.out / name / "policy")

    def try_reward(self) -> None:
        """Call a given reward on a few references, so that what is wrong with it shows before anything is trained."""
        if not self.learns_reward:
            few = self.corpus.dev.take(slice(0, 8))
            self.experiment.reward(few.sources, few.references or few.sources, few.references)

    def _before(self, name: str) -> str | None:
        """The folder of the policy that an Improve step went on from."""
        if not name.startswith("improve-"):
            return None
        g, i = (int(number) for number in name.split("-")[1:])
        if i > 1:
            return f"improve-{g}-{i - 1}"
        earlier = [folder.name for folder in self.improves() if int(folder.name.split("-")[1]) < g]
        return earlier[-1] if earlier else "bc"


def last_policy(folder: Path) -> Policy:
    """The policy of a stage's folder, or the last one of a run's."""
    steps = [path for path in folder.glob("improve-*-*") if not path.name.endswith("-0")]
    steps.sort(key=lambda path: [int(number) for number in path.name.split("-")[1:]])
    for candidate in [folder, *reversed(steps), folder / "bc"]:
        if (candidate / "policy").is_dir():
            return Policy.load(candidate / "policy")
    raise UserError(f"{folder}: no policy there, neither a stage's nor a run's")


def hash_text(*splits: Split) -> str:
    """Sha256 of the text of splits."""
    digest = hashlib.sha256()
    for split in splits:
        for side in (split.sources, split.references or [], *split.more_references):
            digest.update("\n".join(side).encode() + b"\0")
    return digest.hexdigest()


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count or name in ("read", "kept"))
