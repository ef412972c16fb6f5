"""What the arithmetic of a network costs, from its settings: floating-point operations of its matrix products.

A product of [m, k] and [k, n] is 2mkn operations; all else, such as norms and softmax, is left out, as is usual
(Chowdhery et al. 2022, appendix B). Attention is counted with all positions of a row, also those that a mask hides.
"""

from __future__ import annotations

from typing import Any

from rest.learning.pace import BACKWARD
from rest.model.layers import TransformerSettings, head_width


def forward_flops(s: TransformerSettings, vocabulary: int, rows: int, source: int, target: int) -> int:
    """Of a forward pass over `rows` rows of `source` and `target` positions; a vocabulary of 0 is no output layer."""
    inner = s.heads * head_width(s)
    projection = 2 * s.width * inner  # of one position: query, key, value or output
    feed_forward = (3 if s.gated else 2) * 2 * s.width * s.feed_forward
    pair = 4 * inner  # of a query and a key: their product, and the value's share
    of_source = s.encoder_layers * (4 * projection + feed_forward + pair * source)
    of_source += s.decoder_layers * 2 * projection  # keys and values of cross-attention
    of_target = s.decoder_layers * (6 * projection + feed_forward + pair * (target + source))
    return rows * (source * of_source + target * (of_target + 2 * s.width * vocabulary))


def update_flops(forward: int) -> int:
    """Of an update in which everything is trained, whatever is computed twice to save memory."""
    return (1 + BACKWARD) * forward


class WithLogits:
    """An encoder-decoder with an output layer, which knows what its arithmetic costs."""

    def arithmetic(self: Any, rows: int, source: int, target: int) -> tuple[int, str]:
        """FLOPs of the products of a forward pass, and what type they are of."""
        vocabulary = self.embedding.shape[0]
        return forward_flops(self.settings, vocabulary, rows, source, target), self.settings.factors
