"""What stages read: which text is used where."""

from pathlib import Path

import numpy as np
import pytest

from rest import load_experiment, open_dataset
from rest.__main__ import main
from rest.model.families.huggingface import HuggingFaceModel
from rest.reward.learned.encoder import HuggingFaceEncoder
from rest.runs import Run
from rest.stages.inputs import fetched

TINY = str(Path(__file__).parent.parent / "tiny.py")


def test_grow_uses_no_source_that_was_rated(finished: Path) -> None:
    inputs = Run(load_experiment(TINY), finished).inputs
    grown, rated = inputs.parts.grow, inputs.parts.rated
    assert not np.intersect1d(grown.ids, rated.ids).size and len(rated) == 60
    assert len(grown) + len(rated) == len(inputs.train)
    drawn = np.unique(open_dataset(finished / "grow-1").columns(["source_id"])["source_id"])
    assert np.isin(drawn, grown.ids).all() and len(drawn) == 64


def test_too_many_rated_sources_leave_none_for_grow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", TINY, "--out", str(tmp_path), "--reward.sources", "500", "--bc.train.max-steps", "1"])
    assert "reward.sources 500" in capsys.readouterr().err


def test_a_stage_knows_the_commit_that_it_started_from(tmp_path: Path) -> None:
    for commit, known in {"0123abcd" * 5: {"start_commit": "0123abcd" * 5}, "by-hand": {}}.items():
        folder = tmp_path / "models--some-org--tiny-model" / "snapshots" / commit
        folder.mkdir(parents=True)
        for model in (HuggingFaceModel(folder), HuggingFaceEncoder(folder)):
            assert fetched(model) == known
    assert fetched(load_experiment(TINY).model) == fetched(None) == {}
