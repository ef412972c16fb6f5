"""Several runs on one page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rest.errors import UserError
from rest.report.several import write_comparison


def made(folder: Path, bleu: float) -> Path:
    """A run's folder with the rows of two policies."""
    folder.mkdir(parents=True)
    rows = [
        {"policy": policy, "grow": i, "improve": i, "decode": "sample", "n": 4, "split": "test", "gradient_steps": 9,
         "samples_drawn": 0, "wall_s": 1.0, "metrics": {"bleu": value, "bleu_ci95": [value - 1, value + 1]}}
        for policy, i, value in (("bc", 0, 30.0), ("rest", 1, bleu))
    ]  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(rows))
    return folder


def test_every_policy_of_every_run_is_on_the_page(tmp_path: Path) -> None:
    runs = [made(tmp_path / "one" / "0", 35.0), made(tmp_path / "<two>" / "0", 30.5)]
    found = write_comparison(runs, tmp_path / "page" / "comparison.html")
    assert [line[:2] for line in found.tables[0][1:]] == [
        ["one/0, <two>/0", "BC"],
        ["one/0", "G1 I1"],
        ["<two>/0", "G1 I1"],
    ]
    assert found.sentences[0].startswith(
        "one/0: ReST (G1 I1) translates better than BC: it gained BLEU of greedy outputs."
    )
    assert found.sentences[1].startswith("<two>/0: No gain")
    page = (tmp_path / "page" / "comparison.html").read_text()
    assert page.count("<svg") == 1 and "&lt;two&gt;/0" in page and "<two>" not in page


def test_a_run_without_a_summary_and_one_named_twice_are_refused(tmp_path: Path) -> None:
    run = made(tmp_path / "run", 31.0)
    with pytest.raises(UserError, match="is named twice"):
        write_comparison([run, run], tmp_path / "page.html")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"none: has no summary\.json"):
        write_comparison([run, tmp_path / "none"], tmp_path / "page.html")
