"""Training on pairs and on a Grow step's rows: ours beside PyTorch (`transformers` Marian), same sizes, same ids.

    bash scripts/setup_benchmark_environment.sh
    python scripts/benchmark_improve.py --sources train.de.gz --references train.en.gz --out results.json

Both train a random network with AdamW, dropout and label smoothing in float32 on two threads. `pairs` are the files'
own; `rows of D_g` have `hypotheses` targets a source: its reference's pieces, some dropped or doubled. PyTorch gets
batches of like lengths, padded to their longest, and keeps freed memory as ours does where it is quicker so. Each
takes the best of its batch sizes, then they take turns; what counts is target tokens that are not padding, and the
median of the rounds. The bound is the rate of matrix products measured in the same run over the FLOPs of a token's
forward and backward pass. Nothing else should be running.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import resource
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from rest.allocator import keep_freed_memory
from rest.data.batches import BatchSettings, Examples, fitting, training_batches
from rest.data.tokenizer import SentencePieceSettings
from rest.learning.losses import NLL
from rest.learning.mesh import data_mesh, divide, replicate
from rest.learning.train import Adam, update
from rest.model.lora import Trainable
from rest.model.transformer import TransformerSettings
from rest.policy.policy import Policy, PolicyObjective

ROOT = Path(__file__).resolve().parent.parent
OURS, PEER = "rest", "PyTorch"
KEEPING = {  # what rest.allocator does, by environment variables
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),
}


@dataclass(frozen=True)
class Flags:
    sources: Path
    """Source sentences, one a line (gzip where named .gz)."""
    references: Path
    """Their translations."""
    out: Path | None = None
    """Write what was measured as JSON."""
    width: int = 256
    layers: int = 3
    """Of the encoder, and of the decoder."""
    vocabulary_size: int = 8000
    hypotheses: int = 4
    """Targets a source in `rows of D_g`."""
    batch_tokens: tuple[int, ...] = (1024, 2048, 4096)
    """Target positions a batch that each may choose from."""
    shapes: tuple[tuple[int, int], ...] = ((48, 144), (64, 192), (64, 256))
    """Source and target positions of a row that ours may choose from where sources are shared."""
    seconds: float = 6.0
    """About how long a measurement takes."""
    rounds: int = 5


def texts(path: Path, count: int) -> list[str]:
    """Lines taken evenly from a file."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
        lines = file.read().splitlines()
    return [lines[int(i)] for i in np.linspace(0, len(lines) - 1, min(count, len(lines)))]


def several(references: list[np.ndarray], count: int) -> list[np.ndarray]:
    """`count` targets for each reference: a tenth of the tokens dropped, a tenth doubled, EOS kept."""
    random, out = np.random.default_rng(0), []
    for ids in references:
        for _ in range(count):
            times = random.choice([0, 1, 1, 1, 1, 1, 1, 1, 1, 2], len(ids))
            times[-1] = 1
            out.append(np.repeat(ids, times))
    return out


class Ours:
    """Updates of `rest` on examples, in batches of a given shape."""

    def __init__(self, policy: Policy, examples: Examples) -> None:
        self.policy, self.examples, self.mesh = policy, examples, data_mesh()
        self.ready: dict[BatchSettings, Any] = {}

    def start(self, settings: BatchSettings) -> None:
        """Compile, make a few updates, and keep what the next call goes on with."""
        batches, plan = training_batches(self.examples, settings, pad_id=self.policy.tokenizer.pad_id, seed=0)
        parameters = replicate(jax.tree.map(jnp.copy, self.policy.parameters), self.mesh)
        state = [parameters, replicate(Adam().direction().init(parameters), self.mesh), batches, plan.padding, 0.0]
        self.ready[settings] = state
        for _ in range(3):
            self.step(state)
        float(state[4])  # an update that was only begun would count as time of the next call

    def arguments(self, state: list[Any], stacked: Any) -> tuple[Any, ...]:
        objective, rate = PolicyObjective(self.policy.graph, NLL(0.1)), jnp.float32(1e-4)
        return objective, Adam(), Trainable(), state[0], {}, state[1], stacked, rate, jax.random.key(0)

    def step(self, state: list[Any]) -> int:
        """One update; target tokens in it. As `train` does, it waits for the update before."""
        batch = next(state[2])
        stacked = divide(jax.tree.map(lambda leaf: leaf[None], batch), self.mesh, axis=1)
        state[0], state[1], metrics = update(*self.arguments(state, stacked))
        state[4], waiting = metrics["loss"], state[4]
        float(waiting)
        return int((batch.target_segments > 0).sum())

    def run(self, settings: BatchSettings, seconds: float) -> float:
        """Target tokens a second."""
        if settings not in self.ready:
            self.start(settings)
        tokens, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            tokens += self.step(self.ready[settings])
        float(self.ready[settings][4])
        return tokens / (time.perf_counter() - began)

    def temporary_megabytes(self, settings: BatchSettings) -> float:
        """What the compiled update takes besides its arguments."""
        state = self.ready[settings]
        stacked = divide(jax.tree.map(lambda leaf: leaf[None], next(state[2])), self.mesh, axis=1)
        lowered = update.lower(*self.arguments(state, stacked))
        return lowered.compile().memory_analysis().temp_size_in_bytes / 1e6


class Peer:
    """The process of benchmark_improve_peers.py, asked by JSON lines."""

    def __init__(
        self, settings: TransformerSettings, examples: Examples, vocabulary: int, folder: Path, keeping: bool
    ) -> None:
        python = ROOT / ".venv-benchmark" / "bin" / "python"
        if not python.exists():
            raise SystemExit("make .venv-benchmark first: bash scripts/setup_benchmark_environment.sh")
        pairs = [
            ([int(x) for x in examples.source(i)], [int(y) for y in examples.targets[i]]) for i in range(len(examples))
        ]
        task = {"settings": asdict(settings), "vocabulary": vocabulary, "pairs": pairs}
        (folder / "task.json").write_text(json.dumps(task))
        command = [str(python), str(ROOT / "scripts" / "benchmark_improve_peers.py"), str(folder / "task.json")]
        environment = {**os.environ, "OMP_NUM_THREADS": "2", **(KEEPING if keeping else {})}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment,
        )  # fmt: skip
        self.megabytes = 0.0
        self.run(1024, 0.0)  # wait until it has imported everything, so as not to be measured beside that

    def run(self, batch_tokens: int, seconds: float) -> float:
        """Target tokens a second."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"batch_tokens": batch_tokens, "seconds": seconds}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"PyTorch's process has ended with {self.process.wait()}")
        answer = json.loads(line)
        self.megabytes = answer["megabytes"]
        return answer["tokens"] / answer["seconds"]

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def flops(settings: TransformerSettings, vocabulary: int, source: float, target: float, each: int) -> float:
    """Matrix products of a target token, forward and backward (three times forward); `each` targets share a source."""
    width = settings.width
    layer = 2 * width * (4 * width + 2 * settings.feed_forward)
    cross = 2 * width * 2 * width
    decoder = settings.decoder_layers * (layer + cross + 4 * width * (source + target / 2)) + 2 * width * vocabulary
    encoder = settings.encoder_layers * (layer + 4 * width * source) + settings.decoder_layers * cross
    return 3 * (decoder + encoder * source / (each * target))


def matrix_rate(width: int) -> float:
    """FLOP/s of products of 2,048 rows with a matrix [width, 4 width]: the best of ten."""
    a, b = jnp.ones((2048, width)), jnp.ones((width, 4 * width))
    product, best = jax.jit(jnp.matmul), np.inf
    for _ in range(10):
        began = time.perf_counter()
        jax.block_until_ready(product(a, b))
        best = min(best, time.perf_counter() - began)
    return 2 * 2048 * width * 4 * width / best


def measure(policy: Policy, examples: Examples, shapes: list[tuple[int, int]], flags: Flags) -> dict[str, Any]:
    """Both at their best batches, in turns."""
    shared, vocabulary = examples.source_of is not None, policy.tokenizer.vocabulary_size
    ours = Ours(policy, examples)
    tried = [BatchSettings(n, s, t, shared) for n in flags.batch_tokens for s, t in shapes]
    if shared:  # whether sharing pays
        tried += [BatchSettings(n, 64, 64) for n in flags.batch_tokens]
        apart = Ours(policy, Examples([examples.source(i) for i in range(len(examples))], examples.targets))
    with tempfile.TemporaryDirectory() as scratch:
        processes = {k: Peer(policy.settings, examples, vocabulary, Path(scratch), k) for k in (False, True)}

        def run(settings: BatchSettings, seconds: float) -> float:
            return (apart if shared and not settings.share_sources else ours).run(settings, seconds)

        speeds = {settings: run(settings, flags.seconds / 3) for settings in tried}
        for settings, speed in speeds.items():
            print(settings, round(speed), flush=True)
        best = max(speeds, key=lambda settings: speeds[settings])
        peers = {
            (keeping, n): process.run(n, flags.seconds / 3)
            for keeping, process in processes.items()
            for n in flags.batch_tokens
        }
        print(f"{PEER}, (keeps freed memory, batch tokens):", {k: round(v) for k, v in peers.items()}, flush=True)
        keeping, tokens = max(peers, key=lambda k: peers[k])
        peer = processes[keeping]
        processes[not keeping].close()
        rounds = []
        for _ in range(flags.rounds):
            rate = matrix_rate(policy.settings.width)
            turn = run(best, flags.seconds), peer.run(tokens, flags.seconds)
            rounds.append((*turn, max(rate, matrix_rate(policy.settings.width))))
        peer.close()
    mine, theirs, rates = (np.asarray(column) for column in zip(*rounds, strict=True))
    source = float(np.mean([len(examples.source(i)) for i in range(len(examples))]))
    target = float(np.mean([len(y) for y in examples.targets]))
    cost = flops(policy.settings, vocabulary, source, target, flags.hypotheses if best.share_sources else 1)
    used = apart if shared and not best.share_sources else ours
    return {
        "mean_source_tokens": source,
        "mean_target_tokens": target,
        "batch": asdict(best),
        "batch_of_the_peer": {"batch_tokens": tokens, "keeps_freed_memory": keeping},
        "padding": used.ready[best][3],
        "tokens_per_second": {OURS: float(np.median(mine)), PEER: float(np.median(theirs))},
        "faster_by": float(np.median(mine / theirs)),
        "faster_by_of_rounds": [round(float(x), 2) for x in mine / theirs],
        "of_the_bound": float(np.median(mine * cost / rates)),
        "temporary_megabytes": used.temporary_megabytes(best),
        "logits_megabytes": best.rows * best.target_tokens * vocabulary * 4 / 1e6,  # what never exists
        "peak_megabytes": {
            OURS: round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            PEER: peer.megabytes,
        },
    }


def table(record: dict[str, Any]) -> Table:
    shown = Table(title=record["model"])
    for name in ("text", "rest tokens/s", "PyTorch", "faster by", "of the bound", "padding", "MB", "PyTorch's MB"):
        shown.add_column(name, justify="left" if name == "text" else "right")
    for name, row in record["measured"].items():
        speed, memory = row["tokens_per_second"], row["peak_megabytes"]
        shown.add_row(
            name, f"{speed[OURS]:.0f}", f"{speed[PEER]:.0f}", f"{row['faster_by']:.2f} x", f"{row['of_the_bound']:.0%}",
            f"{row['padding']:.1%}", f"{memory[OURS]:.0f}", f"{memory[PEER]:.0f}",
        )  # fmt: skip
    return shown


def main() -> None:
    keep_freed_memory()
    flags = tyro.cli(Flags, description=__doc__)
    count = 8000
    sides = texts(flags.sources, count), texts(flags.references, count)
    tokenizer = SentencePieceSettings(flags.vocabulary_size).train(list(sides), 0)
    settings = TransformerSettings(
        width=flags.width, heads=flags.width // 64, feed_forward=4 * flags.width,
        encoder_layers=flags.layers, decoder_layers=flags.layers,
    )  # fmt: skip
    policy = Policy.new(settings, tokenizer, 0)
    pairs = Examples(policy.encode_sources(sides[0]), policy.encode_references(sides[1]))
    short = np.flatnonzero(fitting(pairs, BatchSettings(64, 48, 48)))
    pairs = Examples([pairs.sources[i] for i in short], [pairs.targets[i] for i in short])
    few = len(pairs) // flags.hypotheses
    rows = Examples(
        pairs.sources[:few],
        several(pairs.targets[:few], flags.hypotheses),
        source_of=np.repeat(np.arange(few), flags.hypotheses),
    )
    record: dict[str, Any] = {
        "model": f"{flags.layers} + {flags.layers} layers, width {flags.width}, "
        f"vocabulary {tokenizer.vocabulary_size}, random",
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "rounds": flags.rounds,
        "measured": {},
    }
    for name, examples, shapes in (
        ("pairs", pairs, [(48, 48), (64, 64)]),
        (f"rows of D_g, {flags.hypotheses} a source", rows, list(flags.shapes)),
    ):
        record["measured"][name] = measure(policy, examples, shapes, flags)
        if flags.out:
            flags.out.write_text(json.dumps(record, indent=2) + "\n")
    Console().print(table(record))


if __name__ == "__main__":
    main()
