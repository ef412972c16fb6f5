"""A study: variants x seeds, what they share made once, by several processes, killed and gone on with."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rest.__main__ import main
from rest.errors import UserError
from rest.experiment import load_experiment, load_variants
from rest.identity import describe
from rest.study import STAGES, Study

ROOT = Path(__file__).resolve().parent.parent
TINY = str(Path(__file__).parent / "tiny.py")
SMALL = ["--bc.train.max-steps", "20", "--grow.sources", "16", "--evaluation.shown", "2"]


def command(out: Path, *seeds: str) -> list[str]:
    return ["study", f"{TINY}:losses", "--out", str(out), "--seeds", *(seeds or ("0", "1")), *SMALL]


def rows(out: Path) -> dict[str, list[dict[str, Any]]]:
    """What every cell showed, without what a clock decides."""
    found = {}
    for path in sorted(out.glob("*/*/summary.json")):
        kept = [{k: v for k, v in row.items() if k != "wall_s"} for row in json.loads(path.read_text())]
        found[path.parent.relative_to(out).as_posix()] = kept
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, made by this process alone."""
    out = tmp_path_factory.mktemp("studies") / "alone"
    main(command(out))
    return out


@pytest.mark.slow
def test_cells_are_runs_and_what_they_share_is_made_once(made: Path, tmp_path: Path) -> None:
    assert set(rows(made)) == {"NLL/0", "NLL/1", "GOLD/0", "GOLD/1"}
    shared = [made / cell / "bc" for cell in ("NLL/0", "GOLD/0")]
    assert shared[0].is_symlink() and shared[0].resolve() == shared[1].resolve()
    assert not os.readlink(shared[0]).startswith("/")  # the study may be moved
    kinds = [path.name.rpartition("-")[0] for path in (made / STAGES).iterdir() if not path.name.startswith(".")]
    assert kinds.count("bc") == kinds.count("grow-1") == kinds.count("evaluation.bc") == 2  # one a seed
    assert kinds.count("improve-1-1") == 4
    evaluated = [json.loads(path.read_text()) for path in (made / STAGES).glob("evaluation.improve-1-1-*/stage.json")]
    # one that kept its start is the policy that another kept too
    assert len({stage["settings"]["policy"] for stage in evaluated}) == len(evaluated) >= 2
    record = json.loads((made / "study.json").read_text())
    assert record["command"].startswith("rest study") and set(record["variants"]) == {"NLL", "GOLD"}
    assert set(record["variants"]["GOLD"]["seeds"]["1"]["stages"]) >= {"bc", "grow-1", "improve-1-1"}
    text = (made / "study.md").read_text()
    assert "| NLL, GOLD | BC | 0 1 |" in text.replace("\\", "") and "| GOLD | G1 I1 | 0 1 |" in text
    assert (made / "study.svg").exists() and (made / "study.png").exists()
    alone = [json.loads((made / f"NLL/{s}/evaluation/improve-1-1-against-bc/stage.json").read_text()) for s in (0, 1)]
    by_seed = [each["result"]["tests"]["chrf"] for each in alone]
    joint = record["variants"]["NLL"]["joint"]["BC"]["chrf"]
    assert joint["difference"] == pytest.approx(sum(each["difference"] for each in by_seed) / 2)
    assert min(each["lo"] for each in by_seed) <= joint["lo"] <= joint["hi"] <= max(each["hi"] for each in by_seed)
    assert "## All seeds together" in text and "| NLL | 0 1 | BC |" in text
    # a cell is a run like any other: it gives what `rest run` gives
    alone = load_variants(f"{TINY}:losses", ["GOLD"])["GOLD"]
    assert describe(load_experiment(f"{TINY}:losses.GOLD")) == describe(alone)
    main(["run", f"{TINY}:losses.GOLD", "--out", str(tmp_path / "run"), "--seed", "1", *SMALL])
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [{k: v for k, v in row.items() if k != "wall_s"} for row in found] == rows(made)["GOLD/1"]


@pytest.mark.slow
def test_two_processes_one_of_them_killed_give_the_same(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "together"

    def start() -> subprocess.Popen[str]:
        run = [sys.executable, "-m", "rest", *command(out, "0")]
        return subprocess.Popen(run, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def wait_for(pattern: str, process: subprocess.Popen[str]) -> None:
        while not list(out.glob(pattern)):
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.01)

    first = start()
    wait_for(f"{STAGES}/.bc-*.partial", first)
    second = start()
    wait_for(f"{STAGES}/grow-1-*", first)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    again = start()
    for process in (second, again):
        _, said = process.communicate()
        assert process.returncode == 0, said
    assert first.stderr is not None
    first.stderr.close()
    assert rows(out) == {cell: found for cell, found in rows(made).items() if cell.endswith("/0")}
    assert not list(out.glob(f"{STAGES}/.*.partial"))


@pytest.mark.slow
def test_a_complete_study_is_shown_and_more_seeds_are_added(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(made, out, symlinks=True)
    stamps = {path: path.stat().st_mtime_ns for path in out.glob(f"{STAGES}/*/stage.json")}
    arguments = command(out)
    main([*arguments, "--machine.rows", "2000"])  # which decides no result
    assert "4 of 4 cells are complete" in " ".join(capsys.readouterr().out.split())
    assert {path: path.stat().st_mtime_ns for path in out.glob(f"{STAGES}/*/stage.json")} == stamps
    place, known = arguments.index("1"), (out / "study.json").read_bytes()
    main([*arguments[:place], "1", "2", *arguments[place + 1 :], "--shown", "--every"])
    assert (out / "study.json").read_bytes() == known
    said = capsys.readouterr()
    assert "4 of 6 cells are complete" in " ".join(said.out.split()) and "study: " not in said.err


@pytest.mark.slow
def test_one_cell_that_fails_does_not_keep_the_others_from_it(tmp_path: Path) -> None:
    given = load_experiment(f"{TINY}:given")
    wrong = load_experiment(f"{TINY}:constant")
    wrong = replace(wrong, reward=replace(wrong.reward, function=replace(wrong.reward.function, score=1.5)))
    small = replace(given, bc=replace(given.bc, train=replace(given.bc.train, max_steps=2)), grow_steps=0)
    with pytest.raises(UserError, match=r"1 of 2 cells failed: wrong, seed 0: .* has no scale"):
        Study({"wrong": wrong, "right": small}, (0,), tmp_path).make()
    assert (tmp_path / "right" / "0" / "summary.json").exists() and not (tmp_path / "wrong" / "0" / "bc").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["study"], "name an experiment first"),
        (["study", f"{TINY}:loses", "--out", "x"], "no experiment named 'loses'; it has"),
        (["study", f"{TINY}:losses", "--out", "x", "--variants", "NLL", "GOULD"], "did you mean 'GOLD'?"),
    ],
)
def test_what_is_no_study_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        main(arguments)
    assert said in capsys.readouterr().err


def test_a_variant_must_be_the_name_of_a_folder(tmp_path: Path) -> None:
    for name in (STAGES, "a/b", ".hidden"):
        with pytest.raises(UserError, match="cannot be the name of a folder"):
            Study({name: load_experiment(TINY)}, (0,), tmp_path)
    with pytest.raises(UserError, match="at least one variant and one seed"):
        Study({}, (0,), tmp_path)
