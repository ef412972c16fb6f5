"""What is known of a reward, as tables: agreement with people and with gold, and attacks that fool it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from rest.folder import StageName
from rest.journal import literal
from rest.report.tables import Row, label, number, of_split, plain
from rest.reward.agreement import Agreement
from rest.reward.attacks import AttackResult

NAMES = {
    "pearson": "Pearson",
    "spearman": "Spearman",
    "kendall_b": "Kendall τb",
    "kendall_c": "Kendall τc",
    "accuracy": "pairs\n(acc-eq)",
    "system_accuracy": "systems",
}


def agreement_table(agreement: Agreement) -> Table:
    """Statistics with 95 % intervals; * where the first reward's is different (paired bootstrap, p < 0.05)."""
    first = next(iter(agreement.rewards))
    names = list(agreement.rewards[first])
    counts = ", ".join(f"{count:,} {what}" for what, count in agreement.counts.items() if count)
    where = " ".join(part for part in (agreement.set_name, agreement.language_pair) if part)
    table = Table(title=literal(f"{where}: {counts}"), box=box.SIMPLE)
    table.add_column("reward", overflow="fold")
    for name in names:
        table.add_column(NAMES[name], justify="right", no_wrap=True)
    for reward, measured in agreement.rewards.items():
        cells = []
        for name in names:
            value, (low, high) = measured[name].value, measured[name].ci95
            differs = reward in agreement.differences and agreement.differences[reward][name].p < 0.05
            cells.append(f"{value:.3f}{'*' if differs else ' '}\n{low:.3f}–{high:.3f}")
        table.add_row(literal(reward), *cells)
    compared = f"; * differs from {first}, paired, p < 0.05" if agreement.differences else ""
    pairs = "within sources" if agreement.within_sources else "all"
    table.caption = literal(f"95 % intervals over {agreement.resampled}; pairs: {pairs}{compared}")
    return table


def difference_table(agreement: Agreement) -> Table:
    """How much better the first reward agrees than each other: paired bootstrap, 95 % intervals and p."""
    first, *_ = agreement.rewards
    names = list(agreement.rewards[first])
    table = Table(title=literal(f"{first} less the others, on the same resamples"), box=box.SIMPLE)
    table.add_column("reward", overflow="fold")
    for name in names:
        table.add_column(NAMES[name], justify="right", no_wrap=True)
    for reward, compared in agreement.differences.items():
        found = [compared[name] for name in names]
        cells = [f"{d.difference:+.3f}\n{d.lo:+.3f}–{d.hi:+.3f}\np {d.p:.3f}" for d in found]
        table.add_row(literal(reward), *cells)
    return table


def attack_tables(results: Sequence[AttackResult], examples: int = 1) -> RenderableType:
    """How often each attack wins, then the texts that gained most."""
    table = Table(title="Corrupted translations against the honest ones", box=box.SIMPLE)
    for column in ("attack", "cases", "scores higher", "95 % interval", "ties", "mean change"):
        table.add_column(column, justify="left" if column == "attack" else "right")
    for r in results:
        low, high = r.higher_ci95
        shares = f"{r.higher:.1%}", f"{low:.1%} – {high:.1%}", f"{r.ties:.1%}"
        table.add_row(literal(r.attack), f"{r.cases:,}", *shares, f"{r.mean_change:+.4f}")
    shown = Table("attack", "score", "text", title="Where the reward was fooled most", box=box.SIMPLE)
    for r in results:
        for e in r.examples[:examples]:
            shown.add_row("", "", literal(e.source, newlines=True))
            shown.add_row("", f"{e.honest_score:.4f}", literal(e.honest, newlines=True))
            shown.add_row(
                literal(r.attack), f"{e.attacked_score:.4f}", literal(e.attacked, newlines=True), end_section=True
            )
    return Group(table, shown) if shown.row_count else table


# A learned reward in a run's report: lines of cells, the head first


def reward_tables(fits: dict[int, dict[str, Any]], rows: list[Row], split: str) -> list[tuple[str, list[list[str]]]]:
    """Captions and tables: the fits before each Grow step (results of their stages), and the reward on each policy."""
    tables = [
        ("How the learned reward agrees with ratings and gold of sources held out.", _fit_lines(fits)),
        (
            "First and newest reward on held-out ratings of the policy that was the latest (Spearman).",
            _fresh_lines(fits),
        ),
        (
            f"How far the reward can be trusted on each policy's samples on {split}: Spearman's ρ with gold.",
            _gold_lines(of_split(rows, split)),
        ),
    ]
    for g, fit in fits.items():
        tables.append(
            (
                f"Translations corrupted on purpose against honest ones, by the reward of Grow {g}.",
                _attack_lines(fit.get("attacks", [])),
            )
        )
    return [(caption, lines) for caption, lines in tables if len(lines) > 1]


def reward_warnings(fits: dict[int, dict[str, Any]]) -> list[str]:
    """A sentence for each attack that fools a reward more often than was set."""
    return [
        f"Warning: reward of Grow {g}: {line}." for g, fit in fits.items() for line in fit.get("attack_warnings", [])
    ]


def _fit_lines(fits: dict[int, dict[str, Any]]) -> list[list[str]]:
    names = {
        "rated": "ratings",
        "negatives": "negatives",
        "held_out": "held out",
        "pearson_ratings": "Pearson, ratings",
        "spearman_ratings": "Spearman, ratings",
        "ranked_right": "pairs ranked right",
        "pearson_gold": "Pearson, gold",
        "spearman_gold": "Spearman, gold",
        "chosen_by": "chosen by",
    }
    known = [name for name in names if any(name in fit for fit in fits.values())]
    head = ["reward of", *(names[name] for name in known)]
    return [head, *([StageName("grow", g).label, *(plain(fit.get(name)) for name in known)] for g, fit in fits.items())]


def _fresh_lines(fits: dict[int, dict[str, Any]]) -> list[list[str]]:
    lines = [["before", "held out", "reward", "with ratings", "with gold"]]
    for g, fit in fits.items():
        fresh = fit.get("fresh", {})
        for name in ("first", "before", "newest"):
            if name in fresh:
                found = fresh[name]["spearman_ratings"], fresh[name].get("spearman_gold")
                lines.append([StageName("grow", g).label, plain(fresh["held_out"]), name, *map(plain, found)])
    return lines


def _gold_lines(rows: list[Row]) -> list[list[str]]:
    keys = {"reward_gold_spearman": "reward", "first_reward_gold_spearman": "first reward"}
    known = [key for key in keys if any(number(row, key) is not None for row in rows)]
    lines = [[label(row), *(plain(number(row, key)) for key in known)] for row in rows]
    return [["policy", *(keys[key] for key in known)], *lines] if known else []


def _attack_lines(attacks: list[dict[str, Any]]) -> list[list[str]]:
    lines = [["attack", "cases", "scores higher", "95 % interval", "ties", "mean change"]]
    for found in attacks:
        low, high = found["higher_ci95"]
        shares = f"{found['higher']:.1%}", f"{low:.1%}–{high:.1%}", f"{found['ties']:.1%}"
        lines.append([found["attack"], plain(found["cases"]), *shares, f"{found['mean_change']:+.4f}"])
    return lines
