"""What the subcommands share: flags that have moved, and an experiment that must be named."""

from pathlib import Path

import pytest

from rest.__main__ import main
from rest.commands.flags import MOVED, _own_folder, console, refuse_moved
from rest.errors import UserError

TINY = str(Path(__file__).parent.parent / "tiny.py")


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--grow.sampling.rows", "--grow.sampling.rows is now --machine.rows"),
        ("--grow.sampling.rows=96", "--grow.sampling.rows is now --machine.rows"),
        ("--evaluation.beam.rows", "--evaluation.beam.rows is now --machine.beam-rows"),
        ("--ppo.stop-at-kl", "--ppo.stop-at-kl is now --ppo.target-kl"),
        ("--ppo.stop_at_kl=0.1", "--ppo.stop_at_kl is now --ppo.target-kl"),
        (
            "--reward.train.accumulate",
            "--reward.train.accumulate is now --machine.micro-batches; a batch is all that an update sees, so make "
            "batch.batch_tokens as many times larger",
        ),
        ("--bc.train.remat", "--bc.train.remat is now --machine.remat"),
        ("--bc.train.no-remat", "--bc.train.no-remat is now --machine.no-remat"),
        ("--bc.train.no_remat", "--bc.train.no_remat is now --machine.no-remat"),
        ("--improve.train.adam.clip-norm", "--improve.train.adam.clip-norm is now --improve.train.optimizer.clip-norm"),
        ("--ppo.critic.adam.beta1", "--ppo.critic.adam.beta1 is now --ppo.critic.optimizer.beta1"),
        (
            "--reward.start.train.adam.beta1",
            "--reward.start.train.adam.beta1 is now --reward.start.train.optimizer.beta1",
        ),
    ],
)
def test_an_old_flag_names_the_new_one(argument, said):
    with pytest.raises(UserError) as refused:
        refuse_moved(["--out", "runs/a", argument, "3"])
    assert str(refused.value) == said


@pytest.mark.parametrize("old", [old for old in MOVED if "*" not in old])
def test_every_old_flag_is_known(old):
    with pytest.raises(UserError, match=f"--{old} is now --{MOVED[old]}"):
        refuse_moved([f"--{old}"])


@pytest.mark.parametrize(
    "argument",
    ["--grow.samples-per-source", "--reward.batch.batch-tokens", "--machine.rows", "grow.sampling.rows",
     "--grow.sampling.rowsx", "--xgrow.sampling.rows", "--train.adam.beta1", "-5", "--"],
)  # fmt: skip
def test_other_arguments_pass(argument):
    refuse_moved([argument])


def test_an_old_flag_of_a_command_is_refused_in_one_sentence(tmp_path, capsys):
    for command in ("run", "bc"):
        with pytest.raises(SystemExit) as stopped:
            main([command, TINY, "--out", str(tmp_path / "run"), "--grow.sampling.rows", "8"])
        assert stopped.value.code == 1
        assert capsys.readouterr().err == "rest: --grow.sampling.rows is now --machine.rows\n"
    assert not (tmp_path / "run").exists()


def test_a_folder_with_an_experiment_has_its_runs_in_it(tmp_path):
    folder = str(tmp_path)
    assert _own_folder(folder, ["--seed", "1"]) == ["--out", str(tmp_path / "run")]
    assert _own_folder(f"{folder}:quick", []) == ["--out", str(tmp_path / "quick")]
    assert _own_folder(folder, ["--out", "a"]) == _own_folder(folder, ["--out=a"]) == []
    assert _own_folder(TINY, []) == _own_folder("none.py", []) == []


def test_an_experiment_must_be_named(capsys):
    for arguments in (["bc"], ["reward", "train", "--out", "runs/a"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 1
        assert "name an experiment first, as in `rest " in capsys.readouterr().err


def test_the_flags_of_a_command_and_of_its_experiment_stand_side_by_side(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", TINY, "--out", "runs/a", "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for flag in ("--policy", "--decode", "--utility", "--prune-to", "--grow.samples-per-source"):
        assert f"{flag} " in shown
    assert "--decode sample is the whole evaluation" in " ".join(shown.split())


def test_a_stray_word_is_refused_and_never_taken_for_a_setting(capsys, tmp_path):
    file = Path(__file__).parents[2] / "experiments" / "instructgpt.py"  # its reward has a scale, which is two numbers
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(file), "--out", str(tmp_path), "0", "1"])
    assert stopped.value.code == 2
    assert "Unrecognized options: 0, 1" in " ".join(capsys.readouterr().err.split())


def test_the_console_is_wide_enough_for_tables():
    assert console().width >= 116
