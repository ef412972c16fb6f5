"""What the stages of a run read: its settings, its text and the parts of it, and people's ratings."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np

from rest import processes
from rest.baselines.bc import drop_long
from rest.data.corpus import Corpus, Split
from rest.data.files import source_text
from rest.data.known import Remembering
from rest.data.tokenizer import Tokenizer, load_tokenizer
from rest.errors import UserError
from rest.evaluation.chooser import Dev, Score
from rest.evaluation.outputs import LastDrawn
from rest.experiment import Experiment
from rest.folder import StageFolder, StageName, discard, seed_for
from rest.journal import say
from rest.model.families.huggingface import HuggingFaceModel
from rest.policy.policy import Policy
from rest.ratings.rated import Rated
from rest.reward.guards import Guards
from rest.reward.learned.encoder import HuggingFaceEncoder
from rest.reward.learned.fit import human_ratings
from rest.reward.learned.settings import RewardSettings
from rest.reward.reward import Reward

T_co = TypeVar("T_co", covariant=True)


@runtime_checkable
class Stage(Protocol[T_co]):
    """One stage of a run. What it is made of, other stages' results among it, are its fields."""

    @property
    def path(self) -> str:
        """Its folder within the run's."""
        ...

    @property
    def shared(self) -> bool:
        """Whether several processes may make it together."""
        ...

    def settings(self, inputs: Inputs) -> dict[str, Any]:
        """What decides its bytes beside the seed and the corpus; results of other stages by their identity."""
        ...

    def make(self, inputs: Inputs, folder: StageFolder) -> None:
        """Make it and finish its folder."""
        ...

    def read(self, inputs: Inputs, folder: Path) -> T_co:
        """The result of a complete stage."""
        ...


class Parts(NamedTuple):
    """The training text: what BC learns from, what Grow and PPO draw their sources from, what is rated."""

    bc: Split
    grow: Split
    rated: Split


@dataclass(frozen=True)
class Inputs:
    """An experiment, the folder of its run, and the text, which is read once."""

    experiment: Experiment
    out: Path
    pool: Path | None = None
    """Where runs that share stages have them; None: they share none."""

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
        kept, dropped = drop_long(self.tokenizer, self.corpus.train, self.experiment.batch)
        if dropped:
            say(f"train: {dropped} pairs dropped, longer than a row of a batch")
        if not len(kept):
            raise UserError("batch: no training pair fits into batch.source_tokens and batch.target_tokens")
        return kept

    @cached_property
    def untranslated(self) -> Split | None:
        """Source text without references that Grow samples for too, as far as it fits into the rows of a batch."""
        e = self.experiment
        if e.grow.text is None:
            return None
        text, counts = source_text(e.grow.text, e.cleaning, self.corpus)
        self.tokenizer.remember(text)
        kept, dropped = drop_long(self.tokenizer, text, e.batch)
        say(f"grow text: {_counts(counts)}" + f", longer than a row of a batch {dropped}" * bool(dropped))
        if not len(kept):
            raise UserError(f"{e.grow.text}: no sentence fits into batch.source_tokens")
        return kept

    @cached_property
    def drawn(self) -> LastDrawn:
        """Samples of the test sources."""
        return LastDrawn(self.corpus.test, self.experiment.seed, self.experiment.machine)

    @cached_property
    def tokenizer(self) -> Remembering:
        """That of every policy. What it makes of the text is kept in `tokens`, and no stage asks it again."""
        corpus = self.corpus
        return Remembering(self._tokenizer, (self.pool or self.out) / "tokens", (corpus.dev, corpus.test, corpus.train))

    @property
    def _tokenizer(self) -> Tokenizer:
        """It is kept in BC's folder; the same text and settings give the same."""
        e, kept = self.experiment, self.out / StageName("bc").folder / "tokenizer"
        if kept.exists():
            return load_tokenizer(kept)
        if isinstance(e.model, HuggingFaceModel):
            return Policy.start(e.model).tokenizer
        return e.tokenizer.train([self.corpus.train.sources, self.corpus.train.references or []], e.seed)

    def new_policy(self) -> Policy:
        """What BC starts from: a published model, or a random network. It is made anew at each call."""
        e = self.experiment
        if isinstance(e.model, HuggingFaceModel):
            return self.remembering(Policy.start(e.model))
        return Policy.new(e.model, self.tokenizer, seed_for(e.seed, "policy"))

    def policy(self, folder: Path) -> Policy:
        """The policy of a stage."""
        return self.remembering(Policy.load(folder, self.experiment.machine))

    def remembering(self, policy: Policy) -> Policy:
        """The same policy, whose tokenizer knows the text."""
        same = policy.tokenizer.identity == self.tokenizer.identity
        return replace(policy, tokenizer=self.tokenizer) if same else policy

    @property
    def learns_reward(self) -> bool:
        return isinstance(self.experiment.reward, RewardSettings)

    @cached_property
    def parts(self) -> Parts:
        """D divided: all of it for everybody, or disjoint parts where the experiment says so."""
        e, bc, rest = self.experiment, self.train, self.train
        if e.bc_share < 1:
            rows = np.random.default_rng(seed_for(e.seed, "bc share")).permutation(len(bc))
            cut = round(e.bc_share * len(bc))
            if not 0 < cut < len(bc):
                raise UserError(
                    f"bc_share {e.bc_share}: of {len(bc)} training pairs that leaves BC or the rest without any"
                )
            bc, rest = bc.take(np.sort(rows[:cut])), bc.take(np.sort(rows[cut:]))
        if not self.learns_reward or e.reward.ratings:  # which are of other text
            return Parts(bc, rest, rest.take([]))
        wanted = e.reward.sources
        if wanted >= len(rest):
            raise UserError(f"reward.sources {wanted}: the training text has only {len(rest)}, and Grow needs some")
        rows = np.random.default_rng(seed_for(e.seed, "rated sources")).permutation(len(rest))
        return Parts(bc, rest.take(np.sort(rows[wanted:])), rest.take(np.sort(rows[:wanted])))

    def human_ratings(self, g: int) -> Rated:
        """The ratings in files that the reward of Grow step g is learned from."""
        e = self.experiment
        added = () if e.refresh is None else e.refresh.ratings[: g - 1]
        if len(added) < g - 1:
            raise UserError(
                f"refresh.ratings: no files of ratings to add before Grow {g}; let people rate samples of the latest "
                f"policy, and name the files"
            )
        rated, line = human_ratings(e.reward, added), e.cleaning.line
        return replace(rated, sources=[line(x) for x in rated.sources], hypotheses=[line(y) for y in rated.hypotheses])

    @cached_property
    def given_reward(self) -> Reward:
        """The experiment's own, with what its guards learn from D."""
        reward: Reward = self.experiment.reward
        return reward.fitted(self.fitted)

    def fitted(self, guards: Guards) -> Guards:
        """Guards with what they learn from D."""
        return guards.fit(self.corpus.train.sources, self.corpus.train.references)

    @property
    def share(self) -> dict[str, float]:
        """The share of BC, where it is not all."""
        return {} if self.experiment.bc_share == 1 else {"bc_share": self.experiment.bc_share}

    @property
    def dev(self) -> Dev:
        """The dev text, and how policies are run on it."""
        e = self.experiment
        how = e.evaluation_sampling, e.beam, e.batch, e.evaluation.bleu_tokenizer
        return Dev(self.corpus.dev, *how, e.seed, e.machine)

    def on_dev(self, reward: Reward) -> Score:
        """How policies that learn from a reward are scored on dev."""
        return self.experiment.choose.of(self.dev, reward)

    @property
    def choose(self) -> dict[str, Any]:
        """What decides which checkpoint is the best on dev."""
        return {"by": self.experiment.choose, **self.experiment.choose.settings(self.dev)}

    def decides(self, settings: dict[str, Any]) -> dict[str, Any]:
        """All that decides the bytes of a stage: its settings and inputs, the seed and the corpus."""
        return {"seed": self.experiment.seed, "corpus": self.corpus_identity, **settings}


def judge_of(inputs: Inputs) -> Reward | None:
    """The reward that nothing trains on, with what its guards learn from D."""
    judge: Reward | None = inputs.experiment.evaluation.judge
    return None if judge is None else judge.fitted(inputs.fitted)


def fetched(model: Any) -> dict[str, str]:
    """For the result of a stage: the commit on the hub of the published model that it started from, if it was one."""
    found = model.commit if isinstance(model, HuggingFaceModel | HuggingFaceEncoder) else None
    return {} if found is None else {"start_commit": found}


def finish_policy(folder: StageFolder, policy: Policy, result: dict[str, Any]) -> None:
    """Keep the policy, drop the checkpoints that only a killed stage needs, and give the folder its name."""
    processes.first(lambda: policy.save(folder.path / "policy"))
    processes.first(lambda: discard(folder.path / "checkpoints"))
    folder.finish(result)


def hash_text(*splits: Split) -> str:
    """Sha256 of the text of splits."""
    digest = hashlib.sha256()
    for split in splits:
        for side in (split.sources, split.references or [], *split.more_references):
            digest.update("\n".join(side).encode() + b"\0")
    return digest.hexdigest()


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count or name in ("read", "kept"))
