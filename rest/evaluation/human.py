"""People compare policies without knowing which is which: sheets to fill in, and what the filled ones say.

As in the paper: a rater sees a source and two outputs, BC's and that of one ReST policy, and scores each from 0 to 6;
the human evaluation difference is the mean score of the policy minus that of BC (Gulcehre et al. 2023, figure 7).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from rest.errors import UserError
from rest.evaluation.outputs import Outputs
from rest.folder import read_json, seed_for, write_json
from rest.statistics.correlation import kendall
from rest.statistics.paired import paired_means

HEAD = ("item", "source", "output_1", "output_2", "score_1", "score_2")
LOWEST, HIGHEST = 0.0, 6.0


def export_sheet(outputs: Mapping[str, Outputs], baseline: str, sources: int, seed: int, sheet: Path, key: Path) -> int:
    """Writes `sheet` (CSV, for raters) and `key` (JSON, not for raters), and returns the number of items.

    `outputs` are one hypothesis per source of each policy. The same random sources for every policy; the order of
    items and of the two outputs in each is random. Where both say the same there is nothing to score: such items are
    left out, and count as equal.
    """
    base = outputs[baseline]
    for name, other in outputs.items():
        if other.split.ids.tolist() != base.split.ids.tolist():
            raise UserError(f"{name} and {baseline} were evaluated on different text, so they cannot be compared")
    if not 1 <= sources <= len(base.split):
        raise UserError(f"sources {sources}: must be from 1 to {len(base.split)}, the sources that were evaluated")
    rng = np.random.default_rng(seed_for(seed, "human evaluation"))
    chosen = rng.permutation(len(base.split))[:sources]
    pairs = [(int(row), name) for row in chosen for name in outputs if name != baseline]
    rows, items, equal = list[list[str]](), dict[str, dict[str, Any]](), list[dict[str, Any]]()
    for place in rng.permutation(len(pairs)):
        row, name = pairs[place]
        texts = {side: outputs[side].texts[row][0] for side in (baseline, name)}
        if "reward" not in outputs[baseline].scores:
            raise UserError(
                "the outputs have no rewards, whose ranks people's are compared with: evaluate more samples"
            )
        rewards = {side: float(outputs[side].scores["reward"][row, 0]) for side in (baseline, name)}
        known = {"policy": name, "source_id": int(base.split.ids[row]), "rewards": rewards}
        if texts[baseline] == texts[name]:
            equal.append(known)
            continue
        sides = [baseline, name] if rng.random() < 0.5 else [name, baseline]
        item = str(len(rows) + 1)
        items[item] = known | {"sides": sides}
        rows.append([item, base.split.sources[row], *(texts[side] for side in sides), "", ""])
    with sheet.open("w", encoding="utf-8-sig", newline="") as file:  # the mark lets Excel read UTF-8
        csv.writer(file).writerows([HEAD, *rows])
    write_json(key, {"baseline": baseline, "items": items, "equal": equal})
    return len(rows)


def read_sheet(path: Path, items: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """The two scores of every item that has them; UserError naming the line for what cannot be read."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    if not rows or tuple(rows[0]) != HEAD:
        raise UserError(f"{path}, line 1: the columns must be {', '.join(HEAD)}")
    found: dict[str, tuple[float, float]] = {}
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(HEAD):
            raise UserError(f"{path}, row {number}: has {len(row)} columns, not {len(HEAD)}")
        item, one, two = row[0], row[4].strip(), row[5].strip()
        if item not in items or item in found:
            raise UserError(
                f"{path}, row {number}: item {item!r} is {'there twice' if item in found else 'not in the key'}"
            )
        if one or two:
            found[item] = (_score(path, number, "score_1", one), _score(path, number, "score_2", two))
    if not found:
        raise UserError(f"{path}: no item has scores")
    return found


def _score(path: Path, number: int, name: str, text: str) -> float:
    try:
        score = float(text.replace(",", "."))
    except ValueError:
        score = np.nan
    if not LOWEST <= score <= HIGHEST:
        raise UserError(f"{path}, row {number}: {name} must be a number from 0 to 6, but is {text!r}")
    return score


@dataclass(frozen=True)
class HumanResult:
    """What people and the reward say of one policy against the baseline."""

    policy: str
    items: int  # sources that were scored, or equal
    difference: float  # mean score minus the baseline's, -6..6
    ci95: tuple[float, float]  # over sources
    p: float  # of no difference, by randomisation
    reward_difference: float  # of the same sources


@dataclass(frozen=True)
class HumanEvaluation:
    """Every policy, whether people rank them as the reward does, and whether people agree."""

    baseline: str
    results: list[HumanResult]
    kendall: float | None  # Kendall's τ of policies by people and by reward; None for one policy
    agreement: float | None  # Krippendorff's α of the raters' differences, 1: they agree; None for one rater
    raters: int

    def ranks(self) -> dict[str, tuple[float, float]]:
        """The rank of each policy by people and by reward; 1 is the best."""
        people, reward = (
            rankdata([-value for value in values])
            for values in ([r.difference for r in self.results], [r.reward_difference for r in self.results])
        )
        return {r.policy: (float(a), float(b)) for r, a, b in zip(self.results, people, reward, strict=True)}


def import_sheets(sheets: Sequence[Path], key: Path, seed: int = 0) -> HumanEvaluation:
    """What the filled sheets of one or several raters say. An item's difference is the mean of its raters'."""
    known = read_json(key)
    if not isinstance(known, dict) or not {"baseline", "items", "equal"} <= {*known}:
        raise UserError(f"{key}: not the key of a sheet, which `rest human-eval export` writes beside it")
    baseline, items = known["baseline"], known["items"]
    filled = [read_sheet(path, items) for path in sheets]
    differences = np.full((len(sheets), len(items)), np.nan)  # of each rater and item: policy minus baseline
    for rater, scores in enumerate(filled):
        for place, item in enumerate(items):
            if item in scores:
                first, second = scores[item]
                differences[rater, place] = second - first if items[item]["sides"][0] == baseline else first - second
    seen = ~np.isnan(differences).all(0)
    means = np.zeros(len(items))
    means[seen] = np.nanmean(differences[:, seen], axis=0)
    rows = [(entry, mean) for entry, mean, ok in zip(items.values(), means.tolist(), seen, strict=True) if ok]
    # of a sheet filled in part as large a part of the equal outputs
    for policy in dict.fromkeys(entry["policy"] for entry in known["equal"]):
        asked = np.array([entry["policy"] == policy for entry in items.values()], bool)
        equal = [(entry, 0.0) for entry in known["equal"] if entry["policy"] == policy]
        rows += equal[: round(len(equal) * seen[asked].mean())] if asked.any() else equal
    results = []
    for policy in dict.fromkeys(entry["policy"] for entry, _ in rows):
        own = [(entry, mean) for entry, mean in rows if entry["policy"] == policy]
        values = np.array([mean for _, mean in own])
        test = paired_means(values, np.zeros(len(values)), seed)
        rewards = [entry["rewards"][policy] - entry["rewards"][baseline] for entry, _ in own]
        ends, p = (test.lo, test.hi), test.p_randomisation
        results.append(HumanResult(policy, len(own), test.difference, ends, p, float(np.mean(rewards))))
    results.sort(key=lambda result: -result.difference)
    tau = None
    if len(results) > 1:
        people, reward = (np.array([getattr(r, name) for r in results]) for name in ("difference", "reward_difference"))
        tau = kendall(people, reward)
    return HumanEvaluation(baseline, results, tau, krippendorffs_alpha(differences), len(sheets))


def krippendorffs_alpha(ratings: np.ndarray) -> float | None:
    """Krippendorff's α of ratings float [raters, items] on an interval scale; NaN: not rated.

    1 - (mean squared difference within items) / (mean squared difference between any two ratings), over the items
    that at least two people rated (Krippendorff 2011). None where nobody rated the same, or all ratings are equal.
    By hand: the package `krippendorff` is under the GPL, which this project is not.
    """
    counts = (~np.isnan(ratings)).sum(0)
    ratings, counts = ratings[:, counts > 1], counts[counts > 1]
    values = ratings[~np.isnan(ratings)]
    if not len(values) or np.ptp(values) == 0:
        return None
    within = (np.nanvar(ratings, axis=0) * counts * counts / (counts - 1)).sum() * 2 / len(values)
    between = 2 * values.var(ddof=1)
    return float(1 - within / between)
