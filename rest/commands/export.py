"""`rest export`: a policy for other libraries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from rest.commands.flags import parsed
from rest.journal import say
from rest.model.families.huggingface import write
from rest.policy.policy import last_policy


@dataclass(frozen=True)
class Flags:
    """A policy for Hugging Face `transformers` and CTranslate2."""

    folder: tyro.conf.Positional[Path]
    """A run's folder, for its last policy, or the folder of a stage: runs/demo/improve-1-2."""
    out: Path
    """The folder to make."""
    format: Literal["huggingface"] = "huggingface"
    """config.json, generation_config.json, model.safetensors and the tokenizer's files, as the family has them."""


def export(arguments: Sequence[str]) -> None:
    """The folder of a published model's family; Marian or M2M100 for our own networks."""
    flags = parsed(Flags, "export", arguments)
    policy = last_policy(flags.folder)
    family = write(flags.out, policy.network, policy.tokenizer)
    say(f"{flags.out}: {family.name}, for transformers and CTranslate2")
    prompt = policy.tokenizer.prompt
    if prompt.source and not prompt.forced:  # MADLAD and OPUS-MT of many languages are told the language there
        said = policy.tokenizer.decode([list(prompt.source)])[0] or f"the tokens {list(prompt.source)}"
        say(f"{flags.out}: begin every source with {said}, as this policy does")
    if (flags.folder / "summary.json").is_file():  # of a run that was evaluated
        from rest.commands.report import say_advice  # and with it matplotlib, which takes a second

        say_advice(flags.folder)
