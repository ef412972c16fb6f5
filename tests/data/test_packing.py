"""Packing with arrays, against a loop over pairs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest.data import packing
from rest.data.packing import pack


def units_of(sources, targets, room, groups, shared):
    """Pair by pair: a unit ends where its group does, or where the next pair has no room."""
    order = range(len(targets)) if groups is None else np.argsort(groups, kind="stable")
    units, last = [], None
    for pair in order:
        unit = [*units[-1], int(pair)] if units else []
        sums = [sources[unit[:1] if shared else unit].sum(), targets[unit].sum()] if unit else [0, 0]
        if groups is None or groups[pair] != last or sums[0] > room[0] or sums[1] > room[1]:
            units.append([int(pair)])
        else:
            units[-1] = unit
        last = None if groups is None else groups[pair]
    return units


def rows_of(sources, targets, room, seed, groups, shared):
    """Unit by unit, longest first, each into the first row of its window that has room."""
    units = units_of(sources, targets, room, groups, shared)
    sizes = [(int(sources[unit[:1] if shared else unit].sum()), int(targets[unit].sum())) for unit in units]
    order, rows = np.random.default_rng(seed).permutation(len(units)), []
    for start in range(0, len(units), packing.WINDOW):
        opened = []
        for unit in sorted(order[start : start + packing.WINDOW], key=lambda unit: -max(sizes[unit])):
            source, target = sizes[unit]
            row = next((row for row in opened if row[0] >= source and row[1] >= target), None)
            if row is None:
                opened.append(row := [*room, []])
            row[0], row[1], row[2] = row[0] - source, row[1] - target, [*row[2], *units[unit]]
        rows += [row[2] for row in opened]
    return rows


@pytest.mark.parametrize("kind", ["pairs", "groups", "shared sources"])
@given(st.integers(0, 60), st.integers(0, 10**6), st.booleans())
def test_rows_are_those_of_first_fit_decreasing_pair_by_pair(kind, n, seed, rising):
    rng, shared = np.random.default_rng(seed), kind == "shared sources"
    room = (int(rng.integers(6, 20)), 40_000 if seed % 7 == 0 else int(rng.integers(6, 20)))
    groups = None if kind == "pairs" else rng.integers(-4, 1 + n // 3, n)
    if groups is not None and rising:
        groups = np.sort(groups)
    of_source = rng.integers(0, 7, n + 5)
    sources = (of_source[groups] if shared else rng.integers(0, 7, n)).astype(np.int32)
    targets = rng.integers(1, 7, n).astype(np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "WINDOW", 8)
        patch.setattr(packing, "TOGETHER", 3)
        found = pack(sources, targets, room, seed, groups, shared)
        assert [row.tolist() for row in found] == rows_of(sources, targets, room, seed, groups, shared)
