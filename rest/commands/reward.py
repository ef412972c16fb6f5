"""`rest reward evaluate` and `rest reward attack`: a reward beside human ratings, and corrupted translations."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from rest.commands.flags import configure_jax, console, parsed
from rest.data.corpus import cleaning_of
from rest.errors import UserError, check_seed
from rest.experiment import import_file
from rest.folder import write_json
from rest.identity import describe
from rest.journal import say
from rest.policy.policy import last_policy
from rest.ratings.files import MLQEPE, MQM, DirectAssessments, Rankings, Votes
from rest.ratings.record import Ratings, SplitSettings, by_kind, seen_rows, split, unseen
from rest.report.rewards import agreement_table, attack_tables, difference_table
from rest.reward.agreement import evaluate
from rest.reward.attacks import attack, best_rated
from rest.reward.learned.network import SEEN, LearnedReward
from rest.reward.learned.saved import network_folder
from rest.reward.likelihood import PolicyLogProb
from rest.reward.reward import Reward, RewardFunction, with_references
from rest.reward.trivial import trivial_rewards

RatingFile = (
    Annotated[MQM, tyro.conf.subcommand("mqm")]
    | Annotated[MLQEPE, tyro.conf.subcommand("mlqe-pe")]
    | Annotated[DirectAssessments, tyro.conf.subcommand("table")]
    | Annotated[Votes, tyro.conf.subcommand("votes")]
    | Annotated[Rankings, tyro.conf.subcommand("rankings")]
)


@dataclass(frozen=True)
class Flags:
    """A reward and human ratings."""

    reward: tyro.conf.Positional[str]
    """The folder of a run or of a learned reward, or a function: module:function or FILE.py:function."""
    ratings: Annotated[RatingFile, tyro.conf.arg(name="")]
    """Human ratings."""
    split: SplitSettings = SplitSettings()
    """How documents are divided."""
    part: Literal["all", "unseen", "train", "dev", "test"] = "all"
    """Which documents are used; unseen: those of which no source was among what the learned rewards were made with.
    Documents of test that were are left out: the files that a reward learned from may have been divided otherwise."""
    seed: int = 0
    """Of resamples and perturbations."""
    out: Path | None = None
    """Write the numbers to this JSON file too."""

    def load(self, rewards: Sequence[str]) -> Ratings:
        """The ratings that are used, as the text of the first reward's run was cleaned."""
        check_seed(self.seed, "--seed")
        ratings = self.ratings.load()
        if self.part in ("train", "dev", "test"):  # before texts are cleaned, as a run divides them
            ratings = getattr(split(ratings, self.split), self.part)
        if self.part in ("unseen", "test"):
            kept = unseen(ratings, np.any([seen_by(name, ratings.sources) for name in rewards], axis=0))
            if self.part == "test" and len(kept) < len(ratings):
                say(f"test: of {len(ratings)} rows {len(ratings) - len(kept)} are of documents that were trained on")
            ratings = kept
        return ratings.cleaned(cleaning_of(Path(self.reward)).line) if Path(self.reward).is_dir() else ratings

    def write(self, results: list[dict[str, Any]]) -> None:
        """The results and what they were measured on."""
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            measured = {"settings": describe(self), "results": results}
            write_json(self.out, measured)


@dataclass(frozen=True)
class EvaluateFlags(Flags):
    """How far a reward agrees with people, beside trivial rewards."""

    against: tuple[str, ...] = ()
    """More rewards, compared with the first."""
    policy: Path | None = None
    """The folder of a run or stage: its policy's log-probability is one more trivial reward."""
    resamples: int = 1000
    """Of the bootstrap."""


@dataclass(frozen=True)
class AttackFlags(Flags):
    """How often corrupted translations score above honest ones."""

    sources: int = 1000
    """Attack the best rated translation of so many sources at most."""


def evaluate_reward(arguments: Sequence[str]) -> None:
    """Tables of how far a reward, others and trivial ones agree with people, one for each language pair."""
    flags = parsed(EvaluateFlags, "reward evaluate", arguments)
    configure_jax()
    names = flags.reward, *flags.against
    rewards = {name: open_reward(name) for name in names}
    if flags.policy is not None:
        rewards["log-probability"] = PolicyLogProb(last_policy(flags.policy))
    results, shown = [], console()
    for ratings in by_kind(flags.load(names)):
        agreement = evaluate({**rewards, **trivial_rewards(ratings)}, ratings, flags.seed, flags.resamples)
        shown.print(agreement_table(agreement))
        if agreement.differences:
            shown.print(difference_table(agreement))
        results.append(agreement.record())
    flags.write(results)


def attack_reward(arguments: Sequence[str]) -> None:
    """Tables of how often corrupted translations score above honest ones: the best rated of every source."""
    flags = parsed(AttackFlags, "reward attack", arguments)
    configure_jax()
    best = best_rated(flags.load([flags.reward])).take(slice(0, flags.sources))
    results = attack(open_reward(flags.reward), best.sources, best.hypotheses, flags.seed, best.all_references)
    console().print(attack_tables(results))
    flags.write([result.record() for result in results])


@dataclass(frozen=True)
class _Turned:
    """A reward of which lower raw scores are better, as its scale says."""

    function: RewardFunction

    def __call__(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
    ) -> np.ndarray:
        return -np.asarray(self.function(sources, hypotheses, references))


def seen_by(name: str, sources: Sequence[str]) -> np.ndarray:
    """Which of n sources a reward was trained on, written as its run cleaned them; bool [n]."""
    folder = Path(name)
    line = cleaning_of(folder).line if folder.is_dir() else str
    return seen_rows([line(source) for source in sources], known_sources(name))


def known_sources(name: str) -> np.ndarray:
    """Hashes of the sources that a learned reward was trained on, uint64; a function was trained on none."""
    if (network := network_folder(Path(name))) is None:
        return np.zeros(0, np.uint64)
    if not (network / SEEN).is_file():
        raise UserError(f"{network}: has no {SEEN}, which tells what the reward was trained on")
    return np.load(network / SEEN, allow_pickle=False)


def open_reward(name: str) -> RewardFunction:
    """The raw scores, higher being better, of a learned reward's or a run's folder, or of MODULE:NAME.

    NAME is a function, a Reward, or a class that is made without arguments; MODULE may be a Python file.
    """
    folder = Path(name)
    if (network := network_folder(folder)) is not None:
        return LearnedReward.load(network)[0]
    if Path(name).is_dir() or ":" not in name:
        raise UserError(f"{name}: neither the folder of a run or learned reward, nor module:function")
    found = named_reward(name)
    found = found() if isinstance(found, type) else found
    if isinstance(found, Reward):
        falls = found.range is not None and found.range[0] > found.range[1]
        function = with_references(found.function)
        return _Turned(function) if falls else function
    return with_references(found)


def named_reward(name: str) -> Any:
    """The function, Reward or class that MODULE:NAME or FILE.py:NAME names."""
    module_name, colon, attribute = name.rpartition(":")
    if not colon:
        raise UserError(f"{name}: name a reward as module:function or FILE.py:function")
    if module_name.endswith(".py"):
        if not Path(module_name).is_file():
            raise UserError(f"{module_name}: no such file")
        module = import_file(Path(module_name))
    else:
        sys.path.insert(0, "")  # as `python -m` has it, so that a module beside the user is found
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise UserError(f"{name}: {error}") from error
        finally:
            sys.path.remove("")
    found = getattr(module, attribute, None)
    if not isinstance(found, Reward) and not callable(found):
        raise UserError(f"{name}: {module_name} has no reward of the name {attribute!r}")
    return found
