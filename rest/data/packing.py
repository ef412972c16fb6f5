"""Which pairs share a row of a batch: first-fit-decreasing packing, with arrays alone for a hundred million pairs."""

from __future__ import annotations

import numpy as np

from rest.data.ragged import Ragged

WINDOW = 2048  # units that are sorted and packed together
TOGETHER = 64  # windows that are packed at the same time; it decides nothing but the speed


def pack(
    sources: np.ndarray,
    targets: np.ndarray,
    room: tuple[int, int],
    seed: int,
    groups: np.ndarray | None = None,
    shared: bool = False,
) -> Ragged:
    """The pairs of each row, int32, in their order.

    `sources` and `targets` are lengths, int32 [n], none above `room`, the positions of a row on either side. Pairs of
    one group (int [n]) share a row, cut where they outgrow it. With `shared` a group has one source, which takes its
    room once.

    Units are packed in shuffled windows. A window, and not the whole set, is sorted, so that rows stay a random mixture
    of the corpus.
    """
    units = None if groups is None else _units(sources, targets, room, groups, shared)
    if units is not None and len(targets):
        pairs, begins = units
        targets = np.add.reduceat(targets[pairs], begins)
        sources = sources[pairs[begins]] if shared else np.add.reduceat(sources[pairs], begins)
    order = np.arange(len(targets), dtype=np.int32)
    np.random.default_rng(seed).shuffle(order)
    heights: list[np.ndarray] = []  # units of each row
    for start in range(0, len(order), WINDOW * TOGETHER):
        block = order[start : start + WINDOW * TOGETHER]
        for part in np.split(block, [len(block) // WINDOW * WINDOW]):
            if len(part):  # whole windows, and what is left at the end
                part[:], counts = _first_fit(part.reshape(-1, min(WINDOW, len(part))), sources, targets, room)
                heights.append(counts)
    counts = np.concatenate([np.zeros(1, np.int32), *heights])
    if units is None or not len(targets):
        return Ragged([(np.cumsum(counts, dtype=np.int32), order)])
    return _pairs_of(order, np.cumsum(counts), *units)


def _first_fit(
    windows: np.ndarray, sources: np.ndarray, targets: np.ndarray, room: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Puts each unit of each window, longest first, into the first row that has room on both sides.

    `windows` are units, int32 [W, K]; what is found are the units row after row, and how many each row has.
    """
    longest = np.argsort(-np.maximum(sources[windows], targets[windows]), axis=1, kind="stable")
    windows = np.take_along_axis(windows, longest, 1)
    kind = np.int16 if max(room) <= np.iinfo(np.int16).max else np.int32
    sides = [lengths[windows.T].astype(kind)[..., None] for lengths in (sources, targets)]  # [K, W, 1]
    rooms = [np.full(windows.shape, size, kind) for size in room]  # rows that are not opened yet have all of it
    rows, each, opened = np.empty(windows.shape, np.int16), np.arange(len(windows)), 1
    for k, (source, target) in enumerate(zip(*sides, strict=True)):
        fits = (rooms[0][:, :opened] >= source) & (rooms[1][:, :opened] >= target)
        row = fits.argmax(1)
        rooms[0][each, row] -= source[:, 0]
        rooms[1][each, row] -= target[:, 0]
        rows[:, k] = row
        opened = min(max(opened, int(row.max()) + 2), windows.shape[1])
    in_rows = np.take_along_axis(windows, np.argsort(rows, axis=1, kind="stable"), 1)
    counts = np.bincount((each[:, None] * windows.shape[1] + rows).ravel())
    return in_rows.ravel(), counts[counts > 0].astype(np.int32)


def _units(
    sources: np.ndarray, targets: np.ndarray, room: tuple[int, int], groups: np.ndarray, shared: bool
) -> tuple[np.ndarray, np.ndarray]:
    """What must share a row: a group's pairs, cut where they outgrow a row.

    Pairs in the order of their groups, int32 [n], and where among them each unit begins.
    """
    n = len(groups)
    pairs = np.arange(n, dtype=np.int32)
    if (groups[1:] < groups[:-1]).any():
        pairs = np.argsort(groups, kind="stable").astype(np.int32)
    begins = np.flatnonzero(np.diff(groups[pairs], prepend=groups[pairs[:1]] - 1))
    ends = np.append(begins[1:], n)
    limits = [(targets, room[1])] if shared else [(targets, room[1]), (sources, room[0])]
    filled = [(np.cumsum(lengths[pairs], dtype=np.int64), size) for lengths, size in limits]
    is_begin = np.zeros(n, np.bool_)
    while len(begins):  # a unit more of every group that has one
        is_begin[begins] = True
        reach = ends
        for total, size in filled:
            before = np.where(begins > 0, total[begins - 1], 0)
            reach = np.minimum(reach, np.searchsorted(total, before + size, side="right"))
        goes_on = reach < ends
        begins, ends = reach[goes_on], ends[goes_on]
    return pairs, np.flatnonzero(is_begin).astype(np.int32)


def _pairs_of(units: np.ndarray, edges: np.ndarray, pairs: np.ndarray, begins: np.ndarray) -> Ragged:
    """The pairs of the units of each row; row r has the units from edge r to edge r + 1."""
    sizes = np.diff(begins, append=len(pairs)).astype(np.int32)[units]
    after = np.cumsum(sizes, dtype=np.int32)
    places = np.repeat(begins[units] - (after - sizes), sizes)
    places += np.arange(len(pairs), dtype=np.int32)
    return Ragged([(np.concatenate([[0], after])[edges].astype(np.int32), pairs[places])])
