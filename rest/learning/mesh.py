"""The devices as a mesh with one axis, "data": parameters on every device, the rows of a batch divided."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rest.errors import UserError


def data_mesh() -> Mesh:
    """All devices of all processes, in one row."""
    return Mesh(np.asarray(jax.devices()), ("data",))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The same arrays on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def divide(batch: Any, mesh: Mesh, axis: int = 0) -> Any:
    """This process's rows of a batch (along `axis`), divided over its devices."""
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))
    rows = {leaf.shape[axis] for leaf in jax.tree.leaves(batch)}
    devices = len(mesh.local_devices)
    if any(n % devices for n in rows):
        raise UserError(f"batch: {sorted(rows)[0]} rows cannot be divided over {devices} devices; change batch_tokens")
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)
