"""Algorithm 1 of ReST (Gulcehre et al. 2023, arXiv 2308.08998), stage by stage, each stage a folder."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rest.baselines.bc import clone, dev_loss, drop_long, human_pairs
from rest.baselines.ppo import ppo
from rest.columns import Judges, learn_value, load_value, save_value
from rest.data.corpus import Corpus, Split, source_text
from rest.data.ratings import source_keys
from rest.data.store import ScoredDataset
from rest.data.tokenizer import load_tokenizer
from rest.errors import UserError
from rest.evaluation.best_of_n import record
from rest.evaluation.compare import compare_stages
from rest.evaluation.decoding import DecodingSettings, evaluate_decoding
from rest.evaluation.evaluate import evaluate, mean_reward
from rest.evaluation.outputs import Outputs, draw, score
from rest.experiment import Experiment
from rest.grow import grow, open_dataset, rescore
from rest.improve import improve, named, select
from rest.journal import say
from rest.model.huggingface import HuggingFaceModel
from rest.policy.policy import Policy
from rest.reward.fit import RewardSettings, fit, human_ratings, rate, rate_again
from rest.reward.guards import Guards
from rest.reward.learned import SEEN, LearnedReward
from rest.reward.rated import Rated
from rest.reward.reward import Reward
from rest.stage import Stage, describe, discard, open_stage, read_json, seed_for, write_json


def rest(run: Run) -> None:
    """Grow and Improve, and what they are compared with. Stages that are complete are not made again."""
    run.try_reward()
    policy = run.bc()  # π₀
    run.evaluate("bc", policy)
    for g in range(1, run.experiment.grow_steps + 1):
        reward = run.reward(g)  # R, always the same, or fitted again to ratings of the latest policy too
        dataset = run.grow(g, policy, reward)  # D_g = {(x, y): x ~ D, y ~ π(·|x)} ∪ D, scored by R
        if run.experiment.improve.unfiltered:
            run.evaluate(f"improve-{g}-0", run.improve(g, 0, policy, dataset, reward))  # τ = -∞, a side branch
        for i in range(1, run.experiment.improve.rule.steps + 1):
            if run.nothing_passes(g, i, dataset):
                break
            policy = run.improve(g, i, policy, dataset, reward)  # 1{R(x, y) > τᵢ}, the best on dev
            run.evaluate(f"improve-{g}-{i}", policy)
    if run.experiment.ppo.rollouts:
        run.evaluate("ppo", run.ppo())  # online, for comparison
    run.evaluate(*run.bc_continued())  # the control
    if run.newest > 1:  # policies that were evaluated by an earlier reward
        for folder in ["bc", *sorted(path.name for path in run.out.glob("improve-*-*"))]:
            run.evaluate(folder, run.load(folder))


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

    # The stages

    def bc(self) -> Policy:
        """π₀: behavioural cloning until the dev loss stops falling."""
        e = self.experiment
        published = isinstance(e.model, HuggingFaceModel)  # known by its content, wherever its folder is
        start = {"start": self._new_policy.identity} if published else {"tokenizer": e.tokenizer, "model": e.model}
        settings = self._settings(**start, **self._share, batch=e.batch, bc=e.bc)
        with open_stage(self.out / "bc", settings) as stage:
            if not stage.finished:
                began = time.perf_counter()
                self._new_policy.tokenizer.save(stage.folder / "tokenizer")
                policy, trained = clone(
                    self._new_policy,
                    self._shares[0],
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

        BC trained on D for as many further steps as all Improves took, or PPO if that took more, chosen by the same
        dev reward.
        """
        e = self.experiment
        ppo = [self.out / "ppo"] if (self.out / "ppo").exists() else []
        steps = max(
            sum(read_json(f / "stage.json")["result"]["gradient_steps"] for f in folders)
            for folders in (self.improves(), ppo)
        )
        if not steps:
            raise UserError(
                f"{self.out}: neither an Improve step nor PPO is complete, so BC has no steps to train on for"
            )
        training = dataclasses.replace(e.improve.training(1), max_steps=steps, patience=steps + 1)
        policy, reward = self.load("bc", "rest bc"), self.reward(self.newest)
        settings = self._settings(policy=policy.identity, reward=reward.settings, loss=e.bc.loss, train=training)
        name = f"bc_continued-{steps}"
        with open_stage(self.out / name, settings) as stage:
            if not stage.finished:
                began = time.perf_counter()
                policy, trained = clone(
                    policy,
                    self._shares[0],
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

    def reward(self, g: int = 1) -> Reward:
        """R of Grow step g: given by the experiment, or learned from ratings of BC's samples.

        A reward that is refreshed is that of the step before, fitted again with ratings of the latest policy's
        samples added; the rows of earlier Grow steps get it as a sidecar column.
        """
        e = self.experiment
        if not self.learns_reward:
            return dataclasses.replace(e.reward, guards=self._guards(e.reward.guards))
        g = 1 if e.refresh is None else g
        policy = self.load("bc", "rest bc")
        rated = self._human_ratings(g) if e.reward.ratings else None
        known: dict[str, Any] = {"reward": e.reward, "sampling": e.grow.sampling}
        if rated is not None:  # known by their content, wherever the files are
            content = repr((rated.sources, rated.hypotheses, rated.ratings.tolist())).encode()
            known = {"reward": describe(e.reward) | {"ratings": hashlib.sha256(content).hexdigest()}}
        before: dict[str, Reward] = {}
        if g > 1:
            before = {"first": self.reward()} | ({"before": self.reward(g - 1)} if g > 2 else {})
            known |= {"before": [reward.settings for reward in before.values()], "step": g}
            if rated is None:
                known |= {"refresh": e.refresh, "latest": self.policy_before(g).identity}
        with open_stage(self._reward_folder(g), self._settings(policy=policy.identity, **known)) as stage:
            if not stage.finished:
                began = time.perf_counter()
                gold = None if rated is not None else self.corpus.gold
                if rated is None:
                    rated = self._rated(g)
                    if g > 1:
                        rated.save(stage.folder / "ratings.parquet")
                functions = {name: reward.function for name, reward in before.items()}
                fitted = fit(policy, rated, e.reward, folder=stage.folder, seed=e.seed, gold=gold, before=functions)
                fitted.reward.save(stage.folder / "network", fitted.calibration)
                np.save(stage.folder / "network" / SEEN, source_keys(rated.sources))
                stage.finish(fitted.report | {"wall_s": time.perf_counter() - began})
            function, calibration = LearnedReward.load(stage.folder / "network")
            reward = Reward(function, calibration, self._guards(e.reward.guards))
            for h in range(1, g):
                if (self.out / f"grow-{h}").exists():
                    rescore(open_dataset(self.out / f"grow-{h}"), reward, f"reward_{g}")
            return reward

    def _rated(self, g: int) -> Rated:
        """Ratings of samples: of BC, and of the policies before Grow steps 2 to g."""
        e, gold, text = self.experiment, self.corpus.gold, self._parts[1]
        if g == 1 or e.refresh is None:
            return rate(self.load("bc", "rest bc"), text, gold, e.reward, e.grow.sampling, e.seed)
        before = Rated.load(self._reward_folder(g - 1) / "ratings.parquet") if g > 2 else self._rated(1)
        policy = self.policy_before(g)
        return before + rate_again(policy, text, gold, e.reward, e.refresh, e.grow.sampling, g=g, seed=e.seed)

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
        settings = self._settings(
            policy=start.identity,
            dataset=dataset.identity,
            reward=reward.settings,
            improve=e.improve.at(i),
            batch=e.improve.batch or e.batch,
            choose=self._choose,
        )
        judges = self.judges(e.improve.loss.needs)
        judged = {name: judge.identity for name, judge in vars(judges).items() if judge is not None}
        with open_stage(self.out / f"improve-{g}-{i}", settings | judged) as stage:
            if not stage.finished:
                began = time.perf_counter()
                policy, result = improve(
                    start,
                    dataset,
                    e.improve,
                    e.improve.batch or e.batch,
                    g=g,
                    i=i,
                    evaluate=mean_reward(start, self.corpus.dev, reward, e.evaluation, e.seed),
                    folder=stage.folder,
                    seed=e.seed,
                    judges=judges,
                )
                _finish(stage, policy, began, result)
            return Policy.load(stage.folder / "policy")

    def judges(self, needs: tuple[str, ...]) -> Judges:
        """The networks that a loss reads columns of: π₀, and the value of D_1's prefixes, learned once."""
        bc = self.load("bc", "rest bc") if {"bc_log_probs", "value"} & set(needs) else None
        if bc is None or "value" not in needs:
            return Judges(bc)
        e = self.experiment
        dataset = open_dataset(self.out / "grow-1")
        settings = self._settings(bc=bc.identity, dataset=dataset.identity, value=e.improve.value, batch=e.batch)
        with open_stage(self.out / "value", settings) as stage:
            if not stage.finished:
                began = time.perf_counter()
                value, result = learn_value(bc, dataset, e.improve.value, e.batch, folder=stage.folder, seed=e.seed)
                save_value(stage.folder / "network", value)
                discard(stage.folder / "checkpoints")
                stage.finish(result | {"wall_s": time.perf_counter() - began})
            return Judges(bc, load_value(stage.folder / "network", bc))

    def ppo(self) -> Policy:
        """Online RL from BC on the sources that Grow has, with the same reward."""
        e = self.experiment
        if not e.ppo.rollouts:
            raise UserError("ppo.rollouts is 0, so there is no PPO to run; set it in the experiment or by a flag")
        policy, reward, text = self.load("bc", "rest bc"), self.reward(), self._parts[0]
        settings = self._settings(
            policy=policy.identity,
            reward=reward.settings,
            ppo=e.ppo,
            batch=e.batch,
            choose=self._choose,
            text=hash_text(text),
            **self._share,
        )
        with open_stage(self.out / "ppo", settings) as stage:
            if not stage.finished:
                began = time.perf_counter()
                policy, result = ppo(
                    policy,
                    text,
                    human_pairs(policy, self._shares[0], e.batch) if e.ppo.pretraining else None,
                    reward,
                    e.ppo,
                    e.batch,
                    evaluate=mean_reward(policy, self.corpus.dev, reward, e.evaluation, e.seed),
                    folder=stage.folder,
                    seed=e.seed,
                )
                _finish(stage, policy, began, result | {"sources": self._overlap()})
            return Policy.load(stage.folder / "policy")

    def _overlap(self) -> dict[str, int]:
        """How many sources BC, the ratings and PPO have, and how many two of them share."""
        ids = {"bc": self._shares[0].ids, "ratings": self._parts[1].ids, "ppo": self._parts[0].ids}
        shared = {f"{a} and {b}": len(np.intersect1d(ids[a], ids[b])) for a, b in itertools.combinations(ids, 2)}
        return {name: len(rows) for name, rows in ids.items()} | shared

    def nothing_passes(self, g: int, i: int, dataset: ScoredDataset) -> bool:
        """Whether the filter of Improve step i leaves nothing, which ends this Grow step with a warning."""
        if (self.out / f"improve-{g}-{i}").exists() or select(dataset, self.experiment.improve, i).rows:
            return False
        say(f"improve {g}.{i}: warning: no row passes {named(self.experiment.improve.rule, i)}; grow {g} ends here")
        return True

    def best_of_n(self, name: str, policy: Policy, samples: int) -> Path:
        """So many samples of every test source and the curves of the best of N; returns the folder."""
        e, reward = self.experiment, self.reward()
        drawing = {"samples_per_source": samples, "sampling": e.evaluation.sampling}
        settings = self._settings(policy=policy.identity, reward=reward.settings, **drawing)
        with open_stage(self.out / "evaluation" / f"best-of-{samples}" / name, settings) as stage:
            if not stage.finished:
                drawn = draw(policy, self.corpus.test, samples, e.evaluation.sampling, e.seed)
                scores = score(reward, self.corpus.gold, self.corpus.test, drawn, chrf=True)
                outputs = Outputs(self.corpus.test, drawn, scores)
                outputs.write(stage.folder / "samples.parquet")
                stage.finish(record(outputs))
            rewards = stage.result["curves"]["reward"]["mean"]
            say(f"{name}: test reward {rewards[0]:.4f} of a sample, {rewards[-1]:.4f} of the best of {samples}")
            return stage.final

    def decode(self, name: str, policy: Policy, decoding: DecodingSettings) -> dict[str, Any]:
        """The same metrics of one hypothesis a source, found in another way, in evaluation/decode/."""
        e, reward, test = self.experiment, self.reward(), self.corpus.test
        decoder = decoding.decoder(e.evaluation.beam, e.evaluation.sampling)
        settings = self._settings(policy=policy.identity, reward=reward.settings, decoder=decoder)
        with open_stage(self.out / "evaluation" / "decode" / f"{name}.{decoding.name}", settings) as stage:
            if not stage.finished:
                texts = decoder(policy, test, lambda *rows: reward(*rows).reward, e.seed)
                metrics, outputs = evaluate_decoding(texts, test, reward, self.corpus.gold, e.seed)
                outputs.write(stage.folder / "outputs.parquet")
                say(f"{name}, {decoding.name}: test reward {metrics['reward_mean']:.4f}")
                stage.finish({"metrics": metrics, "decode": decoding.decode, "n": decoding.draws})
            return stage.result

    def evaluate(self, name: str, policy: Policy) -> dict[str, Any]:
        """Reward and other metrics of a policy on test, in evaluation/<name>; with reward-2 in evaluation-2/<name>."""
        e, corpus, bc, newest = self.experiment, self.corpus, self.load("bc", "rest bc"), self.newest
        reward, first = self.reward(newest), self.reward() if newest > 1 else None
        settings = self._settings(
            policy=policy.identity, bc=bc.identity, reward=reward.settings, evaluation=e.evaluation
        ) | ({} if first is None else {"first_reward": first.settings})
        before = self._before(name)
        folder = self.out / ("evaluation" if first is None else f"evaluation-{newest}")
        with open_stage(folder / name, settings) as stage:
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
                    first=first,
                    previous=self.load(before) if before else None,
                )
                result.samples.write(stage.folder / "samples.parquet")
                result.greedy.write(stage.folder / "greedy.parquet")
                shown = result.metrics["reward_mean"], result.metrics["reward_ci95"]
                say(f"{name}: test reward {shown[0]:.4f} [{shown[1][0]:.4f}, {shown[1][1]:.4f}]")
                stage.finish({"metrics": result.metrics, "shown": result.shown})
            found = stage.result
        pairs = [(name, other) for other in dict.fromkeys(["bc", before]) if other and other != name]
        if name.startswith("bc_continued") and self.improves():
            pairs.append((self.improves()[-1].name, name))
        for new, old in pairs:
            compare_stages(self.out / "evaluation", new, old, e.seed)
        return found

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
