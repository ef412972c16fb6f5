"""Several devices give what one gives. Each run is a process, since their number is fixed when JAX starts."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest.data.batches import Batch, Share
from rest.errors import UserError
from rest.learning.mesh import (
    FSDP,
    MODEL,
    MachineSettings,
    at_place,
    divide,
    global_batch,
    held_rows,
    own,
    own_mesh,
    place,
    places,
    shaped,
    shardings,
    training_mesh,
)

ROOT = Path(__file__).resolve().parent.parent.parent

# Trains a policy, draws from it as it is and as it is read back, and writes what came of it.
SCRIPT = """
import sys
from pathlib import Path

import jax
import numpy as np

from rest.baselines.bc import clone, dev_loss
from rest.data.batches import BatchSettings
from rest.data.corpus import Cleaning, SyntheticCorpus
from rest.data.synthetic import SyntheticLanguage
from rest.data.tokenizer import SentencePieceSettings
from rest.errors import UserError
from rest.learning.mesh import MachineSettings, at_place, divide, own_mesh, place, places, shaped
from rest.learning.optimizers import Adam, Schedule
from rest.learning.train import TrainSettings
from rest.model.layers import TransformerSettings
from rest.policy.policy import Policy
from rest.policy.sampler import SamplingSettings, sample

out = Path(sys.argv[1])
mesh = own_mesh()
rows = divide({"x": np.arange(8.0).reshape(4, 2)}, mesh)["x"]
assert len(rows.sharding.device_set) == jax.device_count() == len(jax.devices())
assert rows.addressable_shards[0].data.shape == (4 // jax.device_count(), 2)
everywhere = place({"x": np.ones(3)}, mesh)["x"]
assert everywhere.addressable_shards[-1].data.shape == (3,)
assert shaped({"x": jax.ShapeDtypeStruct((3,), np.float32)}, mesh)["x"].sharding == everywhere.sharding
assert len(places()) == jax.device_count()
for there in places():
    (device,) = there.devices.ravel()
    (here,) = [shard.data for shard in everywhere.addressable_shards if shard.device == device]
    moved = at_place({"x": everywhere}, there)["x"]
    assert moved.devices() == {device} and moved.unsafe_buffer_pointer() == here.unsafe_buffer_pointer()
try:
    refused = str(divide(np.zeros((3, 2)), mesh).shape)
except UserError as error:
    refused = str(error)

corpus = SyntheticCorpus(SyntheticLanguage(train=80, dev=8, test=8)).load(Cleaning())
tokenizer = SentencePieceSettings(192).train([corpus.train.sources, corpus.train.references], 0)
layers = {"encoder_layers": 1, "decoder_layers": 1}
policy = Policy.new(TransformerSettings(width=16, heads=2, feed_forward=32, **layers), tokenizer, 1)
batch = BatchSettings(batch_tokens=384, source_tokens=96, target_tokens=96)
trained = clone(
    policy,
    corpus.train,
    0.1,
    # An epsilon well above rounding: a gradient that is zero but for its last bits must not move parameters.
    TrainSettings(max_steps=10, evaluate_every=5, schedule=Schedule(1e-2), optimizer=Adam(epsilon=1e-4)),
    batch,
    evaluate=dev_loss(policy, corpus.dev, batch),
    folder=out / "bc",
    seed=0,
    description="bc",
)
learned = trained.best
learned.save(out / "policy")
sampling, machine, tokens = SamplingSettings(max_target_tokens=12), MachineSettings(rows=8), []
lengths = [len(ids) for ids in learned.encode_sources(corpus.train.sources)]
short = corpus.train.take(np.flatnonzero(np.asarray(lengths) <= 16)[:5])  # of one width, which is compiled for once
for drawn_from in (learned, Policy.load(out / "policy")):
    drawn = sample(drawn_from, short.sources, short.ids, 2, sampling, seed=0, machine=machine)
    tokens.append(np.concatenate([y for samples in drawn.tokens for y in samples]))
np.savez(
    out / "result.npz",
    *[np.asarray(leaf) for leaf in jax.tree.leaves(learned.network.parameters)],
    scores=np.asarray([score for _, score in trained.history]),
    tokens=tokens[0],
    tokens_of_the_saved=tokens[1],
    refused=refused,
)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[int, dict[str, np.ndarray]]:
    """What the script gave on one device and on two, side by side."""
    folders = {devices: tmp_path_factory.mktemp(f"devices{devices}") for devices in (1, 2)}
    running = {}
    for devices, folder in folders.items():
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", SCRIPT, str(folder)]
        running[devices] = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    for process in running.values():
        _, problem = process.communicate()
        assert process.returncode == 0, problem
    return {devices: dict(np.load(folder / "result.npz")) for devices, folder in folders.items()}


@pytest.mark.slow
def test_training_on_two_devices_gives_the_parameters_of_one(results):
    one, two = results[1], results[2]
    parameters = [name for name in one if name.startswith("arr_")]
    assert len(parameters) > 40
    for name in parameters:
        np.testing.assert_allclose(one[name], two[name], atol=1e-5)
    assert one["scores"][-1] > one["scores"][0]
    np.testing.assert_allclose(one["scores"], two["scores"], atol=1e-5)


@pytest.mark.slow
def test_sampling_on_two_devices_draws_the_tokens_of_one(results):
    np.testing.assert_array_equal(results[1]["tokens"], results[2]["tokens"])


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_policy_that_was_read_back_draws_the_same_on_any_number_of_devices(results, devices):
    np.testing.assert_array_equal(results[devices]["tokens"], results[devices]["tokens_of_the_saved"])


@pytest.mark.slow
def test_rows_that_the_devices_cannot_share_evenly_are_refused(results):
    assert results[1]["refused"] == "(3, 2)"
    assert results[2]["refused"] == "batch: 3 rows cannot be divided over 2 devices; change batch_tokens"


def test_one_device_holds_everything():
    machine = MachineSettings()
    mesh = training_mesh(machine)
    assert mesh == own_mesh() and mesh.axis_names == ("data", "fsdp", "model") and mesh.size == jax.device_count() == 1
    tree = {"a": jnp.arange(3), "b": np.ones((2, 2), np.float32)}
    (there,) = places()
    for placed in (place(tree, mesh), divide(tree, mesh), at_place(tree, there)):
        jax.tree.map(np.testing.assert_array_equal, placed, tree)
    assert own(tree, machine) is tree and shaped(tree, mesh)["b"].shape == (2, 2)


def numbered(rows: int) -> Batch:
    """A batch whose rows say which they are."""
    return Batch(*[np.arange(rows)[:, None]] * 9, columns={})


def test_a_batch_takes_the_rows_that_are_needed_and_no_others():
    mesh = training_mesh(MachineSettings())
    assert held_rows(mesh, 8, 2).tolist() == list(range(8))
    dealt = global_batch(Share(numbered(8), np.arange(8), 8), mesh, 2)
    assert dealt.target[..., 0].tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]
    for rows in (np.arange(4), np.asarray([0, 2, 4, 6])):  # as many as a process of two would have
        with pytest.raises(ValueError, match=r"^of rows \[0 1 2 3 4 5 6 7\], which .* need, only \[0 .*\] are there$"):
            global_batch(Share(numbered(4), rows, 8), mesh)


def four(fsdp: int, model: int) -> jax.sharding.AbstractMesh:
    """A mesh of four devices that are not there: enough to ask where something would lie."""
    return jax.sharding.AbstractMesh((4 // (fsdp * model), fsdp, model), ("data", "fsdp", "model"))


def specs(tree, mesh) -> dict[str, tuple]:
    found = jax.tree.leaves_with_path(shardings(tree, mesh))
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(sharding.spec) for path, sharding in found}


def test_parameters_are_cut_by_their_names_and_shapes():
    layer = {name: {"kernel": np.ones((64, 64)), "bias": np.ones(64)} for name in ("query", "output")}
    tree = {
        **layer,
        "embedding": np.ones((256, 64)),
        "norm": {"scale": np.ones(64)},
        "odd": {"kernel": np.ones((63, 65))},
    }
    state = {"mu": tree, "count": np.ones(())}  # an optimizer's
    wanted = {
        "query.kernel": (FSDP, MODEL),
        "query.bias": (MODEL,),
        "output.kernel": (MODEL, FSDP),
        "output.bias": (None,),
        "embedding": (MODEL, FSDP),
        "norm.scale": (None,),
        "odd.kernel": (None, None),
    }
    assert specs(tree, four(2, 2)) == wanted
    assert specs(state, four(2, 2)) == {"count": ()} | {f"mu.{name}": spec for name, spec in wanted.items()}
    alone = {name: (None,) * len(spec) for name, spec in wanted.items()}
    cut = dict.fromkeys(("query.kernel", "output.kernel", "embedding"), (FSDP, None))
    assert specs(tree, four(4, 1)) == alone | cut
    assert not any(axis for spec in specs(tree, four(1, 1)).values() for axis in spec)


@pytest.mark.parametrize("name", ["rows", "beam_rows", "micro_batches", "fsdp", "model"])
def test_a_machine_that_does_nothing_at_a_time_is_refused(name):
    with pytest.raises(UserError, match=rf"machine\.{name} must be at least 1, not 0"):
        MachineSettings(**{name: 0})
