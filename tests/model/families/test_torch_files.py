"""Weights that PyTorch saved: both layouts, in its own files; and what else may come as such a file is refused."""

import copyreg
import io
import os
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest.errors import UserError
from rest.model.families.files import read_safetensors, read_tensors
from rest.model.families.torch_files import MAGIC, NAMES, PROTOCOL, read_torch

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "torch_files"
LAYOUTS = ["zip", "legacy"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_that_pytorch_saved_are_those_of_safetensors(layout):
    read, wanted = read_torch(GOLDEN / f"{layout}.bin"), read_safetensors(GOLDEN / "model.safetensors")
    assert set(read) == set(wanted) and len({tensor.dtype for tensor in wanted.values()}) == 10
    for name, tensor in wanted.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert read[name].tobytes() == tensor.tobytes()
    np.testing.assert_array_equal(read["gaps"], read["whole"][1::2, ::3])
    np.testing.assert_array_equal(np.array(read["half_transposed"], np.float32), wanted["half_transposed"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_storage_is_read_once_and_never_written(layout):
    read = read_torch(GOLDEN / f"{layout}.bin")
    for name in ("again", "transposed", "inside", "gaps"):
        assert np.shares_memory(read["whole"], read[name])
    assert not np.shares_memory(read["whole"], read["float32"])
    assert not any(tensor.flags.writeable for tensor in read.values())


# Files made by hand


class Named:
    """Pickled as a name, with what is to be read in its place."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Call:
    """Pickled as a call of a name."""

    def __init__(self, function: Named, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments


class Stored:
    """Pickled as something that lies beside the pickle."""

    def __init__(self, *described: Any) -> None:
        self.described = described


class Writer(pickle._Pickler):  # the one in Python, whose output can be taken over
    """Writes names that are not installed, as PyTorch's are here."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        match obj:
            case Named():
                self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
            case Call():
                self.save(obj.function)
                self.save(obj.arguments)
                self.write(pickle.REDUCE)
            case Stored():
                self.save(obj.described)
                self.write(pickle.BINPERSID)
            case _:
                super().save(obj, save_persistent_id)


def pickled(value: Any) -> bytes:
    file = io.BytesIO()
    Writer(file, 2).dump(value)
    return file.getvalue()


FLOATS = Named("torch", "FloatStorage")


def tensor(
    shape: Any = (2, 3), strides: Any = (3, 1), offset: Any = 0, *, key: str = "0", count: Any = 6, kind: Any = FLOATS
) -> Call:
    storage = Stored("storage", kind, key, "cpu", count)
    return Call(Named("torch._utils", "_rebuild_tensor_v2"), storage, offset, shape, strides, False, OrderedDict())


def zip_file(path: Path, program: bytes, members: dict[str, bytes] | None = None, **how: Any) -> Path:
    """As PyTorch writes it; with six numbers beside the pickle."""
    members = {"a/data/0": np.arange(6, dtype=np.float32).tobytes()} if members is None else members
    with zipfile.ZipFile(path, "w", **how) as archive:
        for name, content in {"a/data.pkl": program, "a/byteorder": b"little", **members}.items():
            archive.writestr(name, content)
    return path


def legacy_file(path: Path, program: bytes, *, five: dict[int, bytes] | None = None, count: int = 6) -> Path:
    """The same in the layout before 1.6; `five` replaces some of its pickles."""
    information = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"int": 4}}
    pickles = dict(enumerate([pickled(MAGIC), pickled(PROTOCOL), pickled(information), program, pickled(["0"])]))
    numbers = struct.pack("<q", count) + np.arange(6, dtype=np.float32).tobytes()
    path.write_bytes(b"".join((pickles | (five or {})).values()) + numbers)
    return path


def legacy(value: Any) -> Any:
    """The same tensors, described with the sixth part that storages had then."""
    match value:
        case dict():
            return {name: legacy(item) for name, item in value.items()}
        case Call():
            return Call(value.function, *(legacy(item) for item in value.arguments))
        case Stored():
            return Stored(*value.described, None)
    return value


def test_files_made_by_hand_are_read(tmp_path):
    made = {"x": tensor(), "y": tensor((3, 2), (1, 3)), "z": tensor((2,), (2,), 3), "none": tensor((0, 2), (2, 1), 6)}
    for path in (
        zip_file(tmp_path / "zip.bin", pickled(made)),
        legacy_file(tmp_path / "legacy.bin", pickled(legacy(made))),
    ):
        read = read_torch(path)
        assert read["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert read["y"].tolist() == [[0, 3], [1, 4], [2, 5]]
        assert read["z"].tolist() == [3, 5]
        assert read["none"].shape == (0, 2)


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_torch(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


# Hostile pickles


class Touch:
    """What makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.marker}'",)


class Evaluate(Touch):
    def __reduce__(self) -> Any:
        return eval, (f"__import__('pathlib').Path({str(self.marker)!r}).touch()",)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def shell(marker: Path) -> bytes:
    """The arguments of a call."""
    return text(f"touch '{marker}'") + pickle.TUPLE1


RUNNING: dict[str, tuple[Callable[[Path], bytes], str]] = {  # programs that run something in Python's own machine
    "reduce": (lambda marker: pickle.dumps(Touch(marker), 2), r"asks for posix\.system"),
    "eval": (lambda marker: pickle.dumps(Evaluate(marker), 2), r"asks for __builtin__\.eval"),
    "nested": (
        lambda marker: pickle.dumps(OrderedDict(x=[({"y": Touch(marker)},)]), 2),
        r"asks for posix\.system",
    ),
    "protocol 0": (lambda marker: pickle.dumps(Touch(marker), 0), r"asks for posix\.system"),
    "protocol 4": (lambda marker: pickle.dumps(Touch(marker), 4), "instruction FRAME"),
    "getattr": (
        lambda marker: (
            b"c__builtin__\ngetattr\ncos\n_wrap_close\n"
            + (text("__init__") + pickle.TUPLE2 + pickle.REDUCE + pickle.POP)
            + (b"cos\nsystem\n" + shell(marker) + b"R.")
        ),
        r"asks for __builtin__\.getattr",
    ),
    "dotted name": (
        lambda marker: b"\x80\x04cos\npath.os.system\n" + shell(marker) + b"R.",
        r"asks for os\.path\.os\.system",
    ),
    "name from the memo": (
        lambda marker: (
            b"\x80\x04" + text("os") + b"q\x00" + text("system") + b"q\x01h\x00h\x01\x93" + shell(marker) + b"R."
        ),
        "instruction STACK_GLOBAL",
    ),
    "extension code": (lambda marker: b"\x80\x02\x82\x07" + shell(marker) + b"R.", "instruction EXT1"),
    "INST": (lambda marker: b"(" + text(f"touch '{marker}'") + b"ios\nsystem\n.", "instruction INST"),
    "OBJ": (lambda marker: b"(cos\nsystem\n" + text(f"touch '{marker}'") + b"o.", r"asks for os\.system"),
}


@pytest.fixture
def extension():
    copyreg.add_extension("os", "system", 7)
    yield
    copyreg.remove_extension("os", "system", 7)


@pytest.mark.parametrize("name", RUNNING)
def test_nothing_that_a_pickle_calls_is_run(tmp_path, extension, name):
    marker = tmp_path / "marker"
    make, message = RUNNING[name]
    pickle.loads(make(marker))
    assert marker.exists(), "the program does nothing in Python's own machine either"
    marker.unlink()
    refused(zip_file(tmp_path / "zip.bin", make(marker)), message)
    for place in range(5):
        refused(legacy_file(tmp_path / "legacy.bin", b"", five={place: make(marker)}), "PyTorch saved: it")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (pickled({"x": Call(FLOATS)}), "calls what is no function"),
        (b"\x80\x02ctorch._utils\n_rebuild_parameter\n}b.", "gives a state to what has none"),
        (b"\x80\x02ctorch\nFloatStorage\n}b.", "gives a state to what has none"),
        (pickled({"x": Named("torch._utils", "_rebuild_tensor_v2.__globals__")}), r"_rebuild_tensor_v2\.__globals__"),
        (pickled({"x": Named("rest.folder", "discard")}), r"asks for rest\.folder\.discard"),
        (pickled({"x": Stored("module", FLOATS, "0", "cpu", 6)}), "outside the pickle that is no storage"),
        (pickled({"x": Stored("storage", "torch.FloatStorage", "0", "cpu", 6)}), "outside the pickle that is no"),
        (pickled({"x": Stored("storage", FLOATS, "../../../etc/passwd", "cpu", 6)}), "has no a/data/../../"),
        (pickled({"x": Stored("storage", FLOATS, "0", "cpu", -6)}), "storage 0 is described by what is no size"),
        (pickled({"x": Stored("storage", FLOATS, "0", "cpu", 6)}), "its 'x' is no tensor but a Storage"),
        (pickled([tensor()]), "holds no dict of tensors but a list"),
        (pickled({"x": tensor(), "epoch": 3}), "its 'epoch' is no tensor but a int"),
        (pickled({1: tensor()}), "puts into a dict what has no name"),
        (pickled({("x",): tensor()}), "puts into a dict what has no name"),
        (pickled({"x": tensor(), "y": tensor(count=5, shape=(5,), strides=(1,))}), "storage 0 is described in two"),
        (b"\x80\x02(((]a.", "damaged"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"\x80\x02R.", "PyTorch saved: "),
        (b"\x80\x02N", "PyTorch saved: "),
        (b"", "PyTorch saved: "),
        (b"\x80\x02}q\x00(X\x01\x00\x00\x00xh\x00u.", "its 'x' is no tensor but a dict"),
        (b"\x80\x02" + b")" + b"\x85" * 300_000 + b".", "holds no dict of tensors but a tuple"),
    ],
)
def test_what_is_no_dict_of_tensors_is_refused(tmp_path, program, message):
    refused(zip_file(tmp_path / "x.bin", program), message)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"count": 1 << 60, "shape": (1 << 60,), "strides": (1,)}, "has not the 1152921504606846976 numbers"),
        ({"shape": (1 << 40,), "strides": (0,)}, "not in 6 numbers"),  # in memory it would be as large as it says
        ({"shape": (3, 3)}, r"of shape \(3, 3\) is not in 6 numbers"),
        ({"offset": 1}, "buffer"),
        ({"strides": (4, 1)}, "buffer"),
        ({"strides": (3, -1)}, "what are no sizes"),
        ({"offset": -1}, "what are no sizes"),
        ({"shape": (2.0, 3)}, "what are no sizes"),
        ({"shape": (True, 3)}, "what are no sizes"),
        ({"shape": (6,)}, "is not in 6 numbers"),
        ({"shape": 6}, "damaged"),
        ({"shape": (0, 1 << 100), "strides": (1, 1)}, "PyTorch saved: "),
        ({"shape": (1,) * 70, "strides": (1,) * 70}, "is not in 6 numbers"),
        ({"count": 5, "shape": (5,), "strides": (1,)}, "has not the 5 numbers"),
        ({"kind": Named("torch", "HalfStorage")}, "has not the 6 numbers"),
        ({"key": "1"}, "has no a/data/1"),
        ({"kind": Named("torch", "ComplexFloatStorage")}, r"asks for torch\.ComplexFloatStorage"),
    ],
)
def test_sizes_are_held_to_the_file(tmp_path, described, message):
    refused(zip_file(tmp_path / "x.bin", pickled({"x": tensor(**described)})), message)
    refused(legacy_file(tmp_path / "y.bin", pickled(legacy({"x": tensor(**described)}))), "PyTorch saved: ")


@pytest.mark.parametrize(
    ("bytes_", "message"),
    [
        (b"\x8e" + struct.pack("<q", 1 << 60), "PyTorch saved: "),  # BINBYTES8
        (b"X" + struct.pack("<I", 0xFFFFFFFF), "PyTorch saved: "),
        (b"\x8b" + struct.pack("<i", 0x7FFFFFFF), "PyTorch saved: "),  # LONG4
        (b"Nr" + struct.pack("<I", 0xFFFFFFFF) + b".", "no dict of tensors but a NoneType"),  # a place in the memo
    ],
)
def test_a_size_that_a_pickle_claims_is_not_allocated(tmp_path, bytes_, message):
    refused(zip_file(tmp_path / "x.bin", b"\x80\x02" + bytes_), message)
    refused(legacy_file(tmp_path / "y.bin", b"\x80\x02" + bytes_), "PyTorch saved: ")


# Archives


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a\\x"])
def test_an_archive_with_a_path_that_leads_out_is_refused(tmp_path, name):
    members = {"a/data/0": bytes(24), name: b"nothing"}
    refused(zip_file(tmp_path / "x.bin", pickled({"x": tensor()}), members), "leads out of the archive")


def test_archives_that_pytorch_does_not_write_are_refused(tmp_path):
    path, program = tmp_path / "x.bin", pickled({"x": tensor()})
    refused(zip_file(path, program, compression=zipfile.ZIP_DEFLATED), "compressed or encrypted")
    refused(zip_file(path, program, {}), "has no a/data/0")
    refused(zip_file(path, program, {"b/data.pkl": program}), "has 2 files named data.pkl")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/other", b"")
    refused(path, "has 0 files named data.pkl")
    refused(zip_file(path, program, {"a/data/0": bytes(24), "a/byteorder": b"big"}), "not little-endian")
    big = {"protocol_version": PROTOCOL, "little_endian": False}
    refused(legacy_file(path, program, five={2: pickled(big)}), "not little-endian")
    refused(legacy_file(path, program, five={1: pickled(1000)}), "protocol is not 1001")
    refused(legacy_file(path, program, five={0: pickled(1)}), "begins neither as a zip archive nor")
    refused(legacy_file(path, program, five={4: pickled([])}), "goes on after its last storage")
    refused(legacy_file(path, program, five={4: pickled(["1"])}), "does not name its storages")
    refused(legacy_file(path, program, count=5), "its storage 0 has not 6 numbers")
    path.write_bytes(b"")
    refused(path, "PyTorch saved: ")
    path.write_bytes(b"<html>not found</html>")
    refused(path, "begins neither as a zip archive nor")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_truncated_file_is_refused(tmp_path, layout):
    whole = (GOLDEN / f"{layout}.bin").read_bytes()
    path = tmp_path / "x.bin"
    for size in range(1, len(whole) - 1, 97):
        path.write_bytes(whole[:size])
        refused(path, "PyTorch saved: ")


@given(st.sampled_from(LAYOUTS), st.dictionaries(st.integers(0, 6000), st.integers(0, 255), min_size=1, max_size=4))
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path_factory, layout, changes):
    content = bytearray((GOLDEN / f"{layout}.bin").read_bytes())
    for place, byte in changes.items():
        content[place % len(content)] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(content)
    try:
        read = read_torch(path)
    except UserError:
        return
    assert sum(tensor.nbytes for tensor in read.values()) < 10 * len(content)


def test_the_names_that_may_be_asked_for_are_those_of_tensors():
    asked = set()
    for layout in LAYOUTS:
        content = (GOLDEN / f"{layout}.bin").read_bytes()
        if layout == "zip":
            content = zipfile.ZipFile(GOLDEN / "zip.bin").read("zip/data.pkl")
        stream = io.BytesIO(content)
        for _ in range(1 if layout == "zip" else 4):
            asked |= {
                tuple(argument.split(" "))
                for instruction, argument, _ in pickletools.genops(stream)
                if instruction.name == "GLOBAL"
            }
    assert asked == set(NAMES)  # every one is needed by a file of PyTorch's, and none other is there


def test_weights_in_several_files_of_pytorch_are_read(tmp_path):
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"x": "1.bin", "y": "2.bin"}}')
    zip_file(tmp_path / "1.bin", pickled({"x": tensor()}))
    legacy_file(tmp_path / "2.bin", pickled(legacy({"y": tensor((6,), (1,))})))
    assert {name: array.tolist() for name, array in read_tensors(tmp_path).items()} == {
        "x": [[0, 1, 2], [3, 4, 5]],
        "y": [0, 1, 2, 3, 4, 5],
    }
