"""Exactly right: one of N samples at least (pass@N), and the text that most of N samples agree on (maj@N).

Both are what ReST-EM reports of tasks with one right answer (Singh et al. 2023, arXiv 2312.06585, §5). Right is what
the task's exact quality calls perfect or, where it has none, what equals a reference.
"""

from __future__ import annotations

import numpy as np

from rest.evaluation.best_of_n import best_of
from rest.evaluation.outputs import Outputs

ORDERS = 64  # in which samples may come, of which the majority is a mean; one of N needs none, it has a closed form


def right(outputs: Outputs) -> np.ndarray | None:
    """bool [sources, M], whether each sample is; None where neither gold nor references say so."""
    if "gold" in outputs.scores:
        return outputs.scores["gold"] >= 1 - 1e-6
    every = [column for column in (outputs.split.references, *outputs.split.more_references) if column is not None]
    if not every:
        return None
    answers = [set(row) for row in zip(*every, strict=True)]
    return np.array([[text in among for text in row] for row, among in zip(outputs.texts, answers, strict=True)])


def pass_at(right: np.ndarray) -> np.ndarray:
    """float64 [sources, M]: how likely one of N = 1 ... M samples, of the M without replacement, is right at least.

    1 - C(M - c, N) / C(M, N) of c right ones (Chen et al. 2021, arXiv 2107.03374, eq. 1).
    """
    return best_of(right, right)


def majority_at(texts: list[list[str]], right: np.ndarray, orders: int = ORDERS) -> np.ndarray:
    """float64 [sources, M]: how likely the most frequent text of N = 1 ... M samples is right.

    The mean over random orders, the same ones for every source and policy, of the first N samples; of texts that are
    as frequent any is as likely.
    """
    samples = right.shape[1]
    drawn = np.random.default_rng(0).permuted(np.tile(np.arange(samples), (orders, 1)), axis=1)
    return np.stack([_majority(row, rights, drawn) for row, rights in zip(texts, right, strict=True)])


def _majority(texts: list[str], right: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """float64 [M] of one source, for orders [K, M]."""
    _, first, text = np.unique(texts, return_index=True, return_inverse=True)
    counts = np.cumsum(text[drawn][:, :, None] == np.arange(len(first)), axis=1)  # [K, M, distinct texts]
    most = counts == counts.max(axis=2, keepdims=True)
    return ((most * right[first]).sum(axis=2) / most.sum(axis=2)).mean(axis=0)
