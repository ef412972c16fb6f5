"""What is kept of how a result was made."""

import re
import subprocess
from pathlib import Path

import pytest

from rest.report import record
from rest.report.record import made_with, without_paths


def test_the_commit_is_that_of_the_clone_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = made_with("rest run it")
    assert known["command"] == "rest run it" and re.fullmatch("[0-9a-f]{40}|None", str(known["commit"]))
    # installed into somebody's own repository
    file = tmp_path / ".venv" / "rest" / "report" / "record.py"
    file.parent.mkdir(parents=True)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    ask = ["git", "-c", "user.name=a", "-c", "user.email=b", "commit", "--quiet", "--allow-empty", "-m", "theirs"]
    subprocess.run(ask, cwd=tmp_path, check=True)
    monkeypatch.setattr(record, "__file__", str(file))
    assert made_with("")["commit"] is None


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert made_with("")["commit"] is None


def test_of_a_path_the_last_part_is_kept() -> None:
    assert without_paths({"/a/b": ["/c/d.txt", "e/f", 3]}) == {"b": ["d.txt", "e/f", 3]}
