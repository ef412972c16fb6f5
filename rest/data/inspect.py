"""What a scored dataset looks like: rewards, lengths, the guards' flags, the best and the worst rows.

Whole columns are read only where they are scalar; text only of the few rows shown.
"""

from __future__ import annotations

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rest.data.store import ScoredDataset

BINS = 20
BAR = 30  # characters
EIGHTHS = " ▏▎▍▌▋▊▉█"


def describe(dataset: ScoredDataset, rows: int = 5) -> RenderableType:
    """Everything worth a look, to print with rich; `rows` is how many of the best and the worst to show."""
    columns = dataset.columns(["reward", "is_reference", "is_truncated", "length"])
    reward, is_reference = columns["reward"], columns["is_reference"]
    kinds = {"samples": ~is_reference, "human pairs": is_reference}
    kinds = {kind: mask for kind, mask in kinds.items() if mask.any()}
    parts: list[RenderableType] = [_counts(dataset)]
    if kinds:
        parts += [_numbers(columns, kinds), _histogram(reward, kinds)]
    if dataset.manifest.flagged:
        parts.append(_flags(dataset))
    if rows and len(reward):
        parts.append(_rows(dataset, f"Best {rows}", _lowest(-reward, rows)))
        parts.append(_rows(dataset, f"Worst {rows}", _lowest(reward, rows)))
    return Group(*parts)


def _counts(dataset: ScoredDataset) -> Table:
    """Where the rows are and what made them."""
    manifest = dataset.manifest
    table = Table(title=_plain(f"Scored dataset {dataset.folder.name}"), box=None, show_header=False)
    table.add_row("rows", f"{dataset.rows:,}")
    table.add_row("sources", f"{len(np.unique(dataset.columns(['source_id'])['source_id'])):,}")
    size = sum(shard.bytes for shard in manifest.shards) / 1e6
    table.add_row("shards", f"{len(manifest.shards):,} ({size:,.1f} MB)")
    table.add_row("rewards clipped", f"{manifest.clipped:,}")
    table.add_row("seed", str(manifest.seed))
    for name, identity in sorted(manifest.identities.items()):
        table.add_row(_plain(name), _plain(identity[:16]))
    for name in dataset.column_names:
        table.add_row("sidecar column", name)
    return table


def _numbers(columns: dict[str, np.ndarray], kinds: dict[str, np.ndarray]) -> Table:
    """Reward, ending and length of samples and of human pairs."""
    table = Table("", *kinds, title="Rewards and lengths", box=box.SIMPLE)
    for column in table.columns[1:]:
        column.justify = "right"

    def add(name: str, texts: list[str]) -> None:
        table.add_row(name, *texts)

    rewards = [columns["reward"][mask].astype(np.float64) for mask in kinds.values()]
    lengths = [columns["length"][mask] for mask in kinds.values()]
    truncated = [columns["is_truncated"][mask] for mask in kinds.values()]
    add("rows", [f"{len(values):,}" for values in rewards])
    add("reward mean ± std", [f"{values.mean():.4f} ± {values.std():.4f}" for values in rewards])
    for q in (0, 25, 50, 75, 100):
        add(f"reward, percentile {q}", [f"{np.percentile(values, q):.4f}" for values in rewards])
    add("ended with EOS", [f"{np.count_nonzero(~values):,}" for values in truncated])
    add("cut at the longest length", [f"{np.count_nonzero(values):,}" for values in truncated])
    add("tokens, mean", [f"{values.mean():.1f}" for values in lengths])
    for q in (50, 95, 100):
        add(f"tokens, percentile {q}", [f"{np.percentile(values, q):.0f}" for values in lengths])
    return table


def _histogram(reward: np.ndarray, kinds: dict[str, np.ndarray]) -> Table:
    """Share of the rows by reward; the longest bar of each kind is full."""
    table = Table("reward", *kinds, title="Share of rows by reward", box=box.SIMPLE)
    counts = [np.histogram(reward[mask], bins=BINS, range=(0, 1))[0] for mask in kinds.values()]
    for k in range(BINS):
        cells = [f"{_bar(c[k] / c.max())} {c[k] / c.sum():6.1%}" for c in counts]
        table.add_row(f"{k / BINS:.2f} – {(k + 1) / BINS:.2f}", *cells)
    return table


def _flags(dataset: ScoredDataset) -> Table:
    """How many rows each guard flagged."""
    table = Table("guard", "rows flagged", "share", title="Flags", box=box.SIMPLE)
    for flag, count in sorted(dataset.manifest.flagged.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(_plain(flag), f"{count:,}", f"{count / dataset.rows:.2%}")
    return table


def _rows(dataset: ScoredDataset, title: str, chosen: np.ndarray) -> Table:
    """The chosen rows (int64 [k]) in that order."""
    names = ["source_id", "sample_index", "reward", "source", "hypothesis", "flags"]
    ordered = np.sort(chosen)
    found = [row for batch in dataset.batches(names, ordered) for row in batch.to_pylist()]
    table = Table("reward", "row", "source", "hypothesis", "flags", title=title, box=box.SIMPLE)
    for row in (found[place] for place in np.searchsorted(ordered, chosen)):
        human = row["sample_index"] == -1
        number = f"{row['source_id']}, " + ("human" if human else f"sample {row['sample_index']}")
        texts = [_plain(row[name]) for name in ("source", "hypothesis", "flags")]
        table.add_row(f"{row['reward']:.4f}", number, *texts)
    return table


def _lowest(values: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k lowest values, rising, ties in row order; no sort of all rows."""
    if k < len(values):
        candidates = np.flatnonzero(values <= np.partition(values, k - 1)[k - 1])
    else:
        candidates = np.arange(len(values))
    return candidates[np.argsort(values[candidates], kind="stable")[:k]]


def _bar(share: float) -> str:
    """A bar of BAR characters filled to `share`; whatever is not zero shows."""
    eighths = max(round(share * BAR * 8), int(share > 0))
    full, rest = divmod(eighths, 8)
    return ("█" * full + EIGHTHS[rest] * (rest > 0)).ljust(BAR)


def _plain(text: str) -> Text:
    """Text as it stands: no markup, nothing that steers a terminal."""
    return Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))
