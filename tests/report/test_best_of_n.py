"""Best-of-N of several policies of a made run: the table, the words about crossings, the page."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path

import numpy as np
import pytest

from rest.data.corpus import Split
from rest.errors import UserError
from rest.evaluation.outputs import Outputs
from rest.report.best_of_n import lines, read_curves, section, sentences
from rest.report.page import write_report

SOURCES = 200


def store(run: Path, name: str, reward: np.ndarray, gold: np.ndarray) -> None:
    n = reward.shape[1]
    folder = run / "evaluation" / f"best-of-{n}" / name
    folder.mkdir(parents=True)
    split = Split("test", np.arange(SOURCES), [f"x{k}" for k in range(SOURCES)], None)
    texts = [[f"y{k} <{j}>" for j in range(n)] for k in range(SOURCES)]
    Outputs(split, texts, {"reward": reward, "gold": gold}).write(folder / "samples.parquet")
    (folder / "stage.json").write_text("{}")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """BC's rewards are uniform, each sample of the last step is as the best of two of them; its gold falls."""
    rng = np.random.default_rng(0)
    for name, power in (("improve-1-2", 2.0), ("improve-1-10", 2.0), ("bc", 1.0)):
        reward = rng.uniform(size=(SOURCES, 8)) ** (1 / power)
        store(tmp_path, name, reward, reward / 2 if name == "bc" else 0.9 - reward / 2)
    return tmp_path


def test_outputs_are_read_as_they_were_written(tmp_path: Path) -> None:
    split = Split("test", np.array([4, 9]), ["a", "b"], ["A", "B"])
    scores = {"reward": np.array([[0.5, 0.25], [1, 0]], np.float32)}
    Outputs(split, [["p", ""], ["r", "s"]], scores).write(tmp_path / "samples.parquet")
    found = Outputs.read(tmp_path / "samples.parquet")
    assert found.texts == [["p", ""], ["r", "s"]] and found.split.references == ["A", "B"]
    assert found.split.ids.tolist() == [4, 9] and found.split.sources == ["a", "b"]
    np.testing.assert_array_equal(found.scores["reward"], scores["reward"])
    (tmp_path / "samples.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"samples\.parquet cannot be read"):
        Outputs.read(tmp_path / "samples.parquet")


def test_policies_stand_in_the_order_of_the_run(run: Path) -> None:
    policies = read_curves(run)
    assert [policy.name.folder for policy in policies] == ["bc", "improve-1-2", "improve-1-10"]
    head, *rows = lines(policies)
    assert head[:4] == ["policy", "N", "reward", "gold"] and "bound" in head[-1]
    assert [row[1] for row in rows[:4]] == ["1", "2", "4", "8"] and rows[-1][0] == "G1 I10"
    assert rows[1][-1] == "0.19" and rows[1][4] == "66.7%"


def test_what_is_exactly_right_has_columns_of_its_own(tmp_path: Path) -> None:
    gold = np.tile(np.array([1.0, 0.5, 0.5, 0.5], np.float32), (SOURCES, 1))
    store(tmp_path, "bc", np.ones((SOURCES, 4), np.float32), gold)
    head, *rows = lines(read_curves(tmp_path))
    one = head.index("exactly right: one of N (pass@N)")
    assert [row[one] for row in rows] == ["25.0%", "50.0%", "100.0%"]
    assert rows[-1][head.index("the most frequent of N (maj@N)")] == "25.0%"


def test_crossings_in_words(run: Path) -> None:
    said = sentences(read_curves(run))
    assert any(
        line.startswith("BC reaches the reward that G1 I10 has at N = 1 (0.6") and "at N = 2" in line for line in said
    )
    assert any(line.startswith("Caution: G1 I10's gold is highest at N = 1 ") for line in said)
    assert not any(line.startswith("Caution: BC") for line in said)


def test_the_largest_number_of_samples_is_shown(run: Path) -> None:
    store(run, "bc", np.full((SOURCES, 12), 0.5), np.full((SOURCES, 12), 0.5))
    bc = read_curves(run)[0]
    assert len(bc.curves["reward"].mean) == 12
    assert (
        sum("BC" in line and "does not reach" in line for line in sentences(read_curves(run))) == 2
    )  # reward and gold


def test_the_report_shows_it(run: Path) -> None:
    row = {"policy": "bc", "grow": 0, "improve": 0, "split": "test", "metrics": {"reward_mean": 0.5}}
    (run / "summary.json").write_text(json.dumps([row]))
    page = write_report(run).read_text()
    html.parser.HTMLParser().feed(page)
    assert "<h2>Best of N samples</h2>" in page and page.count("<svg") >= 1 and "at most" in page
    assert "## Best of N samples" in (run / "report.md").read_text()
    assert section(run / "evaluation") is None
