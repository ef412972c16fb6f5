"""Improve as a stage of a run: which policy starts which, what passes, and the value that some losses read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rest import ImproveSettings, PerSourceTop, Policy, open_dataset
from rest.__main__ import main
from rest.folder import read_json
from rest.improve import select

TINY = str(Path(__file__).parent.parent / "tiny.py")


def stage(run: Path, name: str) -> dict[str, Any]:
    return read_json(run / name / "stage.json")


def test_improve_goes_on_from_the_policy_before_and_the_side_branch_does_not_count(finished: Path) -> None:
    names = ("bc", "improve-1-1", "improve-1-2")
    bc, first, second = (Policy.load(finished / name / "policy").identity for name in names)
    assert len({bc, first, second}) == 3
    started = [stage(finished, name)["settings"]["policy"] for name in ("improve-1-0", "improve-1-1", "improve-1-2")]
    assert started == [bc, bc, first]


def test_the_best_different_texts_of_each_source_pass_in_every_shard(finished: Path) -> None:
    dataset = open_dataset(finished / "grow-1")
    assert len(dataset.manifest.shards) > 1
    names = ["source_id", "hypothesis", "reward", "is_reference"]
    stored = dataset.columns(["source_id", "reward", "is_reference"])
    texts = [text for table in dataset.batches(["hypothesis"]) for text in table["hypothesis"].to_pylist()]
    rows = zip(*(stored[name].tolist() if name in stored else texts for name in names), strict=True)
    best: dict[int, dict[str, float]] = {}
    for source, text, reward, human in rows:
        if not human:
            best.setdefault(source, {})[text] = reward
    chosen = select(dataset, ImproveSettings(rule=PerSourceTop((2, 1)), human_pairs="never"), 1)
    for source, rewards in best.items():
        kept = stored["reward"][chosen.mask & (stored["source_id"] == source)]
        assert sorted(kept.tolist(), reverse=True) == sorted(rewards.values(), reverse=True)[:2]


def test_thresholds_rise_and_learning_rates_fall(finished: Path) -> None:
    first, second = (stage(finished, f"improve-1-{i}")["result"] for i in (1, 2))
    assert first["threshold"] < second["threshold"] and first["rows_kept"] > second["rows_kept"]
    assert second["learning_rate"] == pytest.approx(0.7 * first["learning_rate"])
    assert first["chosen_by"] == second["chosen_by"] == "mean reward of 2 samples a source"
    rewards = open_dataset(finished / "grow-1").columns(["reward"])["reward"]
    for result in (first, second):
        kept = rewards > result["threshold"]
        assert result["rows_kept"] == kept.sum()
        assert result["mean_reward_kept"] == pytest.approx(rewards[kept].mean(), abs=1e-5)
        assert max(score for _, score in result["dev_reward"]) >= result["dev_reward"][0][1]


def test_a_loss_that_needs_a_value_learns_it_once_and_keeps_its_columns(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    for name in ("bc", "reward", "grow-1"):
        shutil.copytree(finished / name, out / name)

    def columns() -> dict[str, int]:
        return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("grow-1/columns/*/manifest.json")}

    main(["improve", f"{TINY}:bvmpo", "--out", str(out), "--g", "1", "--i", "1"])
    value = stage(out, "value")["result"]
    assert value["rows"] > 0 and {"kendall", "spearman"} <= value.keys()
    made = columns()
    assert sorted(name.rsplit("_", 1)[0] for name in made) == ["log_probs", "value"]  # BC is the first anchor
    lines = [json.loads(line) for line in (out / "improve-1-1" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "dev/score" in line] == [0, 4]
    main(["improve", f"{TINY}:bvmpo", "--out", str(out), "--g", "1", "--i", "2", "--improve.loss.last", "1e-5"])
    assert made.items() <= columns().items()

    for wrong, said in (
        (["--improve.train.trainable.lora.rank", "-1"], "lora.rank must be at least 0, not -1"),
        (["--improve.train.trainable.lora.rank", "2", "--improve.train.trainable.lora.targets", "qeury"], "qeury"),
    ):
        shutil.rmtree(out / "improve-1-2", ignore_errors=True)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(["improve", f"{TINY}:bvmpo", "--out", str(out), "--g", "1", "--i", "2", *wrong])
        assert stopped.value.code not in (0, None) and said in capsys.readouterr().err
