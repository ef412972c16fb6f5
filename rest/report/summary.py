"""summary.json: one row a policy, from the stages of a run that are complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rest.errors import UserError
from rest.folder import StageName, read_json, stages_in, write_json


def summarise(run: Path) -> list[dict[str, Any]]:
    """Write summary.json and evaluation/samples.json from the evaluations in a run's folder."""
    rows: list[dict[str, Any]] = []
    outputs: dict[str, list[dict[str, Any]]] = {}
    root = _newest_evaluations(run)
    for name in _policies(run):
        evaluation = root / name.folder / "stage.json"
        if not evaluation.exists():
            continue
        record = read_json(evaluation)
        made = [_result(run, stage) for stage in _lineage(run, name)]
        rows.append(
            {
                "policy": "rest" if name.kind == "improve" else name.kind,
                "grow": name.g,
                "improve": name.i,
                "decode": "sample",
                "n": record["settings"]["evaluation"]["samples_per_source"],
                "split": "test",
                "metrics": record["result"]["metrics"],
                "samples_drawn": sum(stage.get("samples", 0) for stage in made),
                "gradient_steps": sum(stage.get("gradient_steps", 0) for stage in made),
                "wall_s": round(sum(stage["wall_s"] for stage in made), 1),
            }
        )
        for decoded in sorted(run.glob(f"evaluation/decode/{name.folder}.*/stage.json")):
            result = read_json(decoded)["result"]
            rows.append(rows[-1] | {key: result[key] for key in ("decode", "n", "metrics")})
        outputs[name.label] = record["result"]["shown"]
    if not rows:
        raise UserError(f"{run}: no policy has been evaluated; do so with `rest evaluate` or `rest run`")
    write_json(run / "summary.json", rows)
    (run / "evaluation").mkdir(exist_ok=True)
    write_json(run / "evaluation" / "samples.json", _side_by_side(outputs))
    return rows


def _newest_evaluations(run: Path) -> Path:
    """Where policies were evaluated with the newest reward, so that all rows of a table are scored by the same."""
    numbers = [folder.name.removeprefix("evaluation-") for folder in run.glob("evaluation-*")]
    newest = max((int(number) for number in numbers if number.isdigit()), default=None)
    return run / ("evaluation" if newest is None else f"evaluation-{newest}")


def _policies(run: Path) -> list[StageName]:
    """The policies of a run in the order of the table, and of its controls the one with as many steps as the rest."""
    improves, ppo = stages_in(run, "improve"), stages_in(run, "ppo")
    paths = [name for name in improves if name.on_the_way], ppo
    spent = max(sum(_result(run, name)["gradient_steps"] for name in path) for path in paths)
    return [StageName("bc"), StageName("bc_continued", steps=spent), *improves, *ppo]


def _lineage(run: Path, name: StageName) -> list[StageName]:
    """The stages that led to a policy; what a row counts is all that was spent on the way."""
    bc = StageName("bc")
    if name.kind != "improve":
        return list(dict.fromkeys([bc, name]))
    before = [step for step in stages_in(run, "improve") if step.on_the_way and step.order < name.order]
    return [bc, *(StageName("grow", g) for g in range(1, name.g + 1)), *before, name]


def _result(run: Path, name: StageName) -> dict[str, Any]:
    return read_json(run / name.folder / "stage.json")["result"]


def _side_by_side(outputs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One entry per source, with every policy's output."""
    first = next(iter(outputs.values()))
    return [
        {
            "source": row["source"],
            "reference": row["reference"],
            "outputs": [
                {
                    "policy": label,
                    **{key: shown[k][key] for key in ("hypothesis", "reward", "gold")},
                }
                for label, shown in outputs.items()
            ],
        }
        for k, row in enumerate(first)
    ]
