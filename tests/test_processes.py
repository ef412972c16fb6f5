"""Two processes of two devices each make what one device makes, divide the work, and end together."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rest import processes
from rest.processes import packed, unpacked
from tests.several import CASES, ONE, Parts

HERE = Path(__file__).resolve().parent
LOCAL = HERE.parent / "scripts" / "launch" / "local.py"
pytestmark = pytest.mark.slow


def launched(devices: int, *command: object, count: int = 2) -> "subprocess.CompletedProcess[str]":
    """Some processes of a Python script."""
    group = [sys.executable, LOCAL, "--processes", count, "--devices", devices, sys.executable, *command]
    here = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    return subprocess.run([str(part) for part in group], capture_output=True, text=True, env=here)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left."""
    out = tmp_path_factory.mktemp("several")
    ended = launched(2, HERE / "several.py", out)
    assert ended.returncode == 0, ended.stderr
    return out


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts()


@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_one_device(case: str, found: dict[str, Any], parts: Parts) -> None:
    losses = found[f"{case}, {CASES[case]}"]
    np.testing.assert_allclose(losses, parts.losses(case, ONE), atol=2e-5)
    assert len(set(losses)) == len(losses)


def test_a_checkpoint_goes_on_on_other_devices(
    found: dict[str, Any], folder: Path, parts: Parts, tmp_path: Path
) -> None:
    undisturbed = parts.trained(tmp_path / "undisturbed", ONE, 4)
    assert [step for step, _ in undisturbed] == [0, 2, 4] and undisturbed[2][1] > undisturbed[1][1]
    np.testing.assert_allclose(found["trained"], undisturbed[:2], atol=2e-5)
    for devices in "one", "four":
        shutil.copytree(folder / "bc", tmp_path / devices / "bc")
    np.testing.assert_allclose(parts.trained(tmp_path / "one" / "bc", ONE, 4), undisturbed, atol=2e-5)
    ended = launched(4, HERE / "several.py", tmp_path / "four", "on", count=1)
    assert ended.returncode == 0, ended.stderr
    np.testing.assert_allclose(json.loads((tmp_path / "four" / "on.json").read_text()), undisturbed, atol=2e-5)


def test_what_is_drawn_and_scored_is_what_one_process_draws_and_scores(found: dict[str, Any], parts: Parts) -> None:
    drawn, scored = parts.drawn(ONE), parts.scored()
    assert found["scored"]["rewards"] == scored["rewards"]
    np.testing.assert_allclose(found["scored"]["scored"], scored["scored"], atol=2e-5)
    for divided in found["drawn"], found["drawn by parts"]:  # a whole network on every device, or one on two
        assert {name: divided[name] for name in drawn if name != "log_probs"} == {
            name: drawn[name] for name in drawn if name != "log_probs"
        }
        np.testing.assert_allclose(divided["log_probs"], drawn["log_probs"], atol=2e-5)


def test_nobody_waits_while_another_works(found: dict[str, Any]) -> None:
    a_source, a_batch = 2, 40  # 8 rows of some pairs each
    for rows, most in (("sampled", a_source), ("decoded", 1), ("rewarded", 1), ("scored", a_batch)):
        one, other = (each[rows] for each in found["work"])
        assert abs(one - other) <= most and min(one, other) > 0, rows


def test_what_they_tell_each_other_is_exact_and_mistakes_are_everybodys(found: dict[str, Any]) -> None:
    assert found["exact"] == [True, True]
    assert found["refused"] == [
        "machine.fsdp 3 x machine.model 1: 4 devices cannot be divided by 3",
        "batch: 6 rows cannot be divided over 4 devices; change batch_tokens",
        "a mistake of one",
    ]


END = """
import os, signal, sys, time
from rest import processes
from rest.errors import UserError
me, case = int(os.environ["REST_PROCESS"]), sys.argv[1]
processes.join()
try:
    if me != int(sys.argv[2]):
        processes.wait_for_all()
    if case == "mistake":
        raise UserError("the line is empty")
    if case == "crash":
        raise ValueError("out of order")
    os.kill(os.getpid(), signal.Signals[case])
    time.sleep(600)
except UserError as error:
    processes.end(processes.MISTAKE, f"rest: {error}")
except Exception:
    processes.crash()
"""


@pytest.mark.parametrize(
    ("case", "process", "status", "said"),
    [
        ("mistake", 1, 1, "rest: the line is empty"),
        ("crash", 0, 70, "ValueError: out of order"),
        ("SIGTERM", 1, 143, processes.STOPPED_TEXT),
    ],
)
def test_the_end_of_one_is_the_end_of_all_and_said_once(case: str, process: int, status: int, said: str) -> None:
    ended = launched(1, "-c", END, case, process)
    assert ended.returncode == status
    lines = ended.stderr.splitlines()
    assert [line for line in lines if said in line] == [f"[{process}] {said}"]
    assert sorted(line for line in lines if "ended with status" in line) == [
        f"[{each}] ended with status {status}" for each in (0, 1)
    ]


def test_an_end_of_all_together_is_orderly_however_soon_it_comes() -> None:
    ended = launched(1, "-c", "from rest import processes; processes.join(); processes.leave()")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_one_process_is_the_plain_thing(tmp_path: Path) -> None:
    assert (processes.index(), processes.count(), processes.talks(), processes.several()) == (0, 1, True, False)
    assert processes.exchange([1]) == [[1]] and processes.lead(lambda: (2,)) == (2,)
    assert processes.divided(5, lambda own: list(range(5))[own]) == [[0, 1, 2, 3, 4]]
    processes.visible(tmp_path)


def test_what_is_packed_comes_back() -> None:
    given = {"a": [np.float32(1.5), None, "é", True], "b": {"c": np.ones((2, 3), np.float16)}, "n": float("inf")}
    assert unpacked(packed(given))["a"] == [1.5, None, "é", True]
    back = unpacked(packed(given | {"rows": [np.arange(2), np.arange(0)], "one": [np.arange(3.0)]}))
    assert back["b"]["c"].dtype == np.float16 and back["b"]["c"].shape == (2, 3) and back["n"] == float("inf")
    assert [row.tolist() for row in back["rows"]] == [[0, 1], []] and back["one"][0].tolist() == [0, 1, 2]


def test_a_single_process_ends_as_one_of_several_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="70"):
        try:
            raise ValueError("out of order")
        except ValueError:
            processes.crash()
    assert "ValueError: out of order" in capsys.readouterr().err
