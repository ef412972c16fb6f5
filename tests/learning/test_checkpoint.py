"""Checkpoints: what is kept, and that it comes back bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rest.errors import UserError
from rest.learning.checkpoint import Checkpoints, State, load_parameters, save_parameters


def parameters(seed: int = 0) -> dict:
    """Nested, of several types and shapes, with values that rounding would change."""
    random = np.random.default_rng(seed)
    return {
        "embedding": jnp.asarray(random.standard_normal((5, 3)), jnp.float32),
        "layers": {0: {"kernel": jnp.asarray(random.standard_normal(4), jnp.bfloat16)}, 1: {}},
        "count": jnp.asarray(7, jnp.int32),
        "tiny": jnp.asarray([1e-42, -0.0, 3.4e38], jnp.float32),
    }


def state(seed: int = 0) -> State:
    weights = {"w": parameters(seed)["embedding"]}
    optimizer = optax.scale_by_adam()
    _, moments = optimizer.update(weights, optimizer.init(weights))
    return State(parameters(seed), moments, {"history": [[0, 0.25]], "data": {"position": 17}})


def equal(one: object, other: object) -> bool:
    def same(a: jax.Array, b: jax.Array) -> bool:
        return a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()

    return jax.tree.structure(one) == jax.tree.structure(other) and jax.tree.all(jax.tree.map(same, one, other))


def test_parameters_come_back_bit_for_bit(tmp_path):
    save_parameters(tmp_path / "parameters", parameters())
    assert equal(load_parameters(tmp_path / "parameters", parameters(seed=1)), parameters())


def test_parameters_can_be_written_over(tmp_path):
    for seed in (0, 1):
        save_parameters(tmp_path / "parameters", parameters(seed))
    assert equal(load_parameters(tmp_path / "parameters", parameters()), parameters(1))


def test_a_missing_folder_of_parameters_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no parameters there"):
        load_parameters(tmp_path / "nowhere", parameters())


def test_parameters_of_another_shape_are_refused(tmp_path):
    save_parameters(tmp_path / "parameters", {"w": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"\(4,\) is not compatible with the stored shape: \(3,\)"):
        load_parameters(tmp_path / "parameters", {"w": jnp.zeros(4)})


def test_parameters_optimizer_and_progress_come_back_in_another_process_too(tmp_path):
    saved = state()
    with_first = Checkpoints(tmp_path)
    with_first.save(5, saved, 0.5)
    with_first.close()

    again = Checkpoints(tmp_path)  # a fresh look at the folder, as after a crash
    assert again.steps() == [5]
    restored = again.restore(5, state(seed=1))
    assert equal(restored.parameters, saved.parameters)
    assert equal(restored.optimizer, saved.optimizer)
    assert restored.progress == saved.progress
    assert equal(again.parameters(5, parameters(seed=1)), saved.parameters)
    again.close()


@pytest.mark.parametrize("optimizer", [optax.identity, optax.scale_by_sign, lambda: optax.chain(optax.identity())])
def test_an_optimizer_without_a_state_comes_back_as_it_is(optimizer, tmp_path):
    weights = {"w": jnp.ones(2)}
    without = State(weights, optimizer().init(weights), {"steps": 1})
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, without, 0.5)
    restored = checkpoints.restore(1, without)
    checkpoints.close()
    assert restored.optimizer == without.optimizer and type(restored.optimizer) is type(without.optimizer)
    assert equal(restored.parameters, weights) and restored.progress == {"steps": 1}


def test_what_is_saved_is_the_moment_of_the_call_though_it_is_written_later(tmp_path):
    change = jax.jit(lambda w: w + 1, donate_argnums=0)
    weights, progress = jnp.zeros(4_000_000), {"history": [1]}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, State({"w": weights}, {"m": jnp.ones(1)}, progress), 0.5)
    for _ in range(5):
        weights = change(weights)  # in the buffer that was saved, if nothing keeps it
    progress["history"].append(2)
    restored = checkpoints.restore(1, State({"w": weights}, {"m": jnp.ones(1)}, {}))
    checkpoints.close()
    assert not np.asarray(restored.parameters["w"]).any() and restored.progress == {"history": [1]}


@pytest.mark.parametrize(
    ("scores", "latest", "kept"),
    [
        ([0.1, 0.2, 0.3], 1, [2]),
        ([0.1, 0.9, 0.3, 0.2], 1, [1, 3]),
        ([0.1, 0.9, 0.3, 0.2], 2, [1, 2, 3]),
        ([0.9, 0.1, 0.3, 0.2], 1, [0, 3]),
        ([-0.9, -5.0, -3.0], 1, [0, 2]),
        ([0.5, 0.5, 0.1], 1, [0, 2]),  # of equals the first, as training chooses
    ],
)
def test_the_latest_and_the_best_are_kept(scores, latest, kept, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_latest=latest)
    for step, score in enumerate(scores):
        weights = {"w": jnp.full(2, float(step))}
        checkpoints.save(step, State(weights, weights, {}), score)
    assert checkpoints.steps() == kept
    for step in kept:
        assert checkpoints.parameters(step, weights)["w"].tolist() == [step, step]
    checkpoints.close()
