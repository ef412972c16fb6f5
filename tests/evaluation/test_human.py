"""Sheets that are filled in by made raters give back what the raters meant, and tell them nothing."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from rest.data.corpus import Split
from rest.errors import UserError
from rest.evaluation.human import export_sheet, import_sheets, krippendorffs_alpha
from rest.evaluation.outputs import Outputs

SOURCES = 50
SPLIT = Split("test", np.arange(SOURCES), [f"source {k}" for k in range(SOURCES)], None)


def outputs(name: str, reward: float) -> Outputs:
    """The first five outputs of every policy are the same."""
    texts = [["same"] if k < 5 else [f"{name}, {k}"] for k in range(SOURCES)]
    return Outputs(SPLIT, texts, {"reward": np.full((SOURCES, 1), reward, np.float32)})


POLICIES = {"bc": outputs("bcx", 0.5), "improve-1-1": outputs("onex", 0.6), "improve-1-2": outputs("twox", 0.7)}
WORTH = {"bcx": 2.0, "onex": 4.0, "twox": 3.0}  # people like the first step best, the reward the second


def fill(sheet: Path, out: Path, seed: int, noise: float = 1.0, share: float = 1.0) -> Path:
    """A rater's sheet: what each output is worth, with noise, on some of the items."""
    rng = np.random.default_rng(seed)
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        head, *rows = csv.reader(file)
    for row in rows:
        if rng.random() <= share:
            scores = [WORTH[text.split(",")[0]] + rng.normal(0, noise) for text in row[2:4]]
            row[4:] = [str(float(np.clip(round(score), 0, 6))) for score in scores]
    with out.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return out


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    count = export_sheet(POLICIES, "bc", SOURCES, 0, tmp_path / "sheet.csv", tmp_path / "key.json")
    assert count == 2 * (SOURCES - 5)
    return tmp_path / "sheet.csv"


def test_outputs_without_rewards_are_refused(tmp_path: Path) -> None:
    bare = {name: Outputs(SPLIT, of.texts, {}) for name, of in POLICIES.items()}
    with pytest.raises(UserError, match="the outputs have no rewards"):
        export_sheet(bare, "bc", SOURCES, 0, tmp_path / "sheet.csv", tmp_path / "key.json")


def test_a_sheet_is_blind(sheet: Path) -> None:
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["item", "source", "output_1", "output_2", "score_1", "score_2"]
    first_is_bc = np.mean([row[2].startswith("bcx") for row in rows])
    assert 0.35 < first_is_bc < 0.65
    policies = ["onex" if any("onex" in text for text in row[2:4]) else "twox" for row in rows]
    assert 30 < sum(a != b for a, b in pairwise(policies)) < 60  # mixed, not in turns
    key = json.loads(sheet.with_name("key.json").read_text())
    for row in rows:
        assert [side == "bc" for side in key["items"][row[0]]["sides"]] == ["bcx" in text for text in row[2:4]]
    assert len(key["equal"]) == 10


def test_the_raters_are_understood(sheet: Path, tmp_path: Path) -> None:
    filled = [fill(sheet, tmp_path / f"{k}.csv", k, share=0.8) for k in range(3)]
    found = import_sheets(filled, tmp_path / "key.json")
    one, two = found.results
    assert (one.policy, two.policy) == ("improve-1-1", "improve-1-2") and found.raters == 3
    assert one.difference == pytest.approx(2 * 45 / 50, abs=0.3) and one.ci95[0] > 0 and one.p < 0.01
    assert two.difference == pytest.approx(1 * 45 / 50, abs=0.3)
    assert two.reward_difference == pytest.approx(0.2)
    assert found.kendall == -1 and found.ranks() == {"improve-1-1": (1, 2), "improve-1-2": (2, 1)}
    assert found.agreement is not None and -0.2 < found.agreement < 0.6
    calm = [fill(sheet, tmp_path / f"calm{k}.csv", k, noise=0.01) for k in range(2)]
    assert import_sheets(calm, tmp_path / "key.json").agreement == pytest.approx(1)
    assert import_sheets(calm[:1], tmp_path / "key.json").agreement is None


def test_a_sheet_that_is_filled_in_part_says_the_same(sheet: Path, tmp_path: Path) -> None:
    whole, part = (
        import_sheets([fill(sheet, tmp_path / f"{share}.csv", 3, noise=0.0, share=share)], tmp_path / "key.json")
        for share in (1.0, 0.25)
    )
    differences = [{result.policy: result.difference for result in found.results} for found in (whole, part)]
    assert differences[1] == pytest.approx(
        differences[0], abs=0.1
    )  # 1.8 and 0.9; of equal outputs as many are left out
    assert part.results[0].items < whole.results[0].items == SOURCES


def test_krippendorffs_alpha_is_that_of_his_example() -> None:
    """Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section E: interval data, α = 0.849."""
    gone = np.nan
    ratings = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, gone, gone, gone],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, gone, 3],
            [gone, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, gone],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, gone],
        ]
    )
    assert krippendorffs_alpha(ratings) == pytest.approx(0.849, abs=5e-4)
    assert krippendorffs_alpha(ratings[:1]) is None and krippendorffs_alpha(np.ones((2, 3))) is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1,x,y,z,7,2", "row 2: score_1 must be a number from 0 to 6, but is '7'"),
        ("1,x,y,z,3,", "row 2: score_2 must be a number from 0 to 6, but is ''"),
        ("1,x,y,z,3,good", "but is 'good'"),
        ("999,x,y,z,3,3", "item '999' is not in the key"),
        ("1,x,y,z", "has 4 columns"),
        ("1,x,y,z,,", "no item has scores"),
        ("1,x,y,z,3,3\n1,x,y,z,3,3", "row 3: item '1' is there twice"),
    ],
)
def test_what_cannot_be_read_is_named(sheet: Path, tmp_path: Path, line: str, said: str) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("item,source,output_1,output_2,score_1,score_2\n" + line + "\n")
    with pytest.raises(UserError, match=said):
        import_sheets([bad], tmp_path / "key.json")


def test_too_many_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="from 1 to 50"):
        export_sheet(POLICIES, "bc", 51, 0, tmp_path / "sheet.csv", tmp_path / "key.json")
