"""How fast training goes: tokens a second, the share of the devices' peak that is used, where time is lost, a trace."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from rest.data.batches import Batch, Share
from rest.learning.mesh import MachineSettings, training_mesh

# FLOP/s of a device as JAX counts devices, for dense products of bfloat16 and of float32, from makers' data sheets.
# JAX multiplies float32 by TF32 on GPUs since Ampere and by bfloat16 on TPUs unless it is told otherwise: theirs are
# these peaks. The first name that a device's kind begins with counts.
PEAKS = {
    "TPU v6 lite": (918e12, 918e12),
    "TPU v5 lite": (197e12, 197e12),
    "TPU v5": (459e12, 459e12),
    "TPU v4": (275e12, 275e12),
    "TPU v3": (61.5e12, 61.5e12),  # a device is a core, half a chip
    "TPU v2": (22.5e12, 22.5e12),
    "NVIDIA B200": (2250e12, 1125e12),
    "NVIDIA H200": (989e12, 494e12),
    "NVIDIA H100 PCIe": (756e12, 378e12),
    "NVIDIA H100 NVL": (835e12, 417e12),
    "NVIDIA H100": (989e12, 494e12),
    "NVIDIA A100": (312e12, 156e12),
    "NVIDIA A10G": (70e12, 35e12),
    "NVIDIA L40S": (362e12, 183e12),
    "NVIDIA L4": (121e12, 60e12),
    "Tesla V100": (15.7e12, 15.7e12),  # neither bfloat16 nor TF32
    "Tesla T4": (8.1e12, 8.1e12),
}
BACKWARD = 2  # times the forward pass: a product has two factors, each with a gradient that is a product as large
LOST = ("compiling", "data", "evaluation", "checkpoints")  # what training waits for


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """FLOP/s of a device in float32 or bfloat16; None for a CPU, and for what is not in the table."""
    for kind, (short, whole) in PEAKS.items():
        if re.match(rf"{kind}(?![0-9])", device_kind):
            return short if dtype == "bfloat16" else whole
    return None


@runtime_checkable
class Counted(Protocol):
    """A network that knows what its arithmetic costs."""

    def arithmetic(self, rows: int, source: int, target: int) -> tuple[int, str] | None:
        """FLOPs of the products of a forward pass over so many rows and positions, and what type they are of."""
        ...


@dataclass
class Pace:
    """What has been trained in this process since it began or went on, and what its time went to."""

    devices: int
    """Of all processes."""
    kind: str
    """Of a device."""
    network: Any = None
    """What is trained; None where that is not all of it."""
    waits: tuple[str, ...] = LOST
    """For what there is waiting."""
    lost: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds by what was waited for."""
    updates: int = 0
    tokens: float = 0.0
    at_peak: float = 0.0
    """Seconds that one device at its peak would have taken; 0 where that is not known."""
    began: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, machine: MachineSettings, network: Any, waits: tuple[str, ...] = LOST) -> Pace:
        """At the beginning, on all devices."""
        mesh = training_mesh(machine)
        return cls(mesh.size, mesh.devices.flat[0].device_kind, network, waits)

    @contextmanager
    def lost_to(self, what: str, *, once: bool = False, unless: Callable[[], bool] | None = None) -> Iterator[None]:
        """The time in here is lost; if `once` only the first time, and not if devices prove to have been at work."""
        began = time.perf_counter()
        yield
        if not (once and self.lost[what]) and not (unless and unless()):
            self.lost[what] += time.perf_counter() - began

    def update(self, batch: Batch | Share) -> None:
        """One more update is done, on all devices."""
        share = Share.whole(batch) if isinstance(batch, Batch) else batch
        target = np.asarray(share.batch.target_segments)
        self.updates += 1
        self.tokens += float((target > 0).sum()) * share.of / len(share.rows)
        if isinstance(self.network, Counted):
            cost = self.network.arithmetic(share.of, share.batch.source.shape[-1], target.shape[-1])
            if cost and (peak := peak_flops(self.kind, cost[1])):
                self.at_peak += (1 + BACKWARD) * cost[0] / peak

    def numbers(self) -> dict[str, float]:
        """Target tokens a second and device, model FLOP utilisation where it is known, and shares of time lost.

        The rates are over the time of updates, which has waiting for data in it, but not the others.
        """
        whole = time.perf_counter() - self.began
        spent = whole - sum(self.lost[what] for what in self.waits if what != "data")
        each = max(spent, 1e-9) * self.devices
        found = {"pace/tokens_per_second_per_device": self.tokens / each}
        if self.at_peak:
            found["pace/model_flop_utilisation"] = self.at_peak / each
        return found | {f"pace/lost_to_{what}": self.lost[what] / max(whole, 1e-9) for what in self.waits}


@dataclass
class Trace:
    """A trace of some updates by JAX's profiler; of none where `updates` is 0."""

    folder: Path
    updates: int
    begin: int = 2
    """After so many updates everything is compiled."""
    until: int | None = None
    """The update at which it ends; None before it begins."""
    running: bool = False

    def look(self, done: int) -> None:
        """Called before updates with how many were seen to end, which may pass over a number, or say one again."""
        if self.updates and self.until is None and done >= self.begin:
            jax.profiler.start_trace(str(self.folder))
            self.until, self.running = done + self.updates, True
        elif self.running and self.until is not None and done >= self.until:
            self.close()

    def close(self) -> None:
        """Write what there is."""
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
