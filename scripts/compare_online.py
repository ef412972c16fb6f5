"""ReST beside PPO: tuning trials, the paper's table 1, a sweep of the divergence's weight, and a reward that is hacked.

    python scripts/compare_online.py --out runs/table-1
    python scripts/compare_online.py --out runs/table-1 --parts table --seeds 1

Everything is in experiments/synthetic_table_1.py, or in another file of its form, which need not have all parts. Each
line of a table is a run's folder; what is complete is not made again, and several of these commands may work on
different parts or seeds at once. From all that is complete it writes a JSON file of the same name in
experiments/results, and a plot where there is a sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import tyro
from record_result import made_with, without_paths
from rich.console import Console
from rich.table import Table

from rest.algorithm import Run, rest
from rest.allocator import keep_freed_memory
from rest.experiment import Experiment, import_file
from rest.journal import say
from rest.policy.policy import Policy
from rest.report.summary import summarise
from rest.stage import describe, read_json, share, write_json

matplotlib.use("agg")
from matplotlib import pyplot

ROOT = Path(__file__).resolve().parent.parent
TUNING_SEED = 100
METRICS = {
    "reward_mean": "reward",
    "gold_mean": "gold",
    "reward_greedy_mean": "greedy reward",
    "gold_greedy_mean": "greedy gold",
    "bleu": "BLEU",
    "chrf": "chrF",
    "kl_to_bc": "KL to BC",
    "length_ratio": "length",
    "distinct_per_source": "distinct",
}
OTHERS = {  # than the whole run of both: variant, and the line of its last policy
    "deep": "ReST, G = 1, I = 4",
    "nll": "ReST with NLL, G = 2, I = 3",
    "longer": "PPO, 1.5 times as many",
    "rloo": "RLOO, as many samples",
}
LINES = {
    ("bc", 0, 0): "BC",
    ("bc_continued", 0, 0): "BC continued",
    ("rest", 1, 0): "ReST, G = 1, I = 0",
    ("rest", 2, 3): "ReST, G = 2, I = 3",
    ("ppo", 0, 0): "PPO, as many samples",
}
Part = Literal["trials", "table", "sweep", "hacking"]


@dataclass(frozen=True)
class Flags:
    out: Path
    """Folder of the runs."""
    file: Path = ROOT / "experiments" / "synthetic_table_1.py"
    """The experiments."""
    corpus: Path | None = None
    """Directory of the corpus, where it is read from one."""
    parts: tuple[Part, ...] = ("trials", "table", "sweep", "hacking")
    """Those of them that the file has."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the table; the sweep and the hacked reward have the first of them, the trials a seed of their own."""


def run_of(experiment: Experiment, seed: int, folder: Path, like: Path | None = None) -> Run:
    """A run with BC and the reward of another, where those are there."""
    if like is not None:
        for stage in ("bc", "reward", "evaluation/bc"):
            share(like / stage, folder / stage)
    return Run(replace(experiment, seed=seed), folder)


def trial(run: Run) -> dict[str, Any]:
    """How good a policy gets on dev, and what it took."""
    policy = run.bc()
    if run.experiment.ppo.rollouts:
        run.ppo()
        stages = trained = [run.out / "ppo"]
    else:
        last_of(run, policy)
        trained = run.improves()
        stages = [*trained, *run.out.glob("grow-*")]
    best = max(score for folder in trained for _, score in result_of(folder)["dev_reward"])
    return {"dev_reward": best, **counted([result_of(folder) for folder in stages])}


def result_of(folder: Path) -> dict[str, Any]:
    return read_json(folder / "stage.json")["result"]


def counted(results: list[dict[str, Any]]) -> dict[str, float]:
    """What stages took in all."""
    return {key: sum(result.get(key, 0) for result in results) for key in ("samples", "gradient_steps", "wall_s")}


def only_last(run: Run) -> None:
    """The last policy of ReST or of PPO, beside BC."""
    policy = run.bc()
    run.evaluate("bc", policy)
    if run.experiment.ppo.rollouts:
        run.evaluate("ppo", run.ppo())
        return
    last = last_of(run, policy)
    run.evaluate(run.improves()[-1].name, last)


def last_of(run: Run, policy: Policy) -> Policy:
    """The policy after all Improve steps."""
    for g in range(1, run.experiment.grow_steps + 1):
        dataset = run.grow(g, policy, run.reward())
        for i in range(1, run.experiment.improve.rule.steps + 1):
            policy = run.improve(g, i, policy, dataset, run.reward())
    return policy


def experiments_of(flags: Flags) -> Any:
    """What the file defines, its experiments reading the corpus from where it is."""
    module = import_file(flags.file)
    for name, value in vars(module).items():
        if isinstance(value, Experiment) and flags.corpus is not None:
            setattr(module, name, replace(value, corpus=replace(value.corpus, directory=flags.corpus)))
    return module


def make(flags: Flags, module: Any) -> None:
    """All runs that are asked for and not complete."""
    others = [name for name in OTHERS if hasattr(module, name)]
    if "trials" in flags.parts and hasattr(module, "ppo_trials"):
        base = run_of(module.base, TUNING_SEED, flags.out / "trials" / "base")
        with base.recorded():
            base.bc(), base.reward()
        for name, experiment in (module.rest_trials | module.ppo_trials).items():
            folder = flags.out / "trials" / plain(name)
            run, target = run_of(experiment, TUNING_SEED, folder, base.out), folder / "trial.json"
            with run.recorded():
                if not target.exists():
                    write_json(target, trial(run))
            say(f"trial {name}: {read_json(target)}")
    if "table" in flags.parts:
        for seed in flags.seeds:
            first = flags.out / "table" / f"{seed}-experiment"
            for name, how in {"experiment": rest, **dict.fromkeys(others, only_last)}.items():
                run = run_of(getattr(module, name), seed, flags.out / "table" / f"{seed}-{name}", first)
                finish(run, how)
    for part in ("sweep", "hacking"):
        experiments = getattr(module, part, {}) if part in flags.parts else {}
        if experiments:
            first = flags.out / part / plain(next(iter(experiments)))
            if part == "sweep":
                first = flags.out / "table" / f"{flags.seeds[0]}-experiment"
            for name, experiment in experiments.items():
                finish(run_of(experiment, flags.seeds[0], flags.out / part / plain(name), first), only_last)


def finish(run: Run, how: Callable[[Run], None]) -> None:
    with run.recorded():
        how(run)
    summarise(run.out)


def plain(name: object) -> str:
    """A folder's name."""
    return "".join(c if c.isalnum() or c == "." else "-" for c in str(name))


def rows(flags: Flags, module: Any) -> dict[str, Any]:
    """What is complete: of each part the lines by name, and of a line the metrics by seed."""
    found: dict[str, Any] = {"trials": {}, "table": {}, "sweep": {}, "hacking": {}}
    for name in getattr(module, "rest_trials", {}) | getattr(module, "ppo_trials", {}):
        path = flags.out / "trials" / plain(name) / "trial.json"
        if path.exists():
            found["trials"][name] = read_json(path)
    found["table"] = {line: {} for line in (*LINES.values(), *OTHERS.values())}
    for seed, line, row in table_rows(flags.out / "table"):
        found["table"][line][seed] = row
    for part in ("sweep", "hacking"):
        for name in getattr(module, part, {}):
            path = flags.out / part / plain(name) / "summary.json"
            if path.exists():
                by_policy = {row["policy"]: row for row in read_json(path)}
                found[part].setdefault("BC", by_policy["bc"])
                found[part][str(name)] = by_policy["ppo"]
    return found


def table_rows(folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(seed, line, row) of table 1."""
    for path in sorted(folder.glob("*/summary.json")):
        seed, name = path.parent.name.split("-")
        rows = read_json(path)
        if name in OTHERS:
            yield seed, OTHERS[name], rows[-1]
            continue
        for row in rows:
            place = (row["policy"], row["grow"], row["improve"])
            if place in LINES:
                yield seed, LINES[place], row


def shown(title: str, lines: dict[str, list[dict[str, Any]]]) -> Table:
    """Means over seeds."""
    table = Table(title=title)
    metrics = {
        key: head for key, head in METRICS.items() if all(key in row["metrics"] for row in chain(*lines.values()))
    }
    for head in ("", "seeds", *metrics.values(), "samples", "steps", "seconds"):
        table.add_column(head, justify="left" if not head else "right")
    for name, seeds in lines.items():
        means = [np.mean([row["metrics"][metric] for row in seeds]) for metric in metrics]
        costs = [np.mean([row[key] for row in seeds]) for key in ("samples_drawn", "gradient_steps", "wall_s")]
        table.add_row(name, str(len(seeds)), *(f"{x:.3f}" for x in means), *(f"{x:.0f}" for x in costs))
    return table


def plot(found: dict[str, Any], path: Path) -> None:
    """The sweep: reward, gold and divergence against its weight. The hacked reward: proxy, gold, divergence, length."""
    figure, (above, below) = pyplot.subplots(2, 4, figsize=(14, 7), layout="constrained")
    metrics = ("reward_mean", "gold_mean", "kl_to_bc", "length_ratio")
    titles = ("reward", "gold", "KL to BC, nats a sentence", "words over reference words")
    swept = {float(name): row["metrics"] for name, row in found["sweep"].items() if name != "BC"}
    for axis, metric, title in zip(above, metrics, titles, strict=True):
        places = range(len(swept))
        axis.plot(places, [row[metric] for row in swept.values()], marker="o")
        if "BC" in found["sweep"]:
            axis.axhline(found["sweep"]["BC"]["metrics"][metric], color="gray", linestyle="--", label="BC")
        axis.set(
            title=title, xticks=list(places), xticklabels=[f"{w:g}" for w in swept], xlabel="weight of the divergence"
        )
    for axis, metric, title in zip(below, metrics, titles, strict=True):
        lines = found["hacking"]
        axis.barh([*lines][::-1], [row["metrics"][metric] for row in lines.values()][::-1], color="C1")
        axis.set(title=f"{title}, length-biased" if metric == "reward_mean" else title)
    for axis in (*above, *below):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    for axis in below[1:]:
        axis.set_yticklabels([])
    figure.savefig(path, dpi=120)


def main() -> None:
    keep_freed_memory()
    flags = tyro.cli(Flags, description=__doc__)
    module = experiments_of(flags)
    make(flags, module)
    found = rows(flags, module)
    record = {
        **made_with(f"python scripts/compare_online.py --file {flags.file.name} --out DIR"),
        "settings": without_paths(describe(module.experiment)),
        **found,
    }
    target = ROOT / "experiments" / "results" / f"{flags.file.stem}.json"
    write_json(target, record)
    if found["sweep"]:
        plot(found, target.with_suffix(".png"))
    console = Console(width=180)
    for name, tried in found["trials"].items():
        console.print(f"{name}: {tried}", highlight=False, markup=False)
    console.print(shown("Table 1", {name: list(seeds.values()) for name, seeds in found["table"].items() if seeds}))
    for part in [part for part in ("sweep", "hacking") if found[part]]:
        console.print(shown(part, {name: [row] for name, row in found[part].items()}))


if __name__ == "__main__":
    main()
