"""The `rest` command: one subcommand a stage."""

import difflib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro
from rich.console import Console

from rest.allocator import keep_freed_memory
from rest.errors import UserError

if TYPE_CHECKING:
    from rest.algorithm import Run

USAGE = """\
rest: offline Reinforced Self-Training

  rest run FILE[:variant] --out DIR [flags]     the whole loop; on a half-done folder, what is missing
  rest bc FILE[:variant] --out DIR              behavioural cloning
  rest reward train FILE[:variant] --out DIR    rate samples of BC and fit the learned reward
  rest reward evaluate REWARD mqm --path FILE   how far it agrees with people, beside trivial rewards
  rest reward attack REWARD mqm --path FILE     how often spoilt translations score above honest ones
  rest grow FILE[:variant] --out DIR --g 1      sample, score and store one Grow step
  rest improve FILE[:variant] --out DIR --g 1 --i 1    fine-tune on the rows that pass
  rest ppo FILE[:variant] --out DIR --ppo.rollouts 200    online RL from BC, for comparison
  rest evaluate FILE[:variant] --out DIR --policy improve-1-1    reward and metrics on test
  rest best-of-n FILE[:variant] --out DIR --samples 64    what the best of N samples is worth, for every N
  rest human-eval export DIR --policies improve-1-1 --sheet S --key K    a blind sheet for raters
  rest human-eval import DIR --sheets S1 S2 --key K      what the filled sheets say
  rest report DIR                               the table, report.md and report.html of a run; --live 30 follows it
  rest translate DIR < sources > translations   with the last policy of a run, or a stage's
  rest export DIR --out FOLDER                  the same policy for Hugging Face `transformers` and CTranslate2
  rest inspect DIR                              counts, rewards, best and worst rows of a scored dataset

FILE is a Python file that builds an Experiment, such as experiments/synthetic.py. Every setting is a flag:
`rest run FILE --help` lists them. REWARD is a run's folder with a learned reward, or a Python function as
module:function; human ratings are mqm, mlqe-pe, table, votes or rankings.
"""

T = TypeVar("T")


@dataclass(frozen=True)
class _OutFlags:
    out: Path
    """The run's folder; made if absent."""


@dataclass(frozen=True)
class _GrowFlags(_OutFlags):
    g: int = 1
    """Grow step."""


@dataclass(frozen=True)
class _ImproveFlags(_GrowFlags):
    i: int = 1
    """Improve step; 0: all of the Grow step's rows."""


@dataclass(frozen=True)
class _EvaluateFlags(_OutFlags):
    policy: str = "bc"
    """Folder of the policy in the run: bc, bc_continued-600, improve-1-2, ppo, ..."""
    decode: Literal["sample", "greedy", "beam", "best_of_n", "mbr"] = "sample"
    """sample: everything, with greedy and beam search beside samples; the others add a row of their own."""
    n: int = 16
    """Samples a source of best_of_n and mbr."""
    utility: Literal["chrf", "chrf-aggregate", "chrf++", "bleu"] = "chrf"
    """What mbr compares samples by; chrf-aggregate is quick where n is in the hundreds."""
    prune_to: int = 0
    """So many samples with the highest rewards are mbr's candidates; 0: all."""


@dataclass(frozen=True)
class _BestOfNFlags(_OutFlags):
    policies: tuple[str, ...] = ()
    """Folders of policies in the run; none: BC and every Improve step."""
    samples: int = 32
    """Samples a source: the curves go from N = 1 to this."""


@dataclass(frozen=True)
class _ReportFlags:
    run: tyro.conf.Positional[Path]
    """The run's folder."""
    live: float | None = None
    """Write the report again every so many seconds while the run goes on, as a page that loads itself again."""


@dataclass(frozen=True)
class _ExportFlags:
    folder: tyro.conf.Positional[Path]
    """A run's folder, for its last policy, or the folder of a stage: runs/demo/improve-1-2."""
    out: Path
    """The folder to make."""
    format: Literal["huggingface"] = "huggingface"
    """config.json, model.safetensors, source.spm, target.spm, vocab.json: a Marian model."""


@dataclass(frozen=True)
class _InspectFlags:
    folder: tyro.conf.Positional[Path]
    """A Grow step's folder: runs/demo/grow-1."""
    rows: int = 5
    """How many of the best, of the worst and of the most disputed rows to show."""
    where: str | None = None
    """Look only at rows that fulfil a condition on columns: "reward > 0.9 and flags = '' and length < 20"."""
    source_id: int | None = None
    """Look only at the rows of one source."""
    duplicates: bool = False
    """Count samples that repeat another sample of their source."""
    export: Path | None = None
    """Write the rows looked at to this .jsonl or .csv file instead."""
    verify: bool = False
    """Hash every shard and compare with the manifest."""


# One function a subcommand


def _run(arguments: Sequence[str]) -> None:
    from rest.algorithm import rest
    from rest.report.summary import summarise

    with _opened("run", arguments, _OutFlags) as (flags, run):
        rest(run)
    summarise(flags.out)
    _show(flags.out)


def _bc(arguments: Sequence[str]) -> None:
    with _opened("bc", arguments, _OutFlags) as (_, run):
        run.bc()


def _reward_train(arguments: Sequence[str]) -> None:
    with _opened("reward train", arguments, _GrowFlags) as (flags, run):
        _within("g", flags.g, 1, run.experiment.grow_steps, "grow_steps")
        if not run.learns_reward:
            raise UserError("reward: the experiment gives its reward, so there is none to train")
        run.reward(flags.g)


def _reward_evaluate(arguments: Sequence[str]) -> None:
    from rest.report.judging import evaluate_reward

    _configure_jax()
    evaluate_reward(arguments, _console())


def _reward_attack(arguments: Sequence[str]) -> None:
    from rest.report.judging import attack_reward

    _configure_jax()
    attack_reward(arguments, _console())


def _grow(arguments: Sequence[str]) -> None:
    with _opened("grow", arguments, _GrowFlags) as (flags, run):
        _within("g", flags.g, 1, run.experiment.grow_steps, "grow_steps")
        run.grow(flags.g, run.policy_before(flags.g), run.reward(flags.g))


def _improve(arguments: Sequence[str]) -> None:
    from rest.grow import open_dataset

    with _opened("improve", arguments, _ImproveFlags) as (flags, run):
        _within("g", flags.g, 1, run.experiment.grow_steps, "grow_steps")
        _within("i", flags.i, 0, run.experiment.improve.rule.steps, "steps of improve.rule")
        dataset = open_dataset(flags.out / f"grow-{flags.g}")
        run.improve(flags.g, flags.i, run.policy_before(flags.g, flags.i), dataset, run.reward(flags.g))


def _ppo(arguments: Sequence[str]) -> None:
    with _opened("ppo", arguments, _OutFlags) as (_, run):
        run.ppo()


def _evaluate(arguments: Sequence[str]) -> None:
    from rest.evaluation.decoding import DecodingSettings
    from rest.report.summary import summarise

    with _opened("evaluate", arguments, _EvaluateFlags) as (flags, run):
        if flags.decode == "sample":
            run.evaluate(flags.policy, run.load(flags.policy))
        else:
            decoding = DecodingSettings(flags.decode, flags.n, flags.utility, flags.prune_to)
            run.decode(flags.policy, run.load(flags.policy), decoding)
    summarise(flags.out)


def _best_of_n(arguments: Sequence[str]) -> None:
    from rest.report.best_of_n import section

    with _opened("best-of-n", arguments, _BestOfNFlags) as (flags, run):
        if flags.samples < 2:
            raise UserError(f"--samples {flags.samples}: must be at least 2")
        for name in flags.policies or ["bc", *(folder.name for folder in run.improves())]:
            run.best_of_n(name, run.load(name), flags.samples)
    found = section(flags.out)
    assert found is not None
    _console().print(*found.console(), sep="\n")


def _human_eval_export(arguments: Sequence[str]) -> None:
    from rest.report.human import export

    export(arguments, _console())


def _human_eval_import(arguments: Sequence[str]) -> None:
    from rest.report.human import import_

    import_(arguments, _console())


def _report(arguments: Sequence[str]) -> None:
    from rest.report.summary import summarise

    flags = tyro.cli(_ReportFlags, args=arguments, prog="rest report")
    if not flags.run.is_dir():
        raise UserError(f"{flags.run}: no such folder")
    if flags.live is not None:
        _follow(flags.run, flags.live)
    summarise(flags.run)
    _show(flags.run)


def _follow(run: Path, seconds: float) -> None:
    """Write the report every so many seconds, until Ctrl-C."""
    from rest.report.page import write_report
    from rest.report.summary import summarise

    if not seconds > 0:
        raise UserError(f"live must be above 0 seconds, not {seconds:g}")
    if not (run / "experiment.json").exists():
        raise UserError(f"{run} is no run's folder: it has no experiment.json")
    print(f"{run / 'report.html'} follows the run until Ctrl-C, once a policy has been evaluated", file=sys.stderr)
    while True:
        if (run / "evaluation" / "bc" / "stage.json").exists():
            summarise(run)
            write_report(run, refresh=seconds)
        time.sleep(seconds)


def _translate(arguments: Sequence[str]) -> None:
    from rest.report.translate import translate_lines

    _configure_jax()
    translate_lines(arguments)


def _export(arguments: Sequence[str]) -> None:
    from rest.inputs import last_policy
    from rest.journal import say
    from rest.model.huggingface import write_marian

    flags = tyro.cli(_ExportFlags, args=arguments, prog="rest export")
    policy = last_policy(flags.folder)
    write_marian(flags.out, policy.settings, policy.tokenizer, policy.parameters)
    say(f"{flags.out}: a Marian model, for transformers and CTranslate2")


def _inspect(arguments: Sequence[str]) -> None:
    from rest.data.inspect import describe, export
    from rest.data.store import ScoredDataset  # and nothing that imports JAX, which takes seconds
    from rest.data.where import rows_where

    flags = tyro.cli(_InspectFlags, args=arguments, prog="rest inspect")
    if not flags.folder.exists():
        raise UserError(f"{flags.folder}: no such grow step; make it with `rest grow`")
    dataset = ScoredDataset.open(flags.folder)
    if flags.verify:
        dataset.verify()
    of_source = None if flags.source_id is None else f"source_id = {flags.source_id}"
    conditions = [rows_where(dataset, text) for text in (flags.where, of_source) if text is not None]
    chosen = conditions[0] if conditions else None
    for more in conditions[1:]:
        chosen = chosen & more
    if flags.export is not None:
        print(f"{export(dataset, flags.export, chosen):,} rows in {flags.export}")
    else:
        _console().print(describe(dataset, flags.rows, chosen, flags.duplicates))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "run": _run,
    "bc": _bc,
    "reward train": _reward_train,
    "reward evaluate": _reward_evaluate,
    "reward attack": _reward_attack,
    "grow": _grow,
    "improve": _improve,
    "ppo": _ppo,
    "evaluate": _evaluate,
    "best-of-n": _best_of_n,
    "human-eval export": _human_eval_export,
    "human-eval import": _human_eval_import,
    "report": _report,
    "translate": _translate,
    "export": _export,
    "inspect": _inspect,
}


# What they share


@contextmanager
def _opened(command: str, arguments: Sequence[str], own: type[T]) -> Iterator[tuple[T, "Run"]]:
    """The command's own flags, and the run that FILE and the other flags describe."""
    from rest.algorithm import Run
    from rest.experiment import Experiment, load_experiment

    if not arguments or arguments[0].startswith("-"):
        raise UserError(f"name an experiment first, as in `rest {command} FILE[:variant] --out DIR`")
    default = load_experiment(arguments[0])

    def join(
        flags: Annotated[own, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = default,
    ) -> tuple[Any, Experiment]:
        return flags, experiment

    flags, experiment = tyro.cli(
        join, args=arguments[1:], prog=f"rest {command} FILE", config=(tyro.conf.AvoidSubcommands,)
    )
    _configure_jax()
    run = Run(experiment, flags.out)
    with run.recorded():
        yield flags, run


def _within(flag: str, value: int, low: int, high: int, limit: str) -> None:
    if not low <= value <= high:
        raise UserError(f"--{flag} {value}: must be from {low} to {high}, the {limit} of the experiment")


def _configure_jax() -> None:
    """Compiled programs are kept between runs, where the user keeps caches."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rest" / "jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))


def _show(folder: Path) -> None:
    """The table of a run, what it says, and where the report is."""
    from rest.report.page import write_report
    from rest.report.tables import console, verdict
    from rest.stage import read_json

    rows = read_json(folder / "summary.json")
    report = write_report(folder)
    shown = _console()
    shown.print(console(rows, "test"))
    for sentence in verdict(rows, "test"):
        shown.print(sentence, highlight=False, markup=False)
    shown.print(f"report: {report}", highlight=False, markup=False, soft_wrap=True)


def _console() -> Console:
    """Standard output, wide enough for the tables: narrower, they would lose columns."""
    return Console(width=max(116, Console().width))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one subcommand; a user's mistake is one sentence on standard error and exit status 1."""
    keep_freed_memory()  # before JAX is imported and has threads
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help") or arguments[1:] in (["-h"], ["--help"]):
        print(USAGE, end="")
        return
    words = 2 if arguments[0] in ("reward", "human-eval") else 1
    command, rest = " ".join(arguments[:words]), arguments[words:]
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        print(f"rest: no command {command!r}{hint} (`rest --help` lists them)", file=sys.stderr)
        raise SystemExit(2)
    try:
        COMMANDS[command](rest)
    except UserError as error:
        print(f"rest: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        where = f" at {error.filename}" if error.filename else ""
        print(f"rest: the disk is full{where}; once there is room, the same command goes on", file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt as error:
        print("rest: stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from error


if __name__ == "__main__":
    main()
