"""What a run evaluates: it is kept, compared, and joined by other ways of decoding."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rest.__main__ import main
from rest.evaluation.outputs import Outputs
from rest.folder import read_json

TINY = str(Path(__file__).parent.parent / "tiny.py")


def stage(run: Path, name: str) -> dict[str, Any]:
    return read_json(run / name / "stage.json")


def test_what_a_run_evaluates_is_kept_and_compared(finished: Path) -> None:
    folder = finished / "evaluation"
    found = {path.name for path in folder.glob("*-against-*")}
    controls = [path.name for path in folder.glob("bc_continued-*") if "-against-" not in path.name]
    assert found >= {"improve-1-1-against-bc", "improve-1-2-against-bc", "improve-1-2-against-improve-1-1"}
    for control in controls:
        assert found >= {f"improve-1-2-against-{control}", f"{control}-against-bc"}
    result = stage(folder, "improve-1-2-against-improve-1-1")["result"]
    new, old = (Outputs.read(folder / f"improve-1-{i}" / "samples.parquet") for i in (2, 1))
    gained = new.scores["reward"].mean() - old.scores["reward"].mean()
    assert result["tests"]["reward"]["difference"] == pytest.approx(gained, abs=1e-6)
    metrics = stage(folder, "improve-1-2")["result"]["metrics"]
    assert metrics["kl_to_previous"] != metrics["kl_to_bc"] and metrics["entropy"] > 0
    report = (finished / "report.md").read_text()
    assert {"gold_greedy", "bleu_beam", "chrf_beam", "gold_beam", "reward_beam"} < set(result["tests"])
    beam = [Outputs.read(folder / f"improve-1-{i}" / "beam.parquet") for i in (2, 1)]
    gained = beam[0].scores["gold"].mean() - beam[1].scores["gold"].mean()
    assert result["tests"]["gold_beam"]["difference"] == pytest.approx(gained, abs=1e-6)
    assert "Chosen on dev by loss of the references: BC; mean reward of 2 samples a source: BC continued" in report
    assert "## Paired comparisons" in report and "## The text itself" in report


def test_best_of_n_and_other_ways_of_decoding_join_the_run(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    main(["best-of-n", TINY, "--out", str(out), "--policies", "bc", "improve-1-2", "--samples", "2"])
    assert "BC" in capsys.readouterr().out
    drawn = Outputs.read(out / "evaluation" / "best-of-2" / "bc" / "samples.parquet")
    assert drawn.texts == Outputs.read(finished / "evaluation" / "bc" / "samples.parquet").texts  # the same draws
    curve = stage(out / "evaluation" / "best-of-2", "bc")["result"]["curves"]["reward"]["mean"]
    assert curve == pytest.approx([drawn.scores["reward"].mean(), drawn.scores["reward"].max(1).mean()])
    for way in ("best_of_n", "mbr"):
        main(["evaluate", TINY, "--out", str(out), "--policy", "bc", "--decode", way, "--n", "2"])
    rows = json.loads((out / "summary.json").read_text())
    decoded = {row["decode"]: row for row in rows if row["policy"] == "bc"}
    assert set(decoded) == {"sample", "best_of_n", "mbr"} and decoded["mbr"]["n"] == 2
    assert decoded["best_of_n"]["metrics"]["reward_mean"] == pytest.approx(curve[1])
    capsys.readouterr()
    main(["report", str(out)])
    assert (
        "BC, best of 2" in capsys.readouterr().out.replace("\n", " ") and "Best of N" in (out / "report.md").read_text()
    )
    with pytest.raises(SystemExit):
        main(["best-of-n", TINY, "--out", str(out), "--samples", "1"])
    assert "--samples 1: must be at least 2" in capsys.readouterr().err
