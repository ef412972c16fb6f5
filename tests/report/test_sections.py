"""Which stages of a run's folder its report shows."""

from __future__ import annotations

import json
from pathlib import Path

from rest.identity import describe
from rest.report.sections import stages_of
from rest.thresholds import GlobalPercentile


def test_steps_of_a_longer_run_in_the_same_folder_are_left_out(tmp_path: Path) -> None:
    for name in ("bc", "reward", "grow-1", "improve-1-0", "improve-1-1", "improve-1-2", "grow-2", "improve-2-1", "ppo"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stage.json").write_text("{}")
    assert len(stages_of(tmp_path)) == 9
    rule = describe(GlobalPercentile((50.0,)))
    (tmp_path / "experiment.json").write_text(json.dumps({"grow_steps": 1, "improve": {"rule": rule}}))
    assert [name.folder for name in stages_of(tmp_path, "improve")] == ["improve-1-0", "improve-1-1"]
    assert [name.folder for name in stages_of(tmp_path)] == [
        "bc",
        "reward",
        "grow-1",
        "improve-1-0",
        "improve-1-1",
        "ppo",
    ]
