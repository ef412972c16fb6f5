"""Several processes that make one run: who this one is, what all agree on, and how all of them end.

Process 0 decides, locks, writes and talks; work is divided, and what it gives is gathered. They tell each other by the
key-value store of JAX's own runtime, exactly; only what is large is carried by devices, as bytes too. Without `join`
there is one process, and everything here is the plain thing. JAX is imported only where there are several, and
numpy where it is needed, since every command begins here, `rest --help` too.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from rest.errors import UserError

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")

LONGEST_WAIT_S = 3 * 3600  # for another process, which may be slower but not stuck
VISIBLE_S = 60.0  # until a network file system shows what another process wrote
LEAVING_S = 10.0  # until the thread that waits for others' ends has heard that all leave
LARGE = 1 << 18  # bytes, from which on devices carry them
MISTAKE, CRASH = 1, 70  # exit statuses; a scheduler starts again after the second, not after the first
STOPPED = {signal.SIGINT: 130, signal.SIGTERM: 143}
STOPPED_TEXT = "rest: stopped; the same command goes on from here"

done: Counter[str] = Counter()
"""Rows that this process sampled, scored, evaluated and trained on."""


@dataclass
class _Group:
    """This process among the others."""

    index: int
    count: int
    client: Any
    messages: int = 0  # exchanges so far; the same number everywhere
    leaving: bool = False
    ending: threading.Lock = field(default_factory=threading.Lock)
    watcher: threading.Thread | None = None


_group: _Group | None = None
_alone = 0  # sections entered in which this process works by itself


def several() -> bool:
    """Whether there are others, which do the same at the same time."""
    return _group is not None and not _alone


def index() -> int:
    """Which process this is; 0 where it works by itself."""
    return _group.index if _group is not None and not _alone else 0


def count() -> int:
    """How many processes do the same at the same time; 1 where this one works by itself."""
    return _group.count if _group is not None and not _alone else 1


def talks() -> bool:
    """Whether this process writes logs and tells people what happens."""
    return _group is None or _group.index == 0


def preferred() -> tuple[int, int]:
    """Which part of how many this process begins with, where each takes what no other has; also where it is alone."""
    return (0, 1) if _group is None else (_group.index, _group.count)


@contextmanager
def alone() -> Iterator[None]:
    """A section that this process goes through by itself, threads and all: nothing in it is divided or waits."""
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


# What they tell each other


def exchange(value: Any) -> list[Any]:
    """What every process gives, by process, exactly: JSON and arrays, as `packed` takes them."""
    if _group is None or _alone:
        return [value]
    group, n, data = _group, _group.messages, packed(value)
    group.messages += 1
    few = len(data) <= LARGE
    group.client.key_value_set_bytes(f"rest/{n}/{group.index}", struct.pack("<q", len(data)) + data * few)
    found = [_awaited(f"rest/{n}/{process}", process) for process in range(group.count)]
    sizes = [struct.unpack_from("<q", each)[0] for each in found]
    if n:  # all have answered since, so all have read what came before
        group.client.key_value_delete(f"rest/{n - 1}/{group.index}")
    whole = [each[8:] for each in found] if max(sizes) <= LARGE else _by_devices(data, sizes)
    return [unpacked(each) for each in whole]


def _awaited(key: str, process: int) -> bytes:
    assert _group is not None
    try:
        return _group.client.blocking_key_value_get_bytes(key, LONGEST_WAIT_S * 1000)
    except Exception as error:
        raise RuntimeError(f"process {_group.index} waited in vain for process {process}: {error}") from error


def _by_devices(data: bytes, sizes: list[int]) -> list[bytes]:
    """The same for what is too much for the store, as bytes, since wider numbers would be cast."""
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    padded = np.zeros(1 << (max(sizes) - 1).bit_length(), np.uint8)  # few lengths to compile for
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = process_allgather(padded)
    return [row[:size].tobytes() for row, size in zip(np.asarray(rows), sizes, strict=True)]


def wait_for_all() -> None:
    """Until every process is here."""
    exchange(None)


def lead(act: Callable[[], T]) -> T:
    """What process 0 finds or does, for all: JSON or arrays. They wait for it, and raise its UserError."""
    if _group is None or _alone:
        return act()
    found = exchange(_attempt(act) if _group.index == 0 else None)
    return _unless_failed(found[:1])[0]


def first(act: Callable[[], object]) -> None:
    """What process 0 writes or shows; the others wait until it has."""
    lead(lambda: act() and None)


def agreed(value: T) -> T:
    """A value of process 0, for one that may differ in its last bits."""
    return lead(lambda: value)


def divided(things: int, work: Callable[[slice], T]) -> list[T]:
    """What the processes' `work` gives, each for its own part of so many things, in the order of the things.

    Within, each works by itself. What is given is JSON or arrays; a UserError of one is raised in all. Whoever has no
    part, where there are fewer things than processes, gives nothing.
    """
    if _group is None or _alone or not things:
        return [work(slice(0, things))]
    own = part(things)
    found = exchange(_attempt(lambda: work(own)) if own.start < own.stop else None)
    return _unless_failed([each for each in found if each is not None])


def part(things: int) -> slice:
    """This process's of so many things; those of two processes differ by one at most."""
    at, of = index(), count()
    return slice(things * at // of, things * (at + 1) // of)


def _attempt(act: Callable[[], Any]) -> dict[str, Any]:
    try:
        with alone():
            return {"value": act()}
    except UserError as error:
        return {"mistake": str(error)}


def _unless_failed(found: list[dict[str, Any]]) -> list[Any]:
    for each in found:
        if "mistake" in each:
            raise UserError(each["mistake"])
    return [each["value"] for each in found]


def visible(path: Path) -> None:
    """Waits until a file system shows what process 0 has put there."""
    ends = time.monotonic() + VISIBLE_S
    while not path.exists():
        if time.monotonic() > ends:
            raise UserError(f"{path}: process 0 made it, and process {index()} does not see it; use a shared folder")
        time.sleep(0.05)


def packed(value: Any) -> bytes:
    """None, numbers, text, lists, dicts by text, numpy arrays, and lists of flat arrays of one kind, as bytes."""
    import numpy as np

    arrays: list[np.ndarray] = []

    def stored(array: np.ndarray) -> list[Any]:
        arrays.append(np.ascontiguousarray(array))
        return [array.dtype.str, list(array.shape)]

    def plain(x: Any) -> Any:
        match x:
            case np.ndarray():
                return {"array": stored(x)}
            case np.generic():
                return x.item()
            case dict():
                return {"dict": {key: plain(item) for key, item in x.items()}}
            case list() | tuple():
                if len(x) > 1 and all(isinstance(y, np.ndarray) and y.ndim == 1 and y.dtype == x[0].dtype for y in x):
                    lengths = np.asarray([len(y) for y in x], np.int64)
                    return {"ragged": [stored(lengths), stored(np.concatenate(x))]}
                return [plain(item) for item in x]
        return x

    text = json.dumps(plain(value)).encode()
    return b"".join([struct.pack("<q", len(text)), text, *(array.tobytes() for array in arrays)])


def unpacked(data: bytes) -> Any:
    """What `packed` was given; tuples come back as lists."""
    import numpy as np

    (size,) = struct.unpack_from("<q", data)
    at = 8 + size

    def array(kind: str, shape: list[int]) -> np.ndarray:
        nonlocal at
        found = np.frombuffer(data, np.dtype(kind), int(np.prod(shape)), at).reshape(shape).copy()
        at += found.nbytes
        return found

    def full(x: Any) -> Any:
        match x:
            case {"array": stored}:
                return array(*stored)
            case {"ragged": [lengths, whole]}:
                ends = np.cumsum(array(*lengths))
                return np.split(array(*whole), ends[:-1])
            case {"dict": items}:
                return {key: full(item) for key, item in items.items()}
            case list():
                return [full(item) for item in x]
        return x

    return full(json.loads(data[8 : 8 + size]))


# How they begin and end


def join() -> None:
    """Become one of the processes of a run, before anything touches a device.

    REST_COORDINATOR (address:port of process 0), REST_PROCESSES and REST_PROCESS say which; without them what JAX
    knows of Slurm, Open MPI or a TPU. UserError where nothing does.
    """
    global _group
    import jax
    from jax._src import distributed  # the store and its waits have no public name

    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
    names = "REST_COORDINATOR", "REST_PROCESSES", "REST_PROCESS"
    given = [os.environ.get(name) for name in names]
    missing = [name for name, value in zip(names, given, strict=True) if value is None]
    if missing and len(missing) < len(names):
        raise UserError(f"--distributed: {', '.join(missing)} must be set where {names[0]} or its like is")
    try:
        if missing:
            jax.distributed.initialize(heartbeat_timeout_seconds=60)
        else:
            where, of, number = str(given[0]), int(str(given[1])), int(str(given[2]))
            jax.distributed.initialize(
                where, of, number, cluster_detection_method="deactivate", heartbeat_timeout_seconds=60
            )
    except ValueError as error:
        raise UserError(
            f"--distributed: nothing here says who the other processes are ({error}); set {', '.join(names)}, or start "
            "them by Slurm or on a TPU"
        ) from error
    state = distributed.global_state
    if state.num_processes > 1:
        _group = _Group(state.process_id, state.num_processes, state.client)
        _group.watcher = threading.Thread(target=_watch, args=(_group,), daemon=True)
        _group.watcher.start()
        _listen()
        wait_for_all()  # else one may end, and its launcher stop another that does not listen yet


def leave() -> None:
    """The orderly end, of all together."""
    global _group
    if _group is not None:
        import jax

        wait_for_all()
        _group.leaving = True
        jax.distributed.shutdown()
        if _group.watcher is not None:  # what it waits in is C++, which aborts where the interpreter ends meanwhile
            _group.watcher.join(LEAVING_S)
        _group = None


def end(status: int, text: str) -> NoReturn:
    """End every process of the run with this status, now; the text is said once, by the one that came first.

    Exit hooks are left out: those of JAX would wait for the others, which may never come.
    """
    if _group is None:
        if text:
            print(text, file=sys.stderr)
        raise SystemExit(status)
    with suppress(Exception):
        if _group.index and not text:  # it is process 0 that says what is the matter
            _group.client.blocking_key_value_get("rest/end", 5000)
    try:
        _group.client.key_value_set("rest/first", str(_group.index))
    except Exception:  # another was first, or process 0 is gone; the one that watches ends this process
        with suppress(Exception):
            status = int(_group.client.blocking_key_value_get("rest/end", 1000))
    else:
        if text:  # before the others end, whose end would be this one's
            print(text, file=sys.stderr, flush=True)
        with suppress(Exception):
            _group.client.key_value_set("rest/end", str(status))
    _exit(_group, status)


@contextmanager
def quiet() -> Iterator[None]:
    """What is printed within is printed by one process only."""
    with ExitStack() as held:
        if not talks():
            nowhere = held.enter_context(open(os.devnull, "w"))
            held.enter_context(redirect_stdout(nowhere))
            held.enter_context(redirect_stderr(nowhere))
        yield


def crash() -> NoReturn:
    """End every process after an error that is in the code."""
    if _group is None:
        traceback.print_exc()
        raise SystemExit(CRASH)
    end(CRASH, f"rest: process {_group.index}:\n{traceback.format_exc()}")


def _exit(group: _Group, status: int) -> NoReturn:
    group.ending.acquire()  # never given back: one thread is enough
    with suppress(Exception):
        if group.index:
            group.client.key_value_set(f"rest/ended/{group.index}", "")
        else:  # the store ends with this process, so the others must have read it
            for other in range(1, group.count):
                group.client.blocking_key_value_get(f"rest/ended/{other}", 2000)
            time.sleep(0.5)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _watch(group: _Group) -> None:
    """Ends this process when another has ended, wherever it is: also inside of a collective."""
    while True:
        try:
            status = int(group.client.blocking_key_value_get("rest/end", 3600_000))
        except Exception as error:
            if group.leaving:
                return
            if "DEADLINE_EXCEEDED" in str(error):
                continue
            status = CRASH
            print(f"rest: process {group.index} has lost process 0", file=sys.stderr)
        _exit(group, status)


def _listen() -> None:
    """Ctrl-C and SIGTERM end all processes wherever this one is, since a handler would wait for the main thread."""
    received, sent = os.pipe()
    os.set_blocking(sent, False)
    for number in STOPPED:
        signal.signal(number, lambda number, frame: None)
    signal.set_wakeup_fd(sent)

    def wait() -> None:
        while True:
            number = os.read(received, 1)[0]
            if number in STOPPED:
                end(STOPPED[signal.Signals(number)], STOPPED_TEXT)

    threading.Thread(target=wait, daemon=True).start()
