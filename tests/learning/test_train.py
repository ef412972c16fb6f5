"""The update loop: what it minimises, when it stops, what it keeps, and that it can be killed."""

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest.data.batches import Batch, BatchSettings, Examples, training_batches
from rest.errors import UserError
from rest.learning.losses import Loss, SquaredError
from rest.learning.train import Adam, Schedule, Trained, TrainSettings, train

START = {"slope": np.float32(0.0), "offset": np.float32(0.0)}


@dataclass(frozen=True)
class Line:
    """Fits y = slope x + offset to the columns x and y; the noise on x shows whether keys are the same."""

    noise: float = 0.0

    def __call__(self, parameters: Any, batch: Batch, key: jax.Array) -> Loss:
        x = batch.columns["x"] + self.noise * jax.random.normal(key, batch.columns["x"].shape)
        predicted = parameters["slope"] * x + parameters["offset"]
        return SquaredError()(predicted, batch.columns["y"], batch.sequence_ids >= 0)


@dataclass(frozen=True)
class Push:
    """A gradient of -1 whatever the parameters: Adam moves the slope up by the learning rate."""

    def __call__(self, parameters: Any, batch: Batch, key: jax.Array) -> Loss:
        return Loss(-parameters["slope"], jnp.float32(1.0), {})


class Ordered:
    """Batches in a given order, over and over."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches, self.next = batches, 0

    def __next__(self) -> Batch:
        self.next += 1
        return self.batches[(self.next - 1) % len(self.batches)]

    def get_state(self) -> dict[str, Any]:
        return {"next": self.next}

    def set_state(self, state: dict[str, Any]) -> None:
        self.next = state["next"]


def points(broken: int | None = None) -> Examples:
    """Points of the line y = 2 x + 1, as columns of pairs of one token."""
    x = np.random.default_rng(0).uniform(-1, 1, 40).astype(np.float32)
    y = 2 * x + 1
    if broken is not None:
        y[broken] = np.nan
    return Examples([[5, 1]] * 40, [[6, 1]] * 40, {"x": x, "y": y})


def shuffled(examples: Examples | None = None):
    shape = BatchSettings(batch_tokens=16, source_tokens=4, target_tokens=4)
    return training_batches(examples or points(), shape, pad_id=0, seed=0)[0]


def fit(parameters: Any) -> dict[str, float]:
    slope, offset = float(parameters["slope"]), float(parameters["offset"])
    return {"score": -((slope - 2) ** 2) - (offset - 1) ** 2, "slope": slope}


def run(folder: Path, settings: TrainSettings, **changes: Any) -> Trained:
    options = {
        "objective": Line(),
        "parameters": START,
        "batches": shuffled(),
        "evaluate": fit,
        "seed": 3,
        "description": "line",
        **changes,
    }
    return train(settings=settings, folder=folder, **options)


def scripted(*scores: float):
    """An evaluation that gives these scores, one after another."""
    left = iter(scores)
    return lambda parameters: {"score": next(left)}


def interrupted(at: int, error: type[BaseException] = RuntimeError):
    """An evaluation during which, the `at`th time, the process dies."""
    calls = itertools.count(1)

    def evaluate(parameters: Any) -> dict[str, float]:
        if next(calls) == at:
            raise error("killed")
        return fit(parameters)

    return evaluate


def values(parameters: Any) -> dict[str, float]:
    return {name: float(value) for name, value in parameters.items()}


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


QUICK = TrainSettings(max_steps=15, evaluate_every=5, patience=9, schedule=Schedule(0.05))


def test_the_loss_falls_until_the_line_is_found(tmp_path):
    trained = run(tmp_path, replace(QUICK, max_steps=100, evaluate_every=50, schedule=Schedule(0.1)))
    assert values(trained.parameters) == pytest.approx({"slope": 2, "offset": 1}, abs=0.02)
    assert (trained.best_step, trained.steps, trained.stopped) == (100, 100, "step limit")
    assert [step for step, _ in trained.history] == [0, 50, 100]
    losses = [line["loss"] for line in metrics(tmp_path) if "loss" in line]
    assert len(losses) == 10 and losses[-1] < 0.01 < losses[0]


def test_the_parameters_it_starts_from_are_left_alone(tmp_path):
    start = jax.tree.map(jnp.asarray, START)
    run(tmp_path, QUICK, parameters=start)
    assert values(start) == {"slope": 0, "offset": 0}


@pytest.mark.parametrize(("at", "average"), [(1, 1), (2, 1), (4, 3)])
def test_killed_and_resumed_is_as_if_nothing_had_happened(at, average, tmp_path):
    settings = replace(QUICK, average=average)
    wanted = run(tmp_path / "undisturbed", settings, objective=Line(noise=0.5))
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "killed", settings, objective=Line(noise=0.5), evaluate=interrupted(at))
    resumed = run(tmp_path / "killed", settings, objective=Line(noise=0.5))
    assert resumed == replace(wanted, parameters=resumed.parameters)
    assert values(resumed.parameters) == values(wanted.parameters)  # to the last bit
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "undisturbed")


def test_ctrl_c_loses_nothing_that_was_evaluated(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, QUICK, evaluate=interrupted(3, KeyboardInterrupt))
    assert values(run(tmp_path, QUICK).parameters) == values(run(tmp_path / "whole", QUICK).parameters)


def test_a_kill_between_the_journal_and_the_checkpoint_leaves_every_step_once(tmp_path):
    class Dying(Ordered):
        def get_state(self) -> dict[str, Any]:
            raise OSError("no space left on device")

    batches = [next(shuffled())]
    with pytest.raises(OSError, match="no space"):
        run(tmp_path, QUICK, batches=Dying(batches))
    run(tmp_path, QUICK, batches=Ordered(batches))
    evaluated = [line["step"] for line in metrics(tmp_path) if "dev/score" in line]
    assert evaluated == [0, 5, 10, 15]


def test_a_finished_training_is_not_done_again(tmp_path):
    first = run(tmp_path, QUICK)
    again = run(tmp_path, QUICK, evaluate=interrupted(1))
    assert again == replace(first, parameters=again.parameters)
    assert values(again.parameters) == values(first.parameters)


def test_more_steps_go_on_with_a_finished_training(tmp_path):
    run(tmp_path / "on", replace(QUICK, max_steps=10))
    on, whole = run(tmp_path / "on", QUICK), run(tmp_path / "whole", QUICK)
    assert values(on.parameters) == values(whole.parameters) and on.history == whole.history


def test_two_micro_batches_are_one_batch_twice_as_large(tmp_path):
    source = shuffled()
    batches = [next(source) for _ in range(8)]
    # unequal micro-batches: the mean is over all sequences, not over the means of the halves
    batches[0] = replace(batches[0], sequence_ids=np.full_like(batches[0].sequence_ids, -1))
    batches[3].sequence_ids[1:] = -1
    double = [jax.tree.map(lambda *halves: np.concatenate(halves), *batches[i : i + 2]) for i in range(0, 8, 2)]
    halves = run(tmp_path / "halves", replace(QUICK, accumulate=2), batches=Ordered(batches))
    whole = run(tmp_path / "whole", QUICK, batches=Ordered(double))
    assert values(halves.parameters) == pytest.approx(values(whole.parameters), abs=1e-6)
    assert halves.steps == whole.steps == 15


def test_a_loss_that_is_not_a_number_stops_and_names_the_rows(tmp_path):
    named = r"line: the loss of step \d+ is nan in the batch with rows .*\b7\b.*the last checkpoint, of step 0"
    with pytest.raises(UserError, match=named):
        run(tmp_path, replace(QUICK, evaluate_every=15), batches=shuffled(points(broken=7)))
    healed = run(tmp_path, QUICK)  # with the row mended, it goes on from what was kept
    assert healed.score > healed.history[0][1]


@pytest.mark.parametrize("score", [float("nan"), float("-inf")])
def test_a_score_that_is_not_a_number_stops(score, tmp_path):
    with pytest.raises(UserError, match=f"line: the evaluation at step 5 gave the score {score}"):
        run(tmp_path, QUICK, evaluate=scripted(0.0, score))


def test_it_stops_when_as_many_evaluations_as_patience_bring_no_new_best(tmp_path):
    scores = [0.0, 1.0, 0.5, 3.0, 2.0, 3.0, 9.0]  # a tie is no new best
    settings = replace(QUICK, max_steps=100, patience=2)
    trained = run(tmp_path, settings, evaluate=scripted(*scores))
    assert trained.stopped == "converged"
    assert [score for _, score in trained.history] == scores[:6]
    assert (trained.steps, trained.score) == (25, 3.0)


def test_the_start_is_kept_when_nothing_scores_above_it(tmp_path):
    start = {"slope": np.float32(2.0), "offset": np.float32(1.0)}
    away = replace(QUICK, schedule=Schedule(-0.5))  # uphill
    trained = run(tmp_path, away, parameters=start, objective=Line(noise=0.5))
    assert trained.best_step == 0 and trained.score == 0
    assert values(trained.parameters) == values(start)


def test_no_steps_at_all_give_back_the_start(tmp_path):
    trained = run(tmp_path, replace(QUICK, max_steps=0))
    assert (trained.best_step, trained.steps) == (0, 0)
    assert values(trained.parameters) == values(START)


@pytest.mark.parametrize(
    ("target", "slope", "best_step"),
    [(2.5, 2.5, 4), (4.0, 4.0, 4), (3.0, 3.0, 3)],
    ids=["better", "worse", "no better than a step"],
)
def test_the_average_of_the_last_steps_is_kept_only_if_it_is_better(target, slope, best_step, tmp_path):
    # the slopes of steps 1 to 4 are 1, 2, 3 and 4; their mean is 2.5
    settings = TrainSettings(max_steps=4, evaluate_every=1, patience=9, average=4, schedule=Schedule(1.0))
    trained = run(
        tmp_path,
        settings,
        objective=Push(),
        evaluate=lambda parameters: {"score": -abs(float(parameters["slope"]) - target)},
    )
    assert float(trained.parameters["slope"]) == pytest.approx(slope, abs=1e-5)
    assert trained.best_step == best_step
    assert trained.score == pytest.approx(-abs(slope - target), abs=1e-5)


def test_every_update_takes_its_rate_from_the_schedule(tmp_path):
    schedule = Schedule(0.8, warmup_steps=4, decay="inverse_sqrt")
    trained = run(
        tmp_path,
        TrainSettings(max_steps=6, evaluate_every=6, schedule=schedule),
        objective=Push(),
        evaluate=lambda parameters: {"score": float(parameters["slope"])},
    )
    rates = [0.2, 0.4, 0.6, 0.8, 0.8 * (4 / 5) ** 0.5, 0.8 * (4 / 6) ** 0.5]
    assert trained.score == pytest.approx(sum(rates), abs=1e-5)


def test_the_schedule_by_hand():
    steps = (1, 2, 4, 16, 64)
    assert [Schedule(1.0)(step) for step in steps] == [1, 1, 1, 1, 1]
    assert [Schedule(1.0, 4)(step) for step in steps] == [0.25, 0.5, 1, 1, 1]
    assert [Schedule(1.0, 4, "inverse_sqrt")(step) for step in steps] == [0.25, 0.5, 1, 0.5, 0.25]
    assert [Schedule(2.0, 0, "inverse_sqrt")(step) for step in (1, 4, 16)] == [2, 1, 0.5]


@pytest.mark.parametrize(
    ("clip_norm", "wanted"),
    [
        # a first step of Adam is g / (|g| + epsilon); the gradient (3, 4) is 5 long
        (1.0, [0.6 / 1.6, 0.8 / 1.8]),
        (10.0, [3 / 4, 4 / 5]),
        (0.0, [3 / 4, 4 / 5]),
    ],
)
def test_gradients_are_clipped_by_their_global_norm(clip_norm, wanted):
    adam = Adam(epsilon=1.0, clip_norm=clip_norm).direction()
    parameters, gradients = ({"a": jnp.float32(x), "b": jnp.float32(y)} for x, y in ((0, 0), (3, 4)))
    update, _ = adam.update(gradients, adam.init(parameters), parameters)
    assert [float(update["a"]), float(update["b"])] == pytest.approx(wanted)


def test_weight_decay_is_apart_from_the_gradient():
    adam = Adam(weight_decay=0.1).direction()
    parameters = {"a": jnp.float32(5.0)}
    update, _ = adam.update({"a": jnp.float32(2.0)}, adam.init(parameters), parameters)
    assert float(update["a"]) == pytest.approx(1 + 0.1 * 5)
