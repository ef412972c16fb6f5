"""`rest translate`: a translation of every line of standard input."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import tyro

from rest.commands.flags import configure_jax, parsed
from rest.data.corpus import Split, cleaning_of, recorded
from rest.errors import UserError, check_seed
from rest.evaluation.decoding import DecodingSettings
from rest.journal import say
from rest.policy.beam import BeamSettings, longest
from rest.policy.policy import Policy, last_policy
from rest.policy.sampler import SamplingSettings

S = TypeVar("S", BeamSettings, SamplingSettings)


@dataclass(frozen=True)
class Flags:
    """A translation of every line of standard input. Only best_of_n, and mbr that prunes, choose by a reward."""

    folder: tyro.conf.Positional[Path]
    """A run's folder, for its last policy, or the folder of a stage: runs/demo/improve-1-2."""
    decoding: Annotated[DecodingSettings, tyro.conf.arg(name="")] = DecodingSettings("beam")
    beams: int | None = None
    """Beam search; 1: greedy. By default, as what follows, as the run was evaluated; 4 where nothing says so."""
    length_penalty: float | None = None
    """A hypothesis of n tokens scores log-probability / n^length_penalty; 1 where nothing says so."""
    max_source_tokens: int = 512
    """A longer line is an error."""
    max_target_tokens: int | None = None
    """Longest translation, EOS included; 128 where nothing says so."""
    temperature: float | None = None
    """Of samples; 0.8 where nothing says so."""
    seed: int = 0
    """Of samples."""
    reward: str | None = None
    """What best_of_n and pruning choose by: module:function, or a folder; by default the run's learned reward."""


def translate_lines(arguments: Sequence[str]) -> None:
    """A line for a line, each cleaned as the run's own text was.

    An empty line for what cleaning leaves empty, and an error that names a line which is too long.
    """
    flags = parsed(Flags, "translate", arguments)
    check_seed(flags.seed, "--seed")
    configure_jax()
    policy = last_policy(flags.folder)
    beam, sampling = _as_evaluated(flags)
    decode = flags.decoding.decoder(beam, sampling)
    reward = None
    if flags.decoding.decode == "best_of_n" or (flags.decoding.decode == "mbr" and flags.decoding.prune_to > 0):
        from rest.commands.reward import open_reward  # and with it every reward of ours, which takes seconds

        reward = open_reward(flags.reward or str(flags.folder))
    clean = cleaning_of(flags.folder).line
    lines = [clean(line) for line in _read_lines()]
    full = [number for number, line in enumerate(lines) if line.strip()]
    _refuse_long([lines[number] for number in full], full, policy, flags.max_source_tokens)
    translations = [""] * len(lines)
    if full:
        split = Split("input", np.array(full), [lines[n] for n in full], None)
        for number, text in zip(full, decode(policy, split, reward, flags.seed), strict=True):
            translations[number] = text
        searched = flags.decoding.decode in ("greedy", "beam")
        _say_cut(translations, policy, longest(beam) if searched else sampling.max_target_tokens)
    sys.stdout.buffer.write("".join(f"{text}\n" for text in translations).encode())
    if (flags.folder / "summary.json").is_file():  # of a run that was evaluated
        from rest.commands.report import say_advice  # and with it matplotlib, which takes a second

        say_advice(flags.folder)


def _as_evaluated(flags: Flags) -> tuple[BeamSettings, SamplingSettings]:
    """How the run's outputs were decoded, which its report speaks of, but for what the flags say."""
    run = recorded(flags.folder)
    evaluation = run.get("evaluation") or {}
    sampling = _over(SamplingSettings(max_target_tokens=128), run.get("sampling"), evaluation.get("sampling"))
    beam = _over(BeamSettings(max_target_tokens=sampling.max_target_tokens), evaluation.get("beam"))
    return _over(beam, vars(flags)), _over(sampling, vars(flags))


def _over(settings: S, *parts: Mapping[str, Any] | None) -> S:
    """Settings with what each part says of their fields, None saying nothing."""
    for part in parts:
        names = [field.name for field in fields(settings)]
        settings = replace(settings, **{name: part[name] for name in names if part and part.get(name) is not None})
    return settings


def _say_cut(translations: list[str], policy: Policy, most: int) -> None:
    """Where translations are as long as they may be, and perhaps not whole."""
    cut = [n for n, ids in enumerate(policy.tokenizer.encode_targets(translations)) if len(ids) >= most - 1]
    if cut:
        lines = f"line {cut[0] + 1}" + (f" and {len(cut) - 1} more" if len(cut) > 1 else "")
        say(f"{lines}: as long as max_target_tokens {most} lets it be, and perhaps cut; --max-target-tokens")


def _read_lines() -> list[str]:
    if sys.stdin.isatty():
        say("a source a line; Ctrl-D ends them")
    try:
        lines = sys.stdin.buffer.read().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"standard input, line {line}: not valid UTF-8 ({error.reason})") from error
    return lines[:-1] if lines[-1] == "" else lines


def _refuse_long(lines: list[str], numbers: list[int], policy: Policy, limit: int) -> None:
    for number, ids in zip(numbers, policy.encode_sources(lines), strict=True):
        if len(ids) > limit:
            raise UserError(
                f"standard input, line {number + 1}: {len(ids)} tokens, more than max_source_tokens {limit}"
            )
