"""From evaluated outputs to a sheet, and from filled sheets to the report, through the command line."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from rest.__main__ import main
from rest.data.corpus import Split
from rest.evaluation.outputs import Outputs
from rest.report.human import section


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three policies with greedy outputs for twelve sources."""
    split = Split("test", np.arange(12), [f"x{k}" for k in range(12)], None)
    for name, reward in (("bc", 0.5), ("improve-1-1", 0.7), ("improve-1-2", 0.6)):
        folder = tmp_path / "run" / "evaluation" / name
        folder.mkdir(parents=True)
        scores = {"reward": np.full((12, 1), reward, np.float32)}
        Outputs(split, [[f"{name}: {k}"] for k in range(12)], scores).write(folder / "greedy.parquet")
    return tmp_path / "run"


def flags(run: Path, *policies: str, sources: int = 10) -> list[str]:
    files = ["--sheet", str(run / "sheet.csv"), "--key", str(run / "key.json")]
    return ["human-eval", "export", str(run), *files, "--policies", *policies, "--sources", str(sources)]


def test_a_filled_sheet_is_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(flags(run, "improve-1-1", "improve-1-2"))
    assert "20 items" in capsys.readouterr().out and section(run) is None
    with (run / "sheet.csv").open(encoding="utf-8-sig", newline="") as file:
        head, *rows = csv.reader(file)
    worth = {"bc": "2", "improve-1-1": "3", "improve-1-2": "4.5"}
    for row in rows:
        row[4:] = [worth[text.split(":")[0]] for text in row[2:4]]
    with (run / "filled.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    main(["human-eval", "import", str(run), "--key", str(run / "key.json"), "--sheets", str(run / "filled.csv")])
    out = capsys.readouterr().out
    assert "+2.50" in out and "Kendall's τ = -1.00" in out
    found = section(run)
    assert found is not None and [line[0] for line in found.tables[0]] == ["policy", "G1 I2", "G1 I1"]
    assert found.tables[0][1][-2:] == ["1", "2"]


@pytest.mark.parametrize(
    ("policies", "sources", "said"),
    [
        (["improve-1-3"], 10, "rest evaluate --policy improve-1-3"),
        (["bc"], 10, "at least one policy other than bc"),
        (["improve-1-1"], 13, "must be from 1 to 12"),
    ],
)
def test_what_cannot_be_exported(
    run: Path, capsys: pytest.CaptureFixture[str], policies: list[str], sources: int, said: str
) -> None:
    with pytest.raises(SystemExit):
        main(flags(run, *policies, sources=sources))
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (run / "sheet.csv").exists()


def test_a_sheet_is_not_written_over(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(flags(run, "improve-1-1"))
    with pytest.raises(SystemExit):
        main(flags(run, "improve-1-1"))
    assert "may hold somebody's work" in capsys.readouterr().err
