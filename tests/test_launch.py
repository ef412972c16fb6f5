"""Several processes on this machine: what they are told, what they print, and how all of them end."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

LOCAL = Path(__file__).resolve().parent.parent / "scripts" / "launch" / "local.py"
COMMON = "import os, signal, sys, time; me = os.environ['REST_PROCESS']; "


def started(script: str, *flags: str) -> "subprocess.Popen[str]":
    """Two processes of a Python script."""
    command = [sys.executable, str(LOCAL), *flags, sys.executable, "-c", COMMON + script]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_know_each_other_and_their_lines_carry_their_numbers() -> None:
    told = "print(*(os.environ[n] for n in ('REST_COORDINATOR', 'REST_PROCESSES', 'JAX_PLATFORMS', 'XLA_FLAGS')))"
    process = started(f"{told}; print('oh', file=sys.stderr)", "--processes", "2", "--devices", "3")
    out, error = process.communicate()
    assert process.returncode == 0
    lines = dict(line.split(" ", 1) for line in out.splitlines())
    assert lines["[0]"] == lines["[1]"] and list(lines) in (["[0]", "[1]"], ["[1]", "[0]"])
    coordinator, count, platform, *flags = lines["[0]"].split()
    assert coordinator.startswith("127.0.0.1:") and (count, platform) == ("2", "cpu")
    assert flags[-1] == "--xla_force_host_platform_device_count=3"
    assert sorted(error.splitlines()) == ["[0] oh", "[1] oh"]


@pytest.mark.parametrize(
    ("fails", "status"),
    [("os._exit(70)", 70), ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL)],
)
def test_the_first_that_fails_ends_all_and_its_status_is_the_launchers(fails: str, status: int) -> None:
    process = started(f"{fails} if me == '1' else time.sleep(600)")
    _, error = process.communicate()
    assert process.returncode == status
    assert error.splitlines() == [f"[1] ended with status {status}", f"[0] ended with status {128 + signal.SIGTERM}"]


def test_what_does_not_listen_is_killed() -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(600)"
    with started(deaf, "--grace", "0.1") as process:
        both_say("deaf", process)
        process.terminate()
        assert process.wait() == 128 + signal.SIGKILL


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_are_passed_on(number: signal.Signals, status: int) -> None:
    script = "signal.signal(signal.SIGINT, lambda *_: sys.exit(130)); print('ready'); time.sleep(600)"
    with started(script) as process:
        both_say("ready", process)
        process.send_signal(number)
        assert process.wait() == status


def both_say(word: str, process: "subprocess.Popen[str]") -> None:
    """Wait for it."""
    assert process.stdout is not None
    assert {process.stdout.readline() for _ in range(2)} == {f"[0] {word}\n", f"[1] {word}\n"}


def test_a_command_that_is_not_there_starts_nothing() -> None:
    process = subprocess.run([sys.executable, str(LOCAL), "nowhere"], capture_output=True, text=True)
    assert process.returncode == 2 and "nowhere: no such command" in process.stderr
