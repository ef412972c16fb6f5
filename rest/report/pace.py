"""How fast the trainings of a run went, and what time was lost, as each recorded it last."""

from __future__ import annotations

import json
from pathlib import Path

from rest.folder import StageName, stages_in
from rest.report.sections import Section

TITLE = "Pace"
SHARES = {  # columns that are shares, and what the journal calls them
    "of the devices' peak": "model_flop_utilisation",
    "waiting for data": "lost_to_data",
    "evaluating": "lost_to_evaluation",
    "checkpoints": "lost_to_checkpoints",
    "compiling": "lost_to_compiling",
    "rollouts": "lost_to_rollouts",
}


def paces(run: Path) -> dict[StageName, dict[str, float]]:
    """Of each complete stage that trained, the last numbers of its pace, without "pace/"."""
    found: dict[StageName, dict[str, float]] = {}
    for name in stages_in(run):
        journal = run / name.folder / "metrics.jsonl"
        for line in journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else ():
            if '"pace/' in line and line.endswith("}"):
                numbers = json.loads(line)
                found[name] = {key[5:]: value for key, value in numbers.items() if key.startswith("pace/")}
    return found


def section(run: Path) -> Section | None:
    """A line for each training; None where none recorded its pace."""
    lines = [["stage", "tokens/s a device", *SHARES]]
    for name, numbers in paces(run).items():
        shares = [f"{numbers[key]:.1%}" if key in numbers else "" for key in SHARES.values()]
        lines.append([name.folder, f"{numbers.get('tokens_per_second_per_device', 0):,.0f}", *shares])
    if len(lines) == 1:
        return None
    said = (
        "Tokens, and the share of the peak of known GPUs and TPUs, are of the time of updates; the rest is of all time."
    )
    return Section(TITLE, [said], [lines])
