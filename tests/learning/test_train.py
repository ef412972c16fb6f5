"""The update loop: what it minimises, when it stops, what it keeps, and that it can be killed."""

import functools
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rest.baselines.bc import human_pairs
from rest.data.batches import Batch, BatchSettings, Examples
from rest.errors import UserError
from rest.learning.learner import Learner
from rest.learning.lora import Trainable
from rest.learning.losses import NLL, Loss, SquaredError
from rest.learning.mesh import MachineSettings, in_parts
from rest.learning.optimizers import Adam, Schedule
from rest.learning.train import Trained, TrainSettings, shuffled, train
from rest.model.network import Network
from rest.policy.policy import PolicyObjective

pytestmark = pytest.mark.slow


class LineNetwork(nnx.Module):
    """y = slope x + offset."""

    def __init__(self, slope: float, offset: float) -> None:
        self.slope, self.offset = nnx.Param(jnp.float32(slope)), nnx.Param(jnp.float32(offset))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.slope[...] * x + self.offset[...]


@dataclass(frozen=True)
class Line:
    """What is trained."""

    network: Network

    @classmethod
    def start(cls, slope: float = 0.0, offset: float = 0.0) -> "Line":
        return cls(Network.of(None, LineNetwork(slope, offset)))

    def with_network(self, network: Network) -> "Line":
        return replace(self, network=network)

    @property
    def values(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.network.parameters.items()}


@dataclass(frozen=True)
class Fit:
    """Fits the line to the columns x and y; the noise on x shows whether keys are the same."""

    noise: float = 0.0

    def __call__(self, network: LineNetwork, batch: Batch, key: jax.Array, dual_variables: Mapping[str, Any]) -> Loss:
        x = batch.columns["x"] + self.noise * jax.random.normal(key, batch.columns["x"].shape)
        return SquaredError()(network(x), batch.columns["y"], batch.real)


@dataclass(frozen=True)
class Push:
    """A gradient of -1 whatever the parameters: Adam moves the slope up by the learning rate."""

    def __call__(self, network: LineNetwork, batch: Batch, key: jax.Array, dual_variables: Mapping[str, Any]) -> Loss:
        return Loss(-network.slope[...], jnp.float32(1.0), {})


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


def batches(examples: Examples | None = None):
    """Endless, of four rows."""
    shape = BatchSettings(batch_tokens=16, source_tokens=4, target_tokens=4)
    return shuffled(examples or points(), shape, pad_id=0, seed=0)[0]


def fit(line: Line) -> dict[str, float]:
    slope, offset = line.values["slope"], line.values["offset"]
    return {"score": -((slope - 2) ** 2) - (offset - 1) ** 2, "slope": slope}


def run(folder: Path, settings: TrainSettings, **changes: Any) -> Trained[Line]:
    options = {
        "start": Line.start(),
        "objective": Fit(),
        "batches": batches(),
        "evaluate": fit,
        "seed": 3,
        "description": "line",
        **changes,
    }
    return train(settings=settings, folder=folder, **options)


def scripted(*scores: float):
    """An evaluation that gives these scores, one after another."""
    left = iter(scores)
    return lambda line: {"score": next(left)}


def interrupted(at: int, error: type[BaseException] = RuntimeError):
    """An evaluation during which, the `at`th time, the process dies."""
    calls = itertools.count(1)

    def evaluate(line: Line) -> dict[str, float]:
        if next(calls) == at:
            raise error("killed")
        return fit(line)

    return evaluate


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time" and not k.startswith("pace/")} for line in lines]


QUICK = TrainSettings(max_steps=15, evaluate_every=5, patience=9, schedule=Schedule(0.05))


def test_the_loss_falls_until_the_line_is_found(tmp_path):
    trained = run(tmp_path, replace(QUICK, max_steps=100, evaluate_every=50, schedule=Schedule(0.1)))
    assert trained.best.values == pytest.approx({"slope": 2, "offset": 1}, abs=0.02)
    assert (trained.best_step, trained.steps, trained.stopped) == (100, 100, "step limit")
    assert [step for step, _ in trained.history] == [0, 50, 100]
    losses = [line["loss"] for line in metrics(tmp_path) if "loss" in line]
    assert len(losses) == 10 and losses[-1] < 0.01 < losses[0]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The folder of a training, what it started from and what came of it."""
    folder, start = tmp_path_factory.mktemp("quick"), Line.start()
    return folder, start, run(folder, QUICK, start=start)


def test_the_parameters_it_starts_from_are_left_alone(quick):
    _, start, trained = quick
    assert start.values == {"slope": 0, "offset": 0} != trained.best.values


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A function: a training with these settings that nothing stops, and its metrics."""

    @functools.cache
    def made(settings: TrainSettings) -> tuple[Trained[Line], list[dict[str, float]]]:
        folder = tmp_path_factory.mktemp("undisturbed")
        return run(folder, settings, objective=Fit(noise=0.5)), metrics(folder)

    return made


@pytest.mark.parametrize(("at", "average", "ema"), [(1, 1, 0.0), (2, 1, 0.0), (4, 3, 0.0), (3, 1, 0.5)])
def test_killed_and_resumed_is_as_if_nothing_had_happened(at, average, ema, undisturbed, tmp_path):
    settings = replace(QUICK, average=average, ema=ema)
    wanted, recorded = undisturbed(settings)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "killed", settings, objective=Fit(noise=0.5), evaluate=interrupted(at))
    resumed = run(tmp_path / "killed", settings, objective=Fit(noise=0.5))
    assert resumed == replace(wanted, best=resumed.best)
    assert resumed.best.values == wanted.best.values  # to the last bit
    assert metrics(tmp_path / "killed") == recorded


def test_ctrl_c_loses_nothing_that_was_evaluated(quick, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, QUICK, evaluate=interrupted(3, KeyboardInterrupt))
    assert run(tmp_path, QUICK).best.values == quick[-1].best.values


def test_a_kill_between_the_journal_and_the_checkpoint_leaves_every_step_once(tmp_path):
    class Dying(Ordered):
        def get_state(self) -> dict[str, Any]:
            raise OSError("no space left on device")

    given = [next(batches())]
    with pytest.raises(OSError, match="no space"):
        run(tmp_path, QUICK, batches=Dying(given))
    run(tmp_path, QUICK, batches=Ordered(given))
    evaluated = [line["step"] for line in metrics(tmp_path) if "dev/score" in line]
    assert evaluated == [0, 5, 10, 15]


def test_a_finished_training_is_not_done_again(quick):
    folder, _, first = quick
    again = run(folder, QUICK, evaluate=interrupted(1))
    assert again == replace(first, best=again.best)
    assert again.best.values == first.best.values


def test_more_steps_go_on_with_a_finished_training(quick, tmp_path):
    run(tmp_path, replace(QUICK, max_steps=10))
    on, whole = run(tmp_path, QUICK), quick[-1]
    assert on.best.values == whole.best.values and on.history == whole.history


def test_two_micro_batches_are_one_batch_twice_as_large(tmp_path):
    source = batches()
    given = [next(source) for _ in range(4)]
    # unequal micro-batches: the mean is over all sequences, not over the means of the halves
    given[0].sequence_ids[0::2] = -1
    given[1].sequence_ids[1:3] = -1
    given[3].sequence_ids[3] = -1
    parts = [in_parts(batch.real, 2) for batch in given]
    assert [part.any(-1).sum(-1).tolist() for part in parts] == [[0, 2], [1, 1], [2, 2], [2, 1]]
    halves = run(tmp_path / "halves", QUICK, batches=Ordered(given), machine=MachineSettings(micro_batches=2))
    whole = run(tmp_path / "whole", QUICK, batches=Ordered(given))
    assert halves.best.values == pytest.approx(whole.best.values, abs=1e-6)
    assert halves.steps == whole.steps == 15
    for one, other in zip(metrics(tmp_path / "halves"), metrics(tmp_path / "whole"), strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_rows_are_dealt_to_micro_batches_like_cards():
    batch = next(batches())
    for parts in (1, 2, 4):
        dealt = jax.tree.map(lambda leaf, parts=parts: in_parts(leaf, parts), batch)
        for part in range(parts):
            mine = jax.tree.map(lambda leaf, part=part: leaf[part], dealt)
            assert jax.tree.all(jax.tree.map(lambda a, b, n=(part, parts): (a == b[n[0] :: n[1]]).all(), mine, batch))


def test_rows_that_the_micro_batches_do_not_divide_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"^machine.micro_batches 3: a batch has 4 rows, which that does not divide$"):
        run(tmp_path, QUICK, machine=MachineSettings(micro_batches=3))
    with pytest.raises(UserError, match=r"machine\.micro_batches must be at least 1, not 0"):
        MachineSettings(micro_batches=0)


def test_a_loss_that_is_not_a_number_stops_and_names_the_rows(tmp_path):
    named = r"line: the loss of step \d+ is nan in the batch with rows .*\b7\b.*the last checkpoint, of step 0"
    with pytest.raises(UserError, match=named):
        run(tmp_path, replace(QUICK, evaluate_every=15), batches=batches(points(broken=7)))
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
    assert (trained.steps, trained.score, trained.best_step) == (25, 3.0, 15)  # of equals the first is kept


def test_the_start_is_kept_when_nothing_scores_above_it(tmp_path):
    start = Line.start(2.0, 1.0)
    away = replace(QUICK, schedule=Schedule(0.5))  # each update leaps away from the line
    trained = run(tmp_path, away, start=start, objective=Fit(noise=0.5))
    assert trained.best_step == 0 and trained.score == 0
    assert trained.best.values == start.values


def test_no_steps_at_all_give_back_the_start(tmp_path):
    trained = run(tmp_path, replace(QUICK, max_steps=0))
    assert (trained.best_step, trained.steps) == (0, 0)
    assert trained.best.values == Line.start().values


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
        evaluate=lambda line: {"score": -abs(line.values["slope"] - target)},
    )
    assert trained.best.values["slope"] == pytest.approx(slope, abs=1e-5)
    assert trained.best_step == best_step
    assert trained.score == pytest.approx(-abs(slope - target), abs=1e-5)


def test_a_moving_average_is_what_is_evaluated_and_kept(tmp_path):
    # the slopes after steps 0 to 3 are 0, 1, 2, 3; with a decay of 0.5 their averages are 0, 0.5, 1.25, 2.125
    seen = []

    def evaluate(line: Line) -> dict[str, float]:
        seen.append(line.values["slope"])
        return {"score": seen[-1]}

    settings = TrainSettings(max_steps=3, evaluate_every=1, ema=0.5, schedule=Schedule(1.0))
    trained = run(tmp_path, settings, objective=Push(), evaluate=evaluate)
    assert seen == pytest.approx([0, 0.5, 1.25, 2.125], abs=1e-5)
    assert trained.best.values["slope"] == seen[-1]
    with pytest.raises(UserError, match=r"ema must be at least 0 and below 1, not 1\.0"):
        TrainSettings(ema=1.0)


def test_updates_of_one_shape_are_compiled_once(policy, corpus, batch, caplog):
    how = PolicyObjective(NLL(), 0.123), Adam(), Schedule(1e-3), Trainable()
    learner = Learner.begin(policy, *how, seed=0, machine=MachineSettings())
    some = shuffled(
        human_pairs(policy, corpus.train.take(np.arange(99))), batch, pad_id=policy.tokenizer.pad_id, seed=0
    )
    with jax.log_compiles():
        for _, each in zip(range(3), some[0], strict=False):
            learner.update(each, jax.random.key(0))
    assert sum("XLA compilation of jit(updated)" in line for line in caplog.messages) == 1


def test_every_update_takes_its_rate_from_the_schedule(tmp_path):
    schedule = Schedule(0.8, warmup_steps=4, decay="inverse_sqrt")
    trained = run(
        tmp_path,
        TrainSettings(max_steps=6, evaluate_every=6, schedule=schedule),
        objective=Push(),
        evaluate=lambda line: {"score": line.values["slope"]},
    )
    rates = [0.2, 0.4, 0.6, 0.8, 0.8 * (4 / 5) ** 0.5, 0.8 * (4 / 6) ** 0.5]
    assert trained.score == pytest.approx(sum(rates), abs=1e-5)


@dataclass(frozen=True)
class Weighed:
    """A loss with a parameter of its own, beside the network's."""

    def __call__(self, network: LineNetwork, batch: Batch, key: jax.Array, dual_variables: Mapping[str, Any]) -> Loss:
        return Loss(-network.slope[...] + 2 * dual_variables["eta"], jnp.float32(1.0), {"eta": dual_variables["eta"]})


def test_dual_variables_are_trained_beside_the_network_and_are_no_part_of_it():
    machine, schedule = MachineSettings(), Schedule(0.25)
    start = Line.start()
    learner = Learner.begin(
        start,
        Weighed(),
        Adam(),
        schedule,
        TrainSettings().trainable,
        seed=0,
        machine=machine,
        dual_variables={"eta": 1.0},
    )
    seen = [float(learner.update(next(batches()), jax.random.key(0))["eta"]) for _ in range(3)]
    assert seen == pytest.approx([1.0, 0.75, 0.5], abs=1e-5)  # a gradient of 2 has the size of one of 1 for Adam
    assert learner.now.values == pytest.approx({"slope": 0.75, "offset": 0.0}, abs=1e-5)
    assert learner.now.network.graph == start.network.graph


def test_pace_and_a_trace_of_some_updates(tmp_path):
    run(tmp_path, replace(QUICK, max_steps=10), machine=MachineSettings(profile=2))
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["pace/tokens_per_second_per_device"] > 0 and 0 < last["pace/lost_to_compiling"] < 1
    assert "pace/model_flop_utilisation" not in last  # a line has no known cost
    assert len(list(tmp_path.glob("profile/**/*.xplane.pb"))) == 1
