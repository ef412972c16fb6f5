"""Reading experiment files."""

import ast
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from rest.baselines.bc import BCSettings
from rest.data.batches import BatchOverrides
from rest.errors import UserError
from rest.evaluation.evaluate import EvaluationSettings
from rest.experiment import Experiment, import_file, load_experiment, load_variants
from rest.grow import GrowSettings
from rest.identity import describe
from rest.improve import ImproveSettings
from rest.learning.losses import Anchored
from rest.learning.mesh import MachineSettings
from rest.learning.optimizers import Schedule
from rest.learning.preferences import CPO
from rest.learning.train import TrainSettings
from rest.model.layers import TransformerSettings
from rest.policy.beam import BeamSettings
from rest.policy.sampler import SamplingOverrides, SamplingSettings
from rest.reward.learned.network import RatingLoss
from rest.reward.learned.settings import RewardSettings
from rest.reward.raters import MetricRater

TINY = str(Path(__file__).parent / "tiny.py")
EXPERIMENTS = sorted((Path(__file__).parent.parent / "experiments").glob("*.py"))


def test_a_file_may_hold_variants() -> None:
    assert load_experiment(TINY) == load_experiment(f"{TINY}:experiment")
    assert load_experiment(f"{TINY}:given").reward.name == "words_in_common"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_of_the_project_can_be_read_and_recorded(path: Path) -> None:
    experiment = load_experiment(str(path))
    unknown = "multi30k_", "mqm_", "opus_", "qe_", "iwslt14_", "wmt", "into_"
    if not path.stem.startswith(unknown):  # their directories are not given yet
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
        *(("synthetic_improve", group) for group in ("trials", "losses", "rules", "grows", "methods")),
        *(("synthetic_overoptimisation", group) for group in ("variants", "limits")),
        *(("multi30k_improve", group) for group in ("losses", "rules")),
        *((file, group) for file in ("iwslt14_de_en", "wmt20_zh_en") for group in ("table", "rewards")),
        *((file, "sources") for file in ("iwslt14_de_en", "wmt_de_en", "multi30k_de_en")),
        *(("iwslt14_preferences", group) for group in ("rewards", "grows", "table", "people")),
        *(("iwslt14_de_en", "utilities"), ("wmt_de_en", "rewards"), ("wmt_de_en", "preferences")),
        *(("multi30k_table_1", "table"), ("multi30k_de_en", "rewards"), ("synthetic", "ablations")),
    }


@pytest.mark.parametrize(("path", "group"), GROUPS, ids=lambda part: part if isinstance(part, str) else part.stem)
def test_every_variant_of_a_group_loads_and_differs_from_the_others(path: Path, group: str) -> None:
    variants = load_variants(f"{path}:{group}")
    assert len(variants) > 1
    for name, experiment in variants.items():
        assert re.fullmatch(r"[\w.+-]+", name)  # a folder, and a flag without quotes
        if name in list(variants)[:2]:  # each executes the file again
            alone = load_experiment(f"{path}:{group}.{name}")
            assert repr(alone) == repr(experiment)  # classes of the file's own are others each time
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
    for group, samples in {"methods": 16_000, "grows": 24_000}.items():
        for each in load_variants(f"{path}:{group}").values():
            drawn = each.grow_steps * each.grow.sources * each.grow.samples_per_source
            assert samples - each.grow_steps * each.grow.sources < drawn <= samples
            assert not each.improve.unfiltered


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


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (lambda: {"seed": -1}, "seed must be from 0 to 4294967295, not -1"),
        (lambda: {"seed": 2**32}, "seed must be from 0 to 4294967295, not 4294967296"),
        (lambda: {"grow_steps": -1}, "grow_steps must be at least 0, not -1"),
        (
            lambda: {"grow": GrowSettings(sampling=SamplingOverrides(temperature=1e-39))},
            "temperature must be from 0.0001",
        ),
        (
            lambda: {"sampling": SamplingSettings(temperature=math.inf)},
            "temperature must be from 0.0001 to 10000, not inf",
        ),
        (lambda: {"evaluation": EvaluationSettings(bc_temperatures=(0.0,))}, "bc_temperatures must be from 0.0001"),
        (lambda: {"evaluation": EvaluationSettings(beam=BeamSettings(beams=0))}, "beams must be at least 1, not 0"),
        (lambda: {"evaluation": EvaluationSettings(judge_limit=math.nan)}, "evaluation.judge_limit must be a finite"),
        (
            lambda: {"sampling": SamplingSettings(max_target_tokens=65)},
            "sampling.max_target_tokens 65 is more than batch",
        ),
        (lambda: {"machine": MachineSettings(micro_batches=3)}, "micro_batches 3: a batch has 8 rows by batch"),
        (
            lambda: {
                "machine": MachineSettings(micro_batches=2),
                "reward": RewardSettings(rater=MetricRater(), loss=RatingLoss(ranking=1.0)),
            },
            "micro_batches 2: the ranking of reward.loss is a mean over a whole batch",
        ),
        (
            lambda: {"improve": ImproveSettings(batch=BatchOverrides(source_tokens=16))},
            "improve.batch.source_tokens 16 is less than batch.source_tokens 64: some of the training text",
        ),
        (
            lambda: {"machine": MachineSettings(micro_batches=2), "improve": ImproveSettings(loss=Anchored())},
            "micro_batches 2: improve.loss Anchored is a mean over a whole batch",
        ),
        (
            lambda: {
                "machine": MachineSettings(micro_batches=2),
                "improve": ImproveSettings(loss=CPO(), label_smoothing=0.1),
            },
            "micro_batches 2: improve.label_smoothing 0.1 of improve.loss CPO is a mean",
        ),
        (lambda: {"improve": ImproveSettings(batch=BatchOverrides(target_tokens=16))}, "more than improve.batch"),
        (
            lambda: {"bc": BCSettings(train=TrainSettings(schedule=Schedule(math.nan)))},
            "learning_rate must be at least 0",
        ),
        (lambda: {"model": TransformerSettings(dropout=1.0)}, "dropout must be at least 0 and below 1, not 1.0"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_set(settings: Callable[[], dict[str, Any]], said: str) -> None:
    with pytest.raises(UserError) as refused:
        replace(load_experiment(TINY), **settings())
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("from rest import Consensuss", "cannot import name 'Consensuss' from 'rest'"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("sorted([1], revers=True)", "'revers'"),
        ("grow = GrowSetting()", "name 'GrowSetting' is not defined"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(f"from rest import GrowSettings\n{line}\n")
    with pytest.raises(UserError, match=rf"wrong.py:2: .*{said}"):
        import_file(file)


def test_what_is_wrong_in_the_code_that_a_file_calls_is_no_mistake_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "right.py"
    file.write_text("from concurrent.futures import Executor\nExecutor().map(None, 3)\n")
    with pytest.raises(TypeError):
        import_file(file)
