"""Sampling of translations: ours beside transformers' generate (PyTorch) and CTranslate2, same weights, same sources.

    bash scripts/benchmarks/setup_environment.sh
    python scripts/benchmarks/sampling.py --policy runs/multi30k/bc --sources train.de --out results.json

The policy is exported as a Marian folder, which the peers read; `--width 512` takes the policy's tokenizer and random
weights, 6 + 6 layers, with the bias of EOS set for hypotheses of about 14 tokens. Every system draws N hypotheses a
source at temperature 0.8 from the whole vocabulary, on sources taken evenly from the file, each at the best of three
numbers of rows at once; the systems take turns, and the median of the rounds counts. The bound is the rate of matrix
products measured in the same run over the FLOPs of a token. Nothing but this process should be running.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import tyro
from peers import drawn, serve
from rich.console import Console
from rich.table import Table
from turns import Asked, faster_by, fastest, in_turns, peer, program, shown
from workload import described, evenly, flops, lines, load, machine, matrix_rate, sizes

from rest.data.tokenizer import MarianTokenizer
from rest.folder import write_json
from rest.learning.mesh import MachineSettings
from rest.model.families.huggingface import write
from rest.policy.beam import BeamSettings, translate
from rest.policy.policy import Policy
from rest.policy.sampler import Hypotheses, SamplingSettings, sample

OURS, GENERATE, FLOAT, INT8 = "rest", "transformers generate", "CTranslate2 float32", "CTranslate2 int8"
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


def random_policy(like: Policy, width: int, sources: list[str], longest: int) -> Policy:
    """Random weights, whose EOS comes about every 14 tokens."""
    policy, eos = Policy.new(sizes(width, 6), like.tokenizer, 0), like.tokenizer.eos_id
    low, high = 0.0, 12.0
    for _ in range(8):
        bias = (low + high) / 2
        moved = policy.network.parameters["output_bias"].at[eos].set(bias)
        policy = policy.with_network(
            policy.network.with_parameters({**policy.network.parameters, "output_bias": moved})
        )
        found = draw(policy, sources, 2, 0.8, longest, rows=64)
        mean = np.mean([len(y) for samples in found.tokens for y in samples])
        low, high = (bias, high) if mean > 14 else (low, bias)
    return policy


def draw(policy: Policy, sources: list[str], n: int, temperature: float, longest: int, *, rows: int) -> Hypotheses:
    settings = SamplingSettings(temperature=temperature, max_target_tokens=longest)
    return sample(policy, sources, np.arange(len(sources)), n, settings, seed=0, machine=MachineSettings(rows=rows))


def serve_ours(folder: Path) -> None:
    """Answer requests as the peers do; sources are sentences."""
    policy = Policy.load(folder)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        sources, longest = request["sources"], request["max"]
        if request["greedy"]:
            return drawn(request, translate(policy, sources, BeamSettings(1, max_target_tokens=longest)))
        found = draw(policy, sources, request["n"], request["temperature"], longest, rows=request["batch"])
        return {**drawn(request, [y for samples in found.tokens for y in samples]), "useful": found.useful_steps}

    serve(answer)


def systems(policy: Policy, scratch: Path) -> dict[str, Asked]:
    """Every system with the same weights."""
    policy.save(scratch / "policy")
    marian = scratch / "marian"
    write(marian, policy.network, policy.tokenizer)
    asked = {
        OURS: Asked([sys.executable, __file__, "--serve", scratch / "policy", "--sources", "-", "--policy", "-"]),
        GENERATE: peer("generate", marian),
    }
    for system, quantization in ((FLOAT, "float32"), (INT8, "int8")):
        target = scratch / quantization
        flags = ["--model", marian, "--output_dir", target, "--quantization", quantization]
        run([program("ct2-transformers-converter"), *flags], check=True, capture_output=True)
        asked[system] = peer("ctranslate2", target)
    return asked


def inputs(exported: MarianTokenizer, system: str, sources: list[str]) -> list[Any]:
    """Sources as the system reads them, short ones first, which spares the peers padding."""
    rows = [[*ids, exported.eos_id] for ids in exported.encode(sources)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    if system == OURS:
        return [sources[i] for i in order]
    if system == GENERATE:
        return [rows[i] for i in order]
    return [[exported.pieces[token] for token in rows[i]] for i in order]


def ask(asked: Asked, sources: list[Any], n: int, rows: int, flags: Flags, *, greedy: bool = False) -> dict[str, Any]:
    longest = flags.max_target_tokens
    return asked({"sources": sources, "n": n, "batch": rows, "temperature": 0.8, "max": longest, "greedy": greedy})


def speed(answer: dict[str, Any]) -> float:
    """Tokens a second."""
    return answer["tokens"] / answer["seconds"]


def measure(
    exported: MarianTokenizer, asked: dict[str, Asked], sources: list[str], n: int, flags: Flags
) -> dict[str, Any]:
    """The systems in turn, each at its best number of rows at once; the median of the rounds."""
    first: dict[int, float] = {}  # seconds of our first call, which compiles

    def once(system: str, rows: int) -> dict[str, Any]:
        answer = ask(asked[system], given[system], n, rows, flags)
        if system == OURS:
            first.setdefault(rows, answer["seconds"])
        return answer

    given, best = {}, {}
    for system in asked:
        given[system] = inputs(exported, system, evenly(sources, max(1, int(ROWS[system] * flags.scale) // n)))
        tried = (flags.ours_at_once or flags.at_once) if system == OURS else flags.at_once
        best[system] = fastest(
            system, lambda rows, system=system: speed(once(system, rows)), tried, warm=system == OURS
        )
    rounds = in_turns({system: partial(once, system, best[system]) for system in asked}, flags.rounds)
    speeds = {system: [speed(answer) for answer in answers] for system, answers in rounds.items()}
    out: dict[str, Any] = {}
    for system, answers in rounds.items():
        last = answers[-1]
        out[system] = {
            "rows_at_once": best[system],
            "tokens_per_second": float(np.median(speeds[system])),
            "tokens_per_second_of_rounds": [round(each) for each in speeds[system]],
            **faster_by(speeds[OURS], speeds[system]),
            "mean_length": last["tokens"] / last["rows"],
            "rows": last["rows"],
            "peak_megabytes": round(last["megabytes"]),
        }
    mine = rounds[OURS][-1]
    out[OURS]["useful_steps"] = mine["useful"]
    out[OURS]["compile_seconds"] = max(0.0, first[best[OURS]] - mine["seconds"])
    return out


def greedy_agreement(
    exported: MarianTokenizer, asked: dict[str, Asked], sources: list[str], flags: Flags
) -> dict[str, int]:
    """Of 100 sentences, how many each peer translates greedily as ours does."""
    few = evenly(sources, 100)

    def greedy(system: str) -> list[Any]:
        return ask(asked[system], inputs(exported, system, few), 1, 64, flags, greedy=True)["found"]

    ids = {piece: i for i, piece in enumerate(exported.pieces)}
    peers = {GENERATE: greedy(GENERATE), FLOAT: [[ids[piece] for piece in row] for row in greedy(FLOAT)]}
    ours = greedy(OURS)
    return {
        system: sum(a == b for a, b in zip(exported.decode(found), ours, strict=True))
        for system, found in peers.items()
    }


def ties(policy: Policy, sources: list[str], flags: Flags) -> dict[str, int]:
    """Rows whose tokens change with the number of slots: rare floating-point ties."""
    few = evenly(sources, max(1, int(4096 * flags.scale) // 8))
    found = []
    for rows in flags.at_once:
        hypotheses = draw(policy, few, 8, 0.8, flags.max_target_tokens, rows=rows)
        found.append([y.tolist() for samples in hypotheses.tokens for y in samples])
    differ = {
        str(rows): sum(a != b for a, b in zip(found[0], y, strict=True))
        for rows, y in zip(flags.at_once, found, strict=True)
    }
    return {"rows": len(found[0]), **differ}


def tabled(record: dict[str, Any]) -> Table:
    table = Table(title=record["model"])
    columns = ("N", "system", "rows at once", "tokens/s", "rest is faster by", "of the bound", "mean length", "useful")
    for name in (*columns, "MB"):
        table.add_column(name, justify="left" if name == "system" else "right")
    for n, found in record["samples_per_source"].items():
        for system, row in found["systems"].items():
            table.add_row(
                n if system == OURS else "",
                system,
                str(row["rows_at_once"]),
                f"{row['tokens_per_second']:.0f}",
                "" if system == OURS else shown(row),
                f"{row['tokens_per_second'] / found['bound_tokens_per_second']:.0%}",
                f"{row['mean_length']:.1f}",
                f"{row['useful_steps']:.1%}" if system == OURS else "",
                str(row["peak_megabytes"]),
            )
        table.add_row("", "bound", "", f"{found['bound_tokens_per_second']:.0f}", end_section=True)
    return table


def main() -> None:
    flags = tyro.cli(Flags, description=__doc__)
    if flags.serve:
        serve_ours(Path(flags.serve))
        return
    sources, policy = [text for text in lines(flags.sources) if text], load(flags.policy)
    if flags.width is not None:
        policy = random_policy(policy, flags.width, evenly(sources, 64), flags.max_target_tokens)
        flags = replace(flags, scale=flags.scale / 4)
    with tempfile.TemporaryDirectory() as scratch:
        asked = systems(policy, Path(scratch))
        exported = MarianTokenizer.load(Path(scratch) / "marian")
        s = policy.settings
        record: dict[str, Any] = {
            "model": f"{described(policy)}, {'random' if flags.width else 'trained'}",
            "settings": {"temperature": 0.8, "max_target_tokens": flags.max_target_tokens, **asdict(s)},
            "machine": machine(),
            "greedy_translations_equal_of_100": greedy_agreement(exported, asked, sources, flags),
            "rows_that_differ_by_slots": ties(policy, sources, flags),
            "samples_per_source": {},
        }
        length = float(np.mean([len(x) for x in policy.encode_sources(evenly(sources, 512))]))
        for n in flags.samples:
            rate = matrix_rate(512, s.width, 8192)
            found = measure(exported, asked, sources, n, flags)
            rate = max(rate, matrix_rate(512, s.width, 8192))
            cost = flops(s, len(policy.network.parameters["embedding"]), length, found[OURS]["mean_length"], n)
            record["samples_per_source"][str(n)] = {
                "matrix_gigaflops": rate / 1e9,
                "megaflops_a_token": cost / 1e6,
                "bound_tokens_per_second": rate / cost,
                "systems": found,
            }
            if flags.out is not None:
                write_json(flags.out, record)
            print(f"N = {n}: " + ", ".join(f"{k} {v['tokens_per_second']:.0f}" for k, v in found.items()), flush=True)
    console = Console(width=max(120, Console().width))
    console.print(tabled(record))
    agree = ", ".join(f"{system} {count}" for system, count in record["greedy_translations_equal_of_100"].items())
    console.print(f"Greedy translations equal to ours, of 100: {agree}")
    counts = dict(record["rows_that_differ_by_slots"])
    console.print(f"Of {counts.pop('rows')} rows, with other numbers of slots this many have other tokens: {counts}")


if __name__ == "__main__":
    main()
