"""The one handle of a network: what it is, how it is built, and what it has learned."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rest.learning.checkpoint import identity_of, load_parameters, save_parameters
from rest.learning.mesh import MachineSettings, at_home

Build = Callable[[nnx.Rngs], nnx.Module]


@partial(jax.tree_util.register_dataclass, data_fields=["parameters"], meta_fields=["settings", "graph"])
@dataclass(frozen=True)
class Network:
    """Settings, graph and parameters. It may be an argument of a compiled function, which reads `module`.

    Networks with the same settings and graph share their compiled programs, whatever their parameters.
    """

    settings: Any
    """What the network is made from; a frozen dataclass."""
    graph: Any
    """An nnx.GraphDef: its structure without its arrays."""
    parameters: Any
    """A dict of dicts of arrays."""

    @classmethod
    def new(cls, settings: Any, build: Build, seed: int) -> Network:
        """With random parameters, which lie where those of `load` do: both are served by the same programs."""
        network = cls.of(settings, build(nnx.Rngs(jax.random.key(seed))))
        return network.with_parameters(at_home(network.parameters))

    @classmethod
    def of(cls, settings: Any, module: nnx.Module) -> Network:
        """The network of a module; they share their arrays."""
        graph, state = nnx.split(module)
        return cls(settings, graph, nnx.to_pure_dict(state))

    @classmethod
    def shaped(cls, settings: Any, build: Build) -> Network:
        """With shapes in place of parameters; nothing is computed."""
        return cls.of(settings, nnx.eval_shape(lambda: build(nnx.Rngs(0))))

    @classmethod
    def load(cls, folder: Path, settings: Any, build: Build, machine: MachineSettings | None = None) -> Network:
        """With the parameters that `save` wrote, on the devices of this process; UserError where there are none."""
        shapes = cls.shaped(settings, build)
        return shapes.with_parameters(load_parameters(folder / "parameters", shapes.parameters, machine))

    def save(self, folder: Path) -> None:
        """Write the parameters. Settings are few, and whoever owns the network writes them beside what it adds."""
        folder.mkdir(parents=True, exist_ok=True)
        save_parameters(folder / "parameters", self.parameters)

    def identity(self, known: str) -> str:
        """Sha256 of the parameters with their names, and of what else is known."""
        return identity_of(self.parameters, known)

    @property
    def module(self) -> Any:
        """The network itself; its arrays are those of the parameters."""
        return nnx.merge(self.graph, self.parameters)

    def with_parameters(self, parameters: Any) -> Network:
        return dataclasses.replace(self, parameters=parameters)

    def with_part(self, name: str, arrays: Mapping[str, Any]) -> Network:
        """With other arrays in one part of the network, such as its head."""
        part = {key: jnp.asarray(array, jnp.float32) for key, array in arrays.items()}
        return self.with_parameters({**self.parameters, name: part})

    def inside(self, settings: Any, build: Callable[[Any], nnx.Module]) -> Network:
        """A network that has this one as a part, and shares its arrays."""
        return Network.of(settings, build(self.module))

    def towards(self, other: Network, share: float) -> Network:
        """The parameters that lie between this network's, share 0, and another's, share 1."""
        if share == 1:
            return other
        return self.with_parameters(jax.tree.map(lambda a, b: a + share * (b - a), self.parameters, other.parameters))

    def on_devices(self, *, remat: bool, row_groups: int) -> Network:
        """The same function for training: whether activations are computed again in the backward pass, which needs
        less memory and more time, and in how many groups the rows of a batch lie on different devices."""
        module = self.module
        for _, node in nnx.iter_graph(module):
            for name, value in (("remat", remat), ("row_groups", row_groups)):
                if hasattr(node, name):
                    setattr(node, name, value)
        return Network.of(self.settings, module)
