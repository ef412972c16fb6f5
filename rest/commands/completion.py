"""`rest completion`: what a shell completes at the Tab key. The script needs no Python while it completes."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import tyro

from rest.commands import run, study
from rest.commands.flags import ALL, OutFlags, experiment_flags, parsed
from rest.commands.names import COMMANDS
from rest.data.corpus import SyntheticCorpus
from rest.data.synthetic import SyntheticLanguage
from rest.errors import UserError
from rest.experiment import Experiment
from rest.reward.learned.settings import RewardSettings
from rest.reward.raters import SimulatedRater

WITH_SETTINGS: dict[str, type[OutFlags]] = {
    "plan": OutFlags,
    "run": run.RunFlags,
    "bc": OutFlags,
    "reward train": run.GrowFlags,
    "grow": run.GrowFlags,
    "improve": run.ImproveFlags,
    "ppo": OutFlags,
    "evaluate": run.EvaluateFlags,
    "best-of-n": run.BestOfNFlags,
    "study": study.Flags,
}
SCRIPT = """\
_rest() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}" flags=""
    if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY=($(compgen -W "{commands}" -- "$current")); return; fi
    case "$command" in
        {groups}) if [ "$COMP_CWORD" -eq 2 ]; then
            case "$command" in
{second}
            esac
            return
        fi; command="$command ${{COMP_WORDS[2]}}" ;;
    esac
    case "$command" in
{flags}
    esac
    if [[ "$current" == -* ]]; then COMPREPLY=($(compgen -W "$flags" -- "$current"))
    else compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$current")); fi
}}
complete -F _rest rest
"""
ZSH = "autoload -U +X compinit && compinit; autoload -U +X bashcompinit && bashcompinit\n"


@dataclass(frozen=True)
class Flags:
    """A script for the shell's own file, such as ~/.bashrc or ~/.zshrc."""

    shell: tyro.conf.Positional[Literal["bash", "zsh"]]
    """The shell it is for."""


def completion(arguments: Sequence[str]) -> None:
    """Print it."""
    flags = parsed(Flags, "completion", arguments)
    print((ZSH if flags.shell == "zsh" else "") + script(), end="")


def script() -> str:
    """For bash; zsh takes it too."""
    groups: dict[str, list[str]] = {}
    for command in COMMANDS:
        first, _, second = command.partition(" ")
        groups.setdefault(first, []).extend([second] * bool(second))
    pairs = {first: names for first, names in groups.items() if names}
    settings = _settings()
    words = {command: _flags_of(command) + settings * (command in WITH_SETTINGS) for command in COMMANDS}
    return SCRIPT.format(
        commands=" ".join(groups),
        groups="|".join(pairs),
        second="\n".join(
            f'                {first}) COMPREPLY=($(compgen -W "{" ".join(names)}" -- "$current")) ;;'
            for first, names in pairs.items()
        ),
        flags="\n".join(
            f'        "{command}") flags="{" ".join(sorted(set(known)))}" ;;' for command, known in words.items()
        ),
    )


def _flags_of(command: str) -> list[str]:
    """All of its own that its help names."""
    if command in WITH_SETTINGS:
        return _shown(lambda: tyro.cli(WITH_SETTINGS[command], args=["--help"]))
    module, function = COMMANDS[command].split(".")
    return _shown(lambda: getattr(import_module(f"rest.commands.{module}"), function)(["--help"]))


def _settings() -> list[str]:
    """Those of a usual experiment."""
    reward = RewardSettings(rater=SimulatedRater())
    usual = Experiment(corpus=SyntheticCorpus(SyntheticLanguage()), reward=reward)
    return _shown(lambda: experiment_flags("run", [ALL], OutFlags, usual))


def _shown(help_of: Callable[[], Any]) -> list[str]:
    """The flags in a help."""
    page, width = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "300"  # no flag is broken
    try:
        with redirect_stdout(page), redirect_stderr(page), suppress(SystemExit, UserError):
            help_of()
    finally:
        del os.environ["COLUMNS"]
        os.environ |= {} if width is None else {"COLUMNS": width}
    return re.findall(r"(?<![\w-])--[a-z](?:[\w.-]*\w)?", page.getvalue())
