"""What the subcommands share: their flags, an experiment opened with flags over it, the console, compiled programs."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rest import processes
from rest.commands.doctor import compile_cache
from rest.errors import UserError

if TYPE_CHECKING:  # at run time only where it is needed: looking at data takes no JAX, which takes seconds
    from rest.experiment import Experiment
    from rest.runs import Run

T = TypeVar("T")

# Flags that were, and what they are now; a star is any part of a name
MOVED = {
    "grow.sampling.rows": "machine.rows",
    "evaluation.sampling.rows": "machine.rows",
    "ppo.rollout.sampling.rows": "machine.rows",
    "evaluation.beam.rows": "machine.beam-rows",
    "bc.train.accumulate": "machine.micro-batches",
    "improve.train.accumulate": "machine.micro-batches",
    "improve.value.accumulate": "machine.micro-batches",
    "reward.train.accumulate": "machine.micro-batches",
    "reward.start.train.accumulate": "machine.micro-batches",
    "ppo.accumulate": "machine.micro-batches",
    "bc.train.remat": "machine.remat",
    "improve.train.remat": "machine.remat",
    "improve.value.remat": "machine.remat",
    "reward.train.remat": "machine.remat",
    "reward.start.train.remat": "machine.remat",
    "ppo.rollout.sampling.temperature": "ppo.rollout.temperature",
    "ppo.rollout.sampling.max-target-tokens": "sampling.max-target-tokens",
    "ppo.stop-at-kl": "ppo.target-kl",
    "ppo.rollout.estimator.*": "ppo.divergence.estimator.*",
    "ppo.rollout.coefficient.*": "ppo.divergence.coefficient.*",
    "ppo.rollout.whiten-rewards": "ppo.advantage.whiten-rewards",
    "ppo.whiten-advantages": "ppo.advantage.whitening",
    "evaluation.dev-samples-per-source": "choose.samples-per-source",
    "evaluation.dev-sources": "choose.sources",
    "*.train.adam.*": "*.train.optimizer.*",
    "improve.value.adam.*": "improve.value.optimizer.*",
    "ppo.adam.*": "ppo.optimizer.*",
    "ppo.critic.adam.*": "ppo.critic.optimizer.*",
}
SHORT = {"--profile": "--machine.profile"}
# Micro-batches were added to a batch; now they divide it.
SUMMED = "; a batch is all that an update sees, so make batch.batch_tokens as many times larger"


ALL = "--help-all"
FIRST = {  # the settings that people change first
    "grow-steps": "G: how often samples are drawn anew",
    "grow.samples-per-source": "N: samples of each source in a Grow step",
    "grow.sources": "sources of a Grow step; 0: all",
    "sampling.temperature": "of samples",
    "sampling.max-target-tokens": "longest sample",
    "bc.train.max-steps": "updates of behavioural cloning, at most",
    "improve.train.max-steps": "updates of an Improve step, at most",
    "improve.train.schedule.learning-rate": "of the first Improve step, after warm-up",
    "ppo.rollouts": "how long to train online for comparison; 0: not",
    "batch.batch-tokens": "target positions of a batch",
    "machine.rows": "hypotheses sampled at the same time; decides no result",
    "seed": "of everything",
}


@dataclass(frozen=True)
class OutFlags:
    """The folder of a run. Every setting of the experiment is a flag too."""

    out: Path
    """The run's folder; made if absent."""


Own = TypeVar("Own", bound=OutFlags)


@contextmanager
def opened(command: str, arguments: Sequence[str], own: type[Own]) -> Iterator[tuple[Own, "Run"]]:
    """The command's own flags, and the run that FILE and the other flags describe, which keeps its settings."""
    flags, run = run_of(command, arguments, own)
    with run.recorded():
        yield flags, run


def run_of(command: str, arguments: Sequence[str], own: type[Own]) -> tuple[Own, "Run"]:
    """The command's own flags, and the run that FILE and the other flags describe; nothing is written."""
    if not arguments or arguments[0].startswith("-"):
        raise UserError(f"name an experiment first, as in `rest {command} FILE[:variant] --out DIR`")

    from rest.experiment import load_experiment
    from rest.runs import Run

    name, *given = arguments
    flags, experiment = experiment_flags(command, [*given, *_own_folder(name, given)], own, load_experiment(name))
    configure_jax()
    return flags, Run(experiment, flags.out)


def _own_folder(name: str, given: Sequence[str]) -> list[str]:
    """`--out DIR/run`, or DIR/VARIANT, where a folder is named for the experiment.py in it, and no other is given."""
    folder, _, variant = name.partition(":")
    if not Path(folder).is_dir() or any(argument.partition("=")[0] == "--out" for argument in given):
        return []
    return ["--out", str(Path(folder) / (variant or "run"))]


def experiment_flags(
    command: str, arguments: Sequence[str], own: type[Own], default: "Experiment"
) -> tuple[Own, "Experiment"]:
    """The command's own flags, and the experiment with the other flags over it."""
    from rest.experiment import Experiment

    refuse_moved(arguments)
    if {"-h", "--help"} & set(arguments):
        say_first(command, own, default)
    arguments = [_in_full("--help" if argument == ALL else argument) for argument in arguments]

    def join(
        flags: Annotated[own, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = default,
    ) -> tuple[Any, Experiment]:
        return flags, experiment

    with processes.quiet():
        return tyro.cli(
            join,
            args=arguments,
            prog=f"rest {command} FILE",
            description=own.__doc__,
            config=(tyro.conf.AvoidSubcommands,),
        )


def say_first(command: str, own: type[Any], experiment: "Experiment") -> NoReturn:
    """The command's own flags, the settings that people change first with their values, and how to list all."""
    with suppress(SystemExit):
        tyro.cli(own, args=["--help"], prog=f"rest {command} FILE", description=own.__doc__)
    table = Table("flag", "now", "what it is", title="settings to change first", title_justify="left", box=SIMPLE_HEAD)
    for flag, meaning in FIRST.items():
        with suppress(AttributeError):  # of a schedule of one's own, say
            value = attrgetter(flag.replace("-", "_"))(experiment)
            table.add_row(f"--{flag}", Text(str(value)), meaning)
    console().print(table)
    print(f"All settings: rest {command} FILE {ALL}")
    raise SystemExit(0)


def _in_full(argument: str) -> str:
    """A flag that has a short name by its long one."""
    flag, equals, value = argument.partition("=")
    return SHORT.get(flag, flag) + equals + value


def parsed(flags: type[T], command: str, arguments: Sequence[str]) -> T:
    """The flags of a command that opens no experiment."""
    refuse_moved(arguments)
    return tyro.cli(flags, args=arguments, prog=f"rest {command}")


def refuse_moved(arguments: Sequence[str]) -> None:
    """UserError that names the new flag where an old one is used."""
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("--") and (new := _new_name(flag[2:].replace("_", "-"))):
            raise UserError(f"{flag} is now --{new}" + SUMMED * flag.endswith("accumulate"))


def _new_name(flag: str) -> str | None:
    """What an old flag, written with hyphens, is now; the same for one that is switched off (bc.train.no-remat)."""
    group, dot, last = flag.rpartition(".")
    switched = "no-" if last.startswith("no-") else ""
    for old, new in MOVED.items():
        pattern = re.escape(old).replace(r"\*", "(.+)")
        if found := re.fullmatch(pattern, group + dot + last.removeprefix(switched)):
            for part in found.groups():
                new = new.replace("*", part, 1)
            group, dot, last = new.rpartition(".")
            return group + dot + switched + last
    return None


def configure_jax() -> None:
    """Compiled programs are kept between runs, where the user keeps caches."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(compile_cache()))


def console() -> Console:
    """Standard output, wide enough for the tables: narrower, they would lose columns."""
    return Console(width=max(116, Console().width))
