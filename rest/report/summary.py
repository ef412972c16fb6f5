"""summary.json: one row a policy, from the stages of a run that are complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rest.errors import UserError
from rest.stage import read_json, write_json


def summarise(run: Path) -> list[dict[str, Any]]:
    """Write summary.json and evaluation/samples.json from the evaluations in a run's folder."""
    rows: list[dict[str, Any]] = []
    outputs: dict[str, list[dict[str, Any]]] = {}
    root = _newest_evaluations(run)
    for folder in _policies(run):
        evaluation = root / folder / "stage.json"
        if not evaluation.exists():
            continue
        record = read_json(evaluation)
        name, g, i = _place(folder)
        made = [_result(run, stage) for stage in _lineage(run, folder)]
        rows.append(
            {
                "policy": name,
                "grow": g,
                "improve": i,
                "decode": "sample",
                "n": record["settings"]["evaluation"]["samples_per_source"],
                "split": "test",
                "metrics": record["result"]["metrics"],
                "samples_drawn": sum(stage.get("samples", 0) for stage in made),
                "gradient_steps": sum(stage.get("gradient_steps", 0) for stage in made),
                "wall_s": round(sum(stage["wall_s"] for stage in made), 1),
            }
        )
        for decoded in sorted(run.glob(f"evaluation/decode/{folder}.*/stage.json")):
            result = read_json(decoded)["result"]
            rows.append(rows[-1] | {key: result[key] for key in ("decode", "n", "metrics")})
        outputs[_label(name, g, i)] = record["result"]["shown"]
    if not rows:
        raise UserError(f"{run}: no policy has been evaluated; do so with `rest evaluate` or `rest run`")
    write_json(run / "summary.json", rows)
    (run / "evaluation").mkdir(exist_ok=True)
    write_json(run / "evaluation" / "samples.json", _side_by_side(outputs))
    return rows


def _newest_evaluations(run: Path) -> Path:
    """Where policies were evaluated with the newest reward, so that all rows of a table are judged by the same."""
    refreshed = [folder for folder in run.glob("evaluation-*") if folder.name.split("-")[1].isdigit()]
    return max(refreshed, key=lambda folder: int(folder.name.split("-")[1]), default=run / "evaluation")


def _policies(run: Path) -> list[str]:
    """Folders of policies in the order of the table."""
    steps = sorted(_step(folder.name) for folder in run.glob("improve-*-*"))
    improves = [f"improve-{g}-{i}" for g, i in steps]
    on_the_way = [name for name in improves if not name.endswith("-0")]
    ppo = ["ppo"] if (run / "ppo").exists() else []
    spent = max(sum(_result(run, name)["gradient_steps"] for name in names) for names in (on_the_way, ppo))
    return ["bc", f"bc_continued-{spent}", *improves, *ppo]


def _step(folder: str) -> tuple[int, int]:
    _, g, i = folder.split("-")
    return int(g), int(i)


def _place(folder: str) -> tuple[str, int, int]:
    """policy, grow and improve of a summary's row."""
    return ("rest", *_step(folder)) if folder.startswith("improve-") else (folder.split("-")[0], 0, 0)


def _label(name: str, g: int, i: int) -> str:
    return f"G{g} I{i}" if name == "rest" else {"bc": "BC", "bc_continued": "BC continued", "ppo": "PPO"}[name]


def _lineage(run: Path, folder: str) -> list[str]:
    """The stages that led to a policy; what a row counts is all that was spent on the way."""
    if not folder.startswith("improve-"):
        return ["bc"] if folder == "bc" else ["bc", folder]
    g, i = _step(folder)
    steps = sorted(_step(other.name) for other in run.glob("improve-*-*"))
    before = [f"improve-{h}-{j}" for h, j in steps if j > 0 and (h, j) < (g, i)]
    return ["bc", *(f"grow-{h}" for h in range(1, g + 1)), *before, folder]


def _result(run: Path, stage: str) -> dict[str, Any]:
    return read_json(run / stage / "stage.json")["result"]


def _side_by_side(outputs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One entry a source, with every policy's output."""
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
