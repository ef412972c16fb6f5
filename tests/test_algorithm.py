"""What happens between the stages: which policy starts what, which text is used where, what is counted."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rest.__main__ import main
from rest.algorithm import Run
from rest.data.rating_files import DirectAssessments
from rest.data.ratings import SplitSettings
from rest.errors import UserError
from rest.evaluation.outputs import Outputs
from rest.experiment import load_experiment
from rest.grow import open_dataset
from rest.inputs import last_policy
from rest.model.transformer import TransformerSettings
from rest.policy.policy import Policy
from rest.reward.fit import Cloned, RewardSettings
from rest.reward.learned import LearnedReward

TINY = str(Path(__file__).parent / "tiny.py")


def stage(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / name / "stage.json").read_text())


def identity(run: Path, name: str) -> str:
    return Policy.load(run / name / "policy").identity


def test_improve_goes_on_from_the_policy_before_and_the_side_branch_does_not_count(finished: Path) -> None:
    bc, first, second = (identity(finished, name) for name in ("bc", "improve-1-1", "improve-1-2"))
    assert len({bc, first, second, identity(finished, "improve-1-0")}) == 4
    started = [stage(finished, name)["settings"]["policy"] for name in ("improve-1-0", "improve-1-1", "improve-1-2")]
    assert started == [bc, bc, first]
    run = Run(load_experiment(TINY), finished)
    assert run.policy_before(1).identity == run.policy_before(1, 1).identity == bc
    assert run.policy_before(1, 2).identity == first
    assert run.policy_before(2).identity == last_policy(finished).identity == second
    assert last_policy(finished / "bc").identity == bc
    with pytest.raises(UserError, match=r"rest improve --g 2 --i 1"):
        run.policy_before(2, 2)


def test_thresholds_rise_and_learning_rates_fall(finished: Path) -> None:
    first, second = (stage(finished, f"improve-1-{i}")["result"] for i in (1, 2))
    assert first["threshold"] < second["threshold"] and first["rows_kept"] > second["rows_kept"]
    assert second["learning_rate"] == first["learning_rate"] / 2
    rewards = open_dataset(finished / "grow-1").columns(["reward"])["reward"]
    for result in (first, second):
        kept = rewards > result["threshold"]
        assert result["rows_kept"] == kept.sum()
        assert result["mean_reward_kept"] == pytest.approx(rewards[kept].mean(), abs=1e-5)
        assert max(score for _, score in result["dev_reward"]) >= result["dev_reward"][0][1]


def test_grow_uses_no_source_that_was_rated(finished: Path) -> None:
    run = Run(load_experiment(TINY), finished)
    grown, rated = run._parts
    assert not np.intersect1d(grown.ids, rated.ids).size and len(rated) == 60
    assert len(grown) + len(rated) == len(run.train)
    drawn = np.unique(open_dataset(finished / "grow-1").columns(["source_id"])["source_id"])
    assert np.isin(drawn, grown.ids).all() and len(drawn) == 64


def test_the_control_trains_for_as_many_steps_as_all_improves(finished: Path) -> None:
    steps = sum(stage(finished, f"improve-1-{i}")["result"]["gradient_steps"] for i in (1, 2))
    control = stage(finished, f"bc_continued-{steps}")
    assert control["result"]["gradient_steps"] == steps
    assert control["settings"]["policy"] == identity(finished, "bc")


def test_a_grow_step_ends_with_a_warning_when_nothing_passes(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "bc", tmp_path / "bc")
    main(["run", f"{TINY}:nothing_passes", "--out", str(tmp_path)])
    assert "improve 1.2: warning: no row passes" in capsys.readouterr().err
    assert (tmp_path / "improve-1-1").exists() and not (tmp_path / "improve-1-2").exists()
    assert (tmp_path / "bc_continued-20").exists() and (tmp_path / "report.html").exists()
    with pytest.raises(SystemExit):
        main(["improve", f"{TINY}:nothing_passes", "--out", str(tmp_path), "--g", "1", "--i", "2"])
    assert "no row passes" in capsys.readouterr().err


def test_too_many_rated_sources_leave_none_for_grow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", TINY, "--out", str(tmp_path), "--reward.sources", "500", "--bc.train.max-steps", "1"])
    assert "reward.sources 500" in capsys.readouterr().err


def test_a_reward_is_learned_from_files_of_ratings_wherever_they_lie(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished / "bc", out / "bc")
    tiny = load_experiment(TINY)
    text = Run(tiny, finished).corpus.train.take(slice(0, 40))
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
    grown, rated = run_with(tmp_path / "moved.tsv")._parts
    assert len(rated) == 0 and len(grown) == len(Run(tiny, finished).train)
    rows[1:] = [row.replace("\t", "\tpu ", 1) for row in rows[1:]]  # in train and dev, wherever they are
    with pytest.raises(UserError, match=r"reward was made with other settings: .*ratings"):
        run_with(tmp_path / "changed.tsv").reward()


def test_a_reward_may_start_from_a_smaller_translation_model_of_its_own(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "bc", tmp_path / "bc")
    tiny = load_experiment(TINY)
    sizes = TransformerSettings(width=16, heads=2, feed_forward=32, encoder_layers=1, decoder_layers=1)
    training = replace(tiny.bc.train, max_steps=40, evaluate_every=20)
    start = Cloned(sizes, training)
    settings = replace(tiny.reward, start=start, likelihood=True)
    reward = Run(replace(tiny, reward=settings), tmp_path).reward().function
    bc, own = (Policy.load(tmp_path / name / "policy") for name in ("bc", "bc-reward"))
    assert isinstance(reward, LearnedReward) and reward.likelihood is not None
    assert reward.base.settings == own.settings == sizes != bc.settings
    assert reward.likelihood.policy.identity == own.identity
    assert own.tokenizer.identity == bc.tokenizer.identity
    scores = [score for _, score in history(tmp_path / "bc-reward")]
    assert scores[-1] > scores[0]  # it has learned to translate a little
    assert stage(tmp_path, "reward")["settings"]["start"] == own.identity

    longer = replace(settings, start=replace(start, train=replace(training, max_steps=50)))
    with pytest.raises(UserError, match=r"bc-reward was made with other settings: start.train.max_steps"):
        Run(replace(tiny, reward=longer), tmp_path).reward()


def history(stage: Path) -> list[tuple[int, float]]:
    """Step and score of every evaluation on dev."""
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["dev/score"]) for line in lines if "dev/score" in line]


def test_a_reward_has_a_rater_or_files() -> None:
    with pytest.raises(UserError, match="either a rater"):
        RewardSettings()


def test_what_a_run_evaluates_is_kept_and_compared(finished: Path) -> None:
    folder = finished / "evaluation"
    found = {path.name for path in folder.glob("*-against-*")}
    control = next(path.name for path in folder.glob("bc_continued-*") if "-against-" not in path.name)
    assert found >= {"improve-1-1-against-bc", "improve-1-2-against-bc", "improve-1-2-against-improve-1-1"}
    assert found >= {f"improve-1-2-against-{control}", f"{control}-against-bc"}
    result = stage(folder, "improve-1-2-against-improve-1-1")["result"]
    new, old = (Outputs.read(folder / f"improve-1-{i}" / "samples.parquet") for i in (2, 1))
    gained = new.scores["reward"].mean() - old.scores["reward"].mean()
    assert result["tests"]["reward"]["difference"] == pytest.approx(gained, abs=1e-6)
    metrics = stage(folder, "improve-1-2")["result"]["metrics"]
    assert metrics["kl_to_previous"] != metrics["kl_to_bc"] and metrics["entropy"] > 0
    report = (finished / "report.md").read_text()
    assert "## Paired comparisons" in report and "## The text itself" in report


def test_best_of_n_and_other_ways_of_decoding_join_the_run(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    main(["best-of-n", TINY, "--out", str(out), "--policies", "bc", "improve-1-2", "--samples", "2"])
    assert "BC" in capsys.readouterr().out
    drawn = Outputs.read(out / "evaluation" / "best-of-2" / "bc" / "samples.parquet")
    assert drawn.texts == Outputs.read(finished / "evaluation" / "bc" / "samples.parquet").texts  # the same draws
    curve = stage(out / "evaluation" / "best-of-2", "bc")["result"]["curves"]["reward"]["mean"]
    assert curve == pytest.approx([drawn.scores["reward"].mean(), drawn.scores["reward"].max(1).mean()])
    for way in ("best_of_n", "mbr"):
        main(["evaluate", TINY, "--out", str(out), "--policy", "bc", "--decode", way, "--n", "2"])
    rows = json.loads((out / "summary.json").read_text())
    decoded = {row["decode"]: row for row in rows if row["policy"] == "bc"}
    assert set(decoded) == {"sample", "best_of_n", "mbr"} and decoded["mbr"]["n"] == 2
    assert decoded["best_of_n"]["metrics"]["reward_mean"] == pytest.approx(curve[1])
    capsys.readouterr()
    main(["report", str(out)])
    assert (
        "BC, best of 2" in capsys.readouterr().out.replace("\n", " ") and "Best of N" in (out / "report.md").read_text()
    )
    with pytest.raises(SystemExit):
        main(["best-of-n", TINY, "--out", str(out), "--samples", "1"])
    assert "--samples 1: must be at least 2" in capsys.readouterr().err
