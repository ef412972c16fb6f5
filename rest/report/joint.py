"""What the seeds of a variant show together: the last policy less its baselines, seed by seed on the same test text.

The mean over seeds is tested on the sentences, which are resampled for all seeds at once. So its interval tells how far
other text might move it; how far other seeds might, a few seeds cannot tell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rest.evaluation.compare import Evaluated, joint_tests
from rest.folder import newest_evaluations, read_json, write_json
from rest.report import comparisons
from rest.report.sections import Section
from rest.report.verdict import compared_with

Tests = dict[str, dict[str, float]]
OF_GREEDY, OF_BEAM = (
    ("bleu", "chrf", "ter", "gold_greedy", "judge_greedy"),
    ("bleu_beam", "chrf_beam", "gold_beam", "judge_beam"),
)
SHOWN = (*OF_GREEDY, *OF_BEAM, "reward", "gold", "judge")


def joint(runs: Mapping[int, Path], kept: Path) -> dict[str, Tests]:
    """The paired tests of the runs of several seeds, by what the last policy is compared with, "BC continued" or "BC".

    None of what a seed lacks, nor where seeds have test text of their own. They take a minute and are `kept` in a file.
    """
    if len(runs) < 2:
        return {}
    of_base: dict[str, list[tuple[Path, str, str]]] = {}
    for run in runs.values():
        for base, names in compared_with(read_json(run / "summary.json"), comparisons.read(run)).items():
            of_base.setdefault(base, []).append((newest_evaluations(run), *names))
    known: dict[str, Tests] = read_json(kept) if kept.exists() else {}
    found, keys = dict[str, Tests](), dict[str, str]()
    for base, compared in of_base.items():
        if len(compared) == len(runs):
            keys[base] = _key(compared)
            found[base] = known[keys[base]] if keys[base] in known else _tests(compared)
    write_json(kept, {keys[base]: tests for base, tests in found.items()})
    return {base: tests for base, tests in found.items() if tests}


def _key(compared: list[tuple[Path, str, str]]) -> str:
    """What decides the tests: those of each seed alone, and what they were made from."""
    alone = [evaluations / f"{new}-against-{old}" / "stage.json" for evaluations, new, old in compared]
    return hashlib.sha256(b"".join(path.read_bytes() for path in alone)).hexdigest()


def _tests(compared: list[tuple[Path, str, str]]) -> Tests:
    pairs = [tuple(Evaluated.read(evaluations / name) for name in names) for evaluations, *names in compared]
    splits = [new.samples.split for new, _ in pairs]
    if any((split.sources, split.references) != (splits[0].sources, splits[0].references) for split in splits):
        return {}
    evaluations, new, _ = compared[0]
    settings: Any = read_json(evaluations / new / "stage.json")["settings"]
    tests = joint_tests([(new, old) for new, old in pairs], seed=0, tokenize=settings["evaluation"]["bleu_tokenizer"])
    return {name: test.record() for name, test in tests.items()}


def section(variants: Mapping[str, Mapping[str, Any]]) -> Section | None:
    """A table of the variants of a study's record, a line a baseline; None where there is nothing to show."""
    found = [
        (variant, " ".join(each["seeds"]), base, tests)
        for variant, each in variants.items()
        for base, tests in each.get("joint", {}).items()
    ]
    if not found:
        return None
    shown = [metric for metric in SHOWN if any(metric in tests for *_, tests in found)]
    head = ["variant", "seeds", "ReST less", *map(_title, shown)]
    said = (
        "The mean difference over seeds, on the same sources, with its 95% interval over these: how far other text "
        "might move it, not other seeds. BLEU, chrF and TER are of greedy outputs, reward, gold and judge of samples, "
        "where nothing else is said."
    )
    return Section(
        "All seeds together", [said], [[head, *([*names, *_cells(tests, shown)] for *names, tests in found)]]
    )


def _cells(tests: Tests, shown: list[str]) -> Iterator[str]:
    for metric in shown:
        digits = comparisons.DIGITS.get(metric, 2)
        yield comparisons.difference(tests[metric], digits) if metric in tests else ""


def _title(metric: str) -> str:
    return comparisons.TITLES[metric] + (" (less is better)" if metric == "ter" else "")
