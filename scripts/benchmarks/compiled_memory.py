"""What an update of a large model needs, from its compiled program alone: memory of a device, bytes over the network.

    python scripts/benchmarks/compiled_memory.py --out compiled.json

No weights are made: the update of `rest.learning.learner` is compiled for abstract arrays on as many CPU devices as
`hosts` x `devices` say, with `fsdp` of `--machine.fsdp` within a host and "data" between hosts; for the first number of
hosts also with `--machine.remat`, which keeps few activations. Each case is a process. All numbers are those of XLA's
compiler for CPUs: it orders operations for speed, and so keeps more than those for GPUs and TPUs, and it sums gradients
by all-reduce where they would use reduce-scatter, at half the bytes. Layers are not scanned over, so compiling takes
longer the more there are; the default has few and wide ones. `other` is what is neither of these: activations, and
the parameters of other devices while they are needed.

A device sends, for a result of b bytes among n devices: all-gather b (n - 1) / n, all-reduce twice that, and
reduce-scatter b (n - 1). What is in a loop counts as often as the loop runs.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

MEGABYTE = 2**20
TYPES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
SENT = {  # bytes that a device sends for a result of 1 byte among n
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}


@dataclass(frozen=True)
class Flags:
    width: int = 4096
    heads: int = 32
    feed_forward: int = 16384
    encoder_layers: int = 3
    decoder_layers: int = 2
    vocabulary: int = 32000
    dtype: str = "bfloat16"
    """Of activations and matrix products; parameters and moments are float32."""
    rows: int = 4
    """Of a batch, of each device."""
    source: int = 256
    """Positions of a row."""
    target: int = 256
    hosts: tuple[int, ...] = (1, 8, 64)
    devices: int = 8
    """Of a host."""
    fsdp: int = 8
    out: Path | None = None
    """Write what was found as JSON."""
    case: tuple[int, bool] | None = None
    """(What a process that compiles one case is started with: hosts, remat.)"""


def compiled(flags: Flags, hosts: int, remat: bool) -> tuple[Any, dict[str, Any]]:
    """The compiled update, and the bytes of a device that are known before."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from rest.data.batches import Batch
    from rest.learning import mesh as meshes
    from rest.learning.learner import DONATED, STATIC, updated
    from rest.learning.lora import Trainable
    from rest.learning.losses import NLL
    from rest.learning.optimizers import Adam, initial_state
    from rest.model.flops import forward_flops, update_flops
    from rest.model.layers import TransformerSettings
    from rest.model.network import Network
    from rest.model.transformer import Transformer
    from rest.policy.policy import PolicyObjective

    settings = TransformerSettings(
        flags.width, flags.heads, flags.feed_forward, flags.encoder_layers, flags.decoder_layers, dtype=flags.dtype
    )
    network = Network.shaped(settings, lambda rngs: Transformer(settings, flags.vocabulary, pad_id=0, rngs=rngs))
    mesh = meshes.training_mesh(meshes.MachineSettings(fsdp=flags.fsdp))
    network = network.on_devices(remat=remat, row_groups=meshes.row_groups(mesh))
    trained, frozen = network.parameters, {}
    state = jax.eval_shape(lambda tree: initial_state(Adam(), tree), trained)
    placed = [meshes.shaped(tree, mesh) for tree in (trained, frozen, state)]
    rows = flags.rows * hosts * flags.devices
    there = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, meshes.ROWS))

    def ids(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, rows, *shape), jnp.int32, sharding=there)

    sides = [ids(flags.source)] * 3 + [ids(flags.target)] * 5
    batch = Batch(*sides, sequence_ids=ids(8), columns={})
    pinned = *(meshes.shardings(tree, mesh) for tree in (trained, state)), meshes.everywhere(mesh)
    update = jax.jit(updated, static_argnames=STATIC, donate_argnames=DONATED, out_shardings=pinned)
    key = jax.eval_shape(lambda: jax.random.key(0))
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    began = time.perf_counter()
    how = PolicyObjective(NLL(), 0.1), Adam(), Trainable(), network.with_parameters(None)
    done = update.lower(*how, *placed, batch, rate, key).compile()

    def of_device(tree: Any) -> int:
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
        )

    vocabulary = trained["embedding"].shape[0]
    forward = forward_flops(settings, vocabulary, rows, flags.source, flags.target)
    return done, {
        "parameters": sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(trained)),
        "seconds": time.perf_counter() - began,
        "parameter_bytes": of_device(placed[0]),
        "moment_bytes": of_device(placed[2]),
        "flops": update_flops(forward) / (hosts * flags.devices),
    }


# Collectives in the text of a compiled program


def computations(text: str) -> Iterator[tuple[str, bool, list[str]]]:
    """(name, whether it is where the program begins, lines) of every computation."""
    name, first, lines = "", False, []
    for line in text.splitlines():
        if found := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            name, first, lines = found[2], bool(found[1]), []
        elif line.startswith("}"):
            yield name, first, lines
        else:
            lines.append(line)


def groups(line: str, count: int) -> list[list[int]]:
    """Which devices a collective is among: axes of a mesh, a shape that is cut and turned, or written out."""
    import numpy as np

    def devices(dims: str, turned: str | None) -> np.ndarray:
        shape = numbers(dims)
        return np.arange(math.prod(shape)).reshape(shape).transpose(numbers(turned) if turned else range(len(shape)))

    if found := re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[(.*?)\](?:T\((.*?)\))?\))? \{(.*?)\}", line
    ):
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", found[1])}
        axes = [list(sizes).index(name) for name in re.findall(r"'(\w+)'(?!:)", found[4])]
        if found[4].count("'") != 2 * len(axes):
            raise SystemExit(f"parts of an axis are not understood: {found[0]}")
        ids = devices(found[2] or ",".join(map(str, sizes.values())), found[3]).reshape(list(sizes.values()))
        among = math.prod(ids.shape[axis] for axis in axes)
        return np.moveaxis(ids, axes, range(-len(axes), 0)).reshape(-1, among).tolist()
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        return devices(found[2], found[3]).reshape(numbers(found[1])).tolist()
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", line):
        return [numbers(part) for part in re.findall(r"\{([\d,]+)\}", found[1])]
    if "replica_groups={}" not in line:
        raise SystemExit(f"no devices in: {line.strip()[:300]}")
    return [list(range(count))]


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def collectives(text: str, count: int, of_host: int) -> Counter[tuple[str, str]]:
    """Bytes that a device sends in one run, by kind and by "within" a host or "between" hosts."""
    bodies = {name: lines for name, _, lines in computations(text)}
    entry = next(name for name, first, _ in computations(text) if first)
    found: Counter[tuple[str, str]] = Counter()

    def walk(name: str, times: int) -> None:
        for line in bodies.get(name, ()):
            loop = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            for called in re.findall(r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", line):
                walk(called, times * int(loop[1]) if loop else times)
            made = re.search(r"= (.*?) ([a-z\-]+?)(?:-start)?\(", line)
            if made is None or made[2] not in SENT:
                continue
            size = 0
            for kind, shape in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", made[1]):
                size += TYPES.get(kind, 0) * math.prod(int(n) for n in shape.split(",") if n)
            among = groups(line, count)
            where = "between" if any(len({device // of_host for device in each}) > 1 for each in among) else "within"
            found[made[2], where] += times * size * SENT[made[2]](len(among[0]))

    walk(entry, 1)
    return found


def case(flags: Flags, hosts: int, remat: bool) -> dict[str, Any]:
    """One line, in bytes of a device."""
    program, known = compiled(flags, hosts, remat)
    memory, count = program.memory_analysis(), hosts * flags.devices
    sent = collectives(program.as_text(), count, flags.devices)
    gradients = known["parameter_bytes"]  # float32 and cut like them
    return known | {
        "temporary_bytes": memory.temp_size_in_bytes,
        "other_bytes": memory.temp_size_in_bytes - gradients,
        "argument_bytes": memory.argument_size_in_bytes,
        "whole_bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        "flops_of_xla": program.cost_analysis()["flops"],
        "sent": {f"{kind} {where}": int(n) for (kind, where), n in sorted(sent.items())},
        "sent_within": int(sum(n for (_, where), n in sent.items() if where == "within")),
        "sent_between": int(sum(n for (_, where), n in sent.items() if where == "between")),
    }


def main() -> None:
    flags = tyro.cli(Flags, description=__doc__)
    if flags.case is not None:
        print(json.dumps(case(flags, *flags.case)))
        return
    from rich.console import Console
    from rich.table import Table

    from rest.folder import write_json

    found = []
    sizes = {name: value for name, value in vars(flags).items() if name not in ("out", "case", "hosts")}
    table = Table(title="MiB of a device; sent: in one update")
    for head in ("hosts", "remat", "parameters", "moments", "gradients", "other", "whole", "sent in the host"):
        table.add_column(head, justify="right")
    table.add_column("sent to other hosts", justify="right")
    for hosts in flags.hosts:
        for remat in (False, True) if hosts == flags.hosts[0] else (False,):
            line = replace(flags, case=(hosts, remat), out=None)
            arguments = [f"--{name}={value}" for name, value in sizes.items()]
            arguments += ["--case", str(hosts), str(remat)]
            count = f"--xla_force_host_platform_device_count={line.devices * hosts}"
            environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": count}
            done = subprocess.run(
                [sys.executable, __file__, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
            row = json.loads(done.stdout)
            found.append({"hosts": hosts, "remat": remat, **row})
            print(f"{hosts} hosts, remat {remat}: {row}", file=sys.stderr)
            names = "parameter_bytes moment_bytes parameter_bytes other_bytes whole_bytes sent_within sent_between"
            table.add_row(str(hosts), str(remat), *(f"{row[name] / MEGABYTE:,.0f}" for name in names.split()))
            if flags.out is not None:
                write_json(flags.out, {"settings": sizes, "cases": found})
    Console(width=max(120, Console().width)).print(table)


if __name__ == "__main__":
    main()
