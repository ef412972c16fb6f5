"""Grow as a stage of a run: what decides its rows, and what does not."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rest import (
    FurtherSamples,
    MachineSettings,
    Reward,
    SamplingOverrides,
    ScoredDataset,
    UserError,
    load_experiment,
    open_dataset,
)
from rest.folder import StageName
from rest.runs import Run

TINY = load_experiment(str(Path(__file__).parent.parent / "tiny.py"))
BC = StageName("bc")


def copied(finished: Path, out: Path, *stages: str) -> Path:
    for name in stages:
        shutil.copytree(finished / name, out / name)
    return out


def rows(dataset: ScoredDataset, *names: str) -> list[list[Any]]:
    return [[value for batch in dataset.batches([name]) for value in batch[name].to_pylist()] for name in names]


def test_a_grow_step_that_is_half_done_is_finished_on_another_machine_with_the_same_rows(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copied(finished, tmp_path, "bc", "reward")
    written = []

    def write_shard(folder: Path, shard: int, *arguments: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        write(folder, shard, *arguments)
        written.append(shard)

    from rest import grow as module  # the module, not what it exports

    write = module.write_shard
    run = Run(TINY, out)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_shard", write_shard)
        with pytest.raises(KeyboardInterrupt):
            run.grow(1, run.policy(BC), run.reward())
    begun = {path.name: path.read_bytes() for path in (out / ".grow-1.partial").glob("part-*")}
    assert len(begun) == 2 and not (out / "grow-1").exists()

    other = Run(replace(TINY, machine=MachineSettings(rows=200, beam_rows=64, micro_batches=2, remat=True)), out)
    made, whole = other.grow(1, other.policy(BC), other.reward()), open_dataset(finished / "grow-1")
    assert {name: (out / "grow-1" / name).read_bytes() for name in begun} == begun
    same = ("source_id", "sample_index", "origin", "source", "hypothesis", "tokens", "finish")
    assert rows(made, *same) == rows(whole, *same)
    for name in ("raw_score", "reward"):
        np.testing.assert_allclose(made.columns([name])[name], whole.columns([name])[name], atol=1e-5)
    for ours, theirs in zip(*(rows(of, "log_probs")[0] for of in (made, whole)), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_another_temperature_asks_for_other_samples_and_not_for_another_reward(finished: Path) -> None:
    run = Run(replace(TINY, grow=replace(TINY.grow, sampling=SamplingOverrides(temperature=0.7))), finished)
    reward = run.reward()
    assert reward.identity == Run(TINY, finished).reward().identity
    with pytest.raises(UserError, match=r"grow-1 was made with other settings: grow\.sampling\.temperature was 0\.8, "):
        run.grow(1, run.policy(BC), reward)


def test_more_candidates_ask_for_other_rows_and_a_length_penalty_only_where_there_are_beams(finished: Path) -> None:
    further = (FurtherSamples(2, SamplingOverrides(epsilon=0.02)),)
    run = Run(replace(TINY, grow=replace(TINY.grow, further=further, beams=2)), finished)
    policy, reward = run.policy(BC), run.reward()
    with pytest.raises(
        UserError, match=r"grow\.further was \[\], .*grow\.beams was 0, is now 2.*length_penalty was null"
    ):
        run.grow(1, policy, reward)
    long = replace(TINY, evaluation=replace(TINY.evaluation, beam=replace(TINY.evaluation.beam, length_penalty=0.5)))
    assert Run(long, finished).grow(1, policy, reward).identity == open_dataset(finished / "grow-1").identity


def test_what_a_stage_says_again_is_the_same(finished: Path) -> None:
    said = replace(TINY, grow=replace(TINY.grow, sampling=SamplingOverrides(temperature=0.8, max_target_tokens=32)))
    run = Run(said, finished)
    assert run.grow(1, run.policy(BC), run.reward()).identity == open_dataset(finished / "grow-1").identity


def test_another_reward_in_a_study_scores_the_same_draws_anew(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def words(sources: list[str], hypotheses: list[str]) -> np.ndarray:
        return np.array([min(12, len(y.split())) for y in hypotheses], np.float32)

    def letters(sources: list[str], hypotheses: list[str]) -> np.ndarray:
        return np.array([min(90, len(y)) for y in hypotheses], np.float32)

    made = {}
    for name, reward in {"words": Reward(words, (0.0, 12.0)), "letters": Reward(letters, (0.0, 90.0))}.items():
        e = replace(TINY, reward=reward, grow=replace(TINY.grow, sources=20, beams=2))
        run = Run(e, copied(finished, tmp_path / name, "bc"), tmp_path / "stages")
        made[name] = run.grow(1, run.policy(BC), reward)
        monkeypatch.setattr(sys.modules["rest.grow"], "sample", None)  # the second draws nothing
    same = ("source_id", "sample_index", "origin", "hypothesis", "tokens", "finish", "log_probs", "behaviour_log_probs")
    assert rows(made["words"], *same) == rows(made["letters"], *same)
    scores = [of.columns(["raw_score"])["raw_score"] for of in made.values()]
    np.testing.assert_array_equal(scores[1], [min(90, len(y)) for y in rows(made["letters"], "hypothesis")[0]])
    assert (scores[0] != scores[1]).any()
