"""Following a run: metrics.jsonl, TensorBoard events, Weights & Biases where it is asked for, and a progress bar.

It imports no JAX, so that looking at data is quick.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsFloat

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from rest import processes
from rest.errors import UserError

console = Console(stderr=True)


class Journal:
    """What happened at each step of a stage, in its folder.

    A stage that resumes drops what was written after `from_step`, so every step is there once. Of processes that make
    a stage together, the first one writes; where each has a journal `of_its_own`, all do.
    """

    def __init__(self, folder: Path, from_step: int = 0, *, of_its_own: bool = False) -> None:
        self._writes = of_its_own or processes.talks()
        if not self._writes:
            return
        from tensorboardX import SummaryWriter  # takes a second, and only what trains or samples writes events

        folder.mkdir(parents=True, exist_ok=True)
        self._online = _weights_and_biases(folder) if os.environ.get("WANDB_PROJECT") else None
        path = folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= from_step]
        path.write_text("".join(f"{line}\n" for line in kept))
        self._file = path.open("a")
        self._events = SummaryWriter(str(folder / "events"), purge_step=from_step + 1 if from_step else None)

    def record(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Append the numbers of one step."""
        if not self._writes:
            return
        numbers = {name: float(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **numbers}) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._events.add_scalar(name, value, step)
        if self._online:
            self._online.log(numbers, step=step)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._writes:
            return
        self._file.close()
        self._events.close()
        if self._online:
            self._online.finish(exit_code=int(kind is not None))


def _weights_and_biases(folder: Path) -> Any:
    """A W&B run of this stage in the group of its run's folder; a stage that resumes goes on with its own."""
    try:
        import wandb
    except ImportError as error:
        raise UserError("WANDB_PROJECT is set, but wandb is not installed: pip install wandb") from error
    path = folder.resolve()
    run, *stage = path.parts[-3:] if path.parent.name.endswith(".partial") else path.parts[-2:]  # Grow's is one deeper
    return wandb.init(
        id=hashlib.sha256(str(path).encode()).hexdigest()[:16],
        resume="allow",
        group=run,
        name="/".join([run, *(part.removeprefix(".").removesuffix(".partial") for part in stage)]),
        dir=folder,
        settings=wandb.Settings(console="off", silent=True),
    )


def say(text: str) -> None:
    """One line for the person who follows the run, on standard error; of several processes the first one says it."""
    if processes.talks():
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def literal(text: str, newlines: bool = False) -> Text:
    """Text of others as it stands: no markup, nothing that steers a terminal.

    What cannot be printed becomes U+FFFD: control characters, and new lines too unless they are asked for.
    """
    kept = "\n" if newlines else ""
    return Text("".join(c if c.isprintable() or c in kept else "\N{REPLACEMENT CHARACTER}" for c in text))


class Bar:
    """A progress bar's handle."""

    def __init__(self, progress: Progress, total: int | None, description: str, redraw: Callable[[], None]) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total, note="")
        self._redraw = redraw

    def update(self, done: int, note: str = "") -> None:
        """`done` of the total, with a short note beside it."""
        self._progress.update(self._task, completed=done, note=note)
        self._redraw()

    def end(self) -> None:
        """Take it off what shows it."""
        self._progress.remove_task(self._task)


class Rate(ProgressColumn):
    """How many of what is counted are done a second, lately."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.3g}/s")


_within: list[Progress] = []  # bars that are part of something larger, which shows them


@contextmanager
def bars_within(shown: Progress) -> Iterator[None]:
    """In the meantime bars are drawn there, and not on lines of their own."""
    _within.append(shown)
    try:
        yield
    finally:
        _within.pop()


def columns_of_bars() -> tuple[ProgressColumn, ...]:
    """What a bar's line says."""
    return (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Bar]:
    """A line with what is done, rate, time, time left and a note, on a terminal or in a notebook; elsewhere silent."""
    if _within:
        bar = Bar(_within[-1], total, description, lambda: None)
        yield bar
        bar.end()
        return
    columns = columns_of_bars()
    disabled = not (console.is_terminal and processes.talks())
    with (
        Progress(*columns, console=console, disable=disabled, transient=True) as shown,
        _in_notebook(shown) if console.is_jupyter and processes.talks() else nullcontext(lambda: None) as redraw,
    ):
        yield Bar(shown, total, description, redraw)


@contextmanager
def _in_notebook(shown: Progress) -> Iterator[Callable[[], None]]:
    """An output of the cell that is drawn again at most twice a second, and emptied at the end.

    Rich draws a bar on a terminal by itself; in a notebook it would need ipywidgets, which may not be there.
    """
    from IPython.display import display

    output = display(shown, display_id=True)
    drawn = time.monotonic()

    def redraw() -> None:
        nonlocal drawn
        if time.monotonic() - drawn > 0.5:
            output.update(shown)
            drawn = time.monotonic()

    try:
        yield redraw
    finally:
        output.update({"text/plain": ""}, raw=True)
