"""What people said of blind sheets, as a section of the report (the paper's figure 7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rest.folder import read_json
from rest.report.sections import Section, label_of


def section(run: Path) -> Section | None:
    """The report's section, None where no sheet was imported."""
    path = run / "evaluation" / "human.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = read_json(path)
    baseline = label_of(found["baseline"])
    scored = [f"score above {baseline} (−6 to 6)", "95% interval", "p", "items"]
    lines = [["policy", *scored, "reward above", "rank: people", "rank: reward"]]
    for result in found["results"]:
        (lo, hi), (people, reward) = result["ci95"], found["ranks"][result["policy"]]
        change = f"{result['difference']:+.2f}", f"{lo:+.2f} to {hi:+.2f}", f"{result['p']:.3f}", str(result["items"])
        by_reward = f"{result['reward_difference']:+.3f}", f"{people:g}", f"{reward:g}"
        lines.append([label_of(result["policy"]), *change, *by_reward])
    said = [
        f"{found['raters']} rater{'s' * (found['raters'] != 1)} saw a source and two outputs without knowing whose, "
        "and scored each from 0 to 6; "
        f"shown is the mean score minus {baseline}'s. Equal outputs count as 0."
    ]
    if found["kendall"] is not None:
        said.append(f"People and the reward rank the policies with Kendall's τ = {found['kendall']:.2f}.")
    if found["agreement"] is not None:
        said.append(
            f"The raters' agreement is Krippendorff's α = {found['agreement']:.2f} (1: they agree, 0: by chance)."
        )
    return Section("Human evaluation", said, [lines])
