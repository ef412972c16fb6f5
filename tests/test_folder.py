"""A stage's name, and its folder: complete or absent, and never mixed from two settings."""

import errno
import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest.errors import UserError
from rest.folder import (
    KINDS,
    Busy,
    StageFolder,
    StageName,
    check_seal,
    differences,
    discard,
    open_stage,
    read_json,
    replacing,
    seal,
    seed_for,
    stages_in,
    write_json,
)
from rest.identity import describe
from rest.learning.optimizers import Schedule

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Settings:
    steps: int = 3
    schedule: Schedule = Schedule(0.5)


class Scale:
    """Something that can be called, with a setting."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: float) -> float:
        return self.factor * x


def double(x: float) -> float:
    return 2 * x


def make(folder: Path, settings: dict[str, Any], result: dict[str, Any]) -> None:
    with open_stage(folder, settings) as stage:
        assert not stage.finished
        (stage.path / "data.txt").write_text("made")
        stage.finish(result)


def reported(stage: StageFolder) -> dict[str, Any]:
    """Its result without the seconds that it took."""
    return {name: value for name, value in stage.result.items() if name != "wall_s"}


def begin(folder: Path, settings: dict[str, Any]) -> None:
    """Write half of it, then die."""
    with pytest.raises(RuntimeError, match="killed"), open_stage(folder, settings) as stage:
        (stage.path / "data.txt").write_text("half")
        raise RuntimeError("killed")


# Names


STEPS = dict.fromkeys(("bc_continued", "bc_continued_last"), ("steps",))
NUMBERS = STEPS | {"reward": ("g",), "grow": ("g",), "improve": ("g", "i")}  # that a kind has


@st.composite
def names(draw) -> StageName:
    kind = draw(st.sampled_from(sorted(KINDS)))
    return StageName(kind, **{part: draw(st.integers(0, 10**6)) for part in NUMBERS.get(kind, ())})


@given(names())
def test_a_name_comes_back_from_its_folder(name):
    assert StageName.parse(name.folder) == name
    assert "/" not in name.folder and not name.folder.startswith(".")


@given(st.lists(names(), unique=True))
def test_names_differ_in_folder_and_order(some):
    assert len({name.folder for name in some}) == len({name.order for name in some}) == len(some)


@pytest.mark.parametrize(
    ("folder", "name", "label"),
    [
        ("bc", StageName("bc"), "BC"),
        ("bc_continued-320", StageName("bc_continued", steps=320), "BC continued"),
        ("bc_continued-320-last", StageName("bc_continued_last", steps=320), "BC continued, last"),
        ("bc-reward", StageName("reward_start"), "start of the reward"),
        ("reward", StageName("reward", 1), "reward"),
        ("reward-2", StageName("reward", 2), "reward 2"),
        ("grow-1", StageName("grow", 1), "G1"),
        ("value", StageName("value"), "value"),
        ("improve-1-0", StageName("improve", 1, 0), "G1 I0"),
        ("improve-2-10", StageName("improve", 2, 10), "G2 I10"),
        ("ppo", StageName("ppo"), "PPO"),
    ],
)
def test_folders_and_labels(folder, name, label):
    assert StageName.parse(folder) == name
    assert (name.folder, name.label) == (folder, label)


@pytest.mark.parametrize(
    "folder",
    ["", "BC", "bc_continued", "bc-2", "reward-", "reward-1", "reward_start", "grow", "grow-x", "grow--1", "improve-1",
     "improve-1-2-against-bc", "improve-01-2", "improve-1-2-old", ".improve-1-2.partial", "evaluation", "best-of-2",
     "evaluation/bc", "grow-٣", "ppo\n"],
)  # fmt: skip
def test_other_folders_are_no_stage(folder):
    assert StageName.parse(folder) is None


def test_the_last_policy_of_the_control_lies_beside_the_chosen_one():
    last, chosen = StageName("bc_continued_last", steps=320), StageName("bc_continued", steps=320)
    assert last.made_by == chosen.made_by == chosen
    assert (last.policy, chosen.policy) == ("bc_continued-320/policy-last", "bc_continued-320/policy")


def test_a_table_has_bc_first_then_the_steps_and_ppo():
    shown = [
        "bc",
        "bc_continued-20",
        "bc_continued-100",
        "bc_continued-100-last",
        "improve-1-0",
        "improve-1-2",
        "improve-1-10",
        "improve-2-1",
    ]
    shown += ["ppo"]
    found = [StageName.parse(folder) for folder in shown]
    assert sorted(dict.fromkeys(found[::-1]), key=lambda name: name.order) == found
    assert all(name.has_policy for name in found)
    assert [name.folder for name in found if name.on_the_way] == ["improve-1-2", "improve-1-10", "improve-2-1"]
    others = (StageName.parse(folder) for folder in ("bc-reward", "reward", "grow-1", "value"))
    assert not any(name.has_policy or name.on_the_way for name in others)


def test_the_stages_of_a_folder_are_those_that_are_complete(tmp_path):
    for folder in ("improve-1-10", "improve-1-2", "bc", "grow-1", "evaluation", "improve-1-2-old"):
        make(tmp_path / folder, {}, {})
    begin(tmp_path / "improve-1-1", {})  # half done
    (tmp_path / "improve-1-3").mkdir()  # no stage
    (tmp_path / "improve-1-4").symlink_to(tmp_path / "improve-1-2")  # one that other runs have too
    assert [name.folder for name in stages_in(tmp_path, "improve")] == ["improve-1-2", "improve-1-4", "improve-1-10"]
    assert [name.folder for name in stages_in(tmp_path)][:2] == ["bc", "grow-1"]
    assert len(stages_in(tmp_path)) == 5
    assert stages_in(tmp_path, "ppo") == stages_in(tmp_path / "none") == []


# Folders


def test_a_stage_carries_its_name_only_when_it_is_complete(tmp_path):
    folder = tmp_path / "runs" / "bc"
    with open_stage(folder, {"seed": 1}) as stage:
        (stage.path / "data.txt").write_text("half")
        assert not folder.exists()
        stage.finish({"loss": 0.5})
        assert stage.path == folder and stage.finished and reported(stage) == {"loss": 0.5}
        assert 0 <= stage.result["wall_s"] < 60
    assert (folder / "data.txt").read_text() == "half"
    assert sorted(p.name for p in folder.parent.iterdir() if not p.name.endswith(".lock")) == ["bc"]


def test_a_complete_stage_is_not_made_again(tmp_path):
    make(tmp_path / "bc", {"seed": 1}, {"loss": 0.5})
    with open_stage(tmp_path / "bc", {"seed": 1}) as stage:
        assert stage.finished and stage.path == tmp_path / "bc"
        assert reported(stage) == {"loss": 0.5}


def test_a_stage_that_was_killed_goes_on_with_what_it_had(tmp_path):
    begin(tmp_path / "bc", {"seed": 1})
    assert not (tmp_path / "bc").exists()
    with open_stage(tmp_path / "bc", {"seed": 1}) as stage:
        assert not stage.finished
        assert (stage.path / "data.txt").read_text() == "half"
        stage.finish({})
    assert (tmp_path / "bc" / "data.txt").read_text() == "half"


@pytest.mark.parametrize("start", [lambda *a: make(*a, {}), begin], ids=["complete", "half done"])
def test_other_settings_are_refused_by_name_and_nothing_is_lost(start, tmp_path):
    start(tmp_path / "bc", {"seed": 1, "train": Settings()})
    named = (
        r"bc(\.partial)? was made with other settings: train\.schedule\.learning_rate was 0\.5, is now 0\.25\. Choose"
    )
    changed = {"seed": 1, "train": Settings(schedule=Schedule(0.25))}
    with pytest.raises(UserError, match=named), open_stage(tmp_path / "bc", changed):
        pass
    with open_stage(tmp_path / "bc", {"seed": 1, "train": Settings()}) as stage:
        assert (stage.path / "data.txt").exists()


def test_a_folder_that_is_not_a_stage_is_refused(tmp_path):
    (tmp_path / "bc").mkdir()
    with pytest.raises(UserError, match="bc: not the folder of a stage"), open_stage(tmp_path / "bc", {}):
        pass


def test_two_processes_cannot_work_on_one_stage(tmp_path):
    script = (
        "import sys; from pathlib import Path; from rest.folder import open_stage\n"
        "with open_stage(Path(sys.argv[1]), {}):\n"
        "    print('working', flush=True); sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "bc")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert other.stdout.readline() == "working\n"
        with pytest.raises(Busy, match="bc: another process is working on this stage"):
            make(tmp_path / "bc", {}, {})
        make(tmp_path / "grow-1", {}, {})  # other stages are free
    finally:
        other.kill()
        other.communicate()
    make(tmp_path / "bc", {}, {})  # the lock went with the process


def test_a_failed_stage_is_free_again(tmp_path):
    begin(tmp_path / "bc", {})
    make(tmp_path / "bc", {}, {})
    assert (tmp_path / "bc" / "stage.json").exists()


def test_a_half_made_stage_that_holds_nothing_yet_does_not_bind(tmp_path):
    with pytest.raises(RuntimeError, match="killed"), open_stage(tmp_path / "bc", {"seed": 1}):
        raise RuntimeError("killed")
    begin(tmp_path / "bc", {"seed": 2})  # this one writes
    with pytest.raises(UserError, match=r"\.bc\.partial was made with other settings: seed was 2, is now 3"):
        make(tmp_path / "bc", {"seed": 3}, {})


def test_of_two_processes_with_other_settings_that_begin_at_once_the_first_is_refused(tmp_path):
    with open_stage(tmp_path / "grow-1", {"seed": 1}, shared=True) as first:
        with open_stage(tmp_path / "grow-1", {"seed": 2}, shared=True) as second:
            second.refuse_changed()
        with pytest.raises(UserError, match=r"grow-1\.partial was made with other settings: seed was 2, is now 1"):
            first.refuse_changed()


def test_a_disk_that_cannot_be_written_is_named(tmp_path):
    for code, said in ((errno.EDQUOT, "the disk is full"), (errno.EIO, os.strerror(errno.EIO))):
        with pytest.raises(UserError, match=f"one.json cannot be written: {said}"), replacing(tmp_path / "one.json"):
            raise OSError(code, os.strerror(code))
    assert not list(tmp_path.iterdir())


def test_a_complete_stage_is_read_while_another_process_reads_it(tmp_path):
    with open_stage(tmp_path / "bc", {"rate": 1}) as stage:
        stage.finish({"steps": 5})
    with open_stage(tmp_path / "bc", {"rate": 1}) as first, open_stage(tmp_path / "bc", {"rate": 1}) as second:
        assert first.finished and second.finished and reported(first) == reported(second) == {"steps": 5}


def test_discarding_takes_a_folder_that_may_be_gone_already(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "rows.arrow").write_text("x")
    discard(tmp_path / "kept")
    discard(tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_a_dataclass_is_described_by_its_name_and_fields():
    assert describe(Settings()) == {
        "type": f"{__name__}.Settings",
        "steps": 3,
        "schedule": {
            "type": "rest.learning.optimizers.Schedule",
            "learning_rate": 0.5,
            "warmup_steps": 0,
            "decay": "constant",
            "zero_at": 0,
            "cooldown_steps": 0,
        },
    }


def test_plain_values_are_described_as_themselves():
    given_settings = {"a": (1, None), 2: [Path("x/y"), True], "b": "text"}
    assert describe(given_settings) == {"a": [1, None], "2": ["x/y", True], "b": "text"}


def test_a_function_is_described_by_its_name_and_a_hash_of_its_source():
    described = describe(double)
    assert described["function"] == f"{__name__}:double"
    assert len(described["source_sha256"]) == 64
    halve = lambda x: x / 2  # noqa: E731
    third = lambda x: x / 3  # noqa: E731
    assert describe(halve)["function"].endswith("<lambda>")
    assert describe(halve) != describe(third)


def test_an_object_that_can_be_called_is_described_by_its_class_and_attributes():
    described = describe(Scale(2.0))
    assert described["function"] == f"{__name__}:Scale" and described["factor"] == 2.0
    assert describe(Scale(2.0)) == described != describe(Scale(3.0))


def test_a_partial_function_is_described_with_its_arguments():
    assert describe(functools.partial(double, 1, y=Path("a"))) == {
        "partial": describe(double),
        "arguments": [1],
        "y": "a",
    }


def test_a_function_without_source_is_refused():
    with pytest.raises(UserError, match="builtins:len: has no Python source"):
        describe(len)
    with pytest.raises(UserError, match=r"builtins:str\.lower: has no Python source"):
        describe(str.lower)


def test_differences_name_every_setting_that_changed():
    old = {"same": 1, "train": {"steps": 3, "rate": 0.5}, "gone": "x", "list": [1, 2]}
    new = {"same": 1, "train": {"steps": 4, "rate": 0.5}, "list": [1, 3], "new": True}
    assert differences(old, new) == [
        "train.steps was 3, is now 4",
        'gone was "x", is now null',
        "list was [1, 2], is now [1, 3]",
        "new was null, is now true",
    ]
    assert differences(old, old) == []
    assert differences({"a": {"b": 1}}, {"a": None}) == ['a was {"b": 1}, is now null']


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), JSON))
def test_equal_settings_have_no_differences_even_through_json(settings):
    assert differences(json.loads(json.dumps(settings)), settings) == []


def test_seeds_differ_by_seed_purpose_and_number_and_stay_the_same():
    asked = [
        (seed, purpose, *numbers)
        for seed in range(5)
        for purpose in ("bc", "bc batches", "grow")
        for numbers in ((), (1,), (1, 0), (0, 1), (11,), (1, 1))
    ]
    seeds = [seed_for(*arguments) for arguments in asked]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seeds == [seed_for(*arguments) for arguments in asked]
    assert seed_for(0, "grow", 1) == 688282385  # runs made before stay what they are


def test_json_comes_back_as_it_was(tmp_path):
    value = {"τ": 0.8, "texts": ["naïve", "狗"], "none": None, "count": 2**40}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_number_that_json_lacks_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"loss": 1.0})
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert read_json(tmp_path / "a.json") == {"loss": 1.0}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "a.json: no such file"),
        (b'{"a": 1,\n "b": }\n', "a.json:2: not valid JSON"),
        (b"", "a.json:1: not valid JSON"),
        (b'{"a": "\xff"}', "a.json: byte 8 is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(content, named, tmp_path):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=named):
        read_json(tmp_path / "a.json")


def test_a_sealed_folder_shows_what_was_changed_cut_or_lost(tmp_path):
    for name in ("a", "b/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"0123456789")
    check_seal(tmp_path)  # which has no seal to go by
    seal(tmp_path)
    (tmp_path / "more").write_text("later")
    check_seal(tmp_path)
    for content in (b"012345678x", b"01234", b""):
        (tmp_path / "b" / "c").write_bytes(content)
        with pytest.raises(UserError, match=r"b/c is damaged: its sha256 is not that in checksums\.json"):
            check_seal(tmp_path)
    (tmp_path / "b" / "c").unlink()
    with pytest.raises(UserError, match=r"b/c is missing"):
        check_seal(tmp_path)
