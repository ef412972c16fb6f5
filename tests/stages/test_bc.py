"""Behavioural cloning as stages of a run: the control, and a reward's own start."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rest import LearnedReward, Policy, TransformerSettings, TranslationModel, UserError, load_experiment
from rest.folder import read_json
from rest.runs import Run

TINY = str(Path(__file__).parent.parent / "tiny.py")


def stage(run: Path, name: str) -> dict[str, Any]:
    return read_json(run / name / "stage.json")


def test_the_control_trains_for_as_many_steps_as_all_improves(finished: Path) -> None:
    steps = sum(stage(finished, f"improve-1-{i}")["result"]["gradient_steps"] for i in (1, 2))
    control = stage(finished, f"bc_continued-{steps}")
    assert control["result"]["gradient_steps"] == steps
    assert control["settings"]["policy"] == Policy.load(finished / "bc" / "policy").identity


def test_a_reward_may_start_from_a_smaller_translation_model_of_its_own(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "bc", tmp_path / "bc")
    tiny = load_experiment(TINY)
    sizes = TransformerSettings(width=16, heads=2, feed_forward=32, encoder_layers=1, decoder_layers=1)
    training = replace(tiny.bc.train, max_steps=40, evaluate_every=20)
    start = TranslationModel(sizes, training)
    settings = replace(tiny.reward, start=start, likelihood=True)
    reward = Run(replace(tiny, reward=settings), tmp_path).reward().function
    bc, own = (Policy.load(tmp_path / name / "policy") for name in ("bc", "bc-reward"))
    assert isinstance(reward, LearnedReward) and reward.likelihood is not None
    assert reward.network.settings.body == own.settings == sizes != bc.settings
    assert reward.likelihood.policy.identity == own.identity
    assert own.tokenizer.identity == bc.tokenizer.identity
    scores = [score for _, score in history(tmp_path / "bc-reward")]
    assert scores[-1] > scores[0]  # it has learned to translate a little
    assert stage(tmp_path, "reward")["settings"]["start"] == own.identity

    longer = replace(settings, start=replace(start, train=replace(training, max_steps=50)))
    with pytest.raises(UserError, match=r"bc-reward was made with other settings: start.train.max_steps"):
        Run(replace(tiny, reward=longer), tmp_path).reward()


def history(stage: Path) -> list[tuple[int, float]]:
    """Step and score of every evaluation on dev."""
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["dev/score"]) for line in lines if "dev/score" in line]
