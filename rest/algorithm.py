"""Algorithm 1 of ReST (Gulcehre et al. 2023, arXiv 2308.08998), stage by stage, each stage a folder."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rest.baselines.bc import clone, dev_loss, drop_long
from rest.data.corpus import Corpus, Split, source_text
from rest.data.ratings import source_keys
from rest.data.store import ScoredDataset
from rest.data.tokenizer import load_tokenizer
from rest.errors import UserError
from rest.evaluation.evaluate import evaluate, mean_reward
from rest.experiment import Experiment
from rest.grow import grow, open_dataset
from rest.improve import improve, named, select
from rest.journal import say
from rest.model.huggingface import HuggingFaceModel
from rest.policy.policy import Policy
from rest.reward.fit import Rated, RewardSettings, fit, human_ratings, rate
from rest.reward.guards import Guards
from rest.reward.learned import SEEN, LearnedReward
from rest.reward.reward import Reward
from rest.stage import Stage, describe, discard, open_stage, read_json, seed_for, write_json


def rest(run: Run) -> None:
    """Grow and Improve, and what they are compared with. Stages that are complete are not made again."""
    run.try_reward()
    policy = run.bc()  # π₀
    reward = run.reward()
    run.evaluate("bc", policy)
    for g in range(1, run.experiment.grow_steps + 1):
        dataset = run.grow(g, policy, reward)  # D_g = {(x, y): x ~ D, y ~ π(·|x)} ∪ D, scored by R
        if run.experiment.improve.unfiltered:
            run.evaluate(f"improve-{g}-0", run.improve(g, 0, policy, dataset, reward))  # τ = -∞, a side branch
        for i in range(1, run.experiment.improve.rule.steps + 1):
            if run.nothing_passes(g, i, dataset):
                break
            policy = run.improve(g, i, policy, dataset, reward)  # 1{R(x, y) > τᵢ}, the best on dev
            run.evaluate(f"improve-{g}-{i}", policy)
    run.evaluate(*run.bc_continued())  # the control


@dataclass(frozen=True)
class Run:
    """An experiment in its folder. Each method makes one stage, or reads it if it is complete."""

    experiment: Experiment
    out: Path

    # What every stage reads

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
    def _parts(self) -> tuple[Split, Split]:
        """Training text for Grow, and what is set aside for the ratings of a learned reward."""
        train = self.train
        if not self.learns_reward:
            return train, train.take([])
        if self.experiment.reward.ratings:  # of other text
            return train, train.take([])
        wanted = self.experiment.reward.sources
        if wanted >= len(train):
            raise UserError(f"reward.sources {wanted}: the training text has only {len(train)}, and Grow needs some")
        rows = np.random.default_rng(seed_for(self.experiment.seed, "rated sources")).permutation(len(train))
        return train.take(np.sort(rows[wanted:])), train.take(np.sort(rows[:wanted]))

    @cached_property
    def _human_ratings(self) -> Rated:
        return human_ratings(self.experiment.reward)

    def _settings(self, **parts: Any) -> dict[str, Any]:
        """What decides the bytes of a stage: its settings, its inputs and the seed."""
        return {"seed": self.experiment.seed, "corpus": self.corpus_identity, **parts}

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
        if i > 1:
            return self.load(f"improve-{g}-{i - 1}", f"rest improve --g {g} --i {i - 1}")
        before = [folder for folder in self.improves() if int(folder.name.split("-")[1]) < g]
        return self.load(before[-1].name if before else "bc", "rest bc")

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

    # The stages

    def bc(self) -> Policy:
        """π₀: behavioural cloning until the dev loss stops falling."""
        e = self.experiment
        published = isinstance(e.model, HuggingFaceModel)  # known by its content, wherever its folder is
        start = {"start": self._new_policy.identity} if published else {"tokenizer": e.tokenizer, "model": e.model}
        settings = self._settings(**start, batch=e.batch, bc=e.bc)
        with open_stage(self.out / "bc", settings) as stage:
            if not stage.finished:
                began = time.perf_counter()
                self._new_policy.tokenizer.save(stage.folder / "tokenizer")
                policy, trained = clone(
                    self._new_policy,
                    self.train,
                    e.bc.loss,
                    e.bc.train,
                    e.batch,
                    evaluate=dev_loss(self._new_policy, self.corpus.dev, e.batch),
                    folder=stage.folder,
                    seed=e.seed,
                    description="bc",
                )
                say(f"bc: {trained.steps} steps, {trained.stopped}, best step {trained.best_step}")
                _finish(stage, policy, began, {"gradient_steps": trained.steps, "stopped": trained.stopped})
            return Policy.load(stage.folder / "policy")

    def bc_continued(self) -> tuple[str, Policy]:
        """The control and its folder's name.

        BC trained on D for as many further steps as all Improves took, chosen by the same dev reward.
        """
        e = self.experiment
        steps = sum(read_json(f / "stage.json")["result"]["gradient_steps"] for f in self.improves())
        if not steps:
            raise UserError(f"{self.out}: no Improve step is complete, so there is nothing to train BC on for")
        training = dataclasses.replace(e.improve.training(1), max_steps=steps, patience=steps + 1)
        policy, reward = self.load("bc", "rest bc"), self.reward()
        settings = self._settings(policy=policy.identity, reward=reward.settings, loss=e.bc.loss, train=training)
        name = f"bc_continued-{steps}"
        with open_stage(self.out / name, settings) as stage:
            if not stage.finished:
                began = time.perf_counter()
                policy, trained = clone(
                    policy,
                    self.train,
                    e.bc.loss,
                    training,
                    e.batch,
                    evaluate=mean_reward(policy, self.corpus.dev, reward, e.evaluation, e.seed),
                    folder=stage.folder,
                    seed=e.seed,
                    description="bc_continued",
                )
                _finish(stage, policy, began, {"gradient_steps": trained.steps, "best_step": trained.best_step})
            return name, Policy.load(stage.folder / "policy")

    def reward(self) -> Reward:
        """R: given by the experiment, or learned from ratings of BC's samples."""
        e = self.experiment
        if not self.learns_reward:
            return dataclasses.replace(e.reward, guards=self._guards(e.reward.guards))
        policy = self.load("bc", "rest bc")
        sampling = e.grow.sampling
        gold = self.corpus.gold
        known: dict[str, Any] = {"reward": e.reward, "sampling": sampling}
        if e.reward.ratings:  # known by their content, wherever the files are
            given = self._human_ratings
            content = repr((given.sources, given.hypotheses, given.ratings.tolist())).encode()
            known = {"reward": describe(e.reward) | {"ratings": hashlib.sha256(content).hexdigest()}}
        with open_stage(self.out / "reward", self._settings(policy=policy.identity, **known)) as stage:
            if not stage.finished:
                began = time.perf_counter()
                rated = given if e.reward.ratings else rate(policy, self._parts[1], gold, e.reward, sampling, e.seed)
                gold = None if e.reward.ratings else gold
                fitted = fit(policy, rated, e.reward, folder=stage.folder, seed=e.seed, gold=gold)
                fitted.reward.save(stage.folder / "network", fitted.calibration)
                np.save(stage.folder / "network" / SEEN, source_keys(rated.sources))
                stage.finish(fitted.report | {"wall_s": time.perf_counter() - began})
            function, calibration = LearnedReward.load(stage.folder / "network")
            return Reward(function, calibration, self._guards(e.reward.guards))

    def _guards(self, guards: Guards | None) -> Guards | None:
        """With what they learn from D."""
        return None if guards is None else guards.fit(self.corpus.train.sources, self.corpus.train.references)

    def grow(self, g: int, policy: Policy, reward: Reward) -> ScoredDataset:
        """Grow step g."""
        e = self.experiment
        text = {} if self._text is None else {"text": hash_text(self._text)}
        drawn = dataclasses.replace(
            e.grow, text=None if self._text is None else Path("text")
        )  # where it is, is no matter
        settings = self._settings(policy=policy.identity, reward=reward.settings, grow=drawn, step=g, **text)
        with open_stage(self.out / f"grow-{g}", settings, shared=True) as stage:
            if not stage.finished:
                splits = [self._parts[0]] * e.grow.training_text + ([] if self._text is None else [self._text])
                guards = e.grow.guards.fit(self.corpus.train.sources, self.corpus.train.references)
                guarded = dataclasses.replace(e.grow, guards=guards)
                grow(stage, policy, splits, reward, guarded, g=g, seed=e.seed)
            return open_dataset(stage.folder)

    def improve(self, g: int, i: int, policy: Policy, dataset: ScoredDataset, reward: Reward) -> Policy:
        """Improve step i of Grow step g."""
        e = self.experiment
        start = policy if e.improve.start == "previous" else self.load("bc", "rest bc")
        choose = {
            "samples_per_source": e.evaluation.dev_samples_per_source,
            "sources": e.evaluation.dev_sources,
            "sampling": e.evaluation.sampling,
        }
        settings = self._settings(
            policy=start.identity,
            dataset=dataset.identity,
            reward=reward.settings,
            improve=e.improve.at(i),
            batch=e.batch,
            choose=choose,
        )
        with open_stage(self.out / f"improve-{g}-{i}", settings) as stage:
            if not stage.finished:
                began = time.perf_counter()
                policy, result = improve(
                    start,
                    dataset,
                    e.improve,
                    e.batch,
                    g=g,
                    i=i,
                    evaluate=mean_reward(start, self.corpus.dev, reward, e.evaluation, e.seed),
                    folder=stage.folder,
                    seed=e.seed,
                )
                _finish(stage, policy, began, result)
            return Policy.load(stage.folder / "policy")

    def nothing_passes(self, g: int, i: int, dataset: ScoredDataset) -> bool:
        """Whether the filter of Improve step i leaves nothing, which ends this Grow step with a warning."""
        if (self.out / f"improve-{g}-{i}").exists() or select(dataset, self.experiment.improve, i).rows:
            return False
        say(f"improve {g}.{i}: warning: no row passes {named(self.experiment.improve.rule, i)}; grow {g} ends here")
        return True

    def evaluate(self, name: str, policy: Policy) -> dict[str, Any]:
        """Reward and other metrics of a policy on test, in evaluation/<name>."""
        e, corpus, bc, reward = self.experiment, self.corpus, self.load("bc", "rest bc"), self.reward()
        settings = self._settings(
            policy=policy.identity, bc=bc.identity, reward=reward.settings, evaluation=e.evaluation
        )
        with open_stage(self.out / "evaluation" / name, settings) as stage:
            if not stage.finished:
                result = evaluate(
                    policy,
                    corpus.test,
                    reward,
                    e.evaluation,
                    bc=bc,
                    batch=e.batch,
                    gold=corpus.gold,
                    seed=e.seed,
                )
                shown = result.metrics["reward_mean"], result.metrics["reward_ci95"]
                say(f"{name}: test reward {shown[0]:.4f} [{shown[1][0]:.4f}, {shown[1][1]:.4f}]")
                stage.finish({"metrics": result.metrics, "shown": result.shown})
            return stage.result


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
        for side in (split.sources, split.references or []):
            digest.update("\n".join(side).encode() + b"\0")
    return digest.hexdigest()


def _finish(stage: Stage, policy: Policy, began: float, result: dict[str, Any]) -> None:
    """Keep the policy, drop the checkpoints that only a killed stage needs, and give the folder its name."""
    policy.save(stage.folder / "policy")
    discard(stage.folder / "checkpoints")
    stage.finish(result | {"wall_s": time.perf_counter() - began})


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count or name in ("read", "kept"))
