"""Memory of fine-tuning a published model: everything by Adam, LoRA, Adafactor, parameters of bfloat16.

    python scripts/benchmarks/fine_tuning.py [--layers 8 --width 1024] [--out fine_tuning.json]

A folder of random weights is written for a T5 1.1 and for an NLLB, of 300 million parameters each as the flags are,
with a tokenizer of made-up words. Each line is a process of its own: it reads the folder, and makes a few updates from
a few short pairs, so that parameters and the optimizer weigh more than activations. `reading` and `training` are the
most memory the process has had by then, less what it had before, in bytes a parameter; pages of the mapped file count
as long as nobody else wants the memory, but not in `reading, own`, which is looked at every few milliseconds. `arrays`
are what lives between two updates: the model that training started from, which stays, what is trained, and the
optimizer.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
import transformers
import tyro
from rich.console import Console
from rich.table import Table

from rest.data.batches import BatchSettings, Examples
from rest.data.tokenizer import HuggingFaceTokenizer, Prompt
from rest.folder import write_json
from rest.learning.learner import Learner
from rest.learning.lora import LoRA, Trainable
from rest.learning.losses import NLL
from rest.learning.mesh import MachineSettings
from rest.learning.optimizers import Adafactor, Adam, Schedule
from rest.learning.train import shuffled
from rest.model.families.huggingface import HuggingFaceModel, write
from rest.model.layers import TransformerSettings
from rest.policy.policy import Policy, PolicyObjective

LANGUAGES = ("deu_Latn", "eng_Latn")
LORA = Trainable(lora=LoRA(8, targets=("query", "value")))
LINES: dict[
    str, tuple[Any, Any, Any, Trainable]
] = {  # the types of parameters and of activations, the optimizer, what trains
    "everything by Adam": ("float32", "float32", Adam(), Trainable()),
    "LoRA of rank 8 by Adam": ("float32", "float32", Adam(), LORA),
    "everything by Adafactor": ("float32", "float32", Adafactor(), Trainable()),
    "bfloat16, everything by Adam": ("bfloat16", "bfloat16", Adam(), Trainable()),
    "bfloat16, LoRA of rank 8 by Adam": ("bfloat16", "bfloat16", Adam(), LORA),
    "bfloat16, everything by Adafactor": ("bfloat16", "bfloat16", Adafactor(), Trainable()),
}


@dataclass(frozen=True)
class Flags:
    families: tuple[str, ...] = ("T5 1.1", "NLLB")
    width: int = 1024
    layers: int = 8
    """Of the encoder, and of the decoder."""
    vocabulary: int = 32_000
    """Of T5; NLLB has twice as many."""
    lines: tuple[str, ...] = tuple(LINES)
    updates: int = 20
    out: Path | None = None
    """Write what was measured as JSON."""
    made: tuple[str, Path] | None = None
    """(What a process that writes a folder is started with.)"""
    line: tuple[str, str, Path] | None = None
    """(What a process that measures one line is started with.)"""


def tokenizer(special: list[str], size: int, languages: list[str]) -> HuggingFaceTokenizer:
    """An id a word: w7 is 7."""
    words = [*special, *languages, *(f"w{i}" for i in range(len(special) + len(languages), size))]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return HuggingFaceTokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names))


def make(flags: Flags, family: str, folder: Path) -> None:
    """A folder of random weights."""
    sizes: dict[str, Any] = {"width": flags.width, "heads": flags.width // 64, "norm_first": True, "dropout": 0.1}
    sizes |= {"encoder_layers": flags.layers, "decoder_layers": flags.layers}
    if family == "NLLB":
        words = tokenizer(["<s>", "<pad>", "</s>", "<unk>"], 2 * flags.vocabulary, list(LANGUAGES))
        own: dict[str, Any] = {"feed_forward": 4 * flags.width, "positions": "fairseq", "output_bias": False}
        known = words.prompted(Prompt(2, forced=(5,), source=(4,)))
    else:
        words = tokenizer(["<pad>", "</s>", "<unk>"], flags.vocabulary, [])
        own = {"feed_forward": 11 * flags.width // 4, "gated": True, "activation": "gelu_tanh", "norm": "rms"}
        own |= {"positions": "relative", "biases": False, "head_width": 64, "scale_embedding": False}
        own |= {"scale_attention": False, "tied_output": False}
        known = words.prompted(Prompt(0))
    policy = Policy.new(TransformerSettings(**sizes, **own, zero_start=False), known, 0)
    write(folder, policy.network, known)


def measure(flags: Flags, family: str, line: str, folder: Path) -> dict[str, float]:
    """One line: millions of parameters, and bytes of each."""
    parameter_type, activation_type, optimizer, trainable = LINES[line]
    source, target = LANGUAGES if family == "NLLB" else (None, None)
    jax.block_until_ready(jax.numpy.ones(8) + 1)  # what a first computation brings with it
    before = peak()
    types: dict[str, Any] = {"dtype": activation_type, "parameter_dtype": parameter_type}
    with own_memory() as seen:
        policy = Policy.start(HuggingFaceModel(folder, "main", source, target, dropout=0.1, **types))
        jax.block_until_ready(jax.tree.leaves(policy.network))
    read, own = peak(), max(seen) - seen[0]
    count = sum(leaf.size for leaf in jax.tree.leaves(policy.network))
    random, eos = np.random.default_rng(0), policy.tokenizer.eos_id
    rows = [[*random.integers(10, flags.vocabulary, 14).tolist(), eos] for _ in range(16)]
    batches, _ = shuffled(Examples(rows, rows), BatchSettings(32, 16, 16), pad_id=policy.tokenizer.pad_id, seed=0)
    learner = Learner.begin(
        policy, PolicyObjective(NLL()), optimizer, Schedule(1e-4), trainable, seed=0, machine=MachineSettings()
    )
    losses = [float(learner.update(next(batches), jax.random.key(step))["loss"]) for step in range(flags.updates)]
    buffers = {leaf.addressable_data(0).unsafe_buffer_pointer(): leaf.nbytes for leaf in jax.live_arrays()}
    each = {"reading": read - before, "own": own, "arrays": sum(buffers.values()), "training": peak() - before}
    found = {name: size / count for name, size in each.items()}
    return {"millions": count / 1e6, **found, "first_loss": losses[0], "last_loss": losses[-1]}


def peak() -> int:
    """The most memory that this process has had, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def own_memory() -> Iterator[list[int]]:
    """Bytes of memory that are this process's own, not pages of files, as they are every two milliseconds."""
    seen, done = [], threading.Event()

    def look() -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            seen.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")))
            if done.wait(0.002):
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def main() -> None:
    flags = tyro.cli(Flags, description=__doc__)
    if flags.made is not None:
        make(flags, *flags.made)
        return
    if flags.line is not None:
        print(json.dumps(measure(flags, *flags.line)))
        return
    sizes = [f"--{name}={getattr(flags, name)}" for name in ("width", "layers", "vocabulary", "updates")]
    found: dict[str, Any] = {}
    for family in flags.families:
        with tempfile.TemporaryDirectory() as temporary:
            command, folder = [sys.executable, __file__, *sizes], Path(temporary) / "model"
            subprocess.run([*command, "--made", family, str(folder)], check=True)
            for line in flags.lines:
                made = subprocess.run(
                    [*command, "--line", family, line, str(folder)], stdout=subprocess.PIPE, text=True, check=True
                )
                found[f"{family}: {line}"] = json.loads(made.stdout)
                print(f"{family}: {line}: {made.stdout}", end="", file=sys.stderr)
                if flags.out is not None:
                    write_json(flags.out, found)
    table = Table(title=f"{flags.layers} + {flags.layers} layers x {flags.width}: bytes a parameter")
    for head in ("", "million parameters", "reading", "reading, own", "arrays between updates", "training"):
        table.add_column(head, justify="right" if head else "left")
    for name, row in found.items():
        table.add_row(
            name, f"{row['millions']:.0f}", *(f"{row[key]:.1f}" for key in ("reading", "own", "arrays", "training"))
        )
    Console().print(table)


if __name__ == "__main__":
    main()
