"""What a Hugging Face folder holds: the fields of config.json, and tensors that become the parameters of a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from rest.errors import UserError
from rest.folder import read_json
from rest.model.network import Network

ACTIVATIONS = {"relu": "relu", "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh"}

Place = tuple[Any, ...]  # where a parameter stands in our tree


class Config:
    """A file of settings, refusing what is not supported by the name of the field and its value."""

    def __init__(self, path: Path, fields: Mapping[str, Any]) -> None:
        self.path, self.fields = path, fields

    @classmethod
    def read(cls, path: Path) -> Config:
        return cls(path, read_json(path))

    def get(self, name: str, default: Any = None) -> Any:
        value = self.fields.get(name)
        return default if value is None else value

    def __getitem__(self, name: str) -> Any:
        if self.get(name) is None:
            raise UserError(f"{self.path}: has no field {name!r}")
        return self.fields[name]

    def refuse(self, name: str, why: str) -> NoReturn:
        raise UserError(f"{self.path}: {name} {json.dumps(self.get(name))} cannot be used: {why}")

    def demand(self, name: str, wanted: Any) -> None:
        """A field that must have one value, which is also what its absence means."""
        if self.get(name, wanted) != wanted:
            self.refuse(name, f"it must be {json.dumps(wanted)}")

    def choose(self, name: str, choices: Mapping[str, Any]) -> Any:
        """What the value of a field stands for."""
        if self[name] not in choices:
            self.refuse(name, f"what can be read is {', '.join(choices)}")
        return choices[self[name]]

    def activation(self, name: str, theirs: str) -> Any:
        if theirs not in ACTIVATIONS:
            self.refuse(name, f"activations are {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[theirs]


def read_tensors(folder: Path, model_class: str) -> dict[str, np.ndarray]:
    """Every tensor of a folder, float32, from one file or from several with an index.

    `model_class` is the class of transformers that converts a folder that has none.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        files = [whole]
    elif index.is_file():
        files = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    elif (folder / "pytorch_model.bin").is_file():
        raise UserError(
            f"{folder}: has pytorch_model.bin only, which is not read without PyTorch; where PyTorch is installed, "
            f"`from transformers import {model_class} as M; M.from_pretrained({str(folder)!r})"
            f".save_pretrained({str(folder)!r})` writes model.safetensors beside it"
        )
    else:
        raise UserError(f"{whole}: no such file")
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: not a safetensors file that can be read ({error})") from error
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def fill(
    folder: Path,
    network: Network,
    tensors: Mapping[str, np.ndarray],
    name_of: Callable[[Place], str],
    adapt: Callable[[Place, np.ndarray, tuple[int, ...]], np.ndarray] | None = None,
) -> tuple[Network, dict[str, np.ndarray]]:
    """A network that has only shapes with the tensors of these names, and the tensors that are left.

    A kernel is theirs transposed; `adapt` may change an array before its shape is compared.
    """
    left = dict(tensors)

    def take(path: Any, wanted: jax.ShapeDtypeStruct) -> jax.Array:
        place = tuple(part.key for part in path)
        name = name_of(place)
        if name not in left:
            raise UserError(f"{folder}: the weights have no tensor {name}, which config.json asks for")
        given = left.pop(name)
        ours = given.T if place[-1] == "kernel" else given
        if adapt is not None:
            ours = adapt(place, ours, wanted.shape)
        if ours.shape != wanted.shape:
            raise UserError(f"{folder}: the shape of tensor {name} is {given.shape}, not what config.json asks for")
        return jnp.asarray(ours)

    return network.with_parameters(jax.tree.map_with_path(take, network.parameters)), left


def refuse_left(folder: Path, name: str) -> NoReturn:
    raise UserError(f"{folder}: tensor {name} is not a part of the network that config.json describes")
