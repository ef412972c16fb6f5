"""What a scored dataset looks like: rewards, lengths, the guards' flags, the best and the worst rows.

Whole columns are read only where they are scalar; text only of the few rows shown.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from rest.data.shards import SCHEMA
from rest.data.store import ScoredDataset
from rest.errors import UserError
from rest.folder import replacing
from rest.journal import literal

BINS = 20
BAR = 30  # characters of the longest bar, and of all kinds' beside each other
BARS = 66
REPEATED = 64  # times that a text among the best may be there, and as many different ones are still found
EIGHTHS = " ▏▎▍▌▋▊▉█"


def overview(
    dataset: ScoredDataset, rows: int = 5, chosen: np.ndarray | None = None, duplicates: bool = False
) -> RenderableType:
    """Everything worth a look, to print with rich.

    `rows` is how many of the best, the worst and the most disputed rows to show, and `chosen`, bool [rows], what is
    looked at. `duplicates` reads all text, so it is only counted when asked for.
    """
    scalars = ["source_id", "reward", "is_reference", "is_sample", "is_truncated"]
    columns = dataset.columns(scalars) | {"length": _lengths(dataset, chosen)}
    places = np.arange(dataset.rows)
    if chosen is not None:
        places = np.flatnonzero(chosen)
        columns = {name: values if name == "length" else values[places] for name, values in columns.items()}
    reward, is_reference, is_sample = columns["reward"], columns["is_reference"], columns["is_sample"]
    kinds = {"samples": is_sample, "beam search": ~is_sample & ~is_reference, "human pairs": is_reference}
    kinds = {kind: mask for kind, mask in kinds.items() if mask.any()}
    parts: list[RenderableType] = [_counts(dataset, columns["source_id"], None if chosen is None else len(places))]
    if kinds:
        parts += [_numbers(columns, kinds), _histogram(reward, kinds)]
    if dataset.manifest.flagged and chosen is None:
        parts.append(_flags(dataset))
    if rows and len(reward):
        for title, score in (("Best", -reward), ("Worst", reward)):
            shown = _different(_lowest(score, REPEATED * rows), columns["source_id"], reward)[:rows]
            parts.append(_rows(dataset, f"{title} {rows}", places[shown]))
        if len(disputed := _disputed(columns, rows)):
            title = "Most disputed: sources whose samples' rewards differ most, the best and the worst of each"
            parts.append(_rows(dataset, title, places[disputed]))
    if duplicates:
        parts.append(_duplicates(dataset, chosen, rows))
    return Group(*parts)


def _different(rows: np.ndarray, source_id: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """Of rows of one source with one reward, the same text most likely, the first; those that are left, in order."""
    _, first = np.unique(np.stack([source_id[rows], reward[rows]]), axis=1, return_index=True)
    return rows[np.sort(first)]


def _lengths(dataset: ScoredDataset, chosen: np.ndarray | None) -> np.ndarray:
    """int32 [chosen rows]: tokens, read only where rows are chosen."""
    parts = [pc.list_value_length(batch["tokens"]).to_numpy() for batch in dataset.batches(["tokens"], chosen)]
    return np.concatenate([np.zeros(0, np.int32), *parts])


def _disputed(columns: dict[str, np.ndarray], k: int) -> np.ndarray:
    """Of the k sources whose samples' rewards are furthest apart the best and the worst sample, two rows per source."""
    rows = np.flatnonzero(columns["is_sample"])
    if not len(rows):
        return rows
    reward, starts = columns["reward"][rows], np.flatnonzero(np.diff(columns["source_id"][rows], prepend=np.nan))
    spread = np.maximum.reduceat(reward, starts) - np.minimum.reduceat(reward, starts)
    ends = np.append(starts[1:], len(rows))
    found = []
    for source in _lowest(-spread, k):
        if spread[source] > 0:
            own = rows[starts[source] : ends[source]]
            found += [own[columns["reward"][own].argmax()], own[columns["reward"][own].argmin()]]
    return np.array(found, np.int64)


def _duplicates(dataset: ScoredDataset, chosen: np.ndarray | None, rows: int) -> Table:
    """How many samples say what another sample of their source says, and what is said most often."""
    samples, different = 0, 0
    often: list[tuple[int, int, str]] = []  # times, source_id, hypothesis
    carried: pa.Table | None = None  # of the last source so far, which may go on in the next row group
    for batch in dataset.batches(["source_id", "origin", "hypothesis"], chosen):
        batch = batch.filter(pc.equal(batch["origin"], "sample")).select(["source_id", "hypothesis"])
        samples += len(batch)
        batch = batch.append_column("times", pa.array(np.ones(len(batch), np.int64)))
        both = batch if carried is None else pa.concat_tables([carried, batch])
        if not len(both):
            continue
        counted = both.group_by(["source_id", "hypothesis"]).aggregate([("times", "sum")])
        counted = counted.rename_columns(["source_id", "hypothesis", "times"])
        going_on = pc.equal(counted["source_id"], both["source_id"][-1])
        carried, done = counted.filter(going_on), counted.filter(pc.invert(going_on))
        different += len(done)
        often = _most_often(often, done, rows)
    if carried is not None:
        different += len(carried)
        often = _most_often(often, carried, rows)
    share = (samples - different) / max(samples, 1)
    title = f"{samples - different:,} of {samples:,} samples ({share:.1%}) repeat another sample of their source"
    table = Table("times", "source", "hypothesis", title=title, box=box.SIMPLE)
    for times, source_id, text in often:
        table.add_row(str(times), str(source_id), literal(text))
    return table


def _most_often(known: list[tuple[int, int, str]], counted: pa.Table, rows: int) -> list[tuple[int, int, str]]:
    most: Sequence[int] | np.ndarray = _lowest(-counted["times"].to_numpy(), rows) if rows else []
    found = [tuple(counted[name][int(k)].as_py() for name in ("times", "source_id", "hypothesis")) for k in most]
    return sorted([*known, *((t, i, text) for t, i, text in found if t > 1)], key=lambda one: (-one[0], one[1]))[:rows]


def export(dataset: ScoredDataset, path: Path, chosen: np.ndarray | None = None) -> int:
    """Writes the chosen rows with all their columns to a .jsonl or .csv file, and returns how many.

    A list is one cell of JSON in CSV. UserError for another ending.
    """
    if path.suffix not in (".jsonl", ".csv"):
        raise UserError(f"{path}: rows are exported to a file named .jsonl or .csv")
    names, count = [*SCHEMA.names, *dataset.sidecars.names], 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as raw:
        file = codecs.getwriter("utf-8")(raw)
        table = csv.DictWriter(file, names, lineterminator="\n")
        if path.suffix == ".csv":
            table.writeheader()
        for batch in dataset.batches(names, chosen):
            rows = batch.to_pylist()
            count += len(rows)
            if path.suffix == ".jsonl":
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            else:
                table.writerows(
                    {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows
                )
    return count


def _counts(dataset: ScoredDataset, source_ids: np.ndarray, chosen: int | None) -> Table:
    """Where the rows are and what made them."""
    manifest = dataset.manifest
    table = Table(title=literal(f"Scored dataset {dataset.folder.name}"), box=None, show_header=False)
    table.add_row("rows", f"{dataset.rows:,}")
    if chosen is not None:
        table.add_row("rows looked at", f"{chosen:,}")
    table.add_row("sources", f"{len(np.unique(source_ids)):,}")
    size = sum(shard.bytes for shard in manifest.shards) / 1e6
    table.add_row("shards", f"{len(manifest.shards):,} ({size:,.1f} MB)")
    table.add_row("rewards clipped", f"{manifest.clipped:,}")
    table.add_row("seed", str(manifest.seed))
    for name, identity in sorted(manifest.identities.items()):
        table.add_row(literal(name), literal(identity[:16]))
    for name in dataset.sidecars.names:
        table.add_row("sidecar column", name)
    return table


def _numbers(columns: dict[str, np.ndarray], kinds: dict[str, np.ndarray]) -> Table:
    """Reward, ending and length of samples, of what beam search found and of human pairs."""
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
    width = min(BAR, BARS // len(kinds))
    for k in range(BINS):
        cells = [f"{_bar(c[k] / c.max(), width)} {c[k] / c.sum():6.1%}" for c in counts]
        table.add_row(f"{k / BINS:.2f} – {(k + 1) / BINS:.2f}", *cells)
    return table


def _flags(dataset: ScoredDataset) -> Table:
    """How many rows each guard flagged."""
    table = Table("guard", "rows flagged", "share", title="Flags", box=box.SIMPLE)
    for flag, count in sorted(dataset.manifest.flagged.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(literal(flag), f"{count:,}", f"{count / dataset.rows:.2%}")
    return table


def _rows(dataset: ScoredDataset, title: str, chosen: np.ndarray) -> Table:
    """The chosen rows (int64 [k]) in that order."""
    names = ["source_id", "sample_index", "origin", "reward", "source", "hypothesis", "flags"]
    ordered = np.sort(chosen)
    found = [row for batch in dataset.batches(names, ordered) for row in batch.to_pylist()]
    table = Table("reward", "row", "source", "hypothesis", "flags", title=title, box=box.SIMPLE)
    for row in (found[place] for place in np.searchsorted(ordered, chosen)):
        human = row["origin"] == "reference"
        number = f"{row['source_id']}, " + ("human" if human else f"{row['origin']} {row['sample_index']}")
        texts = [literal(row[name]) for name in ("source", "hypothesis", "flags")]
        table.add_row(f"{row['reward']:.4f}", number, *texts)
    return table


def _lowest(values: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k lowest values, rising, ties in row order; no sort of all rows."""
    if k < len(values):
        candidates = np.flatnonzero(values <= np.partition(values, k - 1)[k - 1])
    else:
        candidates = np.arange(len(values))
    return candidates[np.argsort(values[candidates], kind="stable")[:k]]


def _bar(share: float, width: int) -> str:
    """A bar of `width` characters filled to `share`; whatever is not zero shows."""
    eighths = max(round(share * width * 8), int(share > 0))
    full, rest = divmod(eighths, 8)
    return ("█" * full + EIGHTHS[rest] * (rest > 0)).ljust(width)
