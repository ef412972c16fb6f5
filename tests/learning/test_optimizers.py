"""Optimizers against steps worked out by hand, and that any of optax, with any schedule, drives training."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy.stats import chisquare

from rest.data.batches import Batch, BatchSettings, Examples
from rest.errors import UserError
from rest.learning.losses import Loss
from rest.learning.optimizers import (
    Adafactor,
    Adam,
    InTurn,
    Schedule,
    Stretch,
    initial_state,
    noise,
    rounded,
    stepped,
    updates_of,
)
from rest.learning.train import Trained, TrainSettings, shuffled, train
from rest.model.network import Network


def test_the_schedule_by_hand():
    steps = (1, 2, 4, 16, 64)
    assert [Schedule(1.0)(step) for step in steps] == [1, 1, 1, 1, 1]
    assert [Schedule(1.0, 4)(step) for step in steps] == [0.25, 0.5, 1, 1, 1]
    assert [Schedule(1.0, 4, "inverse_sqrt")(step) for step in steps] == [0.25, 0.5, 1, 0.5, 0.25]
    assert [Schedule(2.0, 0, "inverse_sqrt")(step) for step in (1, 4, 16)] == [2, 1, 0.5]
    assert [Schedule(1.0, 2, "linear", 10)(step) for step in (1, 2, 6, 10, 11)] == [0.5, 1, 0.5, 0, 0]
    cooled = Schedule(1.0, 4, "inverse_sqrt", 20, cooldown_steps=4)
    assert [cooled(step) for step in (2, 4, 16, 17, 18, 20, 30)] == [0.5, 1, 0.5, 0.375, 0.25, 0, 0]
    assert [Schedule(1.0, 0, "constant", 8, 4)(step) for step in (4, 6, 8)] == [1, 0.5, 0]


@pytest.mark.parametrize(("decay", "zero_at"), [("linear", 0), ("linear", 4), ("constant", 9)])
def test_a_linear_decay_needs_an_end_after_warm_up(decay, zero_at):
    with pytest.raises(UserError, match=rf"schedule: zero_at {zero_at} is for decay 'linear'.*decay is '{decay}'"):
        Schedule(1.0, 4, decay, zero_at)


def test_a_cooldown_needs_an_end_and_a_rate_that_does_not_fall_to_zero_anyway():
    with pytest.raises(
        UserError, match=r"zero_at 8 is for decay 'linear' or cooldown_steps, and then above warmup_steps 4 [+] 5"
    ):
        Schedule(1.0, 4, "constant", 8, 5)
    with pytest.raises(UserError, match="a linear decay needs no cooldown_steps, which are 5"):
        Schedule(1.0, 4, "linear", 20, 5)


def test_stretches_follow_each_other_and_each_begins_anew():
    first, second = Schedule(1.0, 2), Schedule(4.0, 2, "inverse_sqrt")
    rates = InTurn((Stretch(3, first), Stretch(0, first), Stretch(2, second, 0.5)))
    assert [rates(step) for step in range(1, 6)] == [0.5, 1, 1, 1, 2]
    assert rates(11) == second(8) * 0.5 == 1  # the last goes on


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
    adam = Adam(epsilon=1.0, clip_norm=clip_norm)()
    parameters, gradients = ({"a": jnp.float32(x), "b": jnp.float32(y)} for x, y in ((0, 0), (3, 4)))
    update, _ = adam.update(gradients, adam.init(parameters), parameters)
    assert [float(update["a"]), float(update["b"])] == pytest.approx(wanted)


def test_weight_decay_is_apart_from_the_gradient():
    adam = Adam(weight_decay=0.1)()
    parameters = {"a": jnp.float32(5.0)}
    update, _ = adam.update({"a": jnp.float32(2.0)}, adam.init(parameters), parameters)
    assert float(update["a"]) == pytest.approx(1 + 0.1 * 5)


def test_adafactor_of_a_matrix_is_the_paper_s_algorithm_4():
    """Both moments are means along one axis, β̂ of step t is 1 - t^-0.8, and updates are clipped to an RMS of 1."""
    random = np.random.default_rng(0)
    gradients = random.standard_normal((3, 128, 130)) * [[[0.1]], [[1.0]], [[3.0]]]  # the last are clipped
    adafactor = Adafactor(clip_norm=0.0)()
    parameters = {"w": jnp.zeros((128, 130))}
    step, state = jax.jit(adafactor.update), adafactor.init(parameters)
    held = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert held < 300  # a row and a column, and not a number for each parameter
    rows, columns, clipped = np.zeros(128), np.zeros(130), []
    for t, gradient in enumerate(gradients, start=1):
        decay, squares = 1 - t**-0.8, gradient**2
        rows = decay * rows + (1 - decay) * squares.mean(1)
        columns = decay * columns + (1 - decay) * squares.mean(0)
        wanted = gradient / np.sqrt(np.outer(rows, columns) / rows.mean())
        size = np.sqrt((wanted**2).mean())
        clipped.append(size > 1)
        update, state = step({"w": jnp.asarray(gradient, jnp.float32)}, state, parameters)
        np.testing.assert_allclose(update["w"], wanted / max(1.0, size), rtol=1e-4, atol=1e-5)
    assert clipped[-1]


def test_adafactor_of_a_vector_keeps_the_whole_moment():
    adafactor = Adafactor(decay=0.5, clip_rms=10.0, clip_norm=0.0)()
    parameters = {"b": jnp.zeros(2)}
    first, state = adafactor.update({"b": jnp.asarray([3.0, -4.0])}, adafactor.init(parameters), parameters)
    second, _ = adafactor.update({"b": jnp.asarray([1.0, 2.0])}, state, parameters)
    np.testing.assert_allclose(first["b"], [1, -1], rtol=1e-5)
    old = 1 - 2**-0.5
    moment = old * np.array([9, 16]) + (1 - old) * np.array([1, 4])
    np.testing.assert_allclose(second["b"], [1, 2] / np.sqrt(moment), rtol=1e-5)


def test_adafactor_clips_the_gradients_of_all_parameters_together():
    # with a moment of its own square alone a first step is the same whatever the size of the gradient: take the second
    parameters = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    tiny, large = {"a": jnp.full(1, 0.3), "b": jnp.full(1, 0.4)}, {"a": jnp.full(1, 30.0), "b": jnp.full(1, 40.0)}

    def second(clip_norm: float) -> Any:
        adafactor = Adafactor(clip_rms=10.0, clip_norm=clip_norm)()
        _, state = adafactor.update(tiny, adafactor.init(parameters), parameters)
        return adafactor.update(large, state, parameters)[0]

    old = 1 - 2**-0.8
    for clip_norm, size in ((1.0, 1.0), (0.0, 50.0), (100.0, 50.0)):
        wanted = [x * size / np.sqrt(old * (0.5 * x) ** 2 + (1 - old) * (x * size) ** 2) for x in (0.6, 0.8)]
        found = second(clip_norm)
        assert [float(found["a"][0]), float(found["b"][0])] == pytest.approx(wanted, rel=1e-4)


# Parameters of bfloat16


def test_moments_are_float32_whatever_the_parameters_are():
    parameters = {"w": jnp.ones((128, 128), jnp.bfloat16), "b": jnp.ones(3, jnp.float32)}
    for optimizer in (Adam(), Adafactor(), optax.scale_by_lion):
        state = initial_state(optimizer, parameters)
        gradients = jax.tree.map(jnp.ones_like, parameters)
        _, later = updates_of(optimizer, gradients, state, parameters)
        for each in (state, later):
            assert {leaf.dtype for leaf in jax.tree.leaves(each) if leaf.ndim} == {jnp.dtype("float32")}
    float32 = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), parameters)
    assert jax.tree.structure(initial_state(Adam(), float32)) == jax.tree.structure(initial_state(Adam(), parameters))


def test_what_is_rounded_at_random_is_a_neighbour_and_right_on_average():
    x = jnp.asarray([1 + 1 / 1024, -3.3, 1e-3, 0.0, 1.5], jnp.float32)  # numbers of bfloat16 above 1 lie 1/128 apart
    many = np.asarray(rounded(jnp.tile(x, (20_000, 1)), jax.random.key(0)).astype(jnp.float32))
    apart = [1 / 128, 1 / 64, 2.0**-17]
    for k, step in enumerate(apart):
        assert len(np.unique(many[:, k])) == 2 and np.ptp(many[:, k]) == step
        share = (abs(float(x[k])) - float(np.abs(many[:, k]).min())) / step
        sigma = step * (share * (1 - share) / len(many)) ** 0.5
        assert float(many[:, k].mean(dtype=np.float64)) == pytest.approx(float(x[k]), abs=4 * sigma)
    assert (many[:, 3:] == [0.0, 1.5]).all()  # what bfloat16 has stays


def test_noise_is_even_and_independent_of_its_neighbours_and_of_other_keys():
    one, other = (np.asarray(noise((400, 500), jax.random.key(seed))) for seed in (0, 1))
    between = np.asarray(noise((400, 500), jax.random.fold_in(jax.random.key(0), 1)))
    for shift in (0, 8, 16, 24):  # every byte as often as any other
        counts = np.bincount(((one >> shift) & 255).ravel().astype(int), minlength=256)
        assert chisquare(counts).pvalue > 1e-3
    centred = one / 2**32 - 0.5
    for compared in (np.roll(centred, 1, 0), np.roll(centred, 1, 1), other / 2**32 - 0.5, between / 2**32 - 0.5):
        correlation = float((centred * compared).mean()) * 12
        assert abs(correlation) < 4 / one.size**0.5
    assert len(np.unique(one)) > one.size * 0.9999


def test_noise_is_the_same_wherever_the_numbers_lie():
    mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    over = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    rows = 4 * len(jax.devices())
    divided = jax.jit(noise, static_argnums=0, out_shardings=over)((rows, 3), jax.random.key(2))
    np.testing.assert_array_equal(divided, noise((rows, 3), jax.random.key(2)))


def test_rounding_at_random_holds_nothing_beside_the_parameters():
    parameters = {"w": jnp.ones((512, 256), jnp.bfloat16)}
    up = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), parameters)
    step = jax.jit(stepped, donate_argnums=0).lower(parameters, up, jnp.float32(1e-4), jax.random.key(0))
    held = step.compile().memory_analysis()
    assert held.temp_size_in_bytes < parameters["w"].size  # less than a byte each


def test_small_updates_of_bfloat16_are_not_lost():
    """A thousand steps of 1e-4 from 1, whose neighbours are 1/128 above and 1/256 below."""
    start = {"w": jnp.ones(2000, jnp.bfloat16), "b": jnp.ones(1)}
    up = {"w": -jnp.ones(2000), "b": -jnp.ones(1)}

    def go(i, parameters):
        return stepped(parameters, up, jnp.float32(1e-4), jax.random.fold_in(jax.random.key(1), i))

    end = jax.lax.fori_loop(0, 1000, go, start)
    assert end["w"].dtype == jnp.bfloat16 and end["b"].dtype == jnp.float32
    assert float(end["w"].astype(jnp.float32).mean()) == pytest.approx(1.1, abs=3e-3)
    assert float(end["b"][0]) == pytest.approx(1.1, abs=1e-4)


# Driving training


class Slope(nnx.Module):
    """One number."""

    def __init__(self) -> None:
        self.slope = nnx.Param(jnp.zeros(()))


@dataclass(frozen=True)
class Trainee:
    """What is trained."""

    network: Network

    def with_network(self, network: Network) -> "Trainee":
        return replace(self, network=network)


@dataclass(frozen=True)
class Push:
    """A gradient of -1 whatever the parameters: what looks at its sign moves the slope up by the learning rate."""

    def __call__(self, network: Slope, batch: Batch, key: jax.Array, dual_variables: Mapping[str, Any]) -> Loss:
        return Loss(-network.slope[...], jnp.float32(1.0), {})


def trained(folder, settings: TrainSettings) -> Trained[Trainee]:
    shape = BatchSettings(batch_tokens=4, source_tokens=4, target_tokens=4)
    return train(
        Trainee(Network.of(None, Slope())),
        Push(),
        shuffled(Examples([[5, 1]], [[6, 1]]), shape, pad_id=0, seed=0)[0],
        settings,
        evaluate=lambda now: {"score": float(now.network.parameters["slope"])},
        folder=folder,
        seed=0,
        description="push",
    )


def sign_of_momentum() -> optax.GradientTransformation:
    """A function of a user's own."""
    return optax.chain(optax.trace(0.9), optax.scale_by_sign())


@pytest.mark.parametrize("optimizer", [Adam(), Adafactor(), optax.scale_by_lion, optax.identity, sign_of_momentum])
def test_any_optimizer_moves_by_the_rates_of_any_schedule(optimizer, tmp_path):
    schedule = optax.cosine_decay_schedule(0.8, 8)
    settings = TrainSettings(6, 3, optimizer=optimizer, schedule=schedule, rate_factor=0.5)
    rates = [0.5 * 0.8 * (1 + np.cos(np.pi * step / 8)) / 2 for step in range(1, 7)]
    found = trained(tmp_path, settings)
    assert [score for _, score in found.history] == pytest.approx([0, sum(rates[:3]), sum(rates)], abs=1e-5)
    assert settings.highest_rate == pytest.approx(rates[0])


def test_the_factor_is_of_every_rate_and_of_the_highest(tmp_path):
    schedule = Schedule(0.8, warmup_steps=4, decay="inverse_sqrt")
    rates = [0.2, 0.4, 0.6, 0.8, 0.8 * (4 / 5) ** 0.5, 0.8 * (4 / 6) ** 0.5]
    for factor in (1.0, 0.25):
        settings = TrainSettings(6, 6, schedule=schedule, rate_factor=factor)
        assert trained(tmp_path / str(factor), settings).score == pytest.approx(factor * sum(rates), abs=1e-5)
        assert settings.highest_rate == pytest.approx(factor * 0.8)
    assert replace(settings, max_steps=3).highest_rate == pytest.approx(0.25 * 0.6)  # warm-up is all there is
    assert replace(settings, max_steps=0).highest_rate == 0
