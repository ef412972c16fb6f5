"""Weights as they lie in folders: safetensors, several files with an index, what is damaged, and the memory of it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rest.errors import UserError
from rest.model.families.files import Config, fill, read_safetensors, read_tensors
from rest.model.network import Network

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "torch_files"


def network(**shapes: tuple[int, ...]) -> Network:
    """One that has only shapes."""
    parameters = {name: {"kernel": jax.ShapeDtypeStruct(shape, np.float32)} for name, shape in shapes.items()}
    return Network(None, None, parameters)


def test_safetensors_are_views_of_the_file_in_their_own_types(tmp_path):
    ours, theirs = read_safetensors(GOLDEN / "model.safetensors"), load_file(GOLDEN / "model.safetensors")
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape)
        assert ours[name].tobytes() == tensor.tobytes()
        assert not ours[name].flags.owndata and not ours[name].flags.writeable
    save_file({}, tmp_path / "empty.safetensors")
    assert read_safetensors(tmp_path / "empty.safetensors") == {}


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_parameters_are_float32_and_outlive_their_file(tmp_path, dtype):
    wanted = np.arange(12).reshape(3, 4).astype(dtype)
    save_file({"a": wanted, "spare": wanted}, tmp_path / "model.safetensors")
    filled, left = fill(tmp_path, network(a=(4, 3)), read_tensors(tmp_path), lambda place: place[0])
    (tmp_path / "model.safetensors").write_bytes(bytes((tmp_path / "model.safetensors").stat().st_size))
    assert list(left) == ["spare"]
    assert filled.parameters["a"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(filled.parameters["a"]["kernel"], np.arange(12).reshape(3, 4).T)


def test_weights_that_are_whole_numbers_are_refused(tmp_path):
    save_file({"a": np.ones((3, 4), np.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="tensor a is of int8: whole numbers"):
        fill(tmp_path, network(a=(4, 3)), read_tensors(tmp_path), lambda place: place[0])


# Damaged and missing


def refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_tensors(folder)
    assert "\n" not in str(caught.value)


def test_a_damaged_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    whole = (GOLDEN / "model.safetensors").read_bytes()
    for size in (0, 1, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(tmp_path, r"model\.safetensors: not a safetensors file that can be read")
    path.write_bytes(whole + b"\0")
    refused(tmp_path, r"model\.safetensors: not a safetensors file that can be read")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    refused(tmp_path, r"model\.safetensors: only says where the weights are.*git lfs pull")
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    refused(tmp_path, "tensor x is of type F8_E4M3, which is not read")


@pytest.fixture
def sharded(tmp_path) -> Path:
    """Two tensors in two files."""
    for name in ("x", "y"):
        save_file({name: np.ones(2, np.float32), "unlisted": np.ones(1, np.float32)}, tmp_path / f"{name}.safetensors")
    write_index(tmp_path, {"x": "x.safetensors", "y": "y.safetensors"})
    return tmp_path


def write_index(folder: Path, places: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_weights_in_several_files_need_each_of_them_whole(sharded):
    assert {name: tensor.tolist() for name, tensor in read_tensors(sharded).items()} == {"x": [1, 1], "y": [1, 1]}
    write_index(sharded, {"x": "x.safetensors", "y": "x.safetensors"})
    refused(sharded, r"x\.safetensors: has no tensor y, which model\.safetensors\.index\.json says is in it")
    for outside in ("../x.safetensors", "/x.safetensors", "", ".."):
        write_index(sharded, {"x": outside})
        refused(sharded, "where it says x is, is no file of its folder|no such file")
    for places in (None, [1], {"x": 1}):
        write_index(sharded, places)
        refused(sharded, r"index\.json: has no weight_map")
    write_index(sharded, {"x": "x.safetensors", "y": "y.safetensors"})
    content = (sharded / "y.safetensors").read_bytes()
    (sharded / "y.safetensors").write_bytes(content[:-1])
    refused(sharded, r"y\.safetensors: not a safetensors file that can be read")
    (sharded / "y.safetensors").unlink()
    refused(sharded, r"y\.safetensors: no such file, and model\.safetensors\.index\.json says that y is in it")


def test_safetensors_are_preferred_to_what_pytorch_saved(tmp_path):
    shutil.copy(GOLDEN / "zip.bin", tmp_path / "pytorch_model.bin")
    assert "transposed" in read_tensors(tmp_path)
    save_file({"x": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    assert list(read_tensors(tmp_path)) == ["x"]


def test_a_model_that_comes_with_code_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "marian", "auto_map": {"AutoModel": "modeling.Model"}}))
    with pytest.raises(UserError, match=r'auto_map \{"AutoModel": "modeling.Model"\} cannot be used.*never run'):
        Config.read(path)


# Memory

READ = """
import sys
from pathlib import Path
import jax, numpy as np
from rest.model.families.files import fill, read_tensors
from rest.model.network import Network

def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024

layers, folder = int(sys.argv[1]), Path(sys.argv[2])
jax.numpy.zeros(3).block_until_ready()
before = peak()
shapes = {str(i): {"kernel": jax.ShapeDtypeStruct((2048, 1024), np.float32)} for i in range(layers)}
network, left = fill(folder, Network(None, None, shapes), read_tensors(folder), lambda place: place[0])
assert not left and all(leaf[5, 5] == 1 for leaf in jax.tree.leaves(jax.block_until_ready(network.parameters)))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="where the system tells the peak of a process")
def test_reading_holds_the_parameters_once_and_the_file_once(tmp_path):
    # The peak of the process itself: what getrusage gives starts from that of the process that started it.
    layers, part = 24, 2 * 2048 * 1024 / 2**20
    save_file({str(i): np.ones((1024, 2048), np.float16) for i in range(layers)}, tmp_path / "model.safetensors")
    run = [sys.executable, "-c", READ, str(layers), str(tmp_path)]
    taken = float(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    file, parameters = layers * part, 2 * layers * part
    assert parameters < taken < file + 1.5 * parameters  # two float32 copies would be file + 2 * parameters
