"""The loop: what it makes, where it ends, and that what is complete is not made again."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rest import GlobalPercentile, MetricOfGreedy, RewardOfGreedy, UserError, load_experiment
from rest.__main__ import main
from rest.algorithm import run
from rest.evaluation.outputs import Outputs
from rest.folder import read_json, stages_in

TINY = str(Path(__file__).parent / "tiny.py")


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


def test_without_grow_steps_and_ppo_it_ends_after_bc_without_a_control(finished: Path, tmp_path: Path) -> None:
    for name in ("bc", "reward", "evaluation/bc"):
        shutil.copytree(finished / name, tmp_path / name)
    before = times(tmp_path)
    made = run(replace(load_experiment(TINY), grow_steps=0), tmp_path)
    assert [name.folder for name in stages_in(tmp_path)] == ["bc", "reward"]
    assert times(tmp_path) == before and not list(tmp_path.glob("**/bc_continued*"))
    assert made.done.trained_further == 0
    assert [row["policy"] for row in read_json(tmp_path / "summary.json")] == ["bc"]
    assert (tmp_path / "report.html").exists() and read_json(tmp_path / "experiment.json")["grow_steps"] == 0


def test_a_run_goes_on_with_other_machine_settings_and_makes_nothing_again(finished: Path, tmp_path: Path) -> None:
    out, last = tmp_path / "run", "bc_continued-40"
    shutil.copytree(finished, out)
    assert read_json(out / "experiment.json")["machine"]["rows"] == 96
    for evaluation in out.glob("evaluation/[!.]*bc_continued-40*"):
        shutil.rmtree(evaluation)
    before = times(out)
    flags = ["--machine.rows", "200", "--machine.beam-rows", "64", "--machine.micro-batches", "2", "--machine.remat"]
    main(["run", TINY, "--out", str(out), *flags])
    assert read_json(out / "experiment.json")["machine"]["rows"] == 200
    assert before.items() < times(out).items() and times(out).keys() == times(finished).keys()
    ours, theirs = (read_json(of / "evaluation" / last / "stage.json") for of in (out, finished))
    assert ours["settings"] == theirs["settings"]
    for name in ("reward_mean", "reward_greedy_mean", "gold_mean", "bleu", "kl_to_bc"):
        assert ours["result"]["metrics"][name] == pytest.approx(theirs["result"]["metrics"][name], abs=1e-4)


def test_an_improve_step_and_controls_of_bc_are_added_to_a_finished_run_which_is_then_left_alone(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = times(out)
    flags = ["--improve.rule.percentiles", "50", "75", "90", "--evaluation.ceiling-samples", "2"]
    more = ["run", TINY, "--out", str(out), *flags, "--evaluation.bc-temperatures", "0.8", "0.5", "0.64"]
    main(more)
    new = times(out).keys() - before.keys()
    assert before.items() < times(out).items()
    stages = {name.removesuffix("/stage.json") for name in new}
    assert {name for name in stages if "/" not in name} == {"improve-1-3", "bc_continued-60"}
    ways = "sample-0.64", "sample-0.5", "best_of_n-2", "mbr-2-chrf-0"  # BC's own temperature is there already
    assert {name for name in stages if "/decode/" in name} == {f"evaluation/decode/bc.{way}" for way in ways}
    every = read_json(out / "summary.json")
    assert [row["improve"] for row in every if row["policy"] == "rest"] == [0, 1, 2, 3]
    rows = [row for row in every if row["policy"] == "bc"]
    shown = [(row["decode"], row["n"], row.get("temperature")) for row in rows]
    sampled = [("sample", 2, None), ("sample", 2, 0.64), ("sample", 2, 0.5)]
    assert shown == [*sampled, ("best_of_n", 2, None), ("mbr", 2, None)]
    for row in rows[1:3]:
        low, high = row["metrics"]["reward_ci95"]
        assert 0 <= low <= row["metrics"]["reward_mean"] <= high <= 1 and row["metrics"]["reward_samples"] == 2
        assert {"gold_mean", "distinct_per_source", "self_bleu"} < set(row["metrics"])
    cooler = [Outputs.read(out / f"evaluation/decode/bc.{way}/samples.parquet") for way in ways[:2]]
    assert cooler[0].texts != cooler[1].texts
    assert rows[3]["metrics"]["reward_mean"] >= rows[0]["metrics"]["reward_mean"]  # the better of the same two draws
    assert "BC, T = 0.5" in (out / "report.md").read_text()
    again = times(out)
    capsys.readouterr()
    main(more)
    assert times(out) == again and "G1 I3" in capsys.readouterr().out


def test_what_chooses_on_dev_is_part_of_the_stages_that_choose(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    tiny = load_experiment(TINY)
    said = r"improve-1-0 was made with other settings: choose.by.type was .*RewardOfSamples.*RewardOfGreedy"
    with pytest.raises(UserError, match=said):
        run(replace(tiny, choose=RewardOfGreedy()), out)
    for path in ("improve-*", "bc_continued-*", "evaluation/*improve-*", "evaluation/*bc_continued-*"):
        for folder in [found for found in out.glob(path) if found.is_dir()]:
            shutil.rmtree(folder)
    kept = times(out)
    one = replace(tiny.improve, rule=GlobalPercentile((50.0,)), unfiltered=False)
    run(replace(tiny, choose=MetricOfGreedy(sources=4), improve=one), out)
    assert kept.items() < times(out).items()  # bc, reward and Grow, and how good BC is
    rows = {(row["policy"], row["improve"]): row["chosen_by"] for row in read_json(out / "summary.json")
            if row["policy"] != "bc_continued_last"}  # fmt: skip
    by = "chrF of greedy outputs"
    assert rows == {("bc", 0): "loss of the references", ("bc_continued", 0): by, ("rest", 1): by}


def times(folder: Path) -> dict[str, int]:
    """When each stage was made."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob("**/stage.json")}
