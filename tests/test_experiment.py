"""Reading experiment files."""

import ast
import json
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from rest.errors import UserError
from rest.experiment import Experiment, import_file, load_experiment, load_variants
from rest.folder import describe

TINY = str(Path(__file__).parent / "tiny.py")
EXPERIMENTS = sorted((Path(__file__).parent.parent / "experiments").glob("*.py"))


def test_a_file_may_hold_variants() -> None:
    assert load_experiment(TINY) == load_experiment(f"{TINY}:experiment")
    assert load_experiment(f"{TINY}:given").reward.name == "words_in_common"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_of_the_project_can_be_read_and_recorded(path: Path) -> None:
    experiment = load_experiment(str(path))
    if not path.stem.startswith(("multi30k_", "mqm_", "qe_")):  # their directories are not given yet
        recorded = json.loads(json.dumps(describe(experiment)))
        assert recorded["type"] == "rest.experiment.Experiment"
        assert recorded["grow_steps"] + recorded["ppo"]["rollouts"] >= 1
    assert path.read_text().startswith('"""') and "Command" in path.read_text()


def groups_of(path: Path) -> list[str]:
    """The dictionaries of experiments in a file."""
    return [
        name
        for name, value in vars(import_file(path)).items()
        if isinstance(value, dict) and any(isinstance(each, Experiment) for each in value.values())
    ]


GROUPS = [(path, group) for path in EXPERIMENTS for group in groups_of(path)]


def test_what_was_compared_by_scripts_is_in_groups() -> None:
    found = {(path.stem, group) for path, group in GROUPS}
    assert found == {
        *(("synthetic_table_1", group) for group in ("trials", "table", "sweep", "hacking")),
        *(("synthetic_improve", group) for group in ("losses", "rules", "methods")),
        *(("synthetic_overoptimisation", group) for group in ("variants", "limits")),
        *(("multi30k_improve", group) for group in ("losses", "rules")),
        *(("multi30k_table_1", "table"), ("multi30k_de_en", "rewards"), ("synthetic", "ablations")),
    }


@pytest.mark.parametrize(("path", "group"), GROUPS, ids=lambda part: part if isinstance(part, str) else part.stem)
def test_every_variant_of_a_group_loads_and_differs_from_the_others(path: Path, group: str) -> None:
    variants = load_variants(f"{path}:{group}")
    assert len(variants) > 1
    for name, experiment in variants.items():
        assert re.fullmatch(r"[\w.+-]+", name)  # a folder, and a flag without quotes
        alone = load_experiment(f"{path}:{group}.{name}")
        assert replace(alone, corpus=None) == replace(experiment, corpus=None)  # whose class is the file's own
    for (one, first), (other, second) in combinations(variants.items(), 2):
        assert first != second, f"{one} and {other} have the same settings"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_begins_with_few_imports(path: Path) -> None:
    """From `rest` itself, whatever module a name is defined in, and at most 8 lines in all."""
    imports = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert sum(node.end_lineno - node.lineno + 1 for node in imports) <= 8
    modules = {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    assert not [module for module in modules if module.startswith("rest.")]


def test_the_methods_of_the_comparison_draw_as_many_samples() -> None:
    path = EXPERIMENTS[0].with_name("synthetic_improve.py")
    for method in load_variants(f"{path}:methods").values():
        drawn = method.grow_steps * method.grow.sources * method.grow.samples_per_source
        assert 8000 - 8 * method.grow_steps < drawn <= 8000
        assert not method.improve.unfiltered


def test_what_is_no_experiment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such experiment file"):
        load_experiment(str(tmp_path / "none.py"))
    with pytest.raises(UserError, match=r"no experiment named 'givn'; it has .*did you mean 'given'"):
        load_experiment(f"{TINY}:givn")
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="it has none"):
        load_experiment(str(tmp_path / "empty.py"))
    (tmp_path / "text.txt").write_text("x = 1\n")
    with pytest.raises(UserError, match="not a Python file"):
        load_experiment(str(tmp_path / "text.txt"))
