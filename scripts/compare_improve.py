"""Which loss, which threshold rule and which published method an Improve should follow, on the same small task.

    python scripts/compare_improve.py experiments/synthetic_presets.py:small --out runs/improve --seeds 0 1 2
    python scripts/compare_improve.py experiments/synthetic_presets.py:small --out runs/improve --parts rules

losses   each does three steps on the same D_1, from the same BC; on test after one and after three steps
rules    each does four steps with the experiment's loss on that D_1; on test after each; the first seed alone
methods  ReST and its kin of experiments/synthetic_presets.py, all drawing 8,000 samples; the first seed alone

Reward, gold, divergence from BC and distinct samples, beside BC and BC trained on D for as many steps. A cell is
written to DIR/<seed>/cells as it ends, a method is a run in DIR/methods, and the same command goes on from there; then
the tables and experiments/results/NAME.json (--results) are made from all that is complete.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from record_result import made_with

from rest.algorithm import Run, rest
from rest.allocator import keep_freed_memory
from rest.baselines.bc import clone
from rest.data.store import ScoredDataset
from rest.evaluation.evaluate import evaluate, mean_reward
from rest.experiment import Experiment, load_experiment
from rest.improve import improve, select
from rest.journal import say
from rest.learning.losses import (
    GOLD,
    NLL,
    VMPO,
    AdvantageWeighted,
    Anchored,
    OfflineActorCritic,
    RewardWeighted,
    VTrace,
)
from rest.learning.preferences import CPO, DPO, RRHF
from rest.policy.policy import Policy
from rest.report.summary import summarise
from rest.stage import describe, discard, read_json, share, write_json
from rest.thresholds import (
    Capped,
    Fixed,
    GlobalPercentile,
    PerSourceInterpolation,
    PerSourcePercentile,
    PerSourceTop,
    Rule,
)

ROOT = Path(__file__).resolve().parent.parent
PRESETS = ROOT / "experiments" / "synthetic_presets.py"
PARTS = ("losses", "rules", "methods")
STEPS, RULE_STEPS = (1, 3), (1, 2, 3, 4)
BUDGET = 8000  # samples that a method draws
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
    "BVMPO": (Anchored(VMPO()), ALL),  # but for V-trace
    "BVMPO, V-trace": (Anchored(VMPO(correction=VTrace())), ALL),
    "DPO": (DPO(), PAIRS),
    "CPO": (CPO(), PAIRS),
    "RRHF": (RRHF(), PAIRS),
}
RULES: dict[str, Rule] = {
    "Fixed": Fixed((0.6, 0.7, 0.8, 0.9)),
    "GlobalPercentile": GlobalPercentile((50.0, 65.0, 80.0, 90.0)),
    "PerSourcePercentile": PerSourcePercentile((50.0, 62.5, 75.0, 87.5)),
    "PerSourceInterpolation": PerSourceInterpolation((0.2, 0.4, 0.6, 0.8)),
    "PerSourceTop": PerSourceTop((4, 3, 2, 1)),
    "Capped": Capped(GlobalPercentile((50.0, 65.0, 80.0, 90.0)), cap=2),
}
METHODS = (
    "rest",
    "rest_interpolated",
    "rest_em",
    "raft",
    "filtered_bc",
    "reward_weighted",
    "best_of_n",
    "iterated_cpo",
)


def chain(run: Run, dataset: ScoredDataset, name: str, loss: Any, rule: Rule, shown: tuple[int, ...]) -> dict[str, Any]:
    """Improve steps with one loss and one rule; what the policies after some of them are worth."""
    e, bc, reward = run.experiment, run.load("bc"), run.reward()
    settings = replace(e.improve, loss=loss, rule=rule)
    judges, policy = run.judges(loss.needs), bc
    cell: dict[str, Any] = {"steps": {}, "dev_reward": []}
    for i in range(1, max(shown) + 1):
        if not select(dataset, settings, i).rows:
            break
        folder = run.out / "training" / f"{name}-{i}"
        dev = mean_reward(policy, run.corpus.dev, reward, e.evaluation, e.seed)
        policy, result = improve(
            policy, dataset, settings, e.batch, g=1, i=i, evaluate=dev, folder=folder, seed=e.seed, judges=judges
        )
        cell["dev_reward"].append(result["dev_reward"])
        if i in shown:
            kept = {"rows": result["rows_kept"], "kept_reward": result["mean_reward_kept"], "best": result["best_step"]}
            cell["steps"][str(i)] = measured(run, policy) | kept
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
    names = (
        "reward_mean",
        "gold_mean",
        "gold_greedy_mean",
        "kl_to_bc",
        "distinct_per_source",
        "bleu",
        "chrf",
        "length_ratio",
    )
    return {name: found.metrics[name] for name in names if name in found.metrics}


def cells_of(run: Run, wanted: list[str], rules: list[str]) -> None:
    """All cells of one seed that are not there yet."""
    bc = run.bc()
    dataset = run.grow(1, bc, run.reward())
    cells: dict[str, Callable[[], dict[str, Any]]] = {
        "bc": lambda: {"steps": {str(i): measured(run, bc) for i in STEPS[:1]}},
        "bc_continued": lambda: continued(run),
        **{name: lambda name=name: chain(run, dataset, name, *LOSSES[name], STEPS) for name in wanted},
    }
    loss = run.experiment.improve.loss
    of_rules = {name: lambda name=name: chain(run, dataset, name, loss, RULES[name], RULE_STEPS) for name in rules}
    cells |= {f"rule-{name}": make for name, make in of_rules.items()}
    (run.out / "cells").mkdir(exist_ok=True)
    for name, make in cells.items():
        path = run.out / "cells" / f"{name}.json"
        if not path.exists():
            began = time.perf_counter()
            cell = make()
            write_json(path, cell | {"wall_s": time.perf_counter() - began})
            discard(run.out / "training")
            say(f"{name}: {cell['steps']}")


def method(small: Experiment, preset: Experiment) -> Experiment:
    """A method at the size of `small`, whose Grow steps draw as many samples in all as any other's."""
    of_method = {name: getattr(preset.improve, name) for name in ("rule", "human_pairs", "start", "loss")}
    sources = BUDGET // (preset.grow_steps * small.grow.samples_per_source)
    return replace(
        small,
        grow_steps=preset.grow_steps,
        grow=replace(small.grow, sources=sources),
        improve=replace(small.improve, **of_method, unfiltered=False),
    )


def run_method(experiment: Experiment, folder: Path, like: Path) -> None:
    """The whole loop, from the BC and the reward of another run."""
    for stage in ("bc", "reward"):
        share(like / stage, folder / stage)
    run = Run(experiment, folder)
    with run.recorded():
        rest(run)
    summarise(folder)


def table(cells: dict[str, list[dict[str, Any]]], steps: tuple[int, ...]) -> str:
    """Means over seeds, as Markdown; dev chose the checkpoints, test is what is shown."""
    columns = {"reward_mean": "reward", "gold_mean": "gold", "kl_to_bc": "KL to BC", "distinct_per_source": "distinct"}
    if not all("gold_mean" in step for seeds in cells.values() for cell in seeds for step in cell["steps"].values()):
        columns = {"reward_mean": "reward", "bleu": "BLEU", "chrf": "chrF", "kl_to_bc": "KL to BC"}
    heads = [f"{head}, I = {i}" for i in steps for head in columns.values()]
    lines = ["| | seeds | " + " | ".join(heads) + " |", "| --- " * (2 + len(heads)) + "|"]
    for name, seeds in cells.items():
        shown = []
        for i in steps:
            for column in columns:
                found = [cell["steps"][str(i)][column] for cell in seeds if str(i) in cell["steps"]]
                shown.append(f"{np.mean(found):.3f}" if found else "")
        lines.append(f"| {name} | {len(seeds)} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def table_of_methods(rows: dict[str, dict[str, Any]]) -> str:
    columns = ("reward_mean", "gold_mean", "gold_greedy_mean", "bleu", "kl_to_bc", "distinct_per_source")
    lines = ["| | " + " | ".join((*columns, "samples", "steps")) + " |", "| --- " * (3 + len(columns)) + "|"]
    for name, row in rows.items():
        numbers = [f"{row['metrics'][column]:.3f}" for column in columns]
        lines.append(
            f"| {name} | " + " | ".join([*numbers, str(row["samples_drawn"]), str(row["gradient_steps"])]) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="FILE[:variant]")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--corpus", type=Path, help="directory of the corpus, where it is read from one")
    parser.add_argument("--results", default="improve", help="name of the file in experiments/results")
    flags = parser.parse_args()
    experiment, first = load_experiment(flags.experiment), flags.out / str(flags.seeds[0])
    if flags.corpus is not None:
        experiment = replace(experiment, corpus=replace(experiment.corpus, directory=flags.corpus))
    for seed in flags.seeds if "losses" in flags.parts else flags.seeds[:1]:
        run = Run(replace(experiment, seed=seed), flags.out / str(seed))
        with run.recorded():
            wanted = flags.losses if "losses" in flags.parts else []
            cells_of(run, wanted, flags.rules if "rules" in flags.parts and run.out == first else [])
    if "methods" in flags.parts:
        for name in METHODS:
            preset = load_experiment(f"{PRESETS}:{name}")
            own = replace(method(experiment, preset), seed=flags.seeds[0])
            run_method(own, flags.out / "methods" / name, first)

    folders = [folder for folder in sorted(flags.out.iterdir()) if (folder / "cells").is_dir()]
    found: dict[str, list[dict[str, Any]]] = {}
    for name in ("bc", "bc_continued", *LOSSES, *(f"rule-{name}" for name in RULES)):
        paths = [folder / "cells" / f"{name}.json" for folder in folders]
        if cells := [read_json(path) | {"seed": int(path.parent.parent.name)} for path in paths if path.exists()]:
            found[name] = cells
    methods: dict[str, dict[str, Any]] = {}
    for name in METHODS:
        path = flags.out / "methods" / name / "summary.json"
        if path.exists():
            rows = read_json(path)
            methods.setdefault("BC", rows[0])
            methods[f"{name}, its BC continued"] = next(row for row in rows if row["policy"] == "bc_continued")
            methods[name] = rows[-1]
    command = (
        f"python scripts/compare_improve.py {flags.experiment} --out DIR --seeds {' '.join(map(str, flags.seeds))}"
    )
    values = {
        folder.name: read_json(folder / "value" / "stage.json")["result"]
        for folder in folders
        if (folder / "value").exists()
    }
    record = {**made_with(command), "value": values, "cells": found, "methods": methods}
    target = ROOT / "experiments" / "results" / f"{flags.results}.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(table({name: cells for name, cells in found.items() if not name.startswith("rule-")}, STEPS))
    print(table({name: cells for name, cells in found.items() if name.startswith("rule-")}, RULE_STEPS))
    if methods:
        print(table_of_methods(methods))
    print(f"\n{target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
