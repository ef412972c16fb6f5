"""What the subcommands share: their flags, an experiment opened with flags over it, the console, compiled programs."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro
from rich.console import Console

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
# Micro-batches were added to a batch; now they divide it.
SUMMED = "; a batch is all that an update sees, so make batch.batch_tokens as many times larger"


@dataclass(frozen=True)
class OutFlags:
    """The folder of a run. Every setting of the experiment is a flag too."""

    out: Path
    """The run's folder; made if absent."""


Own = TypeVar("Own", bound=OutFlags)


@contextmanager
def opened(command: str, arguments: Sequence[str], own: type[Own]) -> Iterator[tuple[Own, "Run"]]:
    """The command's own flags, and the run that FILE and the other flags describe."""
    if not arguments or arguments[0].startswith("-"):
        raise UserError(f"name an experiment first, as in `rest {command} FILE[:variant] --out DIR`")

    from rest.experiment import load_experiment
    from rest.runs import Run

    name, *given = arguments
    flags, experiment = experiment_flags(command, [*given, *_own_folder(name, given)], own, load_experiment(name))
    configure_jax()
    run = Run(experiment, flags.out)
    with run.recorded():
        yield flags, run


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

    def join(
        flags: Annotated[own, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = default,
    ) -> tuple[Any, Experiment]:
        return flags, experiment

    return tyro.cli(
        join,
        args=arguments,
        prog=f"rest {command} FILE",
        description=own.__doc__,
        config=(tyro.conf.AvoidSubcommands,),
    )


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
