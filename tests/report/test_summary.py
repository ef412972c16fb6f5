"""Rows of summary.json, from a real run."""

import json
import shutil
from pathlib import Path

import pytest

from rest.errors import UserError
from rest.folder import read_json
from rest.report.summary import summarise


def test_rows_count_everything_spent_on_the_way_to_a_policy(finished: Path) -> None:
    rows = {(row["policy"], row["improve"]): row for row in read_json(finished / "summary.json")}
    steps = {key: row["gradient_steps"] for key, row in rows.items()}
    assert steps[("bc", 0)] == 60
    assert steps[("rest", 0)] == steps[("rest", 1)] == 80  # the side branch starts from BC, as Improve 1 does
    assert steps[("rest", 2)] == steps[("bc_continued", 0)] == 100
    assert {key: row["samples_drawn"] for key, row in rows.items() if key[0] == "rest"} == {
        ("rest", i): 192 for i in (0, 1, 2)
    }
    assert rows[("bc", 0)]["samples_drawn"] == rows[("bc_continued", 0)]["samples_drawn"] == 0
    assert rows[("rest", 2)]["wall_s"] > rows[("rest", 1)]["wall_s"] > rows[("bc", 0)]["wall_s"] > 0


def test_samples_stand_side_by_side(finished: Path) -> None:
    shown = json.loads((finished / "evaluation" / "samples.json").read_text())
    assert len(shown) == 4
    for row in shown:
        policies = [output["policy"] for output in row["outputs"] if output["policy"] != "BC continued, last"]
        assert policies == ["BC", "BC continued", "G1 I0", "G1 I1", "G1 I2"]
        assert all(0 <= output["reward"] <= 1 and 0 <= output["gold"] <= 1 for output in row["outputs"])


def test_a_run_without_evaluations_is_refused(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "bc", tmp_path / "bc")
    with pytest.raises(UserError, match="no policy has been evaluated"):
        summarise(tmp_path)
    shutil.copytree(finished / "evaluation" / "bc", tmp_path / "evaluation" / "bc")
    assert [row["policy"] for row in summarise(tmp_path)] == ["bc"]
