"""The devices as a mesh with one axis, "data": parameters on every device, the rows of a batch divided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rest.errors import UserError


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
    so that another number trains with other noise."""
    remat: bool = False
    """Keep only what goes from layer to layer, and compute the rest again in the backward pass: less memory, slower.
    On CPU, where XLA orders operations for speed, it saves a tenth of the memory at most."""

    def __post_init__(self) -> None:
        for name in ("rows", "beam_rows", "micro_batches"):
            if getattr(self, name) < 1:
                raise UserError(f"machine.{name} must be at least 1, not {getattr(self, name)}")


def data_mesh() -> Mesh:
    """All devices of all processes, in one row."""
    return Mesh(np.asarray(jax.devices()), ("data",))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The same arrays on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def replicated(shapes: Any, mesh: Mesh) -> Any:
    """What arrays of these shapes are, once they are on every device."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)


def divide(batch: Any, mesh: Mesh, axis: int = 0) -> Any:
    """This process's rows of a batch (along `axis`), divided over its devices."""
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))
    rows = {leaf.shape[axis] for leaf in jax.tree.leaves(batch)}
    devices = len(mesh.local_devices)
    if any(n % devices for n in rows):
        raise UserError(f"batch: {sorted(rows)[0]} rows cannot be divided over {devices} devices; change batch_tokens")
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)


def on_device(tree: Any, device: jax.Device) -> Any:
    """Replicated arrays on one device of this process; not copied where they are there."""

    def there(leaf: Any) -> jax.Array:
        shards = jnp.asarray(leaf).addressable_shards
        here = [shard.data for shard in shards if shard.device == device]
        return jax.device_put(here[0] if here else shards[0].data, device)

    return jax.tree.map(there, tree)


def refuse_several_processes(what: str) -> None:
    """UserError where a run that cannot be shared is shared by several processes."""
    if jax.process_count() > 1:
        raise UserError(f"{what}: runs in one process, not {jax.process_count()}")


def described() -> list[str]:
    """Each device of this process in words: its kind, and its memory where it says so."""
    found = []
    for device in jax.local_devices():
        limit = (device.memory_stats() or {}).get("bytes_limit")
        found.append(device.device_kind + (f" with {limit / 2**30:.0f} GiB" if limit else ""))
    return found
