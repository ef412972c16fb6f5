"""What the stages of a run that goes on recorded last."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rest.report.sections import Section
from rest.report.tables import plain


def section(run: Path) -> Section | None:
    """A line for each stage that has begun and is not whole; None where there is none."""
    lines = []
    for journal in sorted(run.glob(".*.partial/metrics.jsonl")):
        if numbers := _last(journal):
            written = datetime.fromtimestamp(numbers.pop("time"), UTC).strftime("%Y-%m-%d %H:%M:%S")
            stage, step = journal.parent.name[1:].removesuffix(".partial"), plain(int(numbers.pop("step")))
            lines.append([stage, step, written, ", ".join(f"{name} {plain(x)}" for name, x in numbers.items())])
    if not lines:
        return None
    return Section("Under way", [], [[["stage", "step", "written (UTC)", "last numbers"], *lines]])


def _last(journal: Path) -> dict[str, Any]:
    """The last value of every metric, with the step and the seconds of the last line."""
    numbers: dict[str, Any] = {}
    for line in journal.read_text(encoding="utf-8").splitlines():
        if line.endswith("}"):  # the last line may be half written
            numbers |= json.loads(line)
    return numbers
