"""What a policy is worth on test: samples, greedy and beam outputs, the best of N, other temperatures and decodings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from rest import processes
from rest.errors import UserError
from rest.evaluation.best_of_n import BestOfN, record
from rest.evaluation.decoding import DecodingSettings, evaluate_decoding
from rest.evaluation.evaluate import evaluate, of_mean, variety
from rest.evaluation.mbr import MBR
from rest.evaluation.outputs import LEAST_PEERS, Outputs, chooser_of, draw, score
from rest.folder import StageFolder, StageName, read_json
from rest.identity import describe
from rest.journal import say
from rest.policy.policy import Policy
from rest.policy.sampler import SamplingSettings
from rest.reward.reward import Reward
from rest.stages.inputs import Inputs, judge_of


@dataclass(frozen=True)
class _Evaluation:
    """What all have in common: a policy by its name, a reward, and a record at the end."""

    name: StageName
    policy: Policy
    reward: Reward

    shared: ClassVar[bool] = False

    def read(self, inputs: Inputs, folder: Path) -> dict[str, Any]:
        return read_json(folder / "stage.json")["result"]


@dataclass(frozen=True)
class Evaluate(_Evaluation):
    """Reward and other metrics, in evaluation/<name>; with the reward of Grow step 2 in evaluation-2/<name>."""

    bc: Policy
    previous: Policy | None = None
    """The policy that an Improve step went on from."""
    newest: int = 1
    """The Grow step of the newest reward."""
    first: Reward | None = None
    """What a refreshed reward was at first."""

    @property
    def path(self) -> str:
        return f"{evaluations(self.newest)}/{self.name.folder}"

    def settings(self, inputs: Inputs) -> dict[str, Any]:
        e = inputs.experiment
        known: dict[str, Any] = {"policy": self.policy.identity, "bc": self.bc.identity, "reward": self.reward.settings}
        known |= {"previous": None if self.previous is None else self.previous.identity, "batch": e.batch}
        own = describe(e.evaluation.of_every_policy) | {"sampling": e.evaluation_sampling, "beam": e.beam}
        if (judge := judge_of(inputs)) is not None:  # known by what it scores by, wherever it lies
            own["judge"] = judge.settings
        known |= {"evaluation": own}
        return known | ({} if self.first is None else {"first_reward": self.first.settings})

    def make(self, inputs: Inputs, folder: StageFolder) -> None:
        e, corpus = inputs.experiment, inputs.corpus
        result = evaluate(
            self.policy,
            corpus.test,
            self.reward,
            replace(e.evaluation, judge=judge_of(inputs)),
            sampling=e.evaluation_sampling,
            beam=e.beam,
            bc=self.bc,
            batch=e.batch,
            gold=corpus.gold,
            seed=e.seed,
            first=self.first,
            previous=self.previous,
            machine=e.machine,
        )
        for name in ("samples", "greedy", "beam"):
            _write(getattr(result, name), folder.path / f"{name}.parquet")
        _say(self.name.folder, result.metrics)
        folder.finish({"metrics": result.metrics, "shown": result.shown})


@dataclass(frozen=True)
class BestOfNCurves(_Evaluation):
    """So many samples of every test source, and the curves of the best of N."""

    samples: int
    newest: int = 1
    """The Grow step of the newest reward."""

    @property
    def path(self) -> str:
        return f"{evaluations(self.newest)}/best-of-{self.samples}/{self.name.folder}"

    def settings(self, inputs: Inputs) -> dict[str, Any]:
        known = {"policy": self.policy.identity, "reward": self.reward.settings}
        return known | {"samples_per_source": self.samples, "sampling": inputs.experiment.evaluation_sampling}

    def make(self, inputs: Inputs, folder: StageFolder) -> None:
        e, test = inputs.experiment, inputs.corpus.test
        drawn = inputs.drawn(self.policy, self.samples, e.evaluation_sampling).texts
        outputs = Outputs(test, drawn, score(self.reward, inputs.corpus.gold, test, drawn, chrf=True))
        if "reward" not in outputs.scores:
            raise UserError(f"{self.samples} samples: the reward compares them, and {LEAST_PEERS} are needed for that")
        _write(outputs, folder.path / "samples.parquet")
        found = record(outputs)
        rewards = found["curves"]["reward"]["mean"]
        say(
            f"{self.name.folder}: test reward {rewards[0]:.4f} of a sample, "
            f"{rewards[-1]:.4f} of the best of {self.samples}"
        )
        folder.finish(found)


@dataclass(frozen=True)
class Decode(_Evaluation):
    """The same metrics of one hypothesis per source, found in another way, in evaluation/decode/."""

    decoding: DecodingSettings
    newest: int = 1
    """The Grow step of the reward."""

    @property
    def path(self) -> str:
        return f"{evaluations(self.newest)}/decode/{self.name.folder}.{self.decoding.name}"

    def settings(self, inputs: Inputs) -> dict[str, Any]:
        e = inputs.experiment
        known = {"policy": self.policy.identity, "reward": self.reward.settings}
        decoder = self.decoding.decoder(e.beam, e.evaluation_sampling)
        return known | {"decoder": decoder, "bleu_tokenizer": e.evaluation.bleu_tokenizer}

    def make(self, inputs: Inputs, folder: StageFolder) -> None:
        e, test, gold = inputs.experiment, inputs.corpus.test, inputs.corpus.gold
        decoder = self.decoding.decoder(e.beam, e.evaluation_sampling)
        chooser = chooser_of(self.reward, len(test))
        if isinstance(decoder, BestOfN | MBR):
            texts = decoder.chosen(inputs.drawn(self.policy, decoder.n, decoder.sampling), test, chooser)
        else:
            texts = decoder(self.policy, test, chooser, e.seed, e.machine)
        tokenize = e.evaluation.bleu_tokenizer
        metrics, outputs = evaluate_decoding(texts, test, self.reward, gold, e.seed, tokenize)
        _write(outputs, folder.path / "outputs.parquet")
        _say(f"{self.name.folder}, {self.decoding.name}", metrics)
        folder.finish({"metrics": metrics, "decode": self.decoding.decode, "n": self.decoding.draws})


@dataclass(frozen=True)
class SampledAt(_Evaluation):
    """Samples at another temperature, in evaluation/decode/: what a policy is worth that is only sharper."""

    temperature: float
    newest: int = 1
    """The Grow step of the reward."""

    @property
    def path(self) -> str:
        return f"{evaluations(self.newest)}/decode/{self.name.folder}.sample-{self.temperature:g}"

    def _sampling(self, inputs: Inputs) -> SamplingSettings:
        return replace(inputs.experiment.evaluation_sampling, temperature=self.temperature)

    def settings(self, inputs: Inputs) -> dict[str, Any]:
        known = {"policy": self.policy.identity, "reward": self.reward.settings, "sampling": self._sampling(inputs)}
        return known | {"samples_per_source": inputs.experiment.evaluation.samples_per_source}

    def make(self, inputs: Inputs, folder: StageFolder) -> None:
        e, test, gold = inputs.experiment, inputs.corpus.test, inputs.corpus.gold
        n = e.evaluation.samples_per_source
        drawn = draw(self.policy, test, n, self._sampling(inputs), e.seed, e.machine)
        outputs = Outputs(test, drawn, score(self.reward, gold, test, drawn))
        _write(outputs, folder.path / "samples.parquet")
        metrics: dict[str, Any] = {"reward_samples": n, **variety(drawn)}
        for name in ("reward", "gold"):
            metrics |= of_mean(name, outputs.scores.get(name), e.seed)
        _say(f"{self.name.folder} at temperature {self.temperature:g}", metrics)
        folder.finish({"metrics": metrics, "decode": "sample", "n": n, "temperature": self.temperature})


def _write(outputs: Outputs, path: Path) -> None:
    processes.first(lambda: outputs.write(path))


def _say(what: str, metrics: dict[str, Any]) -> None:
    """The reward, or where it has nothing to compare with BLEU."""
    if metrics.get("reward_mean") is not None:
        mean, (low, high) = metrics["reward_mean"], metrics["reward_ci95"]
        say(f"{what}: test reward {mean:.4f} [{low:.4f}, {high:.4f}]")
    elif "bleu" in metrics:
        say(f"{what}: test BLEU {metrics['bleu']:.2f}")


def evaluations(newest: int) -> str:
    """The folder of the evaluations with the reward of a Grow step."""
    return "evaluation" if newest == 1 else f"evaluation-{newest}"
