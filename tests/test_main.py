"""The `rest` command finds its subcommands, imports only what they need, and says what went wrong in one sentence."""

import contextlib
import errno
import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rest import __main__, errors
from rest.__main__ import main
from rest.commands.names import COMMANDS, EXAMPLES, USAGE

ROOT = Path(__file__).resolve().parent.parent
LARGE = ["jax", "tyro", "numpy", "rich", "matplotlib"]


def imported(script: str) -> set[str]:
    """The modules that a process has imported after a script."""
    script += "\nimport sys\nsys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_a_function_that_the_usage_lists(command):
    module, function = COMMANDS[command].split(".")
    assert callable(getattr(importlib.import_module(f"rest.commands.{module}"), function))
    assert f"\n  rest {command} " in USAGE


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["run", "--help"], ["reward", "train", "-h"]])
def test_the_usage_is_printed_for_whoever_asks(arguments, capsys):
    main(arguments)
    example = f"Example: {EXAMPLES[' '.join(arguments[:-1])]}\n\n" if len(arguments) > 1 else ""
    assert capsys.readouterr().out == example + USAGE


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_begins_with_an_example(command, capsys):
    assert EXAMPLES.keys() == COMMANDS.keys()
    with contextlib.suppress(SystemExit):
        main([*command.split(), "--help"])
    assert capsys.readouterr().out.startswith(f"Example: {EXAMPLES[command]}\n\n")
    assert EXAMPLES[command].startswith(f"rest {command}")


@pytest.mark.parametrize("command", EXAMPLES)
def test_the_examples_name_files_and_flags_that_are_there(command, capsys):
    """Each is parsed by its own command, with --help behind it: an unknown flag would be an error instead."""
    words = shlex.split(EXAMPLES[command].partition(" < ")[0])[1:]
    for word in words:
        assert not word.startswith("experiments/") or (ROOT / word.partition(":")[0]).exists()
    with contextlib.suppress(SystemExit):
        main([*command.split(), *[word for word in words if word.startswith("experiments/")], *["--help"]])
    shown = capsys.readouterr().out
    for word in words:
        assert not word.startswith("--") or f"{word} " in shown or command.startswith("reward "), word


def test_help_imports_nothing_large():
    assert imported("from rest.__main__ import main; main(['--help'])").isdisjoint(LARGE)


def test_looking_at_data_takes_no_jax():
    modules = imported("import rest.commands.inspect")
    assert "rest.data.inspect" in modules and "jax" not in modules and "matplotlib" not in modules


def test_translating_imports_nothing_that_trains_scores_or_reports():
    modules = imported("import rest.commands.translate")
    assert "rest.policy.beam" in modules and "matplotlib" not in modules
    others = (
        "rest.baselines",
        "rest.report",
        "rest.reward.learned",
        "rest.reward.published",
        "rest.grow",
        "rest.improve",
    )
    assert [
        m for m in modules if m.startswith((*others, "rest.experiment", "rest.algorithm", "rest.commands.reward"))
    ] == []


def test_freed_memory_is_kept_before_anything_else(monkeypatch):
    called = []
    monkeypatch.setattr(__main__, "keep_freed_memory", lambda: called.append("keep"))
    monkeypatch.setattr(__main__, "import_module", lambda name: called.append(name) or errors)
    monkeypatch.setitem(COMMANDS, "bc", "run.UserError")
    main(["bc", "FILE"])
    assert called == ["keep", "rest.commands.run"]


def test_a_misspelt_command_gets_a_hint(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["reward", "atack"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "rest: no command 'reward atack'; did you mean 'reward attack'? (`rest --help` lists them)\n"
    )


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (errors.UserError("lines differ"), 1, "lines differ"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a/part-0"),
            1,
            "the disk is full at runs/a/part-0; once there is room, the same command goes on",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            "the disk is full; once there is room, the same command goes on",
        ),
        (
            FileExistsError(errno.EEXIST, "File exists", "runs/a"),
            1,
            "runs/a cannot be read or written: File exists",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/proc/run"),
            1,
            "/proc/run cannot be read or written: Permission denied",
        ),
        (KeyboardInterrupt(), 130, "stopped; the same command goes on from here"),
    ],
)
def test_what_went_wrong_is_one_sentence_and_a_status(error, status, said, monkeypatch, capsys):
    def fail(arguments):
        raise error

    monkeypatch.setattr("rest.commands.inspect.inspect", fail)
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", "runs/a/grow-1"])
    assert stopped.value.code == status
    assert capsys.readouterr().err == f"rest: {said}\n"


def test_other_errors_of_the_system_end_with_their_traceback(monkeypatch, capsys):
    def fail(arguments):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("rest.commands.inspect.inspect", fail)
    with pytest.raises(SystemExit, match="70"):
        main(["inspect", "runs/a/grow-1"])
    assert "PermissionError: [Errno 13] Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["file", "file/run", "/proc/run"])
def test_a_place_that_cannot_be_written_is_one_sentence(out, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        main(["bc", f"{ROOT / 'tests' / 'tiny.py'}:given", "--out", str(tmp_path / out)])
    error = capsys.readouterr().err
    assert stopped.value.code == 1
    assert error.startswith("rest: ") and error.count("\n") == 1 and "cannot be read or written" in error


def shown(script: str, encoding: str, read: int) -> tuple[str, bytes]:
    """What a process says of itself, and the beginning of what it prints to a reader that then goes."""
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        begun = process.stdout.read(read)
        process.stdout.close()
        return process.stderr.read().decode(), begun


PRINTS = """
import sys
from rest import __main__
from rest.commands.names import COMMANDS
import rest.errors
rest.errors.shout = lambda arguments: [print("größe ▲ 日本" * 9) for _ in range(20_000)]
COMMANDS["doctor"] = "errors.shout"
__main__.import_module = lambda name: rest.errors
__main__.main(["doctor"])
"""


@pytest.mark.parametrize(("encoding", "begins"), [("ascii", b"gr??e ? ??"), ("latin-1", b"gr\xf6\xdfe ? ??")])
def test_consoles_without_utf_8_and_readers_that_leave_are_no_error(encoding, begins):
    error, begun = shown(PRINTS, encoding, len(begins))
    assert error == "" and begun == begins
