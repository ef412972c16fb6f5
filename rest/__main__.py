"""The `rest` command: finds the subcommand, imports what it needs and nothing else, and says what went wrong."""

import errno
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

from rest import processes
from rest.allocator import keep_freed_memory
from rest.commands.names import COMMANDS, EXAMPLES, USAGE
from rest.errors import UserError

HELP, DISTRIBUTED = ("-h", "--help"), "--distributed"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one subcommand; a user's mistake is one sentence on standard error and exit status 1."""
    keep_freed_memory()  # before JAX is imported and has threads
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in HELP:
        print(USAGE, end="")
        return
    words = 2 if arguments[0] in ("reward", "human-eval") else 1
    command, rest = " ".join(arguments[:words]), arguments[words:]
    if command not in COMMANDS:
        from difflib import get_close_matches

        close = get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        print(f"rest: no command {command!r}{hint} (`rest --help` lists them)", file=sys.stderr)
        raise SystemExit(2)
    module, function = COMMANDS[command].split(".")
    if {*HELP, "--help-all"} & {*rest}:
        print(f"Example: {EXAMPLES[command]}\n")
    if module in ("run", "study", "plan") and {*rest[:1]} & {*HELP, "--help-all"}:  # its flags are an experiment's
        print(USAGE, end="")
        return
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what a terminal cannot show ends nothing
            stream.reconfigure(errors="replace")
    try:
        _run(module, function, rest)
    except SystemExit as stopped:
        if processes.several():
            processes.end(stopped.code if isinstance(stopped.code, int) else processes.MISTAKE, "")
        raise
    except Exception:
        processes.crash()


def _run(module: str, function: str, arguments: list[str]) -> None:
    """One subcommand, in one process or as one of several."""
    try:
        if DISTRIBUTED in arguments:
            if module != "run":
                raise UserError(f"{DISTRIBUTED}: is for what makes a run; other processes share a study by themselves")
            processes.join()
        own = [argument for argument in arguments if argument != DISTRIBUTED]
        getattr(import_module(f"rest.commands.{module}"), function)(own)
        sys.stdout.flush()
        processes.leave()
    except UserError as error:
        processes.end(processes.MISTAKE, f"rest: {error}")
    except BrokenPipeError:  # whoever read this has gone, as `head` does; nothing more is written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        processes.end(processes.MISTAKE, "")
    except OSError as error:
        processes.end(processes.MISTAKE, f"rest: {_of_the_system(error)}")
    except KeyboardInterrupt:
        processes.end(processes.STOPPED[signal.SIGINT], processes.STOPPED_TEXT)


def _of_the_system(error: OSError) -> str:
    """What the system refused, in one sentence; raised again where it does not say of which file."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" at {error.filename}" if error.filename else ""
        return f"the disk is full{where}; once there is room, the same command goes on"
    if not error.filename:
        raise error
    return f"{error.filename} cannot be read or written: {error.strerror}"


if __name__ == "__main__":
    main()
