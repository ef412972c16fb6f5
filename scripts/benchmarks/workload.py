"""What the benchmarks measure with: sentences, a policy, what its arithmetic costs, and what the machine is."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rest.data.lines import read_lines
from rest.model.layers import TransformerSettings
from rest.policy.policy import Policy

T = TypeVar("T")


def lines(path: Path) -> list[str]:
    """The lines of a text (gzip where named .gz)."""
    return [line.decode().strip() for line in read_lines(path)]


def evenly(rows: Sequence[T], count: int) -> list[T]:
    """`count` of the rows at equal distances."""
    return [rows[int(i)] for i in np.linspace(0, len(rows) - 1, min(count, len(rows)))]


def sizes(width: int, layers: int) -> TransformerSettings:
    """As many layers in the encoder as in the decoder, heads of 64."""
    return TransformerSettings(
        width=width, heads=max(1, width // 64), feed_forward=4 * width, encoder_layers=layers, decoder_layers=layers
    )


def load(folder: Path) -> Policy:
    """The policy of a stage, or of a folder of its own."""
    return Policy.load(folder / "policy" if (folder / "policy").is_dir() else folder)


def described(policy: Policy) -> str:
    s = policy.settings
    layers = f"{s.encoder_layers} + {s.decoder_layers} layers, width {s.width}"
    return f"{layers}, vocabulary {policy.tokenizer.vocabulary_size}"


def machine() -> dict[str, Any]:
    return {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}


def flops(s: TransformerSettings, vocabulary: int, source: float, target: float, each: float) -> float:
    """Matrix products of a target token, forward: the decoder's own, and its share of a source read for `each` targets.

    `source` and `target` are mean lengths; a backward pass takes twice as many.
    """
    layer = 2 * s.width * (4 * s.width + 2 * s.feed_forward)
    cross = 2 * s.width * 2 * s.width
    decoder = s.decoder_layers * (layer + cross + 4 * s.width * (source + target / 2)) + 2 * s.width * vocabulary
    encoder = s.encoder_layers * (layer + 4 * s.width * source) + s.decoder_layers * cross
    return decoder + encoder * source / (each * target)


def matrix_rate(rows: int, inputs: int, outputs: int) -> float:
    """FLOP/s of the product of [rows, inputs] and [inputs, outputs]: the best of ten."""
    a, b = jnp.ones((rows, inputs)), jnp.ones((inputs, outputs))
    product, best = jax.jit(jnp.matmul), np.inf
    for _ in range(10):
        began = time.perf_counter()
        jax.block_until_ready(product(a, b))
        best = min(best, time.perf_counter() - began)
    return 2 * rows * inputs * outputs / best
