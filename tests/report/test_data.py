"""Pictures of a Grow step's data, and the outputs that reward and metric disagree on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rest.data.corpus import Split
from rest.data.store import ScoredDataset
from rest.evaluation.outputs import Outputs
from rest.report.data import _binned, disputed, section


def test_the_data_of_a_run_is_drawn(scored: ScoredDataset) -> None:
    found = section(scored.folder.parent)
    assert found is not None and not found.tables
    assert [name for _, name, _ in found.figures] == ["lengths", "by-length"]
    assert len(found.figures[1][0].axes) == 2


def test_no_data_is_no_section(tmp_path: Path) -> None:
    assert section(tmp_path) is None


def test_bins_hold_as_many_rows_and_keep_their_order() -> None:
    at, middle = _binned(np.arange(24.0), np.arange(24.0) * 2, 50)
    assert len(at) == 12 and np.allclose(middle, 2 * at) and (np.diff(at) > 0).all()


def test_the_most_disputed_outputs_are_those_whose_ranks_are_furthest_apart() -> None:
    reward, gold = np.array([0.9, 0.5, 0.1, 0.4]), np.array([0.1, 0.5, 0.9, 0.4])
    texts = [["liked"], ["middle"], ["disliked"], ["low"]]
    split = Split("test", np.arange(4), ["a", "b", "c", "d"], None)
    scores = {"reward": reward[:, None].astype(np.float32), "gold": gold[:, None].astype(np.float32)}
    head, first, last = disputed(Outputs(split, texts, scores))
    assert head[4] == "gold"
    assert first == ["a", "liked", "", "0.900", "0.100", "likes it more"]
    assert last == ["c", "disliked", "", "0.100", "0.900", "likes it less"]
    assert disputed(Outputs(split, texts, {"reward": scores["reward"]})) == [[]]
