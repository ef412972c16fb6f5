"""Weights that PyTorch saved (pytorch_model.bin), read without PyTorch and without running anything that is in them.

Such a file is a pickle of a dict of tensors, and beside it their numbers: as members of a zip archive (PyTorch 1.6 and
newer) or one after the other (before). A pickle is a program. It is not given to Python's own machine, but to the one
below, which knows only the instructions that PyTorch writes and only the names in NAMES; anything else is refused. The
file is mapped into memory, and each array is a view of it: nothing is allocated for what a file claims to hold.
Layouts: `_save` and `_legacy_save` of torch/serialization.py.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from types import FunctionType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rest.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C  # what a file from before 1.6 begins with
PROTOCOL = 1001
MAX_DIMENSIONS = 64  # of NumPy


class Storage(NamedTuple):
    """Numbers beside the pickle."""

    dtype: np.dtype
    key: str
    length: int


class View(NamedTuple):
    """A tensor: which numbers of a storage it has. All but the storage counts numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _view(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> View:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a tensor is described by what are no sizes")
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS or math.prod(shape) > storage.length:
        raise ValueError(f"a tensor of shape {shape} is not in {storage.length} numbers")
    return View(storage, offset, tuple(shape), tuple(strides))


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> Any:
    return data


def _ordered_dict() -> dict[str, Any]:
    return {}


NAMES: Mapping[tuple[str, str], Callable[..., Any] | np.dtype] = {  # what a pickle may name, and what it is given
    ("collections", "OrderedDict"): _ordered_dict,  # the dict of tensors, and a tensor's hooks, which are none
    ("torch._utils", "_rebuild_tensor_v2"): _view,  # a tensor
    ("torch._utils", "_rebuild_parameter"): _parameter,  # a tensor that was saved as a parameter of a module
    # The kinds of numbers that weights are of, and those of tables of positions, masks and counters beside them
    ("torch", "FloatStorage"): np.dtype(np.float32),
    ("torch", "HalfStorage"): np.dtype(np.float16),
    ("torch", "BFloat16Storage"): np.dtype(jnp.bfloat16),
    ("torch", "DoubleStorage"): np.dtype(np.float64),
    ("torch", "LongStorage"): np.dtype(np.int64),
    ("torch", "IntStorage"): np.dtype(np.int32),
    ("torch", "ShortStorage"): np.dtype(np.int16),
    ("torch", "CharStorage"): np.dtype(np.int8),
    ("torch", "ByteStorage"): np.dtype(np.uint8),
    ("torch", "BoolStorage"): np.dtype(np.bool_),
}


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Every tensor by its name, in its own type: views of the file, which is mapped into memory.

    UserError for a file that is damaged, or that holds anything else than tensors.
    """
    try:
        with open(path, "rb") as opened:
            file = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        tensors, numbers = _read_zip(file, path) if file[:4] == b"PK\3\4" else _read_legacy(file)
        return {name: _array(view, numbers) for name, view in _named(tensors).items()}
    except (LookupError, TypeError, OverflowError) as error:  # an instruction finds something else than it works on
        raise UserError(f"{path}: not weights that PyTorch saved: its pickle is damaged") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not weights that PyTorch saved: {error}") from error


def _named(tensors: Any) -> dict[str, View]:
    if type(tensors) is not dict:
        raise ValueError(f"it holds no dict of tensors but a {type(tensors).__name__}")
    for name, view in tensors.items():
        if not isinstance(view, View):
            raise ValueError(f"its {name!r} is no tensor but a {type(view).__name__}")
    return tensors


def _array(view: View, numbers: Mapping[str, np.ndarray]) -> np.ndarray:
    """NumPy refuses what does not lie inside the storage."""
    dtype, size = view.storage.dtype, view.storage.dtype.itemsize
    strides = [size * stride for stride in view.strides]
    return np.ndarray(view.shape, dtype, numbers[view.storage.key], size * view.offset, strides)


def _read_zip(file: mmap.mmap, path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """What is pickled, and the bytes of each storage, of a file as PyTorch 1.6 and newer write it."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, EOFError, struct.error) as error:
        raise ValueError(f"its zip archive is damaged or cut short ({error})") from error
    for name in members:
        if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
            raise ValueError(f"the name {name!r} leads out of the archive")
    pickles = [name for name in members if PurePosixPath(name).name == "data.pkl"]
    if len(pickles) != 1:
        raise ValueError(f"its zip archive has {len(pickles)} files named data.pkl and not one")
    root = pickles[0].removesuffix("data.pkl")
    order = members.get(root + "byteorder")
    if order is not None and bytes(_member(file, order)) != b"little":
        raise ValueError("its numbers are not little-endian")
    storages: dict[str, Storage] = {}
    tensors = _run(io.BytesIO(_member(file, members[pickles[0]]).tobytes()), storages)
    numbers = {}
    for key, storage in storages.items():
        if root + "data/" + key not in members:
            raise ValueError(f"its zip archive has no {root}data/{key}")
        numbers[key] = _member(file, members[root + "data/" + key])
        if len(numbers[key]) != storage.length * storage.dtype.itemsize:
            raise ValueError(f"{root}data/{key} has not the {storage.length} numbers that are said to be in it")
    return tensors, numbers


def _member(file: mmap.mmap, member: zipfile.ZipInfo) -> np.ndarray:
    """The bytes of a member, where they lie."""
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise ValueError(f"{member.filename} is compressed or encrypted, and PyTorch does neither")
    at = member.header_offset
    header = file[at : at + 30] if at >= 0 else b""
    if header[:4] != b"PK\3\4":
        raise ValueError(f"its zip archive is damaged at {member.filename}")
    start = at + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return _bytes(file, start, member.file_size)


def _bytes(file: mmap.mmap, start: int, length: int) -> np.ndarray:
    if start + length > len(file):
        raise ValueError("it is cut short")
    return np.frombuffer(file, np.uint8)[start : start + length]


def _read_legacy(file: mmap.mmap) -> tuple[Any, dict[str, np.ndarray]]:
    """The same of a file from before 1.6: four pickles, one of the names of the storages, and the storages."""
    storages: dict[str, Storage] = {}
    if file[:1] != b"\x80" or _run(file, {}) != MAGIC:
        raise ValueError("it begins neither as a zip archive nor as files before PyTorch 1.6")
    if _run(file, {}) != PROTOCOL:
        raise ValueError(f"its protocol is not {PROTOCOL}")
    if _run(file, {})["little_endian"] is not True:
        raise ValueError("its numbers are not little-endian")
    tensors, keys = _run(file, storages), _run(file, {})
    numbers = {}
    if type(keys) is not list or not all(type(key) is str and key in storages for key in keys):
        raise ValueError("it does not name its storages")
    for key in keys:
        dtype, _, length = storages[key]
        if file.read(8) != length.to_bytes(8, "little"):
            raise ValueError(f"it is cut short, or its storage {key} has not {length} numbers")
        numbers[key] = _bytes(file, file.tell(), length * dtype.itemsize)
        file.seek(len(numbers[key]), io.SEEK_CUR)
    if file.tell() != len(file):
        raise ValueError("it goes on after its last storage")
    return tensors, numbers


# The machine

VALUES: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "BINSTRING", "SHORT_BINSTRING"}


def _run(file: mmap.mmap | io.BytesIO, storages: dict[str, Storage]) -> Any:
    """What the pickle makes that begins here; `storages` are filled with those that it names.

    Values are None, bool, int, float, str, tuples, lists, dicts with keys of str, Storages, Views and entries of NAMES.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    argument: Any

    def top(start: int) -> list[Any]:
        """Takes what lies on the stack from there on."""
        taken = stack[start:]
        del stack[start:]
        return taken

    for instruction, argument, _ in pickletools.genops(file):  # type: ignore[arg-type]  # a map of a file is read like one
        match instruction.name:
            case "PROTO":
                pass
            case name if name in VALUES:
                stack.append(VALUES[name])
            case name if name in LITERALS:
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(top(marks.pop())))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                stack.append(tuple(top(-int(name[-1]))))
            case "APPEND" | "APPENDS" as name:
                _extend(top(marks.pop() if name == "APPENDS" else -1), stack[-1])
            case "SETITEM" | "SETITEMS" as name:
                _set(top(marks.pop() if name == "SETITEMS" else -2), stack[-1])
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_known(argument))
            case "BINPERSID":
                storage = _storage(stack.pop())
                if storages.setdefault(storage.key, storage) != storage:
                    raise ValueError(f"its storage {storage.key} is described in two ways")
                stack.append(storage)
            case "REDUCE":
                function, arguments = top(-2)
                if not isinstance(function, FunctionType):  # only NAMES has any
                    raise ValueError("it calls what is no function")
                stack.append(function(*arguments))
            case "BUILD":  # versions of modules, which the dict of tensors has as an attribute
                top(-1)
                if type(stack[-1]) is not dict:
                    raise ValueError("it gives a state to what has none")
            case "STOP":
                return stack.pop()
            case name:
                raise ValueError(f"its pickle has the instruction {name}, which PyTorch does not write")
    raise ValueError("its pickle has no end")


def _known(name: str) -> Callable[..., Any] | np.dtype:
    module, _, attribute = name.partition(" ")
    if (module, attribute) not in NAMES:
        raise ValueError(f"it asks for {module}.{attribute}, and only tensors are read, nothing is run")
    return NAMES[module, attribute]


def _storage(described: Any) -> Storage:
    """What stands for numbers that lie beside the pickle; before 1.6 with a sixth part, None."""
    if type(described) is not tuple or len(described) not in (5, 6) or described[5:] not in ((), (None,)):
        raise ValueError("it asks for something outside the pickle that is no storage")
    kind, dtype, key, _, length = described[:5]
    if type(kind) is not str or kind != "storage" or not isinstance(dtype, np.dtype) or type(key) is not str:
        raise ValueError("it asks for something outside the pickle that is no storage")
    if type(length) is not int or length < 0:
        raise ValueError(f"its storage {key} is described by what is no size")
    return Storage(dtype, key, length)


def _extend(items: list[Any], target: Any) -> None:
    if type(target) is not list:
        raise ValueError("it appends to what is no list")
    target.extend(items)


def _set(items: list[Any], target: Any) -> None:
    keys = items[::2]
    if type(target) is not dict or not all(type(key) is str for key in keys):
        raise ValueError("it puts into a dict what has no name")
    target.update(zip(keys, items[1::2], strict=True))
