"""The plan as a reader sees it, before and while it is carried out."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from rest.commands.plan import View, clock, size
from rest.plan import Plan, Planned

PLAN = Plan(
    (
        Planned("bc", {"updates": 100}, complete=True),
        Planned("grow-1", {"samples": 100}),
        *(Planned(f"improve-1-{i}", {"updates": 50}) for i in range(1, 11)),
        Planned("bc_continued-500", {"updates": 500}),
    ),
    {"updates": 1.0, "samples": 0.5},
    5_000_000,
)


def drawn(view: View) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(view)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0:00"), (7.0, "0:07"), (250.0, "4:10"), (3900.0, "1:05:00"), (9e4, "1 day, 1:00:00")],
)
def test_times_are_written_as_on_a_clock(seconds, text):
    assert clock(seconds) == text


def test_sizes_are_written_in_the_unit_that_fits():
    assert [size(n) for n in (10, 5_400_000, 2_310_000_000)] == ["1 MB", "5 MB", "2.3 GB"]


def test_the_view_shows_what_is_made_what_is_being_made_and_what_is_left():
    view = View(PLAN)
    assert "✓ BC" in drawn(view) and "1 of 13 stages, about 17:30 left" in drawn(view)
    with view.stage("grow-1"):
        shown = drawn(view)
        assert "▶ G1 " in shown and "about 0:50 left" in shown and "and 5 more" in shown
    assert "✓ G1 " in drawn(view) and "2 of 13 stages" in drawn(view)


def test_the_view_knows_the_control_whatever_its_updates_and_learns_the_pace():
    view = View(PLAN)
    with view.stage("bc_continued-320"):
        assert view.now is not None and view.now[0].path == "bc_continued-500"
    with view.stage("something-else"):
        assert view.now[0].path == "something-else"
    view.expected, view.spent = 100.0, 200.0
    assert view.left(PLAN.stages[1]) == 100.0  # twice as long as planned
