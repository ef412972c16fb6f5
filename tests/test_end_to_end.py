"""The `rest` command as a user runs it: the whole loop, killed and gone on with, and every wrong input."""

import contextlib
import fnmatch
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rest.__main__ import main
from rest.commands.flags import MOVED

TINY = str(Path(__file__).parent / "tiny.py")
ROOT = Path(__file__).resolve().parent.parent


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What `rest ...` says on standard error as it refuses: one sentence, and a status that is not zero."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code not in (0, None)
    said = capsys.readouterr().err.splitlines()
    return said[-1] if stopped.value.code == 1 else "\n".join(said)


def files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def summary(folder: Path) -> list[dict]:
    """summary.json without what a clock decides."""
    rows = json.loads((folder / "summary.json").read_text())
    return [{key: value for key, value in row.items() if key != "wall_s"} for row in rows]


def test_a_run_leaves_every_stage_and_its_report(finished: Path) -> None:
    stages = ["bc", "reward", "grow-1", "improve-1-0", "improve-1-1", "improve-1-2", "bc_continued-40"]
    for stage in stages:
        assert (finished / stage / "stage.json").exists()
    assert not list(finished.glob(".*.partial"))
    policies = [(row["policy"], row["grow"], row["improve"]) for row in summary(finished)]
    assert [policy for policy in policies if policy != ("bc_continued_last", 0, 0)] == [
        ("bc", 0, 0), ("bc_continued", 0, 0), ("rest", 1, 0), ("rest", 1, 1), ("rest", 1, 2)
    ]  # fmt: skip
    for row in summary(finished):
        low, high = row["metrics"]["reward_ci95"]
        assert 0 <= low <= row["metrics"]["reward_mean"] <= high <= 1
        assert {"gold_mean", "bleu", "bleu_signature", "chrf", "kl_to_bc"} <= set(row["metrics"])
    assert summary(finished)[0]["metrics"]["kl_to_bc"] == pytest.approx(0, abs=1e-3)
    assert "G1 I2" in (finished / "report.html").read_text() and (finished / "report.md").exists()
    lines = (finished / "improve-1-1" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "dev/score" in line] == [0, 10, 20]


def killed_while(out: Path, underway: str) -> None:
    """Starts the run in its own process and kills it as soon as a path in `out` fits the pattern `underway`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rest", "run", TINY, "--out", str(out)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not list(out.glob(underway)):
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.002)
    finally:
        os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert process.stderr is not None
    process.stderr.close()


def test_a_run_killed_in_bc_in_grow_and_in_improve_ends_as_if_it_had_not_been(tmp_path: Path, finished: Path) -> None:
    """What is beside the way it goes is there already: it would be refused if it were of other policies or rows."""
    out = tmp_path / "killed"
    beside = "bc", "improve-1-0", "bc_continued-40"
    for stage in ("reward", *beside[1:], *(f"evaluation/{name}" for name in beside)):
        shutil.copytree(finished / stage, out / stage)
    killed_while(out, ".bc.partial/checkpoints/20")
    assert not (out / "bc").exists()
    killed_while(out, ".grow-1.partial/part-00001-of-00004.parquet")
    assert (out / "bc").exists() and not (out / "grow-1").exists()
    killed_while(out, ".improve-1-1.partial/checkpoints/10")
    assert (out / "grow-1").exists() and not (out / "improve-1-1").exists()
    main(["run", TINY, "--out", str(out)])
    assert files(out / "grow-1", "part-*") == files(finished / "grow-1", "part-*")
    assert files(out / "grow-1", "manifest.json") == files(finished / "grow-1", "manifest.json")
    assert summary(out) == summary(finished)


def test_the_stages_alone_make_what_the_run_makes(tmp_path: Path, finished: Path) -> None:
    out = ["--out", str(tmp_path / "alone")]
    main(["bc", TINY, *out])
    main(["reward", "train", TINY, *out])
    main(["grow", TINY, *out, "--g", "1"])
    main(["improve", TINY, *out, "--g", "1", "--i", "1"])
    main(["evaluate", TINY, *out, "--policy", "improve-1-1"])
    for pattern in ("part-*", "manifest.json"):
        assert files(tmp_path / "alone" / "grow-1", pattern) == files(finished / "grow-1", pattern)
    alone = summary(tmp_path / "alone")
    assert alone and [row for row in alone if row not in summary(finished)] == []
    main(["report", str(tmp_path / "alone")])
    assert (tmp_path / "alone" / "report.html").exists()


def test_processes_of_a_run_make_what_one_makes(tmp_path: Path, finished: Path) -> None:
    """Two with two devices each: one set of files, one voice, and the same policy but for rounding."""
    out = tmp_path / "two"
    for stage in ("bc", "reward", "grow-1"):
        shutil.copytree(finished / stage, out / stage)
    launch = [sys.executable, ROOT / "scripts" / "launch" / "local.py", "--processes", "2", "--devices", "2"]
    command = [*launch, sys.executable, "-m", "rest", "improve", TINY, "--out", out, "--g", "1", "--i", "1"]
    told = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([*map(str, command), "--distributed"], env=told, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    said = [line for line in ended.stderr.splitlines() if "improve 1.1: step" in line]
    assert len(said) == 3 and all(line.startswith("[0] ") for line in said)
    one, two = (json.loads((run / "improve-1-1" / "stage.json").read_text()) for run in (finished, out))
    assert one["settings"] == two["settings"] and one["result"]["rows_kept"] == two["result"]["rows_kept"]
    for (step, score), (other, its) in zip(one["result"]["dev_reward"], two["result"]["dev_reward"], strict=True):
        assert step == other and score == pytest.approx(its, abs=0.02)  # a sample that differs is another sentence
    assert one["result"]["dev_reward"][0] == pytest.approx(two["result"]["dev_reward"][0], abs=1e-5)
    lines = (out / "improve-1-1" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "dev/score" in line] == [0, 10, 20]
    work = json.loads((out / "processes.jsonl").read_text())
    assert work["stage"] == "improve-1-1" and len({each["trained"] for each in work["processes"]}) == 1
    assert not list(out.glob(".*.partial"))


def test_inspect_shows_counts_and_rewards(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", str(finished / "grow-1"), "--rows", "2", "--verify"])
    shown = capsys.readouterr().out
    assert "256" in shown and "Best 2" in shown and "Worst 2" in shown


def translated(monkeypatch: pytest.MonkeyPatch, text: bytes, *arguments: object) -> str:
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    with contextlib.redirect_stdout(out):
        main(["translate", *map(str, arguments)])
    return out.buffer.getvalue().decode()  # type: ignore[attr-defined]


def test_the_report_follows_a_run_until_it_is_stopped(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, slept = tmp_path / "live", list[float]()
    shutil.copytree(finished, out)
    (out / "report.html").unlink()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(out), "--live", "7"])
    assert stopped.value.code == 130 and slept == [7, 7]
    assert 'http-equiv="refresh" content="7"' in (out / "report.html").read_text(encoding="utf-8")
    for folder, seconds, said in ((out, "0", "live must be above 0"), (tmp_path, "7", "is no run's folder")):
        with pytest.raises(SystemExit, match="1"):
            main(["report", str(folder), "--live", seconds])
        assert said in capsys.readouterr().err


def test_translate_gives_a_line_for_a_line(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = b"nu bapo geki migo gido\n\nrapini ni gasi luso\n"
    last = translated(monkeypatch, sources, finished, "--max-target-tokens", 16)
    assert last.count("\n") == 3 and last.split("\n")[1] == ""
    stage = translated(monkeypatch, sources, finished / "bc", "--beams", 1, "--max-target-tokens", 16)
    assert stage.count("\n") == 3


def test_translate_refuses_what_it_cannot_read(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"nu\n" + b"ra " * 10_000 + b"\n")))
    said = refused(capsys, "translate", finished)
    assert "line 2" in said and "more than max_source_tokens 512" in said
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"nu\nra\n\xff\n")))
    assert "line 3: not valid UTF-8" in refused(capsys, "translate", finished)
    assert "no policy there" in refused(capsys, "translate", finished / "grow-1")


# Published models

PUBLISHED = """
from dataclasses import replace
from pathlib import Path

from rest.data.tokenizer import SentencePieceSettings
from rest.experiment import load_experiment
from rest.model.families.huggingface import HuggingFaceModel

tiny = load_experiment({tiny!r})
experiment = replace(tiny, model=HuggingFaceModel(Path({folder!r})), tokenizer=SentencePieceSettings({size}))
"""


@pytest.fixture
def exported(lively, tmp_path: Path) -> Path:
    """A policy's folder as `rest export` writes it."""
    lively.save(tmp_path / "run" / "bc" / "policy")
    main(["export", str(tmp_path / "run"), "--format", "huggingface", "--out", str(tmp_path / "exported")])
    return tmp_path / "exported"


def test_a_run_starts_from_a_published_model(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {path.name for path in exported.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("source.spm", "target.spm", "vocab.json", "tokenizer_config.json"),
    }
    experiment, out = tmp_path / "published.py", tmp_path / "published"
    experiment.write_text(PUBLISHED.format(tiny=TINY, folder=str(exported), size=""))
    main(["bc", str(experiment), "--out", str(out / "as-it-is"), "--bc.train.max-steps", "0"])
    main(["bc", str(experiment), "--out", str(out / "tuned"), "--bc.train.max-steps", "4"])
    sources = b"nu bapo geki migo gido\nrapini ni gasi luso\n"
    before, same, after = (
        translated(monkeypatch, sources, folder, "--beams", 1, "--max-target-tokens", 16)
        for folder in (tmp_path / "run", out / "as-it-is", out / "tuned")
    )
    assert before.strip() and same == before and after != before
    # the same content elsewhere is the same start, other content is not
    shutil.move(exported, tmp_path / "moved")
    moved = ["bc", str(experiment), "--out", str(out / "as-it-is"), "--bc.train.max-steps", "0"]
    moved += ["--model.folder", str(tmp_path / "moved")]
    main(moved)
    vocabulary = tmp_path / "moved" / "vocab.json"
    vocabulary.write_text(vocabulary.read_text().replace("nu", "other"))
    said = refused(capsys, *moved)
    assert "made with other settings: start was" in said


def test_a_tokenizer_beside_a_published_model_is_refused(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tmp_path / "published.py"
    experiment.write_text(PUBLISHED.format(tiny=TINY, folder=str(exported), size=256))
    said = refused(capsys, "bc", experiment, "--out", tmp_path / "out")
    assert "exported comes with its own; leave SentencePieceSettings out" in said
    said = refused(capsys, "export", tmp_path / "run", "--out", exported)
    assert "exported: exists already" in said


# Wrong settings


def test_a_misspelt_flag_is_refused_and_the_right_one_suggested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "run", TINY, "--out", tmp_path, "--grow.sample-per-source", "4")
    assert "--grow.sample-per-source" in said and "--grow.samples-per-source" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["run", "bc"])
def test_a_flag_that_moved_names_what_it_is_now(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for old, new in (
        (["--grow.sampling.rows", "5"], "--grow.sampling.rows is now --machine.rows"),
        (["--improve.train.adam.b2=0.9"], "--improve.train.adam.b2 is now --improve.train.optimizer.b2"),
    ):
        assert refused(capsys, command, TINY, "--out", tmp_path, *old) == f"rest: {new}"
    assert not list(tmp_path.iterdir())


def test_what_a_flag_has_become_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["run", TINY, "--help-all"])
    assert stopped.value.code == 0
    known = set(re.findall(r"--([a-z][\w.-]*)", capsys.readouterr().out))
    for old, new in MOVED.items():
        assert old not in known and fnmatch.filter(known, new), f"{old} is now {new}"


def test_misspelt_commands_files_and_variants_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'improve'" in refused(capsys, "imporve", TINY)
    assert "no such experiment file" in refused(capsys, "run", tmp_path / "none.py", "--out", tmp_path)
    assert "did you mean 'given'" in refused(capsys, "run", f"{TINY}:givn", "--out", tmp_path)
    assert "name an experiment first" in refused(capsys, "run", "--out", tmp_path)
    (tmp_path / "wrong.py").write_text("experiment = Experiment(\n")
    assert "wrong.py:1: not valid Python" in refused(capsys, "run", tmp_path / "wrong.py", "--out", tmp_path)


def test_a_folder_made_with_other_settings_is_refused_naming_them(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "experiment.json").read_bytes()
    said = refused(capsys, "run", TINY, "--out", finished, "--bc.train.max-steps", "70")
    assert "bc.train.max_steps was 60, is now 70" in said
    said = refused(capsys, "run", TINY, "--out", finished, "--grow.sampling.temperature", "0.7")
    assert "grow-1 was made with other settings: grow.sampling.temperature was 0.8, is now 0.7" in said
    said = refused(capsys, "evaluate", TINY, "--out", finished, "--sampling.temperature", "0.7")
    assert "evaluation/bc was made with other settings: evaluation.sampling.temperature was 0.8, is now 0.7" in said
    said = refused(capsys, "grow", TINY, "--out", finished, "--sampling.temperature", "0.7")
    assert "grow-1 was made with other settings: grow.sampling.temperature was 0.8, is now 0.7" in said
    assert (finished / "experiment.json").read_bytes() == before


def test_stages_need_the_ones_before_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "rest bc" in refused(capsys, "reward", "train", TINY, "--out", tmp_path)
    assert "no such grow step" in refused(capsys, "improve", TINY, "--out", tmp_path)
    assert "--g 3: must be from 1 to 1" in refused(capsys, "grow", TINY, "--out", tmp_path, "--g", 3)
    assert "--i 3: must be from 0 to 2" in refused(capsys, "improve", TINY, "--out", tmp_path, "--i", 3)
    assert "no such policy" in refused(capsys, "evaluate", TINY, "--out", tmp_path, "--policy", "best")
    assert "no such folder" in refused(capsys, "report", tmp_path / "none")
    assert "no such grow step" in refused(capsys, "inspect", tmp_path / "none")


def test_a_damaged_shard_is_named(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "grow-1"
    folder.mkdir()
    for name, content in files(finished / "grow-1", "*.*").items():
        (folder / name).write_bytes(content)
    shard = folder / "part-00002-of-00004.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    assert "part-00002-of-00004.parquet is damaged" in refused(capsys, "inspect", folder)
    shard.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    assert "part-00002-of-00004.parquet is damaged" in refused(capsys, "inspect", folder, "--verify")
    shard.unlink()
    assert "part-00002-of-00004.parquet is missing" in refused(capsys, "inspect", folder)


# Wrong rewards


def test_a_wrong_reward_is_refused_and_nothing_is_lost(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    os.symlink(finished / "bc", out / "bc")
    for score, rows, said in (
        ("1.5", 0, "is outside [0, 1] and the reward has no scale"),
        ("0.5", 2, "returned shape (10,) for 8 hypotheses, not (8,)"),
    ):
        wrong = ["--reward.function.score", score, "--reward.function.rows", rows]
        message = refused(capsys, "run", f"{TINY}:constant", "--out", out, *wrong)
        assert said in message and "Constant" in message
        assert (out / "bc" / "stage.json").exists()
        again = refused(capsys, "evaluate", f"{TINY}:constant", "--out", out, *wrong)  # without the check before a run
        assert "Constant" in again and not (out / "evaluation" / "bc").exists()
    main(["evaluate", f"{TINY}:constant", "--out", str(out)])  # the reward is mended, and nothing stands in the way
    assert (out / "evaluation" / "bc").exists()


# Wrong text


@pytest.fixture
def text(tmp_path: Path, corpus) -> dict[str, Path]:
    """Six files of a made-up corpus, by the flags that name them."""
    sides = {}
    for name in ("train", "dev", "test"):
        split = getattr(corpus, name)
        for side, lines in (("source", split.sources), ("reference", split.references)):
            path = tmp_path / f"{name}.{side}"
            path.write_text("".join(f"{line}\n" for line in lines))
            sides[f"--corpus.{name}-{side}"] = path
    return sides


def flags(text: dict[str, Path]) -> list[object]:
    return [part for flag in text.items() for part in flag]


@pytest.mark.slow
def test_text_files_are_given_by_flags_and_a_sentence_of_ten_thousand_words_is_dropped_and_counted(
    text: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = text["--corpus.train-source"]
    path.write_text("ra " * 10_000 + "\n" + path.read_text().split("\n", 1)[1])
    few = ["--bc.train.max-steps", "2"]
    main(["bc", f"{TINY}:text", "--out", str(tmp_path / "run"), *map(str, flags(text)), *few])
    assert "too_long 1" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "run" / "bc" / "policy").is_dir()


@pytest.mark.parametrize(
    ("side", "change", "said"),
    [
        ("train-reference", lambda lines: lines[:-1], "300"),
        ("dev-source", lambda lines: [*lines[:4], b"", *lines[5:]], "dev.source, line 5: the line is empty"),
        ("train-source", lambda lines: [*lines[:6], b"ra \xff", *lines[7:]], "train.source, line 7: byte 4 is 0xff"),
        (
            "test-source",
            lambda lines: [*lines[:2], b"ra " * 10_000, *lines[3:]],
            "test.source, line 3: the line has 10000 words, more than max_words = 100",
        ),
        ("dev-reference", None, "dev.reference does not exist"),
    ],
    ids=["line counts differ", "empty dev line", "bad UTF-8", "10,000 words", "missing file"],
)
def test_wrong_text_is_refused_naming_file_and_line(
    text: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], side: str, change, said: str
) -> None:
    path = text[f"--corpus.{side}"]
    if change is None:
        path.unlink()
    else:
        path.write_bytes(b"".join(line + b"\n" for line in change(path.read_bytes().splitlines())))
    message = refused(capsys, "bc", f"{TINY}:text", "--out", tmp_path / "run", *flags(text))
    assert said in message
    assert not (tmp_path / "run" / "bc").exists()
