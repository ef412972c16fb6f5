"""A reward that is learned: from ratings of BC's samples or of files, and again between Grow steps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rest import processes
from rest.folder import StageFolder, StageName
from rest.identity import describe
from rest.journal import say
from rest.policy.policy import Policy
from rest.ratings.rated import Rated
from rest.ratings.record import source_keys
from rest.reward.learned.fit import fit, rate, rate_again
from rest.reward.learned.network import SEEN, LearnedReward
from rest.reward.raters import MetricRater
from rest.reward.reward import Reward, with_references
from rest.stages.inputs import Inputs, fetched


@dataclass(frozen=True)
class LearnReward:
    """R of Grow step g. One that is refreshed has the ratings of the step before, and some of the latest policy."""

    g: int
    bc: Policy
    start: Policy
    """What it starts from: BC, or a translation model of its own."""
    earlier: tuple[Reward, ...] = ()
    """Where it is refreshed: the first reward, and that of the step before if it is another."""
    latest: Policy | None = None
    """The policy whose samples are rated in addition; None where files have all ratings."""
    files: Rated | None = None
    """The ratings of people in files."""

    shared: ClassVar[bool] = False

    @property
    def path(self) -> str:
        return StageName("reward", self.g).folder

    def settings(self, inputs: Inputs) -> dict[str, Any]:
        e = inputs.experiment
        learned = describe(e.reward) | {"batch": e.reward_batch}
        known: dict[str, Any] = {"policy": self.bc.identity}
        if self.files is None:  # samples are rated, at temperatures of the reward's own
            known["sampling"] = {name: value for name, value in vars(e.sampling).items() if name != "temperature"}
        else:  # known by their content, wherever the files are
            content = repr((self.files.sources, self.files.hypotheses, self.files.ratings.tolist())).encode()
            learned["ratings"] = hashlib.sha256(content).hexdigest()
        known["reward"] = learned
        if self.start is not self.bc:
            known["start"] = self.start.identity
        if self.earlier:
            known |= {"before": [reward.settings for reward in self.earlier], "step": self.g}
        if self.latest is not None:
            known |= {"refresh": e.refresh, "latest": self.latest.identity}
        return known

    def make(self, inputs: Inputs, folder: StageFolder) -> None:
        e, rated = inputs.experiment, self.files
        gold = inputs.corpus.gold if rated is None else None
        if rated is None:
            rated = self._rated(inputs)
            if self.g > 1:
                processes.first(partial(rated.save, folder.path / "ratings.parquet"))
        names = ("first", "before")
        before = {name: with_references(reward.function) for name, reward in zip(names, self.earlier, strict=False)}
        fitted = fit(
            self.start,
            rated,
            e.reward,
            e.reward_batch,
            folder=folder.path,
            seed=e.seed,
            gold=gold,
            before=before,
            machine=e.machine,
        )
        seen = source_keys(rated.sources)

        def save() -> None:
            fitted.reward.save(folder.path / "network", fitted.calibration)
            np.save(folder.path / "network" / SEEN, seen)

        processes.first(save)
        folder.finish(fitted.report | fetched(e.reward.start))

    def _rated(self, inputs: Inputs) -> Rated:
        """Ratings of samples: of BC, and of the policies before Grow steps 2 to g."""
        e, text, gold = inputs.experiment, inputs.parts.rated, inputs.corpus.gold

        def of_bc() -> Rated:
            if e.reward.rate_references and isinstance(e.reward.rater, MetricRater):
                say(
                    "reward: warning: the rater compares with references, rates them too and finds each perfect; "
                    "set reward.rate_references to False"
                )
            return rate(self.bc, text, gold, e.reward, e.sampling, e.seed, e.machine)

        if self.latest is None or e.refresh is None:
            return of_bc()
        kept = inputs.out / StageName("reward", self.g - 1).folder / "ratings.parquet"
        before: Callable[[], Rated] = of_bc if self.g == 2 else lambda: Rated.load(kept)
        new = rate_again(
            self.latest, text, gold, e.reward, e.refresh, e.sampling, g=self.g, seed=e.seed, machine=e.machine
        )
        return before() + new

    def read(self, inputs: Inputs, folder: Path) -> Reward:
        function, calibration = LearnedReward.load(folder / "network", inputs.experiment.machine)
        function = function.with_tokenizer(inputs.tokenizer)
        guards = inputs.experiment.reward.guards
        return Reward(function, calibration, None if guards is None else inputs.fitted(guards))
