"""Many runs: variants of an experiment x seeds, stages that are the same made once, and what the cells show together.

A cell is a run, `DIR/<variant>/<seed>`. Its stages lie in `DIR/stages`, named by what decides their bytes, and the
cell's folder has links to them: so what two cells have in common is made once, whoever gets there first. Any number of
processes may work on a study; each takes what no other is making.
"""

from __future__ import annotations

import dataclasses
import json
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rest.algorithm import rest
from rest.errors import UserError
from rest.experiment import Experiment
from rest.folder import Busy, read_json, write_json
from rest.identity import describe
from rest.journal import say
from rest.report.joint import Tests, joint
from rest.report.record import made_with, record_of, without_paths
from rest.report.summary import summarise
from rest.runs import Run

STAGES = "stages"  # the folder of what cells share
WAIT_S, LONGEST_WAIT_S = 0.5, 30.0  # before asking again for stages that other processes are making


@dataclass(frozen=True, eq=False)
class Cell:
    """One variant with one seed."""

    variant: str
    seed: int
    experiment: Experiment
    folder: Path

    @property
    def complete(self) -> bool:
        """Whether it was made to its end with these settings, however the devices were used."""
        return self._end.exists() and read_json(self._end) == self._settings

    def ended(self) -> None:
        """Say that it is complete."""
        write_json(self._end, self._settings)

    @property
    def _end(self) -> Path:
        return self.folder / "complete.json"

    @property
    def _settings(self) -> dict[str, Any]:
        return json.loads(json.dumps(describe(self.experiment))) | {"machine": None}


@dataclass(frozen=True)
class Study:
    """Variants x seeds in a folder."""

    variants: Mapping[str, Experiment]
    seeds: tuple[int, ...]
    out: Path

    def __post_init__(self) -> None:
        if not self.variants or not self.seeds:
            raise UserError("a study needs at least one variant and one seed")
        for name in self.variants:
            if name == STAGES or "/" in name or name.startswith("."):
                raise UserError(f"variant {name!r}: cannot be the name of a folder in a study")

    @property
    def cells(self) -> list[Cell]:
        """Seed by seed, since variants of one seed have most in common."""
        return [
            Cell(name, seed, dataclasses.replace(experiment, seed=seed), self.out / name / str(seed))
            for seed in self.seeds
            for name, experiment in self.variants.items()
        ]

    def make(self) -> None:
        """Every cell that is not complete; what fails is told at the end, and does not keep the others from it."""
        left = [cell for cell in self.cells if not cell.complete]
        failed, begun, pause = list[str](), set[Cell](), WAIT_S
        mistaken = True
        while left:
            before = len(left)
            for cell in list(left):
                if cell not in begun:
                    say(f"study: {cell.variant}, seed {cell.seed}")
                    begun.add(cell)
                try:
                    run = Run(cell.experiment, cell.folder, self.out / STAGES)  # anew: a busy one holds its text
                    with run.recorded():
                        rest(run)
                    summarise(cell.folder)
                    cell.ended()
                except Busy:  # another process makes what it needs next
                    continue
                except Exception as error:
                    if not isinstance(error, UserError | OSError):  # then the reason is in the code
                        traceback.print_exc()
                        mistaken = False
                    say(f"study: {cell.variant}, seed {cell.seed} failed: {error}")
                    failed.append(f"{cell.variant}, seed {cell.seed}: {error}")
                left.remove(cell)
            pause = WAIT_S if len(left) < before else min(2 * pause, LONGEST_WAIT_S)
            if len(left) == before:
                time.sleep(pause)
        if failed:
            said = f"{len(failed)} of {len(self.cells)} cells failed: " + "; ".join(failed)
            raise UserError(said) if mistaken else RuntimeError(said)

    @property
    def rows(self) -> dict[tuple[str, int], list[dict[str, Any]]]:
        """The rows of every cell that is complete, by variant and seed."""
        complete = [cell for cell in self.cells if cell.complete]
        return {(cell.variant, cell.seed): read_json(cell.folder / "summary.json") for cell in complete}

    @property
    def joint(self) -> dict[str, dict[str, Tests]]:
        """Of every variant the complete seeds together, by what their last policies are compared with."""
        runs: dict[str, dict[int, Path]] = {}
        for variant, seed in self.rows:
            runs.setdefault(variant, {})[seed] = self.out / variant / str(seed)
        return {variant: joint(seeds, self.out / variant / "joint.json") for variant, seeds in runs.items()}

    def record(self, command: str) -> dict[str, Any]:
        """All that the complete cells showed, for a file of results."""
        cells, joint = [cell for cell in self.cells if cell.complete], self.joint
        return {
            **made_with(command),
            "variants": {
                name: {
                    "settings": without_paths(describe(experiment)),
                    "seeds": {str(cell.seed): record_of(cell.folder) for cell in cells if cell.variant == name},
                    **({"joint": joint[name]} if joint.get(name) else {}),
                }
                for name, experiment in self.variants.items()
            },
        }
