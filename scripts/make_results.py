"""Writes docs/results.md, and the table of results in README.md, from experiments/results/*.json and RESULTS.md.

    python scripts/make_results.py            after a result has changed; a test holds both files to it

A number in those two places is in a file that an experiment wrote, and is nowhere typed by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from result_iwslt14 import IWSLT14, MULTI30K, NEWS, by_bleu, iwslt14, other_text, table_1
from result_multi30k import multi30k
from result_numbers import (
    HEAD,
    RESULTS,
    Metrics,
    control,
    difference,
    differences,
    gains,
    interval,
    number,
    of,
    over_seeds,
    read,
    table,
    with_interval,
)

ROOT = Path(__file__).resolve().parent.parent

# The demo: three seeds


def demo_runs() -> list[dict[str, Any]]:
    return list(read("synthetic_seeds")["variants"]["experiment"]["seeds"].values())


def demo_pairs() -> list[Metrics]:
    """ReST, I = 2, against the better of BC continued's two policies, a seed each."""
    ending = "-against-bc_continued-320"
    return [run["paired"][f"improve-1-2{ending}{control(run['rows'])[1]}"] for run in demo_runs()]


DEMO = (("gold_mean", 3), ("gold_greedy_mean", 3), ("bleu", 1), ("gold_beam_mean", 3), ("bleu_beam", 1))
SHIPPED = (("gold_greedy", 3), ("bleu", 1), ("chrf", 1), ("gold_beam", 3), ("bleu_beam", 1), ("chrf_beam", 1))


def demo() -> str:
    runs = [run["rows"] for run in demo_runs()]
    policies: dict[str, Callable[[Any], Metrics | None]] = {
        "BC": lambda rows: of(rows, "bc"),
        "BC sampled at T = 0.5": lambda rows: of(rows, "bc", temperature=0.5),
        "BC, best of 16 by the reward": lambda rows: of(rows, "bc", decode="best_of_n"),
        "BC, MBR of 16 by chrF": lambda rows: of(rows, "bc", decode="mbr"),
        "BC continued, the better of its two policies": lambda rows: control(rows)[0],
        "ReST, I = 1": lambda rows: of(rows, "rest", 1),
        "ReST, I = 2": lambda rows: of(rows, "rest", 2),
    }
    shown = [[name, *(over_seeds([take(rows) or {} for rows in runs], key, digits) for key, digits in DEMO)]
             for name, take in policies.items()]  # fmt: skip
    head = ["policy", "gold of samples", "gold, greedy", "BLEU, greedy", "gold, beam", "BLEU, beam"]
    paired = [[str(seed), *(difference(pair, name, digits) for name, digits in SHIPPED)]
              for seed, pair in enumerate(demo_pairs())]  # fmt: skip
    names = ["seed", "gold, greedy", "BLEU, greedy", "chrF, greedy", "gold, beam", "BLEU, beam", "chrF, beam"]
    return f"""\
    {read("synthetic_seeds")["command"]}

Means and, in brackets, each seed. Gold is exact quality, which nothing is trained on. BC continued is the
control: BC trained on the human pairs for as many more steps, at the same rates.

{table(head, shown)}

ReST, I = 2, less BC continued, paired over the sources of test, with 95 % intervals:

{table(names, paired)}"""


def beyond(pairs: Sequence[Metrics], name: str) -> str:
    return f"{sum(pair[name]['lo'] > 0 for pair in pairs)} of {len(pairs)}"


# The small task

HACKING = {"free": "PPO, free", "kl-0.1": "PPO, KL coefficient 0.1", "LoRA": "PPO, free, LoRA of rank 4",
           "frozen": "PPO, free, encoder and embeddings frozen"}  # fmt: skip


def online() -> str:
    found = read("table_1")["variants"]
    both, keys = found["rest_and_ppo"]["seeds"], (("reward_mean", 3), ("gold_mean", 3), ("gold_greedy_mean", 3),
                                                   ("bleu", 1), ("bleu_beam", 1), ("kl_to_bc", 1))  # fmt: skip

    def line(said: str, cells: dict[str, Any], policy: str, samples: str, **more: Any) -> list[str]:
        rows = [of(cell["rows"], policy, **more) for cell in cells.values()]
        metrics = [row for row in rows if row is not None]
        return [said, samples, *(over_seeds(metrics, key, digits) for key, digits in keys)]

    rows = [line("BC", both, "bc", ""), line("BC at T = 0.5", both, "bc", "", temperature=0.5),
            line("BC continued, last", both, "bc_continued_last", ""),
            line("ReST, G = 1, I = 0", both, "rest", "8,000", grow=1),
            line("ReST, G = 1, I = 2", both, "rest", "8,000", grow=1, improve=2),
            line("ReST, G = 2, I = 2", both, "rest", "16,000", grow=2, improve=2),
            line("PPO", both, "ppo", "8,000"), line("PPO", found["longer"]["seeds"], "ppo", "16,000"),
            line("RLOO", found["rloo"]["seeds"], "ppo", "8,000"),
            line("GRPO", found["grpo"]["seeds"], "ppo", "8,000")]  # fmt: skip
    cells = read("hacking")["variants"]
    policies = {"BC": of(cells["free"]["seeds"]["0"]["rows"], "bc")}
    policies |= {said: of(cells[name]["seeds"]["0"]["rows"], "ppo") for name, said in HACKING.items()}
    hacked = [[name, *(number(metrics[key], digits) for key, digits in keys)]
              for name, metrics in policies.items() if metrics is not None]  # fmt: skip
    head = ["policy", "samples", "reward", "gold of samples", "gold, greedy", "BLEU, greedy", "BLEU, beam", "KL to BC"]
    return f"""\
On a small version of the demo's task (1 + 1 layers × 64), means and three seeds, each method at the best of its trials
by dev on a seed of its own: seven of ReST, five of PPO, three of RLOO, two of GRPO (`table_1_trials.json`).

    {read("table_1")["command"]}

{table(head, rows)}

PPO against the reward of raters who favour length (`{read("hacking")["command"]}`), one seed:

{table(["policy", *head[2:]], hacked)}"""


def trained_on(variant: dict[str, Any]) -> list[list[str]]:
    """The two controls of a variant, less BC."""
    cells = variant["seeds"]
    return [["BC at T = 0.5", *gains(cells, "bc", temperature=0.5)],
            ["BC continued, last", *gains(cells, "bc_continued_last")]]  # fmt: skip


def of_variants(variants: dict[str, Any]) -> list[list[str]]:
    """The last policy of each, less BC."""
    return [[name, *gains(variant["seeds"], "rest")] for name, variant in variants.items()]


def losses() -> str:
    improve, rules, grows = (read(name)["variants"] for name in ("improve", "rules", "grows"))
    of_losses = sorted(improve, key=lambda name: -np.mean(differences(improve[name]["seeds"], "rest")["reward_mean"]))
    drawn = {"one": "G = 1, 48 samples", "two": "G = 2, 24 + 24 samples", "three": "G = 3, 3 × 16 samples"}
    of_grows = [[f"{said} a source", *gains(grows[name]["seeds"], "rest")] for name, said in drawn.items()]
    three, methods = grows["three"]["seeds"], read("methods")["variants"]
    return f"""\
What ReST gains over BC on the small version of the demo's task, and what two controls do: the mean of three seeds and
each, but for rules and published methods, which have one.

**Losses** (`{read("improve")["command"]}`): the last of three Improve steps on one D_1 of 500 × 32
samples, without label smoothing, each at the best of three rates by dev on a seed of its own (`improve_trials.json`).

{table(["loss", *HEAD], [*trained_on(improve["NLL"]), *of_variants({name: improve[name] for name in of_losses})])}

**Rules** (`{read("rules")["command"]}`): the last of four steps with NLL, one seed, which does not tell them apart.

{table(["rule", *HEAD], [*trained_on(rules["PerSourceTop"]), *of_variants(rules)])}

**Grow steps** (`{read("grows")["command"]}`): as many samples and two Improve steps a Grow step, best 4 and 1.

{
        table(
            ["Grow steps", *HEAD],
            [*of_grows, ["BC continued as long as G = 3, last", *gains(three, "bc_continued_last")]],
        )
    }

**Published methods** (`{read("methods")["command"]}`), 16,000 samples each, one seed. BC continued is
trained as long as `rest`, which takes the most updates.

{table(["method", *HEAD], [*trained_on(methods["rest"]), *of_variants(methods)])}"""


WRONG = {
    "biased": "nothing against it",
    "guarded": "a guard on length (`guards`)",
    "corrected": "a reward refreshed by people without the bias",
    "refreshed": "a reward refreshed by the same people",
    "cautious": "an ensemble's caution",
    "negatives": "corrupted translations among the ratings (`negatives`)",
    "fair": "people without the bias from the start, for comparison",
}


def wrong_reward() -> str:
    variants = read("synthetic_overoptimisation")["variants"]
    rows = variants["biased"]["rows"]
    start = next(row["metrics"] for row in rows if row["policy"] == "bc")
    ends = {name: variant["rows"][-1]["metrics"] for name, variant in variants.items()}
    keys = (("gold_mean", 3), ("gold_greedy_mean", 3), ("bleu", 1))
    policies = {"BC": start, "BC continued": of(variants["guarded"]["rows"], "bc_continued")}
    policies |= {f"ReST, {WRONG[name]}": metrics for name, metrics in ends.items()}
    shown = [[name, *(with_interval(metrics, key, digits) for key, digits in keys)]
             for name, metrics in policies.items() if metrics]  # fmt: skip
    before, after = number(start["reward_mean"]), number(ends["biased"]["reward_mean"])
    fell = f"{number(start['gold_mean'])} to {number(ends['biased']['gold_mean'])}"
    return f"""\
`experiments/synthetic_overoptimisation.py`, one seed, at commit {read("synthetic_overoptimisation")["commit"][:7]}:
people who favour length teach the reward. It rises from {before} to {after} over three Grow steps, while
gold falls from {fell}. Below is what was tried against it. What holds samples does not hold greedy
outputs: there BC is better than all.

{table(["policy", "gold of samples", "gold, greedy", "BLEU, greedy"], shown)}"""


def judgements() -> str:
    news, wikipedia = read("human_judgements")["results"]

    def cell(scores: Metrics | None, name: str) -> str:
        return "" if scores is None else f"{number(scores[name]['value'], 2)} {interval(*scores[name]['ci95'], 2)}"

    rows = [
        [name, cell(scores, "pearson"), cell(scores, "accuracy"), cell(wikipedia["rewards"].get(name), "pearson")]
        for name, scores in news["rewards"].items()
    ]
    heads = ["reward", "news: Pearson with people", "news: pairs within a source ranked right", "Wikipedia: Pearson"]
    return f"""\
English-German rewards learned from human judgements, from a published encoder (`experiments/qe_reward.py`) and from
scratch (`experiments/mqm_en_de_reward.py`), beside trivial ones, on {news["documents"]} unseen documents of
newstest2020, and on MLQE-PE's dev set, which none has seen:

{table(heads, rows)}"""


# Speed


def sampling() -> str:
    found = read("sampling_width-256_2-cores")
    rows = []
    for n, measured in found["samples_per_source"].items():
        systems = measured["systems"]
        ours = systems["rest"]["tokens_per_second"]
        rows.append([n, f"{ours:,.0f}", f"{ours / measured['bound_tokens_per_second']:.0%}".replace("%", " %"),
                     *(f"{s['tokens_per_second']:,.0f} ({number(ours / s['tokens_per_second'], 2)} ×)"
                       for name, s in systems.items() if name != "rest")])  # fmt: skip
    others = [name for name in next(iter(found["samples_per_source"].values()))["systems"] if name != "rest"]
    return f"""\
**Sampling** on 2 cores, float32, {found["model"]}, T = 0.8 (`scripts/benchmarks/sampling.py`): tokens a second, and in
brackets how many times as fast `rest` is.

{table(["N", "rest", "of the matrix products' bound", *others], rows)}"""


def training() -> str:
    rows = []
    for width in (256, 512):
        found = read(f"training_width-{width}_2-cores")
        for text, measured in found["measured"].items():
            rate = measured["tokens_per_second"]
            rows.append([found["model"], text, *(f"{rate[name]:,.0f}" for name in ("rest", "PyTorch")),
                         f"{number(measured['faster_by'], 2)} ×"])  # fmt: skip
    scored = []
    for path in sorted(RESULTS.glob("scoring_*.json")):
        found = read(path.stem)
        scored.append([found.get("policy", found.get("model")), found.get("reward", "as the policy"),
                       f"{number(found['rest_is_faster_by'], 2)} ×",
                       f"{found['share_of_scoring_in_grow']:.0%}".replace("%", " %")])  # fmt: skip
    return f"""\
**Training** (`scripts/benchmarks/training.py`), target tokens a second:

{table(["network", "text", "rest", "PyTorch", "as fast as PyTorch"], rows)}

**Scoring** with a learned reward (`scripts/benchmarks/scoring.py`):

{table(["policy", "reward", "as fast as PyTorch", "of a Grow step's time"], scored)}"""


# The two files


def results_page() -> str:
    """docs/results.md."""
    claims = (ROOT / "experiments" / "RESULTS.md").read_text(encoding="utf-8").partition("\n")[2].strip()
    return f"""\
# Results

Written by `scripts/make_results.py` from `experiments/results/*.json`, which hold the command, commit, versions and
settings behind the numbers (but for those of the claims whose record is the log); `experiments/LOG.md` tells what was
tried and what failed. A command's settings are those of its commit. Intervals are 95 % by bootstrap over sources. The
reward is the mean over samples at T = 0.8. Everything ran on two CPU cores.

## The demo

{demo()}

## Multi30k, German to English

{multi30k()}

## IWSLT14, German to English

{iwslt14()}

{other_text()}

{table_1()}

## Beside PPO

{online()}

## Losses and rules

{losses()}

## A reward that is wrong

{wrong_reward()}

## Rewards from human judgements

{judgements()}

## Speed

{sampling()}

{training()}

## Claims of the papers

{claims}
"""


def mean(found: Iterable[Metrics | None], key: str) -> float:
    return float(np.mean([metrics[key] for metrics in found if metrics is not None]))


def demo_policies() -> list[list[Metrics | None]]:
    """BC, BC continued and ReST, I = 2: the metrics of each seed."""
    runs = [run["rows"] for run in demo_runs()]
    return [[of(rows, "bc") for rows in runs], [control(rows)[0] for rows in runs],
            [of(rows, "rest", 2) for rows in runs]]  # fmt: skip


def gain() -> str:
    """The sentence of README.md that says what is gained."""
    bc, longer, rest = (number(mean(found, "gold_greedy_mean"), 2) for found in demo_policies())

    def real(which: str, digits: int) -> str:
        _, _, _, less = by_bleu(which)
        return " and ".join(number(less[key]["difference"], digits) for key in ("bleu", "bleu_beam"))

    return (
        "In the demo, where most human translators make the same mistakes, quality rises from "
        f"{bc} to {rest} (1 is perfect; three seeds);\n"
        f"training longer on the same human translations reaches {longer}. "
        "On real text the gains are small so far. With BLEU\n"
        f"as the reward, greedy and beam BLEU rise by {real(IWSLT14, 1)} on IWSLT14, {real(MULTI30K, 1)} on Multi30k, "
        f"{real(NEWS, 1)} on\n"
        "news. By the agreement of translations, which needs no human ones, "
        "one metric gains and another loses, or none gains."
    )


def headline() -> str:
    """The table of README.md."""
    policies, pairs, rows = demo_policies(), demo_pairs(), []
    for label, key, pair, digits in (
        ("demo, gold, greedy", "gold_greedy_mean", "gold_greedy", 3),
        ("demo, BLEU, beam", "bleu_beam", "bleu_beam", 1),
    ):
        difference_of_seeds = number(
            float(np.mean([found[pair]["difference"] for found in pairs])), digits, signed=True
        )
        rows.append([label, *(number(mean(found, key), digits) for found in policies),
                     f"{difference_of_seeds}, beyond chance in {beyond(pairs, pair)} seeds"])  # fmt: skip
    for which in (IWSLT14, MULTI30K, NEWS):
        *texts, less = by_bleu(which)
        for label, key in (("BLEU, greedy", "bleu"), ("BLEU, beam", "bleu_beam")):
            rows.append([f"{which}, {label}", *(number(mean(found, key), 1) for found in texts),
                         difference(less, key, 2)])  # fmt: skip
    return table(["task and metric", "BC", "BC continued", "ReST", "gain"], rows)


def readme() -> str:
    """README.md with what is generated in it made anew, each part between two comments."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, part in {"gain": gain, "table": headline}.items():
        marked = re.compile(f"(?<=<!-- results: {name} -->\n).*?(?=\n<!-- end -->)", re.S)
        text, found = marked.subn(lambda _, part=part: part(), text)
        assert found == 1, name
    return text


def written() -> dict[Path, str]:
    """What each of the two files must hold."""
    return {ROOT / "docs" / "results.md": results_page(), ROOT / "README.md": readme()}


if __name__ == "__main__":
    for path, text in written().items():
        path.write_text(text, encoding="utf-8")
