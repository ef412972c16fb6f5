"""Algorithm 1 of ReST (Gulcehre et al. 2023, arXiv 2308.08998), stage by stage, each stage a folder."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rest.baselines.bc import clone, dev_loss, human_pairs
from rest.baselines.ppo import ppo
from rest.columns import Judges, learn_value, load_value, save_value
from rest.data.ratings import source_keys
from rest.data.store import ScoredDataset
from rest.errors import UserError
from rest.evaluation.best_of_n import record
from rest.evaluation.compare import compare_stages
from rest.evaluation.decoding import DecodingSettings, evaluate_decoding
from rest.evaluation.evaluate import evaluate, mean_reward
from rest.evaluation.outputs import Outputs, draw, score
from rest.grow import grow, open_dataset, rescore
from rest.improve import improve, named, select
from rest.inputs import Inputs, hash_text
from rest.journal import say
from rest.learning.train import TrainSettings
from rest.model.huggingface import HuggingFaceModel
from rest.policy.policy import Policy
from rest.reward.fit import Cloned, fit, rate, rate_again
from rest.reward.guards import Guards
from rest.reward.learned import SEEN, LearnedReward
from rest.reward.rated import Rated
from rest.reward.reward import Reward
from rest.stage import Stage, describe, discard, open_stage, read_json, seed_for


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
class Run(Inputs):
    """An experiment in its folder. Each method makes one stage, or reads it if it is complete."""

    def bc(self) -> Policy:
        """π₀: behavioural cloning until the dev loss stops falling."""
        e = self.experiment
        published = isinstance(e.model, HuggingFaceModel)  # known by its content, wherever its folder is
        start = {"start": self._new_policy.identity} if published else {"tokenizer": e.tokenizer, "model": e.model}
        settings = self._settings(**start, **self._share, batch=e.batch, bc=e.bc)
        with open_stage(self.out / "bc", settings) as stage:
            if not stage.finished:
                self._clone(stage, self._new_policy, e.bc.train)
            return Policy.load(stage.folder / "policy")

    def _clone(self, stage: Stage, new: Policy, training: TrainSettings) -> None:
        """Behavioural cloning of a new policy, and its stage."""
        e, began, name = self.experiment, time.perf_counter(), stage.final.name
        new.tokenizer.save(stage.folder / "tokenizer")
        policy, trained = clone(
            new,
            self._shares[0],
            e.bc.loss,
            training,
            e.batch,
            evaluate=dev_loss(new, self.corpus.dev, e.batch),
            folder=stage.folder,
            seed=e.seed,
            description=name,
        )
        say(f"{name}: {trained.steps} steps, {trained.stopped}, best step {trained.best_step}")
        _finish(stage, policy, began, {"gradient_steps": trained.steps, "stopped": trained.stopped})

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
                if trained.best_step == 0:
                    say("bc_continued: no checkpoint scored above BC, which is kept")
                _finish(stage, policy, began, {"gradient_steps": trained.steps, "best_step": trained.best_step})
            return name, Policy.load(stage.folder / "policy")

    def reward_start(self, bc: Policy) -> Policy:
        """What a learned reward starts from: π₀, or a translation model of its own."""
        e, start = self.experiment, self.experiment.reward.start
        if not isinstance(start, Cloned):
            return bc
        known = {"tokenizer": bc.tokenizer.identity, "batch": e.batch, "loss": e.bc.loss, "start": start}
        settings = self._settings(**known, **self._share)
        with open_stage(self.out / "bc-reward", settings) as stage:
            if not stage.finished:
                new = Policy.new(start.model, bc.tokenizer, seed_for(e.seed, "reward start"))
                self._clone(stage, new, start.train)
            return Policy.load(stage.folder / "policy")

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
        start = self.reward_start(policy)
        if start is not policy:
            known |= {"start": start.identity}
        with open_stage(self._reward_folder(g), self._settings(policy=policy.identity, **known)) as stage:
            if not stage.finished:
                began = time.perf_counter()
                gold = None if rated is not None else self.corpus.gold
                if rated is None:
                    rated = self._rated(g)
                    if g > 1:
                        rated.save(stage.folder / "ratings.parquet")
                functions = {name: reward.function for name, reward in before.items()}
                fitted = fit(start, rated, e.reward, folder=stage.folder, seed=e.seed, gold=gold, before=functions)
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
        decoder, tokenize = decoding.decoder(e.evaluation.beam, e.evaluation.sampling), e.evaluation.bleu_tokenizer
        settings = self._settings(
            policy=policy.identity, reward=reward.settings, decoder=decoder, bleu_tokenizer=tokenize
        )
        with open_stage(self.out / "evaluation" / "decode" / f"{name}.{decoding.name}", settings) as stage:
            if not stage.finished:
                texts = decoder(policy, test, lambda *rows: reward(*rows).reward, e.seed)
                metrics, outputs = evaluate_decoding(texts, test, reward, self.corpus.gold, e.seed, tokenize)
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


def _finish(stage: Stage, policy: Policy, began: float, result: dict[str, Any]) -> None:
    """Keep the policy, drop the checkpoints that only a killed stage needs, and give the folder its name."""
    policy.save(stage.folder / "policy")
    discard(stage.folder / "checkpoints")
    stage.finish(result | {"wall_s": time.perf_counter() - began})
