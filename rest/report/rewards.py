"""What is known of a reward, as tables for the terminal: agreement with people, and attacks that fool it."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

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
    table = Table(title=plain(f"{where}: {counts}"), box=box.SIMPLE)
    table.add_column("reward", overflow="fold")
    for name in names:
        table.add_column(NAMES[name], justify="right", no_wrap=True)
    for reward, measured in agreement.rewards.items():
        cells = []
        for name in names:
            value, (low, high) = measured[name].value, measured[name].ci95
            differs = reward in agreement.differences and agreement.differences[reward][name].p < 0.05
            cells.append(f"{value:.3f}{'*' if differs else ' '}\n{low:.3f}–{high:.3f}")
        table.add_row(plain(reward), *cells)
    compared = f"; * differs from {first}, paired, p < 0.05" if agreement.differences else ""
    pairs = "within sources" if agreement.within_sources else "all"
    table.caption = plain(f"95 % intervals over {agreement.resampled}; pairs: {pairs}{compared}")
    return table


def difference_table(agreement: Agreement) -> Table:
    """How much better the first reward agrees than each other: paired bootstrap, 95 % intervals and p."""
    first, *_ = agreement.rewards
    names = list(agreement.rewards[first])
    table = Table(title=plain(f"{first} less the others, on the same resamples"), box=box.SIMPLE)
    table.add_column("reward", overflow="fold")
    for name in names:
        table.add_column(NAMES[name], justify="right", no_wrap=True)
    for reward, compared in agreement.differences.items():
        found = [compared[name] for name in names]
        cells = [f"{d.difference:+.3f}\n{d.lo:+.3f}–{d.hi:+.3f}\np {d.p:.3f}" for d in found]
        table.add_row(plain(reward), *cells)
    return table


def attack_tables(results: Sequence[AttackResult], examples: int = 1) -> RenderableType:
    """How often each attack wins, then the texts that gained most."""
    table = Table(title="Spoilt translations against the honest ones", box=box.SIMPLE)
    for column in ("attack", "cases", "scores higher", "95 % interval", "ties", "mean change"):
        table.add_column(column, justify="left" if column == "attack" else "right")
    for r in results:
        low, high = r.higher_ci95
        shares = f"{r.higher:.1%}", f"{low:.1%} – {high:.1%}", f"{r.ties:.1%}"
        table.add_row(plain(r.attack), f"{r.cases:,}", *shares, f"{r.mean_change:+.4f}")
    shown = Table("attack", "score", "text", title="Where the reward was fooled most", box=box.SIMPLE)
    for r in results:
        for e in r.examples[:examples]:
            shown.add_row("", "", plain(e.source))
            shown.add_row("", f"{e.honest_score:.4f}", plain(e.honest))
            shown.add_row(plain(r.attack), f"{e.attacked_score:.4f}", plain(e.attacked), end_section=True)
    return Group(table, shown) if shown.row_count else table


def plain(text: str) -> Text:
    """Text as it stands: no markup, nothing that steers a terminal."""
    return Text("".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text))
