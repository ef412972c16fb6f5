"""Pictures of a Grow step's data: lengths, rewards by length and by how hard a source is, and where reward and
metrics disagree most."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rest.evaluation.outputs import Outputs
from rest.folder import newest_evaluations
from rest.report.plots import BLUE, ORANGE, STYLE, WIDTH
from rest.report.sections import Drawing, Lines, Section, label_of, stages_of

ENOUGH = 200_000  # rows that a picture is made of
BINS = 12
COLUMNS = ("tokens", "reward", "source_id", "origin")
DISPUTED = 8  # outputs in the table


def section(run: Path) -> Section | None:
    """Of the last Grow step and the last policy; None where there is nothing to draw."""
    figures = [drawing for name in stages_of(run, "grow")[-1:] for drawing in _pictures(run / name.folder, name.label)]
    last = [name for name in stages_of(run, "improve") if name.on_the_way][-1:]
    outputs = [newest_evaluations(run) / name.folder / "greedy.parquet" for name in last]
    tables = [lines for path in outputs if path.exists() and len(lines := disputed(Outputs.read(path))) > 1]
    if not figures and not tables:
        return None
    said = []
    if tables:
        last_policy = label_of(outputs[0].parent.name)
        said.append(
            f"The table has the greedy outputs of {last_policy} on test that the reward ranks much higher, or much "
            "lower, than the metric does: read whether the reward is right."
        )
    return Section("The data", said, tables, figures)


def _pictures(folder: Path, name: str) -> list[Drawing]:
    """Of one Grow step's shards."""
    columns = _read(folder)
    if columns is None:
        return []
    length, reward, source, human = columns
    return [
        (lengths(length, human), "lengths", f"Tokens of the samples of {name}, and of the human translations."),
        (
            by_length_and_source(length, reward, source, human),
            "by-length",
            f"Rewards of the samples of {name} by their length, and by how hard their source is: by the mean reward of "
            "its samples. The line is the median, the bands hold half and nine tenths of the samples; the dashed line "
            "is the best sample of a source. Where it lies far above the median there is something to learn.",
        ),
    ]


def _read(folder: Path) -> tuple[np.ndarray, ...] | None:
    """Tokens, rewards, source ids and whether a human's, of the first shards until there are enough rows."""
    parts: list[pa.Table] = []
    for shard in sorted(folder.glob("part-*.parquet")):
        if not {*COLUMNS} <= {*pq.read_schema(shard).names}:
            return None
        parts.append(pq.read_table(shard, columns=list(COLUMNS)))
        if sum(map(len, parts)) >= ENOUGH:
            break
    if not parts or not sum(map(len, parts)):
        return None
    table = pa.concat_tables(parts)
    human = pc.equal(table["origin"], "reference").to_numpy()
    return (
        pc.list_value_length(table["tokens"]).to_numpy(),
        table["reward"].to_numpy(),
        table["source_id"].to_numpy(),
        human,
    )


def lengths(length: np.ndarray, human: np.ndarray) -> Figure:
    """The share of each length, int [rows], of samples and of human translations."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
        axes = figure.subplots()
        edges = np.arange(0, int(length.max()) + 2) + 0.5
        for rows, colour, name in ((~human, BLUE, "samples"), (human, ORANGE, "human translations")):
            if rows.any():
                counts, _ = np.histogram(length[rows], edges)
                share = counts / rows.sum()
                axes.step(edges[:-1] + 0.5, share, where="mid", color=colour, linewidth=1.5)
                said = f"{name}, mean {length[rows].mean():.1f}"
                height = 0.92 if colour == BLUE else 0.8
                axes.text(0.99, height, said, transform=axes.transAxes, color=colour, ha="right", fontsize=9)
        axes.margins(x=0.02, y=0.15)
        axes.set(xlabel="tokens, EOS included", ylabel="share")
    return figure


def by_length_and_source(length: np.ndarray, reward: np.ndarray, source: np.ndarray, human: np.ndarray) -> Figure:
    """Rewards, float [rows], of samples against their tokens, and against the mean reward of their source."""
    samples = ~human
    length, reward, source = length[samples], reward[samples].astype(np.float64), source[samples]
    _, row = np.unique(source, return_inverse=True)
    counts = np.bincount(row)
    mean = np.bincount(row, reward) / counts
    best = np.full(len(counts), -np.inf)
    np.maximum.at(best, row, reward)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _bands(left, length.astype(np.float64), reward)
        left.set(xlabel="tokens of the sample", ylabel="reward")
        rank = mean.argsort().argsort() / max(1, len(mean) - 1)  # 0: the hardest source
        _bands(right, rank[row], reward)
        at, middle = _binned(rank, best, 50)
        right.plot(at, middle, color=ORANGE, linewidth=1.3, linestyle="--")
        right.set(xlabel="sources, the hardest first", xticks=[0, 0.5, 1], xticklabels=["0%", "50%", "100%"])
    return figure


def _bands(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """Median, half and nine tenths of y in bins of x that hold as many."""
    at = _binned(x, y, 50)[0]
    for low, high, alpha in ((5, 95, 0.12), (25, 75, 0.25)):
        axes.fill_between(at, _binned(x, y, low)[1], _binned(x, y, high)[1], color=BLUE, alpha=alpha, linewidth=0)
    axes.plot(*_binned(x, y, 50), color=BLUE, linewidth=1.6)


def _binned(x: np.ndarray, y: np.ndarray, percentile: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of x and a percentile of y in bins of x that hold about as many."""
    parts = [part for part in np.array_split(np.argsort(x, kind="stable"), BINS) if len(part)]
    return np.array([x[part].mean() for part in parts]), np.array(
        [np.percentile(y[part], percentile) for part in parts]
    )


def disputed(outputs: Outputs) -> Lines:
    """The outputs whose ranks by reward and by the metric, gold or sentence chrF, are furthest apart."""
    metric = next((name for name in ("gold", "chrf") if name in outputs.scores), None)
    if metric is None or "reward" not in outputs.scores or len(outputs.texts) < 2:
        return [[]]
    reward, other = (outputs.scores[name][:, 0].astype(np.float64) for name in ("reward", metric))
    apart = _ranks(reward) - _ranks(other)
    half = DISPUTED // 2
    order = np.argsort(-apart, kind="stable")
    chosen = [row for row in order[:half] if apart[row] > 0] + [row for row in order[::-1][:half] if apart[row] < 0]
    references = outputs.split.references
    table = [["source", "output", "reference", "reward", "gold" if metric == "gold" else "chrF", "the reward"]]
    for row in chosen:
        reference = "" if references is None else references[row]
        said = [outputs.split.sources[row], outputs.texts[row][0], reference]
        numbers = [f"{reward[row]:.3f}", f"{other[row]:.3f}" if metric == "gold" else f"{other[row]:.1f}"]
        table.append([*said, *numbers, "likes it more" if apart[row] > 0 else "likes it less"])
    return table


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 0 to 1; equal values have one rank."""
    different, row = np.unique(values, return_inverse=True)
    return row / max(1, len(different) - 1)
