"""PPO as a stage of a run: it stands beside the others, and says which sources it shares with them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rest.__main__ import main
from rest.errors import UserError
from rest.experiment import load_experiment
from rest.folder import read_json
from rest.grow import grow_sources
from rest.stages import ppo
from rest.stages.inputs import Inputs

TINY = str(Path(__file__).parent.parent / "tiny.py")


def test_ppo_stands_beside_the_others_and_its_sources_are_recorded(finished, tmp_path, capsys):
    for name in ("bc", "reward", "evaluation"):
        shutil.copytree(finished / name, tmp_path / name)
    with pytest.raises(SystemExit):
        main(["ppo", TINY, "--out", str(tmp_path)])
    assert "ppo.rollouts is 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # no ratio can be taken of what a truncated distribution drew
        main(["ppo", f"{TINY}:ppo", "--out", str(tmp_path), "--ppo.rollout.top-p", "0.5"])
    assert "Unrecognized options: --ppo.rollout.top-p" in capsys.readouterr().err
    main(["run", f"{TINY}:ppo", "--out", str(tmp_path)])
    result = read_json(tmp_path / "ppo" / "stage.json")["result"]
    assert result["sources"]["ratings and ppo"] == 0 and result["sources"]["bc and ppo"] == result["sources"]["ppo"]
    assert result["gradient_steps"] > 0
    rows = {row["policy"]: row for row in read_json(tmp_path / "summary.json")}
    assert [policy for policy in rows if policy != "bc_continued_last"] == ["bc", "bc_continued", "ppo"]
    assert rows["ppo"]["chosen_by"] == result["chosen_by"] == "mean reward of 2 samples a source"
    assert rows["ppo"]["gradient_steps"] == rows["bc_continued"]["gradient_steps"] == 60 + result["gradient_steps"]
    assert rows["ppo"]["samples_drawn"] == 4 * 32
    assert not (tmp_path / "ppo" / "checkpoints").exists()


def test_bc_reward_and_ppo_can_have_sources_of_their_own(tmp_path):
    inputs = Inputs(replace(load_experiment(f"{TINY}:ppo"), bc_share=0.5), tmp_path)
    shared = ppo._overlap(inputs)
    assert [shared[f"{a} and {b}"] for a, b in (("bc", "ratings"), ("bc", "ppo"), ("ratings", "ppo"))] == [0, 0, 0]
    assert shared["bc"] + shared["ratings"] + shared["ppo"] == len(inputs.train)
    with pytest.raises(UserError, match=r"bc_share must be above 0 and at most 1, not 1\.5"):
        replace(load_experiment(TINY), bc_share=1.5)


def test_ppo_can_draw_for_the_sources_of_a_grow_step_of_as_many(tmp_path):
    e = load_experiment(f"{TINY}:ppo")
    inputs = Inputs(replace(e, ppo=replace(e.ppo, sources=40)), tmp_path)
    grown = grow_sources([inputs.parts.grow], 40, 1, e.seed)[0]
    assert ppo._sources(inputs).ids.tolist() == grown.ids.tolist() and len(grown) == 40
    everything = ppo._sources(Inputs(e, tmp_path))
    assert everything.ids.tolist() == inputs.parts.grow.ids.tolist()
    with pytest.raises(UserError, match=r"ppo.sources 3 are fewer than ppo.rollout.sources"):
        replace(e.ppo, sources=3)
