"""What a run is going to take, in units that its settings say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rest.experiment import load_experiment
from rest.plan import Expected, Plan, Planned, plan_of
from rest.runs import Run

TINY = str(Path(__file__).parent / "tiny.py")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    return Expected(Run(load_experiment(f"{TINY}:given"), tmp_path_factory.mktemp("planned") / "run"))


def test_the_stages_are_those_that_a_run_makes_in_their_order(expected: Expected, finished: Path) -> None:
    made = [path for path, _ in expected.stages()]
    assert made[:3] == ["bc", "evaluation/bc", "grow-1"] and made[-2:] == [
        "bc_continued-40",
        "evaluation/bc_continued-40",
    ]
    learned = Expected(Run(load_experiment(TINY), finished)).stages()
    folders = {path for path, _ in learned}
    assert {path.name for path in finished.iterdir() if (path / "stage.json").exists()} <= folders | {"value"}


def test_what_settings_say_is_counted(expected: Expected) -> None:
    units = dict(expected.stages())
    assert units["bc"]["updates"] == 60 and units["bc"]["pairs"] == 16 * 5  # at 0, 20, 40, 60, and of the average
    assert units["grow-1"] == {"samples": 64 * 3, "scores": 64 * 4, "beam": 0}
    improve = units["improve-1-2"]
    assert improve["updates"] == 20 and improve["samples"] == improve["scores"] == 3 * 16 * 2
    evaluation = units["evaluation/improve-1-1"]
    assert evaluation["samples"] == 16 * 2 + 8 and evaluation["pairs"] == 8 * 2 and evaluation["scores"] == 16 * 4
    assert evaluation["greedy"] == 256 and evaluation["beam"] == 128  # batches are filled up


def test_more_of_something_takes_more(expected: Expected, tmp_path: Path) -> None:
    e = expected.e
    longer = replace(e, grow_steps=2, grow=replace(e.grow, samples_per_source=6))
    judged = replace(longer, evaluation=replace(e.evaluation, judge=e.reward))
    assert dict(Expected(Run(judged, tmp_path)).stages())["evaluation/bc"]["judged"] == 16 * 4
    units = dict(Expected(Run(longer, tmp_path)).stages())
    assert units["evaluation/bc"]["judged"] == 0
    assert units["grow-2"]["samples"] == 64 * 6 and "bc_continued-80" in units


def test_of_a_run_that_is_complete_nothing_is_left_and_nothing_is_measured(finished: Path) -> None:
    plan = plan_of(Run(load_experiment(TINY), finished))
    assert plan.to_do == [] and plan.left == 0 and plan.seconds == {} and plan.disk > 10_000


def test_seconds_are_those_of_the_units_that_are_left() -> None:
    stages = (Planned("bc", {"updates": 10}, complete=True), Planned("grow-1", {"samples": 100, "scores": 50}))
    plan = Plan(stages, {"updates": 1.0, "samples": 0.1, "scores": 0.02}, 0)
    assert plan.left == pytest.approx(11) and [plan.of(stage) for stage in stages] == [10, pytest.approx(11)]
    assert [Planned(path, {}).label for path in ("improve-1-2", "evaluation/bc", "evaluation/decode/bc.mbr-16")] == [
        "G1 I2",
        "evaluation of BC",
        "evaluation of BC, mbr-16",
    ]
