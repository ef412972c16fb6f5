"""A stage's name and its folder, which is complete or absent.

A stage works under a temporary name, `.improve-1-2.partial`, and is renamed when it ends, so that a folder that
carries its name is complete. `stage.json` holds the settings that decide its bytes: the same stage asked for again
with other settings is refused, naming them, and a stage that was killed goes on where it was.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import filelock

from rest import processes
from rest.errors import UserError
from rest.identity import describe


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """The settings that differ, each as "name was OLD, is now NEW"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        found = []
        for key in keys:
            found += differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        return found
    return [] if old == new else [f"{name} was {json.dumps(old)}, is now {json.dumps(new)}"]


def seed_for(seed: int, purpose: str, *numbers: int) -> int:
    """A seed of 31 bits for one purpose, so that no two purposes share their random numbers."""
    digest = hashlib.blake2b(repr((seed, purpose, *numbers)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


KINDS = {  # of stages, in the order of tables: what a reader calls them
    "bc": "BC",
    "bc_continued": "BC continued",
    "bc_continued_last": "BC continued, last",
    "reward_start": "start of the reward",
    "reward": "reward",
    "grow": "G{g}",
    "value": "value",
    "improve": "G{g} I{i}",
    "ppo": "PPO",
}
_FOLDERS = {kind: kind for kind in KINDS} | {
    "bc_continued": "bc_continued-{steps}",
    "bc_continued_last": "bc_continued-{steps}-last",
    "reward_start": "bc-reward",
    "reward": "reward-{g}",  # but the first is just "reward"
    "grow": "grow-{g}",
    "improve": "improve-{g}-{i}",
}


@dataclass(frozen=True)
class StageName:
    """What a stage is called: it alone knows its folder, its label for readers and its place in a table."""

    kind: str
    """bc, bc_continued, bc_continued_last, reward_start, reward, value, grow, improve or ppo."""
    g: int = 0
    """Grow step, from 1, of grow, improve and reward; 0 for the others."""
    i: int = 0
    """Improve step; 0 is the side branch that learns from all of D_g."""
    steps: int = 0
    """Updates of bc_continued, whose last policy is kept beside the one that dev chose."""

    @classmethod
    def parse(cls, folder: str) -> StageName | None:
        """The stage of a folder of this name; None for any other folder."""
        full = "reward-1" if folder == "reward" else folder
        for kind, form in _FOLDERS.items():
            if found := re.fullmatch(re.sub(r"{(\w+)}", r"(?P<\1>\\d+)", form), full):
                name = cls(kind, **{part: int(number) for part, number in found.groupdict().items()})
                return name if name.folder == folder else None  # improve-01-1 is no stage
        return None

    @property
    def folder(self) -> str:
        """improve-1-2, bc_continued-320, reward, reward-2."""
        return "reward" if self == StageName("reward", 1) else _FOLDERS[self.kind].format(**vars(self))

    @property
    def label(self) -> str:
        """BC, BC continued, G1 I2, PPO; reward 2 for one that was refreshed."""
        again = f" {self.g}" if self.kind == "reward" and self.g > 1 else ""
        return KINDS[self.kind].format(**vars(self)) + again

    @property
    def order(self) -> tuple[int, int, int, int]:
        """A key that sorts stages as tables show them: BC, BC continued, ..., Improve steps, PPO."""
        return list(KINDS).index(self.kind), self.g, self.i, self.steps

    @property
    def has_policy(self) -> bool:
        """Whether it ends in a policy that is evaluated."""
        return self.kind in ("bc", "bc_continued", "bc_continued_last", "improve", "ppo")

    @property
    def made_by(self) -> StageName:
        """The stage that makes its policy: its own, but of the control's last policy that of the control."""
        return StageName("bc_continued", steps=self.steps) if self.kind == "bc_continued_last" else self

    @property
    def policy(self) -> str:
        """Where its policy lies in a run: improve-1-2/policy, bc_continued-320/policy-last."""
        return f"{self.made_by.folder}/policy" + "-last" * (self.made_by != self)

    @property
    def on_the_way(self) -> bool:
        """Whether it is an Improve step that later ones go on from, and no side branch."""
        return self.kind == "improve" and self.i > 0


def stages_in(run: Path, kind: str | None = None) -> list[StageName]:
    """The stages that are complete in a run's folder, of one kind or of all, in a table's order."""
    found = (StageName.parse(path.name) for path in run.glob("*") if (path / "stage.json").is_file())
    return sorted((name for name in found if name and kind in (None, name.kind)), key=lambda name: name.order)


def asked_for(run: Path) -> Callable[[StageName], bool]:
    """Whether the run's settings ask for a stage: steps of a longer run in the same folder are left out."""
    path = run / "experiment.json"
    settings = read_json(path) if path.is_file() else {}
    settings = settings if isinstance(settings, dict) else {}
    rule = (settings.get("improve") or {}).get("rule") or {}
    while isinstance(rule.get("rule"), dict):  # one that caps another
        rule = rule["rule"]
    lists = [value for value in rule.values() if isinstance(value, list)]
    most = {"g": settings.get("grow_steps"), "i": len(lists[0]) if len(lists) == 1 else None}

    def asked(name: StageName) -> bool:
        within = (limit is None or getattr(name, step) <= limit for step, limit in most.items())
        return name.kind not in ("grow", "improve") or all(within)

    return asked


def newest_evaluations(run: Path) -> Path:
    """Where policies were evaluated with the newest reward, so that all rows of a table are scored by the same."""
    numbers = [folder.name.removeprefix("evaluation-") for folder in run.glob("evaluation-*")]
    newest = max((int(number) for number in numbers if number.isdigit()), default=None)
    return run / ("evaluation" if newest is None else f"evaluation-{newest}")


class StageFolder:
    """The folder of a stage that is being made, or that was complete when it was opened."""

    def __init__(
        self, folder: Path, *, finished: bool, settings: dict[str, Any], lock: filelock.BaseFileLock | None
    ) -> None:
        self.final = folder
        """The folder's name once the stage is complete."""
        self.finished = finished
        self.settings = settings
        self._lock = lock
        self._opened = time.perf_counter()

    @property
    def path(self) -> Path:
        """Where to write; the temporary name until the stage is complete."""
        return self.final if self.finished else self.partial

    @property
    def partial(self) -> Path:
        """The temporary name."""
        return _partial(self.final)

    @property
    def result(self) -> dict[str, Any]:
        """What the stage reported."""
        return read_json(self.path / "stage.json")["result"]

    def refuse_changed(self) -> None:
        """UserError where another process has begun the stage with other settings while it held nothing else."""
        place = next((folder for folder in (self.final, self.partial) if (folder / "stage.json").exists()), None)
        if place is not None:  # else it is being renamed
            _refuse_changed(place, self.settings)

    def finish(self, result: dict[str, Any]) -> None:
        """Record the result, with the seconds since it was opened, and give the folder its name.

        Process 0 does, for all that make the stage together.
        """
        processes.first(lambda: self._finish(result))
        processes.visible(self.final)
        self.finished = True

    def _finish(self, result: dict[str, Any]) -> None:
        seconds = time.perf_counter() - self._opened
        for leftover in self.path.glob(".*.writing"):  # of a process that was killed
            leftover.unlink()
        write_json(self.path / "stage.json", {"settings": self.settings, "result": result | {"wall_s": seconds}})
        os.replace(self.path, self.final)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Of the processes that share the stage, one at a time is in here; the others may have finished it."""
        assert self._lock is not None  # a stage that is being made has one
        with self._lock.acquire():
            self.finished = self.finished or self.final.exists()
            yield


def _partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def _refuse_changed(folder: Path, settings: dict[str, Any]) -> None:
    changed = differences(read_json(folder / "stage.json")["settings"], settings)
    if changed:
        raise UserError(
            f"{folder} was made with other settings: {'; '.join(changed)}. "
            f"Choose another folder, or remove this one to make it again"
        )


class Busy(UserError):
    """Another process is working on the stage."""


@contextmanager
def open_stage(folder: Path, settings: dict[str, Any], *, shared: bool = False) -> Iterator[StageFolder]:
    """Enter a stage: finished already (same settings), half done, or new.

    One process at a time, which is refused where another is; any number with `shared`. For processes that make it
    together, process 0 decides and locks.
    """
    settings = json.loads(json.dumps(describe(settings)))
    if not processes.several():
        with _opened(folder, settings, shared) as stage:
            yield stage
        return
    with ExitStack() as held:
        opened: list[StageFolder] = []

        def enter() -> dict[str, Any]:
            try:
                opened.append(held.enter_context(_opened(folder, settings, shared)))
            except Busy as error:
                return {"busy": str(error)}
            return {"finished": opened[0].finished, "settings": settings}

        found = processes.lead(enter)
        if "busy" in found:
            raise Busy(found["busy"])
        if changed := differences(found["settings"], settings):
            raise UserError(f"{folder}: process {processes.index()} has other settings: {'; '.join(changed)}")
        stage = opened[0] if opened else StageFolder(folder, finished=found["finished"], settings=settings, lock=None)
        processes.visible(stage.path)
        yield stage


@contextmanager
def _opened(folder: Path, settings: dict[str, Any], shared: bool) -> Iterator[StageFolder]:
    """The same in this process."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(folder)
    if (folder / "stage.json").exists():  # complete, and never changed
        _refuse_changed(folder, settings)
        yield StageFolder(folder, finished=True, settings=settings, lock=None)
        return
    lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"), thread_local=False)
    try:
        lock.acquire(timeout=60 if shared else 0)
    except filelock.Timeout as error:
        raise Busy(f"{folder}: another process is working on this stage") from error
    try:
        for existing in (folder, partial):
            record = existing / "stage.json"
            if record.exists() and (existing == folder or len(list(existing.iterdir())) > 1):
                _refuse_changed(existing, settings)
        if folder.exists():
            if not (folder / "stage.json").exists():
                raise UserError(f"{folder}: not the folder of a stage (it has no stage.json)")
            yield StageFolder(folder, finished=True, settings=settings, lock=lock)
            return
        partial.mkdir(exist_ok=True)
        write_json(partial / "stage.json", {"settings": settings})
        if shared:
            lock.release()
        yield StageFolder(folder, finished=False, settings=settings, lock=lock)
    finally:
        lock.release(force=True)


FULL = errno.ENOSPC, errno.EDQUOT  # no room on the disk, or none left of what this user may fill


def discard(folder: Path) -> None:
    """Remove what is only needed while a stage is being made."""
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the name `path` once it is whole and on disk; many processes may race."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.writing")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno in FULL:
            raise UserError(f"{path} cannot be written: the disk is full") from error
        if error.filename in (None, str(temporary), temporary):
            raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """The file is whole or absent."""
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")


CHECKSUMS = "checksums.json"


def seal(folder: Path) -> None:
    """Keep the sha256 of every file of a folder that is whole, for `check_seal`."""

    def write() -> None:
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
        write_json(folder / CHECKSUMS, {path.relative_to(folder).as_posix(): _sha256(path) for path in paths})

    processes.lead(write)


def check_seal(folder: Path) -> None:
    """UserError that names the first file of a sealed folder that is not as it was; others have nothing to go by."""
    if not (folder / CHECKSUMS).exists():
        return
    for name, digest in read_json(folder / CHECKSUMS).items():
        path = folder / name
        if not path.is_file() or _sha256(path) != digest:
            what = "is damaged: its sha256 is not that" if path.is_file() else "is missing: it is one of those"
            raise UserError(f"{path} {what} in {CHECKSUMS}; restore it, or make its stage again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Parse a file that this system wrote."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start + 1} is not UTF-8") from error
