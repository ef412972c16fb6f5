"""`rest plan`: what a run is going to take; and the same plan as it is carried out, on a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import Progress
from rich.table import Table

from rest import processes
from rest.commands.flags import OutFlags, console, run_of
from rest.journal import bars_within, columns_of_bars, literal, say
from rest.journal import console as terminal
from rest.plan import Plan, Planned, plan_of
from rest.runs import Run

ABOVE, BELOW = 3, 6  # stages in view that are made, and that are still to be made
SHOWN = ("updates", "samples", "scores")  # units in a column of their own


def plan(arguments: Sequence[str]) -> None:
    """Stages done and to do, with their units, seconds and bytes."""
    _, run = run_of("plan", arguments, OutFlags)
    show(plan_of(run), run.out)


def show(plan: Plan, out: Path) -> None:
    """The plan as a table, and the sums."""
    shown = console()
    table = Table(title=f"plan of {out}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage")
    for title in (*SHOWN, "time"):
        table.add_column(title, justify="right")
    for stage in plan.stages:
        counts = [f"{stage.units.get(unit, 0):,.0f}" if stage.units.get(unit) else "" for unit in SHOWN]
        table.add_row(literal(stage.label), *counts, "complete" if stage.complete else clock(plan.of(stage)))
    shown.print(table)
    to_do = plan.to_do
    done = len(plan.stages) - len(to_do)
    shown.print(f"{done} of {len(plan.stages)} stages are complete; the others take about {clock(plan.left)} here, and")
    shown.print(f"less where training stops early. On disk: about {size(plan.disk)}.")


@contextmanager
def followed(run: Run) -> Iterator[None]:
    """On a terminal, the plan of a run while it is made; elsewhere nothing."""
    if not terminal.is_terminal or terminal.is_jupyter or processes.several():
        yield
        return
    say("measuring how fast this machine is ...")
    plan = plan_of(run)
    if not plan.to_do:
        yield
        return
    view = View(plan)
    with Live(view, console=terminal, refresh_per_second=2, transient=True), bars_within(view.bars):
        run.watch = view.stage
        try:
            yield
        finally:
            run.watch = nullcontext


class View:
    """What is made, what is being made and what is to come, with the time that is left."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.bars = Progress(*columns_of_bars())
        self.took: dict[str, float] = {stage.path: 0.0 for stage in plan.stages if stage.complete}
        self.now: tuple[Planned, float] | None = None  # and when it began
        self.expected, self.spent = 0.0, 0.0  # seconds of what has been made meanwhile

    @contextmanager
    def stage(self, path: str) -> Iterator[None]:
        """One is made."""
        found = next((each for each in self.plan.stages if _same(each.path, path) and each.path not in self.took), None)
        planned = found or Planned(path, {})
        self.now = planned, time.monotonic()
        yield
        took = time.monotonic() - self.now[1]
        self.took[planned.path] = took
        self.expected, self.spent, self.now = self.expected + self.plan.of(planned), self.spent + took, None

    @property
    def pace(self) -> float:
        """How many times as long as planned stages take, once some have been made."""
        return self.spent / self.expected if self.expected > 20 else 1.0

    def left(self, stage: Planned) -> float:
        """Seconds."""
        here = self.now is not None and self.now[0] is stage
        begun = time.monotonic() - self.now[1] if self.now is not None and here else 0.0
        return max(0.0, self.plan.of(stage) * self.pace - begun)

    def __rich__(self) -> RenderableType:
        """The stages around the one that is being made, the bar of that one, and the sum."""
        made = [stage for stage in self.plan.stages if stage.path in self.took]
        now = [] if self.now is None else [self.now[0]]
        coming = [stage for stage in self.plan.stages if stage.path not in self.took and stage not in now]
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
        for stage in made[-ABOVE:]:
            took = self.took[stage.path]
            table.add_row("✓", literal(stage.label), f"took {clock(took)}" if took else "complete")
        for stage in now:
            table.add_row("▶", literal(stage.label), f"about {clock(self.left(stage))} left")
        for stage in coming[:BELOW]:
            table.add_row(" ", literal(stage.label), f"about {clock(self.left(stage))}")
        if more := coming[BELOW:]:
            table.add_row(" ", f"and {len(more)} more", f"about {clock(float(sum(map(self.left, more))))}")
        total = float(sum(map(self.left, [*now, *coming])))
        return Group(table, self.bars, f"{len(made)} of {len(self.plan.stages)} stages, about {clock(total)} left")


def _same(planned: str, path: str) -> bool:
    """Whether a planned stage is this one; of the control, whose updates are known late, by its kind."""
    if "bc_continued" in planned:
        return "bc_continued" in path and planned.startswith("evaluation") == path.startswith("evaluation")
    return planned == path or ("mbr" in planned and path.startswith(planned)) or path == _refreshed(planned, path)


def _refreshed(planned: str, path: str) -> str:
    """An evaluation's folder where the reward has been refreshed: evaluation-2/bc."""
    first, slash, rest = planned.partition("/")
    return (
        path.partition("/")[0] + slash + rest if first == "evaluation" and path.startswith("evaluation-") else planned
    )


def clock(seconds: float) -> str:
    """1:05:00, 4:10 or 0:07."""
    text = str(timedelta(seconds=round(seconds)))
    return text.removeprefix("0:").removeprefix("0") if text.startswith("0:0") else text.removeprefix("0:")


def size(count: int) -> str:
    """Bytes as a reader wants them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"
