"""What is refused before anything is trained."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rest import Consensus, MetricOfGreedy, RewardOfGreedy, UserError, WeightedMean, load_experiment
from rest.evaluation.evaluate import EvaluationSettings
from rest.grow import GrowSettings
from rest.model.layers import TransformerSettings
from rest.reward.learned.settings import RewardSettings
from rest.reward.reward import Reward
from rest.stages.checks import check, try_rewards, without_spaces
from rest.stages.inputs import Inputs

TINY = str(Path(__file__).parent.parent / "tiny.py")


def test_what_cannot_choose_by_a_reward_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    tiny = load_experiment(f"{TINY}:given")
    inputs = Inputs(replace(tiny, reward=Consensus().reward, choose=RewardOfGreedy()), tmp_path)
    with pytest.raises(UserError, match="the reward Consensus compares samples and cannot score greedy outputs alone"):
        try_rewards(inputs)
    try_rewards(Inputs(replace(tiny, reward=Consensus().reward, choose=MetricOfGreedy()), tmp_path))
    assert not list(tmp_path.iterdir())


def raises(sources: list[str], hypotheses: list[str]) -> np.ndarray:
    raise ValueError("not today")


def of_references(sources: list[str], hypotheses: list[str], references: list[str] | None) -> np.ndarray:
    return np.array([x == y for x, y in zip(references, hypotheses, strict=True)], np.float32)  # type: ignore[arg-type]


def copied(sources: list[str], hypotheses: list[str]) -> np.ndarray:
    return np.array([x == y for x, y in zip(sources, hypotheses, strict=True)], np.float32)


class Short:
    """A rater that rates too few."""

    def rate(self, sources, hypotheses, references, gold, seed):
        return np.zeros(1)


LEARNED = TransformerSettings(width=32, heads=2, positions="learned", max_positions=32)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": LEARNED}, "batch.source_tokens 64 is more than model.max_positions 32"),
        ({"evaluation": EvaluationSettings(judge=Reward(raises))}, "reward raises: raised ValueError: not today"),
        (
            {"reward": Reward(WeightedMean((Reward(copied),))), "evaluation": EvaluationSettings(judge=Reward(copied))},
            "evaluation.judge: copied is in the reward too",
        ),
        ({"reward": Reward(of_references), "grow": GrowSettings(text=Path(__file__))}, "reward of_references: raised"),
        ({"reward": Reward(raises)}, "reward raises: raised ValueError: not today"),
        ({"reward": RewardSettings(rater=Short())}, "reward.rater Short: returned [0.0] for 8 hypotheses"),
        ({"grow": GrowSettings(text=Path("nowhere.txt"))}, "nowhere.txt does not exist"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(settings, said, tmp_path: Path) -> None:
    inputs = Inputs(replace(load_experiment(f"{TINY}:given"), **settings), tmp_path)
    with pytest.raises(UserError) as refused:
        check(inputs)
    assert said in str(refused.value)
    assert not list(tmp_path.glob("bc*"))


def test_referenceswithout_spaces_are_not_parted_at_spaces() -> None:
    assert without_spaces(["这是一个很长的中文句子。", "短"]) and not without_spaces(["a sentence of words", "words"])
