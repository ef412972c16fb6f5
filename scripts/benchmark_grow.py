"""Sampling of translations: ours beside transformers' generate (PyTorch) and CTranslate2, same weights, same sources.

    bash scripts/setup_benchmark_environment.sh
    python scripts/benchmark_grow.py --policy runs/multi30k/bc --sources train.de --out results.json

The policy is exported as a Marian folder, which the peers read; `--width 512` takes the policy's tokenizer and random
weights, 6 + 6 layers, with the bias of EOS set for hypotheses of about 14 tokens. Every system draws N hypotheses a
source at temperature 0.8 from the whole vocabulary, on sources taken evenly from the file, each at the best of three
numbers of rows at once; the systems take turns, and the median of the rounds counts. The bound is the rate of matrix
products measured in the same run over the FLOPs of a token. Nothing but this process should be running.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from rest.data.tokenizer import MarianTokenizer
from rest.model.huggingface import write_marian
from rest.model.transformer import TransformerSettings
from rest.policy.beam import BeamSettings, translate
from rest.policy.policy import Policy
from rest.policy.sampler import SamplingSettings, sample

ROOT = Path(__file__).resolve().parent.parent
OURS, GENERATE, FLOAT, INT8 = "rest", "transformers generate", "CTranslate2 float32", "CTranslate2 int8"
CONVERT = """
import sys
from ctranslate2.converters import TransformersConverter
TransformersConverter(sys.argv[1]).convert(sys.argv[2], quantization=sys.argv[3])
"""
ROWS = {OURS: 8192, GENERATE: 768, FLOAT: 3072, INT8: 3072}  # hypotheses a measurement: some seconds of each


@dataclass(frozen=True)
class Flags:
    sources: Path
    """Source sentences, one a line (gzip where named .gz)."""
    policy: Path
    """A stage's folder with a policy."""
    out: Path | None = None
    """Write what was measured as JSON."""
    width: int | None = None
    """Random weights of this width, 6 + 6 layers, instead of the policy's."""
    samples: tuple[int, ...] = (1, 8, 16, 100)
    """N."""
    at_once: tuple[int, ...] = (64, 128, 256)
    """Rows at once that each system may choose from."""
    ours_at_once: tuple[int, ...] = ()
    """The same for ours alone, where less is to be tried."""
    rounds: int = 3
    max_target_tokens: int = 56
    scale: float = 1.0
    """More or fewer hypotheses a measurement."""
    serve: str = ""
    """(What the process that measures ours is started with.)"""


Ask = Callable[..., dict[str, Any]]


def texts(path: Path) -> list[str]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
        return [line.strip() for line in file if line.strip()]


def evenly(rows: list[Any], count: int) -> list[Any]:
    """`count` of the rows at equal distances."""
    return [rows[int(i)] for i in np.linspace(0, len(rows) - 1, min(count, len(rows)))]


def random_policy(like: Policy, width: int, sources: list[str], longest: int) -> Policy:
    """Random weights, whose EOS comes about every 14 tokens."""
    settings = TransformerSettings(
        width=width, heads=width // 64, feed_forward=4 * width, encoder_layers=6, decoder_layers=6
    )
    policy, eos = Policy.new(settings, like.tokenizer, 0), like.tokenizer.eos_id
    law, low, high = SamplingSettings(max_target_tokens=longest, rows=64), 0.0, 12.0
    for _ in range(8):
        bias = (low + high) / 2
        moved = policy.parameters["output_bias"].at[eos].set(bias)
        policy = policy.with_parameters({**policy.parameters, "output_bias": moved})
        drawn = sample(policy, sources, np.arange(len(sources)), 2, law, seed=0)
        mean = np.mean([len(y) for samples in drawn.tokens for y in samples])
        low, high = (bias, high) if mean > 14 else (low, bias)
    return policy


def serve_ours(folder: Path) -> None:
    """Answer requests like benchmark_grow_peers.py does; sources are sentences."""
    policy = Policy.load(folder)
    for line in sys.stdin:
        ask = json.loads(line)
        began = time.perf_counter()
        if ask["greedy"]:
            found = translate(policy, ask["sources"], BeamSettings(1, max_target_tokens=ask["max"]))
            answer: dict[str, Any] = {"found": found}
        else:
            law = SamplingSettings(temperature=ask["temperature"], max_target_tokens=ask["max"], rows=ask["batch"])
            drawn = sample(policy, ask["sources"], np.arange(len(ask["sources"])), ask["n"], law, seed=0)
            tokens = sum(len(y) for samples in drawn.tokens for y in samples)
            rows = len(ask["sources"]) * ask["n"]
            answer = {"tokens": tokens, "rows": rows, "useful": drawn.useful_steps}
        answer["seconds"] = time.perf_counter() - began
        answer["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(answer), flush=True)


def start(command: list[str]) -> Ask:
    """A process that is asked by JSON lines."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )

    def ask(**request: Any) -> dict[str, Any]:
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps({"temperature": 0.8, "greedy": False, **request}) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{command} has ended with {process.wait()}")
        return json.loads(line)

    return ask


def systems(policy: Policy, scratch: Path) -> dict[str, Ask]:
    """Every system with the same weights."""
    python = str(ROOT / ".venv-benchmark" / "bin" / "python")
    if not Path(python).exists():
        raise SystemExit("make .venv-benchmark first: bash scripts/setup_benchmark_environment.sh")
    policy.save(scratch / "policy")
    write_marian(scratch / "marian", policy.settings, policy.tokenizer, policy.parameters)
    for quantization in ("float32", "int8"):
        target = str(scratch / quantization)
        subprocess.run([python, "-c", CONVERT, str(scratch / "marian"), target, quantization], check=True)
    peers = str(ROOT / "scripts" / "benchmark_grow_peers.py")
    ours = [sys.executable, __file__, "--serve", str(scratch / "policy"), "--sources", "-", "--policy", "-"]
    return {
        OURS: start(ours),
        GENERATE: start([python, peers, "transformers", str(scratch / "marian")]),
        FLOAT: start([python, peers, "ctranslate2", str(scratch / "float32")]),
        INT8: start([python, peers, "ctranslate2", str(scratch / "int8")]),
    }


def flops_a_token(policy: Policy, source: float, target: float, n: int) -> float:
    """Matrix products of one target token: the decoder's own, and the encoder's share of a source's n hypotheses."""
    s, vocabulary = policy.settings, policy.parameters["embedding"].shape[0]
    layer = 2 * s.width * (4 * s.width + 2 * s.feed_forward)
    cross = 2 * s.width * 2 * s.width
    attention = 4 * s.width * (source + target / 2)
    decoder = s.decoder_layers * (layer + cross + attention) + 2 * s.width * vocabulary
    encoder = source * (s.encoder_layers * (layer + 4 * s.width * source) + s.decoder_layers * cross)
    return decoder + encoder / (n * target)


def matrix_rate(width: int) -> float:
    """FLOP/s of products of 512 rows with a matrix [width, 8192]: the best of ten."""
    a, b = jnp.ones((512, width)), jnp.ones((width, 8192))
    product, best = jax.jit(jnp.matmul), np.inf
    for _ in range(10):
        began = time.perf_counter()
        jax.block_until_ready(product(a, b))
        best = min(best, time.perf_counter() - began)
    return 2 * 512 * width * 8192 / best


def inputs(exported: MarianTokenizer, system: str, sources: list[str]) -> list[Any]:
    """Sources as the system reads them, short ones first, which spares the peers padding."""
    rows = [[*ids, exported.eos_id] for ids in exported.encode(sources)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    if system == OURS:
        return [sources[i] for i in order]
    if system == GENERATE:
        return [rows[i] for i in order]
    return [[exported.pieces[token] for token in rows[i]] for i in order]


def measure(
    exported: MarianTokenizer, asks: dict[str, Ask], sources: list[str], n: int, flags: Flags
) -> dict[str, Any]:
    """The systems in turn, each at its best number of rows at once; the median of the rounds."""
    given = {
        system: inputs(exported, system, evenly(sources, max(1, int(ROWS[system] * flags.scale) // n)))
        for system in asks
    }

    def once(system: str, batch: int) -> dict[str, Any]:
        return asks[system](sources=given[system], n=n, batch=batch, max=flags.max_target_tokens)

    best, first = {}, {}
    for system in asks:
        tried = {}
        for batch in (flags.ours_at_once or flags.at_once) if system == OURS else flags.at_once:
            if system == OURS:  # the first call compiles
                first[batch] = once(system, batch)["seconds"]
            answer = once(system, batch)
            tried[batch] = answer["tokens"] / answer["seconds"]
        best[system] = max(tried, key=lambda batch: tried[batch])
    rounds = [{system: once(system, best[system]) for system in asks} for _ in range(flags.rounds)]
    out = {}
    for system in asks:
        speeds = [each[system]["tokens"] / each[system]["seconds"] for each in rounds]
        last = rounds[-1][system]
        out[system] = {
            "rows_at_once": best[system],
            "tokens_per_second": float(np.median(speeds)),
            "tokens_per_second_of_rounds": [round(speed) for speed in speeds],
            "ours_is_faster_by": float(
                np.median(
                    [o["tokens"] / o["seconds"] / s for o, s in zip([r[OURS] for r in rounds], speeds, strict=True)]
                )
            ),
            "mean_length": last["tokens"] / last["rows"],
            "rows": last["rows"],
            "peak_megabytes": round(last["megabytes"]),
        }
    mine = rounds[-1][OURS]
    out[OURS]["useful_steps"] = mine["useful"]
    out[OURS]["compile_seconds"] = max(0.0, first[best[OURS]] - mine["seconds"])
    return out


def greedy_agreement(
    exported: MarianTokenizer, asks: dict[str, Ask], sources: list[str], flags: Flags
) -> dict[str, int]:
    """Of 100 sentences, how many each peer translates greedily as ours does."""
    few = evenly(sources, 100)
    agree = {}
    ours: dict[str, str] = {}
    for system in (OURS, GENERATE, FLOAT):
        rows = inputs(exported, system, few)
        found = asks[system](sources=rows, n=1, batch=64, max=flags.max_target_tokens, greedy=True)["found"]
        if system == OURS:
            ours = dict(enumerate(found))
            continue
        if system == FLOAT:
            ids = {piece: i for i, piece in enumerate(exported.pieces)}
            found = [[ids[piece] for piece in row] for row in found]
        agree[system] = sum(text == ours[i] for i, text in enumerate(exported.decode(found)))
    return agree


def ties(policy: Policy, sources: list[str], flags: Flags) -> dict[str, int]:
    """Rows whose tokens change with the number of slots: a draw that falls within the last bit of a border."""
    few = evenly(sources, max(1, int(4096 * flags.scale) // 8))
    found = []
    for rows in flags.at_once:
        law = SamplingSettings(temperature=0.8, max_target_tokens=flags.max_target_tokens, rows=rows)
        drawn = sample(policy, few, np.arange(len(few)), 8, law, seed=0)
        found.append([y.tolist() for samples in drawn.tokens for y in samples])
    differ = {
        str(rows): sum(a != b for a, b in zip(found[0], y, strict=True))
        for rows, y in zip(flags.at_once, found, strict=True)
    }
    return {"rows": len(found[0]), **differ}


def table(record: dict[str, Any]) -> Table:
    shown = Table(title=record["model"])
    for name in (
        "N",
        "system",
        "rows at once",
        "tokens/s",
        "rest is faster by",
        "of the bound",
        "mean length",
        "useful",
        "MB",
    ):
        shown.add_column(name, justify="left" if name == "system" else "right")
    for n, found in record["samples_per_source"].items():
        for system, row in found["systems"].items():
            shown.add_row(
                n if system == OURS else "",
                system,
                str(row["rows_at_once"]),
                f"{row['tokens_per_second']:.0f}",
                "" if system == OURS else f"{row['ours_is_faster_by']:.2f} x",
                f"{row['tokens_per_second'] / found['bound_tokens_per_second']:.0%}",
                f"{row['mean_length']:.1f}",
                f"{row['useful_steps']:.1%}" if system == OURS else "",
                str(row["peak_megabytes"]),
            )
        shown.add_row("", "bound", "", f"{found['bound_tokens_per_second']:.0f}", end_section=True)
    return shown


def main() -> None:
    flags = tyro.cli(Flags, description=__doc__)
    if flags.serve:
        serve_ours(Path(flags.serve))
        return
    sources = texts(flags.sources)
    folder = flags.policy / "policy" if (flags.policy / "policy").is_dir() else flags.policy
    policy = Policy.load(folder)
    if flags.width is not None:
        policy = random_policy(policy, flags.width, evenly(sources, 64), flags.max_target_tokens)
        flags = replace(flags, scale=flags.scale / 4)
    with tempfile.TemporaryDirectory() as scratch:
        asks = systems(policy, Path(scratch))
        exported = MarianTokenizer.load(Path(scratch) / "marian")
        s = policy.settings
        record: dict[str, Any] = {
            "model": f"{s.encoder_layers} + {s.decoder_layers} layers, width {s.width}, "
            f"vocabulary {policy.tokenizer.vocabulary_size}, {'random' if flags.width else 'trained'}",
            "settings": {"temperature": 0.8, "max_target_tokens": flags.max_target_tokens, **asdict(s)},
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "greedy_translations_equal_of_100": greedy_agreement(exported, asks, sources, flags),
            "rows_that_differ_by_slots": ties(policy, sources, flags),
            "samples_per_source": {},
        }
        length = float(np.mean([len(x) for x in policy.encode_sources(evenly(sources, 512))]))
        for n in flags.samples:
            rate = matrix_rate(s.width)
            found = measure(exported, asks, sources, n, flags)
            rate = max(rate, matrix_rate(s.width))
            flops = flops_a_token(policy, length, found[OURS]["mean_length"], n)
            record["samples_per_source"][str(n)] = {
                "matrix_gigaflops": rate / 1e9,
                "megaflops_a_token": flops / 1e6,
                "bound_tokens_per_second": rate / flops,
                "systems": found,
            }
            if flags.out is not None:
                flags.out.write_text(json.dumps(record, indent=1) + "\n")
            print(f"N = {n}: " + ", ".join(f"{k} {v['tokens_per_second']:.0f}" for k, v in found.items()), flush=True)
    console = Console(width=max(120, Console().width))
    console.print(table(record))
    agree = ", ".join(f"{system} {count}" for system, count in record["greedy_translations_equal_of_100"].items())
    console.print(f"Greedy translations equal to ours, of 100: {agree}")
    counts = dict(record["rows_that_differ_by_slots"])
    console.print(f"Of {counts.pop('rows')} rows, with other numbers of slots this many have other tokens: {counts}")


if __name__ == "__main__":
    main()
