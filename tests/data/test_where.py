"""Conditions against numpy on the same rows, and what is refused."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest.__main__ import main
from rest.data.shards import write_shard
from rest.data.store import ScoredDataset, write_manifest
from rest.data.where import Condition, rows_where

ROWS = 60


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ScoredDataset:
    """Two shards: ten sources with five samples and the human pair each; every third row is flagged."""
    folder = tmp_path_factory.mktemp("where") / "grow-1"
    folder.mkdir()
    for shard in range(2):
        k = np.arange(30) + 30 * shard
        human = k % 6 == 5
        per_token = [None if h else [-0.5, -0.25] for h in human]
        columns = {
            "source_id": k // 6,
            "sample_index": np.where(human, -1, k % 6),
            "origin": ["reference" if h else "sample" for h in human],
            "source": [f"x{i // 6}" for i in k],
            "hypothesis": [f"y{i % 6 // 2}" for i in k],
            "tokens": [[5, 1]] * 30,
            "log_probs": per_token,
            "behaviour_log_probs": per_token,
            "finish": ["length" if i % 6 == 0 else "eos" for i in k],
            "raw_score": k.astype(np.float32),
            "reward": (k / 64).astype(np.float32),
            "flags": ["copy,repetition" if i % 3 == 0 else "" for i in k],
        }
        write_shard(folder, shard, 2, columns)
    write_manifest(folder, settings={}, identities={"policy": "ab" * 32}, seed=3, scale=(0.0, 64.0))
    found = ScoredDataset.open(folder)
    found.sidecars.write("gold", np.linspace(1, 0, ROWS, dtype=np.float32), {})
    found.sidecars.write("tenth", (np.arange(ROWS) % 10 / 10).astype(np.float32), {})
    return found


K = np.arange(ROWS)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("reward > 0.5 and flags = ''", (K / 64 > 0.5) & (K % 3 != 0)),
        ("reward>=0.5 AND NOT (flags<>'')", (K / 64 >= 0.5) & (K % 3 != 0)),
        ("0.25 < reward <= 0.5", (K / 64 > 0.25) & (K / 64 <= 0.5)),
        ("is_sample and reward > 0.5", (K / 64 > 0.5) & (K % 6 != 5)),
        ("sample_index in (0, 2) or is_reference", np.isin(K % 6, [0, 2, 5])),
        ("source_id not in (0, 1) and not is_truncated", (K // 6 > 1) & (K % 6 != 0)),
        ("gold > reward", np.linspace(1, 0, ROWS, dtype=np.float32) > (K / 64).astype(np.float32)),
        ("origin == 'reference' and length = 2", K % 6 == 5),
        ("hypothesis = 'y = 1'", K < 0),
        ("reward > -1", K >= 0),
        ("tenth = 0.1 or 0.2 >= tenth", K % 10 <= 2),  # as float32, which is what is stored
        ("tenth >= 0.9", K % 10 == 9),
    ],
)
def test_a_condition_is_what_numpy_says(dataset: ScoredDataset, text: str, rows: np.ndarray) -> None:
    np.testing.assert_array_equal(rows_where(dataset, text), rows)


@given(st.integers(0, 64), st.integers(0, 64), st.sampled_from(["<", "<=", ">", ">=", "=", "!="]), st.booleans())
def test_conditions_join_as_sets_do(dataset: ScoredDataset, a: int, b: int, sign: str, both: bool) -> None:
    one, two = rows_where(dataset, f"reward {sign} {a / 64}"), rows_where(dataset, f"raw_score {sign} {b}")
    joined = rows_where(dataset, f"reward {sign} {a / 64} {'and' if both else 'or'} raw_score {sign} {b}")
    np.testing.assert_array_equal(joined, one & two if both else one | two)
    np.testing.assert_array_equal(rows_where(dataset, f"not (reward {sign} {a / 64})"), ~one)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("reward >", "it is not a condition like"),
        ("", "it is not a condition like"),
        ("rewart > 0.5", "there is no column 'rewart' (did you mean reward?); there are source_id"),
        ("flags = 0", "flags is text, compared with quotes; no flag is flags = ''"),
        ("reward = 'high'", "reward is a number, compared without quotes"),
        ("reward + 1 > 2", "'reward + 1' is neither a column, a number nor quoted text"),
        ("reward", "'reward' is not a comparison"),
        ("1 < 2", "needs a column on one of its sides"),
        ("reward in 0.5", "`in` needs a column"),
        ("__import__('os').system('true') = 0", "is neither a column"),
        ("tokens = 1", "there is no column 'tokens'"),
    ],
)
def test_what_is_no_condition_is_one_sentence(
    dataset: ScoredDataset, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    with pytest.raises(SystemExit):
        main(["inspect", str(dataset.folder), "--where", text])
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and error.startswith("rest: --where")


def test_rows_are_shown_and_exported(
    dataset: ScoredDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["inspect", str(dataset.folder), "--source-id", "3", "--where", "flags = ''", "--duplicates"])
    shown = capsys.readouterr().out
    assert "rows looked at   4" in shown and "0 of 3 samples (0.0%) repeat" in shown and "Most disputed" in shown
    for name in ("rows.jsonl", "rows.csv"):
        main(["inspect", str(dataset.folder), "--where", "source_id = 3", "--export", str(tmp_path / name)])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["sample_index"] for row in rows] == [0, 1, 2, 3, 4, -1] and rows[0]["tokens"] == [5, 1]
    assert rows[0]["gold"] == pytest.approx(1 - 18 / 59) and rows[5]["log_probs"] is None
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert len(lines) == 7 and lines[0].startswith("source_id,") and '"[5, 1]"' in lines[1]
    with pytest.raises(SystemExit):
        main(["inspect", str(dataset.folder), "--export", str(tmp_path / "rows.txt")])
    assert "named .jsonl or .csv" in capsys.readouterr().err


def test_disputes_and_duplicates_are_found_across_shards_and_row_groups(
    dataset: ScoredDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["inspect", str(dataset.folder), "--duplicates", "--rows", "1"])
    shown = capsys.readouterr().out
    assert "20 of 50 samples (40.0%) repeat" in shown  # y0 y0 y1 y1 y2 for each source
    disputed = shown.split("Most disputed")[1]
    assert "0.0625" in disputed and "0.0000" in disputed  # source 0's best and worst sample


def test_text_is_quoted_as_in_sql_and_spelt_as_the_run_spells_it(dataset: ScoredDataset) -> None:
    names = ("hypothesis", "flags")
    assert Condition.parse("hypothesis = 'it''s' or flags = \"a\"\"b\"", names).text
    values = [node.value for node in ast.walk(Condition.parse("hypothesis = 'it''s'", names).tree)
              if isinstance(node, ast.Constant)]  # fmt: skip
    assert values == ["it's"]
    assert rows_where(dataset, "hypothesis != 'e\u0301'").all()
