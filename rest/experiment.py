"""An experiment: the settings of every stage joined, read from a Python file, with flags over it."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from rest.baselines.bc import BCSettings
from rest.baselines.ppo import PPOSettings
from rest.data.batches import BatchSettings
from rest.data.corpus import Cleaning, Corpus
from rest.data.tokenizer import SentencePieceSettings
from rest.errors import UserError
from rest.evaluation.evaluate import EvaluationSettings
from rest.grow import GrowSettings
from rest.improve import ImproveSettings
from rest.model.huggingface import HuggingFaceModel
from rest.model.transformer import TransformerSettings
from rest.reward.fit import Refresh, RewardSettings


@runtime_checkable
class CorpusSettings(Protocol):
    """Where the text is: any frozen dataclass that can load it."""

    def load(self, cleaning: Cleaning) -> Corpus: ...


@dataclass(frozen=True)
class Experiment:
    """Everything that a run depends on."""

    corpus: Any
    """Where the text is: TextFiles, TabSeparated, TensorflowDataset, SyntheticCorpus, or your own."""
    reward: Any
    """RewardSettings: learn one from ratings. Reward: a function of yours and its scale."""
    cleaning: Cleaning = field(default_factory=Cleaning)
    tokenizer: Any = field(default_factory=SentencePieceSettings)
    """SentencePieceSettings or HuggingFaceSettings; left out where the model comes with its own."""
    model: TransformerSettings | HuggingFaceModel = field(default_factory=TransformerSettings)
    """TransformerSettings: a random network of these sizes. HuggingFaceModel: a published one with its tokenizer."""
    batch: BatchSettings = field(default_factory=BatchSettings)
    bc: BCSettings = field(default_factory=BCSettings)
    grow_steps: int = 1
    """G."""
    grow: GrowSettings = field(default_factory=GrowSettings)
    improve: ImproveSettings = field(default_factory=ImproveSettings)
    ppo: PPOSettings = field(default_factory=PPOSettings)
    bc_share: float = 1.0
    """Share of the training text that BC learns from; below 1, reward, Grow and PPO have only the rest."""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    refresh: Refresh | None = None
    """Refit a learned reward before each Grow step but the first, with ratings of the latest policy; None: never."""
    seed: int = 0

    def __post_init__(self) -> None:
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


def load_experiment(name: str) -> Experiment:
    """The experiment of `FILE` or `FILE:variant`; the variant is a name in the file, by default `experiment`."""
    path_text, _, variant = name.partition(":")
    path, variant = Path(path_text), variant or "experiment"
    if not path.is_file():
        raise UserError(f"{path}: no such experiment file")
    module = import_file(path)
    known = sorted(key for key, value in vars(module).items() if isinstance(value, Experiment))
    if variant not in known:
        close = difflib.get_close_matches(variant, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"{path}: no experiment named {variant!r}; it has {', '.join(known) or 'none'}{hint}")
    return getattr(module, variant)


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
    return module
