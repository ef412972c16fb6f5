"""Which loss an Improve should minimise: each does three steps on the same D_1, from the same BC.

    python scripts/compare_losses.py experiments/synthetic_presets.py:small --out runs/losses
    python scripts/compare_losses.py experiments/synthetic_presets.py:small --out runs/losses --seeds 0 1

Reward, gold, divergence from BC and distinct samples on test after one and after three steps, beside BC and BC trained
on D for as many steps. A cell is written to DIR/<seed>/cells as it ends, and the same command goes on from there; then
the table and experiments/results/losses.json are made from all cells that there are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rest.algorithm import Run
from rest.baselines.bc import clone
from rest.data.store import ScoredDataset
from rest.evaluation.evaluate import evaluate, mean_reward
from rest.experiment import load_experiment
from rest.improve import improve
from rest.journal import say
from rest.learning.losses import GOLD, NLL, VMPO, AdvantageWeighted, Anchored, OfflineActorCritic, RewardWeighted
from rest.learning.preferences import CPO, DPO, RRHF
from rest.policy.policy import Policy
from rest.stage import describe, discard, read_json, write_json
from rest.thresholds import Fixed, PerSourcePercentile, PerSourceTop, Rule

ROOT = Path(__file__).resolve().parent.parent
STEPS = (1, 3)
# What filters learns from the best; what weighs or compares needs the worse rows too.
FILTERED, ALL = PerSourcePercentile((50.0, 75.0, 87.5)), Fixed((0.0, 1e-6, 2e-6))
PAIRS = PerSourceTop((3, 2, 1))
LOSSES: dict[str, tuple[Any, Rule]] = {
    "NLL": (NLL(), FILTERED),
    "GOLD": (GOLD(), FILTERED),
    "RewardWeighted": (RewardWeighted(), ALL),
    "AdvantageWeighted": (AdvantageWeighted(), ALL),
    "OfflineActorCritic": (OfflineActorCritic(), ALL),
    "VMPO": (VMPO(), ALL),
    "BVMPO": (Anchored(VMPO()), ALL),
    "DPO": (DPO(), PAIRS),
    "CPO": (CPO(), PAIRS),
    "RRHF": (RRHF(), PAIRS),
}


def chain(run: Run, dataset: ScoredDataset, name: str) -> dict[str, Any]:
    """Three Improve steps with one loss; what the policies after the first and the last are worth."""
    e, bc, reward = run.experiment, run.load("bc"), run.reward()
    loss, rule = LOSSES[name]
    settings = replace(e.improve, loss=loss, rule=rule)
    judges, policy, cell = run.judges(loss.needs), bc, {"steps": {}, "dev_reward": []}
    for i in range(1, max(STEPS) + 1):
        folder = run.out / "training" / f"{name}-{i}"
        dev = mean_reward(policy, run.corpus.dev, reward, e.evaluation, e.seed)
        policy, result = improve(
            policy, dataset, settings, e.batch, g=1, i=i, evaluate=dev, folder=folder, seed=e.seed, judges=judges
        )
        cell["dev_reward"].append(result["dev_reward"])
        if i in STEPS:
            cell["steps"][str(i)] = measured(run, policy) | {"rows": result["rows_kept"], "best": result["best_step"]}
    return cell | {"settings": describe({"loss": loss, "rule": rule})}


def continued(run: Run) -> dict[str, Any]:
    """BC trained on D for as many steps as one and as three Improves take."""
    e, policy, reward = run.experiment, run.load("bc"), run.reward()
    cell: dict[str, Any] = {"steps": {}}
    for i in STEPS:
        steps = i * e.improve.train.max_steps
        training = replace(e.improve.training(1), max_steps=steps, patience=steps + 1)
        dev = mean_reward(policy, run.corpus.dev, reward, e.evaluation, e.seed)
        longer, _ = clone(
            policy,
            run.train,
            e.bc.loss,
            training,
            e.batch,
            evaluate=dev,
            folder=run.out / "training" / f"continued-{i}",
            seed=e.seed,
            description=f"bc_continued {i}",
        )
        cell["steps"][str(i)] = measured(run, longer)
    return cell


def measured(run: Run, policy: Policy) -> dict[str, float]:
    """A policy on test."""
    e, gold = run.experiment, run.corpus.gold
    settings = replace(e.evaluation, beam=replace(e.evaluation.beam, beams=1))
    found = evaluate(
        policy, run.corpus.test, run.reward(), settings, bc=run.load("bc"), batch=e.batch, gold=gold, seed=e.seed
    )
    names = ("reward_mean", "gold_mean", "gold_greedy_mean", "kl_to_bc", "distinct_per_source", "bleu", "length_ratio")
    return {name: found.metrics[name] for name in names if name in found.metrics}


def cells_of(run: Run, wanted: list[str]) -> None:
    """All cells of one seed that are not there yet."""
    bc = run.bc()
    dataset = run.grow(1, bc, run.reward())
    cells: dict[str, Callable[[], dict[str, Any]]] = {
        "bc": lambda: {"steps": {str(i): measured(run, bc) for i in STEPS[:1]}},
        "bc_continued": lambda: continued(run),
        **{name: lambda name=name: chain(run, dataset, name) for name in wanted},
    }
    (run.out / "cells").mkdir(exist_ok=True)
    for name, make in cells.items():
        path = run.out / "cells" / f"{name}.json"
        if not path.exists():
            began = time.perf_counter()
            cell = make()
            write_json(path, cell | {"wall_s": time.perf_counter() - began})
            discard(run.out / "training")
            say(f"{name}: {cell['steps']}")


def table(cells: dict[str, list[dict[str, Any]]]) -> str:
    """Means over seeds, as Markdown; dev chose the checkpoints, test is what is shown."""
    columns = {"reward_mean": "reward", "gold_mean": "gold", "kl_to_bc": "KL to BC", "distinct_per_source": "distinct"}
    heads = [f"{head}, I = {i}" for i in STEPS for head in columns.values()]
    lines = ["| loss | seeds | " + " | ".join(heads) + " |", "|---" * (2 + len(heads)) + "|"]
    for name, seeds in cells.items():
        shown = []
        for i in STEPS:
            for column in columns:
                found = [cell["steps"][str(i)][column] for cell in seeds if str(i) in cell["steps"]]
                shown.append(f"{np.mean(found):.3f}" if found else "")
        lines.append(f"| {name} | {len(seeds)} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="FILE[:variant]")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    flags = parser.parse_args()
    experiment = load_experiment(flags.experiment)
    for seed in flags.seeds:
        run = Run(replace(experiment, seed=seed), flags.out / str(seed))
        with run.recorded():
            cells_of(run, flags.losses)

    folders = [folder for folder in sorted(flags.out.iterdir()) if (folder / "cells").is_dir()]
    found: dict[str, list[dict[str, Any]]] = {}
    for name in ("bc", "bc_continued", *LOSSES):
        paths = [folder / "cells" / f"{name}.json" for folder in folders]
        if cells := [read_json(path) | {"seed": int(path.parent.parent.name)} for path in paths if path.exists()]:
            found[name] = cells
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    command = f"python scripts/compare_losses.py {flags.experiment} --out DIR --seeds {' '.join(map(str, flags.seeds))}"
    values = {
        folder.name: read_json(folder / "value" / "stage.json")["result"]
        for folder in folders
        if (folder / "value").exists()
    }
    record = {"command": command, "commit": commit.stdout.strip(), "value": values, "cells": found}
    target = ROOT / "experiments" / "results" / "losses.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(table(found))
    print(f"\n{target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
