"""The pace of trainings, from what they recorded."""

import json
from pathlib import Path

from rest.report.pace import section


def test_the_last_numbers_of_each_training(tmp_path: Path) -> None:
    assert section(tmp_path) is None
    speed = "pace/tokens_per_second_per_device"
    lines = [
        {"step": 10, speed: 900.0, "pace/lost_to_data": 0.5},
        {"step": 20, speed: 1234.5, "pace/lost_to_data": 0.1},
    ]
    for folder, found in {"bc": [*lines, {"step": 30, "loss": 1.0}], "improve-1-1": [{"step": 1, "loss": 2.0}]}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "stage.json").write_text("{}")
        (tmp_path / folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, found)) + '\n{"step": 40, "pace/')
    found = section(tmp_path)
    assert found is not None
    [[head, *rows]] = found.tables
    assert head[:3] == ["stage", "tokens/s a device", "of the devices' peak"]
    assert rows == [["bc", "1,234", "", "10.0%", "", "", "", ""]]
