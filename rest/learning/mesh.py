"""The devices as a mesh (data, fsdp, model), and what lies where.

The rows of a batch are divided over "data" and "fsdp". A matrix is cut along "model" as its layer says (Megatron-LM:
Shoeybi et al. 2019), and in training its longest other axis along "fsdp" (ZeRO-3: Rajbhandari et al. 2020), and its
optimizer state like it. Programs stay as they are: XLA adds what the devices tell each other.

Training has one mesh of all devices of all processes. Outside of it a network lies on the devices of its own process
alone, whole but for what "model" cuts: nothing that samples or scores waits for another process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from rest.data.batches import Share
from rest.errors import UserError, refuse_below

DATA, FSDP, MODEL = AXES = ("data", "fsdp", "model")
ROWS = (DATA, FSDP)  # what the rows of a batch are divided over
BY_OUTPUTS, BY_INPUTS = {"query", "key", "value", "inner", "gate"}, {"output", "outer"}  # layers that "model" cuts
SMALL = 1024  # an array of fewer numbers is whole on every device


@dataclass(frozen=True)
class MachineSettings:
    """How the devices are used. It decides no result, but for the noise of dropout with `micro_batches`: what was begun
    on one machine goes on on another."""

    rows: int = 128
    """Hypotheses that are sampled at the same time on a device; a GPU wants some thousands."""
    beam_rows: int = 256
    """Hypotheses of greedy and beam search that are decoded at the same time: sources x beams."""
    micro_batches: int = 1
    """Parts in which an update goes through its batch, one after another: less memory. Dropout is drawn for each part,
    so that another number trains with other noise. Refused with losses of whole batches, such as V-MPO."""
    remat: bool = False
    """Keep only what goes from layer to layer, and compute the rest again in the backward pass: less memory, slower.
    On CPU, where XLA orders operations for speed, it saves a tenth of the memory at most."""
    fsdp: int = 1
    """Devices over which parameters, gradients and optimizer state are cut in training: less memory, more traffic."""
    model: int = 1
    """Devices that share one copy of the network, also when it samples and scores; for one that is too large for one.
    What data x fsdp x model leave to "data" are copies that train on other rows."""
    profile: int = 0
    """Updates of each training that JAX's profiler traces, into `profile` in the stage's folder (short: --profile)."""

    def __post_init__(self) -> None:
        names = "rows", "beam_rows", "micro_batches", "fsdp", "model"
        refuse_below("machine.", self, dict.fromkeys(names, 1) | {"profile": 0})


def training_mesh(machine: MachineSettings) -> Mesh:
    """All devices of all processes; "data" takes what the other axes leave. UserError where they do not divide."""
    return _mesh(tuple(jax.devices()), machine.fsdp, machine.model)


def row_groups(mesh: Mesh | AbstractMesh) -> int:
    """Over how many devices the rows of a batch are divided."""
    return mesh.shape[DATA] * mesh.shape[FSDP]


def own_mesh(machine: MachineSettings | None = None) -> Mesh:
    """The devices of this process, over which "model" cuts as far as they go."""
    devices = tuple(jax.local_devices())
    return _mesh(devices, 1, math.gcd(1 if machine is None else machine.model, len(devices)))


@lru_cache
def _mesh(devices: tuple[Any, ...], fsdp: int, model: int) -> Mesh:
    if len(devices) % (fsdp * model):
        raise UserError(
            f"machine.fsdp {fsdp} x machine.model {model}: {len(devices)} devices cannot be divided by {fsdp * model}"
        )
    shape = len(devices) // (fsdp * model), fsdp, model
    if len(devices) == 1:
        return Mesh(np.asarray(devices).reshape(shape), AXES)
    return jax.make_mesh(shape, AXES, (AxisType.Auto,) * 3, devices=devices)


def places(machine: MachineSettings | None = None) -> list[Mesh]:
    """The devices of this process, as many together as share a network: where hypotheses are drawn."""
    mesh = own_mesh(machine)
    return [Mesh(mesh.devices[at : at + 1], AXES) for at in range(mesh.shape[DATA])]


def mesh_of(tree: Any) -> Mesh:
    """Where arrays lie; where nothing says so, as for a network that was just made, this process's devices."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.mesh.axis_names == AXES:
            assert isinstance(sharding.mesh, Mesh)
            return sharding.mesh
    return own_mesh()


# Where parameters lie


def spec_of(path: tuple[Any, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Which axis of a parameter, known by its layer's and its own name, is cut over which axis of the mesh."""
    layer, leaf = (["", ""] + [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)])[-2:]
    axes: list[str | None] = [None] * len(shape)
    cut = {
        ("kernel", 2): 1 if layer in BY_OUTPUTS else 0 if layer in BY_INPUTS else None,
        ("bias", 1): 0 if layer in BY_OUTPUTS else None,
        ("embedding", 2): 0,
        ("output_bias", 1): 0,
    }.get((leaf, len(shape)))
    if cut is not None and mesh.shape[MODEL] > 1 and shape[cut] % mesh.shape[MODEL] == 0:
        axes[cut] = MODEL
    free = [i for i, n in enumerate(shape) if axes[i] is None and n % mesh.shape[FSDP] == 0]
    if free and mesh.shape[FSDP] > 1 and math.prod(shape) >= SMALL:
        axes[max(free, key=lambda i: shape[i])] = FSDP
    return PartitionSpec(*axes)


def shardings(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Of parameters, or of optimizer state, whose leaves end in the names of their parameters; arrays or shapes."""
    return jax.tree.map_with_path(lambda path, leaf: NamedSharding(mesh, spec_of(path, np.shape(leaf), mesh)), tree)


def everywhere(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place(tree: Any, mesh: Mesh) -> Any:
    """The same arrays, cut over the devices. Every process must give the same."""

    def there(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, whole.__getitem__)

    return jax.tree.map(there, tree, shardings(tree, mesh))


def at_home(tree: Any) -> Any:
    """The same arrays on the devices of this process."""
    return place(tree, own_mesh())


def shaped(shapes: Any, mesh: Mesh) -> Any:
    """What arrays of these shapes are, once they are placed."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(shapes, mesh),
    )


def own(tree: Any, machine: MachineSettings) -> Any:
    """Arrays of a training as this process's own. All processes call it together; one alone copies nothing."""
    mesh, here = training_mesh(machine), own_mesh(machine)
    if mesh == here:
        return tree
    at, wanted = dict(np.ndenumerate(mesh.devices)), dict(np.ndenumerate(here.devices))
    along = ({device: index[2] for index, device in each.items()} for each in (at, wanted))
    trained, needed = along
    aligned = mesh.shape[MODEL] == here.shape[MODEL] and all(trained[d] == needed[d] for d in needed)
    mine = shardings(tree, here)
    gathered = jax.tree.map(lambda s: NamedSharding(mesh, s.spec if aligned else PartitionSpec()), mine)
    return jax.tree.map(_at, jax.jit(_same, out_shardings=gathered)(tree), mine)


def _same(tree: Any) -> Any:
    return tree


def at_place(tree: Any, there: Mesh) -> Any:
    """Arrays of this process at one of its places; not copied where they are there."""
    if there.size > 1:
        return jax.tree.map(_at, tree, shardings(tree, there))
    (device,) = there.devices.ravel()
    return jax.tree.map(lambda leaf: _at(leaf, jax.sharding.SingleDeviceSharding(device)), tree)


def _at(leaf: Any, sharding: Any) -> jax.Array:
    """An array under another sharding, of which this process has all: made of the parts that lie there already."""
    leaf = jnp.asarray(leaf)
    wanted = sharding.addressable_devices_indices_map(leaf.shape)
    parts = {shard.device: shard for shard in leaf.addressable_shards}
    if all(device in parts and _same_part(parts[device].index, wanted[device], leaf.shape) for device in wanted):
        arrays = [parts[device].data for device in wanted]
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays)
    return jax.device_put(leaf if leaf.is_fully_addressable else leaf.addressable_data(0), sharding)


def _same_part(one: Any, other: Any, shape: tuple[int, ...]) -> bool:
    return all(a.indices(n) == b.indices(n) for a, b, n in zip(one, other, shape, strict=True))


# Where the rows of batches lie


@lru_cache
def held_rows(mesh: Mesh, rows: int, parts: int = 1) -> np.ndarray:
    """Which rows of a batch, cut into micro-batches, the devices of this process need: int64, ascending.

    A process whose devices share a network with those of another needs the same rows as that one.
    """
    each = _divided(mesh, rows, parts)
    sharding = NamedSharding(mesh, PartitionSpec(ROWS))
    needed = np.zeros(each, bool)
    for index in sharding.addressable_devices_indices_map((each,)).values():
        needed[index] = True
    return np.flatnonzero(np.repeat(needed, parts))  # row r is number r // parts of micro-batch r % parts


def _divided(mesh: Mesh, rows: int, parts: int) -> int:
    """Rows of a micro-batch; UserError where it cannot be cut."""
    if rows % parts:
        raise UserError(f"machine.micro_batches {parts}: a batch has {rows} rows, which that does not divide")
    devices = row_groups(mesh)
    if (rows // parts) % devices:
        of = f" of each of {parts} micro-batches" if parts > 1 else ""
        raise UserError(
            f"batch: {rows // parts} rows{of} cannot be divided over {devices} devices; change batch_tokens"
        )
    return rows // parts


def global_batch(share: Share, mesh: Mesh, parts: int = 1) -> Any:
    """A batch for all devices, [parts, R / parts, ...], its rows dealt out like cards.

    The one way to it: it takes the rows that the devices of this process need, by their numbers, and no others can
    stand in for them. UserError where rows cannot be divided, ValueError where a row that is needed is not there.
    """
    rows = held_rows(mesh, share.of, parts)
    at = np.searchsorted(share.rows, rows)
    if len(rows) > len(share.rows) or not np.array_equal(share.rows[np.minimum(at, len(share.rows) - 1)], rows):
        raise ValueError(f"of rows {rows}, which the devices of this process need, only {share.rows} are there")
    sharding = NamedSharding(mesh, PartitionSpec(None, ROWS))

    def assembled(leaf: Any) -> jax.Array:
        leaf = leaf if len(rows) == len(leaf) else leaf[at]
        own = in_parts(leaf, parts)
        shape = parts, share.of // parts, *leaf.shape[1:]
        return jax.make_array_from_process_local_data(sharding, own, shape)

    return jax.tree.map(assembled, share.batch)


def in_parts(leaf: Any, parts: int) -> Any:
    """Rows [R, ...] as [parts, R / parts, ...], dealt out like cards."""
    return leaf.reshape(len(leaf) // parts, parts, *leaf.shape[1:]).swapaxes(0, 1)


def divide(inputs: Any, mesh: Mesh) -> Any:
    """Rows that this process has, over the devices of a mesh of its own."""
    sharding = NamedSharding(mesh, PartitionSpec(ROWS))
    for leaf in jax.tree.leaves(inputs):
        _divided(mesh, len(leaf), 1)
    return jax.tree.map(lambda leaf: jax.device_put(leaf, sharding), inputs)


def has_cudnn() -> bool:
    """Whether computations run on GPUs that have cuDNN."""
    device = jax.devices()[0]
    return device.platform == "gpu" and "cuda" in device.client.platform_version


def described() -> list[str]:
    """Each device of this process in words: its kind, and its memory where it says so."""
    found = []
    for device in jax.local_devices():
        limit = (device.memory_stats() or {}).get("bytes_limit")
        found.append(device.device_kind + (f" with {limit / 2**30:.0f} GiB" if limit else ""))
    return found
