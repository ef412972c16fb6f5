"""What `overview` shows of a small dataset."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rest.data.inspect import _lowest, overview
from rest.data.shards import write_shard
from rest.data.store import ScoredDataset, write_manifest


def shown(dataset: ScoredDataset, rows: int = 2, duplicates: bool = False, width: int = 160) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(overview(dataset, rows, duplicates=duplicates))
    return console.export_text()


def small(folder: Path, rewards: list[float], hypotheses: list[str], samples: int = 99) -> ScoredDataset:
    """One shard: samples of source 7, so many at most, what beam search found and, last, the human pair."""
    n = len(rewards)
    human = [False] * (n - 1) + [True] * (n > 0)
    origin = ["reference" if h else "beam" if i >= samples else "sample" for i, h in enumerate(human)]
    columns = {
        "source_id": np.full(n, 7),
        "sample_index": [-1 if h else i for i, h in enumerate(human)],
        "origin": origin,
        "source": ["ein Hund"] * n,
        "hypothesis": hypotheses,
        "tokens": [[5, 1]] * n,
        "log_probs": [None if by == "reference" else [-0.5, -0.25] for by in origin],
        "behaviour_log_probs": [[-0.5, -0.25] if by == "sample" else None for by in origin],
        "finish": ["length" if i == 0 and n > 1 else "eos" for i in range(n)],
        "raw_score": rewards,
        "reward": rewards,
        "flags": ["repeats" if i == 0 else "" for i in range(n)],
    }
    write_shard(folder, 0, 1, columns)
    write_manifest(folder, settings={}, identities={"policy": "ab" * 32}, seed=3, scale=(0.0, 0.9))
    return ScoredDataset.open(folder)


def test_counts_rewards_flags_and_the_best_and_worst_rows(tmp_path):
    dataset = small(tmp_path, [0.125, 0.5, 0.25, 1.0], ["a a a", "a dog", "one dog", "a dog!"])
    text = shown(dataset)
    for expected in (
        "rows             4",
        "rewards clipped  1",
        "abababababababab",
        "0.2917 ± 0.1559",
        "25.00%",
    ):
        assert expected in text
    best, worst = text.split("Best 2")[1].split("Worst 2")
    assert best.index("1.0000") < best.index("0.5000") and "human" in best and "a a a" not in best
    assert worst.index("0.1250") < worst.index("0.2500") and "repeats" in worst and "a dog!" not in worst
    assert f"0.10 – 0.15   {'█' * 30}  33.3%" in text


def test_what_beam_search_found_has_a_column_of_its_own(tmp_path):
    rewards = [0.1, 0.1, 0.3, 0.7, 0.9, 0.2]
    dataset = small(tmp_path, rewards, ["a", "a", "b", "c", "a", "d"], samples=3)
    text = shown(dataset, duplicates=True, width=116)  # as wide as the command shows it at least
    assert f"0.10 – 0.15   {'█' * 22}  66.7%" in text and "…" not in text
    lines = [line.split() for line in text.splitlines()]
    assert ["samples", "beam", "search", "human", "pairs"] in lines
    assert next(line for line in lines if line[:1] == ["rows"] and len(line) == 4) == ["rows", "3", "2", "1"]
    means = next(line for line in lines if line[:2] == ["reward", "mean"])
    assert [means[at] for at in (4, 7, 10)] == ["0.1667", "0.8000", "0.2000"]
    assert ["0.9000", "7,", "beam", "4", "ein", "Hund", "a"] in lines
    # of samples alone: the sources in dispute, and what repeats another
    assert ["0.3000", "7,", "sample", "2", "ein", "Hund", "b"] in lines
    assert "1 of 3 samples (33.3%) repeat" in text


def test_text_is_shown_as_it_stands(tmp_path):
    text = shown(small(tmp_path, [0.5, 0.5], ["[red]no markup[/]", "bell\x07 \x1b[31mescape"]))
    assert "[red]no markup[/]" in text
    assert "\x07" not in text and "\x1b" not in text


def test_more_rows_than_there_are_and_none_at_all(tmp_path):
    assert "Worst 50" in shown(small(tmp_path, [0.5, 0.5], ["a", "b"]), rows=50)
    (tmp_path / "empty").mkdir()
    assert "rows             0" in shown(small(tmp_path / "empty", [], []))


def test_a_text_that_was_drawn_often_is_shown_once(tmp_path):
    text = shown(small(tmp_path, [0.9, 0.9, 0.9, 0.2], ["good", "good", "good", "bad"]), rows=2)
    best = text.split("Best 2")[1].split("Worst 2")[0]
    assert best.count("good") == 1 and "bad" in best


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1), st.integers(1, 8))
def test_the_lowest_are_those_of_a_stable_sort(values, k):
    array = np.array(values, np.float32)
    np.testing.assert_array_equal(_lowest(array, k), np.argsort(array, kind="stable")[:k])
