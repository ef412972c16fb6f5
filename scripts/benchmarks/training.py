"""Training on pairs and on a Grow step's rows: ours beside PyTorch (`transformers` Marian), same sizes, same ids.

    bash scripts/benchmarks/setup_environment.sh
    python scripts/benchmarks/training.py --sources train.de.gz --references train.en.gz --out results.json

Both train a random network with AdamW, dropout and label smoothing in float32 on two threads. `pairs` are the files'
own; `rows of D_g` have `hypotheses` targets a source: its reference's pieces, some dropped or doubled. PyTorch gets
batches of like lengths, padded to their longest, and keeps freed memory as ours does where it is quicker so. Each
takes the best of its batch sizes, then they take turns; what counts is target tokens that are not padding, and the
median of the rounds. The bound is the rate of matrix products measured in the same run over the FLOPs of a token's
forward and backward pass. Nothing else should be running.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from peers import peak_megabytes
from rich.console import Console
from rich.table import Table
from turns import faster_by, fastest, in_turns, peer, shown
from workload import described, evenly, flops, lines, machine, matrix_rate, sizes

from rest.allocator import keep_freed_memory
from rest.data.batches import BatchSettings, Examples, Share, fitting, training_batches
from rest.data.tokenizer import SentencePieceSettings
from rest.folder import write_json
from rest.learning.learner import Learner
from rest.learning.lora import Trainable
from rest.learning.losses import NLL
from rest.learning.mesh import MachineSettings, global_batch, training_mesh
from rest.learning.optimizers import Adam, Schedule
from rest.policy.policy import Policy, PolicyObjective

OURS, PEER = "rest", "PyTorch"


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
    """Updates of `rest` on examples, in batches of one shape."""

    def __init__(self, policy: Policy, examples: Examples, batch: BatchSettings) -> None:
        """Compile, and make a few updates."""
        self.batches, plan = training_batches(examples, batch, pad_id=policy.tokenizer.pad_id, seed=0)
        self.padding, self.waiting = plan.padding, None
        how = PolicyObjective(NLL(), 0.1), Adam(), Schedule(1e-4), Trainable()
        self.learner = Learner.begin(policy, *how, seed=0, machine=MachineSettings())
        for _ in range(3):
            self.step()
        float(self.waiting)  # an update that was only begun would count as time of the next call

    def step(self) -> int:
        """One update; target tokens in it. As `train` does, it waits for the update before."""
        batch = next(self.batches)
        metrics = self.learner.update(batch, jax.random.key(0))
        self.waiting, before = metrics["loss"], self.waiting
        if before is not None:
            float(before)
        return int((batch.target_segments > 0).sum())

    def run(self, seconds: float) -> float:
        """Target tokens a second."""
        tokens, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            tokens += self.step()
        float(self.waiting)
        return tokens / (time.perf_counter() - began)

    def temporary_megabytes(self) -> float:
        """What the compiled update takes besides its arguments."""
        made = self.learner
        batch = global_batch(Share.whole(next(self.batches)), training_mesh(MachineSettings()))
        lowered = made.update_jitted.lower(
            made.objective, made.optimizer, made.trainable, made.network, made.trained, made.frozen, made.state,
            batch, np.float32(1e-4), jax.random.key(0),
        )  # fmt: skip
        return lowered.compile().memory_analysis().temp_size_in_bytes / 1e6


class Peer:
    """The same training in PyTorch."""

    def __init__(self, policy: Policy, examples: Examples, folder: Path, keeping: bool) -> None:
        sources = [examples.source(i).tolist() for i in range(len(examples))]
        pairs = sources, [ids.tolist() for ids in examples.targets]
        task = {"settings": asdict(policy.settings), "vocabulary": policy.tokenizer.vocabulary_size, "pairs": pairs}
        (folder / "task.json").write_text(json.dumps(task))
        self.asked, self.megabytes = peer("training", folder, keeping=keeping), 0.0
        self.run(1024, 0.0)  # wait until it has imported everything, so as not to be measured beside that

    def run(self, batch_tokens: int, seconds: float) -> float:
        """Target tokens a second."""
        answer = self.asked({"batch_tokens": batch_tokens, "seconds": seconds})
        self.megabytes = round(answer["megabytes"])
        return answer["tokens"] / answer["seconds"]


def measure(policy: Policy, examples: Examples, shapes: list[tuple[int, int]], flags: Flags) -> dict[str, Any]:
    """Both at their best batches, in turns."""
    shared, width, vocabulary = examples.source_of is not None, policy.settings.width, policy.tokenizer.vocabulary_size
    tried = [BatchSettings(n, s, t, shared) for n in flags.batch_tokens for s, t in shapes]
    apart = Examples([examples.source(i) for i in range(len(examples))], examples.targets)
    if shared:  # whether sharing pays
        tried += [BatchSettings(n, 64, 64) for n in flags.batch_tokens]
    ready: dict[BatchSettings, Ours] = {}

    def ours(batch: BatchSettings, seconds: float) -> float:
        if batch not in ready:
            ready[batch] = Ours(policy, examples if batch.share_sources else apart, batch)
        return ready[batch].run(seconds)

    with tempfile.TemporaryDirectory() as scratch:
        peers = {keeping: Peer(policy, examples, Path(scratch), keeping) for keeping in (False, True)}
    best = fastest(OURS, lambda batch: ours(batch, flags.seconds / 3), tried)
    keeping, tokens = fastest(
        f"{PEER} (keeps freed memory, batch tokens)",
        lambda size: peers[size[0]].run(size[1], flags.seconds / 3),
        [(keeping, n) for keeping in peers for n in flags.batch_tokens],
    )
    peers[not keeping].asked.close()
    rate = partial(matrix_rate, 2048, width, 4 * width)
    rounds = in_turns(
        {
            "before": rate,
            OURS: lambda: ours(best, flags.seconds),
            PEER: lambda: peers[keeping].run(tokens, flags.seconds),
            "after": rate,
        },
        flags.rounds,
    )
    peers[keeping].asked.close()
    source = float(np.mean([len(ids) for ids in apart.sources]))
    target = float(np.mean([len(ids) for ids in examples.targets]))
    each = flags.hypotheses if best.share_sources else 1
    cost = 3 * flops(policy.settings, vocabulary, source, target, each)  # forward and backward
    rates = np.maximum(rounds["before"], rounds["after"])
    return {
        "mean_source_tokens": source,
        "mean_target_tokens": target,
        "batch": asdict(best),
        "batch_of_the_peer": {"batch_tokens": tokens, "keeps_freed_memory": keeping},
        "padding": ready[best].padding,
        "tokens_per_second": {name: float(np.median(rounds[name])) for name in (OURS, PEER)},
        **faster_by(rounds[OURS], rounds[PEER]),
        "of_the_bound": float(np.median(np.asarray(rounds[OURS]) * cost / rates)),
        "temporary_megabytes": ready[best].temporary_megabytes(),
        "logits_megabytes": best.rows * best.target_tokens * vocabulary * 4 / 1e6,  # what never exists
        "peak_megabytes": {OURS: round(peak_megabytes()), PEER: peers[keeping].megabytes},
    }


def tabled(record: dict[str, Any]) -> Table:
    table = Table(title=record["model"])
    for name in ("text", "rest tokens/s", "PyTorch", "faster by", "of the bound", "padding", "MB", "PyTorch's MB"):
        table.add_column(name, justify="left" if name == "text" else "right")
    for name, row in record["measured"].items():
        speed, memory = row["tokens_per_second"], row["peak_megabytes"]
        table.add_row(
            name, f"{speed[OURS]:.0f}", f"{speed[PEER]:.0f}", shown(row), f"{row['of_the_bound']:.0%}",
            f"{row['padding']:.1%}", f"{memory[OURS]:.0f}", f"{memory[PEER]:.0f}",
        )  # fmt: skip
    return table


def main() -> None:
    keep_freed_memory()
    flags = tyro.cli(Flags, description=__doc__)
    count = 8000
    sides = evenly(lines(flags.sources), count), evenly(lines(flags.references), count)
    tokenizer = SentencePieceSettings(flags.vocabulary_size).train(list(sides), 0)
    policy = Policy.new(sizes(flags.width, flags.layers), tokenizer, 0)
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
        "model": f"{described(policy)}, random",
        "machine": machine(),
        "rounds": flags.rounds,
        "measured": {},
    }
    for name, examples, shapes in (
        ("pairs", pairs, [(48, 48), (64, 64)]),
        (f"rows of D_g, {flags.hypotheses} a source", rows, list(flags.shapes)),
    ):
        record["measured"][name] = measure(policy, examples, shapes, flags)
        if flags.out:
            write_json(flags.out, record)
    Console(width=max(120, Console().width)).print(tabled(record))


if __name__ == "__main__":
    main()
