"""A reward that another run has learned, read from its folder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rest.errors import UserError
from rest.folder import write_json
from rest.reward.learned.network import LearnedReward
from rest.reward.learned.saved import SavedReward
from rest.reward.reward import Calibration, Reward
from rest.statistics.moses import Detokenizer


def test_a_saved_reward_reads_text_as_its_run_did_and_is_known_by_what_it_gives(lively, batch, corpus, tmp_path):
    learned = LearnedReward.new(lively, batch)
    sources, hypotheses = corpus.dev.sources[:6], [f"{text}'s" for text in (corpus.dev.references or [])[:6]]
    raw = learned(sources, hypotheses, None)
    calibration = Calibration((float(raw.min()) - 1, float(raw.max()) + 1), (0.0, 1.0))
    for run in (tmp_path / "one", tmp_path / "other"):
        run.mkdir()
        write_json(run / "experiment.json", {"cleaning": {"lowercase": True}})
        learned.save(run / "reward" / "network", calibration)
    saved = SavedReward(tmp_path / "one", hypotheses=Detokenizer("en"))
    written = [text.upper() for text in sources], [text.replace("'s", " &apos;s  ") for text in hypotheses]
    np.testing.assert_allclose(Reward(saved)(*written, None).reward, calibration(raw), atol=1e-5)
    np.testing.assert_allclose(replace(saved, raw=True)(*written), raw, atol=1e-5)
    assert saved.identity == replace(saved, folder=tmp_path / "other" / "reward").identity
    others = replace(saved, raw=True), replace(saved, hypotheses=None)
    assert len({saved.identity, *(other.identity for other in others)}) == 3


def test_a_folder_without_a_reward_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=f"{tmp_path}: no learned reward there"):
        SavedReward(tmp_path)(["x"], ["y"])
