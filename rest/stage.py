"""A stage's folder: complete or absent.

A stage works under a temporary name, `.improve-1-2.partial`, and is renamed when it ends, so that a folder that
carries its name is complete. `stage.json` holds the settings that decide its bytes: the same stage asked for again
with other settings is refused, naming them, and a stage that was killed goes on where it was.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from rest.errors import UserError


def describe(value: Any) -> Any:
    """Settings as JSON: a dataclass by its qualified name and fields, a function by name and hash of its source.

    A function is also known by what it has captured, and any other object that can be called by its class and its
    attributes.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": f"{type(value).__module__}.{type(value).__qualname__}", **fields}
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, functools.partial):
        return {"partial": describe(value.func), "arguments": describe(value.args), **describe(value.keywords)}
    if callable(value):
        function = value if hasattr(value, "__qualname__") else type(value)
        name = f"{function.__module__}:{function.__qualname__}"
        try:
            source = hashlib.sha256(inspect.getsource(function).encode()).hexdigest()
        except (OSError, TypeError) as error:
            raise UserError(f"{name}: has no Python source to know it by; use a function in a file") from error
        captured = inspect.getclosurevars(value).nonlocals if inspect.isfunction(value) else {}
        attributes = captured if function is value else getattr(value, "__dict__", {})
        return {"function": name, "source_sha256": source, **describe(attributes)}
    if isinstance(value, Path) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value


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


class Stage:
    """The folder of a stage that is being made, or that was complete when it was opened."""

    def __init__(self, folder: Path, *, finished: bool, settings: dict[str, Any], lock: filelock.BaseFileLock) -> None:
        self.final = folder
        """The folder's name once the stage is complete."""
        self.finished = finished
        self.settings = settings
        self._lock = lock

    @property
    def folder(self) -> Path:
        """Where to write; the temporary name until the stage is complete."""
        return self.final if self.finished else _partial(self.final)

    @property
    def result(self) -> dict[str, Any]:
        """What the stage reported."""
        return read_json(self.folder / "stage.json")["result"]

    def finish(self, result: dict[str, Any]) -> None:
        """Record the result and give the folder its name."""
        for leftover in self.folder.glob(".*.tmp"):  # of a process that was killed
            leftover.unlink()
        write_json(self.folder / "stage.json", {"settings": self.settings, "result": result})
        os.replace(self.folder, self.final)
        self.finished = True

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Of the processes that share the stage, one at a time is in here; the others may have finished it."""
        with self._lock.acquire():
            self.finished = self.finished or self.final.exists()
            yield


def _partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


@contextmanager
def open_stage(folder: Path, settings: dict[str, Any], *, shared: bool = False) -> Iterator[Stage]:
    """Enter a stage: finished already (same settings), half done, or new.

    One process at a time, which is refused where another is; any number with `shared`.
    """
    settings = json.loads(json.dumps(describe(settings)))
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(folder)
    lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"), thread_local=False)
    try:
        lock.acquire(timeout=60 if shared else 0)
    except filelock.Timeout as error:
        raise UserError(f"{folder}: another process is working on this stage") from error
    try:
        for existing in (folder, partial):
            record = existing / "stage.json"
            if record.exists() and (existing == folder or len(list(existing.iterdir())) > 1):
                changed = differences(read_json(record)["settings"], settings)
                if changed:
                    raise UserError(
                        f"{existing} was made with other settings: {'; '.join(changed)}. "
                        f"Choose another folder, or remove this one to make it again"
                    )
        if folder.exists():
            if not (folder / "stage.json").exists():
                raise UserError(f"{folder}: not the folder of a stage (it has no stage.json)")
            yield Stage(folder, finished=True, settings=settings, lock=lock)
            return
        partial.mkdir(exist_ok=True)
        write_json(partial / "stage.json", {"settings": settings})
        if shared:
            lock.release()
        yield Stage(folder, finished=False, settings=settings, lock=lock)
    finally:
        lock.release(force=True)


def share(made: Path, wanted: Path) -> None:
    """Copy a complete stage into another run's folder, whole or not at all; nothing where one of them is not, or is."""
    if made.exists() and not wanted.exists():
        wanted.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=wanted.parent) as temporary:
            shutil.copytree(made, Path(temporary) / "stage")
            os.replace(Path(temporary) / "stage", wanted)


def discard(folder: Path) -> None:
    """Remove what is only needed while a stage is being made."""
    shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write under a temporary name, then rename: the file is whole or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # several processes may write the same
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


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
