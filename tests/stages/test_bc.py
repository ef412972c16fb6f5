"""Behavioural cloning as stages of a run: the control, and a reward's own start."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from rest import (
    DevLoss,
    LearnedReward,
    MetricOfGreedy,
    Policy,
    PPOSettings,
    RewardOfSamples,
    Schedule,
    TransformerSettings,
    TranslationModel,
    UserError,
    load_experiment,
)
from rest.data.tokenizer import SentencePieceSettings
from rest.folder import StageName, read_json
from rest.runs import Run
from rest.stages.bc import BCContinued, _warn_of_lost_characters
from rest.stages.inputs import Inputs

TINY = str(Path(__file__).parent.parent / "tiny.py")


def stage(run: Path, name: str) -> dict[str, Any]:
    return read_json(run / name / "stage.json")


def test_the_control_trains_for_as_many_steps_as_all_improves(finished: Path) -> None:
    steps = sum(stage(finished, f"improve-1-{i}")["result"]["gradient_steps"] for i in (1, 2))
    control = stage(finished, f"bc_continued-{steps}")
    assert control["result"]["gradient_steps"] == steps
    assert control["settings"]["policy"] == Policy.load(finished / "bc" / "policy").identity


def test_the_control_has_the_rates_of_all_improves_and_their_averaging(finished: Path) -> None:
    tiny = load_experiment(TINY)
    factors = {"learning_rate_factor": 0.25, "grow_rate_factor": 0.5, "control_rate_factor": 10.0}
    improve = replace(tiny.improve, **factors, train=replace(tiny.improve.train, average=3, rate_factor=2.0))
    online = PPOSettings(2, schedule=Schedule(1e-4, 2))
    inputs = Inputs(replace(tiny, improve=improve, ppo=online), finished)
    run = Run(tiny, finished)
    ways = ((1, 1, 20), (1, 2, 10), (2, 1, 20))
    way = tuple((StageName("improve", g, i), steps) for g, i, steps in ways)
    rates = BCContinued(run.bc(), run.reward(), 60, way).training(inputs)
    each = [improve.training(g, i) for g, i, _ in ways]
    wanted = [
        10 * t.schedule(k) * t.rate_factor for t, way in zip(each, ways, strict=True) for k in range(1, way[2] + 1)
    ]
    found = [rates.schedule(step) * rates.rate_factor for step in range(1, 61)]
    assert found == pytest.approx([*wanted, 5e-5, *[1e-4] * 9])  # after the Improves PPO's
    assert (rates.average, rates.ema, rates.max_steps, rates.patience) == (3, improve.train.ema, 60, 61)


def test_beside_ppo_alone_the_control_has_its_rates_and_averaging(finished: Path) -> None:
    tiny = load_experiment(TINY)
    ppo = PPOSettings(2, schedule=Schedule(1e-4, 20), average=2, ema=0.9)
    inputs, run = Inputs(replace(tiny, ppo=ppo), finished), Run(tiny, finished)
    training = BCContinued(run.bc(), run.reward(), 60).training(inputs)
    assert [training.schedule(step) for step in (1, 20, 60)] == [5e-6, 1e-4, 1e-4]
    assert (training.average, training.ema, training.max_steps) == (2, 0.9, 60)


def test_a_control_that_no_reward_chooses_is_the_same_beside_every_reward(finished: Path) -> None:
    tiny = load_experiment(TINY)
    run = Run(tiny, finished)
    bc, reward = run.bc(), run.reward()
    other = replace(reward, scale=(-9.0, 9.0))

    def decided(choose: Any) -> list[dict[str, Any]]:
        inputs = Inputs(replace(tiny, choose=choose), finished)
        return [BCContinued(bc, by, 40).settings(inputs) for by in (reward, other)]

    for choose, same in ((MetricOfGreedy(), True), (DevLoss(), True), (RewardOfSamples(2), False)):
        one, another = decided(choose)
        assert (one == another) == same


def test_the_last_policy_of_the_control_is_kept_and_evaluated_where_it_is_another(finished: Path) -> None:
    control, last = StageName("bc_continued", steps=40), StageName("bc_continued_last", steps=40)
    result = stage(finished, control.folder)["result"]
    assert result["chosen_by"] == "mean reward of 2 samples a source" and stage(finished, "bc")["result"]["chosen_by"]
    best = max(result["dev_reward"], key=lambda entry: (entry[1], entry[0]))
    assert result["best_step"] == best[0]
    same = result["last_is_chosen"]
    assert same == (best[0] == 40)  # without averaging
    assert (finished / last.policy).exists() == (finished / "evaluation" / last.folder).exists() == (not same)
    policies = [row["policy"] for row in read_json(finished / "summary.json")]
    assert ("bc_continued_last" in policies) == (not same)
    if not same:
        assert Policy.load(finished / last.policy).identity != Policy.load(finished / control.policy).identity


def test_the_control_goes_as_far_in_weights_as_an_improve_step(finished: Path, tmp_path: Path) -> None:
    tiny = load_experiment(TINY)
    reached = {}
    for share in (1.0, 0.25):
        shutil.copytree(finished / "bc", tmp_path / str(share) / "bc")
        shutil.copytree(finished / "reward", tmp_path / str(share) / "reward")
        improve = replace(tiny.improve, interpolation=share)
        run = Run(replace(tiny, improve=improve, choose=DevLoss()), tmp_path / str(share))
        bc = run.bc()
        chosen = run.stage(BCContinued(bc, run.reward(), 20))
        last = tmp_path / str(share) / StageName("bc_continued_last", steps=20).policy
        reached[share] = (Policy.load(last) if last.exists() else chosen).network.parameters
    expected = jax.tree.map(lambda a, b: a + 0.25 * (b - a), bc.network.parameters, reached[1.0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), reached[0.25], expected)
    assert stage(tmp_path / "0.25", "bc_continued-20")["settings"]["interpolation"] == 0.25


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


def test_a_vocabulary_that_cannot_write_the_text_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    lower = [f"{who} {does}" for who in ("a man", "a woman", "dogs", "the boy") for does in ("sits", "runs", "eats")]
    tokenizer = SentencePieceSettings(64).train([lower * 5], 0)
    _warn_of_lost_characters(tokenizer, lower)
    _warn_of_lost_characters(tokenizer, [])
    assert not "".join(capsys.readouterr())
    _warn_of_lost_characters(tokenizer, [*lower, *(text.capitalize() for text in lower[:6])])
    said = " ".join("".join(capsys.readouterr()).split())
    assert "bc: warning: the vocabulary cannot write 'A': 33% of the references" in said
