"""A run ends with a report, whatever ends it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rest.commands.run import reported
from rest.errors import UserError


def test_what_ends_a_run_leaves_the_report_of_what_is_complete(finished: Path, tmp_path: Path) -> None:
    for nothing in (tmp_path / "none",):
        with pytest.raises(UserError), reported(nothing):
            raise UserError("the reward raised")
        assert not nothing.exists()
    for name in ("bc", "evaluation/bc"):
        shutil.copytree(finished / name, tmp_path / name)
    with pytest.raises(UserError, match="the reward raised"), reported(tmp_path):
        raise UserError("the reward raised")
    assert "No ReST policy was evaluated" in (tmp_path / "report.html").read_text()
