"""What is under way, in a run's own folder and in the one that the runs of a study share."""

from __future__ import annotations

import json
from pathlib import Path

from rest.report.page import write_waiting
from rest.report.under_way import section


def begun(folder: Path, seed: int, loss: float) -> None:
    """A stage that is half made."""
    folder.mkdir(parents=True)
    (folder / "stage.json").write_text(json.dumps({"settings": {"seed": seed}}))
    numbers = {"step": 10, "time": 1.7e9, "loss": loss}
    (folder / "metrics.jsonl").write_text(json.dumps(numbers) + "\n" + '{"step": 11, "ti')


def test_a_run_of_a_study_shows_what_is_made_for_its_seed(tmp_path: Path) -> None:
    run = tmp_path / "variant" / "0"
    run.mkdir(parents=True)
    assert section(run) is None
    (run / "experiment.json").write_text('{"seed": 0}')
    begun(tmp_path / "stages" / ".improve-1-2-0123456789abcdef.partial", 0, 0.25)
    begun(tmp_path / "stages" / ".bc-fedcba9876543210.partial", 1, 0.5)
    begun(run / ".bc.partial", 0, 0.75)
    found = section(run)
    assert found is not None
    assert [line[:2] for line in found.tables[0][1:]] == [["bc", "10"], ["improve-1-2", "10"]]
    assert found.tables[0][2][3] == "loss 0.250"


def test_a_run_without_an_evaluated_policy_has_a_page_too(tmp_path: Path) -> None:
    page = write_waiting(tmp_path, 30.0)
    assert "No stage has recorded anything yet." in page.read_text() and 'content="30"' in page.read_text()
    begun(tmp_path / ".bc.partial", 0, 0.5)
    assert "loss 0.500" in write_waiting(tmp_path, 30.0).read_text()
