"""Run one command as several JAX processes of this machine, each with CPU devices of its own.

    python scripts/launch/local.py --processes 2 --devices 2 \
        .venv/bin/rest run experiments/synthetic.py --out runs/demo --distributed

What to edit: nothing. It is for trying a run of several processes, and for CPUs with many cores; a machine with GPUs
needs no launcher, since one process uses all of them. Without `--distributed` the processes are independent, which
suits `rest grow`.

When one fails: the others get SIGTERM, and SIGKILL `--grace` seconds later. Ctrl-C, SIGTERM and the end of the terminal
are passed on in the same way; a second one kills at once. The exit status is that of the process that failed first,
128 + n where signal n ended it. The same command goes on with the run.

How to follow it: each line of output begins with the number of its process. Only the standard library is used.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO, Any

PASSED_ON = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def environment(processes: int, devices: int) -> dict[str, str]:
    """What all processes are told; each also gets its number."""
    with socket.socket() as free:  # a port that is free now
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    told = {"REST_COORDINATOR": f"127.0.0.1:{port}", "REST_PROCESSES": str(processes)}
    return {**os.environ, **told, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip(), "PYTHONUNBUFFERED": "1"}


class Group:
    """The processes. Each is the first of a process group, so that what it started ends with it."""

    def __init__(self, command: list[str], processes: int, devices: int, grace: float) -> None:
        self.grace, self.kill_at, self.asked = grace, float("inf"), 0
        self.ended: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # numbers in the order of their ends
        self.processes: list[subprocess.Popen[bytes]] = []
        for number in PASSED_ON:
            signal.signal(number, self.pass_on)
        told, pipe = environment(processes, devices), subprocess.PIPE
        for i in range(processes):
            own = {**told, "REST_PROCESS": str(i)}
            self.processes.append(subprocess.Popen(command, env=own, stdout=pipe, stderr=pipe, start_new_session=True))
        if self.asked:  # while they were being started
            self.stop(self.asked)
        self.threads = [
            threading.Thread(target=self._watch, args=(i, process), daemon=True)
            for i, process in enumerate(self.processes)
        ]
        for thread in self.threads:
            thread.start()

    def _watch(self, number: int, process: subprocess.Popen[bytes]) -> None:
        readers = [
            threading.Thread(target=_show, args=(number, pipe, out), daemon=True)
            for pipe, out in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        ]
        for reader in readers:
            reader.start()
        process.wait()
        self.ended.put(number)
        for reader in readers:
            reader.join(2)  # what a process started may keep its output open

    def stop(self, number: int) -> None:
        """Send a signal to those that run, which must end within the grace."""
        for process in self.processes:
            process.send_signal(number)  # nothing where it has ended
        self.kill_at = min(self.kill_at, time.monotonic() + self.grace)

    def pass_on(self, number: int, _: Any) -> None:
        """A signal to the launcher; the second one ends them at once."""
        self.stop(number)
        if self.asked:
            self.kill_at = 0.0
        self.asked = number
        self.ended.put(None)  # look at the time again

    def wait(self) -> int:
        """Until all have ended; the status of the first that failed."""
        running, failed = set(range(len(self.processes))), 0
        while running:
            left = self.kill_at - time.monotonic()
            try:
                # not for ever: a signal that comes just before the wait is acted on only when the wait ends
                number = self.ended.get(timeout=min(max(0.0, left), 1.0))
            except queue.Empty:
                if time.monotonic() < self.kill_at:
                    continue
                for i in running:
                    os.killpg(self.processes[i].pid, signal.SIGKILL)
                self.kill_at = float("inf")
                continue
            if number is None:
                continue
            running.discard(number)
            status = self.processes[number].returncode
            if status:
                status = status if status > 0 else 128 - status
                print(f"[{number}] ended with status {status}", file=sys.stderr, flush=True)
            if status and not failed and not self.asked:  # else they are ending already
                self.stop(signal.SIGTERM)
            failed = failed or status
        for thread in self.threads:
            thread.join()
        return failed


def _show(number: int, pipe: IO[bytes], out: IO[str]) -> None:
    """Copy lines as they come; one write each, so that those of several processes do not mix."""
    for line in pipe:
        out.write(f"[{number}] {line.decode(errors='replace').rstrip()}\n")
        out.flush()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--processes", type=int, default=2, help="how many (2)")
    parser.add_argument("--devices", type=int, default=1, help="CPU devices of each (1)")
    parser.add_argument("--grace", type=float, default=10.0, help="seconds from SIGTERM to SIGKILL (10)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run, with its flags")
    flags = parser.parse_args()
    if not flags.command or flags.processes < 1 or flags.devices < 1:
        parser.error("name a command, at least one process and at least one device")
    if shutil.which(flags.command[0]) is None:
        parser.error(f"{flags.command[0]}: no such command")
    return Group(flags.command, flags.processes, flags.devices, flags.grace).wait()


if __name__ == "__main__":
    raise SystemExit(main())
