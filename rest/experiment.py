"""An experiment: the settings of every stage joined, read from a Python file, with flags over it."""

from __future__ import annotations

import difflib
import importlib.util
import math
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from rest.baselines.bc import BCSettings
from rest.baselines.settings import PPOSettings
from rest.data.batches import BatchSettings
from rest.data.corpus import Cleaning, Corpus
from rest.data.tokenizer import SentencePieceSettings
from rest.errors import UserError, check_seed, refuse_below
from rest.evaluation.chooser import RewardOfSamples
from rest.evaluation.evaluate import EvaluationSettings
from rest.grow import GrowSettings
from rest.identity import remember
from rest.improve import ImproveSettings
from rest.learning.mesh import MachineSettings
from rest.model.families.huggingface import HuggingFaceModel
from rest.model.layers import TransformerSettings
from rest.policy.beam import BeamSettings
from rest.policy.sampler import SamplingSettings
from rest.reward.learned.settings import Refresh, RewardSettings
from rest.reward.reward import Reward


@runtime_checkable
class CorpusSettings(Protocol):
    """Where the text is: any frozen dataclass that can load it."""

    def load(self, cleaning: Cleaning) -> Corpus: ...


@dataclass(frozen=True)
class Experiment:
    """Everything that a run depends on."""

    corpus: Any  # CorpusSettings
    """Where the text is: TextFiles, IWSLT14, WMT, Combined, SyntheticCorpus, ..., or your own."""
    reward: Any
    """RewardSettings: learn one from ratings. Reward: a function of yours and its scale."""
    cleaning: Cleaning = field(default_factory=Cleaning)
    tokenizer: Any = field(default_factory=SentencePieceSettings)
    """SentencePieceSettings or HuggingFaceSettings; left out where the model comes with its own."""
    model: TransformerSettings | HuggingFaceModel = field(default_factory=TransformerSettings)
    """TransformerSettings: a random network of these sizes. HuggingFaceModel: a published one with its tokenizer."""
    batch: BatchSettings = field(default_factory=BatchSettings)
    """Of every training and scoring, unless a stage has another."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    """What Grow and evaluation draw from, unless they say otherwise. Ratings and PPO have its lengths too."""
    bc: BCSettings = field(default_factory=BCSettings)
    grow_steps: int = 1
    """G."""
    grow: GrowSettings = field(default_factory=GrowSettings)
    improve: ImproveSettings = field(default_factory=ImproveSettings)
    ppo: PPOSettings = field(default_factory=PPOSettings)
    bc_share: float = 1.0
    """Share of the training text that BC learns from; below 1, reward, Grow and PPO have only the rest."""
    choose: Any = field(default_factory=RewardOfSamples)  # a DevChooser
    """Which checkpoint of Improve, BC continued and PPO is kept, by dev: RewardOfSamples, RewardOfGreedy,
    MetricOfGreedy (what users ship, against dev's references) or DevLoss. BC is chosen by its loss."""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    refresh: Refresh | None = None
    """Refit a learned reward before each Grow step but the first, with ratings of the latest policy; None: never."""
    seed: int = 0
    machine: MachineSettings = field(default_factory=MachineSettings)
    """How the devices are used. It decides no result: a run goes on with other ones."""

    def __post_init__(self) -> None:
        refuse_infinite("", self)
        check_seed(self.seed)
        for reward in (self.reward, self.evaluation.judge):
            if isinstance(reward, Reward):
                remember(reward.function)  # which may keep what it has scored
        refuse_below("", self, {"grow_steps": 0})
        self._joined()
        if not 0 < self.bc_share <= 1:
            raise UserError(f"bc_share must be above 0 and at most 1, not {self.bc_share}")
        if isinstance(self.model, HuggingFaceModel) and self.tokenizer != SentencePieceSettings():
            raise UserError(
                f"tokenizer: the model in {self.model.folder} comes with its own; "
                f"leave {type(self.tokenizer).__name__} out of the experiment"
            )
        if self.refresh is not None:
            if not isinstance(self.reward, RewardSettings):
                raise UserError("refresh: the experiment gives its reward, so there is none to fit again")
            if self.refresh.ratings and not self.reward.ratings:
                raise UserError("refresh.ratings: the reward has a rater, who rates the new samples too; name no files")

    def _joined(self) -> None:
        """Join what stages have of their own to what is shared: each refuses what it cannot be, or cannot be with."""
        self._undivided()
        batches = {"batch": self.batch, "improve.batch": self.improve_batch}
        if isinstance(self.reward, RewardSettings):
            batches["reward.batch"] = self.reward_batch
        drawn = [("grow.sampling", each) for _, each in self.grow.distributions(self.grow_sampling)]
        drawn += [("sampling", self.sampling), ("evaluation.sampling", self.evaluation_sampling)]
        by, longest = max(drawn, key=lambda each: each[1].max_target_tokens)
        for name, batch in batches.items():
            if batch.rows % self.machine.micro_batches:
                raise UserError(
                    f"machine.micro_batches {self.machine.micro_batches}: a batch has {batch.rows} rows by {name}, "
                    "which that does not divide"
                )
            if longest.max_target_tokens > batch.target_tokens:
                raise UserError(
                    f"{by}.max_target_tokens {longest.max_target_tokens} is more than {name}.target_tokens "
                    f"{batch.target_tokens}: the longest samples would not fit into a row of a batch"
                )

        for side in ("source_tokens", "target_tokens"):
            if getattr(self.improve_batch, side) < getattr(self.batch, side):
                raise UserError(
                    f"improve.batch.{side} {getattr(self.improve_batch, side)} is less than batch.{side} "
                    f"{getattr(self.batch, side)}: some of the training text would not fit into a row"
                )

    def _undivided(self) -> None:
        """UserError where micro-batches would train by another loss than a whole batch."""
        loss, smoothing = self.improve.loss, self.improve.label_smoothing
        wholes = {
            f"improve.loss {type(loss).__name__}": loss.of_whole_batch,
            f"improve.label_smoothing {smoothing} of improve.loss {type(loss).__name__}": smoothing
            and loss.candidates > 1,
            f"ppo.pretraining {self.ppo.pretraining}": self.ppo.rollouts and self.ppo.pretraining,
            "the ranking of reward.loss": isinstance(self.reward, RewardSettings) and self.reward.loss.ranking,
        }
        for name, whole in wholes.items():
            if whole and self.machine.micro_batches > 1:
                raise UserError(
                    f"machine.micro_batches {self.machine.micro_batches}: {name} is a mean over a whole batch, which "
                    "cannot be gone through in parts"
                )

    # What stages use: the shared settings with their own over them

    @property
    def grow_sampling(self) -> SamplingSettings:
        return self.grow.sampling.of(self.sampling)

    @property
    def evaluation_sampling(self) -> SamplingSettings:
        return self.evaluation.sampling.of(self.sampling)

    @property
    def beam(self) -> BeamSettings:
        """Of evaluation: outputs are as long as samples may be, unless it says otherwise."""
        own = self.evaluation.beam
        return replace(own, max_target_tokens=own.max_target_tokens or self.evaluation_sampling.max_target_tokens)

    @property
    def reward_batch(self) -> BatchSettings:
        """Of a reward that is learned."""
        return self.reward.batch.of(self.batch)

    @property
    def improve_batch(self) -> BatchSettings:
        return self.improve.batch.of(self.batch)


def refuse_infinite(name: str, value: Any) -> None:
    """UserError that names the first number within settings that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, not {value}")
    inside: list[tuple[Any, Any]] = []
    if is_dataclass(value) and not isinstance(value, type):
        inside = [(field.name, getattr(value, field.name)) for field in fields(value)]
    elif isinstance(value, dict | list | tuple):
        inside = list(value.items() if isinstance(value, dict) else enumerate(value))
    for key, part in inside:
        refuse_infinite(f"{name}.{key}" if name else str(key), part)


def load_experiment(name: str) -> Experiment:
    """The experiment of `FILE` or `FILE:variant`: a name in the file, by default `experiment`, or losses.GOLD of a
    dictionary `losses`."""
    path, _, variant = name.partition(":")
    found = _experiments(Path(path))
    return found[_known(variant or "experiment", found, path)]


def load_variants(name: str, wanted: Sequence[str] = ()) -> dict[str, Experiment]:
    """The experiments that are names in `FILE`, or those of a dictionary in it, `FILE:losses`; all or those wanted."""
    path, _, group = name.partition(":")
    found = _experiments(Path(path))
    if group and group not in found:
        within = {each.removeprefix(f"{group}."): e for each, e in found.items() if each.startswith(f"{group}.")}
        found = within or {group: found[_known(group, found, path)]}
    elif group:
        found = {group: found[group]}
    else:
        found = {each: e for each, e in found.items() if "." not in each}
    return {each: found[each] for each in (_known(one, found, name) for one in wanted or found)}


def _experiments(path: Path) -> dict[str, Experiment]:
    """All of a file: its names, and those in its dictionaries behind a dot; a folder means its experiment.py."""
    path = path / "experiment.py" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path}: no such experiment file")
    found: dict[str, Experiment] = {}
    for name, value in vars(import_file(path)).items():
        if name.startswith("_"):
            continue
        group = value.items() if isinstance(value, dict) else ()
        for key, experiment in ((name, value), *((f"{name}.{key}", each) for key, each in group)):
            if isinstance(experiment, Experiment):
                found[key] = experiment
    return found


def _known(name: str, found: Mapping[str, Experiment], where: str) -> str:
    """The name, if there is one like that."""
    if name not in found:
        close = difflib.get_close_matches(name, found, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"{where}: no experiment named {name!r}; it has {', '.join(sorted(found)) or 'none'}{hint}")
    return name


def import_file(path: Path) -> ModuleType:
    """The module in a Python file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: not valid Python: {error.msg}") from error
    except (ImportError, NameError, AttributeError, TypeError) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        if not lines or not _of_its_own(error, path):  # then it is in what the file calls
            raise
        raise UserError(f"{path}:{lines[-1]}: {error}") from error
    return module


def _of_its_own(error: Exception, path: Path) -> bool:
    """Whether a file's own line is wrong: a name, an argument or a module that there is not."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return last == str(path) or isinstance(error, ImportError)
