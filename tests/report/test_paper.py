"""The figures of the paper: seeds joined, runs side by side, what is missing said, and the files that are written."""

from __future__ import annotations

import html.parser
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rest.commands.report import report
from rest.data.corpus import Split
from rest.errors import UserError
from rest.evaluation.outputs import Outputs
from rest.report.paper import latex, methods, read_variants, runs_in, write_paper
from rest.report.paper_figures import by_grow, by_improve, by_loss, by_n

NLL = {"type": "rest.learning.losses.NLL"}
ANCHORED = {"type": "rest.learning.losses.Anchored", "loss": {"type": "rest.learning.losses.VMPO", "correction": None}}


def made(folder: Path, steps: dict[tuple[int, int], float], seed: int = 0, loss: Any = NLL) -> Path:
    """A run whose BC has a reward of 0.5, with these rewards of its Improve steps, all 0.01 more by each seed."""
    folder.mkdir(parents=True)
    policies = {("bc", 0, 0): 0.5, ("bc_continued", 0, 0): 0.51} | {("rest", *step): y for step, y in steps.items()}
    rows = [
        {"policy": policy, "grow": g, "improve": i, "decode": "sample", "n": 4, "split": "test", "gradient_steps": 9,
         "samples_drawn": 100 * g, "wall_s": 1.0, "metrics": {"reward_mean": y + seed / 100,
            "reward_ci95": [y - 0.1, y + 0.1], "bleu": 30.0, "bleu_signature": "tok:13a"}}
        for (policy, g, i), y in policies.items()
    ]  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(rows))
    (folder / "experiment.json").write_text(json.dumps({"seed": seed, "improve": {"loss": loss}, "machine": seed}))
    return folder


def test_seeds_are_joined_and_runs_stand_side_by_side(tmp_path: Path) -> None:
    two = {(1, 0): 0.55, (1, 1): 0.6, (1, 2): 0.62, (2, 1): 0.64, (2, 2): 0.65}
    runs = [made(tmp_path / "two" / str(seed), two, seed) for seed in (0, 2)]
    variants = read_variants([*runs, made(tmp_path / "gold" / "0", {(1, 1): 0.7}, loss=ANCHORED)])
    assert [variant.title for variant in variants] == ["two, 2 seeds", "gold"]

    figure = by_improve(variants)
    assert figure is not None
    left, right = figure.axes
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["BC", "I0", "I1", "I2"]
    drawn = [[*map(float, np.round(line.get_ydata(), 3))] for line in left.lines]
    assert [0.51, 0.61, 0.63] in drawn and [0.65, 0.66] in drawn  # means over seeds, of G1 from BC on and of G2
    assert [0.5, 0.6, 0.62] in drawn and [0.52, 0.62, 0.64] in drawn  # each seed
    assert {text.get_text() for text in left.texts} == {"BC continued", "G1", "G2"}
    low, high = left.get_ylim()  # as the last panel left it
    heights = {text.get_text(): text.get_position()[1] for text in left.texts}
    assert heights["BC continued"] == pytest.approx((0.52 - low) / (high - low))  # beside what it names
    assert len(left.collections) == 0 and len(right.collections) == 2  # intervals over sources, of a single seed

    figure = by_grow(variants)
    assert figure is not None
    assert [*np.round(figure.axes[0].lines[0].get_ydata(), 3)] == [0.51, 0.63, 0.66]
    figure = by_loss(variants)
    assert figure is not None
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == [
        "gold: Anchored(VMPO)",
        "two, 2 seeds: NLL",
    ]
    assert [(line.variants, line.label, [*line.rows]) for line in methods(variants)] == [
        (("two",), "BC", [0, 2]),
        (("two",), "BC continued", [0, 2]),
        (("two",), "ReST G1 I0", [0, 2]),
        (("two",), "ReST G1 I2", [0, 2]),
        (("two",), "ReST G2 I2", [0, 2]),
        (("gold",), "BC", [0]),
        (("gold",), "BC continued", [0]),
        (("gold",), "ReST G1 I1", [0]),
    ]


def test_the_best_of_n_has_a_row_an_experiment(tmp_path: Path) -> None:
    runs = [made(tmp_path / name, {(1, 1): 0.6}, seed) for name, seed in (("a", 0), ("b", 1))]
    reward = np.array([[0.0, 1.0], [0.5, 0.5]], np.float32)
    for run, better in zip(runs, (0.0, 0.2), strict=True):
        folder = run / "evaluation" / "best-of-2" / "bc"
        folder.mkdir(parents=True)
        split = Split("test", np.arange(2), ["x", "y"], None)
        Outputs(split, [["p", "q"]] * 2, {"reward": reward * (1 - better) + better}).write(folder / "samples.parquet")
        (folder / "stage.json").write_text("{}")
    figure = by_n(read_variants(runs))
    assert figure is not None
    (axes,) = figure.axes
    np.testing.assert_allclose([line.get_ydata() for line in axes.lines], [[0.55, 0.775], [0.5, 0.75], [0.6, 0.8]])
    assert by_n(read_variants([made(tmp_path / "c", {})])) is None


def test_what_a_study_holds(tmp_path: Path) -> None:
    cells = [made(tmp_path / "study" / name / "0", {(1, 1): 0.6}) for name in ("nll", "gold")]
    with pytest.raises(UserError, match=r"study: is no run, and no study with a complete one"):
        runs_in([tmp_path / "study"])
    (cells[0] / "complete.json").write_text("{}")
    assert runs_in([tmp_path / "study"]) == ([cells[0]], ["Of study, 1 of 2 runs are not complete."])
    assert runs_in(cells) == (cells, [])
    with pytest.raises(UserError, match=r"nll/0 and .*gold/0 have the same settings and seed"):
        read_variants(cells)
    (cells[0] / "summary.json").unlink()
    with pytest.raises(UserError, match=r"nll/0: has no summary\.json"):
        read_variants(cells)


def test_what_is_written_and_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "paper"
    out.mkdir()
    (out / "figure-4.svg").write_text("of other runs")
    said = write_paper(read_variants([made(tmp_path / "<run>_1", {(1, 1): 0.6})]), out, ["Left out."])
    names = ["figure-3.pdf", "figure-3.svg", "paper.html", "table-1.md", "table-1.tex"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert said[0] == "Left out." and said[-1] == "BLEU: tok:13a"
    for missing, setting in (
        ("Figure 4", "--grow-steps 2"),
        ("Figure 5", "improve.loss"),
        ("Figure 6", "rest best-of-n"),
        ("I0", "improve.unfiltered"),
        ("PPO", "--ppo.rollouts"),
    ):
        assert any(missing in line and setting in line for line in said), missing
    page = (out / "paper.html").read_text()
    html.parser.HTMLParser().feed(page)
    assert page.count("<svg") == 1 and "Figure 3." in page and "&lt;run&gt;_1" in page and "<run>" not in page
    assert r"\<run\>" not in (out / "table-1.md").read_text() and "ReST G1 I1" in (out / "table-1.md").read_text()
    assert r"<run>\_1 & ReST G1 I1 & 0 & 0.600 [0.500--0.700] & 30.0 & 100 \\" in (out / "table-1.tex").read_text()
    without = write_paper(read_variants([made(tmp_path / "bc", {})]), out)
    assert any(line.startswith("Figure 3") for line in without) and not (out / "figure-3.svg").exists()


def test_marks_of_latex_lose_their_meaning() -> None:
    assert latex([["a", "b"], ["50 %", r"\x_{1}"]]).splitlines()[4] == r"50 \% & \textbackslash{}x\_\{1\} \\"


def test_the_command_draws_a_run(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(finished, tmp_path / "tiny")
    report([str(run), "--paper", "--out", str(tmp_path / "paper")])
    shown = capsys.readouterr().out
    assert "Table 1" in shown and "ReST G1" in shown and "Figure 4, reward by Grow step, is left out" in shown
    assert (tmp_path / "paper" / "figure-3.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(UserError, match="not for --paper"):
        report([str(run), "--paper", "--live", "1"])
