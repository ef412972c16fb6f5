"""`rest doctor`: what of this machine matters to `rest`, in lines that can be pasted. It needs nothing but Python."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from rest import __version__
from rest.errors import UserError

GIB = 2**30
BFLOAT16 = {"amx_bf16", "avx512_bf16"}  # what cores say that multiply it faster than float32
NAMES = ("reinforced-self-training", "rest")  # as the distribution is or was called
SLOW = {  # variables of the environment that make a run slow, another one, or impossible, and what they do
    "JAX_DISABLE_JIT": "nothing is compiled",
    "JAX_ENABLE_X64": "numbers are float64, which was never tried",
    "JAX_DEBUG_NANS": "every operation is looked at",
    "JAX_LOG_COMPILES": "every compilation is printed",
    "JAX_DEFAULT_MATMUL_PRECISION": "another precision gives other results",
    "JAX_ENABLE_COMPILATION_CACHE": "if false, every start compiles anew",
    "XLA_PYTHON_CLIENT_ALLOCATOR": "'platform' is slow",
}


class Found(NamedTuple):
    """One line: what was looked at, and how to mend what is wrong."""

    state: Literal["ok", "look", "stop"]  # stop: rest cannot run
    text: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{'ok' if self.state == 'ok' else self.state + ':':<6}{self.text}" + (
            f"; {self.mend}" * bool(self.mend)
        )


def doctor(arguments: Sequence[str]) -> None:
    """All that was found, a line each; exit status 1 where `rest` cannot run."""
    if {"-h", "--help"} & {*arguments}:
        print("usage: rest doctor\n\nWhat of this machine matters to rest, in lines to paste: ok, look: or stop:.")
        print("Exit status 1 where a line says stop:, since rest cannot run.")
        return
    if arguments:
        raise UserError(f"rest doctor takes no arguments, not {' '.join(arguments)!r}")
    stopped = False
    for check in (python, packages, devices, processors, memory, disk, variables, encoding, hub):
        for found in looked_at(check):
            print(found, flush=True)
            stopped |= found.state == "stop"
    if stopped:
        raise SystemExit(1)


def looked_at(check: Callable[[], Iterator[Found]]) -> Iterator[Found]:
    """What a check finds; one that fails is itself a finding."""
    try:
        yield from check()
    except Exception as error:
        yield Found("look", f"{check.__name__} could not be looked at: {type(error).__name__}: {error}")


def python() -> Iterator[Found]:
    """The interpreter and the system."""
    text = f"Python {platform.python_version()} on {platform.platform()}, {sys.executable}"
    if not (3, 11) <= sys.version_info < (3, 14):
        yield Found("stop", text, "rest needs 3.11, 3.12 or 3.13: make a new environment with one of them")
    else:
        yield Found("ok", text)


def packages() -> Iterator[Found]:
    """Those that rest needs, against its own ranges and against the versions that were tested together."""
    from packaging.requirements import Requirement

    needed = [Requirement(line) for line in _requirements()]
    needed = [each for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    have = {each.name: _version(each.name) for each in needed}
    install = "in a checkout: pip install --constraint constraints.txt --editable ."
    for each in needed:
        version = have[each.name]
        if version is None:
            yield Found("stop", f"{each.name} is not installed", install)
        elif version not in each.specifier:
            yield Found("look", f"{each.name} is {version}, where {each.specifier} is needed", install)
    yield Found("ok", f"rest {__version__} in {Path(__file__).parents[1]}, with {len(needed)} packages that it needs")
    versions = ", ".join(f"{name} {_version(name)}" for name in ("jax", "jaxlib", "flax", "numpy", "transformers"))
    if (tested := _constraints()) is None:
        yield Found("ok", f"{versions}; no constraints.txt here to compare with")
        return
    other = {name: v for name in tested if (v := _version(name)) is not None and v != tested[name]}
    if not other:
        yield Found("ok", f"{versions}; all installed versions are those of constraints.txt")
        return
    listed = ", ".join(f"{name} {version} ({tested[name]})" for name, version in sorted(other.items()))
    yield Found("look", f"{versions}; other than in constraints.txt: {listed}", f"if something fails, {install}")


def _requirements() -> list[str]:
    for name in NAMES:
        try:
            return importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
    raise LookupError("rest is not installed as a package")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _constraints() -> dict[str, str] | None:
    """Names and versions of constraints.txt of the checkout, or of here."""
    for folder in (Path(__file__).parents[2], Path()):
        if (file := folder / "constraints.txt").is_file():
            lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
            return dict(line.split("==", 1) for line in lines if "==" in line)
    return None


def devices() -> Iterator[Found]:
    """What JAX runs on, tried with a small computation."""
    try:
        import jax

        answer = float(jax.numpy.ones(8).sum())
        backend = jax.default_backend()
    except Exception as error:  # of a driver, a plug-in or a version
        text = f"JAX does not work: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        yield Found("stop", text, "JAX_PLATFORMS=cpu uses the CPU; docs/troubleshooting.md has more")
        return
    if answer != 8:
        yield Found("stop", f"JAX says that 8 times 1 is {answer}", "JAX_PLATFORMS=cpu uses the CPU")
    from rest.learning.mesh import described

    yield Found("ok", f"JAX runs on {backend}: {', '.join(described())}")
    if backend == "cpu" and shutil.which("nvidia-smi"):
        mend = 'pip install --editable ".[cuda]", and JAX_PLATFORMS must not be cpu'
        yield Found("look", "nvidia-smi is here, so there may be a GPU, but JAX does not use it", mend)
    if backend == "cpu" and Path("/dev/accel0").exists():
        yield Found("look", "a TPU is here, but JAX does not use it", 'pip install --editable ".[tpu]"')


def processors() -> Iterator[Found]:
    """Cores, how many of them this process may use, and whether they multiply bfloat16."""
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    quota = _quota()
    load = f"; load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    text = f"{usable} of {cores} cores" + (f", of which a limit allows {quota:g}" if quota else "") + load
    if quota is not None and quota < usable:
        mend = f"XLA starts {usable} threads, which wait for each other: taskset -c 0-{max(1, int(quota)) - 1} rest ..."
        yield Found("look", text, mend)
    else:
        yield Found("ok", text)
    if BFLOAT16 & cpu_flags():
        yield Found("ok", "the cores multiply bfloat16 faster than float32: --model.products bfloat16 trains faster")


def cpu_flags(file: Path = Path("/proc/cpuinfo")) -> set[str]:
    """What Linux says that the first core can do."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return next(({*line.partition(":")[2].split()} for line in lines if line.startswith("flags")), set())


def _quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """Cores that a container may use; None without a limit."""
    quota, period = (file.read_text().split() if file.is_file() else ["max", "1"])[:2]
    return None if quota == "max" else int(quota) / int(period)


def memory() -> Iterator[Found]:
    """Of the machine, and what is free."""
    file = Path("/proc/meminfo")
    if not file.is_file():
        yield Found("ok", "memory is not looked at on this system")
        return
    lines = (line.split(":") for line in file.read_text().splitlines())
    kib = {name: int(rest.split()[0]) for name, rest in lines}
    total, free = kib["MemTotal"] / 2**20, kib["MemAvailable"] / 2**20
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (allowed := limit.read_text().strip()) != "max":
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        total = min(total, int(allowed) / GIB)
        free = min(free, (int(allowed) - used) / GIB)
    text = f"memory: {free:.1f} of {total:.1f} GiB free"
    yield (
        Found("ok", text) if free >= 3 else Found("look", text, "the demo takes 3: a smaller batch.batch_tokens helps")
    )


def compile_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """Where compiled programs are kept between runs."""
    named = environment.get("JAX_COMPILATION_CACHE_DIR")
    return Path(named or Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rest" / "jax")


def disk() -> Iterator[Found]:
    """Here, where runs go, and at the cache of compiled programs."""
    for name, folder in (("here", Path.cwd()), ("the cache of compiled programs", compile_cache())):
        there = next(each for each in (folder, *folder.parents) if each.exists())
        free = shutil.disk_usage(there).free / GIB
        text = f"disk: {free:.1f} GiB free at {folder}, {name}"
        if not os.access(there, os.W_OK):
            yield Found(
                "look", f"{folder}, {name}, cannot be written", "JAX_COMPILATION_CACHE_DIR and --out name others"
            )
        elif free < 2:
            yield Found("look", text, "a run keeps a checkpoint for each stage; make room, or name another with --out")
        else:
            yield Found("ok", text)


def variables(environment: Mapping[str, str] = os.environ) -> Iterator[Found]:
    """Of JAX, XLA, CUDA and the hub; those with secrets are not shown."""
    prefixes = ("JAX_", "XLA_", "CUDA_", "OMP_NUM", "HF_HOME", "HF_HUB_", "HF_ENDPOINT", "XDG_CACHE")
    shown = {name: environment[name] for name in sorted(environment) if name.startswith(prefixes)}
    for name, value in shown.items():
        if name in SLOW:
            yield Found("look", f"{name}={value}: {SLOW[name]}", f"unset {name}")
        elif name == "XLA_FLAGS" and "host_platform_device_count" in value:
            yield Found("look", f"{name}={value}: the CPU counts as several devices, which is slower", f"unset {name}")
        elif name == "CUDA_VISIBLE_DEVICES" and value in ("", "-1"):
            yield Found("look", f"{name}={value!r} hides every GPU", f"unset {name}")
        else:
            yield Found("ok", f"{name}={value}")
    if not shown:
        yield Found("ok", "no variable of JAX, XLA, CUDA or the hub is set")


def encoding() -> Iterator[Found]:
    """Of what is read and printed."""
    used = {(sys.stdout.encoding or "").lower(), sys.getfilesystemencoding().lower()}
    if used <= {"utf-8", "utf8"}:
        yield Found("ok", "text is UTF-8")
    else:
        yield Found("look", f"text is {' and '.join(sorted(used))} here", "export PYTHONUTF8=1, or LANG=C.UTF-8")


def hub(environment: Mapping[str, str] = os.environ, seconds: float = 3.0) -> Iterator[Found]:
    """Whether published models can be fetched; not needed for anything else."""
    if environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        yield Found("ok", "HF_HUB_OFFLINE is set: published models come from folders and the cache alone")
        return
    address = environment.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=seconds):
            pass
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        text = f"{address} cannot be reached ({getattr(error, 'reason', None) or error})"
        mend = (
            "only for published models that are not in the cache; HF_HUB_OFFLINE=1 saves the wait, HF_ENDPOINT a mirror"
        )
        yield Found("look", text, mend)
        return
    yield Found("ok", f"{address} can be reached")
