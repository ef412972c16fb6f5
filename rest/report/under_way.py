"""What the stages of a run that goes on recorded last."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rest.folder import StageName, read_json
from rest.report.sections import Section
from rest.report.tables import plain


def section(run: Path) -> Section | None:
    """A line for each stage that has begun and is not whole; None where there is none."""
    begun: dict[StageName, Path] = {}
    for journal in [*run.glob(".*.partial/metrics.jsonl"), *_of_study(run)]:
        folder = journal.parent.name.removeprefix(".").removesuffix(".partial")
        if name := StageName.parse(folder) or StageName.parse(re.sub(r"-[0-9a-f]{16}$", "", folder)):
            begun[name] = journal
    lines = []
    for name in sorted(begun, key=lambda name: name.order):
        if numbers := _last(begun[name]):
            written = datetime.fromtimestamp(numbers.pop("time"), UTC).strftime("%Y-%m-%d %H:%M:%S")
            step = plain(int(numbers.pop("step")))
            lines.append([name.folder, step, written, ", ".join(f"{key} {plain(x)}" for key, x in numbers.items())])
    if not lines:
        return None
    return Section("Under way", [], [[["stage", "step", "written (UTC)", "last numbers"], *lines]])


def _of_study(run: Path) -> list[Path]:
    """The journals of stages of this run's seed that its study makes, in the folder that runs of a study share."""
    settings, found = run / "experiment.json", []
    if settings.is_file():
        seed = read_json(settings).get("seed")
        for journal in (run.absolute().parent.parent / "stages").glob(".*.partial/metrics.jsonl"):
            stage = journal.parent / "stage.json"
            if stage.is_file() and read_json(stage)["settings"].get("seed") == seed:
                found.append(journal)
    return found


def _last(journal: Path) -> dict[str, Any]:
    """The last value of every metric, with the step and the seconds of the last line."""
    numbers: dict[str, Any] = {}
    for line in journal.read_text(encoding="utf-8").splitlines():
        if line.endswith("}"):  # the last line may be half written
            numbers |= json.loads(line)
    return numbers
