"""What a Hugging Face folder holds: the fields of config.json, and tensors that become the parameters of a network."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from rest.errors import UserError
from rest.folder import read_json
from rest.model.families.torch_files import read_torch
from rest.model.network import Network

ACTIVATIONS = {"relu": "relu", "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh"}

SAFETENSORS_TYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}

GIT_LFS = b"version https://git-lfs"

Place = tuple[Any, ...]  # where a parameter stands in our tree


class Config:
    """A file of settings, refusing what is not supported by the name of the field and its value."""

    def __init__(self, path: Path, fields: Mapping[str, Any]) -> None:
        self.path, self.fields = path, fields

    @classmethod
    def read(cls, path: Path) -> Config:
        """UserError for settings of a model that comes with code of its own: that is never run."""
        config = cls(path, read_json(path))
        if config.get("auto_map"):
            config.refuse("auto_map", "the model is defined by code that comes with it, which is never run")
        return config

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


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder, from one file or from several with an index; safetensors are preferred.

    Each is in the type that it has in its file, and a view of it: the file is mapped into memory, not read.
    """
    for name, read in READERS.items():
        if (folder / name).is_file():
            return _read(folder / name, read)
        if (folder / f"{name}.index.json").is_file():
            return _read_shards(folder / f"{name}.index.json", read)
    raise UserError(
        f"{folder / 'model.safetensors'}: no such file, nor is there pytorch_model.bin, nor one of them in several "
        f"files with {' or '.join(f'{name}.index.json' for name in READERS)}"
    )


def _read_shards(index: Path, read: Callable[[Path], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise UserError(f"{index}: has no weight_map that names the file of each tensor")
    shards: dict[str, dict[str, np.ndarray]] = {}
    for name, file in sorted(places.items(), key=lambda place: place[1]):
        if file not in shards:
            if Path(file).name != file:
                raise UserError(f"{index}: {file!r}, where it says {name} is, is no file of its folder")
            if not (index.parent / file).is_file():
                raise UserError(f"{index.parent / file}: no such file, and {index.name} says that {name} is in it")
            shards[file] = _read(index.parent / file, read)
        if name not in shards[file]:
            raise UserError(f"{index.parent / file}: has no tensor {name}, which {index.name} says is in it")
    return {name: shards[file][name] for name, file in places.items()}


def _read(path: Path, read: Callable[[Path], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        if file.read(len(GIT_LFS)) == GIT_LFS:
            raise UserError(f"{path}: only says where the weights are, as Git leaves it; `git lfs pull` fetches them")
    return read(path)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor by its name, in its own type: views of the file, which is mapped into memory."""
    try:
        with safe_open(path, "np"):  # which checks the header, that its tensors lie side by side, and the file's size
            pass
        with open(path, "rb") as opened:
            file = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a safetensors file that can be read ({error})") from error
    start = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, tensor in header.items():
        if tensor["dtype"] not in SAFETENSORS_TYPES:
            raise UserError(f"{path}: tensor {name} is of type {tensor['dtype']}, which is not read")
        begin, end = tensor["data_offsets"]
        numbers = np.frombuffer(file, np.uint8)[start + begin : start + end]
        tensors[name] = numbers.view(SAFETENSORS_TYPES[tensor["dtype"]]).reshape(tensor["shape"])
    return tensors


READERS = {"model.safetensors": read_safetensors, "pytorch_model.bin": read_torch}


def fill(
    folder: Path,
    network: Network,
    tensors: Mapping[str, np.ndarray],
    name_of: Callable[[Place], str],
    adapt: Callable[[Place, np.ndarray, tuple[int, ...]], np.ndarray] | None = None,
) -> tuple[Network, dict[str, np.ndarray]]:
    """A network that has only shapes with the tensors of these names, in its own types, and the tensors that are left.

    A kernel is theirs transposed; `adapt` may change an array before its shape is compared.
    """
    left = dict(tensors)

    def take(path: Any, wanted: jax.ShapeDtypeStruct) -> jax.Array:
        place = tuple(part.key for part in path)
        name = name_of(place)
        if name not in left:
            raise UserError(f"{folder}: the weights have no tensor {name}, which config.json asks for")
        given = left.pop(name)
        if not jnp.issubdtype(given.dtype, jnp.floating):
            raise UserError(f"{folder}: tensor {name} is of {given.dtype}: whole numbers, such as quantised weights")
        # the only float32 copy, of one tensor at a time; it is never the file's own memory, which may change
        ours = np.array(given.T if place[-1] == "kernel" else given, np.float32, order="C")
        if adapt is not None:
            ours = adapt(place, ours, wanted.shape)
        if ours.shape != wanted.shape:
            raise UserError(f"{folder}: the shape of tensor {name} is {given.shape}, not what config.json asks for")
        return jnp.asarray(ours, wanted.dtype)

    return network.with_parameters(jax.tree.map_with_path(take, network.parameters)), left


def refuse_left(folder: Path, name: str) -> NoReturn:
    raise UserError(f"{folder}: tensor {name} is not a part of the network that config.json describes")
