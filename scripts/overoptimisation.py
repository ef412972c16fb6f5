"""Runs the variants of experiments/synthetic_overoptimisation.py and keeps what they showed.

python scripts/overoptimisation.py --out runs/overoptimisation [--variants biased guarded ...] [--no-limits]

Each variant is a run in its own folder; stages that are the same as those of `biased` are copied from there. What is
complete is not made again. Writes experiments/results/synthetic_overoptimisation.json and .png from what is complete.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from record_result import made_with
from scipy import stats

from rest.algorithm import Run, rest
from rest.allocator import keep_freed_memory
from rest.experiment import Experiment, load_experiment
from rest.journal import say
from rest.policy.policy import Policy
from rest.policy.sampler import sample
from rest.report.page import write_report
from rest.report.summary import summarise
from rest.reward.fit import RewardSettings, fit, rank_correlation, rate
from rest.reward.learned import LearnedReward
from rest.reward.rated import Rated
from rest.reward.raters import SimulatedRater
from rest.stage import describe, open_stage, read_json, seed_for, share, write_json

matplotlib.use("agg")
from matplotlib import pyplot

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "experiments" / "synthetic_overoptimisation.py"
VARIANTS = ("biased", "guarded", "corrected", "refreshed", "cautious", "negatives", "fair")


def run_variant(name: str, out: Path) -> None:
    """The whole loop of one variant, with its report."""
    experiment = load_experiment(f"{FILE}:{name}")
    biased = load_experiment(f"{FILE}:biased")
    shared = ["bc"]
    if experiment == dataclasses.replace(biased, refresh=experiment.refresh):  # the same up to Grow 2
        shared += ["reward", "grow-1", "improve-1-1", "evaluation/bc", "evaluation/improve-1-1"]
    for stage in shared:
        share(out / "biased" / stage, out / name / stage)
    run = Run(experiment, out / name)
    say(f"variant {name}")
    with run.recorded():
        rest(run)
    summarise(run.out)
    write_report(run.out)


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a reward is fitted to ratings of BC's samples."""

    sources: int = 1200
    raters: int = 1
    noise: float = 0.25
    steps: int = 0


FITS = {
    "150 rated sources": Fit(150),
    "600 rated sources": Fit(600),
    "1,200 rated sources": Fit(),
    "1,200 rated sources, 5 raters": Fit(raters=5),
    "1,200 rated sources, no noise": Fit(noise=0.0),
    "1,200 rated sources, 150 steps": Fit(steps=150),
    "1,200 rated sources, no noise, 150 steps": Fit(noise=0.0, steps=150),
}


def limits(experiment: Experiment, policy: Policy, out: Path) -> dict[str, Any]:
    """What limits Spearman's rho of the learned reward with gold on BC's samples of test."""
    run = Run(experiment, out)
    gold, sampling, seed = run.corpus.gold, experiment.evaluation.sampling, experiment.seed
    settings = dataclasses.replace(experiment.reward, rater=SimulatedRater(), samples_per_source=3, attacked=0)
    with open_stage(out / "limits", {"policy": policy.identity, "reward": settings, "fits": FITS}) as stage:
        if not stage.finished:
            test = run.corpus.test
            drawn = sample(policy, test.sources, test.ids, 4, sampling, seed=seed_for(seed, "limits"))
            sources = [x for x in test.sources for _ in range(4)]
            hypotheses = [y for texts in drawn.texts for y in texts]
            exact = gold(sources, hypotheses)
            likely = np.asarray([values.mean() for of_source in drawn.log_probs for values in of_source])
            found = {
                "mean gold of the samples": float(exact.mean()),
                "share of the samples with gold 1": float((exact == 1).mean()),
                "a perfect order, ties in gold broken at random": tie_ceiling(exact),
                "mean log p of a token": rank_correlation(likely, exact),
            }
            text = run.train.take(slice(0, 1200))
            rated = rate(policy, text, gold, settings, sampling, seed)
            for name, each in FITS.items():
                reward = fitted(policy, rated, text.ids[: each.sources], each, settings, gold, seed)
                found[name] = rank_correlation(reward(sources, hypotheses, None), exact)
                say(f"{name}: Spearman {found[name]:.3f}")
            stage.finish(found)
        return stage.result


def fitted(
    policy: Policy, rated: Rated, ids: np.ndarray, how: Fit, settings: RewardSettings, gold: Any, seed: int
) -> LearnedReward:
    """A reward that is fitted to new ratings of the hypotheses of some sources."""
    rows = np.flatnonzero(np.isin(rated.groups, ids)).tolist()
    texts = [rated.sources[r] for r in rows], [rated.hypotheses[r] for r in rows]
    ratings = SimulatedRater(noise=how.noise, raters=how.raters).rate(*texts, None, gold, seed_for(seed, "raters"))
    schedule = dataclasses.replace(settings.train.schedule, learning_rate=3e-4)
    train = dataclasses.replace(settings.train, max_steps=how.steps, evaluate_every=50, schedule=schedule)
    with tempfile.TemporaryDirectory() as folder:
        some = Rated(*texts, ratings, rated.groups[rows])
        return fit(policy, some, dataclasses.replace(settings, train=train), folder=Path(folder), seed=seed).reward


def tie_ceiling(gold: np.ndarray) -> float:
    """Spearman's rho of scores that order gold rightly and break its ties at random."""
    order = np.lexsort((np.random.default_rng(0).random(len(gold)), gold))
    ranks = np.empty(len(gold))
    ranks[order] = np.arange(len(gold))
    return float(stats.spearmanr(ranks, gold).statistic)


def record(out: Path, limited: dict[str, Any] | None) -> dict[str, Any]:
    """What the complete variants showed."""
    variants = {}
    for name in VARIANTS:
        if (out / name / "summary.json").exists():
            folder, experiment = out / name, load_experiment(f"{FILE}:{name}")
            fits = {path.name: read_json(path / "stage.json")["result"] for path in sorted(folder.glob("reward*"))}
            settings = {"reward": describe(experiment.reward), "refresh": describe(experiment.refresh)}
            variants[name] = {"settings": settings, "rewards": fits, "rows": read_json(folder / "summary.json")}
    return {
        **made_with("python scripts/overoptimisation.py --out runs/overoptimisation"),
        "spearman_with_gold": limited,
        "variants": variants,
    }


def plot(variants: dict[str, Any], path: Path) -> None:
    """Proxy and gold against Improve steps, one line a variant; what a line's reward is, is its own first one."""
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    titles = ("reward that the run learned first (proxy)", "gold", "words over reference words")
    for name, variant in variants.items():
        rows = [row for row in variant["rows"] if row["policy"] == "bc" or (row["policy"] == "rest" and row["improve"])]
        metrics = [row["metrics"] for row in sorted(rows, key=lambda row: (row["grow"], row["improve"]))]
        style = {"marker": "o", "markersize": 4, "label": name, "linewidth": 2.5 if name == "biased" else 1.5}
        proxy = [m.get("first_reward_mean", m["reward_mean"]) for m in metrics]
        gold, length = ([m[key] for m in metrics] for key in ("gold_mean", "length_ratio"))
        for axis, values in zip(axes, (proxy, gold, length), strict=True):
            axis.plot(range(len(values)), values, **style)
    steps = max((len(v["rows"]) for v in variants.values()), default=1)
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="Improve steps", xticks=range(steps - 1))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)


def main() -> None:
    keep_freed_memory()
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--out", type=Path, required=True)
    flags.add_argument("--variants", nargs="*", choices=VARIANTS, default=VARIANTS)
    flags.add_argument("--no-limits", action="store_true", help="leave out what limits the reward")
    given = flags.parse_args()
    for name in given.variants:
        run_variant(name, given.out)
    done = next((path for path in sorted(given.out.glob("*/bc")) if (path / "policy").exists()), None)
    limited = None
    if done is not None and not given.no_limits:
        limited = limits(load_experiment(f"{FILE}:fair"), Policy.load(done / "policy"), given.out)
    elif (given.out / "limits" / "stage.json").exists():
        limited = read_json(given.out / "limits" / "stage.json")["result"]
    found, results = record(given.out, limited), ROOT / "experiments" / "results"
    results.mkdir(exist_ok=True)
    write_json(results / "synthetic_overoptimisation.json", found)
    plot(found["variants"], results / "synthetic_overoptimisation.png")
    say(f"{results / 'synthetic_overoptimisation.json'} and .png")


if __name__ == "__main__":
    main()
