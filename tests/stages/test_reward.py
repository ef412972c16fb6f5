"""A learned reward as a stage of a run: from files of ratings, and refreshed between Grow steps."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rest import (
    DirectAssessments,
    LearnedReward,
    MetricRater,
    Rated,
    Refresh,
    RewardSettings,
    SplitSettings,
    UserError,
    load_experiment,
    open_dataset,
)
from rest.__main__ import main
from rest.folder import StageName, read_json
from rest.report.page import write_report
from rest.report.summary import summarise
from rest.runs import Run

TINY = str(Path(__file__).parent.parent / "tiny.py")
REFRESHED = load_experiment(f"{TINY}:refreshed")
BC = StageName("bc")


def stage(run: Path, name: str) -> dict[str, Any]:
    return read_json(run / name / "stage.json")


# Files of ratings


def test_a_reward_is_learned_from_files_of_ratings_wherever_they_lie(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished / "bc", out / "bc")
    tiny = load_experiment(TINY)
    text = Run(tiny, finished).inputs.corpus.train.take(slice(0, 40))
    rows = ["source\thypothesis\tscore\tdocument"]
    for k, (x, y) in enumerate(zip(text.sources, text.references or [], strict=True)):
        rows += [f"{x}\t{y}\t{len(y.split())}\tdocument-{k // 4}", f"{x}\t{y.split()[0]}\t1\tdocument-{k // 4}"]

    def run_with(path: Path) -> Run:
        path.write_text("\n".join(rows) + "\n")
        files = (DirectAssessments(path, document="document"),)
        settings = replace(tiny.reward, rater=None, ratings=files, split=SplitSettings(dev_share=0.2, test_share=0.2))
        return Run(replace(tiny, reward=settings), out)

    reward = run_with(tmp_path / "ratings.tsv").reward()
    report = stage(out, "reward")["result"]
    assert report["rated"] == 64 and report["held_out"] == 16  # whole documents; the test part is not looked at
    assert "pearson_gold" not in report and "ratings.tsv" not in (out / "reward" / "stage.json").read_text()
    assert run_with(tmp_path / "moved.tsv").reward().identity == reward.identity
    parts = run_with(tmp_path / "moved.tsv").inputs.parts
    assert len(parts.rated) == 0 and len(parts.grow) == len(Run(tiny, finished).inputs.train)
    rows[1:] = [row.replace("\t", "\tpu ", 1) for row in rows[1:]]  # in train and dev, wherever they are
    with pytest.raises(UserError, match=r"reward was made with other settings: .*ratings"):
        run_with(tmp_path / "changed.tsv").reward()


def test_a_reward_has_a_rater_or_files() -> None:
    with pytest.raises(UserError, match="either a rater"):
        RewardSettings()


def test_what_samples_are_drawn_from_decides_the_reward_but_for_their_temperature(finished: Path) -> None:
    tiny = load_experiment(TINY)

    def run_with(**sampling: float) -> Run:
        return Run(replace(tiny, sampling=replace(tiny.sampling, **sampling)), finished)

    assert run_with(temperature=0.7).reward().identity == Run(tiny, finished).reward().identity
    for name, value in {"top_p": 0.5, "top_k": 5, "max_target_tokens": 31}.items():
        with pytest.raises(UserError, match=rf"reward was made with other settings: sampling\.{name} was"):
            run_with(**{name: value}).reward()


def test_a_rater_that_compares_with_references_should_not_rate_them(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = load_experiment(TINY)
    few = replace(
        tiny.reward, rater=MetricRater(), sources=20, attacked=0, train=replace(tiny.reward.train, max_steps=0)
    )
    for rate_references in (False, True):
        out = tmp_path / str(rate_references)
        shutil.copytree(finished / "bc", out / "bc")
        Run(replace(tiny, reward=replace(few, rate_references=rate_references)), out).reward()
        warned = "reward: warning: the rater compares with references" in capsys.readouterr().err
        assert warned == rate_references


# Refreshing: what is rated again, which reward is used where, and that nothing else changes


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose first Grow step was made without refreshing, refreshed before the second; killed in between."""
    out = tmp_path_factory.mktemp("refreshed") / "run"
    shutil.copytree(finished, out)
    run = Run(REFRESHED, out)
    assert run.done.newest == 1 and run.reward().identity == Run(load_experiment(TINY), finished).reward().identity
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LearnedReward, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            run.reward(2)
    assert run.done.newest == 1 and not (out / "reward-2").exists()
    run.reward(2)
    run.evaluate(BC, run.policy(BC))
    return run


def killed(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_ratings_of_the_latest_policy_join_those_before(run: Run) -> None:
    rated = Rated.load(run.out / "reward-2" / "ratings.parquet")
    assert rated.references is not None and rated.is_reference.sum() == 60
    assert Counter(rated.steps.tolist()) == {1: 180, 2: 80}  # 60 sources × (2 samples + 1 human pair); 40 × 2
    first, later = (set(rated.groups[rated.steps == g].tolist()) for g in (1, 2))
    assert later < first == set(run.inputs.parts.rated.ids.tolist()) and len(later) == 40
    report = stage(run.out, "reward-2")["result"]
    assert report["rated"] == 260 and stage(run.out, "reward")["result"]["rated"] == 180
    held = {name: report["fresh"][name] for name in ("first", "newest")}
    assert all(set(found) == {"spearman_ratings", "spearman_gold"} for found in held.values())
    assert held["first"] != held["newest"] and 0 < report["fresh"]["held_out"] < 80


def test_older_rows_get_the_new_reward_beside_theirs(run: Run, finished: Path) -> None:
    dataset, before = open_dataset(run.out / "grow-1"), open_dataset(finished / "grow-1")
    assert dataset.sidecars.names == ["reward_2"] and dataset.identity == before.identity
    dataset.verify()
    rows = {name: [] for name in ("source", "hypothesis")}
    for batch in dataset.batches(list(rows)):
        for name, values in rows.items():
            values += batch[name].to_pylist()
    reward = run.reward(2)
    newest, first = (dataset.columns([name])[name] for name in ("reward_2", "reward"))
    np.testing.assert_allclose(newest, reward(rows["source"], rows["hypothesis"], None).reward, atol=1e-5)
    assert dataset.sidecars.open("reward_2").settings == reward.settings != run.reward().settings
    assert np.abs(newest - first).max() > 0.01


def test_where_runs_share_a_grow_step_each_reward_has_a_column_of_its_own(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.out, tmp_path / "run")
    reward = Run(REFRESHED, tmp_path / "run", tmp_path / "pool").reward(2)
    dataset = open_dataset(tmp_path / "run" / "grow-1")
    assert dataset.sidecars.names == ["reward_2", f"reward_2_{reward.identity[:16]}"]


def test_a_refreshed_reward_is_complete_and_belongs_to_its_settings(run: Run) -> None:
    again = Run(REFRESHED, run.out)
    assert again.done.newest == 2 and again.reward(2).identity == run.reward(2).identity != run.reward().identity
    other = replace(REFRESHED, refresh=replace(REFRESHED.refresh, samples_per_source=3))
    with pytest.raises(UserError, match=r"reward-2 was made with other settings: refresh.samples_per_source was 2"):
        Run(other, run.out).reward(2)
    off = Run(replace(REFRESHED, refresh=None), run.out)
    assert off.done.newest == 1 and off.reward(2).identity == off.reward().identity


def test_evaluations_report_the_first_and_the_newest_reward(run: Run, tmp_path: Path) -> None:
    before = stage(run.out, "evaluation/bc")["result"]["metrics"]
    after = stage(run.out, "evaluation-2/bc")["result"]["metrics"]
    same_draws = {
        "first_reward_mean": "reward_mean",
        "first_reward_ci95": "reward_ci95",
        "first_reward_gold_spearman": "reward_gold_spearman",
        "gold_mean": "gold_mean",
    }
    assert all(after[now] == pytest.approx(before[then]) for now, then in same_draws.items())
    assert after["reward_mean"] != before["reward_mean"] and not any(name.startswith("first") for name in before)
    copy = tmp_path / "run"
    shutil.copytree(run.out, copy)
    rows = summarise(copy)
    assert [row["policy"] for row in rows] == ["bc"]  # what the newest reward has judged so far
    assert rows[0]["metrics"]["first_reward_mean"] == after["first_reward_mean"]
    write_report(copy)
    text = (copy / "report.md").read_text()
    assert "first reward (samples)" in text and "| G2 | 260 |" in text and "by the reward of Grow 2" in text
    assert "reward/stage.json, reward-2/stage.json" in text


def test_people_s_ratings_are_added_step_by_step(run: Run, tmp_path: Path, finished: Path) -> None:
    def file(name: str, start: int, score: int) -> DirectAssessments:
        text = run.inputs.corpus.train.take(slice(start, start + 40))
        rows = [
            f"{x}\t{y}\t{score + k % 5}" for k, (x, y) in enumerate(zip(text.sources, text.references, strict=True))
        ]
        path = tmp_path / name
        path.write_text("\n".join(["source\thypothesis\tscore", *rows]) + "\n")
        return DirectAssessments(path)

    out = tmp_path / "run"
    shutil.copytree(finished / "bc", out / "bc")
    learned = replace(
        REFRESHED.reward,
        rater=None,
        ratings=(file("first.tsv", 0, 1),),
        split=SplitSettings(dev_share=0.2, test_share=0.2),
        attacked=0,
    )
    experiment = replace(REFRESHED, reward=learned, grow_steps=3, refresh=Refresh(ratings=((file("b.tsv", 40, 3),),)))
    run = Run(experiment, out)
    found = run.reward(2)
    report = stage(out, "reward-2")["result"]
    assert report["rated"] == 2 * stage(out, "reward")["result"]["rated"] == 64
    assert "spearman_gold" not in report["fresh"]["newest"] and not (out / "reward-2" / "ratings.parquet").exists()
    assert found.identity != run.reward().identity
    with pytest.raises(UserError, match=r"refresh\.ratings: no files of ratings to add before Grow 3"):
        run.reward(3)


def test_what_cannot_be_refreshed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="gives its reward"):
        replace(load_experiment(f"{TINY}:given"), refresh=Refresh())
    with pytest.raises(UserError, match="the reward has a rater"):
        replace(REFRESHED, refresh=Refresh(ratings=((),)))
    assert isinstance(REFRESHED.reward, RewardSettings)
    for flags, said in (
        (["--refresh.temperature", "0"], "refresh.temperature must be from 0.0001 to 10000, not 0.0"),
        (["--g", "3"], "--g 3: must be from 1 to 2"),
    ):
        with pytest.raises(SystemExit):
            main(["reward", "train", f"{TINY}:refreshed", "--out", str(tmp_path / "run"), *flags])
        assert said in capsys.readouterr().err
