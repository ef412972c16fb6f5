"""Reading experiment files."""

import json
from pathlib import Path

import pytest

from rest.errors import UserError
from rest.experiment import load_experiment
from rest.stage import describe

TINY = str(Path(__file__).parent / "tiny.py")
EXPERIMENTS = sorted((Path(__file__).parent.parent / "experiments").glob("*.py"))


def test_a_file_may_hold_variants() -> None:
    assert load_experiment(TINY) == load_experiment(f"{TINY}:experiment")
    assert load_experiment(f"{TINY}:given").reward.name == "words_in_common"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_of_the_project_can_be_read_and_recorded(path: Path) -> None:
    experiment = load_experiment(str(path))
    if path.stem not in (
        "multi30k_de_en",
        "multi30k_table_1",
        "mqm_en_de_reward",
    ):  # their directories are not given yet
        recorded = json.loads(json.dumps(describe(experiment)))
        assert recorded["type"] == "rest.experiment.Experiment"
        assert recorded["grow_steps"] + recorded["ppo"]["rollouts"] >= 1
    assert path.read_text().startswith('"""') and "Command" in path.read_text()


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
