"""A run: each stage made once, read once and remembered, alone or with stages that other runs have too."""

import shutil
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rest import Policy, Run, UserError, last_policy, load_experiment
from rest.algorithm import rest
from rest.folder import StageName, stages_in
from rest.model import network

TINY = load_experiment(str(Path(__file__).parent / "tiny.py"))
RULE = replace(TINY.improve.rule, percentiles=(50.0,))
SHORT = replace(TINY, improve=replace(TINY.improve, rule=RULE, unfiltered=False))
BC, FIRST, SECOND = StageName("bc"), StageName("improve", 1, 1), StageName("improve", 1, 2)


class Counts(NamedTuple):
    reads: Counter[str]
    """How often the parameters in a folder were read from disk, by its path."""
    hashed: Counter[str]
    """How often parameters were hashed, by what came out."""


@contextmanager
def counted() -> Iterator[Counts]:
    counts, load, identify = Counts(Counter(), Counter()), network.load_parameters, network.identity_of

    def load_parameters(folder: Path, shapes: Any, machine: Any = None) -> Any:
        counts.reads[str(folder.parent.resolve())] += 1
        return load(folder, shapes)

    def identity_of(parameters: Any, known: str) -> str:
        found = identify(parameters, known)
        counts.hashed[found] += 1
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "load_parameters", load_parameters)
        patch.setattr(network, "identity_of", identity_of)
        yield counts


def identity(run: Path, name: StageName) -> str:
    return Policy.load(run / name.folder / "policy").identity


# What there is


def test_improve_goes_on_from_the_policy_before_and_the_side_branch_does_not_count(finished: Path) -> None:
    bc, first, second = (identity(finished, name) for name in (BC, FIRST, SECOND))
    run = Run(TINY, finished)
    assert run.policy_before(1).identity == run.policy_before(1, 1).identity == bc
    assert run.policy_before(1, 2).identity == first
    assert run.policy_before(2).identity == last_policy(finished).identity == second
    assert last_policy(finished / "bc").identity == bc
    with pytest.raises(UserError, match=r"rest improve --g 2 --i 1"):
        run.policy_before(2, 2)


def test_what_is_complete_and_on_the_way_is_counted(finished: Path) -> None:
    run = Run(TINY, finished)
    assert run.done.improves == [FIRST, SECOND] and run.done.trained_further == 40 and run.done.newest == 1
    assert run.done.before(SECOND) == FIRST and run.done.before(FIRST) == BC and run.done.before(BC) is None
    assert run.done.result(SECOND)["gradient_steps"] == 20
    shorter = Run(SHORT, finished)
    assert shorter.done.improves == [FIRST] and shorter.done.trained_further == 20
    with pytest.raises(UserError, match="no Improve step and no PPO is complete"):
        Run(replace(TINY, grow_steps=0), finished).bc_continued()
    with pytest.raises(UserError, match=r"improve-1-3: no such policy in this run; they are made with `rest run`"):
        run.policy(StageName("improve", 1, 3))


# Read once


def test_what_is_asked_for_again_is_remembered(finished: Path) -> None:
    run = Run(TINY, finished)
    with counted() as counts:
        assert run.policy(BC) is run.bc() is run.bc() is run.policy(BC)
        assert run.reward() is run.reward()
        used = run.policy(FIRST)
        assert run.policy(FIRST) is used
        again = run.improve(1, 1, run.bc(), run.grow(1, run.bc(), run.reward()), run.reward())
        assert again is used
        forgotten = weakref.ref(used)
        del used, again
        assert forgotten() is None  # and takes no memory
        run.policy(FIRST)
    read = {Path(folder).relative_to(finished.resolve()).as_posix(): times for folder, times in counts.reads.items()}
    assert read == {"bc/policy": 1, "reward/network": 1, "improve-1-1/policy": 2}


def test_a_finished_run_reads_and_hashes_bc_once(finished: Path) -> None:
    run = Run(TINY, finished)
    policies = [name for name in stages_in(finished) if name.has_policy]
    same = [name for name in policies if identity(finished, name) == identity(finished, BC)]  # some kept their start
    with counted() as counts:
        rest(run)
    assert counts.reads[str((finished / "bc" / "policy").resolve())] == 1
    assert counts.reads[str((finished / "reward" / "network").resolve())] == 1
    assert counts.hashed[run.bc().identity] == len(same)


class Pooled(NamedTuple):
    run: Run
    pool: Path
    counts: Counts


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Pooled:
    """A fresh run whose stages lie in a pool, and what it read and hashed."""
    folder = tmp_path_factory.mktemp("study")
    run = Run(SHORT, folder / "a", folder / "pool")
    with counted() as counts:
        rest(run)
    return Pooled(run, folder / "pool", counts)


def test_a_fresh_run_reads_and_hashes_bc_once(pooled: Pooled) -> None:
    run, _, counts = pooled
    assert counts.reads[str((run.out / "bc" / "policy").resolve())] == 1
    assert counts.reads[str((run.out / "reward" / "network").resolve())] == 1
    assert counts.hashed[run.bc().identity] == 1


# Stages of a pool


def of(run: Run, folder: str, **changed: Any) -> Run:
    """Another run beside this one, with the same pool."""
    return Run(replace(run.experiment, **changed), run.out.parent / folder, run.pool)


def cloned(steps: int) -> Any:
    return replace(TINY.bc, train=replace(TINY.bc.train, max_steps=steps))


def test_a_run_s_folder_has_links_to_the_pool_and_what_a_run_without_it_has(pooled: Pooled, finished: Path) -> None:
    run, pool, _ = pooled
    names = stages_in(run.out)
    assert [name.folder for name in names] == ["bc", "bc_continued-20", "reward", "grow-1", "improve-1-1"]
    for name in names:
        link = run.out / name.folder
        assert link.is_symlink() and not link.readlink().is_absolute()
        assert link.resolve().parent == pool.resolve() and link.resolve().name.startswith(f"{name.folder}-")
    assert (run.out / "evaluation" / "bc").resolve().parent == pool.resolve()
    assert identity(run.out, FIRST) == identity(finished, FIRST)
    assert not list(run.out.glob("**/*.partial")) and not list(run.out.glob("**/*.link"))


def test_two_runs_have_what_they_share_once(pooled: Pooled) -> None:
    run, pool, _ = pooled
    before = {path.name: path.stat().st_mtime_ns for path in pool.iterdir() if not path.name.startswith(".")}
    other = of(run, "b", improve=replace(TINY.improve, learning_rate_factor=0.25))
    bc, reward = other.bc(), other.reward()
    dataset = other.grow(1, bc, reward)
    first = other.improve(1, 1, bc, dataset, reward)
    other.evaluate(BC, bc)
    assert first.identity == identity(run.out, FIRST)  # the first step's learning rate is the same
    assert {path.name: path.stat().st_mtime_ns for path in pool.iterdir() if not path.name.startswith(".")} == before
    for name in ("bc", "reward", "grow-1", "improve-1-1", "evaluation/bc"):
        assert (other.out / name).is_symlink() and (other.out / name).samefile(run.out / name)


def test_what_differs_lies_beside_and_a_link_to_another_stage_is_refused(pooled: Pooled) -> None:
    run, pool, _ = pooled
    other = of(run, "c", bc=cloned(2))
    other.bc()
    assert len(list(pool.glob("bc-*"))) == 2 and not (other.out / "bc").samefile(run.out / "bc")
    link = (run.out / "bc").readlink()
    said = r"a/bc was made with other settings: bc\.train\.max_steps was 60, is now 2\. Choose another folder"
    with pytest.raises(UserError, match=said):
        of(run, "a", bc=cloned(2)).bc()
    assert (run.out / "bc").readlink() == link and run.bc().identity == Run(TINY, run.out).bc().identity


def test_a_folder_of_its_own_is_used_as_it_is(pooled: Pooled, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "bc", tmp_path / "d" / "bc")
    run = Run(TINY, tmp_path / "d", tmp_path / "pool")
    assert run.bc().identity == pooled.run.bc().identity
    assert [path.name for path in run.pool.iterdir()] == ["tokens"] and not (run.out / "bc").is_symlink()
