"""summary.json: one row a policy, from the stages of a run that are complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rest.data.shards import reading
from rest.errors import UserError
from rest.folder import StageName, newest_evaluations, read_json, write_json
from rest.report.sections import result_of, stages_of, updates_after_bc

DECODED = ("decode", "n", "metrics")  # what another way of decoding changes in a row; and the temperature of samples


def summarise(run: Path) -> list[dict[str, Any]]:
    """Write summary.json and evaluation/samples.json from the evaluations in a run's folder."""
    rows: list[dict[str, Any]] = []
    outputs: dict[str, list[dict[str, Any]]] = {}
    root = newest_evaluations(run)
    for name in _policies(run):
        evaluation = root / name.folder / "stage.json"
        if not evaluation.exists():
            continue
        record = read_json(evaluation)
        made = [result_of(run, stage) for stage in _lineage(run, name)]
        row = {
            "policy": "rest" if name.kind == "improve" else name.kind,
            "grow": name.g,
            "improve": name.i,
            "decode": "sample",
            "n": record["settings"]["evaluation"]["samples_per_source"],
            "split": "test",
            **_sources(evaluation.with_name("greedy.parquet")),
            "metrics": record["result"]["metrics"],
            "samples_drawn": sum(stage.get("samples", 0) for stage in made),
            "gradient_steps": sum(stage.get("gradient_steps", 0) for stage in made),
            "wall_s": round(sum(stage["wall_s"] for stage in made), 1),
            **_chosen(name, made[-1]),
        }
        rows.append(row)
        for decoded in sorted(root.glob(f"decode/{name.folder}.*/stage.json"), key=_hottest_first):
            result = read_json(decoded)["result"]
            rows.append(row | {key: result[key] for key in (*DECODED, "temperature") if key in result})
        outputs[name.label] = record["result"]["shown"]
    if not rows:
        raise UserError(f"{run}: no policy has been evaluated; do so with `rest evaluate` or `rest run`")
    write_json(run / "summary.json", rows)
    (run / "evaluation").mkdir(exist_ok=True)
    write_json(run / "evaluation" / "samples.json", _side_by_side(outputs))
    return rows


def _policies(run: Path) -> list[StageName]:
    """The policies of a run in the order of the table, and of its controls the one with as many steps as the rest."""
    spent = updates_after_bc(run)
    controls = (StageName(kind, steps=spent) for kind in ("bc_continued", "bc_continued_last"))
    return [StageName("bc"), *controls, *stages_of(run, "improve"), *stages_of(run, "ppo")]


def _lineage(run: Path, name: StageName) -> list[StageName]:
    """The stages that led to a policy; what a row counts is all that was spent on the way."""
    bc = StageName("bc")
    if name.kind != "improve":
        return list(dict.fromkeys([bc, name.made_by]))
    before = [step for step in stages_of(run, "improve") if step.on_the_way and step.order < name.order]
    return [bc, *(StageName("grow", g) for g in range(1, name.g + 1)), *before, name]


def _chosen(name: StageName, made: dict[str, Any]) -> dict[str, Any]:
    """What chose the policy on dev, and whether it is the last one that training came to, as far as that is known."""
    if name != name.made_by:  # the last is the last
        return {}
    return {key: made[key] for key in ("chosen_by", "last_is_chosen") if key in made}


def _sources(outputs: Path) -> dict[str, int]:
    """How many sources the numbers are of, where their outputs are kept."""
    if not outputs.exists():
        return {}
    with reading(outputs):
        return {"sources": pq.read_metadata(outputs).num_rows}


def _hottest_first(path: Path) -> tuple[float, str]:
    """Samples by their temperature, then other ways of decoding by name."""
    way = path.parent.name.partition(".")[2]
    return (-float(way.removeprefix("sample-")), "") if way.startswith("sample-") else (0.0, way)


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
