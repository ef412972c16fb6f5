"""`rest human-eval export` and `rest human-eval import`, and what people said in the report (PAPER.md, figure 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from rest.errors import UserError
from rest.evaluation.human import export_sheet, import_sheets
from rest.evaluation.outputs import Outputs
from rest.report.sections import Section, label_of
from rest.stage import read_json, write_json


@dataclass(frozen=True)
class _ExportFlags:
    run: tyro.conf.Positional[Path]
    """The run's folder, with evaluated policies."""
    sheet: Path
    """The CSV file to make: one copy a rater, who fills in score_1 and score_2, from 0 to 6."""
    key: Path
    """The JSON file to make, which says whose outputs they are; not for raters."""
    policies: tuple[str, ...]
    """Policies to compare with the baseline: improve-1-1 improve-1-2."""
    baseline: str = "bc"
    """What every policy is compared with."""
    sources: int = 100
    """Random sources of the test split."""
    seed: int = 0
    """Of sources and order."""


@dataclass(frozen=True)
class _ImportFlags:
    run: tyro.conf.Positional[Path]
    """The run's folder; the result is kept in it and shown by `rest report`."""
    key: Path
    """The file that `export` made."""
    sheets: tuple[Path, ...]
    """Filled sheets, one a rater."""


def export(arguments: Sequence[str], console: Console) -> None:
    """Sheet and key from the greedy outputs of evaluated policies."""
    flags = tyro.cli(_ExportFlags, args=arguments, prog="rest human-eval export")
    names = list(dict.fromkeys([flags.baseline, *flags.policies]))
    if len(names) < 2:
        raise UserError(f"--policies: name at least one policy other than {flags.baseline}")
    files = {name: flags.run / "evaluation" / name / "greedy.parquet" for name in names}
    for name, file in files.items():
        if not file.is_file():
            raise UserError(f"{file}: no such outputs; they are made with `rest evaluate --policy {name}`")
    for path in (flags.sheet, flags.key):
        if path.exists():
            raise UserError(f"{path}: exists already, and may hold somebody's work; choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
    outputs = {name: Outputs.read(file) for name, file in files.items()}
    count = export_sheet(outputs, flags.baseline, flags.sources, flags.seed, flags.sheet, flags.key)
    console.print(f"{count} items in {flags.sheet}; keep {flags.key} from the raters", highlight=False, markup=False)


def import_(arguments: Sequence[str], console: Console) -> None:
    """What filled sheets say, kept in the run's folder."""
    flags = tyro.cli(_ImportFlags, args=arguments, prog="rest human-eval import")
    if not flags.run.is_dir():
        raise UserError(f"{flags.run}: no such folder")
    if not flags.sheets:
        raise UserError("--sheets: name at least one filled sheet")
    found = import_sheets(flags.sheets, flags.key)
    (flags.run / "evaluation").mkdir(exist_ok=True)
    write_json(flags.run / "evaluation" / "human.json", asdict(found) | {"ranks": found.ranks()})
    shown = section(flags.run)
    assert shown is not None
    console.print(*shown.console(), sep="\n")


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
        f"{found['raters']} raters saw a source and two outputs without knowing whose, and scored each from 0 to 6; "
        f"shown is the mean score minus {baseline}'s. Equal outputs count as 0."
    ]
    if found["rank_correlation"] is not None:
        said.append(f"People and the reward rank the policies with Kendall's τ = {found['rank_correlation']:.2f}.")
    if found["agreement"] is not None:
        said.append(
            f"The raters' agreement is Krippendorff's α = {found['agreement']:.2f} (1: they agree, 0: by chance)."
        )
    return Section("Human evaluation", said, [lines])
