"""What the report says of paired comparisons and of an alarm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rest.report.comparisons import read, section


def store(run: Path, new: str, old: str, fell: list[str]) -> None:
    test = {"difference": 0.05, "lo": 0.01, "hi": 0.09, "p_bootstrap": 0.02, "p_randomisation": 0.0005}
    row: dict[str, Any] = {"source_id": 3, "source": "x", "reference": None, "old": "y", "new": "y y y"}
    rows = [row | {"reward": [0.5, 0.75], "gold": [0.5, 0.25]}] if fell else []
    folder = run / "evaluation" / f"{new}-against-{old}"
    folder.mkdir(parents=True)
    result = {
        "tests": {"reward": test, "chrf": test, "chrf_beam": test},
        "fell": fell,
        "rows": rows,
        "new": new,
        "old": old,
    }
    (folder / "stage.json").write_text(json.dumps({"settings": {}, "result": result}))


def test_an_alarm_is_said_and_shown(tmp_path: Path) -> None:
    store(tmp_path, "improve-1-10", "bc", ["gold", "chrf"])
    store(tmp_path, "improve-1-2", "bc", [])
    found = section(tmp_path)
    assert found is not None
    warning, explained = found.sentences
    assert "Reward, gold and judge are those of samples" in explained
    assert warning.startswith("Warning: G1 I10 against BC: the reward rose while gold and chrF got worse")
    assert "randomisation" in explained
    head, first, second = found.tables[0]
    assert head == ["policy", "against", "chrF", "chrF, beam", "reward", "alarm"]
    assert first[0] == "G1 I2" and first[-1] == "" and second[-1] == "reward up, gold, chrF worse"
    assert first[4] == "+0.0500 [+0.0100 to +0.0900] p = 0.020 / <0.001"
    assert found.tables[1][1] == ["x", "y", "y y y", "0.5 → 0.75", "0.5 → 0.25"]


def test_a_comparison_that_is_being_made_is_left_alone(tmp_path: Path) -> None:
    store(tmp_path, "bc_continued-40", "bc", [])
    partial = tmp_path / "evaluation" / ".improve-1-1-against-bc.partial"
    partial.mkdir()
    (partial / "stage.json").write_text('{"settings": {}}')
    assert len(read(tmp_path)) == 1


def test_without_an_alarm_there_is_no_warning(tmp_path: Path) -> None:
    assert section(tmp_path) is None
    store(tmp_path, "bc_continued-40", "bc", [])
    found = section(tmp_path)
    assert found is not None and len(found.tables) == len(found.sentences) == 1


def test_only_the_last_control_is_shown(tmp_path: Path) -> None:
    for control in ("bc_continued-80", "bc_continued-80-last", "bc_continued-200", "bc_continued-200-last"):
        store(tmp_path, control, "bc", [])
        store(tmp_path, "improve-1-1", control, [])
    assert [(one["new"], one["old"]) for one in read(tmp_path)] == [
        ("bc_continued-200", "bc"),
        ("bc_continued-200-last", "bc"),
        ("improve-1-1", "bc_continued-200"),
        ("improve-1-1", "bc_continued-200-last"),
    ]


def test_the_control_of_a_shorter_run_is_that_of_its_steps(tmp_path: Path) -> None:
    for g, control in ((1, 300), (2, 600)):
        store(tmp_path, f"improve-{g}-1", f"bc_continued-{control}", [])
        (tmp_path / f"improve-{g}-1").mkdir()
        (tmp_path / f"improve-{g}-1" / "stage.json").write_text(json.dumps({"result": {"gradient_steps": 300}}))
    assert [result["old"] for result in read(tmp_path)] == ["bc_continued-600"]
    (tmp_path / "experiment.json").write_text(json.dumps({"grow_steps": 1}))
    assert [result["old"] for result in read(tmp_path)] == ["bc_continued-300"]


def test_those_by_the_newest_reward_are_shown(tmp_path: Path) -> None:
    store(tmp_path, "improve-1-1", "bc", [])
    (tmp_path / "evaluation").rename(tmp_path / "evaluation-2")
    store(tmp_path, "improve-1-2", "bc", [])
    assert [one["new"] for one in read(tmp_path)] == ["improve-1-1"]
