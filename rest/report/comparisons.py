"""Paired comparisons of a run's policies, and the alarm where the reward rose at the other metrics' expense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rest.folder import StageName, asked_for, newest_evaluations, read_json
from rest.report.sections import Lines, Section, label_of, updates_after_bc

TITLES = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "ter": "TER",
    "gold_greedy": "gold, greedy",
    "judge_greedy": "judge, greedy",
    "reward_greedy": "reward, greedy",
    "bleu_beam": "BLEU, beam",
    "chrf_beam": "chrF, beam",
    "gold_beam": "gold, beam",
    "judge_beam": "judge, beam",
    "reward_beam": "reward, beam",
    "reward": "reward",
    "gold": "gold",
    "judge": "judge",
}
DIGITS = {name: 4 for name in TITLES if name.startswith(("reward", "gold", "judge"))}


def section(run: Path) -> Section | None:
    """The report's section, None where no two policies were compared."""
    found = read(run)
    if not found:
        return None
    tables = [lines(found), *(row_lines(result) for result in found if result["rows"])]
    return Section("Paired comparisons", sentences(found), tables)


def read(run: Path) -> list[dict[str, Any]]:
    """The comparisons of the run in the order of its steps."""
    results = [read_json(path)["result"] for path in newest_evaluations(run).glob("[!.]*-against-*/stage.json")]
    pairs = [tuple(filter(None, (StageName.parse(result[side]) for side in ("new", "old")))) for result in results]
    made = max((name.steps for pair in pairs for name in pair), default=0)
    within, steps = asked_for(run), updates_after_bc(run) or made

    def asked(name: StageName) -> bool:
        """Not what is of a run in this folder that had other steps."""
        return name.steps == steps if name.made_by.kind == "bc_continued" else within(name)

    shown = [([name.order for name in pair], place) for place, pair in enumerate(pairs) if all(map(asked, pair))]
    return [results[place] for _, place in sorted(shown)]


def lines(found: list[dict[str, Any]]) -> Lines:
    """A line a comparison: the differences with intervals and both p-values, and the alarm."""
    metrics = [metric for metric in TITLES if any(metric in result["tests"] for result in found)]
    table = [["policy", "against", *(TITLES[metric] for metric in metrics), "alarm"]]
    for result in found:
        cells = [_cell(result["tests"].get(metric), DIGITS.get(metric, 2)) for metric in metrics]
        alarm = f"reward up, {', '.join(TITLES[name] for name in result['fell'])} worse" if result["fell"] else ""
        table.append([label_of(result["new"]), label_of(result["old"]), *cells, alarm])
    return table


def _cell(test: dict[str, float] | None, digits: int) -> str:
    if test is None:
        return ""
    return f"{difference(test, digits)} p = {_p(test['p_bootstrap'])} / {_p(test['p_randomisation'])}"


def difference(test: dict[str, float], digits: int) -> str:
    """ "+0.5 [+0.1 to +0.9]"."""
    return f"{test['difference']:+.{digits}f} [{test['lo']:+.{digits}f} to {test['hi']:+.{digits}f}]"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def sentences(found: list[dict[str, Any]]) -> list[str]:
    """A warning for each alarm, then how to read the table."""
    said = []
    for result in found:
        if result["fell"]:
            fell = " and ".join(TITLES[name] for name in result["fell"])
            said.append(
                f"Warning: {label_of(result['new'])} against {label_of(result['old'])}: the reward rose while {fell} "
                "got worse, beyond their paired intervals: look whether the policy exploits the reward. "
                "The rows below gained most reward and lost most of the rest."
            )
    return [
        *said,
        "Reward, gold and judge are those of samples, BLEU, chrF and TER of greedy outputs, where nothing else is "
        "said. Each cell is a difference on the same sources with its paired 95% interval, then two-sided p-values of "
        "a paired bootstrap and of approximate randomisation. They are not corrected for the number of comparisons.",
    ]


def row_lines(result: dict[str, Any]) -> Lines:
    """The rows behind an alarm: gained reward, lost quality."""
    new, old = label_of(result["new"]), label_of(result["old"])
    metrics = [metric for metric in ("reward", "gold", "chrf") if metric in result["rows"][0]]
    table = [["source", f"{old} said", f"{new} says", *(TITLES[metric] for metric in metrics)]]
    for row in result["rows"]:
        changes = [f"{row[metric][0]:.3g} → {row[metric][1]:.3g}" for metric in metrics]
        table.append([row["source"], row["old"], row["new"], *changes])
    return table
